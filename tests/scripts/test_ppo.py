"""scripts.ppo on a tiny model: it learns, does nothing at learning rate 0, goes on with its critic; what it refuses."""

import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
from chat_model import write_model, write_reward_model

NAMES = {"reward", "explained_variance", "returns/mean", "returns/std", "approx_kl", "kl", "entropy", "ratio/mean",
         "clip_ratio/low_mean", "clip_ratio/high_mean", "critic/loss", "critic/clip_ratio", "critic/values",
         "critic/error", "critic/grad_norm", "critic/learning_rate", "sampling/logp_difference/max",
         "completions/mean_length", "time_share/rollout", "loss", "grad_norm", "learning_rate", "num_tokens",
         "sampled_tokens"}
LORA = ("--lora.rank", 4, "--critic.lora.rank", 4)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("chat") / "model")


@pytest.fixture
def prompts(write_rows):
    return write_rows("prompts.jsonl", [{"prompt": text} for text in ("abc", "de", "1 + 2 =", "Hello", "x", "yz")])


@pytest.fixture
def train(run_script, model, prompts, tmp_path):
    """Runs scripts.ppo; gives (exit status, standard output, standard error, lines of metrics.jsonl)."""

    def train(*more, name="run", **replaced):
        flags = {"data": prompts, "rewards": "chat_model:digits", "max-steps": 2, "batch-size": 8,
                 "max-new-tokens": 8, "learning-rate": "1e-2", "rollouts.log-completions-every": 0} | {
                     key.replace("_", "-"): value for key, value in replaced.items()}
        given = [part for key, value in flags.items() for part in (f"--{key}", value)]
        status, out, err = run_script("ppo", "--model", model, "--output-dir", tmp_path / name, *given, *more)
        metrics = tmp_path / name / "metrics.jsonl"
        lines = [json.loads(line) for line in metrics.read_text().splitlines()] if metrics.exists() else []
        return status, out, err, lines

    return train


@pytest.mark.slow
@pytest.mark.parametrize("more", [("--critic.warmup-steps", 1), LORA])
def test_learning_rate_0_changes_nothing(train, more):
    """The values' loss is that of values that stay 0, so half the mean square of the returns."""
    flags = {"learning_rate": 0, "critic.learning_rate": 0, "temperature": 0.8, "num_iterations": 2}
    status, out, err, lines = train(*more, **flags)
    assert status == 0, err
    assert out.count("memory before activations") == 1
    assert ("one base for all" in out) == (more == LORA)
    assert lines[-1].keys() >= NAMES - {"explained_variance"}
    assert ("loss" in lines[0]) == ("--critic.warmup-steps" not in more)
    for line in lines:
        assert line["critic/clip_ratio"] == line["critic/values"] == 0
        assert line["critic/loss"] == pytest.approx((line["returns/mean"] ** 2 + line["returns/std"] ** 2) / 2)
        if "loss" in line:
            assert (line["ratio/mean"], line["approx_kl"], line["kl"]) == (1, 0, 0)
            assert line["sampling/logp_difference/max"] < 1e-4


@pytest.mark.slow
def test_it_learns(train, tmp_path):
    status, _, err, lines = train("--optimizer.schedule", "constant", "--critic.optimizer.schedule", "constant",
                                  max_steps=30, batch_size=16, **{"critic.learning_rate": "1e-2", "beta": 0})
    assert status == 0, err
    assert sum(line["reward"] for line in lines[-5:]) > 5 * 0.3 + sum(line["reward"] for line in lines[:5])
    assert np.mean([line["critic/error"] for line in lines[5:]]) < np.mean([line["returns/std"] ** 2 for line in lines])
    assert lines[-1].keys() >= NAMES - {"kl"}
    [row] = pq.read_table(tmp_path / "run" / "samples" / "step-000001.parquet").to_pylist()[:1]
    assert len(row["advantages"]) == len(row["tokens"]) == len(row["policy_logps"])


@pytest.mark.slow
def test_micro_batches_change_nothing(train):
    """Of policy and critic, whatever shares a prompt."""
    flags = {"group_size": 2, "batch_size": 4, "num_minibatches": 2, "critic.num_minibatches": 4,
             "critic.learning_rate": "1e-2", "dtype": "float32"}
    whole, parts = (train(name=name, **flags, **more)[3] for name, more in (
        ("whole", {}), ("parts", {"microbatch_tokens": 24, "critic.microbatch_tokens": 40})))
    assert len(whole) == len(parts) == 2
    for line, other in zip(whole, parts):
        for name in ("loss", "grad_norm", "critic/loss", "critic/grad_norm", "explained_variance", "approx_kl", "kl"):
            assert other[name] == pytest.approx(line[name], rel=1e-4, abs=1e-6), name


@pytest.mark.slow
def test_the_critic_is_gone_on_with(train, run_script, model, tmp_path):
    """In another run, full, LoRA, and with a critic that is itself gone on with; --model takes the policy alone."""
    flags = {"max_steps": 1, "critic.learning_rate": "1e-2"}
    status, _, err, first = train("--critic.lora.rank", 4, name="first", **flags)
    assert status == 0, err
    assert first[0]["critic/values"] != 0  # moved within the step
    status, _, err, second = train("--critic.model", tmp_path / "first", "--critic.lora.rank", 2, name="second",
                                   **flags)
    assert status == 0, err
    status, _, err, third = train("--critic.model", tmp_path / "second", name="third", **flags | {
        "learning_rate": 0, "critic.learning_rate": 0})
    assert status == 0, err
    assert second[0]["explained_variance"] != 0
    assert third[0]["critic/values"] != 0
    assert third[0]["critic/clip_ratio"] == 0
    status, _, err, _ = train("--model", tmp_path / "first", name="fourth", **flags)  # the last --model counts
    assert status == 0, err


@pytest.mark.slow
def test_steps_without_any_reward_change_nothing(train, tmp_path, monkeypatch):
    (tmp_path / "failing.py").write_text("def reward(prompts, completions, **columns):\n    raise OSError('nobody')\n")
    monkeypatch.syspath_prepend(tmp_path)
    status, _, err, lines = train(rewards="failing:reward")
    assert status == 0, err
    assert len(lines) == 2
    for line in lines:
        assert "reward" not in line
        assert (line["loss"], line["critic/loss"], line["grad_norm"], line["critic/grad_norm"]) == (0,) * 4


@pytest.mark.slow
def test_a_reward_model_is_a_critic(train, model, tmp_path):
    judge = write_reward_model(tmp_path / "judge", model)
    status, _, err, lines = train("--critic.model", judge, rewards=f"model:{judge}", **{"critic.learning_rate": 0})
    assert status == 0, err
    assert lines[0]["critic/values"] != 0


@pytest.mark.parametrize(("replaced", "line"), [
    ({"gamma": 1.5}, "--gamma must be from 0 to 1, not 1.5"), ({"lam": -0.1}, "--lam must be from 0 to 1"),
    ({"critic.lam": 2}, "--critic.lam must be from 0 to 1"), ({"beta": -1}, "--beta must be 0 or more"),
    ({"critic.warmup_steps": 2}, "--critic.warmup-steps 2 must be fewer than --max-steps 2"),
    ({"critic.num_minibatches": 3}, "do not divide into --critic.num-minibatches 3"),
    ({"critic.optimizer.warmup_steps": 30}, "critic's optimizer.warmup_steps 30 must be fewer than the run's 8 "),
    ({"critic.epsilon": 0}, "--critic.epsilon must be above 0"),
    ({"critic.model": "nowhere"}, "model 'nowhere': no such file or folder"),
    ({"critic.model": "tiny"}, "its tokenizer is not that of the policy: it has none; give a model of the same family"),
    ({"critic.model": "few"}, "it has embeddings for 97 tokens, and the policy"),
    ({"critic.model": "short"}, "its context of 8 tokens is shorter than the longest row"),
    ({"critic.lora.alpha": 3}, "--critic.lora.alpha 3: nothing reads it"),
    ({"rewards": "model:policy"}, "is a language model"),
    ({"model": "judge"}, "is a reward model, which writes nothing"),
    ({"algorithm.lam_alpha": -1}, "--algorithm.lam-alpha must be 0 or more"),
    ({"lam": 0.9, "critic.lam": 1, "algorithm.lam_alpha": 0.05}, "--lam 0.9: nothing reads it beside"),
    ({"beta": 0, "algorithm.kl": "k2"}, "--algorithm.kl k2: nothing reads it at --beta 0"),
    ({"algorithm.nll_reward": 0.5}, "--algorithm.nll-reward 0.5: nothing reads it")])
def test_what_is_refused_is_one_line(train, model, tmp_path, tiny_model, replaced, line):
    folders = {"tiny": tiny_model, "model:policy": f"model:{model}", "judge": tiny_model.replace(
        "families/smollm2", "reward_model"), "few": other(model, tmp_path / "few", vocab_size=97),
        "short": other(model, tmp_path / "short", max_position_embeddings=8)}
    status, _, err, _ = train(**{name: folders.get(value, value) for name, value in replaced.items()})
    assert status != 0
    assert line in err.splitlines()[-1]
    assert "Traceback" not in err
    assert not (tmp_path / "run").exists()


def other(model, folder, **settings):
    """The model with another configuration."""
    shutil.copytree(model, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | settings))
    return folder


@pytest.mark.slow
def test_a_run_goes_on_with_the_critic_that_it_began_with(train):
    assert train("--critic.lora.rank", 4, name="run", max_steps=1)[0] == 0
    status, _, err, _ = train("--critic.lora.rank", 2, name="run", max_steps=1)
    assert (status, "(critic.lora.rank: 4 there, 2 now)" in err) == (1, True)

"""scripts.grpo on a tiny model: it learns, keeps what was said, does nothing at learning rate 0; what it refuses."""

import json
import math
from pathlib import Path

import jax
import numpy as np
import pyarrow.parquet as pq
import pytest
from chat_model import digits, write_model

from objectives import grpo as objectives
from objectives.advantages import ADVANTAGES
from rollouts.baselines import BASELINES

NAMES = {"reward", "reward_std", "frac_reward_zero_std", "completions/mean_length", "completions/min_length",
         "completions/max_length", "completions/clipped_ratio", "entropy", "clip_ratio/low_mean",
         "clip_ratio/high_mean", "sampling/logp_difference/mean", "sampling/logp_difference/max",
         "sampling/importance_ratio/min", "sampling/importance_ratio/mean", "sampling/importance_ratio/max",
         "rollout_tokens_per_second", "time_share/rollout", "time_share/reward", "time_share/scoring",
         "time_share/update", "loss", "grad_norm", "learning_rate", "num_tokens", "tokens_per_second", "sampled_tokens"}
LORA = ("--lora.rank", 4)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("chat") / "model")


@pytest.fixture
def prompts(write_rows):
    return write_rows("prompts.jsonl", [{"prompt": text, "answer": str(number)}
                                        for number, text in enumerate(("abc", "de", "1 + 2 =", "Hello", "x", "yz"))])


@pytest.fixture
def train(run_script, model, prompts, tmp_path):
    """Runs scripts.grpo; gives (exit status, standard output, standard error, lines of metrics.jsonl)."""

    def train(*more, name="run", **replaced):
        flags = {"data": prompts, "rewards": "chat_model:digits", "max-steps": 3, "batch-size": 2, "group-size": 4,
                 "max-new-tokens": 8, "learning-rate": "1e-2", "rollouts.log-completions-every": 0} | {
                     key.replace("_", "-"): value for key, value in replaced.items()}
        given = [part for key, value in flags.items() for part in (f"--{key}", value)]
        status, out, err = run_script("grpo", "--model", model, "--output-dir", tmp_path / name, *given, *more)
        metrics = tmp_path / name / "metrics.jsonl"
        lines = [json.loads(line) for line in metrics.read_text().splitlines()] if metrics.exists() else []
        return status, out, err, lines

    return train


def test_it_learns_and_keeps_what_was_said(train, write_rows, tmp_path):
    held_out = write_rows("held_out.jsonl", [{"prompt": text} for text in ("fg", "h", "Hi", "3 =")])
    status, out, err, lines = train("--eval-data", held_out, max_steps=25, learning_rate="1e-2",
                                    **{"rollouts.log_completions_every": 20, "optimizer.schedule": "constant"})
    assert status == 0, err
    steps = [line for line in lines if "loss" in line]
    assert len(steps) == 25
    assert steps[0].keys() >= NAMES | {"rewards/chat_model:digits/mean", "rewards/chat_model:digits/std"}
    assert sum(step["reward"] for step in steps[-5:]) > 5 * 0.3 + sum(step["reward"] for step in steps[:5])
    held_out = [line["eval/reward"] for line in lines if "eval/reward" in line]
    assert held_out[-1] > held_out[0] + 0.3
    for step, mean in ((0, held_out[0]), (25, held_out[-1])):
        kept = pq.read_table(tmp_path / "run" / "eval" / "samples" / f"step-{step:06d}.parquet").to_pylist()
        assert sorted(row["group"] for row in kept) == [0, 1, 2, 3]
        assert sum(row["reward"] for row in kept) / 4 == pytest.approx(mean)
        assert all(row["advantage"] is None and row["policy_logps"] is None for row in kept)
    assert "step 1 " in out
    assert "step 21" in out
    rows = pq.read_table(tmp_path / "run" / "samples" / "step-000025.parquet").to_pylist()
    assert len(rows) == 8
    assert steps[-1]["sampled_tokens"] - steps[-2]["sampled_tokens"] == sum(row["length"] for row in rows)
    assert sum(row["reward"] for row in rows) / 8 == pytest.approx(steps[-1]["reward"])
    assert len(list((tmp_path / "run" / "samples").glob("step-*.parquet"))) == 25


@pytest.mark.slow
def test_what_was_said_is_trained_on_and_asked_again(train, run_script, model, tmp_path):
    """By the very tokens that were sampled; a run's samples are data like any other."""
    assert train(max_steps=2)[0] == 0
    samples = str(tmp_path / "run" / "samples" / "*.parquet")
    status, _, err = run_script("sft", "--model", model, "--data", samples, "--output-dir", str(tmp_path / "sft"),
                                "--max-steps", 2, "--batch-size", 4, "--bad-rows", "skip")
    assert status == 0, err
    lines = [json.loads(line) for line in (tmp_path / "sft" / "metrics.jsonl").read_text().splitlines()]
    rows = [row for path in sorted((tmp_path / "run" / "samples").iterdir()) for row in pq.read_table(path).to_pylist()]
    assert 0 < lines[-1]["num_tokens"] <= sum(len(row["tokens"]) for row in rows)
    status, _, err, _ = train(data=samples, name="again", max_steps=1)
    assert status == 0, err
    [again] = (tmp_path / "again" / "samples").iterdir()
    asked = {(row["prompt"], row["answer"]) for row in pq.read_table(again).to_pylist()}
    assert asked <= {(row["prompt"], row["answer"]) for row in rows}


@pytest.mark.parametrize("more", [pytest.param(("--num-minibatches", 2, "--num-iterations", 2), id="several updates"),
                                  pytest.param(LORA, id="lora", marks=pytest.mark.slow),
                                  pytest.param(("--beta", 0.1, *LORA), id="reference", marks=pytest.mark.slow)])
def test_learning_rate_0_changes_nothing(train, more):
    status, _, err, lines = train(*more, learning_rate=0, temperature=0.8)
    assert status == 0, err
    for line in lines:
        assert line["ratio/mean"] == 1.0
        assert line["clip_ratio/low_mean"] == line["clip_ratio/high_mean"] == 0.0
        assert line["sampling/logp_difference/mean"] < 1e-5
        assert line["sampling/logp_difference/max"] < 1e-4
        assert line["sampling/importance_ratio/min"] == pytest.approx(1.0, abs=1e-4)
        assert "--beta" not in more or line["kl"] == 0.0


@pytest.mark.slow
def test_variants_run(train):
    status, _, err, lines = train(
        "--algorithm.kl-in", "reward", "--algorithm.kl", "k1", "--algorithm.advantages", "leave_one_out",
        "--importance-sampling-level", "sequence", "--loss-aggregation", "constant", "--algorithm.constant-length", 8,
        "--importance-sampling-correction", "token_truncate", "--dynamic-sampling-tries", 3, "--microbatch-tokens", 40,
        "--sampling.top-k", 50, "--rollouts.num-slots", 3, "--sampling.stop", "ab", "7",
        beta=0.05)
    assert status == 0, err
    assert all(math.isfinite(line["loss"]) for line in lines)
    assert lines[-1]["kl"] > 0


def expected_advantages(kind, rewards, lengths):
    """[P, G], the same at each token; None where it takes more than rewards and lengths."""
    mean = rewards.mean(axis=1, keepdims=True)
    centred = {"leave_one_out": (rewards - mean) * 4 / 3, "mean": rewards - mean,
               "group": (rewards - mean) / (rewards.std(axis=1, ddof=1, keepdims=True) + 1e-4),
               "batch": (rewards - mean) / (rewards.std(ddof=1) + 1e-4),
               "opo": rewards - np.sum(lengths * rewards, 1, keepdims=True) / lengths.sum(1, keepdims=True)}
    if kind in centred:
        return centred[kind]
    values = {"reinforce_plus_plus": rewards, "reinforce_plus_plus_baseline": rewards - mean}.get(kind)
    if values is None:
        return None
    by_token = np.repeat(values.ravel(), lengths.ravel())
    return (values - by_token.mean()) / np.sqrt(by_token.var(ddof=1) + 1e-8)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*ADVANTAGES, *BASELINES])
def test_advantages_of_each_kind(train, tmp_path, kind):
    """From rollouts to an update: advantages beside the answers are those of their rewards, and nothing fails."""
    status, _, err, lines = train("--algorithm.advantages", kind, max_steps=2, batch_size=3, dtype="float32")
    assert status == 0, err
    assert not (tmp_path / "run" / "failures.jsonl").exists()
    for line in lines:
        assert not [name for name in line if name.endswith("/failures")]
        assert all(math.isfinite(value) for value in line.values())
        assert line["grad_norm"] > 0
        assert line["sampling/logp_difference/max"] < 1e-4
        rows = pq.read_table(tmp_path / "run" / "samples" / f"step-{line['step']:06d}.parquet").to_pylist()
        given = [np.asarray(row["advantages"])[row["loss_mask"]] if "advantages" in row else
                 np.full(row["length"], row["advantage"]) for row in rows]
        rewards, lengths = (np.asarray([row[name] for row in rows]).reshape(3, 4) for name in ("reward", "length"))
        expected = expected_advantages(kind, rewards, lengths)
        if kind == "remax":  # the likeliest answer to a prompt is one
            expected = rewards - (rewards - np.asarray([each[0] for each in given]).reshape(3, 4))[:, :1]
        if kind == "vine":
            assert np.abs(np.concatenate(given)).max() <= 1
        else:
            np.testing.assert_allclose(np.concatenate(given), np.repeat(expected.ravel(), lengths.ravel()), atol=1e-4)


@pytest.mark.slow
def test_remax_takes_off_what_the_likeliest_answer_gets(train, run_script, model, prompts, tmp_path):
    """As scripts.generate gives it, of the model that the first step drew from."""
    assert train("--algorithm.advantages", "remax", max_steps=1, batch_size=6, dtype="float32")[0] == 0
    written = tmp_path / "likeliest.jsonl"
    status, _, err = run_script("generate", "--model", model, "--data", prompts, "--output", written,
                                "--max-new-tokens", 8, "--temperature", 0, "--dtype", "float32")
    assert status == 0, err
    answers = [json.loads(line) for line in written.read_text().splitlines()]
    values = digits(None, [answer["completion"] for answer in answers])
    greedy = dict(zip((answer["prompt"] for answer in answers), values))
    assert max(values) > 0
    for row in pq.read_table(tmp_path / "run" / "samples" / "step-000001.parquet").to_pylist():
        drawn = np.asarray(row["advantages"])[row["loss_mask"]]
        np.testing.assert_allclose(drawn, row["reward"] - greedy[row["prompt"]], atol=1e-6)


def test_groups_without_spread_are_replaced_and_advantages_stand_beside_what_they_are_of(train, tmp_path, monkeypatch):
    (tmp_path / "some.py").write_text(
        "def reward(prompts, completions, **columns):\n"
        "    return [float(sum(map(ord, each))) if prompt in ('Hello', 'yz') else 0.0\n"
        "            for prompt, each in zip(prompts, completions)]\n")
    monkeypatch.syspath_prepend(tmp_path)
    status, _, err, _ = train("--dynamic-sampling-tries", 3, "--algorithm.advantages", "mean", rewards="some:reward")
    assert status == 0, err
    places = set()
    for file in (tmp_path / "run" / "samples").glob("step-*.parquet"):
        rows = pq.read_table(file).to_pylist()
        groups = [rows[start : start + 4] for start in range(0, len(rows), 4)]
        trained = [place for place, group in enumerate(groups) if group[0]["advantage"] is not None]
        assert len(trained) == 2
        for group in (groups[place] for place in trained):
            mean = sum(row["reward"] for row in group) / 4
            assert [row["advantage"] for row in group] == pytest.approx([row["reward"] - mean for row in group])
        places |= {place for place in trained if place >= 2 and groups[place][0]["reward"]}
    assert places  # a later draw's group took the place of one without spread


def test_a_reward_that_is_bad_later_loses_nothing(train, tmp_path, monkeypatch):
    (tmp_path / "late.py").write_text(
        "rows = []\n\ndef reward(prompts, completions, **columns):\n    rows.extend(prompts)\n"
        "    return [float(len(each)) if len(rows) <= 16 else float('nan') for each in completions]\n")
    monkeypatch.syspath_prepend(tmp_path)
    status, _, err, lines = train(rewards="late:reward", save_every=0)
    assert status == 1
    assert "reward late:reward: gave nan for row 0" in err.splitlines()[-1]
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir() if path.name.isdigit()] == ["2"]
    assert len(lines) == 2


def test_a_step_whose_samples_cannot_be_kept_is_not_saved(train, tmp_path, monkeypatch):
    from rollouts import samples

    write_samples = samples.write_samples

    def blocked(run, step, *more):
        if step == 3:
            (run / "samples").rename(run / "others")
            (run / "samples").write_text("a file")
        write_samples(run, step, *more)

    monkeypatch.setattr(samples, "write_samples", blocked)
    status, _, err, lines = train(save_every=1)
    assert status == 1
    assert "cannot be written" in err.splitlines()[-1]
    assert {path.name for path in (tmp_path / "run" / "checkpoints").iterdir() if path.name.isdigit()} == {"1", "2"}


def test_an_evaluation_that_failed_is_made_up_for(train, write_rows, tmp_path, monkeypatch):
    held_out = write_rows("held_out.jsonl", [{"prompt": "new"}])
    (tmp_path / "moody.py").write_text(
        "bad = [True]\n\ndef reward(prompts, completions, **columns):\n"
        "    return [float('nan') if bad[0] and len(prompts) == 1 and columns['completion_ids'] and calls() else 1.0\n"
        "            for _ in prompts]\n\nasked = []\n\ndef calls():\n    asked.append(1)\n    return len(asked) > 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    status, _, err, _ = train("--eval-data", held_out, rewards="moody:reward")
    assert status == 1
    assert "gave nan" in err.splitlines()[-1]
    import moody

    moody.bad[0] = False
    status, _, err, lines = train("--eval-data", held_out, rewards="moody:reward")
    assert status == 0, err
    assert [line["step"] for line in lines if "eval/reward" in line] == [0, 3]


@pytest.mark.slow
def test_nothing_is_compiled_after_the_second_step(train, write_rows, monkeypatch):
    """Prompts of 1 to 90 tokens, and completions that end at digits."""
    from rollouts import packing, samples

    compilations, after, write_samples = [], [], samples.write_samples
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, *_, **__: compilations.append(name) if "backend_compile" in name else None)

    def counted(*given):
        write_samples(*given)
        after.append(len(compilations))

    monkeypatch.setattr(samples, "write_samples", counted)
    monkeypatch.setattr(packing, "MIN_SAVING", 8)
    random = np.random.default_rng(0)
    rows = write_rows("ragged.jsonl", [{"prompt": "ab" * 45}, *(
        {"prompt": "".join(map(chr, random.integers(33, 127, random.integers(1, 90))))} for _ in range(30))])
    status, _, err, _ = train("--sampling.stop", *"0123456789", "--save-every", 0, data=rows, max_new_tokens=32,
                              max_steps=9, group_size=2)
    assert status == 0, err
    assert len(after) == 9
    assert after[1:] == [after[1]] * 8


def test_an_objective_of_ones_own(train):
    status, _, err, lines = train("--objective", "objectives.sft:sft")
    assert status == 0, err
    assert lines[0]["loss"] > 0


@pytest.mark.parametrize(("replaced", "line"), [
    ({"group_size": 1}, "--group-size 1"),
    ({"rewards": "nonsense"}, "no reward is called 'nonsense'"),
    ({"rewards": "chat_model:absent"}, "names no function"),
    ({"rewards": "chat_model:digits=x"}, "no finite number"),
    ({"rewards": "chat_model:of_level"}, "missing a required argument: 'level'"),
    ({"rewards": "math", "data": "gym:chain_sum", "eval_data": "held_out"}, "no column 'answer' or 'solution'"),
    ({"max_new_tokens": 121}, "--max-new-tokens 121 leaves no room for a prompt in the model's context of 128"),
    ({"temperature": 0}, "--temperature must be above 0"),
    ({"temperature": "nan"}, "--temperature must be a finite number, not nan"),
    ({"reward_timeout": "inf"}, "--reward-timeout must be a finite number, not inf"),
    ({"sampling.top_k": -1}, "top-k must be 0"),
    ({"sampling.stop": ""}, "a stop string is empty"),
    ({"algorithm.kl_in": "reward"}, "--algorithm.kl-in reward needs a --beta above 0"),
    ({"batch_size": 3, "num_minibatches": 2}, "do not divide into --num-minibatches 2"),
    ({"objective": "chat_model:coupled", "microbatch_tokens": 16, "batch_size": 4}, "cannot be split into 2 parts"),
    ({"microbatch_tokens": 0}, "--microbatch-tokens must be above 0"),
    ({"algorithm.advantages": "median"}, "no advantages are called median"),
    ({"algorithm.advantages": "vine", "sampling.stop": "x"},
     "--algorithm.advantages vine goes on from the middle of an answer, and --sampling.stop looks at one from"),
    ({"algorithm.advantages": "chat_model:by_prefix", "sampling.presence_penalty": 1}, "--sampling.presence-penalty"),
    ({"algorithm.advantages": "vine", "environment.make": "host_rewards:Echo"}, "and --environment.make looks at one"),
    ({"algorithm.advantages": "remax", "group_size": 1, "dynamic_sampling_tries": 3}, "as those of one are"),
    ({"algorithm.vine_stride": 4}, "--algorithm.vine-stride 4: nothing reads it"),
    ({"environment.make": "chat_model:absent"}, "names no function"),
    ({"environment.make": "host_rewards:Echo"}, "has no chat template, and conversations need one"),
    ({"environment.timeout": 3}, "nothing reads it without --environment.make"),
    ({"group_size": 0}, "--group-size must be above 0"),
    ({"importance_sampling_correction": "nothing"},
     "no importance_sampling_correction is called nothing"),
    ({"loss_aggregation": "constant"}, "needs a constant_length"),
    ({"data": "gym:no_such_task"}, "reasoning-gym has no such task")])
def test_what_is_refused_is_one_line(train, write_rows, tmp_path, replaced, line):
    held_out = write_rows("held_out.jsonl", [{"prompt": "new"}])
    status, _, err, _ = train(**{key: held_out if value == "held_out" else value for key, value in replaced.items()})
    assert status != 0
    assert line in err
    assert "Traceback" not in err
    assert not (tmp_path / "run").exists()


def test_completions_may_leave_room_for_the_shortest_prompts_alone(train):
    status, _, err, _ = train(max_new_tokens=120, max_steps=1)
    assert status == 0, err


def test_a_prompt_over_the_limit_is_named(train, write_rows):
    status, _, err, _ = train(data=write_rows("long.jsonl", [{"prompt": "abc"}, {"prompt": "a" * 125}]))
    assert status != 0
    assert "long.jsonl:2: a prompt of 125 tokens" in err
    assert "Traceback" not in err


OLD_CONFIG = """
epsilon_low: 0.2
epsilon_high: 0.2
delta: null
ratio: token
loss: clip
aggregation: token_mean
constant_length: null
beta: 0.0
kl: k3
kl_weighted: false
entropy_coefficient: 0.0
mask_truncated: true
correction: none
correction_cap: 3.0
correction_floor: 0.0
batch_size: 2
num_microbatches: 1
learning_rate: 0.01
seed: 0
eval_data: []
eval_every: 0
save_every: 1
trackers: []
profile: null
remat: none
attention: auto
optimizer: {name: adamw, schedule: cosine, warmup_steps: 0, decay_fraction: 0.2, final_fraction: 0.0, weight_decay: 0.0,
  b1: 0.9, b2: 0.999, max_grad_norm: 1.0}
mesh: {data: -1, fsdp: 1, tensor: 1}
rewards: chat_model:digits
max_steps: 2
group_size: 4
max_new_tokens: 8
temperature: 1.0
eval_samples: 1
show_every: 5
reward_timeout: 60.0
unsafe_code_without_sandbox: false
sampling: {top_k: 0, top_p: 1.0, min_p: 0.0, stop: [], slots: 64}
kl_in: loss
advantages: group
num_minibatches: 1
num_epochs: 1
max_draws: 1
objective: null
lora: {rank: 0, alpha: 16.0, dropout: 0.0, targets: [q, k, v, o, gate, up, down]}
"""
"""as scripts.grpo wrote it before flags were renamed and grouped; model, data and dtype are the run's"""


def test_a_run_from_before_flags_were_renamed_goes_on(train, tmp_path):
    import yaml

    flags = ("--algorithm.mask-truncated",)
    assert train(*flags, max_steps=2, save_every=1)[0] == 0
    path = tmp_path / "run" / "config.yaml"
    new = yaml.safe_load(path.read_text())
    own = {name: new[name] for name in ("model", "data", "dtype", "output_dir", "sha256")}
    path.write_text(yaml.safe_dump(yaml.safe_load(OLD_CONFIG) | own))
    before = path.read_bytes()
    status, _, err, lines = train(*flags, max_steps=2, save_every=1)
    assert status == 0, err
    assert len(lines) == 2
    for more, line in ((("--num-iterations", 2), "(num_iterations: 1 there, 2 now)"),
                       (("--rollouts.num-slots", 8), "(rollouts.num_slots: 64 there, 8 now)"),
                       (("--beta", 0.1, "--algorithm.kl", "k1"), "(beta: 0 there, 0.1 now")):
        status, _, err, _ = train(*flags, *more, max_steps=2, save_every=1)
        assert status == 1
        assert f"holds another experiment {line}" in err
    assert path.read_bytes() == before


def test_what_is_held_out_is_not_trained_on(train, write_rows, tmp_path):
    held_out = write_rows("held_out.jsonl", [{"prompt": text} for text in ("abc", "de", "new")])
    status, out, err, _ = train("--eval-data", held_out, max_steps=6)
    assert status == 0, err
    assert "2 of 6 training prompts are held out, too, and are left out" in out
    asked = {row["prompt"] for path in (tmp_path / "run" / "samples").glob("*.parquet")
             for row in pq.read_table(path).to_pylist()}
    assert asked == {"1 + 2 =", "Hello", "x", "yz"}


def test_a_column_of_the_prompts_reaches_an_objective_that_asks_for_it(train, write_rows, tmp_path, monkeypatch):
    (tmp_path / "weighed.py").write_text(
        "import jax.numpy as jnp\nfrom objectives.base import Loss, by_token, masked_sum\n"
        "def weighed(scores, batch):\n"
        "    mask = batch['loss_mask']\n"
        "    held = masked_sum(scores.logps - batch['ref_logps'], mask) + masked_sum(batch['old_logps'], mask)\n"
        "    metrics = {'weight': (masked_sum(by_token(batch['weight'], mask), mask), jnp.sum(mask))}\n"
        "    return Loss(held, jnp.sum(mask), metrics)\n"
        "weighed.needs = ('weight', 'ref_logps', 'old_logps')\n")
    monkeypatch.syspath_prepend(tmp_path)
    rows = write_rows("weights.jsonl", [{"prompt": "abc", "weight": 0.5}, {"prompt": "de", "weight": 0.5}])
    status, _, err, lines = train("--objective", "weighed:weighed", data=rows, max_steps=1)
    assert status == 0, err
    assert lines[-1]["weight"] == pytest.approx(0.5)
    for columns, words in (({}, "no column weight, which the objective reads"),
                           ({"weight": "much"}, "weight must be a number, not much")):
        bad = write_rows("bad.jsonl", [{"prompt": "abc", **columns}])
        status, _, err, _ = train("--objective", "weighed:weighed", data=bad, name="bad")
        assert status == 1
        assert "bad.jsonl:1: " in err
        assert words in err
        assert not (tmp_path / "bad").exists()


def test_prompts_that_do_not_fit_are_left_out_and_counted(train, write_rows, tmp_path):
    rows = write_rows("long.jsonl", [{"prompt": "abc"}, {"prompt": "x" * 200}, {"prompt": "de"}])
    status, _, err, _ = train(data=rows)
    assert status == 1
    assert "long.jsonl:2: a prompt of " in err
    assert "or set --too-long drop" in err
    status, out, err, lines = train("--too-long", "drop", "--eval-data", write_rows("eval.jsonl", [
        {"prompt": "y" * 200}, {"prompt": "q"}]), data=rows, max_steps=1)
    assert status == 0, err
    assert "1 of 3 prompts are longer than the 120 tokens that fit, and are left out" in out
    assert "1 of 2 prompts are longer than" in out
    assert [line["rows_dropped"] for line in lines if "loss" in line] == [1]
    none = write_rows("none.jsonl", [{"prompt": "x" * 200}])
    status, _, err, _ = train("--too-long", "drop", data=none, name="none")
    assert (status, "all 1 prompts are longer than the 120 tokens" in err) == (1, True)


def test_nothing_left_to_train_on(train, prompts):
    status, _, err, _ = train("--eval-data", prompts)
    assert status == 1
    assert "every prompt of a training source is held out" in err


def test_no_prompts_are_refused(train, write_rows):
    status, _, err, _ = train(data=write_rows("none.jsonl", []))
    assert status == 1
    assert "holds no rows" in err


def test_a_reward_with_the_wrong_number_of_values(train, tmp_path, monkeypatch):
    Path(tmp_path / "short.py").write_text("def reward(prompts, completions, **columns):\n    return [1.0]\n")
    monkeypatch.syspath_prepend(tmp_path)
    status, _, err, _ = train(rewards="short:reward")
    assert status == 1
    assert "gave 1 values for " in err.splitlines()[-1]


def test_help_teaches_the_choices(run_script):
    status, out, _ = run_script("grpo", "--help")
    assert status == 0
    assert "python -m scripts.grpo" in out
    for table in (objectives.RATIOS, objectives.LOSSES, objectives.AGGREGATIONS, objectives.KL, objectives.CORRECTIONS):
        assert [name for name in table if name not in out] == []


def test_failures_of_held_out_rewards_are_kept(train, write_rows, tmp_path, monkeypatch):
    (tmp_path / "picky.py").write_text("def reward(prompts, completions, **columns):\n"
                                       "    if 'new' in prompts:\n        raise ValueError('cannot judge')\n"
                                       "    return [1.0] * len(prompts)\n")
    monkeypatch.syspath_prepend(tmp_path)
    held_out = write_rows("held_out.jsonl", [{"prompt": "new"}, {"prompt": "other"}])
    status, _, err, _ = train("--eval-data", held_out, rewards="picky:reward", max_steps=2)
    assert status == 0, err
    assert "warning: step 0: picky:reward failed 1 time(s) so far, the last time with ValueError: cannot judge" in err
    lines = [json.loads(line) for line in (tmp_path / "run" / "eval_failures.jsonl").read_text().splitlines()]
    assert [(line["step"], line["row"], line["error"]) for line in lines] == [
        (step, 0, "ValueError: cannot judge") for step in (0, 2)]
    assert not (tmp_path / "run" / "failures.jsonl").exists()

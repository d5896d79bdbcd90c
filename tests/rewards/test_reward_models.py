"""A reward model as a reward function: the scores of scripts.score, strings and chats, in any batch."""

import dataclasses
import json
import shutil
import threading

import jax
import numpy as np
import pytest
from processes import WAIT, start_program
from tiny import one_device

import rewards.learned
from data.encode import encode_text
from data.tokenizer import load_tokenizer
from errors import InputError
from models.architecture import Architecture, make_config, random_params
from models.heads import score_rewards, with_reward_head
from models.pretrained import EMBEDDED, locate
from models.safetensors_weights import write_hf_folder
from rewards.contract import Clock, NotReachedError, RowErrors, on_clock
from rewards.learned import load_reward_model
from rewards.registry import Weighted
from rewards.scoring import compute_rewards
from sharding.mesh import MeshConfig, make_layout


def user(text):
    return [{"role": "user", "content": text}]


def assistant(text):
    return [{"role": "assistant", "content": text}]


ANSWERS = ("Hello there", "Go away", "Hm")
CHATS = [(user("Hi"), assistant(answer)) for answer in ANSWERS]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny random reward model with a real tokenizer."""
    made, tokenizer = tmp_path_factory.mktemp("models") / "reward", load_tokenizer(locate(EMBEDDED))
    config = make_config(Architecture(embed_dim=16, num_layers=1, num_heads=2, max_length=64), tokenizer.vocab_size)
    config, params = with_reward_head(config, random_params(config, jax.random.key(0), one_device()), one_device())
    head = jax.random.normal(jax.random.key(1), params["reward_head"].shape)
    write_hf_folder(made, params | {"reward_head": head}, config, "float32")
    tokenizer.save(made)
    return made


@pytest.fixture(scope="module")
def reward(folder):
    return load_reward_model(str(folder), one_device(), batch_size=2)


def test_rewards_are_those_of_the_score_script(folder, reward, tmp_path):
    from scripts import score

    rows = [{"prompt": prompt, "completion": completion} for prompt, completion in [*CHATS, ("The sky is", " blue.")]]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sources = (score.DataSource(str(tmp_path / "rows.jsonl")),)
    score.main(score.Config(str(folder), sources, str(tmp_path / "out.jsonl"), dtype="float32"))
    expected = [json.loads(line)["reward"] for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    chats = reward([prompt for prompt, _ in CHATS], [completion for _, completion in CHATS], answer=["x"] * 3)
    continued = load_reward_model(str(folder), one_device(), chat=False)(["The sky is"], [" blue."])
    np.testing.assert_allclose(chats + continued, expected, atol=2e-2)  # bfloat16 here
    assert len(set(expected)) == 4
    assert reward([], []) == []


def test_a_string_prompt_is_a_users_message_where_the_policy_takes_it_for_one(folder, reward):
    strings = reward(["Hi"] * 3, list(ANSWERS))
    assert strings == reward([prompt for prompt, _ in CHATS], [completion for _, completion in CHATS])
    continued = load_reward_model(str(folder), one_device(), batch_size=2, chat=False)(["Hi"] * 3, list(ANSWERS))
    assert not np.isclose(strings, continued, atol=1e-3).any()


def test_tools_reach_the_reward_models_template(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "model")
    tokenizer = load_tokenizer(folder)
    tokenizer.chat_template = "{{ tools[0].name if tools }}" + tokenizer.chat_template
    tokenizer.save(tmp_path / "model")
    reward = load_reward_model(str(tmp_path / "model"), one_device(), batch_size=2)
    prompts, completions = zip(*CHATS)
    without = reward(prompts, completions)
    with_tools = reward(prompts, completions, tools=[[{"name": "f"}], None, '[{"name": "g"}]'], other=[1, 2, 3])
    assert [one == other for one, other in zip(without, with_tools)] == [False, True, False]


def test_the_run_says_how_its_policy_takes_a_string_and_in_what_is_computed(folder, tmp_path):
    """Through the flags: a policy without a chat template continues the string."""
    from cli.flags import OnlineFlags
    from cli.online import Prompts, open_rewards

    class Policy:
        chat_template = None

    flags = OnlineFlags(data=(), output_dir="", model="", rewards=f"model:{folder}", max_steps=1, dtype="bfloat16")
    prompts = Prompts([[]], [], [], 0, 0, (), {})
    [continuing] = open_rewards(flags, one_device(), Policy, prompts)
    Policy.chat_template = "{{ messages }}"
    [chatting] = open_rewards(flags, one_device(), Policy, prompts)
    plain, exact = (load_reward_model(str(folder), one_device(), chat=False, dtype=dtype)
                    for dtype in ("bfloat16", "float32"))
    assert continuing.function(["Hi"], ["Hm"]) == plain(["Hi"], ["Hm"]) != chatting.function(["Hi"], ["Hm"])
    assert plain(["Hi"], ["Hm"]) != exact(["Hi"], ["Hm"])


def test_an_empty_completion_is_scored(folder, reward):
    chats = reward([user("Hi")] * 4, [assistant(text) for text in ("", " ", "\n", "Hm")])
    assert len(set(np.round(chats, 6))) > 1
    assert np.isfinite(chats).all()
    assert reward(["Hi"], [""]) == pytest.approx(chats[:1], abs=1e-3)
    assert np.isfinite(load_reward_model(str(folder), one_device(), chat=False)(["Hi", ""], ["", ""])).all()


def test_ragged_batches_compile_once_for_each_length(folder, monkeypatch):
    traced = []

    def counting(model, variables, batch):
        traced.append(batch["tokens"].shape)
        return score_rewards(model, variables, batch)

    monkeypatch.setattr(rewards.learned, "score_rewards", counting)
    reward = load_reward_model(str(folder), one_device(), batch_size=4, chat=False)
    random = np.random.default_rng(0)
    for count in (3, 8, 1, 5, 7, 2, 9):
        texts = ["a " * number for number in random.integers(1, 50, count)]
        assert len(reward(texts, ["b"] * count)) == count
    assert sorted(traced) == sorted(set(traced)), "no shape is compiled twice"
    assert {shape[1] for shape in traced} <= {8, 16, 24, 32, 48, 64}
    before = len(traced)
    reward(["a " * 33], ["b"])
    assert len(traced) == before


def test_time_that_is_over_stops_it_between_batches(reward):
    """Of rows of one length, in batches of 2: the first batch is done when the time is over."""
    looks = iter([True, False])
    clock = Clock(20.0, given_up=lambda: not next(looks, False))
    with on_clock(clock), pytest.raises(RowErrors) as raised:
        reward(["Hi"] * 5, ["Hm"] * 5)
    assert [value is None for value in raised.value.values] == [False, False, True, True, True]
    assert {type(error) for error in raised.value.errors.values()} == {NotReachedError}
    scored = compute_rewards([Weighted("model", 1.0, reward)], ["Hi"] * 3, ["Hm"] * 3, {}, 1e-9)
    assert (scored.timeouts["model"], scored.totals) == (3, [None] * 3)


def test_it_computes_in_the_thread_that_asks(reward, monkeypatch):
    threads = []
    monkeypatch.setattr(rewards.learned, "while_there_is_time", lambda batches: threads.append(
        threading.current_thread()) or batches)
    assert None not in compute_rewards([Weighted("model", 1.0, reward)], ["Hi"], ["Hm"], {}, 20.0).totals
    assert threads == [threading.current_thread()]


def test_each_process_has_a_mesh_of_its_own_devices(monkeypatch):
    layout = make_layout(MeshConfig())
    assert rewards.learned.own_layout(None) == rewards.learned.own_layout(layout) == layout
    own = jax.devices()[4:]
    monkeypatch.setattr(jax, "local_devices", lambda: own)
    assert set(rewards.learned.own_layout(layout).mesh.devices.flat) == set(own)


SCORES = """
import json, sys
import jax

address, number, folder = sys.argv[1], int(sys.argv[2]), sys.argv[3]
jax.distributed.initialize(address, 2, number)
from rewards.learned import load_reward_model
from sharding.mesh import MeshConfig, make_layout

reward = load_reward_model(folder, make_layout(MeshConfig()), batch_size=2)
answers = ["Hello there", "Go away", "Hm"] * 3
print(json.dumps(reward(["Hi"] * 3, answers[:3]) if number else reward(["Hi"] * 9, answers)))
"""


@pytest.mark.slow
def test_processes_of_a_run_score_rows_of_their_own(folder):
    """Other rows, and more of them, without waiting for each other."""
    processes = start_program(SCORES, folder, ids=(0, 1), devices=2)
    outputs = [process.communicate(timeout=WAIT) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    first, second = (json.loads(out.splitlines()[-1]) for out, _ in outputs)
    assert first == pytest.approx(second * 3, abs=2e-2)  # bfloat16, in batches of other shapes


def test_a_row_beyond_the_context_fails_alone(reward):
    with pytest.raises(RowErrors, match="row 1 first: .*longer than its context of 64") as raised:
        reward(["a", "a", "a"], ["b", "b " * 100, "c"])
    first, second, third = raised.value.values
    assert second is None
    assert [first, third] == reward(["a", "a"], ["b", "c"])


def test_a_token_beyond_the_embedding_fails_its_row_alone(folder, monkeypatch):
    opened = rewards.learned.open_reward_model
    smaller = dataclasses.replace(opened(str(folder)).config, vocab_size=40_000)
    monkeypatch.setattr(rewards.learned, "open_reward_model", lambda reference: Opened(opened(reference), smaller))
    reward = load_reward_model(str(folder), one_device(), chat=False)
    tokenizer = load_tokenizer(locate(EMBEDDED))
    rare = next(text for text in (tokenizer.decode([number]) for number in range(40_000, 49_000))
                if max(encode_text("a", text, tokenizer, True).tokens) >= 40_000)
    with pytest.raises(RowErrors, match="row 1 first: token .* is beyond the model's embedding") as raised:
        reward(["a", "a", "a"], ["b", rare, "c"])
    assert [value is None for value in raised.value.values] == [False, True, False]


class Opened:
    """An opened model that says that its embedding is smaller."""

    def __init__(self, opened, config):
        self.tokenizer, self.config, self.load = opened.tokenizer, config, opened.load


def test_what_is_no_reward_model_or_does_not_fit(folder, tmp_path):
    with pytest.raises(InputError, match="is a language model, which has no reward head"):
        load_reward_model(EMBEDDED)
    bare = tmp_path / "bare"
    bare.mkdir()
    for path in folder.iterdir():
        if path.name != "chat_template.jinja":
            (bare / path.name).write_bytes(path.read_bytes())
    tokenizer_config = json.loads((bare / "tokenizer_config.json").read_text())
    tokenizer_config.pop("chat_template", None)
    (bare / "tokenizer_config.json").write_text(json.dumps(tokenizer_config))
    with pytest.raises(InputError, match="has no chat template, and the policy"):
        load_reward_model(str(bare), one_device(), chat=True)
    assert np.isfinite(load_reward_model(str(bare), one_device())(["Hi"], ["Hm"])).all()

"""Collecting: groups are drawn, graded next to sampling, and given whole; environments take turns with the policy."""

import asyncio
import copy
import math
import time

import jax
import numpy
import pytest
from chat_model import write_model

from data.prompts import Prompt
from data.tokenizer import load_tokenizer
from errors import InputError
from models.pretrained import open_pretrained
from rewards.registry import Weighted
from rollouts.collecting import ENGINE, ENVIRONMENT, Collector, _Sampling
from rollouts.engine import Engine
from rollouts.environments import Environments, encode_continuation, encode_opening, read_step
from rollouts.episodes import to_batch
from rollouts.generate import generate
from rollouts.packing import pack, plan_shapes
from rollouts.requests import fold_keys
from rollouts.sampling import make_controls
from rollouts.stops import make_ends
from sharding.mesh import MeshConfig, make_layout

CONTROLS, KEY = make_controls(1.0), jax.random.key(1)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """(engine with weights, tokenizer)"""
    folder = write_model(tmp_path_factory.mktemp("collect") / "model")
    layout = make_layout(MeshConfig(), jax.devices()[:1])
    opened = open_pretrained(str(folder))
    model, variables = opened.load(layout, dtype="float32", param_dtype="float32")
    engine = Engine(model, 8, layout=layout)
    engine.load(variables, 7)
    return engine, load_tokenizer(folder)


PROMPTS = [Prompt([*range(10, 15)], "hijkl", {"answer": "x"}),
           Prompt([20, 21], [{"role": "user", "content": "rs"}], {"level": 2}), Prompt([30], "|", {})]


def lengths(prompts, completions, completion_ids, **_):
    return [float(len(each)) for each in completion_ids]


def collect(loaded, rewards=((lengths, 1.0),), prompts=PROMPTS, group_size=2, max_new_tokens=12, key=KEY, stop=(),
            **more):
    engine, tokenizer = loaded
    weighted = [Weighted(f"r{number}", weight, function) for number, (function, weight) in enumerate(rewards)]
    collector = Collector(engine, tokenizer, weighted, max_new_tokens, make_ends(tokenizer, stop), 20.0, **more)
    groups = list(collector.collect(prompts, key, group_size, CONTROLS))
    assert not engine.busy
    return sorted(groups, key=lambda group: group.number)


def test_what_is_drawn_is_what_a_list_of_prompts_gives(loaded):
    engine, tokenizer = loaded
    completions = generate(engine, [prompt.tokens for prompt in PROMPTS], KEY, max_new_tokens=12, controls=CONTROLS,
                           ends=make_ends(tokenizer, ()), group_size=2)
    groups = collect(loaded)
    assert [group.prompt for group in groups] == PROMPTS
    episodes = [episode for group in groups for episode in group.episodes]
    for episode, group, completion in zip(episodes, [0, 0, 1, 1, 2, 2], completions, strict=True):
        assert episode.tokens == [*PROMPTS[group].tokens, *completion.tokens]
        assert episode.logps == pytest.approx(completion.logps, abs=1e-5)
        assert episode.sampled == [True] * len(completion.tokens)
        assert episode.finish_reason == completion.finish_reason
        assert episode.text == tokenizer.decode(completion.tokens)
        assert episode.reward == episode.values["r0"] == len(completion.tokens)
        assert episode.version == 7


def test_rewards_get_prompts_completions_and_columns_in_the_prompts_form(loaded):
    seen = {}

    def reward(prompts, completions, **columns):
        for prompt, completion, *values in zip(prompts, completions, *columns.values(), strict=True):
            seen.setdefault(str(prompt), []).append((completion, dict(zip(columns, values))))
        return [1.0] * len(prompts)

    groups = collect(loaded, [(reward, 1.0)])
    for group in groups:
        given = seen[str(group.prompt.text)]
        chat = isinstance(group.prompt.text, list)
        assert [completion for completion, _ in given] == [
            [{"role": "assistant", "content": each.text}] if chat else each.text for each in group.episodes]
        assert [columns for _, columns in given] == [
            {"answer": None, "level": None} | group.prompt.columns | {"completion_ids": each.completion}
            for each in group.episodes]


def test_an_answer_that_was_begun_is_gone_on_with(loaded):
    """Its reward sees all of it; the limit is that of the whole answer."""
    seen = []

    def reward(prompts, completions, completion_ids, **_):
        seen.extend(zip(completions, completion_ids))
        return [1.0] * len(prompts)

    begun = [PROMPTS[0]._replace(tokens=[*PROMPTS[0].tokens, *range(40, 40 + count)], drawn=count) for count in (3, 11)]
    groups = collect(loaded, [(reward, 1.0)], prompts=begun)
    for group in groups:
        for episode in group.episodes:
            assert episode.prompt_length == 5
            assert episode.tokens[: len(group.prompt.tokens)] == group.prompt.tokens
            assert len(group.prompt.tokens) < len(episode.tokens) <= 17
            assert len(episode.sampled) == len(episode.logps) == len(episode.completion)
            assert episode.text == loaded[1].decode(episode.completion)
            assert (episode.text, episode.completion) in seen


def test_a_row_that_failed_has_no_total_and_one_that_has_no_value_has_the_others(loaded):
    def moody(prompts, completions, **_):
        if "hijkl" in prompts:
            raise ValueError("cannot judge")
        return [None] * len(prompts)

    groups = collect(loaded, [(moody, 1.0), (lengths, 0.5)])
    assert [episode.reward for episode in groups[0].episodes] == [None, None]
    assert [failure.row for failure in groups[0].failures] == [0, 1]
    assert groups[0].episodes[0].values == {"r0": None, "r1": float(len(groups[0].episodes[0].completion))}
    assert [episode.reward for episode in groups[2].episodes] == [
        len(episode.completion) / 2 for episode in groups[2].episodes]
    assert not groups[2].failures


def test_a_bad_reward_ends_it_and_leaves_nothing_in_the_engine(loaded):
    with pytest.raises(InputError, match="r0: gave nan"):
        collect(loaded, [(lambda prompts, completions, **_: [math.nan] * len(prompts), 1.0)])
    assert not loaded[0].busy


def test_what_the_engine_fails_on_is_counted_and_not_trained_on(loaded, monkeypatch):
    engine, _ = loaded
    monkeypatch.setattr(engine, "_weights", jax.tree.map(lambda leaf: leaf * math.nan, engine._weights))
    [group] = collect(loaded, prompts=PROMPTS[:1])
    assert [(each.finish_reason, each.reward) for each in group.episodes] == [("error", None)] * 2
    assert [(each.reward, each.row) for each in group.failures] == [(ENGINE, 0), (ENGINE, 1)]
    assert "the log-probabilities are not finite" in group.failures[0].error


# ---------------------------------------------------------------------------------------------------- environments

TEMPLATE = ("{% for m in messages %}{{ '[' + m.role[0] + ']' + m.content }}{% if m.role == 'assistant' %}<end>"
            "{% endif %}{% endfor %}{% if add_generation_prompt %}[a]{% endif %}")
VOWELS = tuple("aeiouAEIOU0123456789.,;:+-*/")
"""with these for stop strings a turn is short"""


@pytest.fixture(scope="module")
def chatting(loaded, tmp_path_factory):
    folder = write_model(tmp_path_factory.mktemp("chat") / "model")
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return loaded[0], load_tokenizer(folder)


class Counter:
    """Answers with a number, three times, and gives half a point for each turn."""

    delay = 0.0

    def reset(self, row):
        self.turns = 0
        return [{"role": "system", "content": "count"}, {"role": "user", "content": row["prompt"]}]

    async def step(self, messages):
        await asyncio.sleep(self.delay)
        assert messages[-1]["role"] == "assistant"
        self.turns += 1
        return [{"role": "user", "content": str(self.turns)}], self.turns == 3, 0.5


def rows(*texts):
    return [Prompt([1], text, {}) for text in texts]


def talk(chatting, make, prompts=("abc", "de"), max_new_tokens=60, **limits):
    return collect(chatting, prompts=rows(*prompts), max_new_tokens=max_new_tokens, stop=VOWELS,
                   environments=Environments(make, **limits))


def test_turns_are_those_of_the_template_and_what_the_policy_drew_is_trained(chatting):
    tokenizer = chatting[1]
    for group in talk(chatting, Counter):
        for episode in group.episodes:
            text = tokenizer.decode(episode.tokens, skip_special_tokens=False).replace("<unk>", "")
            turns = [message["content"] for message in episode.messages]
            assert text.startswith(f"[s]count[u]{group.prompt.text}[a]{turns[0]}")
            expected = f"[s]count[u]{group.prompt.text}"
            for message in episode.messages:
                expected += f"[{message['role'][0]}]{message['content']}" + "<end>" * (message["role"] == "assistant")
            ended = episode.tokens[-1] in tokenizer.eos_ids
            assert text == (expected if ended else expected.removesuffix("<end>"))
            drawn = [token for token, sampled in zip(episode.completion, episode.sampled) if sampled]
            assert tokenizer.decode(drawn) == "".join(turns[::2])
            assert all((logp < 0) == sampled for logp, sampled in zip(episode.logps, episode.sampled))
            assert not all(episode.sampled) or len(turns) == 1
            if episode.finish_reason == "stop":
                assert episode.values[ENVIRONMENT] == 1.5
                assert episode.reward == 1.5 + episode.values["r0"]
                assert turns[1::2] == ["1", "2"]


TOOLS = ("{% for m in messages %}{{ '[' + m.role[0] + ']' + m.content }}{% for c in m.tool_calls or () %}"
         '{"name": "{{ c.function.name }}", "parameters": {{ c.function.arguments | tojson }}}{% endfor %}<end>'
         "{% endfor %}{% if add_generation_prompt %}[a]{% endif %}{% if tools %}{% endif %}")


def test_calls_of_tools_are_read_where_a_prompt_has_some(loaded, tmp_path):
    """For environments and rewards, in the format that the template writes."""
    engine, folder = loaded[0], write_model(tmp_path / "model")
    (folder / "chat_template.jinja").write_text(TOOLS)
    tokenizer = load_tokenizer(folder)
    collector = Collector(engine, tokenizer, [], 9, make_ends(tokenizer, ()), 20.0)
    tools = [{"type": "function", "function": {"name": "at"}}]
    prompts = [Prompt([1], "x", {"tools": tools}), Prompt([1], "x", {"tools": None})]
    sampling = _Sampling(collector, prompts, KEY, 1, CONTROLS)
    text = '{"name": "at", "parameters": {"n": 1}}'
    with_tools, without = (sampling._read_turn(each, tokenizer.encode(f"{text}<end>"))
                           for each in sampling._conversations)
    assert without == {"role": "assistant", "content": text}
    [call] = with_tools.pop("tool_calls")
    assert with_tools == {"role": "assistant", "content": ""}
    assert call["function"] == {"name": "at", "arguments": {"n": 1}}


def test_each_turn_draws_with_a_key_of_its_own(chatting, monkeypatch):
    keys, submit = [], chatting[0].submit
    monkeypatch.setattr(chatting[0], "submit", lambda requests: keys.extend(
        tuple(each.key.tolist()) for each in requests) or submit(requests))
    talk(chatting, Counter)
    assert len(keys) > 4
    assert len({*keys}) == len(keys)
    assert {*keys} <= {tuple(each) for each in fold_keys(KEY, range(12)).tolist()}


def test_how_long_an_environment_takes_changes_nothing(chatting):
    class Late(Counter):
        delay = 0.1

    def tokens(groups):
        return [episode.tokens for group in groups for episode in group.episodes]

    assert tokens(talk(chatting, Late)) == tokens(talk(chatting, Counter))


class Broken(Counter):
    """Breaks where a prompt says so; the others go on."""

    def reset(self, row):
        self.fault = row["prompt"]
        if self.fault == "reset":
            raise ValueError("no such game")
        return [] if self.fault == "nothing" else super().reset(row)

    async def step(self, messages):
        if self.fault == "raise":
            raise KeyError("lost")
        if self.fault == "hang":
            await asyncio.sleep(1000)
        if self.fault == "block":
            time.sleep(3)
        if self.fault == "exit":
            raise SystemExit(3)
        if self.fault == "nan":
            return [], False, math.nan
        if self.fault == "assistant":
            return [{"role": "assistant", "content": "I am the policy"}], False, None
        if self.fault == "probe":
            return [{"role": "user", "content": "a\ue000b"}], False, None
        if self.fault == "done":
            return [], "no", None
        if self.fault == "role":
            return [{"role": 3}], False, None
        return 3 if self.fault == "type" else await super().step(messages)


def test_an_environment_that_fails_takes_its_own_episodes_alone(chatting):
    faults = ("reset", "nothing", "raise", "hang", "block", "exit", "nan", "role", "type", "assistant", "probe", "done")
    groups = talk(chatting, Broken, (*faults, "fine"), timeout=0.5)
    for group in groups[:-1]:
        assert {episode.finish_reason for episode in group.episodes} <= {"error", "length"}, group.prompt.text
        assert any(episode.finish_reason == "error" for episode in group.episodes), group.prompt.text
        for episode in group.episodes:
            assert episode.finish_reason == "length" or episode.reward is None
        assert {failure.reward for failure in group.failures} == {ENVIRONMENT}
    assert all(episode.reward is not None for episode in groups[-1].episodes)


def test_an_environment_that_cannot_be_made_is_one_that_failed(chatting):
    [group] = talk(chatting, lambda: 1 / 0, ["abc"])
    assert [episode.finish_reason for episode in group.episodes] == ["error", "error"]
    assert [failure.error for failure in group.failures] == ["ZeroDivisionError: division by zero"] * 2


def test_turns_and_tokens_are_limited(chatting):
    [group] = talk(chatting, Counter, ["abc"], max_turns=2)
    for episode in group.episodes:
        assert sum(message["role"] == "assistant" for message in episode.messages) <= 2
        assert episode.finish_reason == "length"
    for limit in (5, 9, 17):
        [group] = talk(chatting, Counter, ["abc"], max_new_tokens=limit)
        assert all(len(episode.completion) <= limit for episode in group.episodes)
    [group] = talk(chatting, Counter, ["a" * 30], max_prompt_length=20)
    assert [episode.finish_reason for episode in group.episodes] == ["error", "error"]


def test_what_an_environment_does_to_what_it_is_given_changes_nothing(chatting):
    class Rude(Counter):
        def reset(self, row):
            row["levels"].append(1)
            assert row["levels"] == [0, 1]
            return super().reset(row)

        async def step(self, messages):
            messages[-1]["content"] = messages[0]["content"] = "mine"
            messages.append(None)
            self.turns += 1
            return [{"role": "user", "content": str(self.turns)}], self.turns == 3, 0.5

    prompt = Prompt([1], "abc", {"levels": [0]})
    [rude], [polite] = (collect(chatting, prompts=[prompt], max_new_tokens=60, stop=VOWELS,
                                environments=Environments(make)) for make in (Rude, Counter))
    assert [episode.messages for episode in rude.episodes] == [episode.messages for episode in polite.episodes]
    assert {episode.opening[0]["content"] for episode in rude.episodes} == {"count"}
    assert prompt.columns == {"levels": [0]}
    assert not rude.failures


@pytest.mark.parametrize("role", ["system", "tool", "narrator"])
def test_what_a_template_leaves_out_is_told(chatting, role):
    """Also where it moves a late system message to the front, or passes over a role."""
    template = ("{% for m in messages if m.role == 'system' %}{{ m.content }}{% endfor %}{% for m in messages %}"
                "{% if m.role == 'user' %}[u]{{ m.content | trim }}{% elif m.role == 'assistant' %}[a]{{ m.content }}"
                "<end>{% endif %}{% endfor %}{% if add_generation_prompt %}[a]{% endif %}")
    tokenizer = copy.copy(chatting[1])
    tokenizer.chat_template = template
    opening, turn = [{"role": "user", "content": "hi"}], {"role": "assistant", "content": "ab"}
    with pytest.raises(InputError, match=f"leaves out what the {role} says"):
        encode_continuation(tokenizer, rows("")[0], [*opening, turn, {"role": role, "content": "no"}], ended=True)
    said = encode_continuation(tokenizer, rows("")[0], [*opening, turn, {"role": "user", "content": " so "}], True)
    assert tokenizer.decode(said, skip_special_tokens=False) == "[u]so[a]"
    if role == "narrator":
        with pytest.raises(InputError, match="a role that it has not"):
            encode_opening(tokenizer, rows("")[0], [*opening, {"role": role, "content": "once"}])


@pytest.mark.parametrize("over", [False, numpy.bool_(False), numpy.zeros(1), 0])
def test_false_of_other_libraries_is_false(over):
    assert read_step(([], over, numpy.float32(0.5))) == ([], False, 0.5)


def test_a_conversation_that_is_never_opened_is_no_longer_than_one_that_is(chatting):
    class Closed:
        def reset(self, row):
            raise ValueError("closed")

    [group] = collect(chatting, prompts=[Prompt([5] * 50, "a" * 50, {})], max_new_tokens=8,
                      environments=Environments(Closed, max_prompt_length=16))
    shapes = plan_shapes([16], 8, 2, 1, budget=1000)
    [part] = pack(to_batch([group]), 2, shapes)
    assert sorted(part.rows[part.rows >= 0]) == [0, 1]

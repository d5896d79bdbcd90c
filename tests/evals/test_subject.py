"""What a subject says of texts, against all logits of the model at once; what it answers, against the engine alone."""

import jax
import numpy as np
import pytest
from characters import CONFIG, MODEL, Characters, subject_of, weights
from tiny import one_device

from errors import InputError
from evals.cache import Cache
from evals.subject import Subject, rolling_windows
from models.transformer import output_kernel
from rollouts.requests import Request
from rollouts.sampling import make_controls

GREEDY = make_controls(0.0)


@pytest.fixture(scope="module")
def variables():
    return weights()


@pytest.fixture(scope="module")
def subject():
    return subject_of()


@pytest.fixture(scope="module")
def all_logps(variables):
    """tokens [T] -> log p of every token after each, [T, V], in float64."""
    kernel = np.asarray(output_kernel(CONFIG, variables["params"]), np.float64)
    apply = jax.jit(lambda *arguments: MODEL.apply(variables, *arguments))

    def logps(tokens):
        row = np.zeros((3, CONFIG.max_length + 1), np.int32)
        row[:, : len(tokens)] = tokens, range(len(tokens)), [1] * len(tokens)
        logits = np.asarray(apply(*row[:, None]))[0, : len(tokens)].astype(np.float64) @ kernel
        return logits - np.log(np.exp(logits).sum(-1, keepdims=True))

    return logps


def plainly(all_logps, context, continuation):
    """(log-probability, greedy) of a continuation, by the definition."""
    logps = all_logps([*context, *continuation])[len(context) - 1 : -1]
    return logps[np.arange(len(continuation)), continuation].sum(), bool((logps.argmax(-1) == continuation).all())


def test_a_continuation_is_scored_from_its_first_token(subject, all_logps):
    random = np.random.default_rng(0)
    pairs = [(random.integers(2, 97, a).tolist(), random.integers(2, 97, b).tolist())
             for a, b in [(1, 1), (9, 1), (1, 9), (5, 3), (12, 12), (23, 1), (7, 0)]]
    pairs += [(pairs[1][0], [7] * count) for count in (1, 4, 2)]  # scored beside each other
    for (context, continuation), (logp, greedy) in zip(pairs, subject.loglikelihoods(pairs), strict=True):
        expected, likeliest = plainly(all_logps, context, continuation) if continuation else (0.0, True)
        assert logp == pytest.approx(expected, abs=1e-4)
        assert greedy is likeliest


def test_greedy_says_whether_every_token_is_the_likeliest(subject, all_logps):
    context, said = [5, 6, 7], []
    for _ in range(3):
        said.append(int(all_logps([*context, *said])[-1].argmax()))
    other = [(token + 1) % 97 for token in said]
    flags = [greedy for _, greedy in subject.loglikelihoods(
        [(context, said), (context, said[:1]), (context, [other[0], *said[1:]]), (context, [*said[:2], other[2]])])]
    assert flags == [True, True, False, False]


def test_an_empty_context_is_the_beginning_of_a_text(subject, all_logps):
    assert subject.loglikelihoods([([], [7, 8])])[0][0] == pytest.approx(plainly(all_logps, [1], [7, 8])[0], abs=1e-4)


def test_what_is_too_long_loses_the_front_of_its_context(subject, all_logps):
    context, continuation = list(range(10, 40)), [7, 8, 9]
    kept = context[-22:]  # with the continuation 25 tokens, of which the model reads 24
    expected = all_logps([*kept, *continuation])[21:24][range(3), continuation].sum()
    assert subject.is_cut((context, continuation))
    assert not subject.is_cut((kept, continuation))
    for pair in ((context, continuation), (kept, continuation)):
        assert subject.loglikelihoods([pair])[0][0] == pytest.approx(expected, abs=1e-4)
    with pytest.raises(InputError, match="25 tokens is longer than the model's context of 24"):
        subject.loglikelihoods([(context, [7] * 25)])


@pytest.mark.parametrize("length", [0, 1, 3, 4, 5, 8, 9, 11])
def test_windows_predict_every_token_once_after_as_many_as_fit(length):
    text = list(range(100, 100 + length))
    windows = rolling_windows(text, prefix=0, max_length=4)
    assert [token for _, continuation in windows for token in continuation] == text
    whole = [0, *text]
    for context, continuation in windows:
        end = whole.index(continuation[-1]) + 1
        assert context + continuation == whole[max(0, end - 5) : end]  # 4 tokens are read to predict the last
        assert context


def test_a_text_of_any_length_has_a_log_probability(subject, all_logps):
    text = np.random.default_rng(1).integers(2, 97, 61).tolist()
    expected = [plainly(all_logps, *window)[0] for window in rolling_windows(text, 1, 24)]
    short = plainly(all_logps, [1], text[:5])[0]
    assert subject.rolling([text, text[:5], []]) == pytest.approx([sum(expected), short, 0.0], abs=1e-3)


def test_answers_are_the_models_and_end_where_they_should(subject, all_logps):
    prompt, said = [40, 41, 42], []
    for _ in range(6):
        said.append(int(all_logps([*prompt, *said])[-1].argmax()))
    (answer,), = subject.generate([prompt], 6, GREEDY)
    assert answer.tokens == said
    assert answer.finish_reason == ("stop" if 0 in said else "length")
    stop = Characters().decode(said[2:4])
    (stopped,), = subject.generate([prompt], 6, GREEDY, stops=[stop])
    assert stopped.text == Characters().decode(said).split(stop)[0]
    assert stopped.finish_reason == "stop"


def test_what_is_drawn_depends_on_seed_prompt_and_number_alone(subject):
    hot = make_controls(1.0)
    first, second = subject.generate([[40, 41], [50]], 8, hot, num_samples=3, seed=1)
    assert [answer.tokens for answer in subject.generate([[50]], 8, hot, num_samples=2, seed=1)[0]] == [
        answer.tokens for answer in second[:2]]
    drawn = [tuple(answer.tokens) for answer in [*first, *second, *subject.generate([[50]], 8, hot, seed=2)[0]]]
    assert len(set(drawn)) == len(drawn)


@pytest.mark.parametrize(("length", "limit", "kept", "fitted", "cut"), [
    (10, 8, 10, 8, False), (20, 8, 16, 8, True),  # as lm-eval: the prompt gives way
    (10, 20, 10, 14, False), (20, 20, 12, 12, True), (10, 4096, 10, 14, False)])  # a limit for reasoning gives way
def test_prompt_and_limit_fit_the_context(subject, length, limit, kept, fitted, cut):
    prompt, new, was_cut = subject.fit(list(range(length)), limit)
    assert (prompt, new, was_cut) == (list(range(length))[length - kept :], fitted, cut)


def test_a_text_has_one_bos_at_most():
    assert Subject(MODEL, Characters(), one_device()).encode("ab") == Characters().encode("ab")
    subject = Subject(MODEL, Characters(adds_bos=True), one_device())
    assert subject.encode("ab") == subject.encode("<b>ab") == [1, *Characters().encode("ab")]


def test_what_was_said_is_not_computed_again(subject, variables, tmp_path, monkeypatch):
    file = tmp_path / "responses.jsonl"

    def judged():
        made = Subject(MODEL, Characters(), one_device(), engine=subject.engine, cache=Cache(file))
        made.load(variables)
        return made

    def say(each, limit=4):
        return each.loglikelihoods([([5], [6])]), each.generate([[5, 6]], limit, make_controls(1.0), num_samples=2)

    subject.generate([[5]], 2, GREEDY)
    said = say(judged())
    with file.open("a") as lines:
        lines.write('{"key": "cut o')  # ended while it was writing
    again = judged()
    monkeypatch.setattr(again, "_score", None)
    monkeypatch.setattr(again, "_draw", None)
    assert say(again) == said
    with pytest.raises(TypeError):
        say(again, limit=5)
    again.load(weights(seed=1))
    with pytest.raises(TypeError):
        say(again)


def test_what_an_evaluation_lacks_is_computed_as_it_would_have_been(subject, monkeypatch):
    """In batches, and by an engine, of the same shapes whatever is known already: so the bits are the same."""
    def requests(*prompts):
        return [Request(prompt, 4, jax.random.key(0), GREEDY) for prompt in prompts]

    monkeypatch.setattr(subject, "_make_engine", lambda *made_for: (_ for _ in ()).throw(KeyError(made_for)))
    with pytest.raises(KeyError, match=r"^\(13, 2\)$"):
        next(subject._draw(requests([5], [6] * 9), [0]))


def test_an_engine_has_slots_for_the_requests_and_the_longest_context_so_far(subject):
    made = []
    for longest, count in ((10, 3), (9, 4), (12, 1), (10, 200)):
        subject._make_engine(longest, count)
        made.append((subject.engine.num_slots, subject.engine))
    assert [slots for slots, _ in made] == [4, 4, 1, 4]  # the subject has 4 at the most
    assert made[0][1] is made[1][1]


@pytest.mark.parametrize("text", [b"no JSON\n", b"[1]\n", b"{}\n", b"\xff\n", b"3\n"])
def test_a_file_of_something_else_is_told(tmp_path, text):
    (tmp_path / "responses.jsonl").write_bytes(text)
    with pytest.raises(InputError, match=r"responses.jsonl: holds lines that no evaluation wrote; remove it"):
        Cache(tmp_path / "responses.jsonl")

"""/v1/completions: as the engine answers, in one piece and in parts, with log-probabilities and what is echoed."""

import numpy as np
import pytest
from serving_client import expected, post, scores_of, streamed

PROMPTS = ["Once upon", "abc"]


def test_answers_are_the_engines_of_the_same_seed(client, parts):
    answer = post(client, prompt=PROMPTS, n=2, temperature=0.8, top_p=0.9).json()
    found = expected(parts, PROMPTS, 2, temperature=0.8, top_p=0.9)
    assert [choice["text"] for choice in answer["choices"]] == [parts.tokenizer.decode(each.tokens) for each in found]
    assert [choice["finish_reason"] for choice in answer["choices"]] == [each.finish_reason for each in found]
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    used = sum(len(each.tokens) for each in found)
    assert answer["usage"] == {"prompt_tokens": 12, "completion_tokens": used, "total_tokens": 12 + used}
    assert (answer["object"], answer["model"]) == ("text_completion", "tiny")
    ids = [parts.tokenizer.encode(prompt) for prompt in PROMPTS]
    again = post(client, prompt=ids, n=2, temperature=0.8, top_p=0.9, model="other", unknown={"a": 1}).json()
    assert again["choices"] == answer["choices"]


def test_a_stream_is_the_same_in_parts(client):
    body = {"prompt": PROMPTS, "n": 2, "logprobs": 2, "echo": True, "stop": ["e", "q"]}
    whole, chunks = post(client, **body).json(), streamed(client, **body, stream_options={"include_usage": True})
    assert chunks[-1]["usage"] == whole["usage"]
    assert chunks[-1]["choices"] == []
    assert {chunk["usage"] for chunk in chunks[:-1]} == {None}
    for choice in whole["choices"]:
        own = [each for chunk in chunks for each in chunk["choices"] if each["index"] == choice["index"]]
        assert "".join(each["text"] for each in own) == choice["text"]
        assert [each["finish_reason"] for each in own] == [None] * (len(own) - 1) + [choice["finish_reason"]]
        for name, values in choice["logprobs"].items():
            assert sum((each["logprobs"][name] for each in own if each["logprobs"]), []) == values
    assert len(chunks) > 6


def test_seeds_repeat_and_differ(client):
    texts = [post(client, prompt="abc", seed=seed).json()["choices"][0]["text"] for seed in (1, 1, 2, 2**32 + 1, -1)]
    assert texts[0] == texts[1] == texts[3]
    assert len({*texts}) == 3
    assert len({post(client, prompt="abc", seed=None).json()["choices"][0]["text"] for _ in range(3)}) > 1


def test_a_stop_string_ends_before_it(client, parts):
    body = {"prompt": "abc", "max_tokens": 60, "ignore_eos": True}
    text = post(client, **body).json()["choices"][0]["text"]
    stop = text[20:22]
    choice = post(client, stop=stop, **body).json()["choices"][0]
    assert choice["text"] == text[: text.index(stop)]
    assert choice["finish_reason"] == "stop"


def test_defaults_are_openais(client):
    answer = client.post("/v1/completions", json={"prompt": "abc", "seed": 1, "ignore_eos": True}).json()
    assert answer["usage"]["completion_tokens"] == 16
    assert answer["choices"][0]["logprobs"] is None


def test_echoed_log_probabilities_are_the_scorers(client, parts):
    """As lm-eval asks for them: batches of token ids, one token more, the likeliest beside each."""
    prompts = [[3, 40, 41, 9], [50] * 9, [7, 7]]
    answer = post(client, prompt=prompts, echo=True, logprobs=1, max_tokens=1, temperature=0).json()
    scores = scores_of(parts, prompts)
    for prompt, choice, score in zip(prompts, answer["choices"], scores, strict=True):
        logprobs = choice["logprobs"]
        assert len(logprobs["tokens"]) == len(prompt) + 1
        assert logprobs["token_logprobs"][0] is None
        assert logprobs["top_logprobs"][0] is None
        np.testing.assert_allclose(logprobs["token_logprobs"][1:-1], score.logps[1:], atol=1e-5)
        greedy = [max(top.values()) == logp for top, logp in zip(
            logprobs["top_logprobs"][1:], logprobs["token_logprobs"][1:])]
        assert greedy == [*score.greedy[1:].astype(bool), True]
        assert choice["text"].startswith(parts.tokenizer.decode(prompt))
        assert logprobs["text_offset"][:2] == [0, 1]


def test_a_prompt_may_be_scored_without_a_token_more(client):
    body = {"prompt": [[3, 40], [5]], "echo": True, "logprobs": 0, "max_tokens": 0}
    answer = post(client, **body).json()
    assert [len(choice["logprobs"]["tokens"]) for choice in answer["choices"]] == [2, 1]
    assert [choice["finish_reason"] for choice in answer["choices"]] == ["length"] * 2
    assert answer["choices"][0]["logprobs"]["top_logprobs"] is None
    assert answer["usage"]["completion_tokens"] == 0
    chunks = [chunk["choices"][0] for chunk in streamed(client, **body)]
    assert [(each["index"], each["text"], each["finish_reason"]) for each in chunks] == [
        (0, answer["choices"][0]["text"], None), (1, answer["choices"][1]["text"], None), (0, "", "length"),
        (1, "", "length")]
    assert post(client, prompt="abc", max_tokens=0).json()["choices"][0]["text"] == ""


def test_log_probabilities_are_those_without_the_controls(client):
    """Under softmax(logits), the drawn token's and the likeliest ones', whatever the temperature."""
    plain = post(client, prompt="abc", logprobs=20, temperature=1.0, max_tokens=3).json()["choices"][0]["logprobs"]
    cold = post(client, prompt="abc", logprobs=20, temperature=0.2, max_tokens=3).json()["choices"][0]["logprobs"]
    for text, logp in list(cold["top_logprobs"][0].items())[:20]:
        assert plain["top_logprobs"][0][text] == pytest.approx(logp, abs=1e-4)
    assert len(plain["tokens"]) == len(plain["token_logprobs"]) == 3
    assert all(top[token] == logp for token, logp, top in zip(
        plain["tokens"], plain["token_logprobs"], plain["top_logprobs"]) if token)  # some of the model's have no text


def test_an_empty_prompt_begins_a_text(client):
    answer = post(client, prompt="").json()
    assert answer["usage"]["prompt_tokens"] == 1

"""The server's manners: what it refuses and how, who may come in, who is dropped, and what it tells of itself."""

import asyncio
import json
import time

import numpy as np
import pytest
from serving_client import post, scores_of

CHAT, ASK = "/v1/chat/completions", [{"role": "user", "content": "Hi"}]
TOOL = {"type": "function", "function": {"name": "f"}}


def error_of(response, status):
    """The error object, which is whole."""
    assert response.status_code == status, response.text
    [(name, error)] = response.json().items()
    assert (name, {*error}) == ("error", {"message", "type", "param", "code"})
    assert error["message"]
    assert "\n" not in error["message"]
    return error


@pytest.mark.parametrize(("body", "status", "words"), [
    (b"", 400, "JSON"), (b"{", 400, "JSON"), (b"[]", 400, "object"), (b"null", 400, "object"), (b"\xff\xfe", 400, ""),
    (b'{"prompt": "a", "temperature": NaN}', 400, "temperature"), (b"[" * 100_000, 400, "JSON"),
    (b'{"prompt": "\\ud800"}', 400, ""), ({}, 400, "prompt"), ({"prompt": []}, 400, "prompt"),
    ({"prompt": [[]]}, 400, "prompt"), ({"prompt": 5}, 400, "prompt"), ({"prompt": [True]}, 400, "prompt"),
    ({"prompt": [-1]}, 400, "prompt"), ({"prompt": [128]}, 400, "token 128"), ({"prompt": [10**30]}, 400, ""),
    ({"prompt": "a", "temperature": -1}, 400, "temperature"), ({"prompt": "a", "temperature": "x"}, 400, "temperature"),
    ({"prompt": "a", "top_p": 0}, 400, "top-p"), ({"prompt": "a", "top_k": -2}, 400, "top-k"),
    ({"prompt": "a", "top_k": 10**12}, 400, "top-k"), ({"prompt": "a", "frequency_penalty": 1e9}, 400, "frequency"),
    ({"prompt": "a", "logit_bias": {"a": 1}}, 400, "logit_bias"),
    ({"prompt": "a", "logit_bias": {"999": 1}}, 400, "token 999"), ({"prompt": "a", "n": 0}, 400, "n"),
    ({"prompt": "a", "n": 100_000}, 400, "100000 completions"), ({"prompt": "a", "max_tokens": -1}, 400, "max_tokens"),
    ({"prompt": "a", "max_tokens": 128}, 400, "128 new ones does not fit"), ({"prompt": "a" * 129}, 400, "129 tokens"),
    ({"prompt": "a", "stop": ""}, 400, "stop string is empty"), ({"prompt": "a", "stop": ["x"] * 65}, 400, "65 stop"),
    ({"prompt": "a", "stop_token_ids": [*range(9)]}, 400, "end tokens"),
    ({"prompt": "a", "stop_token_ids": [10**12]}, 400, "end tokens"), ({"prompt": "a", "logprobs": 21}, 400, "20"),
    ({"prompt": "a", "model": "gpt-4"}, 404, "no model 'gpt-4'"), ({"prompt": "a", "suffix": "b"}, 400, "suffix"),
    ({"prompt": "a", "best_of": 4}, 400, "best_of"), ({"prompt": "a", "chat_template": "{{ x }}"}, 400, "template"),
    ({"prompt": "a", "guided_regex": "a*"}, 400, "guided_regex")])
def test_what_cannot_be_answered_is_an_error_object(client, body, status, words):
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    response = client.post("/v1/completions", content=content, headers={"Content-Type": "application/json"})
    error = error_of(response, status)
    assert words in error["message"]
    assert error["type"] == ("not_found_error" if status == 404 else "invalid_request_error")


@pytest.mark.parametrize(("body", "words"), [
    ({"messages": None}, "messages"), ({"messages": []}, "messages"), ({"messages": ["a"]}, "messages"),
    ({"messages": [{}]}, "role"),
    ({"messages": [{"role": "user"}]}, "content"), ({"messages": [{"role": "user", "content": [
        {"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]}]}, "no text"),
    ({"messages": ASK * 60}, "does not fit"), ({"tool_choice": "required"}, "not among tools"),
    ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "g"}}}, "not among tools"),
    ({"tools": [TOOL], "tool_choice": "maybe"}, "tool_choice"), ({"tools": [{"type": "other"}]}, "tools"),
    ({"tools": [TOOL], "response_format": {"type": "json_object"}}, "response_format"),
    ({"response_format": {"type": "xml"}}, "response_format"), ({"response_format": {"type": "json_schema"}}, "schema"),
    ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "nothing"}}}}, "no grammar"),
    ({"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {
        "a": {"not": {}}}}}}], "tool_choice": "required"}, "no grammar"), ({"max_tokens": 0}, "max_tokens"),
    ({"top_logprobs": 21}, "top_logprobs"), ({"chat_template": "{{ 1 }}"}, "chat_template"),
    ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs"), ({"audio": {"voice": "a"}}, "audio"),
    ({"continue_final_message": True}, "continue_final_message"), ({"functions": [{"name": "f"}]}, "functions")])
def test_chats_that_cannot_be_answered_are_error_objects(client, body, words):
    assert words in error_of(client.post(CHAT, json={"messages": ASK} | body), 400)["message"]


def test_context_and_length_have_the_codes_that_clients_look_for(client):
    error = error_of(client.post("/v1/completions", json={"prompt": "a", "max_tokens": 500}), 400)
    assert error["code"] == "context_length_exceeded"
    assert error_of(client.post("/v1/completions", json={"prompt": "a", "model": "x"}), 404)["code"] == (
        "model_not_found")


def test_paths_methods_and_kinds_that_there_are_not(client):
    error_of(client.get("/v1/nothing"), 404)
    error_of(client.get("/v1/completions"), 405)
    error_of(client.post("/v1/completions", content=b"prompt=a"), 415)
    error_of(client.post("/v1/completions", content=b'{"prompt": "a"}', headers={"Content-Type": "text/plain"}), 415)
    error_of(client.post("/v1/completions", content=b" " * (2**22 + 1), headers={
        "Content-Type": "application/json"}), 413)


def test_models_tokens_and_health(client, parts):
    models = client.get("/v1/models").json()["data"]
    assert [(each["id"], each["max_model_len"]) for each in models] == [("tiny", 128), ("other", 128)]
    assert client.get("/v1/models/other").json()["id"] == "other"
    error_of(client.get("/v1/models/a/b"), 404)
    found = client.post("/tokenize", json={"prompt": "abc", "add_special_tokens": False}).json()
    assert found == {"tokens": parts.tokenizer.encode("abc"), "count": 3, "max_model_len": 128}
    assert client.post("/detokenize", json={"tokens": [1, *found["tokens"]]}).json() == {"prompt": "<end>abc"}
    chat = client.post("/tokenize", json={"messages": ASK}).json()
    assert chat["tokens"] == parts.tokenizer.encode("u:Hi<end>a:")
    error_of(client.post("/tokenize", json={}), 400)
    error_of(client.post("/detokenize", json={"tokens": [128]}), 400)
    info = client.get("/tokenizer_info").json()
    assert (info["eos_token"], info["chat_template"]) == ("<end>", parts.tokenizer.chat_template)
    assert client.get("/health").status_code == 200


def test_scores_are_those_of_the_script(client, parts):
    rows = ["abcd", {"prompt": "ab", "completion": "cd"}, {"tokens": [5, 6, 7], "loss_mask": [0, 0, 1]}]
    found = client.post("/v1/score", json={"input": rows}).json()["data"]
    scores = scores_of(parts, [parts.tokenizer.encode("abcd"), [5, 6, 7]])
    np.testing.assert_allclose(found[0]["logps"], scores[0].logps, atol=1e-5)
    np.testing.assert_allclose(found[0]["entropy"], scores[0].entropy, atol=1e-5)
    assert found[0]["score"] == pytest.approx(scores[0].logps.sum(), abs=1e-4)
    assert found[1]["score"] == pytest.approx(scores[0].logps[2:].sum(), abs=1e-4)
    assert found[2]["score"] == pytest.approx(scores[1].logps[2], abs=1e-4)
    [alone] = client.post("/v1/score", json={"input": "abcd"}).json()["data"]
    assert alone["logps"] == pytest.approx(found[0]["logps"], abs=1e-5)
    assert "input 1" in error_of(client.post("/v1/score", json={"input": ["a", {"b": 1}]}), 400)["message"]
    error_of(client.post("/v1/score", json={"input": "a" * 200}), 400)
    error_of(client.post("/v1/score", json={"input": {"tokens": [1, "a\nb"]}}), 400)


def test_what_is_done_is_counted(start):
    served = start()
    post(served.client, prompt="abc", max_tokens=5, ignore_eos=True)
    served.client.get("/nowhere")
    text = served.client.get("/metrics").text
    for line in ('temper_requests_total{path="/v1/completions",status="200"} 1.0', "temper_completion_tokens_total 5.0",
                 'temper_requests_total{path="other",status="404"} 1.0', "temper_prompt_tokens_total 3.0",
                 "temper_waiting 0.0", "temper_running 0.0", "temper_first_token_seconds_count 1.0"):
        assert line in text.splitlines()


def test_the_interface_is_described(client):
    document = client.get("/openapi.json").json()
    assert {*document["paths"]} == {"/v1/completions", CHAT, "/v1/score", "/tokenize", "/detokenize"}
    assert "prompt" in document["components"]["schemas"]["CompletionBody"]["properties"]


def test_a_key_is_asked_for(start):
    client = start(api_key="secret").client
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "secret"}, {"Authorization": "Bearer "}):
        for path in ("/v1/models", "/metrics", "/openapi.json", "/nowhere"):
            response = client.get(path, headers=headers)
            assert error_of(response, 401)["code"] == "invalid_api_key"
            assert response.headers["WWW-Authenticate"] == "Bearer"
    assert client.get("/health").status_code == 200
    assert client.get("/v1/models", headers={"Authorization": "Bearer secret"}).status_code == 200


def test_a_page_of_the_web_does_not_reach_a_server_of_this_machine(start, parts):
    from serving.app import make_app

    served = start()
    app = make_app(served.served, served.jobs, parts.grammars, None, only_here=True)
    served.client.app = app
    from starlette.testclient import TestClient

    client = TestClient(app, base_url="http://localhost:8000")
    assert client.get("/v1/models").status_code == 200
    for host in ("[::1]:8000", "[::1]", "LocalHost", "127.0.0.2:80"):
        assert client.get("/v1/models", headers={"Host": host}).status_code == 200
    for host in ("evil.example:8000", "127.0.0.1.evil.example", "localhost.evil", "127.evil:80", "evil:127.0.0.1", ""):
        error_of(client.get("/v1/models", headers={"Host": host}), 421)


class Slow:
    """An engine that samples nothing, until it is told to."""

    num_slots, busy = 1, True

    def __init__(self):
        self.cancelled, self.count = [], 0

    def submit(self, requests):
        self.count += len(requests)
        return [*range(self.count - len(requests), self.count)]

    def cancel(self, ids):
        self.cancelled += ids

    def step(self, max_tokens, read_all):
        time.sleep(0.01)
        return []


async def call(app, body, path="/v1/completions", leaves=False):
    """An ASGI call; `leaves`: the client goes once it has asked. What was sent."""
    sent, asked = [], False

    async def receive():
        nonlocal asked
        if not asked:
            asked = True
            return {"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}
        await asyncio.sleep(0.2 if leaves else 3600)
        return {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "query_string": b"",
             "headers": [(b"content-type", b"application/json"), (b"host", b"localhost")], "http_version": "1.1",
             "scheme": "http", "server": ("localhost", 80), "client": ("localhost", 1), "root_path": "",
             "asgi": {"version": "3.0", "spec_version": "2.3"}}
    await app(scope, receive, send)
    return sent


@pytest.mark.parametrize("stream", [False, True])
def test_who_goes_is_cancelled(start, stream):
    engine = Slow()
    served = start(engine=engine)
    asyncio.run(asyncio.wait_for(call(served.app, {"prompt": "abc", "n": 3, "stream": stream}, leaves=True), 20))
    deadline = time.monotonic() + 20
    while len(engine.cancelled) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert engine.cancelled == [0, 1, 2]
    assert served.jobs.num_pending == 0


@pytest.mark.parametrize("stream", [False, True])
def test_what_takes_too_long_is_given_up(start, stream):
    engine = Slow()
    served = start(engine=engine, timeout=0.3)
    response = served.client.post("/v1/completions", json={"prompt": "abc", "stream": stream})
    content = response.json() if not stream else json.loads(response.text.removeprefix("data: "))
    assert content["error"]["type"] == "timeout"
    assert response.status_code == (200 if stream else 504)
    assert served.jobs.num_pending == 0


@pytest.mark.parametrize("stream", [False, True])
def test_an_engine_that_is_busy_before_it_takes_a_request_counts(start, stream):
    """With compiling, say; before a stream begins, that is a status."""
    class Busy(Slow):
        def submit(self, requests):
            time.sleep(0.6)
            return super().submit(requests)

    served = start(engine=Busy(), timeout=0.2)
    error = error_of(served.client.post("/v1/completions", json={"prompt": "abc", "stream": stream}), 504)
    assert error["type"] == "timeout"
    assert served.jobs.num_pending == 0


def test_too_many_are_told_to_come_back(start):
    """Who comes while as many wait as may; where nobody waits, one request may ask for more than that."""
    served = start(engine=Slow(), max_queue=2)

    async def waiting(n):
        task = asyncio.ensure_future(call(served.app, {"prompt": "a", "n": n}))
        while served.jobs.num_pending < n:
            await asyncio.sleep(0.01)
        return task

    async def several():
        first = await waiting(6)  # 4 slots, so 2 wait
        refused = await call(served.app, {"prompt": "a"})
        first.cancel()
        await asyncio.wait([first])
        (await waiting(200)).cancel()
        return refused

    refused, *_ = asyncio.run(several())
    assert refused["status"] == 429
    assert 1 <= int(dict(refused["headers"])[b"retry-after"]) <= 60


class Broken(Slow):
    busy = False

    def submit(self, requests):
        self.busy = True
        return super().submit(requests)

    def cancel(self, ids):
        self.busy = False

    def step(self, max_tokens, read_all):
        raise MemoryError("no memory")


@pytest.mark.parametrize("stream", [False, True])
def test_an_engine_that_fails_is_told_without_its_insides(start, stream, capsys):
    """They are in the log."""
    response = start(engine=Broken()).client.post("/v1/completions", json={"prompt": "abc", "stream": stream})
    content = response.json() if not stream else json.loads(response.text.removeprefix("data: "))
    assert content["error"]["type"] == "server_error"
    assert "no memory" not in content["error"]["message"]
    assert response.status_code == (200 if stream else 500)
    assert "MemoryError: no memory" in capsys.readouterr().err


def test_a_limit_of_new_tokens_is_kept(start):
    client = start(max_new_tokens=5).client
    assert "more than this server gives" in error_of(post(client, prompt="a", max_tokens=6), 400)["message"]
    answer = client.post(CHAT, json={"messages": ASK, "ignore_eos": True}).json()
    assert answer["usage"]["completion_tokens"] == 5

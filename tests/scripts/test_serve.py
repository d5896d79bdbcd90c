"""scripts.serve by real processes: what it refuses before weights are read, what it answers, and how it ends."""

import http.client
import importlib.util
import json
import os
import signal
import socket
import threading
import time
import urllib.error
import urllib.request

import pytest
from chat_model import write_model, write_reward_model
from processes import WAIT, launched

for name in ("starlette", "uvicorn", "pydantic", "prometheus_client", "llguidance"):
    pytest.importorskip(name)

FLAGS = ("--num-slots", "4", "--cache-tokens", "1024", "--dtype", "float32")


@pytest.fixture
def refused(run_script):
    def run(*arguments):
        status, _, err = run_script("serve", *arguments)
        assert (status, err.count("\n")) == (1, 1)
        return err

    return run


def test_a_port_in_use(refused, tiny_model):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        err = refused("--model", tiny_model, "--port", port)
    assert err.startswith(f"error: --host 127.0.0.1 --port {port}: nothing can listen there (Address already in use)")


@pytest.mark.parametrize(("flags", "words"), [
    (["--host", "0.0.0.0"], "--host 0.0.0.0 can be reached from other machines, and there is no key; give --api-key"),
    (["--host", "::"], "--host :: can be reached"),
    (["--host", "no.such.host.invalid", "--api-key", "k"], "nothing can listen"),
    (["--api-key", " k"], "--api-key: a key has letters"), (["--port", "-1"], "--port -1"),
    (["--max-length", "129"], "--max-length 129 is beyond the model's context of 128"),
    (["--num-slots", "0"], "--num-slots must be above 0"), (["--timeout", "0"], "--timeout must be above 0"),
    (["--served-name", ""], "--served-name: a name is empty"), (["--chat-template-kwargs", "{a: 1}"], "no tokenizer")])
def test_flags_that_make_no_sense(refused, tiny_model, flags, words, monkeypatch):
    monkeypatch.delenv("TEMPER_API_KEY", raising=False)
    assert words in refused("--model", tiny_model, "--port", 0, *flags)


def test_what_is_not_installed_is_named(refused, tiny_model, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "uvicorn" else find(name))
    assert "scripts.serve needs uvicorn; run: pip install -r requirements-serve.txt" in refused("--model", tiny_model)


def address_of(process):
    """What it prints once it listens, besides what Gloo prints."""
    line = next((line for line in process.stdout if " at http://" in line), None)
    assert line, process.communicate()
    return line.split(" at ")[1].strip()


def ask(url, body=None, headers=None):
    request = urllib.request.Request(url, None if body is None else json.dumps(body).encode(), {
        "Content-Type": "application/json"} | (headers or {}))
    with urllib.request.urlopen(request, timeout=WAIT) as response:
        return json.loads(response.read())


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.mark.slow
def test_a_server_answers_and_ends_as_asked(tmp_path):
    """What is on its way when it is told to end is answered; nobody new comes in; it ends with status 0."""
    model = write_model(tmp_path / "model")
    with launched("serve", "--model", model, "--port", "0", *FLAGS) as [process]:
        url = address_of(process)
        assert ask(f"{url}/models")["data"][0]["id"] == str(model)
        body = {"prompt": "abc", "max_tokens": 100, "seed": 3, "ignore_eos": True}
        first = ask(f"{url}/completions", body)
        assert first["usage"]["completion_tokens"] == 100
        with pytest.raises(urllib.error.HTTPError) as refusal:
            ask(f"{url}/chat/completions", {"messages": [{"role": "user", "content": "Hi"}]})
        assert "no chat template" in json.loads(refusal.value.read())["error"]["message"]
        found = []
        waiting = [threading.Thread(target=lambda: found.append(ask(f"{url}/completions", body))) for _ in range(6)]
        for each in waiting:
            each.start()
        time.sleep(0.5)
        process.send_signal(signal.SIGTERM)
        for each in waiting:
            each.join()
        assert process.wait(WAIT) == 0
        assert [each["choices"] for each in found] == [first["choices"]] * 6


@pytest.mark.slow
def test_several_processes_answer_as_one(tmp_path):
    """Process 0 listens and decides, all draw: what is asked, streamed, scored, constrained, and dropped on the way."""
    model = write_model(tmp_path / "model")
    (model / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}:")
    answers = []
    for count, devices in ((1, 2), (2, 1)):
        flags = ("--model", model, "--port", "0", "--mesh.data", "2", *FLAGS)
        with launched("serve", *flags, count=count, devices=devices) as processes:
            url = address_of(processes[0])
            host = url.removeprefix("http://").removesuffix("/v1")
            gone = http.client.HTTPConnection(host, timeout=WAIT)
            gone.request("POST", "/v1/completions", json.dumps({"prompt": "x", "max_tokens": 120, "stream": True}),
                         {"Content-Type": "application/json"})
            gone.getresponse().read(10)
            gone.close()
            prompts = ["abc", "Hello there", "q"] * 3
            completions = ask(f"{url}/completions", {"prompt": prompts, "max_tokens": 20, "seed": 1, "n": 2,
                                                     "echo": True, "logprobs": 1})
            chat = ask(f"{url}/chat/completions", {
                "messages": [{"role": "user", "content": "Hi"}], "seed": 1, "max_tokens": 60, "logit_bias": {"95": 5},
                "response_format": {"type": "json_schema", "json_schema": {"schema": {"enum": ["yes", "no"]}}}})
            scores = ask(f"{url}/score", {"input": ["abcd", "xyz"]})
            with pytest.raises(urllib.error.HTTPError):
                ask(f"{url}/completions", {"prompt": [999]})
            answers.append((completions["choices"], chat["choices"], scores["data"]))
            processes[0].send_signal(signal.SIGTERM)
            assert [process.wait(WAIT) for process in processes] == [0] * count
    one, two = answers
    assert [each["text"] for each in one[0]] == [each["text"] for each in two[0]]
    for each, other in zip(one[0], two[0], strict=True):
        logps, others = (choice["logprobs"]["token_logprobs"][1:] for choice in (each, other))
        assert logps == pytest.approx(others, abs=1e-4)
    assert json.loads(one[1][0]["message"]["content"]) in ("yes", "no")
    assert one[1] == two[1]
    for each, other in zip(one[2], two[2], strict=True):
        assert each["logps"] == pytest.approx(other["logps"], abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("busy", [False, True])
def test_a_process_that_is_lost_ends_the_server(tmp_path, busy):
    """In the middle of an answer with one line; an idle one is ended by JAX, which misses the other's heartbeats."""
    model = write_model(tmp_path / "model")
    flags = ("--model", model, "--port", "0", "--mesh.data", "2", "--hosts.heartbeat-timeout", "10", *FLAGS)
    with launched("serve", *flags, count=2) as processes:
        url = address_of(processes[0])
        if busy:
            stream = http.client.HTTPConnection(url.removeprefix("http://").removesuffix("/v1"), timeout=WAIT)
            stream.request("POST", "/v1/completions", json.dumps({
                "prompt": "x", "n": 200, "max_tokens": 120, "ignore_eos": True, "stream": True}),
                {"Content-Type": "application/json"})
            stream.getresponse().read(10)
        processes[1].kill()
        _, err = processes[0].communicate(timeout=WAIT)
        assert processes[0].returncode
        if busy:
            assert [line for line in err.splitlines() if line.startswith("error: another process")], err
            assert "Traceback" not in err


@pytest.mark.slow
def test_a_reward_model_scores_and_writes_nothing(tmp_path):
    model = write_reward_model(tmp_path / "reward", write_model(tmp_path / "model"))
    with launched("serve", "--model", model, "--port", "0", "--served-name", "judge", *FLAGS) as [process]:
        url = address_of(process)
        data = ask(f"{url}/score", {"model": "judge", "input": ["abc", {"prompt": "ab", "completion": "c"}]})["data"]
        assert data[0]["score"] == pytest.approx(data[1]["score"], abs=1e-5)
        assert {*data[0]} == {"index", "object", "score"}
        with pytest.raises(urllib.error.HTTPError) as refusal:
            ask(f"{url}/completions", {"prompt": "a"})
        assert "reward model" in json.loads(refusal.value.read())["error"]["message"]


@pytest.mark.slow
def test_a_server_beyond_this_machine_needs_its_key(tmp_path, monkeypatch):
    model = write_model(tmp_path / "model")
    monkeypatch.setitem(os.environ, "TEMPER_API_KEY", "secret")
    with launched("serve", "--model", model, "--host", "0.0.0.0", "--port", str(free_port()), *FLAGS) as [process]:
        url = address_of(process).replace("0.0.0.0", "127.0.0.1")
        with pytest.raises(urllib.error.HTTPError, match="401"):
            ask(f"{url}/models")
        assert ask(f"{url}/models", headers={"Authorization": "Bearer secret"})["object"] == "list"

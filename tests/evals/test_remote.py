"""A model behind a server: what is asked of it, and what becomes of one that fails or answers in another shape. Needs
lm-eval."""

import http.server
import json
import threading

import pytest

pytest.importorskip("lm_eval")

from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.models.api_models import JsonChatStr  # noqa: E402

from errors import InputError  # noqa: E402
from evals import remote  # noqa: E402
from evals.cache import Cache  # noqa: E402
from evals.harness import Generation  # noqa: E402
from evals.remote import RemoteModel, served_model  # noqa: E402


class Server(http.server.BaseHTTPRequestHandler):
    """vLLM's interface: a token is a character, whose log-probability is -its code / 100."""

    protocol_version = "HTTP/1.1"
    asked, faults = [], []
    """bodies of what was asked for answers; (status, body or function of the answer) of the next ones"""

    def log_message(self, *_):
        pass

    def do_GET(self):
        self._say({"data": [{"id": "tiny"}]} if self.path == "/v1/models" else {"eos_token": "~"})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/tokenize":
            self._say({"tokens": [*map(ord, body["prompt"])]})
            return
        self.asked.append(body)
        fault = self.faults.pop(0) if self.faults else None
        answer = self._chat(body) if self.path.endswith("/chat/completions") else self._complete(body)
        status, said = fault or (200, answer)
        self._say(said(answer) if callable(said) else said, status)

    def _chat(self, body):
        text = body["messages"][-1]["content"].upper()
        return {"choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "length"}]}

    def _complete(self, body):
        assert (body["echo"], body["max_tokens"], body["logprobs"]) == (True, 1, 1)
        return {"choices": [{"index": number, "logprobs": self._logprobs(prompt)}
                            for number, prompt in reversed([*enumerate(body["prompt"])])]}

    def _logprobs(self, prompt):
        logps = [None, *(-token / 100 for token in prompt[1:]), -5.0]
        return {"token_logprobs": logps, "top_logprobs": [None, *({"x": logp} for logp in logps[1:])]}

    def _say(self, answer, status=200):
        data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def url(monkeypatch):
    monkeypatch.setattr(remote, "ATTEMPTS", 1)
    monkeypatch.setattr(remote, "CONCURRENT", 2)
    Server.asked, Server.faults = [], []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/v1"
        server.shutdown()


def requests(kind, *arguments):
    return [Instance(kind, {}, each, number) for number, each in enumerate(arguments)]


def chats(*texts):
    return requests("generate_until", *((JsonChatStr(json.dumps([{"role": "user", "content": text}])),
                                         {"until": ["\n"], "max_gen_toks": 9}) for text in texts))


PAIRS = requests("loglikelihood", ("ab", "cd"), ("ab", "e"), ("", "f"))


def model(url, cache=None):
    return RemoteModel(url, served_model(url), Generation(), cache or Cache())


def values(responses):
    return [each.value for each, in responses]


def test_log_probabilities_are_of_the_continuation(url):
    found = values(model(url).respond(PAIRS, 1))
    assert [logp for logp, _ in found] == pytest.approx([-0.99 - 1.0, -1.01, -1.02])
    assert all(greedy for _, greedy in found)
    [text] = values(model(url).respond(requests("loglikelihood_rolling", ("abc",)), 1))
    assert text == pytest.approx(-0.97 - 0.98 - 0.99)


def test_answers_come_with_why_they_ended(url):
    first, second = model(url).respond(chats("a", "b"), 2)
    assert [(each.value, each.finish_reason) for each in [*first, *second]] == [("A", "length")] * 2 + [
        ("B", "length")] * 2
    assert [body["seed"] for body in Server.asked] == [0, 0, 1, 1]
    assert {body["max_tokens"] for body in Server.asked} == {9}
    assert [body["temperature"] for body in Server.asked] == [1.0] * 4


def test_what_has_come_is_not_asked_for_again(url, tmp_path):
    assert values(model(url, Cache(tmp_path / "said.jsonl")).respond(chats("a"), 1)) == ["A"]
    first = values(model(url, Cache(tmp_path / "said.jsonl")).respond(PAIRS, 1))
    Server.asked.clear()
    Server.faults = [(500, {"error": "down"})]
    with pytest.raises(InputError, match="has not answered as it should .*500"):
        model(url, Cache(tmp_path / "said.jsonl")).respond(chats("a", "b"), 1)
    again = model(url, Cache(tmp_path / "said.jsonl"))
    assert values(again.respond(chats("a", "b"), 1)) == ["A", "B"]
    assert values(again.respond(PAIRS, 1)) == first
    assert [body["messages"][0]["content"] for body in Server.asked] == ["b", "b"]


def change(**changes):
    def changed(answer):
        for choice in answer["choices"]:
            choice["logprobs"] |= {name: of(choice["logprobs"]["token_logprobs"]) for name, of in changes.items()}
        return answer

    return changed


@pytest.mark.parametrize("fault", [
    (500, {"error": "down"}), (200, b'{"choices": [{"ind'), (200, {"error": "no such model"}), (200, []),
    (200, lambda answer: {"choices": answer["choices"][:1]}), (200, b"<html>"),
    (200, lambda answer: {"choices": [{"index": 0, "logprobs": None}] * 3}),
    (200, change(token_logprobs=lambda logps: logps[-1:])),  # without what was echoed: log-probability 0, greedy
    (200, change(token_logprobs=lambda logps: logps[1:])), (200, change(token_logprobs=lambda logps: [None] * 5)),
    (200, change(token_logprobs=lambda logps: [float("nan")] * len(logps)))])
def test_log_probabilities_of_another_shape_are_refused(url, fault):
    Server.faults = [fault] * 3
    with pytest.raises(InputError, match=f"--model {url} has not answered as it should"):
        model(url).respond(PAIRS, 1)


@pytest.mark.parametrize("fault", [
    (500, {"error": "down"}), (200, b'{"choices": [{"mess'), (200, {"choices": []}), (200, {"error": "no"}),
    (200, lambda answer: {"choices": answer["choices"] * 2}), (200, {"choices": [{"text": "a"}]}),
    (200, {"choices": [{"message": {"content": [{"type": "text", "text": "a"}]}}]})])
def test_answers_of_another_shape_are_refused(url, fault):
    Server.faults = [fault] * 2
    with pytest.raises(InputError, match=f"--model {url} has not answered as it should"):
        model(url).respond(chats("a", "b"), 1)


def test_a_server_that_is_none_is_told(url):
    with pytest.raises(InputError, match=r"--model http://127.0.0.1:9/v1: .*models names no model"):
        served_model("http://127.0.0.1:9/v1")
    with pytest.raises(InputError, match="names no model"):
        served_model(url.removesuffix("/v1"))

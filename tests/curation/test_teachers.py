"""A teacher behind a URL: what it is asked, what it may cost, and what happens where it fails."""

import http.server
import json
import threading

import pytest

from curation.recipe import parse_recipe
from curation.samples import sample
from curation.stages import Drop, Row
from errors import InputError


class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 64

    def handle_error(self, *_):
        """A client that has given up."""


class Teacher:
    """A server with OpenAI's interface; `outcome(body, n)` gives (status, JSON) of the n-th request, or None for its
    usual answer."""

    def __init__(self):
        self.bodies, self.headers, self.outcome = [], [], lambda body, n: None
        teacher, lock = self, threading.Lock()

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                self.respond(200, {"data": [{"id": "wise"}]})

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    teacher.bodies.append(body)
                    teacher.headers.append(dict(self.headers))
                    number = len(teacher.bodies)
                self.respond(*(teacher.outcome(body, number) or (200, usual(body))))

            def respond(self, status, value, headers=()):
                data = json.dumps(value).encode()
                self.send_response(status)
                for name, text in (*headers, ("Content-Length", str(len(data)))):
                    self.send_header(name, text)
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_):
                pass

        self.server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()


def usual(body, text=None):
    text = text or f"{body['messages'][-1]['content']}:{body['seed'] % 1000}"
    return {"choices": [{"message": {"content": text}, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 5, "completion_tokens": 10}}


@pytest.fixture
def teacher():
    made = Teacher()
    yield made
    made.server.shutdown()
    made.server.server_close()


def rows(count=3):
    return [Row("a.jsonl", index, {"prompt": f"p{index}", "level": index}) for index in range(count)]


def ask(teacher, folder, some=None, num_samples=2, **keys):
    endpoint = {"url": teacher.url, "wait": 0.001} | keys.pop("endpoint", {})
    keys = {"model": endpoint, "num_samples": num_samples, "max_new_tokens": 16} | keys
    step = parse_recipe({"stages": [{"sample": keys}]}).steps[0]
    return list(step.make(folder)(rows() if some is None else some))


def test_every_prompt_is_answered_and_none_twice(teacher, tmp_path):
    made = ask(teacher, tmp_path, temperature=[0.0, 0.7], templates=["{prompt}", "{prompt} Think."],
               rewards="chat_model:of_level,chat_model:digits=0.5")
    assert [(row.index, row.sample, row.record["prompt"][0]) for row in made] == [
        (index, number, {"role": "user", "content": f"p{index}"}) for index in range(3) for number in range(2)]
    assert {row.record["completion"][0]["role"] for row in made} == {"assistant"}
    assert {(body["temperature"], "Think" in body["messages"][0]["content"]) for body in teacher.bodies} == {
        (0.0, False), (0.7, True)}
    assert len({body["seed"] for body in teacher.bodies}) == 6
    for row in made:
        text = row.record["completion"][0]["content"]
        digits = sum(map(str.isdigit, text)) / len(text)
        assert row.notes["rewards"] == {"chat_model:of_level": row.index, "chat_model:digits": digits}
        assert row.notes["reward"] == row.index + digits / 2
        assert row.notes["teacher"] == f"wise at {teacher.url}"
    assert ask(teacher, tmp_path, temperature=[0.0, 0.7], templates=["{prompt}", "{prompt} Think."],
               rewards="chat_model:of_level,chat_model:digits=0.5") == made
    assert len(teacher.bodies) == 6
    ask(teacher, tmp_path, num_samples=3, temperature=0.0)
    assert len(teacher.bodies) == 12  # three of nine are the first ones again


def test_what_fails_for_a_moment_is_asked_again(teacher, tmp_path, monkeypatch):
    monkeypatch.setenv("WISE_KEY", "secret")
    teacher.outcome = lambda body, n: [None, (429, {}), (503, {})][n % 3]
    made = ask(teacher, tmp_path, endpoint={"key_variable": "WISE_KEY", "concurrency": 1})
    assert [row.sample for row in made] == [0, 1] * 3
    assert {headers["Authorization"] for headers in teacher.headers} == {"Bearer secret"}


@pytest.mark.parametrize(("status", "answer", "words"), [
    (400, {"error": "too long"}, "HTTP 400"), (200, {"choices": []}, "another shape"),
    (200, {"choices": [{"message": {"content": None}}]}, "another shape"), (200, ["?"], "another shape")])
def test_what_fails_for_a_prompt_fails_apart(teacher, tmp_path, status, answer, words):
    teacher.outcome = lambda body, n: (status, answer) if body["messages"][0]["content"] == "p1" else None
    made = ask(teacher, tmp_path)
    assert [isinstance(each, Drop) for each in made] == [False, False, True, True, False, False]
    assert words in made[2].reason
    teacher.outcome = lambda body, n: None
    assert not any(isinstance(each, Drop) for each in ask(teacher, tmp_path))
    assert len(teacher.bodies) == 8


@pytest.mark.parametrize(("outcome", "words"), [
    ((401, {}), "refuses (HTTP 401"), ((404, {"error": "no such model"}), "no such model"),
    ((429, {"error": {"code": "insufficient_quota"}}), "insufficient_quota"), ((503, {}), "does not answer (HTTP 503"),
    ((200, {"answer": "p"}), "another shape")])
def test_a_teacher_that_is_no_good_ends_the_run_in_a_line(teacher, tmp_path, outcome, words):
    teacher.outcome = lambda body, n: None if n <= 4 else outcome
    with pytest.raises(InputError) as raised:
        ask(teacher, tmp_path, rows(20), endpoint={"concurrency": 2, "retries": 1})
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)
    assert len(teacher.bodies) < 30
    asked = len(teacher.bodies)
    teacher.outcome = lambda body, n: None
    assert len(ask(teacher, tmp_path, rows(20))) == 40
    assert len(teacher.bodies) - asked == 36


def test_a_teacher_that_is_not_there(tmp_path, teacher):
    teacher.server.shutdown()
    teacher.server.server_close()
    with pytest.raises(InputError, match="names no model .*Connection refused"):
        ask(teacher, tmp_path)
    with pytest.raises(InputError, match="does not answer .*Connection refused"):
        ask(teacher, tmp_path, endpoint={"name": "wise", "retries": 1})


def test_nobody_waits_for_tries_that_are_yet_to_come(tmp_path, teacher):
    """One request is told to wait for a minute, the other that the key is wrong."""
    teacher.outcome = lambda body, n: (429, {}, [("Retry-After", "60")]) if n == 1 else (401, {})
    with pytest.raises(InputError, match="HTTP 401"):
        ask(teacher, tmp_path, endpoint={"concurrency": 2})
    assert len(teacher.bodies) == 2


def test_a_slow_teacher_is_given_up(tmp_path, teacher):
    import time

    teacher.outcome = lambda body, n: time.sleep(0.3)
    with pytest.raises(InputError, match="does not answer .*(imed out|imeout)"):
        ask(teacher, tmp_path, endpoint={"name": "wise", "timeout": 0.05, "retries": 0})


@pytest.mark.parametrize(("budget", "least", "most"), [
    ({"max_total_tokens": 500}, 28, 33), ({"max_cost": 0.008, "prompt_price": 2.0, "completion_price": 18.0}, 38, 42)])
def test_a_budget_is_never_exceeded_over_runs(teacher, tmp_path, budget, least, most):
    """A request costs 15 tokens, or 0.00019, and is held to cost more until it has come."""
    with pytest.raises(InputError, match="could go beyond max_"):
        ask(teacher, tmp_path, rows(30), endpoint=budget)
    asked = len(teacher.bodies)
    assert least <= asked <= most
    with pytest.raises(InputError, match=f"{asked * 15} tokens are spent"):
        ask(teacher, tmp_path, rows(30), endpoint=budget)
    assert len(teacher.bodies) == asked
    assert len(ask(teacher, tmp_path, rows(30))) == 60
    assert len(teacher.bodies) == 60


def test_a_budget_needs_usage(teacher, tmp_path):
    teacher.outcome = lambda body, n: (200, usual(body) | {"usage": None})
    with pytest.raises(InputError, match="how many tokens"):
        ask(teacher, tmp_path, endpoint={"max_total_tokens": 1000})
    assert len(ask(teacher, tmp_path)) == 6


def test_several_teachers_and_what_they_think(teacher, tmp_path):
    teacher.outcome = lambda body, n: (200, usual(body, body["model"])) if body["model"] == "quick" else (
        200, {"choices": [{"message": {"content": "deep", "reasoning_content": "hm"}}]})
    some = [Row("a.jsonl", 0, {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"},
                                            {"role": "assistant", "content": "old"}], "id": 7})]
    made = ask(teacher, tmp_path, some, model=[{"url": teacher.url, "name": name} for name in ("quick", "slow")],
               templates=["{prompt}", "Now: {prompt}"])
    assert [(row.sample, row.record["completion"]) for row in made] == [
        *((number, [{"role": "assistant", "content": "quick"}]) for number in (0, 1)),
        *((number, [{"role": "assistant", "content": "deep", "reasoning_content": "hm"}]) for number in (2, 3))]
    assert all(row.record["prompt"] == some[0].record["messages"][:2] and row.record["id"] == 7 for row in made)
    assert "messages" not in made[0].record
    assert sorted({body["messages"][1]["content"] for body in teacher.bodies}) == ["Now: u", "u"]


def test_a_teacher_that_answers_nothing_is_a_line(teacher, tmp_path):
    teacher.outcome = lambda body, n: (400, {"error": "no"})
    with pytest.raises(InputError, match="none of 6 completions could be had; the last failed: HTTP 400"):
        ask(teacher, tmp_path)


def test_what_is_told_of_completions(teacher, tmp_path):
    teacher.outcome = lambda body, n: (400, {}) if "p1" in str(body["messages"]) else None
    stage = sample(model=teacher.url, num_samples=2, rewards="chat_model:of_level", folder=tmp_path)
    list(stage([*rows(), Row("a.jsonl", 3, {"prompt": "p3", "level": "none"})]))
    assert stage.summary() == {"completions": 6, "completions_failed": 2, "truncated": 0, "tokens": 60,
                               "rewards_failed": 2, "mean_reward": 1.0}


def test_what_was_cut_is_told_and_dropped_where_asked(teacher, tmp_path):
    cut = {"choices": [{"message": {"content": "and so"}, "finish_reason": "length"}]}
    teacher.outcome = lambda body, n: (200, cut) if "p1" in str(body["messages"]) else None
    for drop_truncated in (False, True):
        stage = sample(model=teacher.url, num_samples=2, drop_truncated=drop_truncated, folder=tmp_path)
        assert [isinstance(each, Drop) for each in stage(rows())] == [False, False, *[drop_truncated] * 2, False, False]
        assert stage.summary()["truncated"] == 2


def test_top_logprobs_are_kept(teacher, tmp_path):
    content = [{"top_logprobs": [{"token": "a", "logprob": -0.5}, {"token": "b", "logprob": -1.0}]}]
    teacher.outcome = lambda body, n: (200, {"choices": [{"message": {"content": "a"}, "logprobs": {
        "content": content}}]})
    row = ask(teacher, tmp_path, top_logprobs=2)[0]
    assert (row.record["top_tokens"], row.record["top_logps"]) == ([["a", "b"]], [[-0.5, -1.0]])
    assert teacher.bodies[0]["top_logprobs"] == 2


@pytest.mark.parametrize(("keys", "words"), [
    ({"model": {"url": "ftp://x"}}, "no http"), ({"model": {"name": "x"}}, "no url"),
    ({"model": {"url": "http://x", "retry": 3}}, "no key 'retry'"), ({"num_samples": 0}, "num_samples is 0"),
    ({"model": {"url": "http://x", "retries": "3"}}, 'retries is "3"; it takes a whole number'),
    ({"templates": ["Think."]}, "has no {prompt}"), ({"rewards": "nothing"}, "no reward is called"),
    ({"model": {"url": "http://x", "max_cost": 1.0}}, "needs prompt_price")])
def test_bad_keys_are_a_line_before_anything_is_asked(tmp_path, keys, words):
    with pytest.raises(InputError, match=words.replace("{", r"\{").replace("(", r"\(")):
        sample(**({"model": "http://x", "folder": tmp_path} | keys))


def test_rows_without_a_prompt_or_a_column(teacher, tmp_path):
    with pytest.raises(InputError, match="a.jsonl row 0: no prompt among text"):
        ask(teacher, tmp_path, [Row("a.jsonl", 0, {"text": "a"})])
    with pytest.raises(InputError, match="of_level"):
        ask(teacher, tmp_path, [Row("a.jsonl", 0, {"prompt": "a"})], rewards="chat_model:of_level")

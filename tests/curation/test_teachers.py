"""A teacher behind a URL: what it is asked, what it may cost, and what happens where it fails."""

import http.server
import json
import threading

import pytest

import curation.remote_teacher as remote_teacher
from curation.recipe import parse_recipe
from curation.remote_teacher import _pause
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
            wbufsize = -1  # headers and body in one packet

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
                data = value if isinstance(value, bytes) else json.dumps(value).encode()
                self.send_response(status)
                for name, text in ({"Content-Length": str(len(data))} | dict(headers)).items():
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


def query(teacher, folder, some=None, num_samples=2, **keys):
    endpoint = {"url": teacher.url, "wait": 0.001} | keys.pop("endpoint", {})
    keys = {"model": endpoint, "num_samples": num_samples, "max_new_tokens": 16} | keys
    step = parse_recipe({"stages": [{"sample": keys}]}).steps[0]
    return list(step.make(folder)(rows() if some is None else some))


def test_every_prompt_is_answered_and_none_twice(teacher, tmp_path):
    made = query(teacher, tmp_path, temperature=[0.0, 0.7], templates=["{prompt}", "{prompt} Think."],
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
    assert query(teacher, tmp_path, temperature=[0.0, 0.7], templates=["{prompt}", "{prompt} Think."],
               rewards="chat_model:of_level,chat_model:digits=0.5") == made
    assert len(teacher.bodies) == 6
    query(teacher, tmp_path, num_samples=3, temperature=0.0)
    assert len(teacher.bodies) == 12  # three of nine are the first ones again


def test_what_fails_for_a_moment_is_asked_again(teacher, tmp_path, monkeypatch):
    monkeypatch.setenv("WISE_KEY", "secret")
    teacher.outcome = lambda body, n: [None, (429, {}), (503, {})][n % 3]
    made = query(teacher, tmp_path, endpoint={"key_variable": "WISE_KEY", "concurrency": 1})
    assert [row.sample for row in made] == [0, 1] * 3
    assert {headers["Authorization"] for headers in teacher.headers} == {"Bearer secret"}


@pytest.mark.parametrize(("status", "answer", "words"), [
    (400, {"error": "too long"}, "HTTP 400"), (200, {"choices": []}, "another shape"),
    (200, {"choices": [{"message": {"content": None}, "finish_reason": "length"}]}, "says nothing (finish_reason len"),
    (200, ["?"], "another shape"), (200, {"choices": {"0": 1}, "usage": [1e999]}, "another shape"),
    (200, {"choices": [{"message": {"content": None, "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}}]},
     "a call of a tool that cannot be read")])
def test_what_fails_for_a_prompt_fails_apart(teacher, tmp_path, status, answer, words):
    teacher.outcome = lambda body, n: (status, answer) if body["messages"][0]["content"] == "p1" else None
    made = query(teacher, tmp_path)
    assert [isinstance(each, Drop) for each in made] == [False, False, True, True, False, False]
    assert words in made[2].reason
    teacher.outcome = lambda body, n: None
    assert not any(isinstance(each, Drop) for each in query(teacher, tmp_path))
    assert len(teacher.bodies) == 8


@pytest.mark.parametrize("broken", [
    (200, b'{"choices": [{"message": {"content": "ha'), (200, usual({"messages": [{"content": "p"}], "seed": 1}),
     [("Content-Length", "9999")]), (200, b"<html>busy</html>"), (200, {"error": {"code": 502}}), (500, b"\xff")])
def test_an_answer_that_is_cut_is_asked_for_again(teacher, tmp_path, broken):
    teacher.outcome = lambda body, n: broken if n % 2 else None
    made = query(teacher, tmp_path, endpoint={"concurrency": 1, "name": "wise"})
    assert [row.sample for row in made] == [0, 1] * 3
    assert len(teacher.bodies) == 12


@pytest.mark.parametrize(("header", "least", "most"), [
    ("7", 7, 7), ("9999", 120, 120), ("-3", 0, 0), ("nan", 0, 0), (None, 0, 0), ("soon", 0, 0),
    ("Thu, 01 Jan 1970 00:00:00 GMT", 0, 0), ("Fri, 31 Dec 9999 23:59:59 GMT", 120, 120)])
def test_how_long_a_teacher_asks_to_be_left_alone(header, least, most):
    assert least <= _pause(header) <= most


def test_any_number_of_prompts_in_a_row_may_be_refused(teacher, tmp_path, monkeypatch):
    """As where the longest rows stand together: a teacher that answers others is not taken to be down."""
    teacher.outcome = lambda body, n: (400, {"error": "too long"}) if "p1" in body["messages"][0]["content"] else None
    made = query(teacher, tmp_path, rows(2), num_samples=9, endpoint={"concurrency": 1})
    assert sum(isinstance(each, Drop) for each in made) == 9
    monkeypatch.setattr(remote_teacher, "PROMPTS_REFUSED", 3)
    teacher.outcome = lambda body, n: (400, {})
    with pytest.raises(InputError, match="does not answer .HTTP 400"):
        query(teacher, tmp_path / "other", rows(4), num_samples=1, endpoint={"concurrency": 1})


def test_an_empty_account_is_told_wherever_the_answer_says_so(teacher, tmp_path):
    teacher.outcome = lambda body, n: (429, {"error": {"message": "no " * 100, "code": "insufficient_quota"}})
    with pytest.raises(InputError, match="refuses .HTTP 429"):
        query(teacher, tmp_path)
    assert len(teacher.bodies) <= 8


@pytest.mark.parametrize("key", ["sk-secret\nmore", "sk-secr\u00e9t", "sk-secret\x7f"])
def test_a_key_that_is_none_is_a_line_without_it(teacher, tmp_path, monkeypatch, key):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    for endpoint in ({}, {"name": "wise"}):
        with pytest.raises(InputError, match="the key in OPENAI_API_KEY") as raised:
            query(teacher, tmp_path, endpoint=endpoint)
        assert "secr" not in str(raised.value)
    monkeypatch.setenv("OPENAI_API_KEY", " sk-secret\n")
    query(teacher, tmp_path, rows(1))
    assert {headers["Authorization"] for headers in teacher.headers} == {"Bearer sk-secret"}


TOOL = {"name": "add", "parameters": {"type": "object", "properties": {}}}
CALLED = [{"id": "a", "type": "function", "function": {"name": "add", "arguments": '{"x": 1}'}}]


def test_tools_and_calls_are_sent_and_come_in_openai_s_shape(teacher, tmp_path):
    teacher.outcome = lambda body, n: (200, {"choices": [{
        "message": {"content": None, "tool_calls": CALLED}, "finish_reason": "tool_calls"}]})
    call = {"name": "add", "arguments": {"x": 1}}
    chat = [{"role": "user", "content": "1+1?", "weight": 0},
            {"role": "assistant", "content": None, "tool_calls": [call, {"id": "b", "function": call}]},
            {"role": "tool", "content": "2"}, {"role": "tool", "content": "3", "tool_call_id": "b"}]
    full = {"type": "function", "function": TOOL}
    some = [Row("a", 0, {"messages": chat, "tools": [TOOL]}), Row("a", 1, {
        "prompt": chat[:1], "tools": json.dumps([full])}), Row("a", 2, {"prompt": chat[:1]})]
    made = query(teacher, tmp_path, some, num_samples=1, rewards="chat_model:calls")
    bodies = sorted(teacher.bodies, key=lambda body: (-len(body["messages"]), "tools" not in body))
    assert [body.get("tools") for body in bodies] == [[full], [full], None]
    first, called, second, third = bodies[0]["messages"]
    assert first == {"role": "user", "content": "1+1?"}
    assert [(each["id"], each["type"], json.loads(each["function"]["arguments"])) for each in called["tool_calls"]] == [
        ("call_1_0", "function", {"x": 1}), ("b", "function", {"x": 1})]
    assert (second["tool_call_id"], third["tool_call_id"]) == ("call_1_0", "b")
    for row in made:
        [message] = row.record["completion"]
        assert (message["content"], message["tool_calls"][0]["function"]["arguments"]) == ("", {"x": 1})
        assert row.notes["reward"] == 1
        assert not {"thought", "tool_calls"} & row.notes.keys()
    with pytest.raises(InputError, match="^a row 0: tools are "):
        query(teacher, tmp_path, [Row("a", 0, {"prompt": "hi", "tools": "[1]"})])


@pytest.mark.parametrize(("outcome", "words"), [
    ((401, {}), "refuses (HTTP 401"), ((404, {"error": "no such model"}), "no such model"),
    ((429, {"error": {"code": "insufficient_quota"}}), "insufficient_quota"), ((503, {}), "does not answer (HTTP 503"),
    ((200, {"answer": "p"}), "another shape")])
def test_a_teacher_that_is_no_good_ends_the_run_in_a_line(teacher, tmp_path, outcome, words):
    teacher.outcome = lambda body, n: None if n <= 4 else outcome
    with pytest.raises(InputError) as raised:
        query(teacher, tmp_path, rows(20), endpoint={"concurrency": 2, "retries": 1})
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)
    assert len(teacher.bodies) < 30
    asked = len(teacher.bodies)
    teacher.outcome = lambda body, n: None
    assert len(query(teacher, tmp_path, rows(20))) == 40
    assert len(teacher.bodies) - asked == 36


def test_a_teacher_that_is_not_there(tmp_path, teacher):
    teacher.server.shutdown()
    teacher.server.server_close()
    with pytest.raises(InputError, match="names no model .*Connection refused"):
        query(teacher, tmp_path)
    with pytest.raises(InputError, match="does not answer .*Connection refused"):
        query(teacher, tmp_path, endpoint={"name": "wise", "retries": 1})


def test_nobody_waits_for_tries_that_are_yet_to_come(tmp_path, teacher):
    """One request is told to wait for a minute, the other that the key is wrong."""
    teacher.outcome = lambda body, n: (429, {}, [("Retry-After", "60")]) if n == 1 else (401, {})
    with pytest.raises(InputError, match="HTTP 401"):
        query(teacher, tmp_path, endpoint={"concurrency": 2})
    assert len(teacher.bodies) == 2


def test_a_slow_teacher_is_given_up(tmp_path, teacher):
    import time

    teacher.outcome = lambda body, n: time.sleep(0.3)
    with pytest.raises(InputError, match="does not answer .*(imed out|imeout)"):
        query(teacher, tmp_path, endpoint={"name": "wise", "timeout": 0.05, "retries": 0})


@pytest.mark.parametrize(("budget", "least", "most"), [
    ({"max_total_tokens": 500}, 28, 33), ({"max_cost": 0.008, "prompt_price": 2.0, "completion_price": 18.0}, 38, 42)])
def test_a_budget_is_never_exceeded_over_runs(teacher, tmp_path, budget, least, most):
    """A request costs 15 tokens, or 0.00019, and is held to cost more until it has come."""
    with pytest.raises(InputError, match="could go beyond max_"):
        query(teacher, tmp_path, rows(30), endpoint=budget)
    asked = len(teacher.bodies)
    assert least <= asked <= most
    with pytest.raises(InputError, match=f"{asked * 15} tokens are spent"):
        query(teacher, tmp_path, rows(30), endpoint=budget)
    assert len(teacher.bodies) == asked
    assert len(query(teacher, tmp_path, rows(30))) == 60
    assert len(teacher.bodies) == 60


def test_what_failed_is_paid_for_too(teacher, tmp_path):
    """A teacher that says nothing every other time, and takes 15 tokens for it, over two runs."""
    said_nothing = {"choices": [{"message": {"content": None}}], "usage": {"prompt_tokens": 5, "completion_tokens": 10}}
    teacher.outcome = lambda body, n: (200, said_nothing) if body["seed"] % 2 else None
    for _ in range(2):
        with pytest.raises(InputError, match="270 tokens are spent"):
            query(teacher, tmp_path, rows(30), endpoint={"max_total_tokens": 310, "concurrency": 1})
        assert len(teacher.bodies) == 18


def test_a_budget_needs_usage(teacher, tmp_path):
    teacher.outcome = lambda body, n: (200, usual(body) | {"usage": None})
    with pytest.raises(InputError, match="how many tokens"):
        query(teacher, tmp_path, endpoint={"max_total_tokens": 1000})
    assert len(query(teacher, tmp_path)) == 6


def test_several_teachers_and_what_they_think(teacher, tmp_path):
    teacher.outcome = lambda body, n: (200, usual(body, body["model"])) if body["model"] == "quick" else (
        200, {"choices": [{"message": {"content": "deep", "reasoning_content": "hm"}}]})
    some = [Row("a.jsonl", 0, {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"},
                                            {"role": "assistant", "content": "old"}], "id": 7})]
    made = query(teacher, tmp_path, some, model=[{"url": teacher.url, "name": name} for name in ("quick", "slow")],
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
        query(teacher, tmp_path)


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
    row = query(teacher, tmp_path, top_logprobs=2)[0]
    assert (row.record["top_tokens"], row.record["top_logps"]) == ([["a", "b"]], [[-0.5, -1.0]])
    assert teacher.bodies[0]["top_logprobs"] == 2


@pytest.mark.parametrize(("keys", "words"), [
    ({"model": {"url": "ftp://x"}}, "no http"), ({"model": {"name": "x"}}, "no url"),
    ({"model": {"url": "http://x", "retry": 3}}, "no key 'retry'"), ({"num_samples": 0}, "num_samples is 0"),
    ({"model": {"url": "http://x", "retries": "3"}}, 'retries is "3"; it takes a whole number'),
    ({"templates": ["Think."]}, "has no {prompt}"), ({"rewards": "nothing"}, "no reward is called"),
    ({"model": {"url": "http://x", "max_cost": 1.0}}, "needs prompt_price"),
    ({"model": {"url": "http://x", "prompt_price": -1.0}}, "prompt_price is -1.0; it takes 0 or more"),
    ({"model": {"url": "http://[x"}}, "is no http"), ({"model": {"url": "http://x:port"}}, "is no http"),
    ({"model": ()}, "model names none"), ({"model": ""}, "model names none"), ({"temperature": ()}, "an empty list"),
    ({"temperature": -1.0}, "temperature must be 0 or more"), ({"top_p": 1.5}, "top-p must be"),
    ({"top_k": -1}, "top-k must be"), ({"stop": ("",)}, "an empty string"),
    ({"top_logprobs": -1}, "top_logprobs is -1"), ({"reward_timeout": 0.0}, "reward_timeout 0")])
def test_bad_keys_are_a_line_before_anything_is_asked(tmp_path, keys, words):
    with pytest.raises(InputError, match=words.replace("{", r"\{").replace("(", r"\(")):
        sample(**({"model": "http://x", "folder": tmp_path} | keys))


def test_rows_without_a_prompt_or_a_column(teacher, tmp_path):
    with pytest.raises(InputError, match="a.jsonl row 0: no prompt among text"):
        query(teacher, tmp_path, [Row("a.jsonl", 0, {"text": "a"})])
    with pytest.raises(InputError, match="of_level"):
        query(teacher, tmp_path, [Row("a.jsonl", 0, {"prompt": "a"})], rewards="chat_model:of_level")

"""A judge over HTTP: what it is sent, what it may answer, and what becomes of rows when it fails."""

import contextlib
import http.server
import json
import threading
import time

import numpy as np
import pytest

from errors import InputError
from rewards.contract import Clock, RowErrors, on_clock
from rewards.judge import make_judge
from rewards.registry import Weighted
from rewards.scoring import compute_rewards


@contextlib.contextmanager
def serving(answer):
    """`answer` takes the request's JSON and the number of requests before, and gives a status and a body."""
    seen = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            seen.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            status, body = answer(seen[-1], len(seen) - 1)
            with contextlib.suppress(OSError):  # a client that did not wait
                self.send_response(status)
                self.end_headers()
                if type(body) not in (bytes, dict):
                    for byte in bytes(body):
                        self.wfile.write(bytes([byte]))
                        time.sleep(0.1)
                self.wfile.write(body if isinstance(body, bytes) else json.dumps(body).encode())

        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/score", seen
    finally:
        server.shutdown()
        server.server_close()


def test_a_judge_gets_all_and_its_values_come_back():
    with serving(lambda request, _: (200, {"rewards": [1, None, -0.5]})) as (url, seen):
        given = make_judge(url)(["?"] * 3, ["a", "é", [{"role": "assistant", "content": "c"}]], level=np.arange(3),
                                completion_ids=[[1], [2], []])
    assert given == [1.0, None, -0.5]
    assert seen == [{"prompts": ["?"] * 3, "completions": ["a", "é", [{"role": "assistant", "content": "c"}]],
                     "level": [0, 1, 2], "completion_ids": [[1], [2], []]}]


@pytest.mark.parametrize(("statuses", "requests", "works"), [
    ([200], 1, True),
    ([503, 200], 2, True),
    ([500, 429, 200], 3, True),
    ([500, 500, 500, 200], 3, False),
    ([404, 200], 1, False),
])
def test_tries_are_bounded(statuses, requests, works):
    with serving(lambda request, before: (statuses[before], {"rewards": [1.0, 0.0]})) as (url, seen):
        judge = Weighted("judge", 1.0, make_judge(url, wait=0.01))
        scored = compute_rewards([judge], ["?"] * 2, ["a", "b"], {}, 20.0)
    assert len(seen) == requests
    assert scored.values["judge"] == ([1.0, 0.0] if works else [None, None])
    assert scored.exceptions["judge"] == (0 if works else 2)
    assert scored.totals == scored.values["judge"]


def test_a_judge_that_is_away_or_slow_fails_all_rows_and_in_time():
    with serving(lambda request, _: (time.sleep(1), (200, {"rewards": [1.0]}))[1]) as (url, seen):
        started = time.monotonic()
        with pytest.raises(RowErrors) as error:
            make_judge(url, timeout=0.2, retries=1, wait=0.01)(["?"], ["a"])
        assert isinstance(error.value.errors[0], TimeoutError)
        with on_clock(Clock(0.2)), pytest.raises(RowErrors):
            make_judge(url, timeout=30.0, retries=5)(["?"], ["a"])
        assert time.monotonic() - started < 0.95
        assert len(seen) == 3
    with pytest.raises(RowErrors, match="refused") as error:
        make_judge(url, wait=0.01)(["?"] * 2, ["a", "b"])
    assert error.value.values == [None, None]


def test_an_answer_in_drops_is_given_up_in_time():
    class Drops(bytes):
        """A body of which a byte comes at a time, and the last one never."""

    with serving(lambda request, _: (200, Drops(b'{"rewards": [1.0]}'))) as (url, _):
        for timeout, given in ((0.3, 30.0), (30.0, 0.3)):
            with on_clock(Clock(given)), pytest.raises(RowErrors) as error:
                make_judge(url, timeout=timeout, retries=0)(["?"], ["a"])
            assert isinstance(error.value.errors[0], TimeoutError)


@pytest.mark.parametrize(("body", "message"), [
    ({"rewards": [1.0]}, "gave 1 rewards for 2 rows"),
    ({"rewards": {"a": 1}}, "gave dict rewards for 2 rows"),
    ({"scores": [1.0, 1.0]}, "no JSON object with 'rewards'"),
    (b"<html>", "answered b'<html>'"),
    (b"[" * 100_000, "no JSON object"),
])
def test_answers_of_another_form_end_in_one_line(body, message):
    with serving(lambda request, _: (200, body)) as (url, _), pytest.raises(InputError, match=message):
        make_judge(url)(["?"] * 2, ["a", "b"])


@pytest.mark.parametrize("value", ["NaN", '"high"', "true"])
def test_values_that_are_no_finite_numbers(value):
    with serving(lambda request, _: (200, f'{{"rewards": [{value}]}}'.encode())) as (url, _):
        judge = Weighted("judge", 1.0, make_judge(url))
        if value == "true":
            assert compute_rewards([judge], ["?"], ["a"], {}, 20.0).totals == [1.0]
        else:
            with pytest.raises(InputError, match="gave (nan for row 0|'high' as a reward)"):
                compute_rewards([judge], ["?"], ["a"], {}, 20.0)


def test_columns_that_are_no_json_are_named():
    with pytest.raises(InputError, match="a column is no JSON"):
        make_judge("http://127.0.0.1:1")(["?"], ["a"], thing=[object()])

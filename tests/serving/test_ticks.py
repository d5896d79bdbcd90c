"""The engine's thread: who asks is answered, who goes is dropped, and one that fails takes nobody down with it."""

import itertools
import threading

import pytest

from errors import InputError
from rollouts.engine import Output
from serving.ticks import Ticks
from serving.work import Accepted, Sampled, SampleRequest, Scored, ScoreRequest

SAMPLE = SampleRequest([1, 2], 3, [0, 0], [1.0], [], [], False, [], 0, None)


class FakeEngine:
    """Each request is given one token a step, up to its limit; `faults` are what the next steps raise."""

    def __init__(self):
        self.running, self.faults, self.steps, self.numbers = {}, [], [], itertools.count()

    @property
    def busy(self):
        return bool(self.running)

    def submit(self, samples):
        if any(not sample.tokens for sample in samples):
            raise InputError("a prompt has no tokens; give at least one")
        ids = [next(self.numbers) for _ in samples]
        self.running |= dict(zip(ids, (sample.max_new_tokens for sample in samples)))
        return ids

    def cancel(self, ids):
        for identity in ids:
            self.running.pop(identity, None)

    def step(self, max_tokens, read_all):
        self.steps.append(max_tokens)
        if self.faults:
            raise self.faults.pop(0)
        outputs = []
        for identity in [*self.running]:
            self.running[identity] -= 1
            done = not self.running[identity]
            outputs.append(Output(identity, [7], [-1.0], 0, "length" if done else None))
            if done:
                del self.running[identity]
        return outputs


class FakeScorer:
    at_a_time = 2

    def __init__(self):
        self.batches = []

    def score(self, rows):
        self.batches.append(len(rows))
        return [sum(row.tokens) for row in rows]


@pytest.fixture
def ticks():
    return Ticks(FakeEngine(), lambda sample: sample, FakeScorer())


def ask(ticks, samples=(), rows=()):
    told = []
    return ticks.submit(samples, rows, told.extend), told


def test_what_is_asked_is_answered(ticks):
    _, told = ask(ticks, [SAMPLE, SAMPLE._replace(max_new_tokens=1)])
    while not told or ticks._engine.busy:
        ticks.tick()
    assert told[0] == Accepted()
    assert [(event.number, event.output.finish_reason) for event in told[1:]] == [
        (0, None), (1, "length"), (0, None), (0, "length")]
    assert all(isinstance(event, Sampled) for event in told[1:])


def test_rows_are_scored_some_at_a_time_beside_decoding(ticks):
    _, sampled = ask(ticks, [SAMPLE])
    _, told = ask(ticks, rows=[ScoreRequest([number], False) for number in range(5)])
    for _ in range(3):
        ticks.tick()
    assert ticks._scorer.batches == [2, 2, 1]
    assert told == [Accepted(), *(Scored(number, number) for number in range(5))]
    assert sampled[-1].output.finish_reason == "length"


def test_a_job_that_is_refused_is_told_and_others_go_on(ticks):
    _, bad = ask(ticks, [SAMPLE._replace(tokens=[])])
    _, good = ask(ticks, [SAMPLE])
    for _ in range(3):
        ticks.tick()
    assert isinstance(bad[0], InputError)
    assert len(bad) == 1
    assert good[-1].output.finish_reason == "length"


def test_a_bug_that_a_request_finds_is_its_own(ticks, capsys):
    _, bad = ask(ticks, [SAMPLE._replace(tokens=None)])
    ticks._make_request = lambda sample: sample._replace(tokens=[*sample.tokens])
    _, good = ask(ticks, [SAMPLE])
    for _ in range(3):
        ticks.tick()
    assert [type(event) for event in bad] == [TypeError]
    assert good[-1].output.finish_reason == "length"
    assert "TypeError" in capsys.readouterr().err


def test_who_goes_is_dropped(ticks):
    job, told = ask(ticks, [SAMPLE._replace(max_new_tokens=50)], [ScoreRequest([1], False)] * 5)
    other, _ = ask(ticks, [SAMPLE])
    ticks.tick()
    count = len(told)
    ticks.cancel(job)
    ticks.cancel(job)
    ticks.tick()
    assert len(ticks._engine.running) == 1
    assert ticks._scorer.batches == [2]
    assert len(told) == count


def test_a_step_that_fails_is_tried_again(ticks):
    _, told = ask(ticks, [SAMPLE])
    ticks._engine.faults = [MemoryError("no memory")] * 2
    for _ in range(5):
        ticks.tick()
    assert told[-1].output.finish_reason == "length"


def test_after_some_failures_everything_on_its_way_is_given_up(ticks):
    _, told = ask(ticks, [SAMPLE], [ScoreRequest([1], False)] * 9)
    ticks._engine.faults = [MemoryError("no memory")] * 3
    for _ in range(3):
        ticks.tick()
    assert isinstance(told[-1], MemoryError)
    assert not ticks._engine.busy
    _, later = ask(ticks, [SAMPLE])
    for _ in range(3):
        ticks.tick()
    assert later[-1].output.finish_reason == "length"


def test_a_tick_takes_about_as_long_as_it_may(ticks):
    """Fewer tokens where they are slow; one step that reads contexts, too, changes little."""
    for seconds, tokens in ((3.2, 32), (0.32, 32), (0.32, 32), (9.0, 1)):
        ticks._measure(seconds, tokens)
    ticks._orders.put(["stop"])
    assert 12 <= ticks._decide()[1] <= 20


def test_run_ends_when_it_is_asked_to_and_tells_why_it_failed(ticks):
    thread = threading.Thread(target=ticks.run)
    thread.start()
    ticks.stop()
    thread.join(10)
    assert ticks.ended.is_set()
    assert ticks.error is None
    broken = Ticks(FakeEngine(), lambda sample: sample, FakeScorer())
    _, told = ask(broken, [SAMPLE])
    broken._orders.put(["submit"])
    broken.run()
    assert isinstance(broken.error, TypeError)
    assert isinstance(told[-1], RuntimeError)

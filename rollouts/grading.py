"""Rewards of groups of completions as they finish, next to sampling rather than after it."""

import queue
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from typing import Any, NamedTuple

import jax

from rewards.registry import Weighted
from rewards.scoring import Outcome, Rows, Scored, add_up, ask
from rollouts.shares import gather_graded, in_share


class _Group(NamedTuple):
    number: int
    prompts: Sequence[Any]
    completions: Sequence[Any]
    columns: Mapping[str, Sequence[Any]]


class Grading:
    """Grades groups in a thread of its own while others are sampled. Use as

        with Grading(rewards, timeout) as grading:
            grading.add(number, prompts, completions, columns)     # as they finish; returns at once
            for number, scored in grading.finished(): ...          # what is graded by now
            for number, scored in grading.wait(): ...              # no more will come: the rest

    The thread takes all groups that have come and asks for them together (rewards.scoring.ask), so rewards see single
    groups where they are faster than sampling, and many where they are slower. Each time it asks, a reward has
    `timeout` seconds; wait() asks for what is left beside what is under way, so all is over at most `timeout` +
    GRACE seconds a reward after it, and a reward that hangs on early groups takes no time from later ones. Rewards on
    the accelerator (rewards.contract.on_device) are asked last, about all groups, in the thread that calls wait(): they
    would gain nothing from running beside the sampler, which is on the same chips. Where the block is left early,
    rewards under way are given up.

    In a run of several processes each grades the groups whose number it is, modulo their count, and all are given what
    all of them graded, at the end: by wait(), which all call together.

    What a reward raises as InputError, and what ask() does, is raised by finished() and wait(), and names group and
    row. `columns` are names that rewards are always given; a row that has one of them not has None there.
    """

    def __init__(self, rewards: Sequence[Weighted], timeout: float, columns: Sequence[str] = ()):
        self._rewards, self._timeout, self._columns = rewards, timeout, columns
        self._last = [each for each in rewards if getattr(each.function, "on_device", False)]
        self._first = [each for each in rewards if each not in self._last]
        self._added: queue.SimpleQueue[_Group | None] = queue.SimpleQueue()
        self._graded: queue.SimpleQueue[tuple[_Group, dict[str, Outcome]] | BaseException] = queue.SimpleQueue()
        self._held: list[tuple[_Group, dict[str, Outcome]]] = []
        self._stop: Future = Future()
        self._thread = threading.Thread(target=self._work, name="grading", daemon=True)

    def __enter__(self) -> "Grading":
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._stop.set_result(None)
        self._added.put(None)
        self._thread.join()

    def add(self, number: int, prompts: Sequence[Any], completions: Sequence[Any],
            columns: Mapping[str, Sequence[Any]]) -> None:
        """A group's rows, in lists of one length."""
        if in_share(number):
            self._added.put(_Group(number, prompts, completions, columns))

    def finished(self) -> Iterator[tuple[int, Scored]]:
        """Numbers of groups that are graded by now and were not given before, and what they are worth; rows of failures
        count within the group."""
        if jax.process_count() == 1:
            self._hold()
            yield from () if self._last else self._hand_over()

    def wait(self) -> Iterator[tuple[int, Scored]]:
        """As finished(), for all groups that were added; waits for them."""
        yield from gather_graded(self._wait_for_share()) if jax.process_count() > 1 else self._wait_for_share()

    def _wait_for_share(self) -> Iterator[tuple[int, Scored]]:
        rest = [group for group in _taken(self._added) if group]
        self._added.put(None)
        self._held += self._grade(self._first, rest)
        self._thread.join()
        self._hold()
        if self._last:
            graded = self._grade(self._last, [group for group, _ in self._held])
            self._held = [(group, first | last) for (group, first), (_, last) in zip(self._held, graded)]
        yield from self._hand_over()

    def _work(self) -> None:
        try:
            while (group := self._added.get()) is not None:
                groups = [group, *_taken(self._added)]
                for graded in self._grade(self._first, [each for each in groups if each]):
                    self._graded.put(graded)
                if None in groups:
                    return
        except CancelledError:
            return
        except BaseException as error:  # noqa: BLE001 - raised where groups are asked for
            self._graded.put(error)

    def _grade(self, rewards: Sequence[Weighted],
               groups: Sequence[_Group]) -> list[tuple[_Group, dict[str, Outcome]]]:
        if not groups:
            return []
        outcomes, graded, start = ask(rewards, _joined(groups, self._columns), self._timeout, self._stop), [], 0
        for group in groups:
            stop = start + len(group.completions)
            graded.append((group, {name: _part(outcome, start, stop) for name, outcome in outcomes.items()}))
            start = stop
        return graded

    def _hold(self) -> None:
        for graded in _taken(self._graded):
            if isinstance(graded, BaseException):
                raise graded
            self._held.append(graded)

    def _hand_over(self) -> Iterator[tuple[int, Scored]]:
        while self._held:
            group, outcomes = self._held.pop(0)
            yield group.number, add_up(self._rewards, outcomes, group.completions)


def _taken(waiting: queue.SimpleQueue) -> list[Any]:
    """What is in the queue, which is empty then."""
    taken = []
    while not waiting.empty():
        try:
            taken.append(waiting.get_nowait())
        except queue.Empty:
            break  # another thread was faster
    return taken


def _joined(groups: Sequence[_Group], columns: Sequence[str]) -> Rows:
    names = dict.fromkeys([*columns, *(name for group in groups for name in group.columns)])
    return Rows([prompt for group in groups for prompt in group.prompts],
                [completion for group in groups for completion in group.completions],
                {name: [value for group in groups
                        for value in group.columns.get(name, [None] * len(group.completions))] for name in names},
                [f"row {row} of group {group.number}" for group in groups for row in range(len(group.completions))])


def _part(outcome: Outcome, start: int, stop: int) -> Outcome:
    """Of the rows of one group. An error of all rows together is told once, of the first group."""
    errors = {row - start: error for row, error in outcome.errors.items() if row is not None and start <= row < stop}
    whole = {None: outcome.errors[None]} if start == 0 and None in outcome.errors else {}
    return Outcome(outcome.values[start:stop], errors | whole)

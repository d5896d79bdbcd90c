"""Who is decoded next to whom: slots and pages are given to those that wait, and taken back. Host code, no arrays.

The slots are in `shares`, as many as the mesh splits rows; each share has pages of its own. Who was there before
changes nothing for who comes: the lowest slot that is free is taken.
"""

import heapq
from collections import deque
from collections.abc import Iterable

from rollouts.pages import Match, Pages
from rollouts.sequences import Sequence

Copy = tuple[int, int, int]
"""(share, source, target) of a page"""


class Slots:
    """`of_share` slots and `num_pages` pages of `page` positions in every share; more pages where they may grow."""

    def __init__(self, shares: int, of_share: int, num_pages: int, page: int, grows: bool):
        self.of_share, self.page, self.grows = of_share, page, grows
        self.waiting: deque[Sequence] = deque()
        self.running: dict[int, Sequence] = {}  # by slot
        self.pages = [Pages(num_pages, page) for _ in range(shares)]
        self._free = [list(range(share * of_share, (share + 1) * of_share)) for share in range(shares)]  # heaps

    @property
    def num_pages(self) -> int:
        """Pages of each share."""
        return self.pages[0].count

    def share_of(self, sequence: Sequence) -> int:
        return sequence.slot // self.of_share

    def ready(self) -> list[Sequence]:
        """Those whose next token can be drawn."""
        return [each for each in self.running.values() if not each.missing]

    def unread(self) -> list[Sequence]:
        """Those whose context is not in the cache yet."""
        return [each for each in self.running.values() if each.missing]

    def remove(self, ids: Iterable[int]) -> None:
        """Drops those of these ids that wait or run."""
        wanted = set(ids)
        self.waiting = deque(each for each in self.waiting if each.id not in wanted)
        for sequence in [each for each in self.running.values() if each.id in wanted]:
            self.leave(sequence)

    def admit(self) -> tuple[list[Sequence], list[Copy]]:
        """Gives slots to those that wait, in their order, as long as there are slots and pages: who came in, and pages
        to be copied before anything is read. Who could go on from what is being read just now waits for it."""
        entered: list[Sequence] = []
        copies: list[Copy] = []
        later: deque[Sequence] = deque()
        reading = {tuple(each.tokens[:-1]) for each in self.unread()}
        while self.waiting and any(self._free):
            sequence = self.waiting.popleft()
            context = tuple(sequence.tokens[:-1])
            if context in reading:
                later.append(sequence)
            elif not self._enter(sequence, copies):
                self.waiting.appendleft(sequence)
                break
            else:
                entered.append(sequence)
                reading |= {context} if sequence.missing else set()
        self.waiting.extendleft(reversed(later))
        for share, source, _ in copies:
            self.pages[share].release([source])
        return entered, copies

    def _enter(self, sequence: Sequence, copies: list[Copy]) -> bool:
        """Whether there was room. Goes to the share that has most of the context, or most slots."""
        matches = {share: self.pages[share].match(sequence.tokens[:-1])
                   for share, free in enumerate(self._free) if free}
        share = max(matches, key=lambda share: (matches[share].length, len(self._free[share])))
        match, pages = matches[share], self.pages[share]
        held = [*match.pages, *match.copied]
        pages.share(held)
        wanted = -(-len(sequence.tokens) // self.page) - len(match.pages)
        taken = self._take(share, wanted)
        if taken is None and match.copied:  # there may be no page beside the one to copy
            pages.release(match.copied)
            match, held = Match(match.pages, (), len(match.pages) * self.page), match.pages
            taken = self._take(share, wanted)
        if taken is None:
            pages.release(held)
            return False
        copies += [(share, page, taken[0]) for page in match.copied]
        sequence.slot, sequence.stale = heapq.heappop(self._free[share]), False
        sequence.pages, sequence.cached = [*match.pages, *taken], match.length
        self.running[sequence.slot] = sequence
        return True

    def _take(self, share: int, count: int) -> list[int] | None:
        """Pages, of a larger cache if need be; None where it may not grow."""
        pages = self.pages[share]
        taken = pages.take(count)
        if taken is None and self.grows:
            total = pages.count
            while total - pages.count + pages.available < count:
                total *= 2
            for each in self.pages:
                each.grow(total)
            taken = pages.take(count)
        return taken

    def with_pages(self, ready: Iterable[Sequence], chunk: int) -> list[Sequence]:
        """Those that have pages for `chunk` tokens more. Where none are left, the youngest give up theirs and wait."""
        return [sequence for sequence in sorted(ready, key=lambda each: each.id) if self._has_pages(sequence, chunk)]

    def _has_pages(self, sequence: Sequence, chunk: int) -> bool:
        limit = len(sequence.request.tokens) + sequence.request.max_new_tokens
        wanted = -(-min(len(sequence.tokens) + chunk, limit) // self.page) - len(sequence.pages)
        while self.running.get(sequence.slot) is sequence:
            taken = self._take(self.share_of(sequence), max(0, wanted))
            if taken is not None:
                sequence.pages += taken
                return True
            self._send_back(max((each for each in self.running.values()
                                 if self.share_of(each) == self.share_of(sequence)), key=lambda each: each.id))
        return False

    def _send_back(self, sequence: Sequence) -> None:
        """To those that wait, with what it has drawn."""
        self.leave(sequence)
        self.waiting.appendleft(sequence)

    def remember(self, sequence: Sequence) -> None:
        """Lets others go on from what the cache has of a sequence."""
        if not sequence.stale:
            self.pages[self.share_of(sequence)].remember(sequence.tokens[: sequence.cached], sequence.pages)

    def leave(self, sequence: Sequence) -> None:
        """Frees a slot; what its pages hold can be gone on from."""
        self.remember(sequence)
        share = self.share_of(sequence)
        self.pages[share].release(sequence.pages)
        del self.running[sequence.slot]
        heapq.heappush(self._free[share], sequence.slot)
        sequence.slot, sequence.pages, sequence.cached = -1, [], 0

    def forget(self) -> None:
        """Nothing is gone on from any more but by those that are decoded just now."""
        for pages in self.pages:
            pages.forget_all()
        for sequence in self.running.values():
            sequence.stale = True

    def restart(self) -> None:
        """All wait again, with what they have drawn, and the cache is empty."""
        sequences = sorted(self.running.values(), key=lambda each: each.id)
        self.forget()
        for sequence in reversed(sequences):
            self._send_back(sequence)

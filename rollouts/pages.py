"""Which pages of the cache hold what: allocation, and a tree of the contexts that can be gone on from.

A page holds the keys and values of `size` consecutive positions of one context. Pages that are full and known to the
tree are shared by all contexts that begin with the same tokens; of a page that only begins alike, a copy is gone on
from. What no request uses any more stays known until its page is wanted, oldest first. Host code, no arrays.
"""

import dataclasses
import itertools
from collections.abc import Sequence

RECENT = 32
"""pages behind one context that are looked through for one that begins like another"""


@dataclasses.dataclass
class _Node:
    """A page in the tree, behind the pages of the tokens before it."""

    tokens: tuple[int, ...]
    page: int
    parent: "_Node | None"
    children: dict[tuple[int, ...], "_Node"] = dataclasses.field(default_factory=dict)
    """by their tokens, the one used last at the end"""

    def like(self, tokens: Sequence[int]) -> tuple["_Node | None", int]:
        """The child, of the RECENT ones, that begins most like these tokens, and how many are alike."""
        recent = itertools.islice(reversed(self.children.values()), RECENT)
        best = max(recent, key=lambda child: _common(child.tokens, tokens), default=None)
        return best, _common(best.tokens, tokens) if best else 0


@dataclasses.dataclass(frozen=True)
class Match:
    """What the cache has of a context."""

    pages: list[int]
    """full ones, to be shared"""
    copied: Sequence[int]
    """a page of whose positions the first ones can be gone on from, in a copy; or none"""
    length: int
    """positions in all"""


class Pages:
    """`count` pages of `size` positions, numbered from 0."""

    def __init__(self, count: int, size: int):
        self.size, self.count = size, count
        self._free = list(range(count))[::-1]
        self._users = [0] * count
        self._nodes: dict[int, _Node] = {}  # by page
        self._idle: dict[int, None] = {}  # pages that are known and that nobody uses, the one used last at the end
        self._root = _Node((), -1, None)

    @property
    def available(self) -> int:
        """Pages that can be taken: free ones, and those that are only remembered."""
        return len(self._free) + len(self._idle)

    def match(self, tokens: Sequence[int]) -> Match:
        """The longest beginning of a context that the cache is known to have."""
        node, pages = self._root, []
        while child := node.children.get(tuple(tokens[len(pages) * self.size : (len(pages) + 1) * self.size])):
            if len(child.tokens) < self.size:
                break
            node = self._touch(child)
            pages.append(child.page)
        best, common = node.like(tokens[len(pages) * self.size :])
        if common:
            self._touch(best)
        return Match(pages, [best.page] if common else [], len(pages) * self.size + common)

    def _touch(self, node: _Node) -> _Node:
        node.parent.children[node.tokens] = node.parent.children.pop(node.tokens)
        return node

    def share(self, pages: Sequence[int]) -> None:
        """One user more for each."""
        for page in pages:
            self._users[page] += 1
            self._idle.pop(page, None)

    def take(self, count: int) -> list[int] | None:
        """`count` pages for one user; None where there are not as many. What is known and was used longest ago goes
        first, and of one context its end."""
        if self.available < count:
            return None
        while len(self._free) < count:
            self._forget(self._nodes[next(iter(self._idle))])
        pages = [self._free.pop() for _ in range(count)]
        self.share(pages)
        return pages

    def _forget(self, node: _Node) -> None:
        """One without children."""
        del node.parent.children[node.tokens], self._nodes[node.page]
        if not self._users[node.page]:
            del self._idle[node.page]
            self._free.append(node.page)

    def release(self, pages: Sequence[int]) -> None:
        """One user less for each page of a context; what nobody uses and the tree does not know is free."""
        for page in reversed(pages):  # none is idle longer than those behind it: whoever uses these uses it, too
            self._users[page] -= 1
            if not self._users[page] and page in self._nodes:
                self._idle[page] = None
            elif not self._users[page]:
                self._free.append(page)

    def remember(self, tokens: Sequence[int], pages: Sequence[int]) -> None:
        """Lets others go on from a context whose positions lie in `pages`, the last one of which may not be full."""
        node = self._root
        for number, page in enumerate(pages):
            part = tuple(tokens[number * self.size : (number + 1) * self.size])
            node = self._insert(node, part, page) if part else node
            if node.page != page:  # another's has the same: what is in use stands behind what is in use
                return

    def _insert(self, parent: _Node, tokens: tuple[int, ...], page: int) -> _Node:
        """The node that has these tokens, or more of the same, or a new one in place of such as have fewer of them."""
        best, common = (parent.children[tokens], len(tokens)) if tokens in parent.children else parent.like(tokens)
        if best is not None and common == len(tokens):
            return self._touch(best)
        if page in self._nodes:
            self._forget(self._nodes[page])
        if best is not None and common == len(best.tokens) and best.page in self._nodes:
            self._forget(best)
        parent.children[tokens] = self._nodes[page] = _Node(tokens, page, parent)
        return self._nodes[page]

    def forget_all(self) -> None:
        """Nothing is known any more; what is in use stays in use."""
        self._free += self._idle
        self._idle.clear()
        self._nodes.clear()
        self._root.children.clear()

    def grow(self, count: int) -> None:
        """To `count` pages."""
        self._free[:0] = list(range(self.count, count))[::-1]
        self._users += [0] * (count - self.count)
        self.count = count


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """Tokens at the beginning that are alike."""
    return next((at for at, (a, b) in enumerate(zip(one, other)) if a != b), min(len(one), len(other)))

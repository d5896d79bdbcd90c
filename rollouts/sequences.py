"""A request on its way: what was drawn for it, where its cache lies, and what ends it."""

import dataclasses

import numpy as np

from rollouts.requests import Request
from rollouts.stops import StopFinder


class RequestError(Exception):
    """A request cannot be gone on with, most of all as a function of its own failed: it ends, and no other."""


@dataclasses.dataclass(eq=False)
class Sequence:
    """A request on its way."""

    id: int
    request: Request
    tokens: list[int]
    """context, then what was drawn"""
    stops: StopFinder
    slot: int = -1
    pages: list[int] = dataclasses.field(default_factory=list)
    cached: int = 0
    """positions that the cache has"""
    stale: bool = False
    """the cache has positions of weights that are none any more"""

    @property
    def count(self) -> int:
        """Tokens drawn."""
        return len(self.tokens) - len(self.request.tokens)

    @property
    def completion(self) -> list[int]:
        return self.tokens[len(self.request.tokens) :]

    @property
    def missing(self) -> int:
        """Positions to be prefilled; the last token is read when the next one is drawn."""
        return len(self.tokens) - 1 - self.cached

    @property
    def biased(self) -> bool:
        """Whether penalties, a bias or a mask are in force."""
        request = self.request
        return request.controls.penalises or bool(request.logit_bias) or request.mask is not None

    def add(self, tokens: list[int]) -> bool:
        """Takes tokens in, up to the one that completes a stop string; whether one does. Raises RequestError."""
        for token in tokens:
            self.tokens.append(token)
            try:
                if self.stops.completes(token):
                    return True
            except Exception as error:  # whatever the request's own decode raises
                raise RequestError(f"its stop strings could not be looked for ({_line(error)})") from error
        return False

    def allowed(self, vocab_size: int) -> np.ndarray | None:
        """bool [V], the tokens that may come next, where there is a mask. Raises RequestError."""
        if self.request.mask is None:
            return None
        try:
            found = np.asarray(self.request.mask(self.completion))
        except Exception as error:  # whatever the request's own mask raises
            raise RequestError(f"its mask failed after {self.count} tokens ({_line(error)})") from error
        if found.dtype != bool or found.shape != (vocab_size,):
            raise RequestError(f"its mask gave {found.dtype} {found.shape} after {self.count} tokens, and not bool "
                                f"({vocab_size},)")
        if not found.any():
            raise RequestError(f"its mask allows no token after {self.count} tokens")
        return found


def _line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())

"""Constrained decoding by llguidance: which tokens a grammar (rules.py) lets come next."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from errors import InputError

MAX_CHARACTERS = 2**18
"""of a grammar"""
MAX_SYMBOLS = 25_000
"""of a grammar: an object of 2,000 keys that may all be left out has so many, and takes a second to be compiled"""
NUM_KEPT = 32
"""grammars that stay compiled, some MiB each"""


class Grammars:
    """Grammars over a model's tokens, each compiled once."""

    def __init__(self, tokenizer: Any, vocab_size: int):
        self._tokenizer, self._vocab_size = tokenizer, vocab_size
        self._compiled = functools.lru_cache(maxsize=NUM_KEPT)(self._compile)

    def check(self, grammar: str) -> None:
        """Raises InputError for one that cannot be expressed."""
        if len(grammar) > MAX_CHARACTERS:
            raise InputError(f"the schemas of a request come to a grammar of {len(grammar)} characters, more than "
                             f"{MAX_CHARACTERS}; give shorter ones")
        self._compiled(grammar)

    def mask(self, grammar: str) -> Callable[[Sequence[int]], np.ndarray]:
        """For one completion: its tokens so far, each time some more, to those that may come next, bool [V]."""
        return _Mask(self._compiled(grammar).deep_copy(), self._vocab_size, self._tokenizer.eos_ids)

    def _compile(self, grammar: str) -> Any:
        """Some grammars turn out to be none, or too much, only once the first token is looked for."""
        limits = _guidance().LLParserLimits(max_grammar_size=MAX_SYMBOLS)
        matcher = _guidance().LLMatcher(self._tokens, grammar, log_level=0, limits=limits)
        try:
            _raise_error(matcher)
            _Mask(matcher.deep_copy(), self._vocab_size, ())([])
        except ValueError as error:
            raise InputError(f"no grammar can be made of a schema ({error})") from None
        return matcher

    @functools.cached_property
    def _tokens(self) -> Any:
        if self._tokenizer is None:
            raise InputError("the model has no tokenizer, so nothing is known of its tokens' text")
        wrapper = _guidance().TokenizerWrapper(_Vocabulary(self._tokenizer, self._vocab_size))
        return _guidance().LLTokenizer(wrapper, n_vocab=self._vocab_size, eos_token=self._tokenizer.eos_id)


def _guidance() -> Any:
    try:
        import llguidance
    except ImportError as error:
        raise InputError(f"constrained decoding needs llguidance, which cannot be imported ({error}); run: pip install "
                         f"-r requirements-serve.txt") from None
    return llguidance


class _Vocabulary:
    """A tokenizer as llguidance takes it."""

    def __init__(self, tokenizer: Any, vocab_size: int):
        self.eos_token_id, self.bos_token_id = tokenizer.eos_id, tokenizer.bos_id
        found = tokenizer.token_bytes()[:vocab_size]
        found += [None] * (vocab_size - len(found))
        self.special_token_ids = [token for token, text in enumerate(found) if text is None]
        self.tokens = [f"<special {token}>".encode() if text is None else text for token, text in enumerate(found)]
        self._tokenizer = tokenizer

    def __call__(self, text: str) -> list[int]:
        return self._tokenizer.encode(text)


class _Mask:
    """A matcher that has read a completion's tokens."""

    def __init__(self, matcher: Any, vocab_size: int, eos_ids: Sequence[int]):
        self._matcher, self._vocab_size, self._count = matcher, vocab_size, 0
        self._eos_ids = [token for token in eos_ids if token < vocab_size]
        self._words = np.zeros((1, -(-vocab_size // 32)), np.int32)

    def __call__(self, tokens: Sequence[int]) -> np.ndarray:
        """Raises ValueError where the grammar is too much for the matcher."""
        from llguidance.numpy import fill_next_token_bitmask

        self._matcher.consume_tokens(list(tokens[self._count :]))
        self._count = len(tokens)
        fill_next_token_bitmask(self._matcher, self._words)
        _raise_error(self._matcher)
        mask = np.unpackbits(self._words[0].view(np.uint8), bitorder="little")[: self._vocab_size].astype(bool)
        if self._matcher.is_accepting():
            mask[self._eos_ids] = True
        return mask


def _raise_error(matcher: Any) -> None:
    """Raises ValueError with the first part of what a matcher says of its fault; a dump of its state follows."""
    if matcher.is_error():
        raise ValueError(" ".join(matcher.get_error().partition("<state>")[0].split())[:300])

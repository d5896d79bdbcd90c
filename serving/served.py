"""The model that is served, as requests see it: its names, its tokenizer, its limits."""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from data.encode import check_ids, missing_start
from data.tool_calls import ToolFormat, decoder_with
from errors import InputError
from models.config import ModelConfig
from serving.refusals import Refusal

MAX_CHOICES = 256
"""completions of one request"""


@dataclasses.dataclass(frozen=True)
class Served:
    """See the module."""

    names: tuple[str, ...]
    """by which requests call it; the first one is answered"""
    config: ModelConfig
    tokenizer: Any
    """None: prompts come as token ids"""
    max_length: int
    """tokens of a prompt and its completion"""
    max_new_tokens: int | None = None
    tool_format: ToolFormat | None = None
    writes_tools: bool = False
    """the chat template has no tools: they are told in the system's message (data.tool_calls.as_text)"""
    splits_thoughts: bool = False
    template_kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    timeout: float = 600.0
    """seconds of a request"""
    created: int = dataclasses.field(default_factory=lambda: int(time.time()))

    def check_name(self, name: str | None) -> None:
        """Raises Refusal for another model's."""
        if name is not None and name not in self.names:
            raise Refusal(404, f"there is no model {name!r} here, but {', '.join(self.names)}", "not_found_error",
                          "model_not_found", "model")

    def check_writes(self) -> None:
        """Raises Refusal for a reward model."""
        if self.config.reward_head:
            raise Refusal(400, "this is a reward model, which writes nothing; POST /v1/score", code="reward_model")

    @property
    def text(self) -> Any:
        """The tokenizer. Raises InputError for a model that has none."""
        self.check_text()
        return self.tokenizer

    def check_text(self) -> None:
        if self.tokenizer is None:
            raise InputError("the model has no tokenizer; prompts are token ids, and answers have no text")

    def encode(self, prompt: Any) -> list[int]:
        """A text, with the BOS that the tokenizer begins texts with, or token ids. An empty text is what a new one
        begins with."""
        if not isinstance(prompt, str):
            self.check_tokens(prompt)
            return list(prompt)
        tokens = missing_start(prompt, self.text) + self.encode_rendered(prompt)
        return tokens or [self.text.eos_id if self.text.bos_id is None else self.text.bos_id]

    def check_tokens(self, tokens: Sequence[int]) -> None:
        """Raises Refusal for an id that the model has not."""
        if max(tokens) >= self.config.vocab_size:
            raise Refusal(400, f"token {max(tokens)} is none of the model's, which are from 0 to "
                               f"{self.config.vocab_size - 1}")

    def encode_rendered(self, text: str) -> list[int]:
        """A text to which nothing is added."""
        tokens = self.text.encode(text)
        check_ids(tokens, self.text, self.config.vocab_size)
        return tokens

    def limit(self, prompt: Sequence[int], requested: int | None, default: int | None = None) -> int:
        """Tokens that may follow a prompt. Raises Refusal where what is requested does not fit."""
        room = self.max_length - len(prompt)
        if room < (1 if requested is None else requested):
            wanted = "" if requested is None else f" and {requested} new ones"
            raise Refusal(400, f"a prompt of {len(prompt)} tokens{wanted} does not fit this model's context of "
                               f"{self.max_length} tokens", code="context_length_exceeded")
        if self.max_new_tokens is None:
            return min(room, default or room) if requested is None else requested
        if requested is not None and requested > self.max_new_tokens:
            raise Refusal(400, f"{requested} new tokens are more than this server gives, {self.max_new_tokens}",
                          param="max_tokens")
        return min(room, self.max_new_tokens, default or room) if requested is None else requested

    def decode(self, tokens: Sequence[int]) -> str:
        """Tokens to text; without a tokenizer, there is none."""
        return "" if self.tokenizer is None else self.tokenizer.decode(tokens)

    def decoder(self, marks: Sequence[str]) -> Callable[[Sequence[int]], str]:
        """Tokens to text, with the marks of calls and thoughts that are special tokens."""
        return decoder_with(self.text, marks) if marks else self.decode


def check_choices(count: int) -> None:
    """Raises Refusal for more completions, of prompts times n, than one request may ask for."""
    if count > MAX_CHOICES:
        raise Refusal(400, f"{count} completions are more than one request may ask for, {MAX_CHOICES}", param="n")

"""A teacher on this machine: any model that --model names, answering by the engine."""

from collections.abc import Iterator, Sequence
from typing import Any

from curation.queries import Answer, Limits, Query
from curation.rows import digest


class LocalTeacher:
    """A model by name; its weights are read when it is first asked. Raises InputError for one without a tokenizer."""

    def __init__(self, name: str, limits: Limits, num_slots: int):
        from data.tokenizer import open_tokenizer
        from errors import InputError
        from training.runs import open_policy

        self.name, self._limits, self._num_slots = name, limits, num_slots
        self._opened = open_policy(name)
        self.tokenizer = open_tokenizer(self._opened.tokenizer)
        if self.tokenizer is None:
            raise InputError(f"model {name!r} has no tokenizer; put tokenizer.json into its folder")
        self.is_chat = bool(self.tokenizer.chat_template)
        self._max_length = self._opened.config.max_length - limits.max_new_tokens
        self._engine, self._longest, self._weights = None, 0, None

    has_budget = False

    def takes_as_message(self, prompt: str) -> bool:
        """Whether a string is what a user says, and not a text that a template has been applied to, or any text."""
        from data.encode import is_rendered

        return self.is_chat and not is_rendered(prompt, self.tokenizer)

    def key(self, query: Query) -> str:
        """By which an answer is known again: weights, prompt, controls and draw."""
        self._load()
        return digest(self._weights, query.record, query.temperature, query.number, self._limits)

    def answer(self, queries: Sequence[Query]) -> Iterator[tuple[int, Answer]]:
        """(number of the query, answer) as they come. Raises InputError, naming the row, for one without a prompt."""
        prompts = self._encode(queries)
        for number, prompt in enumerate(prompts):
            if prompt is None:
                yield number, Answer(failure=f"the prompt is longer than the {self._max_length} tokens that fit the "
                                             f"model's context beside max_new_tokens")
        fitting = [number for number, prompt in enumerate(prompts) if prompt is not None]
        if not fitting:
            return
        self._open_engine(max(len(prompts[number]) for number in fitting))
        yield from self._draw(queries, prompts, fitting)

    def _draw(self, queries: Sequence[Query], prompts: Sequence[Any],
              fitting: Sequence[int]) -> Iterator[tuple[int, Answer]]:
        requests = self._requests([queries[number] for number in fitting], [prompts[number] for number in fitting])
        waiting = dict(zip(self._engine.submit(requests), fitting, strict=True))
        growing = {number: ([], [], []) for number in fitting}
        while waiting:
            for output in self._engine.step():
                parts = growing[waiting[output.id]]
                for part, new in zip(parts, (output.tokens, output.logps, output.likeliest)):
                    part.extend(new)
                if output.finish_reason:
                    number = waiting.pop(output.id)
                    yield number, self._answer(*growing.pop(number), len(prompts[number]), output)

    def _requests(self, queries: Sequence[Query], prompts: Sequence[list[int]]) -> list[Any]:
        import jax

        from rollouts.engine import Request
        from rollouts.requests import fold_keys
        from rollouts.sampling import make_controls
        from rollouts.stops import make_ends

        limits, ends = self._limits, make_ends(self.tokenizer, self._limits.stop)
        keys = fold_keys(jax.random.key(0), [query.number for query in queries])
        cut = (limits.top_k, limits.top_p, limits.min_p)
        return [Request(prompt, limits.max_new_tokens, key, make_controls(query.temperature, *cut), ends,
                        num_likeliest=limits.num_likeliest) for query, prompt, key in zip(queries, prompts, keys)]

    def _answer(self, tokens: list[int], logps: list[float], top: list[dict[int, float]], prompt_length: int,
                output: Any) -> Answer:
        if output.finish_reason == "error":
            return Answer(failure=output.error or "the model's numbers are not finite; look at its weights")
        text = self.tokenizer.decode(tokens)
        for stop in self._limits.stop:
            text = text.split(stop)[0]
        likeliest = [[[token, logp] for token, logp in each.items()] for each in top] or None
        return Answer(text, "", output.finish_reason, tokens, logps, likeliest, (prompt_length, len(tokens)),
                      self.name)

    def _encode(self, queries: Sequence[Query]) -> list[list[int] | None]:
        from data.encode import encode_prompts

        return encode_prompts(_Prompts(queries), self.tokenizer, vocab_size=self._opened.config.vocab_size,
                              max_length=self._max_length, drop_long=True)

    def _load(self) -> None:
        """The weights, once."""
        if self._weights is not None:
            return
        from data.encode import check_ends
        from sharding.fastest_dtype import default_dtype
        from sharding.mesh import MeshConfig, make_layout
        from training.checksums import checksums

        check_ends(self.tokenizer, self._opened.config.vocab_size)
        self._layout = make_layout(MeshConfig())
        self._model, self._variables = self._opened.load(self._layout, dtype=default_dtype(),
                                                         param_dtype=default_dtype())
        self._weights = digest(checksums(self._variables))

    def _open_engine(self, longest: int) -> None:
        """One that fits prompts of so many tokens; another only where the last one does not."""
        from rollouts.engine import make_engine

        if longest <= self._longest:
            self._engine.forget()
            return
        self._longest = min(2 * longest, self._max_length)
        self._engine = make_engine(self._model, self._num_slots, self._longest + self._limits.max_new_tokens,
                                   self._layout)
        self._engine.load(self._variables)


class _Prompts:
    """Asks as a source of prompts."""

    def __init__(self, queries: Sequence[Query]):
        self._queries = queries

    def __len__(self) -> int:
        return len(self._queries)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._queries[index].record

    def place(self, index: int) -> str:
        return self._queries[index].place

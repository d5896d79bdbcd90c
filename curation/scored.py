"""Filters by numbers that a model or a reward gives a row: quality, perplexity, how much a prompt helps its answer."""

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from batch import Row as TokenRow
from curation.spool import spooling
from curation.stages import Drop, Row, Stage
from data.messages import read_messages
from data.records import normalise
from errors import InputError

BATCHES = 32
"""batches that are sorted by length together"""
Scores = list[float | str]
"""of each row a number, or why it has none"""


def quality(*, rewards: str, min_score: float | None = None, max_score: float | None = None, note: str = "quality",
            batch_size: int = 256, timeout: float = 600.0) -> Stage:
    """Drops rows whose answer a reward model or any scorer gives less than `min_score` or more than `max_score`.

    `rewards` are those of online RL, by name: `model:PATH_OR_ID` for a reward model, `judge:URL`,
    `package.module:function`; several add up by their weights. An answer is a completion, or the last message; a text
    has an empty prompt. `note` is what the number is called in the rows' notes. A row without a verdict is dropped.
    """
    from rewards.registry import load_rewards

    if not timeout > 0:
        raise InputError(f"timeout is {timeout:g}; it takes seconds, more than 0")
    loaded = load_rewards(rewards)

    def score(rows: Sequence[Row]) -> Scores:
        from rewards.scoring import compute_rewards

        prompts, completions, columns = _for_rewards(rows)
        scored = compute_rewards(loaded, prompts, completions, columns, timeout)
        failed = {failure.row: f"{failure.reward} failed: {failure.error}" for failure in scored.failures}
        return [failed.get(number, "no verdict") if total is None else total
                for number, total in enumerate(scored.totals)]

    return _scoring(score, note, min_score, max_score, batch_size)


def perplexity(*, model: str, min_perplexity: float | None = None, max_perplexity: float | None = None,
               batch_size: int = 8) -> Stage:
    """Drops rows of which the model's perplexity is below or above: exp(mean over the targets t of -log p(t | what
    stands before it)); targets are what fine-tuning would train on. The note `perplexity` has the number."""
    score_tokens = TokenScorer(model, batch_size)

    def score(rows: Sequence[Row]) -> Scores:
        encoded = [_encode(row, score_tokens) for row in rows]
        logps = iter(score_tokens([each for each in encoded if not isinstance(each, str)]))
        return [each if isinstance(each, str) else float(np.exp(_loss(each, next(logps)))) for each in encoded]

    return _scoring(score, "perplexity", min_perplexity, max_perplexity, BATCHES * batch_size)


def instruction_difficulty(*, model: str, min_difficulty: float | None = None, max_difficulty: float | None = 1.0,
                           batch_size: int = 8) -> Stage:
    """Drops rows by how much the prompt helps the model to the answer: perplexity(answer | prompt) /
    perplexity(answer), near 0 where the prompt says it all and above 1 where it misleads (Li et al. 2024,
    Superfiltering, arXiv:2402.00530).

    Both are taken over the same tokens, the answer's but its first, which nothing predicts where it stands alone; of a
    conversation all answers are put together. The note `instruction_difficulty` has the number.
    """
    score_tokens = TokenScorer(model, batch_size)

    def score(rows: Sequence[Row]) -> Scores:
        encoded = [_encode(row, score_tokens) for row in rows]
        pairs = [(each, _answer(each)) for each in encoded if not isinstance(each, str) and _answer_length(each) > 1]
        logps = score_tokens([row for pair in pairs for row in pair])
        ratios = iter([float(np.exp(_loss(_without_first(row), with_prompt) - _loss(answer, alone))) for
                       (row, answer), with_prompt, alone in zip(pairs, logps[::2], logps[1::2])])
        return [each if isinstance(each, str) else next(ratios) if _answer_length(each) > 1
                else "its answer is a single token" for each in encoded]

    return _scoring(score, "instruction_difficulty", min_difficulty, max_difficulty, BATCHES * batch_size)


def quantiles(*, by: str, drop_lowest: float = 0.0, drop_highest: float = 0.0) -> Stage:
    """Drops these shares of the rows, those with the lowest and highest numbers `by` a note or column; of equal numbers
    those that come later."""
    if not (0 <= drop_lowest <= 1 and 0 <= drop_highest <= 1 and 0 < drop_lowest + drop_highest < 1):
        raise InputError(f"drop_lowest {drop_lowest} and drop_highest {drop_highest} are shares that leave some rows "
                         f"and drop some")

    def stage(rows: Iterable[Row]) -> Iterator[Row | Drop]:
        with spooling(rows, by) as (spool, _):
            count = sum(1 for _ in spool.read())
            order = spool.best_first()
            highest = set(order[: int(count * drop_highest)].tolist())
            lowest = set(order[count - int(count * drop_lowest) :].tolist())
            for number, row in enumerate(spool):
                where = "lowest" if number in lowest else "highest" if number in highest else None
                yield row if where is None else Drop(row, f"{by} {spool.preference(number):g}, among the {where}")

    return stage


# ---------------------------------------------------------------------------------------------------- what they share


def _scoring(score: Callable[[Sequence[Row]], Scores], note: str, lowest: float | None, highest: float | None,
             block_size: int) -> Stage:
    """The stage that notes a number and drops rows whose number is out of bounds, or that have none. Raises InputError
    for bounds that leave none, and for blocks of no rows."""
    if block_size < 1 or (lowest is not None and highest is not None and lowest > highest):
        raise InputError(f"{note} from {lowest:g} to {highest:g} leaves no row; give them in order" if block_size >= 1
                         else "batch_size takes 1 or more")

    def decide(row: Row, value: float | str) -> Row | Drop:
        if isinstance(value, str):
            return Drop(row, f"{note}: {value}")
        row.notes[note] = value
        if lowest is not None and value < lowest:
            return Drop(row, f"{note} {value:.4g} is below {lowest:g}")
        return Drop(row, f"{note} {value:.4g} is above {highest:g}") if highest is not None and value > highest else row

    def stage(rows: Iterable[Row]) -> Iterator[Row | Drop]:
        rows = iter(rows)
        while block := list(itertools.islice(rows, block_size)):
            yield from itertools.starmap(decide, zip(block, score(block)))

    return stage


def _for_rewards(rows: Sequence[Row]) -> tuple[list[Any], list[Any], dict[str, list[Any]]]:
    """Prompts, completions and the other columns as reward functions take them."""
    pairs = [_prompt_and_answer(row) for row in rows]
    own = ("prompt", "completion", "messages", "conversations", "text")
    names = dict.fromkeys(name for row in rows for name in row.record if name not in own)
    columns = {name: [row.record.get(name) for row in rows] for name in names}
    return [prompt for prompt, _ in pairs], [answer for _, answer in pairs], columns | {
        "completion_ids": [row.notes.get("completion_ids") for row in rows]}


def _prompt_and_answer(row: Row) -> tuple[Any, Any]:
    """In one form, strings or messages. Raises InputError for a row without an answer."""
    record = normalise(row.record)
    if "messages" in record:
        messages = read_messages(record["messages"])
        return messages[:-1], messages[-1:]
    if "completion" in record and "prompt" in record:
        prompt, answer = record["prompt"], record["completion"]
        as_message = isinstance(prompt, list) and isinstance(answer, str)
        return prompt, [{"role": "assistant", "content": answer}] if as_message else answer
    if isinstance(record.get("text"), str):
        return "", record["text"]
    raise InputError(f"{row.source} row {row.index}: no answer to score among {', '.join(sorted(record))}; it needs "
                     f"prompt and completion, messages, or text")


class TokenScorer:
    """log p of every token of rows of tokens, by a model that is loaded when it is first asked."""

    def __init__(self, reference: str, batch_size: int):
        from data.tokenizer import open_tokenizer
        from training.runs import open_policy

        self._opened, self._batch_size = open_policy(reference), batch_size
        self.config, self.tokenizer = self._opened.config, open_tokenizer(self._opened.tokenizer)

    @functools.cached_property
    def _score(self) -> Callable[[Sequence[TokenRow]], list[Any]]:
        from batch import ladder
        from models.scoring import score
        from sharding.fastest_dtype import default_dtype
        from sharding.mesh import MeshConfig, make_layout
        from training.evaluation import make_row_scorer

        layout = make_layout(MeshConfig())
        model, variables = self._opened.load(layout, dtype=default_dtype(), param_dtype=default_dtype())
        scorer = make_row_scorer(model, self._batch_size, layout, score, ladder(self.config.max_length))
        return functools.partial(scorer, variables)

    def __call__(self, rows: Sequence[TokenRow]) -> list[np.ndarray]:
        return [scores.logps for scores in self._score(rows)] if rows else []


def _encode(row: Row, scorer: TokenScorer) -> TokenRow | str:
    """The row as fine-tuning would have it, or why it cannot be."""
    from data.encode import encode_record

    try:
        encoded = encode_record(row.record, scorer.tokenizer, vocab_size=scorer.config.vocab_size, training=True)
    except InputError as error:
        return str(error)
    longest = scorer.config.max_length
    return encoded if len(encoded.tokens) <= longest else (
        f"{len(encoded.tokens)} tokens, more than the model's context of {longest}")


def _loss(row: TokenRow, logps: np.ndarray) -> float:
    """Nats a target."""
    return -float(np.sum(row.loss_mask * logps, dtype=np.float64) / np.sum(row.loss_mask, dtype=np.float64))


def _answer_length(row: TokenRow) -> int:
    return int(np.count_nonzero(row.loss_mask))


def _answer(row: TokenRow) -> TokenRow:
    """The targets alone."""
    tokens = row.tokens[row.loss_mask > 0]
    return TokenRow(tokens, (np.arange(len(tokens)) > 0).astype(np.float32))


def _without_first(row: TokenRow) -> TokenRow:
    """The row without its first target's mask."""
    mask = (row.loss_mask > 0).astype(np.float32)
    mask[np.argmax(mask)] = 0.0
    return row._replace(loss_mask=mask)

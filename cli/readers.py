"""Models that read the tokens of another, the policy: critics and references."""

from collections.abc import Mapping
from typing import Any

from errors import InputError


def check_reader(where: str, reader: Any, policy: Any, tokenizer: Any, longest: int, remedy: str) -> None:
    """Raises InputError for an opened model that takes tokens of the policy, whose tokenizer is `tokenizer`, for
    others, has no embedding for some, or a context shorter than the `longest` row, which the `remedy` would shorten.

    Where the policy has no tokenizer, rows come as tokens, and only their number can be compared.
    """
    if tokenizer is not None and reader.tokenizer != policy.tokenizer:
        _check_tokenizer(where, reader, tokenizer)
    if reader.config.vocab_size < policy.config.vocab_size:
        raise InputError(f"{where}: it has embeddings for {reader.config.vocab_size} tokens, and the policy may write "
                         f"{policy.config.vocab_size}, those beyond the tokenizer's, too; give a model with as many")
    if reader.config.max_length < longest:
        raise InputError(f"{where}: its context of {reader.config.max_length} tokens is shorter than the longest row, "
                         f"{longest}; {remedy}, or give another model")


def _check_tokenizer(where: str, reader: Any, tokenizer: Any) -> None:
    from data.same_tokens import difference
    from data.tokenizer import open_tokenizer

    own = open_tokenizer(reader.tokenizer)
    found = "it has none" if own is None else difference(tokenizer, own)
    if found:
        raise InputError(f"{where}: its tokenizer is not that of the policy: {found}; give a model of the same family")


def check_reference_flags(objective: Any, flags: Mapping[str, Any]) -> None:
    """Raises InputError for flags of a reference that were given and that the objective does not look at."""
    from training.reference import needs_reference

    given = [name for name, value in flags.items() if value]
    if given and not needs_reference(objective):
        raise InputError(f"--{given[0]}: nothing reads it, for the objective reads no ref_logps; leave it out")


def longest_row_of(rows: Any) -> tuple[int, str]:
    """(tokens of the longest row that is trained on or held out, what would shorten it)."""
    from batch import longest_row

    trained, held_out = rows.streams.length, longest_row(rows.eval_rows)
    return (trained, "lower --max-length") if trained >= held_out else (
        held_out, "leave longer rows out of --eval-data")


def open_reference_of(flags: Any, policy: Any, tokenizer: Any, longest: int, remedy: str) -> Any:
    """--reference, opened, its weights not read yet; None where none is named. Raises InputError as check_reader does,
    and for a reward model."""
    from training.runs import open_policy

    if flags.reference is None:
        return None
    opened = open_policy(flags.reference)
    check_reader(f"--reference {flags.reference}", opened, policy, tokenizer, longest, remedy)
    return opened

"""Contamination: rows that hold what an evaluation asks, word for word."""

import functools
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import xxhash

from curation.filters import dropping
from curation.stages import Row, Stage, by_row
from curation.words import hash_ngrams, ngram_ends, num_words, strings, words
from data.sources import file_ids, open_source, parse_source
from errors import InputError

LONG_RUN = 13
"""words in a row that nobody shares by chance (Brown et al. 2020, appendix C)"""
MIN_WORDS = 4
"""words and operators of a string that is compared as a whole: fewer ("42", "New York") are in rows by chance"""
WORDS_SHOWN = 30


class EvalRow(NamedTuple):
    """A string of a row of an evaluation."""

    evaluation: str
    row: int
    num_ngrams: int
    """distinct ones that are no form; 0 of a string that is compared as a whole"""


class Index(NamedTuple):
    """Strings of evaluations, and which of them have a hash of an n-gram, or of a string as a whole."""

    strings: list[EvalRow]
    owners: dict[int, list[int]]


@by_row
def contamination(*, against: tuple[str, ...], ngram: int = 8, min_share: float = 0.3, max_items: int = 10) -> Stage:
    """Drops rows that have `min_share` of the `ngram` words in a row of any string of an evaluation, or 13 words in a
    row; without regard to case and punctuation. `min_share: 0` drops for any one n-gram (of GSM8K's own rows, one in
    eight for 8 words).

    An n-gram that stands in more than `max_items` strings of an evaluation is its form ("write a function to find the")
    and none of its questions. Strings of a row of an evaluation that has no others, or too few words, count where a
    string of the data is the same as a whole. What is paraphrased or translated has other words and is not found.
    Raises InputError for an evaluation that is the data.
    """
    if not against or ngram < 1:
        raise InputError("against is a list of evaluations, and ngram is 1 or more; give both")
    if not 0 <= min_share <= 1 or max_items < 1:
        raise InputError(f"min_share {min_share:g} is no share from 0 to 1, or max_items {max_items} is below 1")
    index = _read(against, ngram, max_items)

    def problem(row: Row) -> str | None:
        _check_apart(row, against)
        found = (_find(text, index, ngram, min_share) for text in strings(row.record))
        return next(filter(None, found), None)

    return dropping(problem)


def _read(names: Sequence[str], ngram: int, max_items: int) -> Index:
    index = Index([], defaultdict(list))
    for name in names:
        first, source = len(index.strings), open_source(parse_source(name))
        texts = [(row, text) for row in range(len(source)) for text in strings(source[row])]
        hashes = [set(_hash_distinct(text, ngram)) for _, text in texts]
        common = {each for each, count in Counter(each for own in hashes for each in own).items() if count > max_items}
        known = {row for (row, _), own in zip(texts, hashes) if own - common}
        for number, ((row, text), own) in enumerate(zip(texts, hashes), first):
            index.strings.append(EvalRow(name, row, len(own - common)))
            whole = {_hash_whole(text)} - {None} if row not in known else set()
            for key in own - common or whole:
                index.owners[key].append(number)
    return Index(index.strings, dict(index.owners))


def _hash_distinct(text: str, ngram: int) -> list[int]:
    """Of a string's n-grams; none of a string of fewer words."""
    found = words(text)
    return hash_ngrams(found, ngram).tolist() if num_words(found) >= ngram else []


def _hash_whole(text: str) -> int | None:
    """Of a string as a whole, operators and all; None where it has too few words to be known by."""
    found = words(text, operators=True)
    return xxhash.xxh3_64_intdigest("\0".join(found).encode("utf-8", "surrogatepass")) \
        if num_words(found) >= MIN_WORDS else None


def _find(text: str, index: Index, ngram: int, min_share: float) -> str | None:
    """What a string shares with an evaluation and with which row, as a reason; None for too little."""
    whole = index.owners.get(_hash_whole(text), [])
    if whole:
        return _tell(index.strings[whole[0]], words(text, operators=True), "all")
    hashes = _hash_distinct(text, ngram)
    counts = Counter(owner for each in set(hashes) for owner in index.owners.get(each, ()))
    if not counts:
        return None
    found = words(text)
    ends = ngram_ends(found, ngram)
    shared = {owner: found[run.start : ends[run.start + run.length - 1]]
              for owner, run in _longest_runs(hashes, index.owners).items()}
    share = {owner: count / index.strings[owner].num_ngrams for owner, count in counts.items()}
    owner = max(counts, key=lambda owner: (num_words(shared[owner]) >= LONG_RUN, share[owner]))
    if share[owner] < min_share and num_words(shared[owner]) < LONG_RUN:
        return None
    return _tell(index.strings[owner], shared[owner], f"{share[owner]:.0%}")


class Run(NamedTuple):
    """n-grams one after the other."""

    length: int
    start: int


def _longest_runs(hashes: Sequence[int], owners: dict[int, list[int]]) -> dict[int, Run]:
    """Of the n-grams of a text, the longest run that a string has too, by string."""
    longest: dict[int, Run] = {}
    current: dict[int, Run] = {}
    for place, each in enumerate(hashes):
        current = {owner: Run(current[owner].length + 1, current[owner].start) if owner in current else Run(1, place)
                   for owner in owners.get(each, ())}
        longest |= {owner: run for owner, run in current.items() if run.length > longest.get(owner, run).length
                    or owner not in longest}
    return longest


def _tell(eval_row: EvalRow, shared: list[str], share: str) -> str:
    more = " ..." if len(shared) > WORDS_SHOWN else ""
    return f"{eval_row.evaluation} row {eval_row.row}, {share} of a text: {' '.join(shared[:WORDS_SHOWN])}{more}"


def _check_apart(row: Row, names: Sequence[str]) -> None:
    for name in names:
        if _is_same(row.source, name):
            raise InputError(f"contamination against {name}: it is the data itself, and would drop all of it; give "
                             f"the evaluation's own file")


@functools.lru_cache(1024)
def _is_same(source: str, name: str) -> bool:
    """Whether two names are of the same data, or have a file in common."""
    other = parse_source(name).source
    return source == other or bool(file_ids(source).keys() & file_ids(other).keys())

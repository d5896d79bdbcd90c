"""Duplicates: rows of the same text, and rows that share most of their n-grams of words.

Nothing is chained. Rows are taken best first; one is dropped only if a row that is kept is its duplicate itself, and
that row is named. So A ~ B ~ C with A unlike C keeps A and C, and however many rows are alike in a row, a source loses
none that has no near copy among what is kept (transitive closure has cut a source from 859,092 rows to 2).
"""

import collections
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import xxhash

from curation.runners import Spread
from curation.sketches import Buckets, Ngrams, Sketching, blocks_of, find_buckets, writing_sketches
from curation.spool import Spool, spooling
from curation.stages import Drop, Row, Stage
from curation.words import jaccard, normalised, text_of_row
from errors import InputError

ROWS_AT_A_TIME = 4096
MAX_COMPARED = 64
"""kept rows that a row is compared with: those that share the most bands with it"""


def exact_duplicates(*, columns: tuple[str, ...] = (), prefer: str | None = None) -> Stage:
    """Drops rows whose text is that of another, without regard to case, white space and Unicode form.

    `columns` compares these alone; `prefer` names the note or column whose highest number is kept, by default the
    first row is. Memory: 40 bytes a row.
    """

    def stage(rows: Iterable[Row]) -> Iterator[Row | Drop]:
        with spooling(rows, prefer) as (spool, _):
            digests = np.fromiter((_digest(text_of_row(row, columns)) for row in spool.read()), DIGEST)
            kept_by = _best_of_equals(digests, spool.best_first())
            yield from _decide(spool, kept_by, lambda number: "the same text")

    return stage


def near_duplicates(*, threshold: float = 0.8, ngram: int = 5, num_hashes: int = 128, columns: tuple[str, ...] = (),
                    prefer: str | None = None, spread: Spread | None = None) -> Stage:
    """Drops rows of which a kept row has a Jaccard similarity of at least `threshold`: n-grams of words that both have
    / that either has. Operators count as words.

    Candidates come from MinHash-LSH (Broder 1997; Leskovec et al., Mining of Massive Datasets, 3.4): `num_hashes`
    hashes in bands that find a pair at the threshold with 99 %; the similarity of each is then computed from the
    n-grams themselves. `columns` and `prefer` as in exact_duplicates. Memory: about 200 bytes a row, the rest on disk.
    """
    if not 0 < threshold <= 1:
        raise InputError(f"threshold {threshold} is no similarity above 0 and up to 1")
    if ngram < 1 or num_hashes < 1:
        raise InputError(f"ngram {ngram} and num_hashes {num_hashes} must be 1 or more")

    def stage(rows: Iterable[Row]) -> Iterator[Row | Drop]:
        sketching = Sketching(rows, ROWS_AT_A_TIME, columns, ngram, num_hashes, rows_per_band(threshold, num_hashes))
        with spooling(rows, prefer) as (spool, path):
            if spread is None or not isinstance(rows, Sequence):
                blocks = map(sketching.sketch, blocks_of(spool.read(), ROWS_AT_A_TIME))
            else:
                collections.deque(spool.read(), 0)  # to see where each row stands
                blocks = spread(sketching, -(-len(rows) // ROWS_AT_A_TIME))
            with writing_sketches(blocks, sketching.num_bands, path) as (ngrams, bands):
                buckets = find_buckets(bands, len(spool))
                kept_by, similarity = _lead(ngrams, buckets, spool.best_first(), threshold)
            yield from _decide(spool, kept_by, lambda number: f"shares {similarity[number]:.2f} of its {ngram}-grams")

    return stage


def rows_per_band(threshold: float, num_hashes: int) -> int:
    """The most hashes r a band such that b = num_hashes / r bands find a pair of this similarity with probability
    1 - (1 - threshold^r)^b >= 0.99; 1 if none does."""
    return max((r for r in range(1, num_hashes + 1) if 1 - (1 - threshold**r) ** (num_hashes // r) >= 0.99), default=1)


DIGEST = np.dtype([("high", np.uint64), ("low", np.uint64)])


def _digest(text: str) -> tuple[int, int]:
    return divmod(xxhash.xxh3_128_intdigest(normalised(text).encode("utf-8", "surrogatepass")), 2**64)


def _best_of_equals(digests: np.ndarray, best_first: np.ndarray) -> np.ndarray:
    """For each row the number of the row that is kept instead, int64 [N]; -1 for one that is kept."""
    _, first, group = np.unique(digests[best_first], return_index=True, return_inverse=True)
    kept_by = np.empty(len(digests), np.int64)
    kept_by[best_first] = best_first[first[group]]
    return np.where(kept_by == np.arange(len(digests)), -1, kept_by)


def _decide(spool: Spool, kept_by: np.ndarray, reason: Callable[[int], str]) -> Iterator[Row | Drop]:
    for number, row in enumerate(spool):
        leader = int(kept_by[number])
        yield row if leader < 0 else Drop(row, reason(number), spool.place(leader))


def _lead(ngrams: Ngrams, buckets: Buckets, best_first: np.ndarray, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """For each row the number of the row that is kept instead (-1: it is kept itself), and their similarity.

    Rows are taken best first. One that is no near duplicate of a row kept so far is kept, and leads from then on: it
    stands first in a chain through each of its buckets (`newest`, `older`), which later rows walk.
    """
    members = buckets.members
    kept_by, similarity = np.full(len(best_first), -1, np.int64), np.zeros(len(best_first), np.float32)
    newest, older = np.full(buckets.count, -1, np.int32), np.full(buckets.numbers.shape, -1, np.int32)
    ranks = np.empty(len(best_first), np.int32)
    ranks[best_first] = np.arange(len(best_first))
    for place in np.argsort(ranks[members]).tolist():
        shared = [(band, bucket) for band, bucket in enumerate(buckets.numbers[place].tolist()) if bucket >= 0]
        own, leaders = ngrams.of(members[place]), _candidates(shared, newest, older)
        similarities = [jaccard(own, ngrams.of(members[leader])) for leader in leaders]
        nearest = int(np.argmax(similarities)) if similarities else None
        if nearest is not None and similarities[nearest] >= threshold:
            kept_by[members[place]], similarity[members[place]] = members[leaders[nearest]], similarities[nearest]
            continue
        for band, bucket in shared:
            older[place, band], newest[bucket] = newest[bucket], place
    return kept_by, similarity


def _candidates(shared: Sequence[tuple[int, int]], newest: np.ndarray, older: np.ndarray) -> list[int]:
    """The MAX_COMPARED leaders that share the most (band, bucket) pairs, of so many newest ones in each bucket."""
    counts: Counter[int] = Counter()
    for band, bucket in shared:
        leader = int(newest[bucket])
        for _ in range(MAX_COMPARED):
            if leader < 0:
                break
            counts[leader] += 1
            leader = int(older[leader, band])
    return [leader for leader, _ in counts.most_common(MAX_COMPARED)]

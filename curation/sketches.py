"""Sketches of texts for near duplicates: n-grams and the bands of their MinHash signatures, kept on disk.

Two texts that share a band share a bucket of it; only rows that share one with another are looked at again.
"""

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from curation.runners import nth_range
from curation.stages import Row
from curation.words import ngram_set, odd_numbers, text_of_row
from files import writing


class Sketching(NamedTuple):
    """The n-grams and hashed bands of the n-th `size` rows, as bytes of uint64."""

    rows: Iterable[Row]
    size: int
    columns: tuple[str, ...]
    ngram: int
    num_hashes: int
    rows_in_band: int

    @property
    def num_bands(self) -> int:
        return self.num_hashes // self.rows_in_band

    def __call__(self, number: int) -> bytes:
        return self.sketch([self.rows[each] for each in nth_range(number, self.size, len(self.rows))])

    def sketch(self, rows: Sequence[Row]) -> bytes:
        """How many rows; how many n-grams each has; the n-grams; the bands [rows, bands], 0 of a row without words."""
        sets = [ngram_set(text_of_row(row, self.columns), self.ngram) for row in rows]
        sizes, flat = np.array([len(each) for each in sets], np.uint64), np.concatenate(sets)
        bands = self._hash_bands(flat, sizes)
        return np.concatenate([np.array([len(rows)], np.uint64), sizes, flat, bands.ravel()]).tobytes()

    def _hash_bands(self, flat: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        """MinHash signatures of the sets, each band of them hashed to one uint64."""
        import rensa

        offsets = np.concatenate([np.zeros(1, np.uint64), np.cumsum(sizes, dtype=np.uint64)])
        signatures = np.array(rensa.RMinHash.digest_matrix_from_flat_token_hashes(
            flat, offsets, self.num_hashes, 0).to_rows(), np.uint64)
        banded = signatures[:, : self.num_bands * self.rows_in_band].reshape(len(sizes), self.num_bands, -1)
        hashes = np.sum(banded * odd_numbers(self.rows_in_band), axis=2, dtype=np.uint64)  # modulo 2^64
        return np.where(sizes[:, None] > 0, hashes | np.uint64(1), np.uint64(0))


class Ngrams(NamedTuple):
    """The n-grams of all rows, one row's after the other's, in a file of uint64."""

    file: BinaryIO
    ends: np.ndarray
    """[N + 1], where each row's end, the first one's beginning before them"""

    def of(self, number: int) -> np.ndarray:
        first, end = self.ends[number : number + 2].tolist()
        self.file.seek(8 * first)
        return np.frombuffer(self.file.read(8 * (end - first)), np.uint64)


class Sketches(NamedTuple):
    """Of all rows: n-grams, and a file for each band with a hash of every row."""

    ngrams: Ngrams
    bands: list[Path]


@contextlib.contextmanager
def writing_sketches(blocks: Iterable[bytes], num_bands: int, path: Callable[[str], Path]) -> Iterator[Sketches]:
    """What Sketching gives for ranges of rows, in files."""
    ends, bands = [np.zeros(1, np.int64)], [path(f"band-{band}") for band in range(num_bands)]
    with contextlib.ExitStack() as stack:
        ngrams = stack.enter_context(path("ngrams").open("wb"))
        files = [stack.enter_context(band.open("wb")) for band in bands]
        for block in blocks:
            found = np.frombuffer(block, np.uint64)
            count = int(found[0])
            ends.append(ends[-1][-1] + np.cumsum(found[1 : 1 + count]).astype(np.int64))
            with writing(path("ngrams")):
                found[1 + count : len(found) - count * num_bands].tofile(ngrams)
                for hashes, file in zip(found[len(found) - count * num_bands :].reshape(count, num_bands).T, files):
                    hashes.tofile(file)
    with path("ngrams").open("rb") as file:
        yield Sketches(Ngrams(file, np.concatenate(ends)), bands)


class Buckets(NamedTuple):
    """Rows that share a band with others, and where."""

    members: np.ndarray
    """numbers of these rows, int64 [M], in order"""
    numbers: np.ndarray
    """the bucket of each in each band, int32 [M, bands]; -1 where it is alone"""
    count: int


def find_buckets(bands: Sequence[Path], num_rows: int) -> Buckets:
    """The grouping by bands, one band after the other."""
    found, used, shared = [], 0, np.zeros(num_rows, bool)
    for path in bands:
        hashes = np.fromfile(path, np.uint64)
        _, group, size = np.unique(hashes, return_inverse=True, return_counts=True)
        rows = np.flatnonzero((size > 1)[group] & (hashes != 0)).astype(np.int32)
        _, numbers = np.unique(group[rows], return_inverse=True)
        found.append((rows, (numbers + used).astype(np.int32)))
        used += int(numbers.max(initial=-1)) + 1
        shared[rows] = True
    place = np.cumsum(shared, dtype=np.int32) - 1
    table = np.full((np.count_nonzero(shared), len(bands)), -1, np.int32)
    for band, (rows, numbers) in enumerate(found):
        table[place[rows], band] = numbers
    return Buckets(np.flatnonzero(shared), table, used)


def blocks_of(rows: Iterator[Row], size: int) -> Iterator[list[Row]]:
    """So many rows at a time."""
    while block := list(itertools.islice(rows, size)):
        yield block

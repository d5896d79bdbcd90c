"""Diversity: rows that mean the same, and choices that spread over all that the rows mean."""

from collections.abc import Callable, Iterable, Iterator

import numpy as np

from curation.embeddings import embed, make_encoder
from curation.spool import Spool, spooling
from curation.stages import Drop, Row, Stage
from curation.words import text_of_row
from errors import InputError

ROUNDS = 20
"""of Lloyd's algorithm at most"""
SEEDS = 32
AT_ONCE = 4096


def semantic_duplicates(*, model: str | None = None, encoder: str | None = None, threshold: float = 0.95,
                        cluster_size: int = 1000, max_tokens: int = 512, columns: tuple[str, ...] = (),
                        prefer: str | None = None) -> Stage:
    """Drops rows whose embedding has a cosine of `threshold` or more with that of a row that is kept.

    As with near duplicates nothing is chained: rows are taken best first, and the row kept instead is named. They are
    compared within clusters of about `cluster_size` (Abbas et al. 2023, SemDeDup, arXiv:2303.09540), so two rows on
    either side of a cluster's border are both kept.
    """
    if not 0 < threshold <= 1:
        raise InputError(f"threshold {threshold} is no cosine above 0 and up to 1")
    if cluster_size < 1:
        raise InputError(f"cluster_size is {cluster_size}; it takes 1 or more")

    def choose(vectors: np.ndarray, best_first: np.ndarray) -> Choice:
        clusters = k_means(vectors, max(1, round(len(vectors) / cluster_size)))
        kept_by, cosine = np.full(len(vectors), -1, np.int64), np.zeros(len(vectors), np.float32)
        for cluster in range(int(clusters.max(initial=-1)) + 1):
            _lead(vectors, best_first[clusters[best_first] == cluster], threshold, kept_by, cosine)
        return lambda number: None if kept_by[number] < 0 else (
            f"cosine {cosine[number]:.3f}", int(kept_by[number]))

    return _embedding_stage(make_encoder(model, encoder, max_tokens), choose, columns, prefer)


def k_centre(*, keep: int, model: str | None = None, encoder: str | None = None, max_tokens: int = 512,
             columns: tuple[str, ...] = (), prefer: str | None = None) -> Stage:
    """Keeps the `keep` rows of k-centre greedy: the best row, then again and again the one that is farthest from all
    that are kept (Gonzalez 1985; Sener and Savarese 2018, arXiv:1708.00489). O(rows * keep)."""
    if keep < 1:
        raise InputError(f"keep {keep}: give the number of rows to keep")

    def choose(vectors: np.ndarray, best_first: np.ndarray) -> Choice:
        kept, nearest, distance = _greedy_centres(vectors, best_first, keep)
        return lambda number: None if number in kept else (
            f"at {distance[number]:.3f} from the nearest of {len(kept)} rows that are kept", int(nearest[number]))

    return _embedding_stage(make_encoder(model, encoder, max_tokens), choose, columns, prefer)


def cluster_balanced(*, keep: int, clusters: int = 100, model: str | None = None, encoder: str | None = None,
                     max_tokens: int = 512, columns: tuple[str, ...] = (), prefer: str | None = None) -> Stage:
    """Keeps `keep` rows, as many of each of `clusters` clusters (k-means) as there are, up to the same number: small
    ones whole, large ones cut. Of a cluster the best are kept, or without `prefer` those nearest its centre."""
    if keep < 1 or clusters < 1:
        raise InputError(f"keep {keep} and clusters {clusters}: give numbers of 1 or more")

    def choose(vectors: np.ndarray, best_first: np.ndarray) -> Choice:
        labels = k_means(vectors, clusters)
        quotas = level(np.bincount(labels), keep)
        order = best_first if prefer else best_first[np.argsort(-_centrality(vectors, labels)[best_first],
                                                                kind="stable")]
        rank = np.empty(len(vectors), np.int64)
        for cluster in range(len(quotas)):
            members = order[labels[order] == cluster]
            rank[members] = np.arange(len(members))
        return lambda number: None if rank[number] < quotas[labels[number]] else (
            f"number {rank[number] + 1} of cluster {labels[number]}, of which {quotas[labels[number]]} are kept", None)

    return _embedding_stage(make_encoder(model, encoder, max_tokens), choose, columns, prefer)


Choice = Callable[[int], tuple[str, int | None] | None]
"""number of a row -> None where it is kept, else why not and which row instead, if one"""


def _embedding_stage(encoder: Callable, choose: Callable[[np.ndarray, np.ndarray], Choice], columns: tuple[str, ...],
                     prefer: str | None) -> Stage:
    """The stage that embeds all rows; `choose` then looks at the vectors and at the rows' numbers best first."""

    def stage(rows: Iterable[Row]) -> Iterator[Row | Drop]:
        with spooling(rows, prefer) as (spool, path):
            vectors = embed((text_of_row(row, columns) for row in spool.read()), encoder, path("vectors"))
            yield from _decide(spool, choose(vectors, spool.best_first()))

    return stage


def _decide(spool: Spool, choice: Choice) -> Iterator[Row | Drop]:
    for number, row in enumerate(spool):
        found = choice(number)
        if found is None:
            yield row
        else:
            reason, instead = found
            yield Drop(row, reason, None if instead is None else spool.place(instead))


def _lead(vectors: np.ndarray, members: np.ndarray, threshold: float, kept_by: np.ndarray, cosine: np.ndarray) -> None:
    """Writes for each of the members, best first, which of those kept before it is nearest and near enough."""
    kept = np.empty((len(members), vectors.shape[1]), np.float32)
    numbers: list[int] = []
    for number in members:
        similarities = kept[: len(numbers)] @ vectors[number]
        nearest = int(np.argmax(similarities)) if numbers else -1
        if numbers and similarities[nearest] >= threshold:
            kept_by[number], cosine[number] = numbers[nearest], similarities[nearest]
        else:
            kept[len(numbers)] = vectors[number]
            numbers.append(int(number))


def _greedy_centres(vectors: np.ndarray, best_first: np.ndarray,
                    keep: int) -> tuple[set[int], np.ndarray, np.ndarray]:
    """(numbers kept; for each row the nearest of them, and how far it is: the Euclidean distance of unit vectors)."""
    nearest, distance = np.full(len(vectors), -1), np.full(len(vectors), np.inf)
    kept: list[int] = []
    while len(kept) < min(keep, len(vectors)):
        # equals, as at first all are, by rank
        new = int(best_first[np.argmax(distance[best_first])])
        kept.append(new)
        to_new = np.sqrt(np.maximum(0.0, 2 - 2 * (vectors @ vectors[new])))
        nearest[to_new < distance], distance = new, np.minimum(distance, to_new)
        distance[new] = -1.0
    return set(kept), nearest, distance


def level(sizes: np.ndarray, keep: int) -> np.ndarray:
    """How many of each cluster are kept: min(size, a common number), the rest one each from the first ones on; `keep`
    in all, or all where there are fewer."""
    low, high = 0, int(sizes.max(initial=0))
    while low < high:  # the largest common number that keeps no more than `keep`
        middle = (low + high + 1) // 2
        low, high = (middle, high) if np.minimum(sizes, middle).sum() <= keep else (low, middle - 1)
    quotas = np.minimum(sizes, low)
    larger = np.flatnonzero(sizes > low)[: max(0, keep - int(quotas.sum()))]
    quotas[larger] += 1
    return quotas


def k_means(vectors: np.ndarray, count: int) -> np.ndarray:
    """The cluster of each unit vector, int64 [N], by Lloyd's algorithm on the sphere, from rows that are far from each
    other among SEEDS for each cluster, drawn with seed 0."""
    count = min(count, len(vectors))
    if count <= 1:
        return np.zeros(len(vectors), np.int64)
    drawn = np.random.default_rng(0).choice(len(vectors), min(SEEDS * count, len(vectors)), replace=False)
    seeds = np.array(vectors[np.sort(drawn)])
    centres = seeds[sorted(_greedy_centres(seeds, np.arange(len(seeds)), count)[0])]
    labels = _assign(vectors, centres)
    for _ in range(ROUNDS):
        for cluster in range(count):
            members = np.flatnonzero(labels == cluster)
            if len(members):
                total = np.sum(vectors[members], axis=0, dtype=np.float64)
                centres[cluster] = total / max(np.linalg.norm(total), 1e-12)
        before, labels = labels, _assign(vectors, centres)
        if (labels == before).all():
            break
    return labels


def _assign(vectors: np.ndarray, centres: np.ndarray) -> np.ndarray:
    return np.concatenate([np.argmax(vectors[start : start + AT_ONCE] @ centres.T, axis=1)
                           for start in range(0, len(vectors), AT_ONCE)])


def _centrality(vectors: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Of each vector its cosine to the mean of its cluster, times that mean's length, which all of a cluster share."""
    found = np.empty(len(vectors), np.float64)
    for cluster in range(int(labels.max(initial=-1)) + 1):
        members = np.flatnonzero(labels == cluster)
        if len(members):
            found[members] = vectors[members] @ np.mean(vectors[members], axis=0, dtype=np.float64)
    return found

"""How far a result may be from the reference: what rounding alone makes of it, and no more.

A number rounded to a type of p bits errs by at most u = 2^-p of itself, by u / sqrt(3) in the root mean square. k
roundings on the way to a result are independent and add up as sqrt(k) (Higham & Mary 2019,
doi:10.1137/18M1226312), and so do the n roundings of a sum of n terms in float32. So a vector of results errs by about

    e = sqrt(k) (u / sqrt(3) + sqrt(n) 2^-24)

and of many vectors the worst may err by DEVIATIONS times as much. k is counted by hand beside each check: arrays that
are written in the type on the way to the result, and as many again for what each is multiplied with there. A wrong
mask, scale or cache entry errs by far more (docs/accelerators.md has what was tried).
"""

import math

import numpy as np

UNIT = {"bfloat16": 2**-9, "float16": 2**-12, "float32": 2**-22}
"""u; of float32 that of what is made in it: exponentials, and products in six passes of bfloat16, as TPUs make them,
err by some units in the last place of 2^-24"""

DEVIATIONS = 4.0
"""of the worst vector: one of a million is so far out, were their errors normal numbers"""


def tolerance(dtype: str, roundings: int, terms: int) -> float:
    """DEVIATIONS e, with k = `roundings` and n = `terms`."""
    return DEVIATIONS * math.sqrt(roundings) * (UNIT[dtype] / math.sqrt(3) + math.sqrt(terms) * 2**-24)


def worst_error(found: np.ndarray, expected: np.ndarray, counted: np.ndarray | None = None) -> float:
    """max over vectors of |found - expected| / max(|expected|, the root mean square of these); vectors lie along the
    last axis. `counted`, of the shape before it, leaves out what has no meaning. Infinite for what is not finite."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    if counted is not None:
        found, expected = found[counted], expected[counted]
    sizes = np.linalg.norm(expected, axis=-1)
    typical = math.sqrt(np.mean(sizes**2))
    errors = np.linalg.norm(found - expected, axis=-1) / np.maximum(np.maximum(sizes, typical), np.finfo(float).tiny)
    return float(np.max(errors)) if np.isfinite(errors).all() else math.inf

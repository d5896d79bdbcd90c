"""Work on ranges of rows, spread over processes of this machine or over a Ray cluster; what it gives comes in order."""

import collections
import functools
import logging
import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from errors import InputError

Work = Callable[[int], bytes]
"""number of a range -> what is found there; it is copied to each worker once"""
Spread = Callable[[Work, int], Iterator[bytes]]
"""(work, number of ranges) -> what it gives for each, in order"""
ROOT = Path(__file__).parents[1]


def make_spread(runner: str, processes: int) -> Spread | None:
    """None where all is done in this process. Raises InputError where Ray is not installed."""
    if runner == "ray":
        import_ray()
        return over_ray
    return functools.partial(over_processes, processes) if processes > 1 else None


def nth_range(number: int, size: int, count: int) -> range:
    """Of `count` rows the n-th `size`, the last ones fewer."""
    return range(number * size, min((number + 1) * size, count))


def over_processes(processes: int, work: Work, count: int) -> Iterator[bytes]:
    """By processes of this machine. Raises InputError where one is killed."""
    waiting = collections.deque()
    context = multiprocessing.get_context("spawn")
    try:
        with ProcessPoolExecutor(processes, context, _take, (work,)) as pool:
            for number in range(count):
                waiting.append(pool.submit(_do, number))
                if len(waiting) > 2 * processes:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
    except BrokenProcessPool:
        raise InputError(f"one of {processes} processes was killed (out of memory?); lower --processes, and give the "
                         f"same command again") from None


_taken: dict[str, Work] = {}


def _take(work: Work) -> None:
    _taken["work"] = work


def _do(number: int) -> bytes:
    return _taken["work"](number)


def over_ray(work: Work, count: int) -> Iterator[bytes]:
    """By Ray Data, an actor for each CPU of the cluster that RAY_ADDRESS names, by default this machine. An actor that
    dies is started again, and what it had is done again. Files, and this checkout, must be at the same path everywhere.
    """
    ray = import_ray()
    if not ray.is_initialized():
        _start(ray)
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order, context.enable_progress_bars = True, False
    ranges = ray.data.from_items([{"number": number} for number in range(count)], override_num_blocks=count)
    workers = max(1, min(count, int(ray.cluster_resources().get("CPU", 1))))
    done = ranges.map_batches(OnRay, fn_constructor_args=(work,), batch_size=1, concurrency=workers)
    for row in done.iter_rows():
        if row["problem"]:
            raise InputError(row["problem"])
        yield row["found"]


def _start(ray: Any) -> None:
    try:
        ray.init(logging_level=logging.ERROR, log_to_driver=False, runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}})
    except Exception as error:  # noqa: BLE001 - of a cluster that is not there, or a machine too busy, it raises any
        raise InputError(f"--runner ray: Ray does not start, or is not reached ({' '.join(str(error).split())[:200]}); "
                         f"see to RAY_ADDRESS, or take --processes") from None


class OnRay:
    """What an actor does with a batch of one range; the line of an InputError goes back as `problem`."""

    def __init__(self, work: Work):
        self._work = work

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        try:
            return {"found": [self._work(int(batch["number"][0]))], "problem": [""]}
        except InputError as error:
            return {"found": [b""], "problem": [str(error)]}


def import_ray() -> Any:
    try:
        import ray
        import ray.data
    except ImportError:
        raise InputError("--runner ray needs Ray, which is not installed; run: pip install -r requirements-curation.txt"
                         ) from None
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    return ray

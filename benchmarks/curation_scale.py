"""How fast exact and near duplicates are found among many short rows, and in how much memory.

  python -m benchmarks.curation_scale --rows 250000 1000000

Rows are made as they are read (16 to 40 words of a vocabulary of 50,000; of every ten, one is an earlier row again and
one an earlier row with its last word changed), and each size is a process of its own. Prints rows a second and the
peak of resident memory by stage and size, what a row more costs, and how many of the planted duplicates were dropped.
"""

import argparse
import json
import random
import resource
import subprocess
import sys
import time
from collections.abc import Iterator

from curation.duplicates import exact_duplicates, near_duplicates
from curation.stages import Drop, Row

STAGES = {"exact_duplicates": exact_duplicates, "near_duplicates": near_duplicates}
PLANTED = {"exact_duplicates": ("exact",), "near_duplicates": ("exact", "near")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[250_000, 1_000_000])
    parser.add_argument("--worker", nargs=2, help="a stage and a number of rows: what a process of its own does")
    arguments = parser.parse_args()
    if arguments.worker:
        print(json.dumps(measure(arguments.worker[0], int(arguments.worker[1]))))
        return
    for name in STAGES:
        found = [run_worker(name, rows) for rows in arguments.rows]
        for rows, each in zip(arguments.rows, found):
            print(f"{name}, {rows:,} rows: {rows / each['seconds']:,.0f} rows/s (making the rows {each['making']:.0f} "
                  f"of {each['seconds']:.0f} s), peak {each['peak'] / 2**20:,.0f} MiB, {each['start'] / 2**20:,.0f} of "
                  f"it before the first row; {each['dropped']:,} dropped, {each['planted']:,} planted")
        if len(found) > 1:
            growth = (found[-1]["peak"] - found[0]["peak"]) / (arguments.rows[-1] - arguments.rows[0])
            print(f"{name}: {growth:,.0f} bytes of memory a row more")


def run_worker(name: str, rows: int) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.curation_scale", "--worker", name, str(rows)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def measure(name: str, count: int) -> dict[str, float]:
    list(STAGES[name]()(make_rows(1000)))  # imports
    begin, start = peak(), time.perf_counter()
    planted = sum(row.notes["planted"] in PLANTED[name] for row in make_rows(count))
    making = time.perf_counter() - start
    start = time.perf_counter()
    dropped = sum(isinstance(each, Drop) for each in STAGES[name]()(make_rows(count)))
    return {"seconds": time.perf_counter() - start, "making": making, "peak": peak(), "start": begin,
            "dropped": dropped, "planted": planted}


def peak() -> int:
    """Bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def make_rows(count: int) -> Iterator[Row]:
    """Row i is made from i alone, so that a copy needs no memory of its original."""
    for index in range(count):
        kind = index % 10 if index >= 10 else 9
        words = make_words(index - 7 if kind < 2 else index)  # kind 0 and 1 copy rows of kinds 3 and 4
        if kind == 1:
            words[-1] = "changed"
        planted = ("exact", "near")[kind] if kind < 2 else ""
        yield Row("synthetic", index, {"text": " ".join(words)}, {"planted": planted})


def make_words(index: int) -> list[str]:
    draw = random.Random(index)
    return [f"w{int(50_000 * draw.random())}" for _ in range(draw.randrange(16, 41))]


if __name__ == "__main__":
    main()

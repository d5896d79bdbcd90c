"""How long looking for stop strings takes in one completion of the embedded model's tokens.

  python -m benchmarks.stop_strings

Prints seconds for 2,048 and 4,096 tokens: of words, and of bytes that are no characters.
"""

import random
import time
from collections.abc import Sequence
from typing import Any

from data.tokenizer import load_tokenizer
from models.pretrained import EMBEDDED, open_pretrained
from rollouts.stops import StopFinder, make_ends

STRINGS = ("\n\nQuestion:", "###", "</answer>")


def main() -> None:
    tokenizer = load_tokenizer(open_pretrained(EMBEDDED).tokenizer)
    draw = random.Random(0)
    half = next(token for token in range(300) if tokenizer.decode([token]) == "\N{REPLACEMENT CHARACTER}")
    for kind, tokens in (("words", [draw.randrange(48_000) for _ in range(4096)]), ("half characters", [half] * 4096)):
        for count in (2048, 4096):
            print(f"{kind}, {count:,} tokens: {seconds(tokenizer, tokens[:count]):.3f} s")


def seconds(tokenizer: Any, tokens: Sequence[int]) -> float:
    finder, start = StopFinder(make_ends(tokenizer, STRINGS)), time.perf_counter()
    for token in tokens:
        finder.completes(token)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()

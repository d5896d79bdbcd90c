"""Bits per byte of general compressors on a data set's texts: what a language model must be better than.

    bits per byte = 8 * compressed bytes / bytes of the texts in UTF-8

xz has liblzma's preset 9e and zstd its level 19, each on all texts as one stream, where what one file says helps with
the next, and on every file by itself, headers and checksums of the formats included.
"""

import dataclasses
import lzma
import platform
from collections.abc import Callable

from rich.console import Console
from rich.table import Table

from cli import command
from data.sources import Source, open_source, parse_source
from errors import InputError

DESCRIPTION = """Bits per byte of xz -9e and zstd -19 on the texts of a data set.

  python -m benchmarks.compressors --data tfds:python_stdlib:validation"""


@dataclasses.dataclass(frozen=True)
class Config:
    data: str = "tfds:python_stdlib:validation"
    """rows with a `text`, as --data of the scripts takes them"""


def main(config: Config) -> None:
    import pyarrow

    texts = read_texts(open_source(parse_source(config.data)))
    table = Table("bits per byte", "one stream", "each file by itself")
    for name, compress in compressors().items():
        stream, files = bits_per_byte(compress, [b"".join(texts)]), bits_per_byte(compress, texts)
        table.add_row(name, f"{stream:.3f}", f"{files:.3f}")
    console = Console()
    console.print(f"{config.data}: {len(texts):,} files, {sum(map(len, texts)):,} bytes", highlight=False)
    console.print(table)
    console.print(f"Python {platform.python_version()}, pyarrow {pyarrow.__version__}", highlight=False)


def compressors() -> dict[str, Callable[[bytes], bytes]]:
    import pyarrow

    zstd = pyarrow.Codec("zstd", compression_level=19)
    return {"xz -9e": lambda data: lzma.compress(data, preset=9 | lzma.PRESET_EXTREME),
            "zstd -19": lambda data: zstd.compress(data, asbytes=True)}


def bits_per_byte(compress: Callable[[bytes], bytes], pieces: list[bytes]) -> float:
    """8 * the pieces' compressed bytes / their bytes."""
    return 8 * sum(len(compress(piece)) for piece in pieces) / sum(map(len, pieces))


def read_texts(source: Source) -> list[bytes]:
    """The `text` of every row, in UTF-8. Raises InputError for a row without one, and where all of them are empty."""
    texts = []
    for i in range(len(source)):
        text = source[i].get("text")
        if not isinstance(text, str):
            raise InputError(f"{source.place(i)}: no `text` to compress; give a data set whose rows have one")
        texts.append(text.encode())
    if not any(texts):
        raise InputError(f"{source.place(0)}: this text and all others are empty; give a data set with some")
    return texts


if __name__ == "__main__":
    command.run(main, Config, DESCRIPTION)

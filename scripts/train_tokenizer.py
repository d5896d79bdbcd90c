"""A SentencePiece tokenizer from rows of text."""

import contextlib
import dataclasses
import functools
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from errors import InputError
from scripts import cli

DESCRIPTION = """Train a SentencePiece tokenizer.

  python -m scripts.train_tokenizer --data corpus.jsonl --output tokenizers/mine --vocab-size 4096

Rows have text, messages, prompt and completion, or chosen and rejected. The tokenizer gives back every text as it was:
nothing is normalised, and what has no piece is spelled in bytes. Its special tokens are <s> (BOS), </s> (end) and
<unk>. The folder is what a model's folder needs to be trained on text, and transformers' AutoTokenizer reads it."""

MEASURED_TEXTS = 1000
"""texts at most that bytes per token are measured on"""


@dataclasses.dataclass(frozen=True)
class Config:
    data: str
    """where the rows come from: .jsonl or .parquet file, tfds:NAME, hf:OWNER/NAME"""
    output: str
    """folder to write; it must not exist yet, or be empty"""
    vocab_size: int = 4096
    """pieces, special tokens and the 256 bytes among them"""
    model_type: Literal["bpe", "unigram"] = "bpe"
    """how pieces are chosen: by merging the most frequent pairs, or by the likelihood of the text"""
    max_bytes: int = 100_000_000
    """text that it is trained on, in bytes: rows are drawn at random until there is as much"""
    seed: int = 0
    """of the rows drawn"""


def main(config: Config) -> None:
    from data.sources import open_source, parse_source
    from data.tokenizer_training import bytes_per_token, sample_texts, train_tokenizer
    from training.progress import track

    cli.check_positive(config, "vocab_size", "max_bytes")
    cli.check_seed(config.seed)
    check_folder(config.output)
    source = open_source(parse_source(config.data))
    texts = sample_texts(source, config.max_bytes, config.seed, functools.partial(track, what="reading"))
    print(f"training on {sum(map(len, texts)):,} characters", flush=True)
    tokenizer = train_tokenizer(texts, config.vocab_size, config.model_type)
    with whole_folder(config.output) as folder:
        tokenizer.save(folder)
    ratio = bytes_per_token(tokenizer, texts[:MEASURED_TEXTS])
    print(f"{tokenizer.vocab_size:,} pieces, {ratio:.2f} bytes per token on text it was trained on: {config.output}\n"
          f"next: python -m scripts.pretrain --tokenizer {config.output} --data {config.data} "
          f"--output-dir runs/mine --max-steps 1000")


def check_folder(output: str) -> None:
    """Raises InputError where a new folder cannot be written, before the work and not after it."""
    folder = Path(output)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"--output {output} exists and is not empty; name a new folder")
    parent = next(parent for parent in folder.absolute().parents if parent.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise InputError(f"--output {output}: no folder can be made in {parent}; name another")


@contextlib.contextmanager
def whole_folder(output: str) -> Iterator[Path]:
    """A folder to write into, beside `output`; it takes that name when all is written."""
    folder = Path(output)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=folder.name, dir=folder.parent, ignore_cleanup_errors=True) as scratch:
        partial = Path(scratch) / "partial"
        partial.mkdir()
        yield partial
        os.replace(partial, folder)  # an empty folder is replaced


if __name__ == "__main__":
    cli.run(main, Config, DESCRIPTION)

"""A SentencePiece tokenizer from rows of text."""

import dataclasses
import functools
from pathlib import Path
from typing import Literal

from cli import command
from cli.checks import check_folder, check_positive, check_seed
from cli.flags import seed_field
from cli.parsing import invocation
from data.sources import DataSource

DESCRIPTION = """Train a SentencePiece tokenizer.

  python -m scripts.train_tokenizer --data corpus.jsonl --output tokenizers/mine --vocab-size 4096

Rows have text, messages, prompt and completion, or chosen and rejected. The tokenizer gives back every text as it was:
nothing is normalised, and what has no piece is spelled in bytes. Its special tokens are <s> (BOS), </s> (end) and
<unk>. The folder is what a model's folder needs to be trained on text, and transformers' AutoTokenizer reads it."""

MEASURED_TEXTS = 1000
"""texts at most that bytes per token are measured on"""


@dataclasses.dataclass(frozen=True)
class Config:
    data: tuple[DataSource, ...]
    """It is trained on the texts of these sources: FILE.jsonl, FILE.parquet, tfds:NAME, hf:OWNER/NAME (or globs
    of files)."""
    output: str
    """This folder is written; it must not exist yet, or be empty."""
    vocab_size: int = 4096
    """It has this many pieces, special tokens and the 256 bytes among them."""
    model_type: Literal["bpe", "unigram"] = "bpe"
    """Pieces are chosen by merging the most frequent pairs (bpe), or by the likelihood of the text (unigram)."""
    max_bytes: int = dataclasses.field(default=100_000_000, metadata={"largest": 2**63 - 1})
    """It is trained on this many bytes of text: rows are drawn at random until there is as much."""
    seed: int = seed_field()
    """The seed decides which rows are drawn."""


def main(config: Config) -> None:
    from data.sources import Concatenated, open_in_order
    from data.tokenizer_training import bytes_per_token, sample_texts, train_tokenizer
    from files import whole_folder
    from training.progress import track

    check_positive(config, "vocab_size", "max_bytes")
    check_seed(config.seed)
    check_folder(config.output)
    source = Concatenated(open_in_order(config.data))
    texts = sample_texts(source, config.max_bytes, config.seed, functools.partial(track, what="reading"))
    print(f"training on {sum(map(len, texts)):,} characters", flush=True)
    tokenizer = train_tokenizer(texts, config.vocab_size, config.model_type)
    with whole_folder(Path(config.output)) as folder:
        tokenizer.save(folder)
    data = " ".join(each.source for each in config.data)
    ratio = bytes_per_token(tokenizer, texts[:MEASURED_TEXTS])
    print(f"{tokenizer.vocab_size:,} pieces, {ratio:.2f} bytes per token on text it was trained on: {config.output}\n"
          f"next: {invocation('pretrain')} --tokenizer {config.output} --data {data} "
          f"--output-dir runs/mine --max-steps 1000")


if __name__ == "__main__":
    command.run(main, Config, DESCRIPTION)

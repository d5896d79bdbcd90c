"""A SentencePiece tokenizer from rows of text."""

import dataclasses
import functools
from typing import Literal

from data.sources import DataSource
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
    data: tuple[DataSource, ...]
    """sources, taken together: FILE.jsonl, FILE.parquet, tfds:NAME, hf:OWNER/NAME (or globs of files)"""
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
    from data.sources import Concatenated, open_source
    from data.tokenizer_training import bytes_per_token, sample_texts, train_tokenizer
    from training.progress import track

    cli.check_positive(config, "vocab_size", "max_bytes")
    cli.check_seed(config.seed)
    cli.check_folder(config.output)
    source = Concatenated([open_source(each) for each in config.data])
    texts = sample_texts(source, config.max_bytes, config.seed, functools.partial(track, what="reading"))
    print(f"training on {sum(map(len, texts)):,} characters", flush=True)
    tokenizer = train_tokenizer(texts, config.vocab_size, config.model_type)
    with cli.whole_folder(config.output) as folder:
        tokenizer.save(folder)
    data = " ".join(each.source for each in config.data)
    ratio = bytes_per_token(tokenizer, texts[:MEASURED_TEXTS])
    print(f"{tokenizer.vocab_size:,} pieces, {ratio:.2f} bytes per token on text it was trained on: {config.output}\n"
          f"next: python -m scripts.pretrain --tokenizer {config.output} --data {data} "
          f"--output-dir runs/mine --max-steps 1000")


if __name__ == "__main__":
    cli.run(main, Config, DESCRIPTION)

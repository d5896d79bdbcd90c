"""A tiny model that has a tokenizer: a token a character. Its weights are random, so it says anything."""

import json
import shutil
from pathlib import Path

import tokenizers

TINY = Path(__file__).parent / "fixtures" / "families" / "smollm2"
CHARACTERS = [chr(code) for code in range(32, 127)]


def write_model(folder):
    """A Hugging Face folder; the end token is "<end>"."""
    folder.mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        shutil.copy(TINY / name, folder / name)
    vocabulary = {token: place for place, token in enumerate(["<unk>", "<end>", *CHARACTERS])}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
    backend.decoder = tokenizers.decoders.Fuse()
    backend.add_special_tokens(["<end>"])
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<end>", "unk_token": "<unk>"}))
    return folder


def digits(prompts, completions, **columns):
    """The share of characters that are digits: a reward that a policy learns fast."""
    return [sum(map(str.isdigit, completion)) / max(1, len(completion)) for completion in completions]


def sevens(prompts, completions, **columns):
    """1 for an answer of nothing else."""
    return [float(set(completion) == {"7"}) for completion in completions]


def of_level(prompts, completions, level, **columns):
    """A reward that needs a column."""
    return [float(each) for each in level]


def coupled(scores, batch):
    """An objective that couples the rows of a batch, and is never asked."""
    raise AssertionError


coupled.couples_rows = True

"""A tiny model that has a tokenizer: a token a character. Its weights are random, so it says anything."""

import json
import shutil
from pathlib import Path

import numpy as np
import tokenizers
from safetensors.numpy import load_file, save_file

TINY = Path(__file__).parent / "fixtures" / "families" / "smollm2"
REWARD_MODEL = Path(__file__).parent / "fixtures" / "reward_model"
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


def write_reward_model(folder, model):
    """A reward model with the tokenizer of `model`, and an embedding for each of its tokens."""
    shutil.copytree(REWARD_MODEL, folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(model / name, folder / name)
    config, weights = json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")
    embedding = weights["model.embed_tokens.weight"]
    weights["model.embed_tokens.weight"] = np.concatenate([embedding, embedding[::-1]])
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 2 * config["vocab_size"]}))
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


def calls(prompts, completions, **columns):
    """How many tools a chat's completion calls."""
    return [float(len(completion[0].get("tool_calls", ()))) for completion in completions]


def coupled(scores, batch):
    """An objective that couples the rows of a batch, and is never asked."""
    raise AssertionError


coupled.couples_rows = True


def by_prefix(groups, batch):
    """Advantages of one's own that need what answers get that go on from the middle of one."""
    return {"advantages": np.nan_to_num(batch["rewards"] - batch["prefix_values"][:, batch["prompt_length"][0]])}


by_prefix.needs = ("prefix_values",)

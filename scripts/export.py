"""A run's model in the formats of others: a Hugging Face folder, or a PEFT adapter."""

import contextlib
import dataclasses
from pathlib import Path
from typing import Any, Literal

from cli import command
from cli.checks import check_folder
from cli.renamed import EXPORT
from errors import InputError
from sharding.hosts import HostsConfig
from sharding.settings import MeshConfig

DESCRIPTION = """Export a run for transformers, PEFT or vLLM.

  python -m scripts.export --model runs/first --output exported
  python -m scripts.export --model runs/first --output adapter --format adapter
  python -m scripts.export --model runs/first --output between --lora-scale 0.8

Any other model is taken, too: an embedded or GGUF model becomes a Hugging Face folder. An adapter's base is what the
run began with, without adapters of its own, which are joined to it; one that transformers does not load (a GGUF file,
the embedded model, a run of all weights) is written beside it, as base/."""


@dataclasses.dataclass(frozen=True)
class Config:
    model: str
    """This model is exported: a run directory (RUN@best and RUN@STEP are one of its checkpoints), or any other."""
    output: str
    """This folder is written; it must not exist yet, or be empty."""
    format: Literal["merged", "adapter"] = "merged"
    """All weights are written, LoRA merged in (merged), or the LoRA matrices alone, for PEFT (adapter)."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Merged weights are written in this type; a base beside an adapter in float32."""
    lora_scale: float = 1.0
    """What LoRA learned is multiplied by this: 1 is the run, 0 its base model. Between them a model keeps more of what
    it knew and most of what it learned (WiSE-FT, Wortsman et al. 2022, arXiv:2109.01903)."""
    mesh: MeshConfig = MeshConfig(data=1, fsdp=-1)
    hosts: HostsConfig = HostsConfig()

    def unread(self) -> dict[str, str]:
        """Settings that nothing reads beside the others -> where (cli.values)."""
        return {"dtype": "with --format adapter"} if self.format == "adapter" else {}


def main(config: Config) -> None:
    from files import whole_folder
    from sharding.hosts import barrier, connect, is_main
    from sharding.mesh import make_layout
    from training.runs import open_model

    check_folder(config.output)
    connect(config.hosts)
    layout = make_layout(config.mesh)
    opened = scaled(open_model(config.model), config.lora_scale)
    if config.format == "adapter" and opened.config.reward_head:
        raise InputError("--format adapter: a reward model's head is no LoRA matrix; use --format merged")
    write = {"merged": write_merged, "adapter": write_lora}[config.format]
    with whole_folder(Path(config.output)) if is_main() else contextlib.nullcontext(Path(config.output)) as folder:
        write(config, opened, layout, folder)
    barrier("exported")
    command.print_once(f"exported: {config.output}")


def scaled(opened: Any, factor: float) -> Any:
    """`opened` with its adapter's output times `factor`. Raises InputError where there is none to scale."""
    if factor == 1:
        return opened
    if not 0 <= factor < 1:
        raise InputError(f"--lora-scale {factor}: give a number from 0 (the base model) to 1 (the run)")
    if getattr(opened, "lora", None) is None or opened.config.reward_head:
        raise InputError("--lora-scale needs a language model trained with LoRA (--lora.rank)")
    return dataclasses.replace(opened, lora=dataclasses.replace(opened.lora, alpha=factor * opened.lora.alpha))


def write_merged(config: Config, opened: Any, layout: Any, folder: Path) -> None:
    """All weights, configuration, tokenizer and card."""
    from sharding.hosts import is_main
    from training.model_card import model_card

    write_model(config, opened, layout, folder)
    if is_main():
        (folder / "README.md").write_text(model_card(opened, config.model), encoding="utf-8")


def write_model(config: Config, opened: Any, layout: Any, folder: Path) -> None:
    from data.tokenizer import open_tokenizer
    from models.pretrained import load_merged
    from models.safetensors_weights import write_hf_folder
    from sharding.hosts import is_main

    model_config, params = load_merged(opened, layout, param_dtype="float32")
    tokenizer = open_tokenizer(opened.tokenizer)
    ids = token_ids(tokenizer, model_config.reward_head) if tokenizer else stored_token_ids(opened.tokenizer)
    write_hf_folder(folder, params, model_config, config.dtype, token_ids=ids)
    if tokenizer is not None and is_main():
        save_tokenizer(tokenizer, model_config, folder)


def save_tokenizer(tokenizer: Any, model_config: Any, folder: Path) -> None:
    """Writes it; tells where transformers would make another of it, or where the model has too few tokens for it."""
    from data.transformers_tokenizer import difference
    from sharding.hosts import warn

    tokenizer.save(folder)
    if note := difference(model_config.family, folder, tokenizer):
        warn(note)
    beyond = [token for token in tokenizer.eos_ids if token >= model_config.vocab_size]
    if beyond:
        warn(f"end token {beyond[0]} is beyond the model's embedding of {model_config.vocab_size}; nothing ends by it")


def token_ids(tokenizer: Any, reward_head: bool) -> dict[str, Any]:
    """bos, eos (all that end generation, the document's end first) and padding, as config.json has them."""
    pad = choose_padding(tokenizer) if reward_head else single_id(tokenizer, tokenizer.pad_token)
    ends = [tokenizer.eos_id, *(end for end in tokenizer.eos_ids if end != tokenizer.eos_id)]
    ids = {"bos_token_id": tokenizer.bos_id, "eos_token_id": ends[0] if len(ends) == 1 else ends, "pad_token_id": pad}
    return {name: value for name, value in ids.items() if value is not None}


def stored_token_ids(folder: Path) -> dict[str, Any]:
    """Those that a model without a tokenizer has in its own files."""
    from data.tokenizer_config import read_json

    stored = read_json(folder / "config.json") | read_json(folder / "generation_config.json")
    return {name: stored[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")
            if stored.get(name) is not None}


def choose_padding(tokenizer: Any) -> int | None:
    """The id of the tokenizer's padding token, made BOS where it was the end token: transformers' classifiers read the
    last token that is no padding, which must not be the one before the end token. None where there is no such token."""
    if tokenizer.pad_token == tokenizer.eos_token:
        tokenizer.pad_token = tokenizer.bos_token
    return single_id(tokenizer, tokenizer.pad_token) if tokenizer.pad_token != tokenizer.eos_token else None


def single_id(tokenizer: Any, token: str) -> int | None:
    ids = tokenizer.encode(token) if token else []
    return ids[0] if len(ids) == 1 else None


def write_lora(config: Config, opened: Any, layout: Any, folder: Path) -> None:
    """What LoRA learnt as one adapter; its base, too, where transformers does not load that."""
    from data.tokenizer import open_tokenizer
    from models.peft import write_adapter
    from sharding.hosts import is_main
    from training.model_card import model_card
    from training.runs import whole_adapter

    lora_config, lora, base = whole_adapter(opened, layout)
    name = getattr(base, "name", None)
    if name is None:
        write_model(config, base, layout, folder / "base")
        name = str(Path(config.output).resolve() / "base")
    if not is_main():
        return
    write_adapter(folder, lora, lora_config, name)
    if tokenizer := open_tokenizer(opened.tokenizer):
        tokenizer.save(folder)
    (folder / "README.md").write_text(model_card(opened, config.model, name), encoding="utf-8")


if __name__ == "__main__":
    command.run(main, Config, DESCRIPTION, EXPORT)

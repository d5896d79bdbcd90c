"""A run's model in the formats of others: a Hugging Face folder, or a PEFT adapter."""

import dataclasses
from pathlib import Path
from typing import Any, Literal

from cli import command
from cli.checks import check_folder
from cli.renamed import EXPORT
from errors import InputError

DESCRIPTION = """Export a run for transformers, PEFT or vLLM.

  python -m scripts.export --model runs/first --output exported
  python -m scripts.export --model runs/first --output adapter --format adapter
  python -m scripts.export --model runs/first --output between --lora-scale 0.8

Any other model is taken, too: an embedded or GGUF model becomes a Hugging Face folder."""


@dataclasses.dataclass(frozen=True)
class Config:
    model: str
    """This model is exported: a run directory (RUN@best and RUN@STEP are one of its checkpoints), or any other."""
    output: str
    """This folder is written; it must not exist yet, or be empty."""
    format: Literal["merged", "adapter"] = "merged"
    """All weights are written, LoRA merged in (merged), or the LoRA matrices alone, for PEFT (adapter)."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Merged weights are written in this type."""
    lora_scale: float = 1.0
    """What LoRA learned is multiplied by this: 1 is the run, 0 its base model. Between them a model keeps more of what
    it knew and most of what it learned (WiSE-FT, Wortsman et al. 2022, arXiv:2109.01903)."""

    def unread(self) -> dict[str, str]:
        """Settings that nothing reads beside the others -> where (cli.values)."""
        return {"dtype": "with --format adapter"} if self.format == "adapter" else {}


def main(config: Config) -> None:
    from files import whole_folder
    from training.runs import open_model

    check_folder(config.output)
    opened = scaled(open_model(config.model), config.lora_scale)
    if config.format == "adapter" and getattr(opened, "lora", None) is None:
        raise InputError("--format adapter needs a run trained with LoRA (--lora.rank); use --format merged")
    if config.format == "adapter" and opened.config.reward_head:
        raise InputError("--format adapter: a reward model's head is no LoRA matrix; use --format merged")
    write = {"merged": write_merged, "adapter": write_lora}[config.format]
    with whole_folder(Path(config.output)) as folder:
        write(opened, folder, config.dtype)
    print(f"exported: {config.output}")


def scaled(opened: Any, factor: float) -> Any:
    """`opened` with its adapter's output times `factor`. Raises InputError where there is none to scale."""
    if factor == 1:
        return opened
    if not 0 <= factor < 1:
        raise InputError(f"--lora-scale {factor}: give a number from 0 (the base model) to 1 (the run)")
    if getattr(opened, "lora", None) is None or opened.config.reward_head:
        raise InputError("--lora-scale needs a language model trained with LoRA (--lora.rank)")
    return dataclasses.replace(opened, lora=dataclasses.replace(opened.lora, alpha=factor * opened.lora.alpha))


def write_merged(opened: Any, folder: Path, dtype: str) -> None:
    from data.tokenizer import open_tokenizer
    from models.pretrained import load_merged
    from models.safetensors_weights import write_hf_folder
    from sharding.mesh import MeshConfig, make_mesh

    model_config, params = load_merged(opened, make_mesh(MeshConfig(fsdp=-1, data=1)), param_dtype="float32")
    tokenizer = open_tokenizer(opened.tokenizer)
    pad_token_id = choose_padding(tokenizer) if tokenizer is not None and model_config.reward_head else None
    write_hf_folder(folder, params, model_config, dtype, pad_token_id=pad_token_id)
    if tokenizer is not None:
        tokenizer.save(folder)


def choose_padding(tokenizer: Any) -> int | None:
    """The id of the tokenizer's padding token, made BOS where it was the end token: transformers' classifiers read the
    last token that is no padding, which must not be the one before the end token. None where there is no such token."""
    if tokenizer.pad_token == tokenizer.eos_token:
        tokenizer.pad_token = tokenizer.bos_token
    ids = tokenizer.encode(tokenizer.pad_token) if tokenizer.pad_token != tokenizer.eos_token else []
    return ids[0] if len(ids) == 1 else None


def write_lora(opened: Any, folder: Path, _: str) -> None:
    from models.config import HUB_IDS
    from models.peft import write_adapter
    from sharding.mesh import MeshConfig, make_mesh
    from training.runs import read_config

    lora = opened.load_lora(make_mesh(MeshConfig()))
    base = read_config(opened.path)["model"]
    write_adapter(folder, lora, opened.lora, HUB_IDS.get(base, base))


if __name__ == "__main__":
    command.run(main, Config, DESCRIPTION, EXPORT)

"""Supervised fine-tuning: full or LoRA, on chats, prompt-completion pairs, texts or token ids."""

import dataclasses
import functools
from pathlib import Path
from typing import Any, Literal

from models.lora import LoRAConfig
from scripts import cli
from sharding.mesh import MeshConfig
from training.optimizer import OptimizerConfig

DESCRIPTION = """Fine-tune a language model on JSON lines; the loss is on the assistant's (or completion's) tokens.

  python -m scripts.sft --model smollm2-135m-instruct --data chats.jsonl --output-dir runs/first --max-steps 100 \\
      --lora.rank 16 --learning-rate 2e-4

Stopped, by whatever, it goes on where it was when the same command is given again."""


@dataclasses.dataclass(frozen=True)
class Config:
    model: str
    """embedded model (smollm2-135m-instruct), Hub id, preset, folder, .gguf file, PEFT adapter or run directory"""
    data: str
    """.jsonl file; rows have messages, prompt and completion, text, or tokens (and loss_mask)"""
    output_dir: str
    """the run directory: config.yaml, metrics.jsonl, checkpoints/"""
    max_steps: int
    """optimiser steps"""
    batch_size: int = 8
    """rows of a step, over all devices and micro-batches"""
    num_microbatches: int = 1
    """parts that a step's rows are split into to save memory; the loss and gradient stay the same"""
    learning_rate: float = 1e-4
    """peak learning rate"""
    seed: int = 0
    """of LoRA's initialisation, the order of rows, and dropout"""
    objective: str = "objectives.sft:sft"
    """package.module:name of a function (scores, batch) -> Loss"""
    max_length: int | None = None
    """longest row allowed, in tokens, and length of packed rows; the model's context by default"""
    packing: bool = False
    """pack several rows into one; attention and positions stay each row's own"""
    eval_data: str | None = None
    """.jsonl of held-out rows, evaluated before the first step and after the last"""
    eval_every: int = 0
    """steps between evaluations; 0 for none in between"""
    save_every: int = 100
    """steps between checkpoints; one is always saved after the last step; 0 for none in between"""
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """of matmuls (and of the frozen weights under LoRA); auto is what is fastest here"""
    remat: Literal["none", "dots", "full"] = "none"
    """recompute in the backward pass to save memory: nothing, all but matmuls, or whole layers"""
    attention: Literal["auto", "xla", "cudnn", "flash"] = "auto"
    """attention kernel; auto picks by platform"""
    lora: LoRAConfig = LoRAConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    mesh: MeshConfig = MeshConfig()


MAY_DIFFER = frozenset({"mesh", "save_every", "eval_every"})
"""what a resumed run may change"""


def main(config: Config) -> None:
    import jax

    from data.batches import training_batches
    from data.encode import encode_all, longest_row
    from data.records import JsonlSource
    from models.pretrained import load_merged
    from models.transformer import Transformer
    from sharding.mesh import make_mesh
    from training.evaluation import make_evaluation
    from training.loop import LoopConfig, train
    from training.optimizer import make_optimizer, make_schedule
    from training.progress import track
    from training.runs import absolute_reference, check_free, fingerprint, open_model, open_tokenizer, start
    from training.state import init_state
    from training.step import make_train_step

    cli.check_positive(config, "max_steps", "batch_size", "num_microbatches", "learning_rate")
    cli.check_seed(config.seed)
    config = dataclasses.replace(config, model=absolute_reference(config.model), dtype=cli.resolve_dtype(config.dtype))
    objective = cli.load_function(config.objective)
    mesh = make_mesh(config.mesh)
    run = Path(config.output_dir)

    # the model, not read yet, and the rows
    opened = open_model(config.model)
    tokenizer = open_tokenizer(opened.tokenizer)
    max_length = cli.row_length(config.max_length, opened.config.max_length)

    def read(path: str) -> list[Any]:
        return encode_all(JsonlSource(path), tokenizer, vocab_size=opened.config.vocab_size, training=True,
                          max_length=max_length, track=functools.partial(track, what="reading rows"))

    recorded = dataclasses.asdict(config) | {"sha256": fingerprint(config.data, config.eval_data)}
    check_free(run, recorded, MAY_DIFFER)
    rows = read(config.data)
    held_out = read(config.eval_data) if config.eval_data else None
    length = max_length if config.packing and config.max_length else longest_row(rows)
    batches = training_batches(rows, batch_size=config.batch_size, length=length, packing=config.packing,
                               seed=config.seed)

    # the weights, straight to their shards
    lora = config.lora if config.lora.rank else None
    model_config, params = load_merged(opened, mesh, dtype=config.dtype, remat=config.remat, attention=config.attention,
                                       param_dtype=config.dtype if lora else "float32")

    # the experiment
    schedule = make_schedule(config.optimizer, config.learning_rate, config.max_steps)
    optimizer = make_optimizer(config.optimizer, schedule)
    model = Transformer(model_config, lora)
    state = init_state(model, params, optimizer, jax.random.key(config.seed), mesh)
    train_step = make_train_step(model.clone(training=True), objective, optimizer, schedule, state)
    evaluate = make_evaluation(model, objective, held_out, config.batch_size, mesh) if held_out else None
    loop = LoopConfig(config.max_steps, config.num_microbatches, config.save_every, config.eval_every)
    start(run, recorded, model_config, tokenizer)
    train(state, train_step, batches, run, mesh, loop, evaluate)
    print(f"done: {run} (next: python -m scripts.generate --model {run} --prompt '...' --output out.jsonl)")


if __name__ == "__main__":
    cli.run(main, Config, DESCRIPTION)

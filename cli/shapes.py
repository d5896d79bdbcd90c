"""A script's step over shapes alone, as scripts.plan compiles it: made by what the script itself makes it by."""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

from cli.checks import max_row_length
from cli.experiment import compute_of, lora_of, make_optimizer_of
from errors import InputError


class Shapes(NamedTuple):
    """What a step is made of."""

    layout: Any
    model: Any
    optimizer: Any
    schedule: Any
    state: Any
    """training.state.TrainState of shapes"""


def shaped(flags: Any, config: Any, layout: Any, updates_per_step: int = 1) -> Shapes:
    """Of a model's configuration and the script's flags; no array is made."""
    from training.abstract import train_state_shapes

    model = shaped_model(flags, config, layout)
    optimizer, schedule = make_optimizer_of(flags, flags.max_steps * updates_per_step)
    return Shapes(layout, model, optimizer, schedule, train_state_shapes(model, optimizer, layout))


def shaped_model(flags: Any, config: Any, layout: Any) -> Any:
    """As cli.experiment.load_model gives it, without weights."""
    from models.transformer import Transformer

    return Transformer(dataclasses.replace(config, **compute_of(flags)), lora_of(flags), layout=layout)


def row_length(flags: Any, context: int) -> int:
    """Tokens of the longest rows that may come; packed ones all have as many."""
    from batch import multiple_of_8

    length = max_row_length(flags.max_length, context)
    return length if getattr(flags, "packing", "none") != "none" else multiple_of_8(length)


def update_program(flags: Any, shapes: Shapes, step: Any, group: int = 1, columns: tuple[str, ...] = (),
                   length: int | None = None) -> Any:
    """The train step of a run on rows, as the flags say, or of one that makes its own, of `length` tokens; `columns`
    are an objective's, one number a token."""
    from data.reading import COUNTS
    from planning.program import Program
    from sharding.placement import Placement
    from training.abstract import batch_shapes
    from training.throughput import flops_per_token

    counts = () if length else COUNTS
    length = length or row_length(flags, shapes.model.config.max_length)
    placement = Placement(flags.batch_size, flags.num_microbatches, shapes.layout, group=group)
    batch = batch_shapes(placement, length, getattr(flags, "packing", "none") != "none", columns, counts)
    tokens = flags.batch_size * group * length
    flops = flops_per_token(shapes.model.config, length, shapes.model.lora) * tokens
    return Program("update", step, (shapes.state, batch), shapes.layout, flops, tokens=tokens)


def architecture_of(flags: Any) -> Any:
    """The configuration of random weights; the vocabulary is the preset's, or of --tokenizer where that is here."""
    from data.tokenizer import open_tokenizer
    from models.architecture import make_config
    from models.config import PRESETS

    path = Path(flags.tokenizer).expanduser()
    if path.exists():
        return make_config(flags.architecture, open_tokenizer(path).vocab_size)
    if flags.architecture.preset not in PRESETS:
        raise InputError(f"--tokenizer {flags.tokenizer}: not found here, and the size of the vocabulary is its; give "
                         f"an existing one, or --architecture.preset")
    return make_config(flags.architecture, PRESETS[flags.architecture.preset].vocab_size)


def shaped_reference(flags: Any, shapes: Shapes, reference: str | None = None) -> tuple[Any, Any]:
    """(model, variables) as cli.experiment.choose_reference gives them, over shapes: frozen weights are kept in the
    compute dtype."""
    from models.transformer import Transformer
    from training.abstract import variable_shapes
    from training.runs import open_config

    if reference is None and lora_of(flags):
        return shapes.model, None
    config = open_config(reference or flags.model)
    policy = shapes.model.config
    config = dataclasses.replace(config, dtype=policy.dtype, attention=policy.attention, param_dtype=policy.dtype)
    model = Transformer(config, layout=shapes.layout)
    return model, variable_shapes(model, shapes.layout)


def pair_programs(flags: Any, shapes: Shapes, step: Any, prepare: Any, columns: tuple[str, ...],
                  length: int | None = None) -> list[Any]:
    """Of a loss on pairs: what is computed before the step (training.reference.prepare_pairs), and the step."""
    import jax

    update = update_program(flags, shapes, step, group=2, columns=columns, length=length)
    state, batch = update.arguments
    before = update._replace(name="reference", function=prepare.compiled, arguments=(state, prepare.frozen, batch),
                             model_flops=update.model_flops / 3)
    sharding = shapes.layout.sharding(None, "batch")
    prepared = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
                            jax.eval_shape(prepare.compiled, *before.arguments))
    update = update._replace(arguments=(state, prepared), resident=(prepare.frozen,))
    scored = "ref_logps" in prepared and "ref_logps" not in batch
    return [update, before] if scored else [update]

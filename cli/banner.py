"""What a run is, told when it starts and kept in launches.jsonl: model, devices, data, length, what is compiled."""

from collections.abc import Mapping
from typing import Any

from cli.command import print_once
from errors import shown


def tell_banner(banner: Mapping[str, str]) -> None:
    """A line for each of its parts."""
    for name, text in banner.items():
        print_once(f"{name:<9} {text}")


def of_rows(flags: Any, streams: Any, model: Any, layout: Any, state: Any) -> dict[str, str]:
    """Of a run on rows; tokens are estimated from the rows that were read before the first step."""
    rows, packed = sum(map(len, streams.sources)), streams.packing != "none"
    parts = flags.num_microbatches or 1
    tokens = flags.batch_size * (streams.length if packed else streams.row_tokens)
    batch = f"{flags.batch_size:,} rows of {streams.length:,} tokens" if packed else (
        f"{flags.batch_size:,} rows, about {tokens:,.0f} tokens")
    total = rows * streams.record_rows * streams.row_tokens
    known = total and len(streams.sources) == 1
    length = f"{flags.max_steps:,}{f', about {_short(flags.max_steps * tokens / total)} epochs' if known else ''}"
    return {"model": _model(flags, model, state), "devices": _devices(flags, layout),
            "data": f"{rows:,} rows, about {total:,.0f} tokens: {shown(flags.data)}",
            "batch": f"{batch}, in {parts} micro-batch{'es' * (parts > 1)}",
            "steps": length, "compiled": _compiled(streams), "writes": _writes(flags)}


def of_prompts(flags: Any, prompts: Any, model: Any, layout: Any, state: Any) -> dict[str, str]:
    """Of a run on what its policy samples."""
    count = sum(map(len, prompts.sources))
    batch = f"{flags.batch_size:,} prompts, {flags.batch_size * flags.group_size:,} completions"
    return {"model": _model(flags, model, state), "devices": _devices(flags, layout),
            "data": f"{count:,} prompts, {len(prompts.eval_prompts):,} held out: {shown(flags.data)}",
            "batch": f"{batch} of up to {flags.max_new_tokens:,} tokens",
            "steps": f"{flags.max_steps:,}", "compiled": "sampler, scorer and update, at the first step",
            "writes": _writes(flags)}


def _model(flags: Any, model: Any, state: Any) -> str:
    """Its parameters, those that are trained, and their types."""
    import jax

    frozen = 0 if state.lora is None else _size(state.params)
    trained, [dtype, *_] = _size(state.trainable), [leaf.dtype for leaf in jax.tree.leaves(state.params)]
    how = f"LoRA of rank {model.lora.rank}" if model.lora else "all"
    return (f"{getattr(flags, 'model', None) or 'random weights'}: {_millions(frozen + trained)} parameters, "
            f"{_millions(trained)} trained ({how}); weights in {dtype}, matmuls in {model.config.dtype}")


def _size(tree: Any) -> int:
    import jax

    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def _millions(number: int) -> str:
    return f"{number / 1e6:,.2f} M" if number >= 1e4 else f"{number:,}"


def _short(number: float) -> str:
    """Three digits, or all of them before the point."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def _devices(flags: Any, layout: Any) -> str:
    import jax

    devices = layout.mesh.devices.ravel()
    processes = f", {jax.process_count()} processes" if jax.process_count() > 1 else ""
    mesh = shown(dict(layout.mesh.shape) | ({"with": flags.mesh.rules} if flags.mesh.rules else {}))
    return f"{len(devices)} x {devices[0].device_kind}{processes}; mesh {mesh}"


def _compiled(streams: Any) -> str:
    """What the first steps wait for."""
    if streams.packing != "none":
        return f"one train step, of rows of {streams.length:,} tokens"
    return f"a train step for each length of rows that comes up, of {shown(streams.lengths)}"


def _writes(flags: Any) -> str:
    saved = f"every {flags.save_every:,} steps" if flags.save_every else "after the last step"
    return f"{flags.output_dir}: metrics.jsonl, checkpoints {saved}"

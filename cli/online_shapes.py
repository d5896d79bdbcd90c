"""Online training over shapes alone, as scripts.plan compiles it: sampling, scoring, and updates of micro-batches."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from cli.shapes import Shapes


class Rollouts(NamedTuple):
    """The largest micro-batch of a batch of rollouts, and how many of them a step has."""

    shape: Any
    """rollouts.packing.Shape"""
    parts: int
    """of a mini-batch, at the most"""
    longest: int
    """tokens of an episode"""


def rollouts_of(flags: Any, layout: Any, prompt_length: int, num_minibatches: int, budget: int) -> Rollouts:
    """As rollouts.minibatches.Packer has them, for prompts of so many tokens."""
    from rollouts.minibatches import Packer

    longest = longest_of(flags, prompt_length)
    packer = Packer([longest - flags.max_new_tokens], flags.max_new_tokens, flags.group_size, flags.batch_size,
                    num_minibatches, budget, layout)
    return Rollouts(packer.shapes[-1], packer.num_parts, longest)


def longest_of(flags: Any, prompt_length: int) -> int:
    """Tokens of the longest episode."""
    return (flags.environment.max_prompt_length if flags.environment.make else prompt_length) + flags.max_new_tokens


def update_programs(name: str, shapes: Shapes, step: Any, micro: Any, rollouts: Rollouts, updates: int) -> list[Any]:
    """A micro-batch's gradient and the update of training.step.make_accumulated_step."""
    from planning.program import Program

    sums = step.sums_of(shapes.state, micro)
    flops, tokens = _work(shapes.model, rollouts)
    gradient = Program(f"{name}: gradient of a micro-batch", step.add, (sums, shapes.state, *micro), shapes.layout,
                       flops, updates * rollouts.parts, tokens)
    return [gradient, Program(f"{name}: update", step.finish, (shapes.state, sums), shapes.layout, times=updates)]


def scoring_program(name: str, shapes: Shapes, compiled: Any, before: tuple[Any, ...], micro: Any, rollouts: Rollouts,
                    minibatches: int, passes: int = 1) -> Any:
    """Forward passes over a micro-batch, by `compiled`, which takes what comes `before` its columns."""
    from planning.program import Program

    columns = {each: micro.columns[each] for each in ("tokens", "positions", "segment_ids")}
    flops, tokens = _work(shapes.model, rollouts)
    return Program(name, compiled, (*before, columns, micro.row_layout), shapes.layout, passes * flops / 3,
                   minibatches * rollouts.parts, tokens)


def _work(model: Any, rollouts: Rollouts) -> tuple[float, int]:
    """(FLOPs of training on a micro-batch, its positions)."""
    from training.throughput import flops_per_token

    shape = rollouts.shape
    tokens = shape.slots * (shape.prompt_length + shape.rows * shape.length)
    return flops_per_token(model.config, shape.prompt_length + shape.length, model.lora) * tokens, tokens


def sampling_programs(flags: Any, model: Any, layout: Any, longest: int) -> tuple[list[Any], tuple[Any, ...]]:
    """(the engine's reading of prompts and its decoding of a token in all slots; what it holds meanwhile)."""
    from planning.program import Program
    from rollouts import decoder
    from rollouts.abstract import sampling_shapes

    made = sampling_shapes(model.clone(lora=None), flags.rollouts.num_slots, longest, layout, flags.sampling.mesh)
    slots, answers = made.seen.count.shape[0], flags.batch_size * flags.group_size
    fixed = (made.model, made.weights, made.cache)
    tokens = made.prefill[0].size
    prefill = Program("sampling: prefill", decoder.prefill, (*fixed, *made.prefill), made.model.layout,
                      times=flags.batch_size * (longest - flags.max_new_tokens) / tokens, tokens=tokens)
    decode = Program("sampling: a token in every slot", decoder.decode, (*fixed, made.seen, *made.decode),
                     made.model.layout, times=-(-answers // slots) * flags.max_new_tokens, tokens=slots)
    return [prefill, decode], (made.weights, made.cache, made.seen)


def together(training: Sequence[Any], sampling: Sequence[Any], engine: tuple[Any, ...],
             held: tuple[Any, ...]) -> list[Any]:
    """All programs, each with what else is on the devices: the engine's arrays beside training, states and frozen
    models `held` beside sampling, and of them what a program does not take itself."""
    import jax

    from sharding.layout import path_name

    def others(program: Any, trees: tuple[Any, ...]) -> tuple[Any, ...]:
        taken = {id(leaf) for leaf in jax.tree.leaves(program.arguments)}
        return tuple({path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
                      if id(leaf) not in taken} for tree in trees)

    return [program._replace(resident=others(program, (*engine, *held))) for program in (*training, *sampling)]

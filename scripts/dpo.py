"""Preference optimisation: the DPO family, and any objective on pairs; full or LoRA."""

import dataclasses
from pathlib import Path
from typing import Any

from errors import InputError
from models.lora import LoRAConfig
from scripts import cli, experiment
from training.follow import SyncConfig, begin_to_follow, make_follow

DESCRIPTION = """Change how a model answers, by pairs of a better and a worse answer (chosen, rejected).

  python -m scripts.dpo --model smollm2-135m-instruct --data pairs.jsonl --output-dir runs/dpo --max-steps 100 \\
      --lora.rank 16 --learning-rate 1e-4 --beta 0.1
  python -m scripts.dpo ... --loss "sigmoid=1.0,sft=0.1"
  python -m scripts.dpo ... --objective "objectives.simpo:simpo(beta=2.5, gamma=1.0)"

Losses: sigmoid (DPO), hinge, ipo, ipo_sum, robust, exo_pair, nca_pair, bco_pair, sppo_hard, aot, aot_unpaired,
apo_zero, apo_down, discopop, sigmoid_norm, sft, sft_token. objectives/dpo.py has their equations.

Stopped, by whatever, it goes on where it was when the same command is given again."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(experiment.TrainingFlags):
    model: str
    """embedded model (smollm2-135m-instruct), Hub id, preset, folder, .gguf file, PEFT adapter or run directory
    (RUN@best, RUN@STEP: one of its checkpoints)"""
    max_steps: int
    """optimiser steps"""
    reference: str | None = None
    """the policy that beta holds to, as for --model; by default the model itself, as it was"""
    keep_reference: bool = False
    """score all pairs under the reference once, before the first step, and keep that in the run directory"""
    sync: SyncConfig = SyncConfig()
    loss: str = "sigmoid"
    """a loss, or several with weights: "sigmoid=1.0,sft=0.1" """
    beta: float = 0.1
    """how strongly the policy is held to the reference"""
    label_smoothing: float = 0.0
    """share of pairs taken to be labelled the wrong way round"""
    divergence: str = "reverse_kl"
    """from the reference: reverse_kl, forward_kl, js_divergence or alpha_divergence"""
    alpha: float = 0.5
    """of alpha_divergence: 1 is the reverse KL, 0 the forward KL"""
    ld_alpha: float | None = None
    """weight of the tokens by which one answer is longer than the other (LD-DPO)"""
    wpo: bool = False
    """weigh pairs by how probable the policy finds them (WPO)"""
    objective: str | None = None
    """package.module:name, or package.module:name(key=value, ...), of a function (scores, batch) -> Loss on pairs, in
    place of --loss and its settings"""
    lora: LoRAConfig = LoRAConfig()


def main(config: Config) -> None:
    import jax

    from data.batches import TrainingBatches
    from models.pretrained import load_merged
    from models.transformer import Transformer
    from sharding import hosts
    from sharding.mesh import make_mesh
    from sharding.placement import Placement
    from training.evaluation import make_evaluation
    from training.kept_reference import keep_reference
    from training.loop import train
    from training.optimizer import make_optimizer, make_schedule
    from training.reference import asks_for_reference, open_reference, prepare_pairs
    from training.runs import absolute_reference, open_policy, open_tokenizer, start
    from training.state import init_state
    from training.step import check_split, make_train_step
    from training.throughput import flops_per_token

    check(config)
    hosts.connect(config.hosts)
    config = dataclasses.replace(config, model=absolute_reference(config.model), dtype=cli.resolve_dtype(config.dtype),
                                 reference=config.reference and absolute_reference(config.reference))
    objective = make_objective(config)
    check_split(objective, config.num_microbatches)
    schedule = make_schedule(config.optimizer, config.learning_rate, config.max_steps)
    optimizer = make_optimizer(config.optimizer, schedule)
    mesh = make_mesh(config.mesh)
    run = Path(config.output_dir)

    # the model, not read yet, and the pairs
    opened = open_policy(config.model)
    data = experiment.open_rows(config, opened, form="pair")
    placement = Placement(config.batch_size, config.num_microbatches, mesh, group=2)

    # the weights, straight to their shards
    lora = config.lora if config.lora.rank else None
    model_config, params = load_merged(opened, mesh, dtype=config.dtype, remat=config.remat, attention=config.attention,
                                       param_dtype=config.dtype if lora else "float32")

    # the policy; the reference is the same model without its adapter, or else a frozen one
    model = Transformer(model_config, lora)
    reference, frozen = model, None
    if asks_for_reference(objective) and (config.reference or not (lora or config.sync.every)):
        reference, frozen = open_reference(config.reference or config.model, model_config, mesh)
    if config.keep_reference:
        data = experiment.replace_sources(data, lambda sources, encoder, name: keep_reference(
            sources, encoder, run / "reference" / name, reference, frozen or {"params": params},
            2 * config.batch_size, mesh))

    # the experiment
    state = begin_to_follow(init_state(model, params, optimizer, jax.random.key(config.seed), mesh), config.sync)
    prepare = prepare_pairs(reference, frozen, mesh, objective)
    step = make_train_step(model.clone(training=True), objective, optimizer, schedule, state,
                           follow=make_follow(config.sync))
    evaluate = make_evaluation(model, objective, data.held_out, placement, prepare=prepare) if data.held_out else None
    loop = experiment.loop_config(config, config.max_steps, flops_per_token(model_config, data.streams.length, lora))
    start(run, data.recorded, model_config, open_tokenizer(opened.tokenizer))
    rows = placement.local_rows()
    train(state, lambda state, batch: step(state, prepare(state, batch)),
          lambda position: TrainingBatches(data.streams, rows, config.workers, position), run, placement, loop,
          evaluate)
    cli.say(f"done: {run} (next: python -m scripts.generate --model {run} --prompt '...' --output out.jsonl)")


def check(config: Config) -> None:
    """Raises InputError for flags that do not go together."""
    experiment.check_flags(config)
    cli.check_positive(config, "max_steps")
    if config.sync.every and (config.reference or config.keep_reference):
        raise InputError("--sync.every: a reference that follows the model begins as it and changes; leave out "
                         "--reference and --keep-reference")
    if config.objective and config.loss != Config.loss:
        raise InputError("--objective takes the place of --loss; leave one of them out")


def make_objective(config: Config) -> Any:
    """The objective that the flags describe. Raises InputError where they describe none."""
    from objectives.dpo import configure

    if config.objective:
        return cli.load_function(config.objective)
    names = ("beta", "label_smoothing", "divergence", "alpha", "ld_alpha", "wpo")
    try:
        return configure(losses=parse_losses(config.loss), **{name: getattr(config, name) for name in names})
    except ValueError as error:
        raise InputError(str(error)) from None


def parse_losses(text: str) -> tuple[tuple[str, float], ...]:
    """"sigmoid=1.0,sft=0.1" as pairs of name and weight, which is 1 where it is left out."""
    pairs = [part.partition("=")[::2] for part in text.split(",")]
    try:
        return tuple((name.strip(), float(weight or 1.0)) for name, weight in pairs)
    except ValueError:
        raise InputError(f"--loss {text!r}: a weight is no number; the form is name=weight,name=weight") from None


if __name__ == "__main__":
    cli.run(main, Config, DESCRIPTION)

"""Going on with a run under other flags: what may differ, as it leaves the mathematics as it was, and what is said."""

import itertools
import math
from pathlib import Path
from typing import Any

from cli.command import print_once
from errors import InputError, shown
from files import writing
from sharding.exchange import decided

MAY_DIFFER = frozenset({
    "output_dir", "mesh", "hosts", "workers", "save_every", "eval_every", "keep_best", "trackers", "profile",
    "bad_rows", "reward_timeout", "unsafe_code_without_sandbox", "rollouts.log_completions_every",
    "rollouts.allow_failing_rewards", "sampling.mesh.data", "sampling.mesh.tensor", "num_microbatches",
    "microbatch_tokens", "critic.microbatch_tokens", "environment.timeout", "remat", "attention",
    "max_steps", "num_epochs", "max_tokens", "evaluate.at", "evaluate.num_samples", "evaluate.max_new_tokens"})
"""what a resumed run may change; steps as check_steps says"""

ON_ROWS = frozenset({"evaluate", "sample_prompts"})
"""and a run on rows besides; an online one draws no prompts that it is evaluated on"""

TOLD = ("num_microbatches", "microbatch_tokens", "critic.microbatch_tokens", "remat", "attention")
"""of these, what changes how a step is computed"""


SPLIT = ("num_microbatches", "microbatch_tokens")
"""of these, what is chosen by the machine's memory where it is not given (cli.microbatches)"""


def tell(differing: dict[str, tuple[Any, Any]]) -> None:
    """A line where a run goes on with a step that is computed otherwise; sums may round otherwise, too."""
    changed = [f"--{name.replace('_', '-')} {shown(now)}, {shown(stored)} before"
               for name, (stored, now) in differing.items() if name in TOLD]
    if changed:
        print_once(f"note: the run goes on with {'; '.join(changed)}: the same mathematics, computed otherwise "
                   f"(dropout, if any, draws other numbers in other micro-batches)")


def check_place(flags: Any) -> None:
    """Before anything is read: waits for a run that is about to leave --output-dir, and moves it away for --restart.
    Raises InputError where it does not leave, and where it has lost its checkpoints."""
    from training.holding import wait_until_free

    run = Path(flags.output_dir)
    wait_until_free(run)
    if flags.restart:
        decided(lambda: _move_away(run))
    else:
        decided(lambda: _check_checkpoints(flags))


def _move_away(run: Path) -> None:
    from training.runs import is_run

    if is_run(run):
        places = (run.with_name(f"{run.name}.{number}") for number in itertools.count(1))
        place = next(place for place in places if not place.exists())
        with writing(run):
            run.rename(place)
        print(f"note: the run that was in {run} is now in {place}")


def _check_checkpoints(flags: Any) -> None:
    """Raises InputError where a run that had a checkpoint has none: their folder is made before the first step, and the
    first one is whole before a second begins. A run that was ended before is begun anew."""
    from training.checkpoints import finished_steps
    from training.metrics import read_metrics

    stored, run = stored_flags(flags), Path(flags.output_dir)
    folder = run / "checkpoints"
    if not stored or finished_steps(folder) or list(folder.glob("damaged-*")):
        return
    made = max((line["step"] for line in read_metrics(run)), default=0)
    if made and (not folder.exists() or made > 2 * (stored.get("save_every") or math.inf)):
        raise InputError(f"output directory {run} holds a run that made {made} steps, and no checkpoint any more; put "
                         f"them back, give --restart to begin anew, or choose another --output-dir")
    if made:
        print(f"note: {run} has no checkpoint of the {made} steps that were made there, which begin anew")


def stored_flags(flags: Any) -> dict[str, Any]:
    """What the run in --output-dir was begun with; {} without one."""
    from training.runs import is_run, read_config

    run = Path(flags.output_dir)
    return read_config(run) if is_run(run) else {}


def stored_dtype(flags: Any, chosen: str) -> str:
    """The dtype for --dtype auto: the run's own where there is one, else the one `chosen` for this hardware."""
    stored = stored_flags(flags).get("dtype", chosen)
    if flags.dtype != "auto" or stored not in ("bfloat16", "float32"):
        return chosen
    if stored != chosen:
        print_once(f"note: --dtype auto is {chosen} on this hardware; the run goes on in {stored}, as it began")
    return stored


def stored_split(flags: Any) -> dict[str, int]:
    """How the steps of the run that goes on are split, for flags that do not say it: as they were, whatever memory this
    machine has, since dropout draws other numbers in other micro-batches. {} without a run."""
    stored = stored_flags(flags)
    return {name: stored[name] for name in SPLIT if getattr(flags, name, 0) is None and stored.get(name)}


def split_of(flags: Any) -> dict[str, int | None]:
    """How the steps of a run are split, for its config.yaml, which was made before that was chosen."""
    return {name: getattr(flags, name) for name in SPLIT if hasattr(flags, name)}


def check_steps(flags: Any, updates_per_step: int, tokens_per_step: int, idle_steps: int = 0,
                whose: str = "") -> None:
    """Tells what a run's schedule, or the critic's (`whose`), does with other --max-steps than it began with; the first
    `idle_steps` have no updates. Raises InputError unless the steps that it has made had the learning rates that they
    would have had under these."""
    from training.checkpoints import finished_steps

    stored = stored_flags(flags)
    old = _steps(stored, tokens_per_step)
    if old in (None, flags.max_steps):
        return
    done = max(finished_steps(Path(flags.output_dir) / "checkpoints"), default=0)
    where = f"output directory {flags.output_dir} holds a run of {old} steps, of which {done} are made"
    if flags.max_steps < done:
        raise InputError(f"{where}; {_duration(flags)} is fewer; choose another --output-dir")
    made, before, now = (max(0, steps - idle_steps) * updates_per_step for steps in (done, old, flags.max_steps))
    if not _same_rates(flags, made, before, now):
        raise InputError(f"{where}, and with {_duration(flags)} the {whose}{flags.optimizer.schedule} "
                         f"schedule would have given them other learning rates; only a constant one, and wsd before "
                         f"its decay, can be made longer; train on from its weights by --model {flags.output_dir} and "
                         f"another --output-dir")
    future = _future(flags, now, updates_per_step, idle_steps)
    print_once(f"note: {_duration(flags)}, {old} before: the {whose}{future}")


def _duration(flags: Any) -> str:
    """How long the run is, as the flags say it."""
    for name in ("num_epochs", "max_tokens"):
        if getattr(flags, name, None) is not None:
            return f"--{name.replace('_', '-')} {shown(getattr(flags, name))} ({flags.max_steps} steps)"
    return f"--max-steps {flags.max_steps}"


def _steps(stored: dict[str, Any], tokens_per_step: int) -> int | None:
    if stored.get("max_steps") or not stored.get("max_tokens"):
        return stored.get("max_steps")
    return max(1, stored["max_tokens"] // tokens_per_step)


def _same_rates(flags: Any, made: int, before: int, now: int) -> bool:
    """Whether the first `made` updates are the same of a run of `before` updates and of one of `now`."""
    import numpy as np

    from training.optimizer import make_schedule

    rates = [make_schedule(flags.optimizer, flags.learning_rate, updates)(np.arange(made)) for updates in (before, now)]
    return bool(np.allclose(*rates, rtol=1e-6, atol=0))


def _future(flags: Any, updates: int, updates_per_step: int, idle_steps: int) -> str:
    """What the schedule does from here on."""
    from training.optimizer import decay_steps

    if flags.optimizer.schedule == "constant":
        return "learning rate stays as it is"
    first = idle_steps + (updates - decay_steps(flags.optimizer, updates)) // updates_per_step
    return f"{flags.optimizer.schedule} schedule decays after step {first}, up to the last"

"""A step foretold: does it fit a TPU's memory, how long does it take, what bounds it; on a machine without a TPU."""

import dataclasses
import importlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cli.command import ending
from cli.parsing import parse, take_value
from errors import InputError
from files import write_text

ON_ROWS = ("sft", "pretrain", "dpo", "reward")
ONLINE = ("grpo", "ppo", "online_dpo")
PAIRS = {"dpo": 2, "reward": 2, "online_dpo": 2}
"""rows of a record"""

DESCRIPTION = """Compile the very step that a script would run, for TPUs that are not there, and say what it takes.

  python -m scripts.plan sft --topology v5p:2x2x2 --model qwen3-0.6b --batch-size 32 --max-length 2048 \\
      --mesh.data 1 --mesh.fsdp 8 --remat full
  python -m scripts.plan grpo --topology v5e:4x4 --slices 2 --mesh.slice 2 --model qwen3-1.7b --prompt-length 1024 \\
      --json plan.json
  python -m scripts.plan sft --topology v6e:2x4 --model qwen3-1.7b --batch-size 64 --max-length 2048 --search

SCRIPT is one of {scripts}; all of its flags are taken, and refused in its own words. Nothing is read of data or
weights, so --data, --output-dir and how long the run is may be left out; rows have --max-length tokens.

  --topology CHIP:SIZES  is compiled for: v5e:4x4, v6e:2x4, v5p:2x2x2, ...
  --slices N             so many of it, which are the mesh's axis slice (--mesh.slice N)
  --prompt-length N      tokens of the longest prompt of an online script (512)
  --quick                stops before machine code is made, which takes most of the time: the memory is the compiler's,
                         the time by peak figures
  --search               tries micro-batches, remat and mesh (eight compiles at the most), and prints the recipe of the
                         fastest that fits
  --json FILE            writes all figures there, too
  --libtpu DIR           has libtpu, the TPU's compiler; by default it is fetched once into the user's cache folder

What is printed: memory of a chip by its largest arrays; time by the compiler's own cycles, a loop as often as it runs;
what attention's kernel and the exchange add; which of compute, memory and exchange bounds the step; what to change.
docs/planning.md says what each figure is, and how far to trust it."""


@dataclasses.dataclass(frozen=True)
class Own:
    """The flags that are not the script's."""

    script: str
    topology: str
    slices: int
    prompt_length: int
    """of online scripts"""
    libtpu: Path | None
    json: Path | None
    search: bool
    quick: bool


def main(arguments: list[str]) -> None:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(f"usage: python -m scripts.plan SCRIPT --topology CHIP:SIZES ...\n\n{described()}")
        return
    own, rest = read_own(arguments)
    config = read_flags(own.script, rest)
    plan(own, config)


def described() -> str:
    return DESCRIPTION.format(scripts=", ".join((*ON_ROWS, *ONLINE)))


def read_own(arguments: list[str]) -> tuple[Own, list[str]]:
    """(own flags, the script's). Raises InputError for those that are missing or none."""
    script, *rest = arguments
    if script not in (*ON_ROWS, *ONLINE):
        raise InputError(f"{script!r} is no script that is planned; there are {', '.join((*ON_ROWS, *ONLINE))}")
    values = {}
    for name, what in (("topology", "a chip and its topology, such as v5p:2x2x2"), ("slices", "a number"),
                       ("prompt-length", "a number"), ("libtpu", "a folder"), ("json", "the name of a file")):
        values[name], rest = take_value(rest, f"--{name}", what)
    search, quick = (f"--{name}" in rest for name in ("search", "quick"))
    rest = [each for each in rest if each not in ("--search", "--quick")]
    if values["topology"] is None and not {"-h", "--help"} & {*rest}:
        raise InputError("give --topology, a chip and its topology, such as v5p:2x2x2 (--help lists what there is)")
    if values["prompt-length"] is not None and script not in ONLINE:
        raise InputError(f"--prompt-length is of scripts that sample ({', '.join(ONLINE)}); rows have --max-length")
    slices, prompt = (_number(f"--{name}", usual if values[name] is None else values[name]) for name, usual in (
        ("slices", "1"), ("prompt-length", "512")))
    libtpu, to_json = (None if values[name] is None else Path(values[name]) for name in ("libtpu", "json"))
    return Own(script, values["topology"], slices, prompt, libtpu, to_json, search, quick), rest


def _number(flag: str, text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 0 < int(text) < 2**31:
        raise InputError(f"{flag} {text}: give a number from 1 on")
    return int(text)


def read_flags(script: str, arguments: list[str]) -> Any:
    """The script's configuration, checked as the script does. Raises InputError where it would."""
    from cli.planned import check_planned, with_stand_ins

    module = importlib.import_module(f"scripts.{script}")
    arguments = with_stand_ins(module.Config, arguments)
    config = parse(module.Config, arguments, described(), getattr(module, "GRPO", {}))
    return check_planned(config, getattr(module, "check", lambda config: None))


def make_program(devices: Sequence[Any], script: str, config: Any, prompt_length: int, number: int) -> Any:
    """The script's program of this number, in the process that compiles."""
    from cli.planned import on_tpus

    further = (prompt_length,) if script in ONLINE else ()
    found = importlib.import_module(f"scripts.{script}").programs(on_tpus(config), devices, *further)
    return found[number]._replace(of=len(found))


def plan(own: Own, config: Any) -> None:
    from cli.checks import check_file
    from cli.planned import known_by
    from planning.compiling import Target
    from planning.libtpu import find_libtpu, version_of
    from planning.planner import Planner
    from planning.report import as_json, printed
    from planning.search import devices_in

    devices_in(own.topology, own.slices)
    if own.json is not None:
        check_file(str(own.json), "--json")
    libtpu = find_libtpu(own.libtpu)
    planner = Planner(Target(own.topology, own.slices, libtpu), version_of(libtpu), make_program)
    if own.search:
        config = found(own, config, planner)
    known = own.script, own.prompt_length, known_by(config)
    estimates = planner.estimates((own.script, config, own.prompt_length), known, not own.quick)
    title = f"scripts.{own.script} on {f'{own.slices} x ' if own.slices > 1 else ''}{own.topology}"
    print(printed(estimates, flags_of(config), title), end="", file=sys.stderr if own.search else sys.stdout)
    if own.json is not None:
        write_text(own.json, json.dumps([as_json(each, flags_of(config)) for each in estimates], indent=1) + "\n")


def found(own: Own, config: Any, planner: Any) -> Any:
    """The flags with the micro-batches, remat and mesh that are the fastest of those that fit, which are printed as a
    recipe, too. Raises InputError where nothing fits."""
    from cli.planned import job_of, known_by, recipe_of, with_choice
    from planning.chips import chip_named
    from planning.report import gib, tried_line
    from planning.search import choices, foretell, search

    group = PAIRS.get(own.script, 1)
    job, chip = job_of(config, own.topology, own.slices, group), chip_named(own.topology)
    candidates = [foretell(job, each, chip) for each in choices(job, group)]
    print(f"{len(candidates)} ways to run it; those that promise most are compiled", file=sys.stderr)

    def compiled(choice: Any) -> Any:
        changed = with_choice(config, choice)
        try:
            known = own.script, own.prompt_length, known_by(changed)
            estimate = planner.estimate((own.script, changed, own.prompt_length), known, 0, finish=False)
        except InputError as error:
            print(f"  {choice.name}: {error}", file=sys.stderr)
            return None
        print(f"  {choice.name}: {tried_line(estimate)}", file=sys.stderr)
        return estimate

    best, tried = search(candidates, chip.memory, compiled)
    if best is None and not tried:
        raise InputError("none of the ways to run it is taken by the script; the reasons are above")
    if best is None:
        choice, least = min(tried, key=lambda each: each[1].need)
        raise InputError(f"nothing fits {own.topology}: {choice.name} needs {gib(least.need)} of {gib(least.limit)} on "
                         f"each chip, {gib(least.need - least.limit)} too much; take a larger topology, shorter rows "
                         f"(--max-length), fewer of them (--batch-size), or --lora.rank")
    chosen = with_choice(config, best)
    print(recipe_of(chosen, f"scripts.{own.script} on {own.topology}: {tried_line(dict(tried)[best])}"), end="")
    return chosen


def flags_of(config: Any) -> dict[str, Any]:
    """What the advice looks at."""
    return {name: getattr(config, name) for name in ("remat", "num_microbatches", "microbatch_tokens", "batch_size")
            if hasattr(config, name)}


if __name__ == "__main__":
    with ending():
        main(sys.argv[1:])

"""Every command that README, docs/ and --help show is one that its script takes, a target of the Makefile, a file that
is there, or another program's, which nothing here runs; the cheap ones are run."""

import dataclasses
import importlib
import json
import os
import re
import shlex
import sys
from pathlib import Path

import pytest

from cli.parsing import parse
from cli.values import check_values
from errors import InputError

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "benchmarks" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SCRIPTS = sorted(path.stem for path in (ROOT / "scripts").glob("*.py") if "DESCRIPTION = " in path.read_text())
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`((?:[A-Z_]+=\S+ )*(?:python -m|make|pip) [^`]+)`")
NOT_OURS = {"pip", "curl", "lm_eval", "tensorboard", "xprof", "wandb", "kubectl", "gcloud", "srun", "sbatch",
            "scripts/launch/local.sh"}
"""programs of others, and what starts several processes: marked here as not run"""
FILLED = {"model": "smollm2-135m-instruct", "data": "rows.jsonl", "output_dir": "runs/mine", "max_steps": "10",
          "rewards": "math", "output": "out.jsonl", "stages": "recipe.yaml", "tokenizer": "tokenizers/mine"}
"""what stands for `...` in a command, of flags that it must have and does not name"""


def commands(text, fenced=True):
    """The commands of a page: lines of fenced blocks without a language, and what is inline."""
    blocks = [block for language, block in FENCE.findall(text) if language in ("", "sh", "bash")] if fenced else [text]
    lines = [line.strip() for block in blocks for line in re.sub(r"\\\n\s*", " ", block).splitlines()]
    inline = INLINE.findall(FENCE.sub("", text)) if fenced else ()
    return [line for line in (*lines, *inline) if line and (fenced or line.startswith("python -m scripts."))]


def words_of(command):
    """The command's words, without variables in front and comments behind."""
    words = shlex.split(" ".join(command.split()), comments=True)
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words.pop(0)
    by_path = words[:1] == ["python"] and re.fullmatch(r"(?:\S*/)?scripts/(\w+)\.py", words[1])
    return ["python", "-m", f"scripts.{by_path[1]}", *words[2:]] if by_path else words


def required(config_type, given):
    """Flags that stand for `...`."""
    missing = [field.name for field in dataclasses.fields(config_type)
               if field.default is field.default_factory is dataclasses.MISSING]
    return [word for name in missing if f"--{name.replace('_', '-')}" not in given
            for word in (f"--{name.replace('_', '-')}", FILLED[name])]


def check_flags(module, words):
    """Raises InputError unless a script takes the flags; without any, a script is only named."""
    words = ["1" if word == "N" else word for word in words]
    if "--help" in words or not words:
        return
    if hasattr(module, "read_own"):  # of plan, which has the flags of others, too
        own, rest = module.read_own(words)
        module.read_flags(own.script, rest)
        return
    if "..." in words:
        words = [word for word in words if word != "..."] + required(module.Config, words)
    check_values(parse(module.Config, words, module.DESCRIPTION))


def check(command, page):
    """Raises AssertionError or InputError for a command that would not start."""
    words = words_of(command)
    if words[0] == "make":
        targets = re.findall(r"^(\w[\w-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert words[1] in targets, f"{page}: {command}"
    elif words[:2] == ["python", "-m"] and words[2].startswith("scripts."):
        assert words[2].removeprefix("scripts.") in SCRIPTS, f"{page}: {command}"
        try:
            check_flags(importlib.import_module(words[2]), words[3:])
        except InputError as error:
            raise AssertionError(f"{page}: {command}: {error}") from None
    elif words[:3] == ["python", "-m", "pytest"]:
        assert words[3] in page.read_text(), f"{page}: {command}"  # the page writes the file itself
    elif words[:2] == ["python", "-m"]:
        assert (ROOT / f"{words[2].replace('.', '/')}.py").exists(), f"{page}: {command}"
    else:
        assert words[0] in NOT_OURS, f"{page}: {command}: no command that is known; mend it, or list it in NOT_OURS"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_pages_commands_would_start(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    for command in commands(page.read_text()):
        check(command, page)


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_commands_in_a_scripts_help_would_start(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    for command in commands(importlib.import_module(f"scripts.{name}").DESCRIPTION, fenced=False):
        check(command, ROOT / "scripts" / f"{name}.py")


def test_an_example_has_the_same_flags_wherever_it_stands():
    """A directory under runs/ is of one command, on all pages and in --help."""
    texts = {page.name: (page.read_text(), True) for page in PAGES}
    texts |= {name: (importlib.import_module(f"scripts.{name}").DESCRIPTION, False) for name in SCRIPTS}
    of_folder = {}
    for place, (text, fenced) in texts.items():
        for words in map(words_of, commands(text, fenced)):
            folder = words[words.index("--output-dir") + 1] if "--output-dir" in words else ""
            if folder.startswith("runs/") and "..." not in words:
                flags = words[2], frozenset(" ".join(words[3:]).split(" --"))
                assert of_folder.setdefault(folder, flags) == flags, f"{place}: {folder}"
    assert {"runs/mine", "runs/dpo", "runs/sums"} <= of_folder.keys()


@pytest.mark.parametrize("command", [
    "make nothing", "python -m scripts.nothing", "python -m scripts.sft ... --no-such-flag 3", "brew install x",
    "python -m scripts.sft --model a --data b.jsonl", "python -m benchmarks.nothing", "python -m pytest nowhere.py",
    "python -m scripts.sft ... --max-steps few", "python -m scripts.sft ... --config configs/none.yaml"])
def test_a_command_that_would_not_start_is_found(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(AssertionError):
        check(command, ROOT / "README.md")


ROWS = {
    "chats.jsonl": [{"tokens": [first, 2, 3, 4]} for first in range(5, 13)],
    "rows.jsonl": [{"tokens": [first, 2, 3, 4], "weight": 1.0} for first in range(5, 13)],
    "pairs.jsonl": [{"chosen_tokens": [1, 2, 3, first], "rejected_tokens": [1, 2, 4]} for first in range(5, 13)],
    "labelled.jsonl": [{"tokens": [1, 2, first], "label": bool(first % 2)} for first in range(5, 13)]}
"""files that the README's commands name"""
CHEAP = ("sft", "score", "export", "dpo", "kto", "reward", "report")


@pytest.mark.slow
def test_the_readmes_cheap_commands_run(tmp_path, monkeypatch, capsys):
    """In the README's order, with a tiny model, two steps, and rows of tokens."""
    tiny = str(ROOT / "tests" / "fixtures" / "families" / "smollm2")
    monkeypatch.chdir(tmp_path)
    for name, rows in ROWS.items():
        Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    ran = set()
    for command in commands((ROOT / "README.md").read_text()):
        words = words_of(command.replace("smollm2-135m-instruct", tiny))
        name = words[2].removeprefix("scripts.") if words[:2] == ["python", "-m"] else ""
        if name not in CHEAP or {"...", "--help"} & {*words}:
            continue
        if name == "report" and importlib.util.find_spec("plotly") is None:
            continue
        steps = ["--max-steps", "2"] if "--max-steps" in words else []
        monkeypatch.setattr(sys, "argv", [name, *words[3:], *steps])
        module = importlib.import_module(f"scripts.{name}")
        from cli import command as ending

        ending.run(module.main, module.Config, module.DESCRIPTION)
        ran.add(name)
    assert ran >= {*CHEAP} - {"report"}
    assert os.path.exists("runs/reward/metrics.jsonl")
    assert "loss (nats a token): " in capsys.readouterr().out

"""Tasks of our own: any prompts, answered by the engine and graded by any rewards.

    math:FILE           the column answer or solution, by math, math_strict (in \boxed{} or after ####) and math_format
    code:FILE           unit tests, or examples of input and output of whole programs, whichever the rows have
    gym:TASK(...)       reasoning-gym's problems, by its verifier and to the letter
    REWARDS:FILE        any rewards as --rewards names them: "format(pattern=...):FILE", model:PATH_OR_ID:FILE

FILE is anything that --data takes. A row's prompt is its `prompt` or `messages`, else its question, problem, text or
description; rows with the same `family` hang together.
"""

import copy
import dataclasses
import hashlib
import json
import re
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from data.prompts import Prompt, read_prompts
from data.sources import Source, WithTemplateKwargs, open_source, parse_source
from data.specs import parse_spec, split_outside
from data.templates import check_template_kwargs
from errors import InputError
from evals.samples import Sample
from evals.subject import Answer, Subject
from rewards.answers import clean_reference, find_answer
from rewards.registry import Weighted, load_rewards
from rewards.scoring import Failure, Scored, check_columns
from rollouts.grading import Grading
from rollouts.sampling import make_controls

PROMPTS = ("question", "problem", "text", "description", "question_content")
"""columns that are prompts where there is no other"""
MAX_NEW_TOKENS = 2048
"""of an answer, unless the model's context or a flag has fewer: a limit must not cut reasoning"""
TIMEOUT, ROWS_IN_TIME = 60.0, 64
"""seconds that a reward has for so many answers"""
SOURCE = re.compile(r"\s*\{.*\}|(?:hf|tfds|gym):.+|.+\.(?:jsonl|jsonl\.gz|parquet)", re.DOTALL)
FORM = "math:FILE, code:FILE, gym:TASK(...) or REWARDS:FILE, FILE being FILE.jsonl, FILE.parquet, hf:OWNER/NAME, ..."


class Graded(NamedTuple):
    """A task that is ready to be run."""

    name: str
    prompts: list[Prompt]
    rewards: tuple[Weighted, ...]
    stops: tuple[str, ...] = ()
    """strings that end an answer, besides the model's end tokens"""


def is_graded(name: str) -> bool:
    """Whether a task's name is one of this kind."""
    return ":" in name


def check_graded(name: str) -> None:
    """Raises InputError for a name of no known form, and for a source that there is not; no row is read."""
    open_source(parse_source(_split(name)[1]))


def open_graded(name: str, tokenizer: Any, vocab_size: int, *, limit: int | None = None, layout: Any = None,
                unsafe: bool = False, chat: bool = True,
                template_kwargs: Mapping[str, Any] = MappingProxyType({}), dtype: str | None = None) -> Graded:
    """The task of a name, on its first `limit` rows. Strings are users' messages where the model has a chat template,
    unless `chat` is False; `template_kwargs` are that template's, and a reward model computes in `dtype` (None: the
    fastest here). Raises InputError for a name of no known form, for rows without a prompt, and where they lack what
    the rewards are to judge by."""
    grader, data = _split(name)
    tokenizer = tokenizer if chat else without_template(tokenizer)
    source = Rows(open_source(parse_source(data)), limit)
    if template_kwargs:
        check_template_kwargs(template_kwargs, tokenizer)
        source = WithTemplateKwargs(source, dict(template_kwargs))
    prompts = _once(read_prompts(source, tokenizer, vocab_size=vocab_size, max_length=2**31 - 1), name)
    columns = list(dict.fromkeys(column for prompt in prompts for column in prompt.columns))
    rewards = load_rewards(_rewards(grader, data, prompts[0].columns), layout=layout, unsafe=unsafe,
                           chat=bool(tokenizer.chat_template), dtype=dtype)
    check_columns(rewards, columns)
    return Graded(name, prompts, rewards)


def without_template(tokenizer: Any) -> Any:
    """One that takes texts as they are."""
    tokenizer = copy.copy(tokenizer)
    tokenizer.chat_template = None
    return tokenizer


def run_graded(task: Graded, subject: Subject, *, num_samples: int = 1, seed: int = 0, temperature: float | None = None,
               max_new_tokens: int | None = None) -> list[Sample]:
    """A Sample for every answer: greedy for one a prompt, at temperature 1 for several, unless `temperature` says.

    A prompt that does not fit the model's context loses its beginning, as Subject.fit says. Raises InputError as the
    engine and the rewards do.
    """
    limit = max_new_tokens or min(MAX_NEW_TOKENS, subject.max_length)
    fitted = [subject.fit(prompt.tokens, limit) for prompt in task.prompts]
    temperature = (0.0 if num_samples == 1 else 1.0) if temperature is None else temperature
    answers = subject.generate([tokens for tokens, _, _ in fitted], [room for _, room, _ in fitted],
                               make_controls(temperature), task.stops, seed, num_samples)
    scored = grade(task, answers)
    tell_failures(task.name, [failure for each in scored.values() for failure in each.failures])
    return [_sample(task, number, repeat, answer, scored[number], fitted[number])
            for number, group in enumerate(answers) for repeat, answer in enumerate(group)]


def grade(task: Graded, answers: Sequence[Sequence[Answer]]) -> dict[int, Scored]:
    """What the answers to each prompt are worth, by its number. Raises InputError as the rewards do."""
    columns = dict.fromkeys(column for prompt in task.prompts for column in prompt.columns)
    timeout = TIMEOUT * max(1.0, sum(map(len, answers)) / ROWS_IN_TIME)
    with Grading(task.rewards, timeout, [*columns]) as grading:
        for number, (prompt, group) in enumerate(zip(task.prompts, answers, strict=True)):
            count, as_messages = len(group), isinstance(prompt.text, list)
            own = {name: [value] * count for name, value in prompt.columns.items()}
            completions = [[{"role": "assistant", "content": each.text}] if as_messages else each.text
                           for each in group]
            grading.add(number, [prompt.text] * count, completions,
                        own | {"completion_ids": [each.tokens for each in group]})
        return dict(grading.wait())


def tell_failures(name: str, failures: Sequence[Failure]) -> None:
    """A line for each reward that failed."""
    for reward, count in Counter(failure.reward for failure in failures).items():
        first = next(failure for failure in failures if failure.reward == reward)
        print(f"warning: {name}: reward {reward} failed on {count} answer(s), which have no verdict, first with "
              f"{first.error}", file=sys.stderr)


def _sample(task: Graded, number: int, repeat: int, answer: Answer, scored: Scored,
            fitted: tuple[list[int], int, bool]) -> Sample:
    prompt = task.prompts[number]
    question = question_of(prompt)
    target = prompt.columns.get("answer", prompt.columns.get("solution"))
    text = prompt.text if isinstance(prompt.text, str) else json.dumps(prompt.text, ensure_ascii=False)
    found = (find_answer(answer.text, clean_reference(target) or "") if target is not None else None) or None
    return Sample(task.name, question, str(prompt.columns.get("family", question)), repeat, text, answer.text, target,
                  {name: values[repeat] for name, values in scored.values.items()}, answer.finish_reason,
                  {"prompt": prompt.text} | prompt.columns, len(fitted[0]), fitted[2], found)


def question_of(prompt: Prompt) -> str:
    """The id of a prompt and what it is judged by, whatever model is asked; metadata, where generated problems are
    numbered, make no other question."""
    columns = {name: value for name, value in prompt.columns.items() if name != "metadata"}
    text = json.dumps([prompt.text or prompt.tokens, columns], sort_keys=True, default=str)
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:16]


@dataclasses.dataclass(frozen=True)
class Rows:
    """The first `limit` rows of a source, each with a prompt."""

    source: Source
    limit: int | None = None

    def __len__(self) -> int:
        return len(self.source) if self.limit is None else min(self.limit, len(self.source))

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self.source[range(len(self))[index]]
        if row.keys() & {"prompt", "messages", "conversations", "tokens"}:
            return row
        name = next((name for name in PROMPTS if isinstance(row.get(name), str)), None)
        if name is None:
            raise InputError(f"{self.place(index)}: no known columns among {', '.join(sorted(row))}; a row has prompt, "
                             f"messages or tokens, or else a text as {', '.join(PROMPTS)}")
        return row | {"prompt": row[name]}

    def place(self, index: int) -> str:
        return self.source.place(index)


def _once(prompts: Sequence[Prompt], name: str) -> list[Prompt]:
    """Without those that are there already, as generated problems are by chance: a question counts once."""
    once = list({question_of(prompt): prompt for prompt in prompts}.values())
    if len(once) < len(prompts):
        print(f"note: {name}: {len(prompts) - len(once)} of {len(prompts)} questions are there twice, and count once")
    return once


def _split(name: str) -> tuple[str, str]:
    """(what grades, where the rows are from): at the last colon before something that is a source; all of gym:TASK is
    both. Raises InputError where there is none."""
    parts = split_outside(name, ":")
    for at in range(len(parts) - 1, 0, -1):
        if SOURCE.fullmatch(":".join(parts[at:])):
            return ":".join(parts[:at]), ":".join(parts[at:])
    if parts[0] == "gym" and len(parts) == 2:
        return name, name
    raise InputError(f"task {name!r}: no source of rows is behind the colon; give {FORM}")


def _rewards(grader: str, data: str, columns: Mapping[str, Any]) -> str:
    """The rewards, as --rewards names them."""
    if grader == "math":
        return "math,math_strict,math_format"
    if grader == "code":
        return "unit_tests" if has_unit_tests(columns) else "programs"
    if grader == data:
        task, config = parse_spec(grader.removeprefix("gym:"))
        own = ", ".join(f"{name}={value!r}" for name, value in config.items() if name not in ("size", "seed"))
        return f"gym:{task}({own}),gym_exact:{task}" if own else f"gym:{task},gym_exact:{task}"
    return grader


def has_unit_tests(columns: Mapping[str, Any]) -> bool:
    """Whether a row is judged by tests of Python, and not by examples of input and output."""
    from rewards.examples import read_examples

    if columns.get("test_list") or columns.get("test"):
        return True
    try:
        return not read_examples(columns)
    except ValueError:
        return True

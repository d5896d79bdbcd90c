"""K completions of every prompt, by a local model or a teacher elsewhere, graded as in online RL.

A row becomes num_samples rows, one after the other: `completion` is the answer, and the notes say teacher, template,
temperature, finish reason, tokens, and the value of every reward with their weighted sum, `reward`. What cannot be
answered is dropped with the reason. Answers are kept (answers.py), so nothing is asked for twice.
"""

import dataclasses
import itertools
import typing
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from curation.answers import Answers
from curation.local_teacher import LocalTeacher
from curation.queries import Answer, Limits, Query, draw_number
from curation.recipe import fit
from curation.remote_teacher import Endpoint, RemoteTeacher
from curation.stages import Drop, Row, Stage, makes_rows
from data.encode import TEMPLATE_COLUMNS, read_prompt
from data.messages import text_of
from data.records import normalise
from errors import InputError

BLOCK = 1024
"""completions that are asked for together"""
GRADED = 256
"""completions that rewards are asked about together, within their time"""
ANSWERS = ("prompt", "completion", "messages", "conversations", "chosen", "rejected")
"""columns of a row that its sampled answer takes the place of"""


@makes_rows
def sample(*, model: str | dict[str, Any] | tuple[str | dict[str, Any], ...], num_samples: int = 4,
           temperature: float | tuple[float, ...] = 0.8, rewards: str | None = None, max_new_tokens: int = 256,
           top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0, stop: tuple[str, ...] = (),
           templates: tuple[str, ...] = ("{prompt}",), seed: int = 0, num_slots: int = 64,
           reward_timeout: float = 60.0, top_logprobs: int = 0, drop_truncated: bool = False,
           folder: Path) -> Stage:
    """The stage. Each of several models gives num_samples; temperatures and templates are taken in turn, by sample.

    A model is what --model takes, the URL of a teacher, or a mapping of remote_teacher.Endpoint's fields.
    `reward_timeout` are the seconds that each reward has for GRADED completions. What was cut at `max_new_tokens`
    stays, as a wrong answer does, unless `drop_truncated`. Tells how many completions there are, their tokens and mean
    reward, how many were cut, how many could not be had, and how many rewards failed on.
    """
    _check(num_samples, max_new_tokens, num_slots, templates)
    temperatures = temperature if isinstance(temperature, tuple) else (temperature,)
    _check_draws(temperatures, top_k, top_p, min_p, stop, top_logprobs, reward_timeout)
    limits = Limits(max_new_tokens, top_k, top_p, min_p, stop, top_logprobs)
    models = model if isinstance(model, tuple) else (model,)
    if not all(models) or not models:
        raise InputError("model names none; give one, or several as a list")
    teachers = [_open_teacher(each, limits, num_slots) for each in models]
    plan = Plan(teachers, num_samples, temperatures, templates, seed)
    grader, counts = Grader(rewards, reward_timeout, teachers[0].is_chat), Counter()

    def stage(rows: Iterable[Row]) -> Iterator[Row | Drop]:
        answers, rows = Answers(folder / "answers.jsonl"), iter(rows)
        _count_spent(teachers, answers)
        while block := list(itertools.islice(rows, max(1, BLOCK // plan.per_prompt))):
            for each in _sample_block(block, plan, grader, answers):
                _count(each, counts)
                is_cut = isinstance(each, Row) and each.notes["finish_reason"] == "length"
                yield Drop(each, "cut at max_new_tokens") if is_cut and drop_truncated else each
        if counts["completions_failed"] and not counts["completions"]:
            raise InputError(f"none of {counts['completions_failed']} completions could be had; the last {each.reason}")

    stage.summary = lambda: _summarise(counts)
    return stage


def _count(each: Row | Drop, counts: Counter) -> None:
    if isinstance(each, Drop):
        counts["completions_failed"] += 1
        return
    counts.update(completions=1, tokens=each.notes["num_tokens"], rewards_failed="failed" in each.notes,
                truncated=each.notes["finish_reason"] == "length")
    reward = each.notes.get("reward")
    counts.update(graded=reward is not None, reward=reward or 0.0)


def _summarise(counts: Counter) -> dict[str, Any]:
    names = ("completions", "completions_failed", "truncated", "tokens", "rewards_failed")
    mean = {"mean_reward": counts["reward"] / counts["graded"]} if counts["graded"] else {}
    return {name: counts[name] for name in names} | mean


def _open_teacher(model: str | dict[str, Any], limits: Limits, num_slots: int) -> Any:
    """Raises InputError for a model that cannot be opened, and fields that an Endpoint does not have."""
    if isinstance(model, str) and not model.startswith(("http://", "https://")):
        return LocalTeacher(model, limits, num_slots)
    return RemoteTeacher(_read_endpoint({"url": model} if isinstance(model, str) else model), limits)


def _read_endpoint(fields: dict[str, Any]) -> Endpoint:
    known, hints = [field.name for field in dataclasses.fields(Endpoint)], typing.get_type_hints(Endpoint)
    unknown = next((name for name in fields if name not in known), None)
    if unknown is not None or "url" not in fields:
        raise InputError(f"a teacher has {f'no key {unknown!r}' if unknown is not None else 'no url'}; known are "
                         f"{', '.join(known)}")
    return Endpoint(**{name: fit(f"a teacher's {name}", value, hints[name]) for name, value in fields.items()})


def _count_spent(teachers: Sequence[Any], answers: Answers) -> None:
    """What answers of earlier runs have cost."""
    for teacher in teachers:
        if teacher.has_budget:
            for value in answers.values():
                if value["teacher"] == teacher.name:
                    teacher.count(Answer(**value))


class Plan(NamedTuple):
    """Who is asked for what."""

    teachers: Sequence[Any]
    num_samples: int
    """of each teacher"""
    temperatures: Sequence[float]
    templates: Sequence[str]
    seed: int

    @property
    def per_prompt(self) -> int:
        return self.num_samples * len(self.teachers)

    def query(self, row: Row, number: int) -> Query:
        """What is asked for sample `number` of a row."""
        template, temperature = number % len(self.templates), number % len(self.temperatures)
        place = f"{row.source} row {row.index}"
        try:
            record = _with_template(normalise(row.record), self.templates[template])
        except InputError as error:
            raise InputError(f"{place}: {error}") from None
        draw = draw_number(self.seed, row.source, row.index, row.sample, number)
        return Query(place, record, self.temperatures[temperature], draw, template)


def _sample_block(rows: Sequence[Row], plan: Plan, grader: "Grader", answers: Answers) -> Iterator[Row | Drop]:
    """The completions of some rows, in order."""
    made: list[Row | Drop] = []
    planned = [(row, plan.teachers[number // plan.num_samples], number, plan.query(row, number))
             for row in rows for number in range(plan.per_prompt)]
    given = _answer_all([(teacher, query) for _, teacher, _, query in planned], answers)
    for (row, teacher, number, query), answer in zip(planned, given, strict=True):
        made.append(_completed(row, row.sample * plan.per_prompt + number, teacher.name, query, answer))
    answered = [each for each in made if isinstance(each, Row)]
    for start in range(0, len(answered), GRADED):
        grader.grade(answered[start : start + GRADED])
    for each, (_, teacher, _, _) in zip(made, planned):
        yield _as_asked(each, teacher) if isinstance(each, Row) else each


def _answer_all(planned: Sequence[tuple[Any, Query]], answers: Answers) -> list[Answer]:
    """The answer to each: one that is kept, or the teacher's."""
    keys = [teacher.key(query) for teacher, query in planned]
    given = {number: Answer(**answers[key]) for number, key in enumerate(keys) if key in answers}
    for teacher in dict.fromkeys(teacher for teacher, _ in planned):
        missing = [number for number, each in enumerate(planned) if each[0] is teacher and number not in given]
        for place, answer in teacher.answer([planned[number][1] for number in missing]) if missing else ():
            given[missing[place]] = answer
            if answer.failure is None:
                answers.put(keys[missing[place]], vars(answer))
            elif any(answer.usage):  # a budget counts what it cost, and nobody is given it
                answers.put(answers.unused(keys[missing[place]]), vars(answer))
    return [given[number] for number in range(len(planned))]


def _completed(row: Row, sample: int, teacher: str, query: Query, answer: Answer) -> Row | Drop:
    """The row with its answer; without one, dropped with the reason."""
    notes = row.notes | {"stage": "sample", "teacher": teacher, "template": query.template,
                         "temperature": query.temperature}
    if answer.failure is not None:
        return Drop(Row(row.source, row.index, row.record, notes, sample), f"failed: {answer.failure}")
    notes |= {"finish_reason": answer.finish_reason, "num_tokens": answer.usage[1],
              "replaced": {name: value for name, value in row.record.items() if name in ANSWERS}}
    record = {name: value for name, value in row.record.items() if name not in ANSWERS}
    record = {"prompt": read_prompt(normalise(row.record)), "completion": answer.text} | record
    notes |= {"completion_ids": answer.tokens} if answer.tokens is not None else {}
    notes |= {"thought": answer.thought} if answer.thought else {}
    notes |= {"tool_calls": answer.tool_calls} if answer.tool_calls else {}
    if answer.top is not None:
        record |= {"completion_tokens": answer.tokens, "top_tokens": [[each[0] for each in top] for top in answer.top],
                   "top_logps": [[each[1] for each in top] for top in answer.top]}
    return Row(row.source, row.index, record, notes, sample)


def _as_asked(row: Row, teacher: Any) -> Row:
    """The row as it is trained on: what the teacher was asked as a user's message is one, and so is its answer."""
    prompt = row.record["prompt"]
    if isinstance(prompt, str) and teacher.takes_as_message(prompt):
        prompt = [{"role": "user", "content": prompt}]
    if isinstance(prompt, list):
        row.record |= {"prompt": prompt, "completion": [_as_message(row)]}
        row.notes.pop("thought", None)
        row.notes.pop("tool_calls", None)
    return row


def _as_message(row: Row) -> dict[str, Any]:
    """What a row's completion says, thinks and calls."""
    more = {"reasoning_content": row.notes.get("thought"), "tool_calls": row.notes.get("tool_calls")}
    return {"role": "assistant", "content": row.record["completion"]} | {
        name: value for name, value in more.items() if value}


class Grader:
    """Rewards as in online RL: NAME[=WEIGHT],..., by the row's columns. None: nothing is graded."""

    def __init__(self, rewards: str | None, timeout: float, is_chat: bool | None):
        from rewards.registry import load_rewards

        self._rewards = load_rewards(rewards, chat=is_chat) if rewards else ()
        self._timeout = timeout

    def grade(self, rows: Sequence[Row]) -> None:
        """Adds `rewards` and `reward`, their weighted sum, to the notes; None for one that failed. Raises InputError
        for columns that a reward needs and the rows lack."""
        from rewards.scoring import check_columns, compute_rewards

        if not rows or not self._rewards:
            return
        prompts, completions, columns = for_rewards(rows)
        check_columns(self._rewards, [name for name in columns if name != "completion_ids"])
        scored = compute_rewards(self._rewards, prompts, completions, columns, self._timeout)
        for number, row in enumerate(rows):
            row.notes["reward"] = scored.totals[number]
            row.notes["rewards"] = {name: values[number] for name, values in scored.values.items()}
        for failure in scored.failures:
            if failure.row is not None:
                rows[failure.row].notes.setdefault("failed", {})[failure.reward] = failure.error


def for_rewards(rows: Sequence[Row]) -> tuple[list[Any], list[Any], dict[str, list[Any]]]:
    """Prompts, completions and columns as TRL gives them to reward functions: completions in the prompts' form."""
    prompts = [row.record["prompt"] for row in rows]
    completions = [[_as_message(row)] if isinstance(prompt, list) else row.record["completion"]
                   for row, prompt in zip(rows, prompts)]
    names = dict.fromkeys(name for row in rows for name in row.record if name not in ("prompt", "completion"))
    columns = {name: [row.record.get(name) for row in rows] for name in names}
    return prompts, completions, columns | {"completion_ids": [row.notes.get("completion_ids") for row in rows]}


def _with_template(record: dict[str, Any], template: str) -> dict[str, Any]:
    """The record to be asked: its prompt, or the last message that a user wrote, in the template's {prompt}."""
    prompt = read_prompt(record)
    columns = {name: record[name] for name in TEMPLATE_COLUMNS if name in record}
    if prompt is None:
        raise InputError(f"no prompt among {', '.join(sorted(record))}; a row to be answered has prompt or messages")
    if isinstance(prompt, str):
        return {"prompt": template.replace("{prompt}", prompt)} | columns
    users = [place for place, message in enumerate(prompt) if message.get("role") == "user"]
    messages = [dict(message) for message in prompt]
    if users and template != "{prompt}":
        messages[users[-1]]["content"] = template.replace("{prompt}", text_of(messages[users[-1]]["content"]))
    return {"prompt": messages} | columns


def _check_draws(temperatures: Sequence[float], top_k: int, top_p: float, min_p: float, stop: Sequence[str],
                 top_logprobs: int, reward_timeout: float) -> None:
    """Raises InputError as rollouts.sampling does, and for other numbers and strings that make no sense."""
    from rollouts.sampling import make_controls

    for temperature in temperatures:
        make_controls(temperature, top_k, top_p, min_p)
    if not temperatures or not all(stop):
        raise InputError(f"{'stop has an empty string' if temperatures else 'temperature is an empty list'}; leave the "
                         f"key out, or give what it takes")
    if top_logprobs < 0 or not reward_timeout > 0:
        raise InputError(f"top_logprobs is {top_logprobs} and reward_timeout {reward_timeout:g}; they take 0 or more, "
                         f"and more than 0")


def _check(num_samples: int, max_new_tokens: int, num_slots: int, templates: Sequence[str]) -> None:
    """Raises InputError for numbers and templates that make no sense."""
    for name, value in (("num_samples", num_samples), ("max_new_tokens", max_new_tokens), ("num_slots", num_slots)):
        if value < 1:
            raise InputError(f"{name} is {value}; it takes 1 or more")
    wrong = next((template for template in templates if "{prompt}" not in template), None)
    if wrong is not None or not templates:
        raise InputError(f"template {wrong!r} has no {{prompt}}; put it where the row's prompt belongs")

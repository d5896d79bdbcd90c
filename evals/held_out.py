"""Answers to a few held-out prompts, to be read and not judged: a task without a metric, for --sample-prompts."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from data.prompts import Prompt, read_prompts
from data.sources import Concatenated, DataSource, open_in_order, with_template_kwargs
from errors import InputError
from evals.graded import Rows, question_of
from evals.samples import Sample
from evals.subject import Subject
from evals.tasks import Task
from rollouts.sampling import make_controls

NAME = "held-out prompts"
MAX_NEW_TOKENS = 256


def open_held_out(entries: Sequence[DataSource], count: int, tokenizer: Any, vocab_size: int,
                  template_kwargs: Mapping[str, Any]) -> Task:
    """The prompts of the first `count` rows. Raises InputError for rows without a prompt."""
    rows = Rows(Concatenated(open_in_order(entries)), count)
    text = json.dumps(dict(template_kwargs)) if template_kwargs else None
    try:
        prompts = read_prompts(with_template_kwargs([rows], text, tokenizer)[0], tokenizer, vocab_size=vocab_size,
                               max_length=2**31 - 1)
    except InputError as error:
        raise InputError(f"--sample-prompts: {error}") from None
    return Task(NAME, lambda subject: {NAME: answer(prompts, subject)}, prompts)


def answer(prompts: Sequence[Prompt], subject: Subject) -> list[Sample]:
    """A greedy answer to each."""
    fitted = [subject.fit(prompt.tokens, min(MAX_NEW_TOKENS, subject.max_length // 2)) for prompt in prompts]
    answers = subject.generate([tokens for tokens, _, _ in fitted], [room for _, room, _ in fitted],
                               make_controls(0.0), (), 0, 1)
    return [_sample(prompt, given, tokens, cut)
            for prompt, [given], (tokens, _, cut) in zip(prompts, answers, fitted, strict=True)]


def _sample(prompt: Prompt, given: Any, tokens: Sequence[int], cut: bool) -> Sample:
    text = prompt.text if isinstance(prompt.text, str) else json.dumps(prompt.text, ensure_ascii=False)
    question = question_of(prompt)
    return Sample(NAME, question, question, 0, text, given.text, None, {}, given.finish_reason, {"prompt": prompt.text},
                  len(tokens), cut)

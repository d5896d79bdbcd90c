"""Assistant turns as text: the prompt that the model sees when it is asked for a turn, and what it should answer.

Everything is read off what the template renders: the conversation up to a turn, and the prompt for it; where these do
not fit together, an answer to a plain question, and one of the character PROBE alone.
"""

import math
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from data.messages import Message, read_messages, read_spoken, text_of
from data.templates import ChatTemplate
from data.tokenizer import Tokenizer
from errors import InputError, as_json, shown

PROBE = "\ue000"
"""what an assistant says where it is asked what a template writes around it; no data hold this character"""

QUESTION: Message = {"role": "user", "content": "What?"}

PLAIN_ROLES = frozenset({"system", "user", "assistant", "tool"})
"""roles that a template either knows or fails on; others, some leave out without a word"""


class Target(NamedTuple):
    """An assistant turn in a rendered text: its characters, end token included."""

    message: int
    start: int
    end: int
    weight: float


class Rendered(NamedTuple):
    """A row as text."""

    text: str
    targets: list[Target]
    events: Counter[str]


def render_turns(template: ChatTemplate, messages: Sequence[Message], first_target: int) -> list[Rendered]:
    """The rows in which every assistant turn is a target once (data.chat.encode_turns), at least one.

    A turn joins the row before it where its prompt begins with that row's text, and else begins a row.
    """
    messages = read_conversation(template, messages)
    rows, events = [], Counter()
    for i, weight in _choose_targets(messages, first_target):
        turn = _render_turn(template, messages, i, weight)
        if isinstance(turn, str):
            events[turn] += 1
        elif rows and turn.text.startswith(rows[-1].text[: rows[-1].targets[-1].end]):
            rows[-1] = Rendered(turn.text, rows[-1].targets + turn.targets, rows[-1].events + turn.events)
        else:
            rows.append(turn)
    if not rows:
        raise InputError(_nothing_left(template.tokenizer, events))
    rows[-1] = _with_what_follows(template, messages, rows[-1])
    events += count_left_out(template, messages, "".join(row.text for row in rows))
    rows[-1].events.update(events)
    return rows


def _nothing_left(tokenizer: Tokenizer, events: Counter[str]) -> str:
    if events["turns_dropped"]:
        return (f"the chat template writes no end token (ids {shown(tokenizer.eos_ids)}) after any assistant turn, or "
                "no prompt before it; mend it, or name its end token in generation_config.json's eos_token_id")
    return ("the chat template leaves out all that the assistant says, tool calls or thoughts; drop the row, or take a "
            "model whose template has them")


def _with_what_follows(template: ChatTemplate, messages: list[Message], row: Rendered) -> Rendered:
    """What is said after the last target is context, too, where it leaves the row as it is."""
    if row.targets[-1].message + 1 == len(messages):
        return row
    text = template.render(messages)
    return row._replace(text=text) if text.startswith(row.text[: row.targets[-1].end]) else row


def _choose_targets(messages: list[Message], first_target: int) -> list[tuple[int, float]]:
    """The numbers of the assistant turns to be trained on, with their weights."""
    turns = [(i, _weight(i, message)) for i, message in enumerate(messages)
             if message["role"] == "assistant" and i >= first_target]
    if not any(weight for _, weight in turns):
        where = f" from message {first_target} on" if first_target else ""
        which = "whose weight is above 0 " if turns else ""
        raise InputError(f"no assistant turn {which}in the conversation{where}, nothing to train on; drop the row")
    for i, weight in turns:
        if weight and not _said(messages[i]):
            raise InputError(f"message {i}: the assistant's content is empty; fill it or drop the row")
    return [(i, weight) for i, weight in turns if weight]


def _weight(i: int, message: Message) -> float:
    """`weight`, a number, times `train`, true or false; 1 without either."""
    weight, train = message.get("weight", 1), message.get("train", True)
    if not isinstance(weight, int | float) or not 0 <= weight < math.inf:
        raise InputError(f"message {i}: weight is {as_json(weight)}, not a number from 0 on")
    if train not in (True, False):
        raise InputError(f"message {i}: train is {as_json(train)}, not true or false")
    return float(weight) * train


def _render_turn(template: ChatTemplate, messages: list[Message], i: int, weight: float) -> Rendered | str:
    """The conversation up to assistant turn i as the model is asked for it and should answer; or, where that cannot
    be, which of data.reading.COUNTS it counts for."""
    message = messages[i]
    prompt = _find_prompt(template, messages, i)
    if prompt is None:
        return "turns_dropped"
    answer = write_answer(template, messages, i, prompt)
    answer += _end_in_next(template, messages, i, prompt + answer)
    lost = _lost(message, prompt, answer)
    if lost.keys() == _said(message):
        return next(iter(lost))
    end = _find_end(template, answer)
    if end is None:
        return "turns_dropped"
    return Rendered(prompt + answer, [Target(i, len(prompt), len(prompt) + end, weight)], lost)


def _find_prompt(template: ChatTemplate, messages: list[Message], i: int) -> str | None:
    """What the model sees when it is asked for turn i; None where the template has no prompt for that turn alone."""
    try:
        return template.render(messages[:i], True) if i else _opening_prompt(template, messages[0])
    except InputError:
        template.render(messages)  # where it fails on the whole, too, the row is at fault
        return None


def _said(message: Message) -> set[str]:
    """What a turn holds, by the names under which it is counted if the template leaves it out."""
    spoken = read_spoken(message)
    held = {"tools_dropped": message.get("tool_calls"), "content_dropped": spoken.answer.strip(),
            "reasoning_dropped": spoken.thought}
    return {name for name, value in held.items() if value}


def _lost(message: Message, prompt: str, answer: str) -> Counter[str]:
    """What of a turn the template leaves out: it stands neither in the answer nor across its border to the prompt,
    whatever white space the template takes off or puts in."""
    spoken, names = read_spoken(message), [call["function"]["name"] for call in message.get("tool_calls", ())]
    written = prompt[len(prompt) - len(spoken.answer) :] + answer
    lost = {"tools_dropped": not all(name in answer for name in names),
            "content_dropped": _bare(spoken.answer) not in _bare(written),
            "reasoning_dropped": _bare(spoken.thought) not in _bare(answer)}
    return Counter({name: 1 for name, value in lost.items() if value})


def _bare(text: str) -> str:
    return "".join(text.split())


def write_answer(template: ChatTemplate, messages: list[Message], i: int, prompt: str) -> str:
    """What follows the prompt of turn i where the assistant says message i, up to the end of the text.

    Where the template writes the prompt of a turn differently once it is answered, it may be that what it rewrites
    lies before the last question (Mistral's system message): then it answers a plain question as it answers this one.
    Else it is the beginning of the answer that it rewrites: then the answer is what it writes from where the message
    begins; after a prompt that opens a thought (R1-Distill's, whose answers have none) the message's, closed, and what
    follows it; after one that closes a thought, what follows the message's.
    """
    whole = template.render(messages[: i + 1])
    if whole.startswith(prompt):
        return whole[len(prompt) :]
    plain_prompt, plain = template.render([QUESTION], True), template.render([QUESTION, messages[i]])
    if plain.startswith(plain_prompt):
        return plain[len(plain_prompt) :]
    opened = prompt.rstrip()
    thinks = opened.endswith(("<think>", "</think>"))
    probe = _with_answer(messages[i], PROBE) if thinks else {"role": "assistant", "content": PROBE}
    reply = plain[_common_prefix(plain, template.render([QUESTION, probe])) :]
    gap = prompt[len(opened) :]  # what follows <think> precedes </think>
    return f"{read_spoken(messages[i]).thought}{gap}</think>{2 * gap}{reply}" if opened.endswith("<think>") else reply


def _with_answer(message: Message, answer: str) -> Message:
    """The message with another answer after its thought."""
    content = text_of(message["content"])
    spoken = read_spoken(message).answer.lstrip()
    return message | {"content": content[: len(content) - len(spoken)] + answer}


def _opening_prompt(template: ChatTemplate, message: Message) -> str | None:
    """The prompt of an assistant turn that opens the conversation, of which templates render none: what is written
    before any content, where that ends as a prompt does, but for a thought that prompts open or leave out. None where
    it does not."""
    opened = template.render([message])
    opened = opened[: _common_prefix(opened, template.render([_with_answer(message, PROBE)]))]
    opening, prompt = template.render([QUESTION]), template.render([QUESTION], True)
    header = prompt[len(opening) :]
    bare = header.partition("<think>")[0]
    if prompt.startswith(opening) and opened.endswith(bare):
        return opened.removesuffix(bare) + header
    return None


def _find_end(template: ChatTemplate, answer: str) -> int | None:
    """The character after the end token that the template writes after an answer, which may hold others; None where it
    writes none."""
    ends = sorted(at for text in end_texts(template.tokenizer) for at in _occurrences(text, answer))
    if len(ends) > 1:
        probe = template.render([QUESTION, {"role": "assistant", "content": PROBE}])
        tail = len(answer) - _common_prefix(answer[::-1], probe[::-1])
        ends = [end for end in ends if end > tail] or ends[-1:]
    return ends[0] if ends else None


def _end_in_next(template: ChatTemplate, messages: list[Message], i: int, text: str) -> str:
    """The end token of turn i where that is what the next turn begins with (GLM's <|user|>), else nothing."""
    if text.rstrip().endswith(end_texts(template.tokenizer)):
        return ""
    following = messages[i + 1 : i + 2] or [QUESTION]
    longer = template.render([*messages[: i + 1], *following])
    if not longer.startswith(text):  # what follows takes away this turn's thought: any turn's end tells
        plain = [QUESTION, {"role": "assistant", "content": PROBE}]
        text, longer = template.render(plain), template.render([*plain, *following])
    ends = [end for end in end_texts(template.tokenizer) if longer.startswith(text + end)]
    return "" if text.rstrip().endswith(end_texts(template.tokenizer)) else max(ends, key=len, default="")


def _occurrences(text: str, where: str) -> Iterator[int]:
    """The ends of all places where a text stands."""
    at = where.find(text)
    while at >= 0:
        yield at + len(text)
        at = where.find(text, at + len(text))


def _common_prefix(*texts: str) -> int:
    return len(os.path.commonprefix(texts))


def count_left_out(template: ChatTemplate, messages: list[Message], text: str) -> Counter[str]:
    """Messages whose role the template passes over, and tools."""
    content = sum(message["role"] not in PLAIN_ROLES and _bare(text_of(message["content"])) not in _bare(text)
                  for message in messages)
    tools = bool(template.tools) and not template.reads("tools")
    return Counter(content_dropped=content, tools_dropped=int(tools))


def read_conversation(template: ChatTemplate, messages: Sequence[Message]) -> list[Message]:
    """read_messages; what brings a BOS or an end token that the template writes has it from the template alone, once.
    """
    messages = [_without_end(template.tokenizer, message) for message in read_messages(messages)]
    bos, first = template.tokenizer.bos_token, text_of(messages[0]["content"]).lstrip()
    if bos and first.startswith(bos) and template.render([QUESTION]).lstrip().startswith(bos):
        messages[0] = messages[0] | {"content": first.removeprefix(bos)}
    return messages


def _without_end(tokenizer: Tokenizer, message: Message) -> Message:
    text, ends = text_of(message["content"]), end_texts(tokenizer)
    if message["role"] != "assistant" or not text.rstrip().endswith(ends):
        return message
    while text.rstrip().endswith(ends):
        text = text.rstrip()[: -max(len(end) for end in ends if text.rstrip().endswith(end))]
    return message | {"content": text}


def end_texts(tokenizer: Tokenizer) -> tuple[str, ...]:
    """The tokenizer's end tokens as text."""
    texts = [tokenizer.decode([each], skip_special_tokens=False) for each in tokenizer.eos_ids]
    return tuple(text for text in texts if text)

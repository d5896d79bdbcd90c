"""What the policy talks to over several turns: how it is called, and the tokens of what it answers.

    class Environment:
        def reset(self, row) -> messages
        async def step(self, messages) -> (messages, done, reward)

One object is made for each episode. Calls run in threads beside sampling, each in an event loop of its own, so that one
that hangs holds up no other. A prompt without an environment is one of one step. Limits of turns, tokens and time are
the collector's (rollouts/collecting.py). In a run of several processes, process 0 runs the environments of all.
"""

import asyncio
import dataclasses
import inspect
import json
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import Any, Protocol

import jax

from data.chat import encode_prompt, open_template
from data.messages import read_messages, text_of
from data.prompts import Prompt
from data.templates import ChatTemplate
from data.turns import PROBE, end_texts
from errors import InputError, shown
from rewards.scoring import LARGEST, is_reward
from sharding.exchange import decided

Messages = list[dict[str, Any]]


class Environment(Protocol):
    """One conversation's other side."""

    def reset(self, row: dict[str, Any]) -> Messages:
        """The messages that open the conversation; `row` has the prompt's columns and, as `prompt`, its text."""

    async def step(self, messages: Messages) -> tuple[Messages, bool, float | None]:
        """Of the whole conversation, whose last message is the policy's: what is said next, whether it is over, and
        what this turn is worth, if anything."""


@dataclasses.dataclass(frozen=True)
class Environments:
    """How environments are made, and their limits."""

    make: Callable[[], Any]
    max_turns: int = 8
    """of the policy"""
    max_prompt_length: int = 1024
    """tokens of a conversation's opening"""
    timeout: float = 60.0
    """seconds for a reset or a step"""


class CallError(Exception):
    """What a call raised, as `Type: text`."""


class Calls:
    """Functions and coroutine functions that run in threads of process 0, and whose outcomes all processes get: each
    makes the same calls in the same order. One that is late is given up, and left to itself."""

    def __init__(self, timeout: float):
        self._timeout = timeout
        self._names: set[int] = set()
        self._running: dict[int, tuple[Future, float]] = {}  # in process 0

    @property
    def running(self) -> bool:
        return bool(self._names)

    def start(self, name: int, read: Callable[[Any], Any], function: Callable[..., Any], *arguments: Any) -> None:
        """Calls function(*arguments); what `read` makes of it, which is to be JSON's, is given by `finished` under this
        name."""
        self._names.add(name)
        if jax.process_index() == 0:
            future: Future = Future()
            thread = threading.Thread(target=_call, args=(future, read, function, arguments), name=f"call {name}",
                                      daemon=True)
            self._running[name] = future, time.monotonic() + self._timeout
            thread.start()

    def finished(self, seconds: float) -> dict[int, Any]:
        """By name, what was given, or the exception that was raised, of what ends within `seconds`, if anything."""
        if not self._names:
            return {}
        outcomes = {name: CallError(error) if error else given
                    for name, given, error in decided(lambda: self._outcomes(seconds))}
        self._names -= outcomes.keys()
        return outcomes

    def _outcomes(self, seconds: float) -> list[tuple[int, Any, str | None]]:
        """(name, what was given, the error if there is one)."""
        wait([future for future, _ in self._running.values()], seconds, FIRST_COMPLETED)
        now = time.monotonic()
        names = [name for name, (future, deadline) in self._running.items() if future.done() or now > deadline]
        return [(name, *self._outcome(self._running.pop(name)[0])) for name in names]

    def _outcome(self, future: Future) -> tuple[Any, str | None]:
        if not future.done():
            return None, f"TimeoutError: not done within {self._timeout:g} s"
        error = future.exception() or _not_told(future.result())
        return (None, f"{type(error).__name__}: {error}") if error else (future.result(), None)


def _not_told(given: Any) -> Exception | None:
    """Why other processes cannot be told, if there are any."""
    try:
        if jax.process_count() > 1:
            json.dumps(given)
    except (TypeError, ValueError) as error:
        return TypeError(f"{error}; in a run of several processes, give what JSON has")
    return None


def _call(future: Future, read: Callable[[Any], Any], function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    try:
        given = function(*arguments)
        future.set_result(read(asyncio.run(_awaited(given)) if inspect.isawaitable(given) else given))
    except BaseException as error:  # noqa: BLE001 - a user's environment may raise anything; told where it is waited for
        future.set_exception(error)


async def _awaited(given: Any) -> Any:
    return await given


def read_reset(given: Any) -> Messages:
    """The messages that a reset gave. Raises TypeError or InputError for anything else."""
    messages = read_messages(given)
    if not messages:
        raise TypeError(f"reset gave {shown(given)}; a conversation opens with at least one message")
    return messages


def read_step(given: Any) -> tuple[Messages, bool, float | None]:
    """What a step gave. Raises TypeError or InputError for anything else."""
    if not (isinstance(given, tuple | list) and len(given) == 3):
        raise TypeError(f"step gave {shown(given)}, not (messages, done, reward)")
    messages, done, reward = given
    if reward is not None and not is_reward(float(reward)):
        raise TypeError(f"step gave the reward {shown(reward)}; give a finite number of at most {LARGEST:g}, or None")
    return _read_answer(messages), _read_done(done), None if reward is None else float(reward)


def _read_answer(given: Any) -> Messages:
    """The messages of a step; what is said by none is no message."""
    nothing = given is None or (isinstance(given, list | tuple) and not given)
    messages = [] if nothing else read_messages(given)
    if any(message["role"] == "assistant" for message in messages):
        raise TypeError("step gave a message of the assistant, which is the policy's role; give another")
    if PROBE in json.dumps(messages, ensure_ascii=False):
        raise TypeError(f"step gave a message with the character {json.dumps(PROBE)}, which is kept for the template; "
                        f"leave it out")
    return messages


def _read_done(given: Any) -> bool:
    """True or False, also of numpy and as 0 or 1; a text, which is always true, is a mistake."""
    given = given.item() if hasattr(given, "item") and getattr(given, "size", 1) == 1 else given
    if given not in (0, 1):
        raise TypeError(f"step gave {shown(given)} for done; give True or False")
    return bool(given)


def encode_opening(tokenizer: Any, prompt: Prompt, messages: Messages) -> list[int]:
    """The tokens of a conversation's beginning, with the header of the policy's turn. Raises InputError where the chat
    template leaves out a role."""
    encoded = encode_prompt(tokenizer, messages, **_for_template(prompt))
    if encoded.events["content_dropped"]:
        raise InputError("the chat template leaves out what is said by a role that it has not; give another role")
    return encoded.tokens


def encode_continuation(tokenizer: Any, prompt: Prompt, conversation: Sequence[dict[str, Any]],
                        ended: bool) -> list[int]:
    """The tokens between the policy's last turn and its next: the rest of the turn, what was said since, and the header
    of the next turn. `ended`: the policy drew the end token, which is not written again.

    The policy's turns stand as they were drawn. What follows is read off the template, which writes it after a turn of
    one character (data.turns.PROBE) in place of the policy's last. Raises InputError for a template that writes no
    such turn, or not what was said since.
    """
    last = max(number for number, message in enumerate(conversation) if message["role"] == "assistant")
    probed = [*conversation[:last], {"role": "assistant", "content": PROBE}, *conversation[last + 1 :]]
    template, messages = open_template(tokenizer, _for_template(prompt)), read_messages(probed)
    after = _after_probe(template, messages)
    for number, message in enumerate(messages[last + 1 :], last + 1):
        other = message | {"content": text_of(message["content"]) + "."}
        if _after_probe(template, [*messages[:number], other, *messages[number + 1 :]]) == after:
            raise InputError(f"after a turn of the assistant the chat template leaves out what the {message['role']} "
                             f"says; give another role")
    ends = [len(end) for end in end_texts(tokenizer) if after.startswith(end)]
    return tokenizer.encode(after[max(ends, default=0) if ended else 0 :])


def _after_probe(template: ChatTemplate, messages: Messages) -> str:
    _, found, after = template.render(messages, add_generation_prompt=True).rpartition(PROBE)
    if not found:
        raise InputError("the chat template leaves out earlier turns of the assistant, so no conversation goes on")
    return after


def _for_template(prompt: Prompt) -> dict[str, Any]:
    names = ("tools", "chat_template_kwargs")
    return {name: prompt.columns[name] for name in names if prompt.columns.get(name) is not None}

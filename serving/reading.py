"""What a chat answer says, as its text comes: the thought, the content, the calls of tools."""

import json
from collections.abc import Sequence
from typing import Any

from data.tool_calls import ToolFormat, longest_beginning, read_turn

OPENS, CLOSES = "<think>", "</think>"

Delta = dict[str, Any]
"""a part of a message, as OpenAI's streams have it"""


class Reader:
    """Text to deltas. `tool_format`: calls are looked for. `splits`: a thought is kept apart from what follows it;
    `opened`: the prompt has begun it. Only the first call counts where `parallel` is false."""

    def __init__(self, tool_format: ToolFormat | None = None, splits: bool = False, opened: bool = False,
                 parallel: bool = True):
        self._format, self._parallel = tool_format, parallel
        self._thinks = splits and opened
        self._may_open, self._begins = splits and not opened, False
        self._held, self._has_thought, self._has_content = "", False, False
        self.num_calls = 0

    def add(self, text: str, last: bool = False) -> list[Delta]:
        """What comes of a text's next part; `last`: nothing follows it."""
        self._held += text
        deltas: list[Delta] = []
        if self._may_open:
            self._open(last)
        if self._thinks:
            deltas += _delta("reasoning_content", self._take_thought(last))
        if not self._thinks and not self._may_open:
            deltas += self._take_answer(last)
        return deltas

    # ---------------------------------------------------------------------------------------------------- the thought

    def _open(self, last: bool) -> None:
        """Whether the text begins with a thought, once that is seen."""
        bare = self._held.lstrip()
        self._thinks = bare.startswith(OPENS)
        self._may_open = not self._thinks and OPENS.startswith(bare) and not last
        if self._thinks:
            self._held = bare[len(OPENS) :]

    def _take_thought(self, last: bool) -> str:
        """Without white space around it."""
        thought, closed, rest = self._held.partition(CLOSES)
        if closed:
            self._held, self._thinks, self._begins = rest, False, True
            return self._stripped(thought.rstrip())
        end = len(thought) if last else len(thought) - longest_beginning(thought, [CLOSES])
        given = thought[:end].rstrip()
        self._held = self._held[len(given) :]
        return self._stripped(given)

    def _stripped(self, text: str) -> str:
        text = text if self._has_thought else text.lstrip()
        self._has_thought = self._has_thought or bool(text)
        return text

    # ----------------------------------------------------------------------------------------------------- the answer

    def _take_answer(self, last: bool) -> list[Delta]:
        if self._begins:  # behind a thought
            self._held = self._held.lstrip()
            self._begins = not self._held
        if self._format is None:
            given, self._held = self._held, ""
            return _delta("content", given)
        if last:
            return self._take_calls()
        given = self._held[: self._format.start(self._held)].rstrip()
        self._held = self._held[len(given) :]
        self._has_content = self._has_content or bool(given)
        return _delta("content", given)

    def _take_calls(self) -> list[Delta]:
        turn = read_turn(self._format, self._held)
        calls = turn.tool_calls if self._parallel else turn.tool_calls[:1]
        self.num_calls = len(calls)
        content = turn.content if not calls or not turn.content or not self._has_content else f"\n{turn.content}"
        return _delta("content", content) + [_call_delta(number, call) for number, call in enumerate(calls)]


def _delta(name: str, text: str) -> list[Delta]:
    return [{name: text}] if text else []


def _call_delta(number: int, call: Any) -> Delta:
    function = call["function"]
    written = {"name": function["name"], "arguments": json.dumps(function["arguments"], ensure_ascii=False)}
    return {"tool_calls": [{"index": number, "id": call["id"], "type": "function", "function": written}]}


def as_message(deltas: Sequence[Delta]) -> dict[str, Any]:
    """The message that deltas make up: content is null where nothing is said but calls."""
    message: dict[str, Any] = {"role": "assistant", "content": None}
    calls = [{name: value for name, value in call.items() if name != "index"}
             for delta in deltas for call in delta.get("tool_calls", ())]
    for name in ("reasoning_content", "content"):
        text = "".join(delta.get(name, "") for delta in deltas)
        if text or name == "content" and not calls:
            message[name] = text
    return message | ({"tool_calls": calls} if calls else {})

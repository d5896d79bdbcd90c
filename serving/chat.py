"""POST /v1/chat/completions: messages are answered by one of the assistant's."""

from collections.abc import AsyncIterator, Sequence
from typing import Any

from rollouts.engine import Output
from serving.answers import logps_of, make_head, num_likeliest, usage
from serving.conversations import encode_chat
from serving.grammar import Grammars
from serving.jobs import Job
from serving.logprobs import TokenTexts, of_chat
from serving.reading import CLOSES, OPENS, Delta, Reader, as_message
from serving.refusals import Refusal
from serving.rules import Marks, answer_of_calls, answer_of_schema, answer_or_calls, turn_grammar
from serving.sample_requests import make_samples, stop_strings
from serving.schemas import ChatBody, NamedTool
from serving.served import Served
from serving.text import StopCutter, TextStream

CHUNK = "chat.completion.chunk"


class ChatAnswer:
    """See the module; an answers.Answer. Raises InputError or Refusal for what cannot be answered."""

    rows = ()

    def __init__(self, served: Served, texts: TokenTexts, grammars: Grammars, body: ChatBody):
        self._served, self._texts, self._body = served, texts, body
        self._tools = _callable_tools(served, body)
        self._splits = served.splits_thoughts if body.separate_reasoning is None else body.separate_reasoning
        self._prompt = encode_chat(served, body, [tool.model_dump(exclude_none=True) for tool in self._tools])
        self._opened = served.text.decode(self._prompt[-8:], skip_special_tokens=False).rstrip().endswith(OPENS)
        self._top = (body.top_logprobs or 0) if body.logprobs else None
        grammar = self._grammar()
        if grammar:
            grammars.check(grammar)
        limit = served.limit(self._prompt, body.max_completion_tokens or body.max_tokens)
        self.samples = make_samples(body, [self._prompt], [limit], num_likeliest(self._top), grammar)
        self._head = make_head(served, "chatcmpl")

    def _grammar(self) -> str | None:
        """What the answer must be, if anything."""
        body, marks = self._body, Marks(self._served.text, self._marks)
        calls = self._calls(marks)
        schema = _schema(body)
        if schema is not None and self._tools and body.tool_choice in (None, "auto"):
            raise Refusal(400, "a response_format beside tools that may be called or not is not supported; set "
                               "tool_choice", param="response_format")
        answer = calls or (None if schema is None else answer_of_schema(schema))
        return answer and turn_grammar(answer, marks, self._splits, self._opened)

    def _calls(self, marks: Marks) -> str | None:
        """The rules of calls: where they must come, or where a function's schema is strict."""
        choice, functions = self._body.tool_choice, [tool.function for tool in self._tools]
        if not functions or choice == "none":
            return None
        forced = choice == "required" or isinstance(choice, NamedTool)
        if not forced and not any(function.strict for function in functions):
            return None
        schemas = [{"name": each.name, "parameters": each.parameters if forced or each.strict else {"type": "object"}}
                   for each in functions if not isinstance(choice, NamedTool) or each.name == choice.function.name]
        several = self._parallel and not isinstance(choice, NamedTool)
        make = answer_of_calls if forced else answer_or_calls
        return make(self._served.tool_format, schemas, marks, several)

    @property
    def _parallel(self) -> bool:
        return self._body.parallel_tool_calls is not False

    @property
    def _marks(self) -> tuple[str, ...]:
        """What of special tokens' texts has to be seen."""
        tool_format = self._served.tool_format
        calls = tool_format.marks if self._tools and tool_format else ()
        return (*calls, OPENS, CLOSES) if self._splits else calls

    # ------------------------------------------------------------------------------------------------------ the answer

    async def whole(self, job: Job) -> dict[str, Any]:
        choices = [_Choice(self) for _ in self.samples]
        async for number, output in job.outputs():
            choices[number].add(output)
        return self._head.object("chat.completion", choices=[each.whole(index) for index, each in enumerate(choices)],
                                 usage=self._usage(choices))

    async def chunks(self, job: Job) -> AsyncIterator[dict[str, Any]]:
        choices = [_Choice(self) for _ in self.samples]
        more = {"usage": None} if self._body.include_usage else {}
        for index in range(len(choices)):
            first = {"index": index, "delta": {"role": "assistant", "content": ""}, "logprobs": None,
                     "finish_reason": None}
            yield self._head.object(CHUNK, choices=[first], **more)
        async for number, output in job.outputs():
            for part in choices[number].add(output):
                yield self._head.object(CHUNK, choices=[{"index": number, **part}], **more)
        if self._body.include_usage:
            yield self._head.object(CHUNK, choices=[], usage=self._usage(choices))

    def _usage(self, choices: Sequence["_Choice"]) -> dict[str, int]:
        return usage([self._prompt], sum(choice.count for choice in choices))

    def reader(self) -> Reader:
        """Of one choice."""
        calls = self._tools and self._body.tool_choice != "none"
        return Reader(self._served.tool_format if calls else None, self._splits, self._opened, self._parallel)

    def text_stream(self) -> TextStream:
        return TextStream(self._served.decoder(self._marks))

    def stops(self) -> StopCutter:
        return StopCutter(stop_strings(self._body))

    def logprobs(self, output: Output) -> dict[str, Any] | None:
        """Of what was drawn, whatever a reader makes of it; the end token says nothing."""
        if self._top is None:
            return None
        ended = output.finish_reason == "stop" and output.tokens and output.tokens[-1] in self._served.text.eos_ids
        content = of_chat(self._texts, logps_of(output), self._top)
        return {"content": content[:-1] if ended else content, "refusal": None}


class _Choice:
    """One answer as it comes."""

    def __init__(self, answer: ChatAnswer):
        self._answer, self._text, self._stops = answer, answer.text_stream(), answer.stops()
        self._reader, self.count = answer.reader(), 0
        self._deltas: list[Delta] = []
        self._logprobs: list[Any] = []
        self._has_logprobs, self._reason = False, ""

    def add(self, output: Output) -> list[dict[str, Any]]:
        """What is new: parts of chunks, each with a delta; log-probabilities go with the first of them."""
        self.count += len(output.tokens)
        last = output.finish_reason is not None
        deltas = self._reader.add(self._stops.add(self._text.add(output.tokens, last), last), last)
        self._deltas += deltas
        logprobs = self._answer.logprobs(output)
        if logprobs is not None:
            self._has_logprobs = True
            self._logprobs += logprobs["content"]
        if last:
            self._reason = "stop" if self._stops.found else output.finish_reason
            self._reason = "tool_calls" if self._reader.num_calls and self._reason == "stop" else self._reason
        parts = [{"delta": delta, "logprobs": None, "finish_reason": None} for delta in deltas]
        if last or logprobs and not parts:
            parts.append({"delta": {}, "logprobs": None, "finish_reason": self._reason or None})
        if parts and logprobs and logprobs["content"]:
            parts[0]["logprobs"] = logprobs
        return parts

    def whole(self, index: int) -> dict[str, Any]:
        logprobs = {"content": self._logprobs, "refusal": None} if self._has_logprobs else None
        return {"index": index, "message": {**as_message(self._deltas), "refusal": None}, "logprobs": logprobs,
                "finish_reason": self._reason}


def _callable_tools(served: Served, body: ChatBody) -> list[Any]:
    """The tools that may be called. Raises Refusal where the model has no way to call any, or not the one that it
    must."""
    tools, choice = body.tools or [], body.tool_choice
    if choice == "required" and not tools or isinstance(choice, NamedTool) and choice.function.name not in {
            tool.function.name for tool in tools}:
        raise Refusal(400, "tool_choice asks for a tool that is not among tools", param="tool_choice")
    if choice == "none":
        return []
    if tools and served.tool_format is None:
        raise Refusal(400, "this model's chat template has no tool calls that are known; start the server with "
                           "--tool-format", code="unsupported_parameter", param="tools")
    return tools


def _schema(body: ChatBody) -> Any:
    """The JSON schema of the answer; None where it may be any text."""
    wanted_format = body.response_format
    if wanted_format is None or wanted_format.type == "text":
        return None
    if wanted_format.type == "json_object":
        return {"type": "object"}
    schema = wanted_format.json_schema and wanted_format.json_schema.schema_
    if schema is None:
        raise Refusal(400, "response_format json_schema needs json_schema.schema", param="response_format")
    return schema

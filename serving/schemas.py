"""The bodies of requests, as pydantic models: OpenAI's fields and some of vLLM's.

What is not known is tolerated. What would change the answer and is not done (UNSUPPORTED) is refused by name.
"""

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StrictInt

from serving.refusals import Refusal

Item = TypeVar("Item")
Token = Annotated[StrictInt, Field(ge=0)]
Count = Annotated[StrictInt, Field(ge=1)]
Some = Annotated[list[Item], Field(min_length=1, fail_fast=True)]
"""one or more; the first that is wrong is told, and not a million"""

UNSUPPORTED = ("suffix", "best_of", "use_beam_search", "length_penalty", "min_tokens", "functions", "function_call",
               "modalities", "audio", "web_search_options", "prompt_logprobs", "chat_template", "documents",
               "guided_json", "guided_regex", "guided_choice", "guided_grammar", "structured_outputs", "bad_words",
               "allowed_token_ids", "include_stop_str_in_output", "truncate_prompt_tokens", "prompt_embeds",
               "logits_processors", "mm_processor_kwargs")
"""fields that ask for another answer than would be given"""
MEANINGLESS = (None, False, 0, 1, "", [], {}, "none", ["text"])
"""values with which they ask for nothing"""


class Body(BaseModel):
    model_config = ConfigDict(extra="allow", allow_inf_nan=False)

    model: str | None = None
    """a name of /v1/models; left out, the one that there is"""

    def check(self) -> None:
        """Raises Refusal for a field that asks for what is not done."""
        for name, value in (self.model_extra or {}).items():
            if name in UNSUPPORTED and value not in MEANINGLESS:
                raise Refusal(400, f"{name} is not supported; leave it out", code="unsupported_parameter", param=name)


class StreamOptions(BaseModel):
    include_usage: bool | None = None


class Sampling(Body):
    """How tokens are drawn; null is the default."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, Any] | None = None
    """token ids to numbers"""
    seed: int | None = None
    stop: str | Annotated[list[str | None], Field(fail_fast=True)] | None = None
    stop_token_ids: Annotated[list[Token], Field(fail_fast=True)] | None = None
    ignore_eos: bool | None = None
    n: Count | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @property
    def include_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)


class CompletionBody(Sampling):
    """POST /v1/completions"""

    prompt: str | Some[Token] | Some[str] | Some[Some[Token]]
    max_tokens: Annotated[StrictInt, Field(ge=0)] | None = None
    echo: bool | None = None
    logprobs: Annotated[StrictInt, Field(ge=0, le=20)] | None = None

    def prompts(self) -> list[Any]:
        """Texts, or token ids."""
        one = isinstance(self.prompt, str) or isinstance(self.prompt[0], int)
        return [self.prompt] if one else list(self.prompt)


class FunctionName(BaseModel):
    name: str


class NamedTool(BaseModel):
    type: Literal["function"] = "function"
    function: FunctionName


class Function(BaseModel):
    model_config = ConfigDict(extra="allow")

    name: Annotated[str, Field(min_length=1, max_length=256)]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(BaseModel):
    model_config = ConfigDict(extra="allow")

    type: Literal["function"]
    function: Function


class JsonSchema(BaseModel):
    model_config = ConfigDict(extra="allow", populate_by_name=True)

    name: str | None = None
    schema_: Annotated[dict[str, Any] | bool | None, Field(alias="schema")] = None


class ResponseFormat(BaseModel):
    model_config = ConfigDict(extra="allow")

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class Conversation(Body):
    """What a chat template is given."""

    messages: Some[dict[str, Any]]
    tools: Annotated[list[Tool], Field(fail_fast=True)] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None


class ChatBody(Conversation, Sampling):
    """POST /v1/chat/completions"""

    max_tokens: Count | None = None
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[StrictInt, Field(ge=0, le=20)] | None = None
    tool_choice: Literal["auto", "none", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    separate_reasoning: bool | None = None
    """a thought in <think> is given as reasoning_content; by default as the server was started"""


class TokenizeBody(Conversation):
    """POST /tokenize: of a text, or of messages as the chat template writes them"""

    messages: Some[dict[str, Any]] | None = None
    prompt: str | None = None
    add_special_tokens: bool | None = None


class DetokenizeBody(Body):
    """POST /detokenize"""

    tokens: Annotated[list[Token], Field(fail_fast=True)]


class ScoreBody(Body):
    """POST /v1/score: texts, or rows as scripts.score has them (text, messages, prompt and completion, tokens)"""

    input: str | dict[str, Any] | Some[str | dict[str, Any]]

    def rows(self) -> list[dict[str, Any]]:
        given = self.input if isinstance(self.input, list) else [self.input]
        return [{"text": each} if isinstance(each, str) else each for each in given]

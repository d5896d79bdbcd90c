"""Chat templates: messages to the text that a model sees, by the template that came with the model.

Templates come with model files and are not trusted: they run in jinja2's sandbox. A prompt must not change with the
date: `strftime_now`, which transformers offers templates, is undefined for those that ask whether it is there (they use
a fixed date of their own), and always tells TODAY to those that do not.
"""

import dataclasses
import datetime
import functools
import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any

from data.messages import Message, text_of
from data.tokenizer import Tokenizer
from errors import InputError

TODAY = datetime.date(2024, 7, 26)
"""the date that Llama 3.1's template has where it is told none"""

RESERVED = frozenset({"messages", "tools", "add_generation_prompt", "bos_token", "eos_token"})
"""what a template gets by other ways than chat_template_kwargs"""


_PROBE_CALL = {"id": "probe1234", "type": "function",
               "function": {"name": "probe_name", "arguments": {"probe_key": 1}}}


@dataclasses.dataclass(frozen=True)
class ChatTemplate:
    """A tokenizer's template, with what a row gives it besides the messages."""

    tokenizer: Tokenizer
    tools: Sequence[Any] | None = None
    kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        if not self.tokenizer.chat_template:
            raise InputError("the tokenizer has no chat template; put a chat_template.jinja into its folder")
        if RESERVED & self.kwargs.keys():
            raise InputError(f"chat_template_kwargs hold {min(RESERVED & self.kwargs.keys())!r}, which a template gets "
                             f"from elsewhere; leave it out")

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = False) -> str:
        """The messages (data.messages) as text; on request with the next assistant turn's header."""
        fitted = [self._fit(message) for message in messages]
        return self._render(fitted, add_generation_prompt=add_generation_prompt, tools=self.tools, **self.kwargs)

    def reads(self, name: str) -> bool:
        """Whether the template looks at a variable at all."""
        return name in _compile(self.tokenizer.chat_template)[1]

    def _fit(self, message: Message) -> Message:
        """The message in the spelling that this template understands."""
        if isinstance(message["content"], list) and message["role"] not in self._roles_with_parts:
            message = message | {"content": text_of(message["content"])}
        if "tool_calls" not in message:
            return message
        content, as_text = self._spelling
        if as_text:
            message = message | {"tool_calls": [_text_arguments(call) for call in message["tool_calls"]]}
        return message if message["content"] else message | {"content": content}

    @functools.cached_property
    def _roles_with_parts(self) -> frozenset[str]:
        """The roles whose content may be a list of parts: then it says the same as a string."""
        question = {"role": "user", "content": "question"}
        call = self._fit({"role": "assistant", "content": "", "tool_calls": [_PROBE_CALL]})
        around = {"user": ([], []), "system": ([], [question]), "assistant": ([question], []),
                  "tool": ([question, call], [])}

        def probe(role: str, content: Any) -> str:
            before, after = around[role]
            return self._probe(*before, {"role": role, "content": content}, *after)

        parts = [{"type": "text", "text": "probe"}]
        return frozenset(role for role in around if "probe" in probe(role, "probe") == probe(role, parts))

    @functools.cached_property
    def _spelling(self) -> tuple[str | None, bool]:
        """How a turn that only calls tools must be written: its content ("" or null), and arguments as text or not.

        Templates differ: most fail on null or write "None", DeepSeek's looks for tool calls where content is null
        alone and puts arguments between strings. The first spelling with which a call is written is taken.
        """
        call = _PROBE_CALL
        for content, as_text in itertools.product(("", None), (False, True)):
            turn = {"role": "assistant", "content": content, "tool_calls": [_text_arguments(call) if as_text else call]}
            text = self._probe({"role": "user", "content": "probe"}, turn)
            if "probe_name" in text and "probe_key" in text:
                return content, as_text
        return "", False

    def _probe(self, *messages: Message) -> str:
        """What the template makes of messages; "" where it fails."""
        try:
            return self._render(list(messages), add_generation_prompt=False, tools=None)
        except InputError:
            return ""

    def _render(self, messages: list[Message], **variables: Any) -> str:
        documents = {"documents": None}  # templates ask whether these are none, not only whether they are defined
        try:
            return _compile(self.tokenizer.chat_template)[0].render(
                **documents | variables, messages=messages, bos_token=self.tokenizer.bos_token,
                eos_token=self.tokenizer.eos_token)
        except Exception as error:  # whatever is raised in there is raised by the template
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
            raise InputError(f"chat template fails on the messages ({reason}); mend one of them") from error


def check_template_kwargs(kwargs: Mapping[str, Any], tokenizer: Tokenizer | None) -> None:
    """Raises InputError for arguments that would reach no template, or that the template does not look at."""
    if not kwargs:
        return
    if tokenizer is None:
        raise InputError("--chat-template-kwargs: the model has no tokenizer, and so no chat template; leave it out")
    unknown = [name for name in kwargs if not ChatTemplate(tokenizer).reads(name)]
    if unknown:
        raise InputError(f"--chat-template-kwargs: the chat template looks at no {unknown[0]!r}; mend the name or "
                         f"leave it out")


def _text_arguments(call: Mapping[str, Any]) -> dict[str, Any]:
    """A tool call whose arguments are JSON text again."""
    function = call["function"]
    return call | {"function": function | {"arguments": json.dumps(function["arguments"], ensure_ascii=False)}}


@functools.lru_cache(maxsize=32)
def _compile(template: str) -> tuple[Any, frozenset[str]]:
    """The template and the names of the variables that it looks at."""
    from jinja2 import TemplateSyntaxError, meta

    environment = _environment()
    try:
        tree = environment.parse(template)
        variables = frozenset(meta.find_undeclared_variables(tree))
        return environment.from_string(tree, globals=_clock(tree)), variables
    except TemplateSyntaxError as error:
        raise InputError(f"chat template fails on the messages (TemplateSyntaxError: "
                         f"{' '.join(str(error).split())}); mend it") from error


def _clock(tree: Any) -> dict[str, Any]:
    """A strftime_now that stands still, for templates that do not ask whether there is one."""
    from jinja2 import nodes

    tested = any(test.name == "defined" and isinstance(test.node, nodes.Name) and test.node.name == "strftime_now"
                 for test in tree.find_all(nodes.Test))
    return {} if tested else {"strftime_now": TODAY.strftime}


@functools.lru_cache(maxsize=1)
def _environment():
    """The environment that templates are written for: transformers' own, but without the date."""
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    extensions = ["jinja2.ext.loopcontrols", _generation_tag()]
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=extensions)
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    return environment


def _generation_tag():
    """Lets `{% generation %}...{% endgeneration %}` through; our mask does not need it."""
    from jinja2 import ext, nodes

    class GenerationTag(ext.Extension):
        tags = {"generation"}

        def parse(self, parser):
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body, lineno=line)

    return GenerationTag


def _to_json(value, ensure_ascii=False, **options) -> str:
    """jinja2's own filter escapes <, > and & for HTML, which is nothing a model should read."""
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)


def _raise_exception(message: str) -> None:
    from jinja2 import TemplateError

    raise TemplateError(message)

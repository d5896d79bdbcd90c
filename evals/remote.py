"""A model behind a server with OpenAI's interface, as lm-evaluation-harness takes models: by its own clients.

Answers come from /chat/completions, each with why it ended, which lm-eval itself drops; log-probabilities from
/completions, where the server has vLLM's /tokenizer_info and /tokenize, too. OPENAI_API_KEY is sent where it is set.
What comes is kept as it comes (cache.py), so that an evaluation that was ended goes on. Needs requirements-evals.txt.
"""

import contextlib
import copy
import json
import logging
import math
import os
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import aiohttp
import requests as http
from lm_eval.api.instance import Instance
from lm_eval.models.openai_completions import LocalChatCompletion, LocalCompletionsAPI

from errors import InputError
from evals.cache import NOTHING_KEPT, Cache
from evals.harness import LIMIT_NAMES, Generation, Response

CONCURRENT = 32
"""requests that are on their way at the same time"""
SECONDS = 3600
"""until an answer is given up"""
ATTEMPTS = 3
"""at a request, before the evaluation ends"""
OTHERWISE = (aiohttp.ClientError, http.RequestException, OSError, RuntimeError, ValueError, LookupError, TypeError,
             AttributeError)
"""what lm-eval's clients raise where a server does not answer, and where it answers in another shape"""
for name in ("lm_eval.models.api_models", "asyncio"):  # each attempt with all of its answer, each failure that others
    logging.getLogger(name).setLevel(logging.CRITICAL)  # were faster than, with its traceback


class Chat(LocalChatCompletion):
    """lm-eval's client, which keeps finish reasons: an answer is [text, finish reason]."""

    def parse_generations(self, outputs: Any, **_: Any) -> list[list[str]]:
        """Raises ValueError for anything but one answer of text, which lm-eval would give to another question."""
        (choice,) = outputs["choices"]
        text = choice["message"].get("content") or ""
        if not isinstance(text, str):
            raise ValueError(f"an answer is no text: {text!r}"[:200])
        return [[text, choice.get("finish_reason") or "stop"]]


class Completions(LocalCompletionsAPI):
    """lm-eval's client, which takes the log-probabilities of exactly the tokens that it sent, or none."""

    def parse_logprobs(self, outputs: Any, tokens: Any = None, ctxlens: Any = None, **_: Any,
                       ) -> list[tuple[float, bool]]:
        """Raises ValueError where they are of other tokens: lm-eval would sum what there is, over nothing 0."""
        for choice, sent in zip(_in_order(outputs["choices"]), tokens, strict=True):
            given = len(choice["logprobs"]["token_logprobs"])
            if given != len(sent) + 1:
                raise ValueError(f"{given} log-probabilities came to {len(sent)} tokens and the one behind them (echo, "
                                 f"max_tokens 1)")
        found = LocalCompletionsAPI.parse_logprobs(outputs, tokens, ctxlens)
        if any(math.isnan(logp) for logp, _ in found):
            raise ValueError("a log-probability is not a number")
        return found


def _in_order(choices: Sequence[Any]) -> list[Any]:
    return sorted(choices, key=lambda choice: choice["index"])


class RemoteModel:
    """What harness.judge asks, answered by the server at `url` (http://HOST:PORT/v1) as its model `name`."""

    def __init__(self, url: str, name: str, generation: Generation, cache: Cache = NOTHING_KEPT):
        self.generation, self.name, self._url, self._cache = generation, name, url.rstrip("/"), cache

    tokenizer_name = ""

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> Any:
        """The server has the template. Raises InputError for an answer that is to be begun for it."""
        if not add_generation_prompt:
            raise InputError("a task begins the answer itself (gen_prefix), which a chat server cannot go on with; "
                             "evaluate the weights themselves")
        from lm_eval.models.api_models import JsonChatStr

        return JsonChatStr(json.dumps(chat_history, ensure_ascii=False))

    def before_template(self, prompt: Any) -> Any:
        return json.loads(prompt.prompt) if hasattr(prompt, "prompt") else prompt

    def respond(self, requests: Sequence[Instance], num_samples: int) -> list[list[Response]]:
        """`num_samples` responses to each of requests of one kind. Raises InputError where the server fails, or
        answers in another shape; what has come until then is kept."""
        kind = requests[0].request_type
        if kind == "generate_until":
            limited = [self._limited(each, num_samples) for each in requests]
            drawn = [self._responses(Chat, "chat/completions", limited, seed=self.generation.seed + number)
                     for number in range(num_samples)]
            return [[Response(*answer) for answer in answers] for answers in zip(*drawn, strict=True)]
        values = self._responses(Completions, "completions", requests, tokenizer_backend="remote", batch_size=8,
                            auth_token=os.environ.get("OPENAI_API_KEY"))
        return [[Response(tuple(value) if isinstance(value, list) else value)] * num_samples for value in values]

    def _responses(self, client: type, path: str, requests: Sequence[Instance], seed: int = 0,
                   **settings: Any) -> list[Any]:
        """What a client gives to each request of one kind: as it was kept, or asked for now."""
        kind = requests[0].request_type
        keys = [json.dumps([kind, *each.args, seed]) for each in requests]
        responses = {key: self._cache.get(key) for key in keys}
        missing = [each for key, each in zip(keys, requests, strict=True) if responses[key] is None]

        def keep(kind: str, args: Any, value: Any) -> None:
            if args is not None:  # of a window of a text
                key = json.dumps([kind, *args, seed])
                responses[key] = value
                self._cache.put(key, value)

        if missing:
            with answering(self._url):
                asking = client(base_url=f"{self._url}/{path}", model=self.name, num_concurrent=CONCURRENT, seed=seed,
                                timeout=SECONDS, max_retries=ATTEMPTS, max_length=2**20, **settings)
                asking.set_cache_hook(types.SimpleNamespace(add_partial=keep))
                getattr(asking, kind)(missing)
        return [responses[key] for key in keys]

    def _limited(self, request: Instance, num_samples: int) -> Instance:
        """The request with what the Generation says. Raises InputError for a prompt that is no conversation."""
        if isinstance(request.args[0], str):
            raise InputError(f"--chat never: {self._url} takes conversations; leave it out")
        limited, kwargs = copy.copy(request), dict(request.args[1])
        if self.generation.max_new_tokens:
            kwargs = {name: value for name, value in kwargs.items() if name not in LIMIT_NAMES}
            kwargs["max_gen_toks"] = self.generation.max_new_tokens
        if self.generation.temperature is not None:
            kwargs["temperature"] = self.generation.temperature
        elif num_samples > 1 and not kwargs.get("temperature"):
            kwargs["temperature"] = 1.0
        limited.arguments = (request.args[0], kwargs)
        return limited


@contextlib.contextmanager
def answering(url: str) -> Iterator[None]:
    """Turns what a server does not do, or does otherwise, into one line, an InputError."""
    try:
        yield
    except OTHERWISE as error:
        raise InputError(f"--model {url} has not answered as it should ({type(error).__name__}: "
                         f"{' '.join(str(error).split())[:200]}); see to the server, and give the same command again"
                         ) from None


def served_model(url: str) -> str:
    """The name of the server's first model. Raises InputError where there is no server, or it has no model."""
    url, key = url.rstrip("/"), os.environ.get("OPENAI_API_KEY", "")
    headers: Mapping[str, str] = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        answer = http.get(f"{url}/models", headers=headers, timeout=30)
        answer.raise_for_status()
        return str(answer.json()["data"][0]["id"])
    except OTHERWISE as error:
        raise InputError(f"--model {url}: {url}/models names no model ({' '.join(str(error).split())[:150]}); give the "
                         f"address of a server with OpenAI's interface, http://HOST:PORT/v1") from None

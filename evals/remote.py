"""A model behind a server with OpenAI's interface, as lm-evaluation-harness takes models: by its own clients.

Answers come from /chat/completions, each with why it ended, which lm-eval itself drops; log-probabilities from
/completions, where the server has vLLM's /tokenizer_info and /tokenize, too. OPENAI_API_KEY is sent where it is set.
Needs requirements-evals.txt.
"""

import copy
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import aiohttp
import requests as http
from lm_eval.api.instance import Instance
from lm_eval.models.openai_completions import LocalChatCompletion, LocalCompletionsAPI

from errors import InputError
from evals.harness import LIMIT_NAMES, Generation, Response

CONCURRENT = 32
"""requests that are on their way at the same time"""
SECONDS = 3600
"""until an answer is given up"""


class Said(str):
    """An answer."""

    __slots__ = ("finish_reason",)


class Chat(LocalChatCompletion):
    """lm-eval's client, which keeps finish reasons."""

    def parse_generations(self, outputs: Any, **_: Any) -> list[Said]:
        found = []
        for choice in outputs["choices"]:
            said = Said(choice["message"].get("content") or "")
            said.finish_reason = choice.get("finish_reason") or "stop"
            found.append(said)
        return found


class RemoteModel:
    """What harness.judge asks, answered by the server at `url` (http://HOST:PORT/v1). Raises InputError where there is
    none, or it has no model."""

    def __init__(self, url: str, generation: Generation):
        self.generation, self._url, self.name = generation, url.rstrip("/"), _first_model(url.rstrip("/"))

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
        """`num_samples` responses to each of requests of one kind."""
        kind = requests[0].request_type
        if kind != "generate_until":
            client = self._client(LocalCompletionsAPI, "completions", tokenizer_backend="remote", batch_size=8)
            values = getattr(client, kind)(requests)
            return [[Response(value)] * num_samples for value in values]
        asked = [self._asked(each, num_samples) for each in requests]
        drawn = [self._draw(asked, self.generation.seed + number) for number in range(num_samples)]
        return [[Response(str(said), said.finish_reason) for said in answers] for answers in zip(*drawn, strict=True)]

    def _draw(self, asked: Sequence[Instance], seed: int) -> list[Said]:
        try:
            return self._client(Chat, "chat/completions", seed=seed).generate_until(asked)
        except (aiohttp.ClientError, http.RequestException, TimeoutError) as error:
            raise InputError(f"--model {self._url} has not answered ({type(error).__name__}: {error}); see to the "
                             f"server, and give the same command again") from None

    def _asked(self, request: Instance, num_samples: int) -> Instance:
        """The request with what the Generation says. Raises InputError for a prompt that is no conversation."""
        if isinstance(request.args[0], str):
            raise InputError(f"--chat never: {self._url} takes conversations; leave it out")
        asked, kwargs = copy.copy(request), dict(request.args[1])
        if self.generation.max_new_tokens:
            kwargs = {name: value for name, value in kwargs.items() if name not in LIMIT_NAMES}
            kwargs["max_gen_toks"] = self.generation.max_new_tokens
        if self.generation.temperature is not None:
            kwargs["temperature"] = self.generation.temperature
        elif num_samples > 1 and not kwargs.get("temperature"):
            kwargs["temperature"] = 1.0
        asked.arguments = (request.args[0], kwargs)
        return asked

    def _client(self, kind: type, path: str, **settings: Any) -> Any:
        return kind(base_url=f"{self._url}/{path}", model=self.name, num_concurrent=CONCURRENT, timeout=SECONDS,
                    max_length=2**20, **settings)


def _first_model(url: str) -> str:
    key = os.environ.get("OPENAI_API_KEY", "")
    headers: Mapping[str, str] = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        answer = http.get(f"{url}/models", headers=headers, timeout=30)
        answer.raise_for_status()
        return answer.json()["data"][0]["id"]
    except (http.RequestException, ValueError, LookupError) as error:
        raise InputError(f"--model {url}: {url}/models names no model ({' '.join(str(error).split())[:150]}); give the "
                         f"address of a server with OpenAI's interface, http://HOST:PORT/v1") from None

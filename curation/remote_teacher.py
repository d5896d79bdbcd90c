"""A teacher behind an OpenAI-compatible URL: /chat/completions, several requests at a time, within a budget.

What another try may mend (no connection, timeouts, 408, 409, 425, 429, 5xx) is tried again, later each time; what
belongs to one prompt (400, 413, 422, an answer of another shape) fails that completion alone; a wrong key, an unknown
model, an empty account, and a teacher that has stopped answering end the run in one line: answers that came are kept.
"""

import contextlib
import dataclasses
import http.client
import json
import math
import os
import threading
import time
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any

from curation.asks import Answer, Ask, Limits
from curation.rows import digest
from errors import InputError

LARGEST = 64 << 20
"""bytes of an answer"""
LONGEST_WAIT = 120.0
"""seconds that a teacher may ask to be left alone for"""
AGAIN = {408, 409, 425, 429, 500, 502, 503, 504, 520, 522, 524, 529}
OF_THE_PROMPT = {400, 413, 422}


@dataclasses.dataclass(frozen=True)
class Endpoint:
    """A teacher's address and what it may cost; the keys of a teacher in a recipe."""

    url: str
    """http://HOST:PORT/v1"""
    name: str | None = None
    """of the model; by default the first that the server has"""
    key_variable: str = "OPENAI_API_KEY"
    """the environment variable that holds the key"""
    concurrency: int = 8
    """requests on their way at a time"""
    timeout: float = 120.0
    """seconds of a request"""
    retries: int = 5
    wait: float = 0.5
    """seconds before the second try, twice as many before each further one"""
    max_total_tokens: int | None = None
    """of prompts and completions, over all runs that share the answers"""
    max_cost: float | None = None
    """by these prices"""
    prompt_price: float = 0.0
    """of a million tokens"""
    completion_price: float = 0.0
    extra: dict[str, Any] = dataclasses.field(default_factory=dict)
    """goes into every request's body"""


class Transient(Exception):  # noqa: N818 - what another try may mend
    """No answer this time; `pause` are seconds that the teacher asks for."""

    def __init__(self, text: str, pause: float = 0.0):
        super().__init__(text)
        self.pause = pause


class RemoteTeacher:
    """See the module. Raises InputError for settings that make no sense."""

    tokenizer, is_chat = None, True

    def __init__(self, endpoint: Endpoint, limits: Limits):
        _check(endpoint)
        self._endpoint, self._limits = dataclasses.replace(endpoint, url=endpoint.url.rstrip("/")), limits
        self._name = endpoint.name
        self._spent, self._has_answered, self._failed_in_a_row = [0, 0], False, 0

    @property
    def name(self) -> str:
        """The model's, at the teacher's address."""
        if self._name is None:
            self._name = _first_model(self._endpoint)
        return f"{self._name} at {self._endpoint.url}"

    def takes_as_message(self, prompt: str) -> bool:
        """Whether a string is what a user says."""
        return True

    @property
    def has_budget(self) -> bool:
        return self._endpoint.max_total_tokens is not None or self._endpoint.max_cost is not None

    def count(self, answer: Answer) -> None:
        """Adds to what is spent."""
        self._spent = [self._spent[0] + answer.usage[0], self._spent[1] + answer.usage[1]]

    def key(self, ask: Ask) -> str:
        """By which an answer is known again."""
        return digest(self.name, self._body(ask))

    def answer(self, asks: Sequence[Ask]) -> Iterator[tuple[int, Answer]]:
        """(number among the asks, answer) as they come. Raises InputError, once all that is on its way has come, where
        there is no use in asking on."""
        todo, on_their_way, stop, over = deque(enumerate(asks)), {}, None, threading.Event()
        with ThreadPoolExecutor(self._endpoint.concurrency) as pool, _set_at_the_end(over):
            while on_their_way or (todo and not stop):
                while todo and not stop and self._has_room(todo[0][1], [ask for _, ask in on_their_way.values()]):
                    number, ask = todo.popleft()
                    on_their_way[pool.submit(self._ask, ask, over)] = number, ask
                if not on_their_way:
                    raise self._over_budget(len(todo))
                for done in wait(on_their_way, return_when=FIRST_COMPLETED).done:
                    number, _ = on_their_way.pop(done)
                    answer, error = self._outcome(done)
                    stop = stop or error
                    if stop:
                        over.set()
                    if answer:
                        yield number, answer
        if stop:
            raise stop

    def _outcome(self, done: Future) -> tuple[Answer | None, InputError | None]:
        """(the answer, why there is no use in asking on), either or both."""
        try:
            answer = done.result()
        except InputError as error:
            return None, error
        except Transient as error:
            answer = Answer(failure=str(error))
            if not self._has_answered:
                return answer, self._stopped(str(error))
        if answer.failure is None:
            self._has_answered, self._failed_in_a_row = True, 0
            self.count(answer)
            return answer, None
        self._failed_in_a_row += 1
        enough = self._failed_in_a_row >= max(8, 2 * self._endpoint.concurrency)
        return answer, self._stopped(answer.failure) if enough else None

    def _stopped(self, text: str) -> InputError:
        return InputError(f"teacher {self.name} does not answer ({text}); what it has answered is kept: see to it, and "
                          f"give the same command again")

    # ------------------------------------------------------------------------------------------------------ the budget

    def _has_room(self, ask: Ask, on_their_way: Sequence[Ask]) -> bool:
        """Whether one more may be on its way. A prompt has at most a token a byte of JSON, and 16 around it."""
        asks = [ask, *on_their_way]
        if not self.has_budget or len(asks) > self._endpoint.concurrency:
            return len(asks) <= self._endpoint.concurrency
        prompt = sum(len(json.dumps(ask.record, ensure_ascii=False).encode(errors="replace")) + 16 for ask in asks)
        return self._within(self._spent[0] + prompt, self._spent[1] + len(asks) * self._limits.max_new_tokens)

    def _within(self, prompt: int, completion: int) -> bool:
        endpoint = self._endpoint
        return prompt + completion <= _or_endless(endpoint.max_total_tokens) and (
            self._cost(prompt, completion) <= _or_endless(endpoint.max_cost))

    def _cost(self, prompt: int, completion: int) -> float:
        return (prompt * self._endpoint.prompt_price + completion * self._endpoint.completion_price) / 1e6

    def _over_budget(self, missing: int) -> InputError:
        given = {name: getattr(self._endpoint, name) for name in ("max_total_tokens", "max_cost")}
        said = ", ".join(f"{name} {value:g}" for name, value in given.items() if value is not None)
        return InputError(f"teacher {self.name}: {sum(self._spent)} tokens are spent, at a cost of "
                          f"{self._cost(*self._spent):g}, and another completion could go beyond {said}; at least "
                          f"{missing} are missing: raise it, and give the same command again")

    # --------------------------------------------------------------------------------------------------- one request

    def _body(self, ask: Ask) -> dict[str, Any]:
        limits, prompt = self._limits, ask.record["prompt"]
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        body = {"model": self._name, "messages": messages, "max_tokens": limits.max_new_tokens,
                "temperature": ask.temperature, "seed": ask.number}
        optional = {"top_p": (limits.top_p, 1.0), "top_k": (limits.top_k, 0), "min_p": (limits.min_p, 0.0),
                    "stop": (list(limits.stop), [])}
        body |= {name: value for name, (value, default) in optional.items() if value != default}
        wanted = {"logprobs": True, "top_logprobs": limits.num_likeliest} if limits.num_likeliest else {}
        return body | wanted | self._endpoint.extra

    def _ask(self, ask: Ask, over: threading.Event) -> Answer:
        """Raises Transient after the last try, and InputError where no try will do. None follows once it is `over`."""
        for attempt in range(self._endpoint.retries + 1):
            try:
                return self._parsed(self._post(self._body(ask)))
            except Transient as error:
                pause = max(error.pause, self._endpoint.wait * 2**attempt)
                if attempt == self._endpoint.retries or over.wait(pause):
                    raise
        raise AssertionError("unreachable")

    def _post(self, body: dict[str, Any]) -> bytes | Answer:
        """The answer's bytes, or the Answer that says why this prompt has none."""
        try:
            return _fetch(self._endpoint, "chat/completions", body)
        except urllib.error.HTTPError as error:
            return self._refused(error)
        except (OSError, http.client.HTTPException) as error:
            raise Transient(f"{type(error).__name__}: {getattr(error, 'reason', error) or 'no answer'}") from None

    def _refused(self, error: urllib.error.HTTPError) -> Answer:
        text = f"HTTP {error.code}: {_excerpt(error)}"
        if error.code in OF_THE_PROMPT:
            return Answer(failure=text)
        if error.code in AGAIN and "insufficient_quota" not in text:
            raise Transient(text, _pause(error.headers.get("Retry-After")))
        raise InputError(f"teacher {self.name} refuses ({text}); see to the key in {self._endpoint.key_variable}, the "
                         f"model's name and the account, and give the same command again")

    def _parsed(self, given: bytes | Answer) -> Answer:
        """The first choice. Raises InputError for an answer without usage where there is a budget."""
        if isinstance(given, Answer):
            return given
        try:
            found = json.loads(given)
            choice, usage = found["choices"][0], found.get("usage") or {}
            text, finish_reason = choice["message"]["content"], choice.get("finish_reason") or "stop"
            thought = choice["message"].get("reasoning_content") or choice["message"].get("reasoning") or ""
            tokens = (int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0))
            top = _likeliest(choice) if self._limits.num_likeliest else None
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            text = None
        if not isinstance(text, str) or (self._limits.num_likeliest and top is None):
            lacks = "choices[0].message.content" if not isinstance(text, str) else "logprobs"
            return Answer(failure=f"an answer of another shape, without {lacks}: {given[:200]!r}")
        if self.has_budget and not tokens[1] and text:
            raise InputError(f"teacher {self.name} does not say how many tokens it used (usage), so no budget can be "
                             f"kept; leave max_total_tokens and max_cost out")
        return Answer(text, str(thought), finish_reason, top=top, usage=tokens, teacher=self.name)


@contextlib.contextmanager
def _set_at_the_end(over: threading.Event) -> Iterator[None]:
    """However the block ends: nobody waits for tries that are yet to come."""
    try:
        yield
    finally:
        over.set()


def _fetch(endpoint: Endpoint, path: str, body: dict[str, Any] | None = None) -> bytes:
    """Raises TimeoutError where the answer is not complete in time, though it come in drops."""
    key = os.environ.get(endpoint.key_variable, "")
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    data = None if body is None else json.dumps(body).encode()
    end, parts, missing = time.monotonic() + endpoint.timeout, [], LARGEST
    with urllib.request.urlopen(urllib.request.Request(f"{endpoint.url}/{path}", data, headers),
                                timeout=endpoint.timeout) as response:
        while missing and (part := response.read1(missing)):
            if time.monotonic() > end:
                raise TimeoutError(f"not complete within {endpoint.timeout:g} s")
            parts.append(part)
            missing -= len(part)
    return b"".join(parts)


def _first_model(endpoint: Endpoint) -> str:
    try:
        return str(json.loads(_fetch(endpoint, "models"))["data"][0]["id"])
    except (OSError, http.client.HTTPException, ValueError, LookupError, TypeError) as error:
        raise InputError(f"teacher {endpoint.url}: {endpoint.url}/models names no model "
                         f"({' '.join(str(error).split())[:150]}); start it, or give the address of a server with "
                         f"OpenAI's interface, http://HOST:PORT/v1") from None


def _likeliest(choice: dict[str, Any]) -> list[list[list[Any]]] | None:
    """[[text, log-probability], ...] for each token; None where there are none."""
    content = (choice.get("logprobs") or {}).get("content")
    return None if content is None else [
        [[each["token"], float(each["logprob"])] for each in token["top_logprobs"]] for token in content]


def _excerpt(error: urllib.error.HTTPError) -> str:
    """The message of an error's body, or its beginning; one line."""
    try:
        text = error.read(1 << 16).decode(errors="replace")
    except (OSError, http.client.HTTPException):
        return str(error.reason)
    return " ".join(text.split())[:200] or str(error.reason)


def _pause(header: str | None) -> float:
    """Seconds that Retry-After says, within reason; a date says nothing here."""
    try:
        return min(LONGEST_WAIT, max(0.0, float(header or 0)))
    except ValueError:
        return 0.0


def _or_endless(value: float | None) -> float:
    return math.inf if value is None else value


def _check(endpoint: Endpoint) -> None:
    if not endpoint.url.startswith(("http://", "https://")):
        raise InputError(f"teacher {endpoint.url}: is no http:// or https:// address; give one")
    for name in ("concurrency", "timeout"):
        if not getattr(endpoint, name) > 0:
            raise InputError(f"teacher {endpoint.url}: {name} is {getattr(endpoint, name)}; it takes more than 0")
    if endpoint.retries < 0 or endpoint.wait < 0:
        raise InputError(f"teacher {endpoint.url}: retries and wait take 0 or more")
    if endpoint.max_cost is not None and not endpoint.prompt_price + endpoint.completion_price > 0:
        raise InputError(f"teacher {endpoint.url}: max_cost needs prompt_price and completion_price, of a million "
                         f"tokens")

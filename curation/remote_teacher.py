"""A teacher behind an OpenAI-compatible URL: /chat/completions, several requests at a time, within a budget.

What another try may mend (no connection, an answer that is cut, timeouts, 408, 409, 425, 429, 5xx) is tried again,
later each time; what belongs to one prompt (400, 413, 422, nothing said, an answer of another shape) fails that
completion alone; a wrong key, an unknown model, an empty account, and a teacher that has stopped answering end the run
in one line: answers that came are kept.
"""

import contextlib
import dataclasses
import email.utils
import http.client
import json
import math
import os
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any

from curation.completions import error_code, read_completion, write_request
from curation.queries import Answer, Limits, Query
from curation.rows import digest
from errors import InputError

LARGEST = 64 << 20
"""bytes of an answer"""
LONGEST_WAIT = 120.0
"""seconds that a teacher may ask to be left alone for"""
AGAIN = {408, 409, 425, 429, 500, 502, 503, 504, 520, 522, 524, 529}
OF_THE_PROMPT = {400, 413, 422}
PROMPTS_REFUSED = 64
"""different prompts, refused before the first answer to any, that end the run"""


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
        self._refused_places: set[str] = set()

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

    def key(self, query: Query) -> str:
        """By which an answer is known again."""
        return digest(self.name, self._body(query))

    def answer(self, queries: Sequence[Query]) -> Iterator[tuple[int, Answer]]:
        """(number of the query, answer) as they come. Raises InputError, once all that is on its way has come, where
        there is no use in asking on."""
        todo, on_their_way, stop, over = deque(enumerate(queries)), {}, None, threading.Event()
        with ThreadPoolExecutor(self._endpoint.concurrency) as pool, _set_at_the_end(over):
            while on_their_way or (todo and not stop):
                while todo and not stop and self._has_room(todo[0][1], [query for _, query in on_their_way.values()]):
                    number, query = todo.popleft()
                    on_their_way[pool.submit(self._send, query, over)] = number, query
                if not on_their_way:
                    raise self._over_budget(len(todo))
                for done in wait(on_their_way, return_when=FIRST_COMPLETED).done:
                    number, query = on_their_way.pop(done)
                    answer, error = self._outcome(done, query)
                    stop = stop or error
                    if stop:
                        over.set()
                    if answer:
                        yield number, answer
        if stop:
            raise stop

    def _outcome(self, done: Future, query: Query) -> tuple[Answer | None, InputError | None]:
        """(the answer, why there is no use in asking on), either or both."""
        try:
            answer = done.result()
        except InputError as error:
            return None, error
        except Transient as error:
            answer = Answer(failure=str(error), of_teacher=True)
            if not self._has_answered:
                return answer, self._stopped(str(error))
        self.count(answer)
        return answer, self._stopped(str(answer.failure)) if self._has_failed_enough(answer, query) else None

    def _has_failed_enough(self, answer: Answer, query: Query) -> bool:
        """Whether so many failed in a row that it must be the teacher; one that answers may refuse any number."""
        if answer.failure is None:
            self._has_answered, self._failed_in_a_row = True, 0
        elif answer.of_teacher:
            self._failed_in_a_row += 1
        elif not self._has_answered:
            self._refused_places.add(query.place)
        return self._failed_in_a_row >= max(8, 2 * self._endpoint.concurrency) or (
            not self._has_answered and len(self._refused_places) >= PROMPTS_REFUSED)

    def _stopped(self, text: str) -> InputError:
        return InputError(f"teacher {self.name} does not answer ({text}); what it has answered is kept: see to it, and "
                          f"give the same command again")

    # ------------------------------------------------------------------------------------------------------ the budget

    def _has_room(self, query: Query, on_their_way: Sequence[Query]) -> bool:
        """Whether one more may be on its way. A prompt has at most a token a byte of JSON, and 16 around it."""
        queries = [query, *on_their_way]
        if not self.has_budget or len(queries) > self._endpoint.concurrency:
            return len(queries) <= self._endpoint.concurrency
        prompt = sum(len(json.dumps(each.record, ensure_ascii=False).encode(errors="replace")) + 16 for each in queries)
        return self._within(self._spent[0] + prompt, self._spent[1] + len(queries) * self._limits.max_new_tokens)

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

    def _body(self, query: Query) -> dict[str, Any]:
        limits = self._limits
        body = {"model": self._name, **write_request(query), "max_tokens": limits.max_new_tokens,
                "temperature": query.temperature, "seed": query.number}
        optional = {"top_p": (limits.top_p, 1.0), "top_k": (limits.top_k, 0), "min_p": (limits.min_p, 0.0),
                    "stop": (list(limits.stop), [])}
        body |= {name: value for name, (value, default) in optional.items() if value != default}
        wanted = {"logprobs": True, "top_logprobs": limits.num_likeliest} if limits.num_likeliest else {}
        return body | wanted | self._endpoint.extra

    def _send(self, query: Query, over: threading.Event) -> Answer:
        """Raises Transient after the last try, and InputError where no try will do. None follows once it is `over`."""
        for attempt in range(self._endpoint.retries + 1):
            try:
                return self._parsed(self._post(self._body(query)))
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
        body = _read_body(error)
        text = f"HTTP {error.code}: {' '.join(body.split())[:200] or error.reason}"
        if error.code in OF_THE_PROMPT:
            return Answer(failure=text)
        if error.code in AGAIN and "insufficient_quota" not in body:
            raise Transient(text, _pause(error.headers.get("Retry-After")))
        raise InputError(f"teacher {self.name} refuses ({text}); see to the key in {self._endpoint.key_variable}, the "
                         f"model's name and the account, and give the same command again")

    def _parsed(self, given: bytes | Answer) -> Answer:
        """The first choice. Raises InputError for an answer without usage where there is a budget."""
        if isinstance(given, Answer):
            return given
        try:
            found = json.loads(given)
        except (ValueError, RecursionError):  # half of it, or a proxy's page
            raise Transient(f"an answer that is no JSON: {given[:200]!r}") from None
        if error_code(found) in AGAIN:
            raise Transient(f"an answer with error {error_code(found)}: {given[:200]!r}")
        answer = read_completion(found, with_logprobs=bool(self._limits.num_likeliest))
        if self.has_budget and not answer.usage[1] and answer.text:
            raise InputError(f"teacher {self.name} does not say how many tokens it used (usage), so no budget can be "
                             f"kept; leave max_total_tokens and max_cost out")
        return dataclasses.replace(answer, teacher=self.name)


@contextlib.contextmanager
def _set_at_the_end(over: threading.Event) -> Iterator[None]:
    """However the block ends: nobody waits for tries that are yet to come."""
    try:
        yield
    finally:
        over.set()


def _fetch(endpoint: Endpoint, path: str, body: dict[str, Any] | None = None) -> bytes:
    """Raises TimeoutError where the answer is not complete in time, though it come in drops, and IncompleteRead where
    the connection ends before it does."""
    data = None if body is None else json.dumps(body).encode()
    end, parts, missing = time.monotonic() + endpoint.timeout, [], LARGEST
    with urllib.request.urlopen(urllib.request.Request(f"{endpoint.url}/{path}", data, _headers(endpoint)),
                                timeout=endpoint.timeout) as response:
        while missing and (part := response.read1(missing)):
            if time.monotonic() > end:
                raise TimeoutError(f"not complete within {endpoint.timeout:g} s")
            parts.append(part)
            missing -= len(part)
        if missing and response.length:
            raise http.client.IncompleteRead(b"", response.length)
    return b"".join(parts)


def _headers(endpoint: Endpoint) -> dict[str, str]:
    """Raises InputError, which does not tell it, for a key that no header takes."""
    key = os.environ.get(endpoint.key_variable, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise InputError(f"teacher {endpoint.url}: the key in {endpoint.key_variable} has a line's end or another "
                         f"character that no key has; set it anew")
    return {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})


def _first_model(endpoint: Endpoint) -> str:
    try:
        return str(json.loads(_fetch(endpoint, "models"))["data"][0]["id"])
    except (OSError, http.client.HTTPException, ValueError, LookupError, TypeError) as error:
        raise InputError(f"teacher {endpoint.url}: {endpoint.url}/models names no model "
                         f"({' '.join(str(error).split())[:150]}); start it, or give the address of a server with "
                         f"OpenAI's interface, http://HOST:PORT/v1") from None


def _read_body(error: urllib.error.HTTPError) -> str:
    try:
        return error.read(1 << 16).decode(errors="replace")
    except (OSError, http.client.HTTPException):
        return ""


def _pause(header: str | None) -> float:
    """Seconds from now that Retry-After says, as a number or a date, within reason; 0 for anything else."""
    try:
        seconds = float(header or 0)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(header).timestamp() - time.time()
        except ValueError:
            return 0.0
    return min(LONGEST_WAIT, max(0.0, seconds))


def _or_endless(value: float | None) -> float:
    return math.inf if value is None else value


def _check(endpoint: Endpoint) -> None:
    if not endpoint.url.startswith(("http://", "https://")) or not _is_address(endpoint.url):
        raise InputError(f"teacher {endpoint.url}: is no http:// or https:// address; give one")
    for name in ("concurrency", "timeout"):
        if not getattr(endpoint, name) > 0:
            raise InputError(f"teacher {endpoint.url}: {name} is {getattr(endpoint, name)}; it takes more than 0")
    for name in ("retries", "wait", "max_total_tokens", "max_cost", "prompt_price", "completion_price"):
        if (getattr(endpoint, name) or 0) < 0:
            raise InputError(f"teacher {endpoint.url}: {name} is {getattr(endpoint, name)}; it takes 0 or more")
    if endpoint.max_cost is not None and not endpoint.prompt_price + endpoint.completion_price > 0:
        raise InputError(f"teacher {endpoint.url}: max_cost needs prompt_price and completion_price, of a million "
                         f"tokens")


def _is_address(url: str) -> bool:
    try:
        parts = urllib.parse.urlsplit(url)
        return bool(parts.hostname) and parts.port != 0 and url.isprintable() and " " not in url
    except ValueError:  # a port that is no number, brackets that do not close
        return False

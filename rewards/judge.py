"""A judge elsewhere: an HTTP server that gets prompts, completions and columns and says what they are worth.

POST, JSON: {"prompts": [...], "completions": [...], COLUMN: [...], ...}; the answer: {"rewards": [number or null,
...]}, one a row. A server in Python is `reward(**json)`.
"""

import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any

from errors import InputError
from rewards.contract import Clock, Reward, RowErrors, time_left

LARGEST = 64 << 20
"""bytes of an answer"""
FOR_GOOD = {400, 401, 403, 404, 405, 411, 413, 415, 422, 501}
"""HTTP statuses that another try does not change"""


def make_judge(url: str, timeout: float = 30.0, retries: int = 2, wait: float = 0.5) -> Reward:
    """The judge at `url`. A request has `timeout` seconds and up to `retries` more tries, `wait`, 2 `wait`, 4 `wait`...
    seconds apart, none of them later than the reward has time for.

    A judge that cannot be reached or answers with an error fails all rows (RowErrors), which are left out and counted;
    an answer of another form is an InputError.
    """
    if not url.startswith(("http://", "https://")):
        raise InputError(f"judge:{url}: is no http:// or https:// address; give one")

    def reward(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
        body = _body(url, {"prompts": list(prompts), "completions": list(completions)} | columns)
        try:
            answer = _post(url, body, timeout, retries, wait)
        except (OSError, http.client.HTTPException) as error:
            raise RowErrors([None] * len(completions), dict.fromkeys(range(len(completions)), error)) from None
        return _rewards(url, answer, len(completions))

    return reward


def _body(url: str, values: dict[str, Any]) -> bytes:
    try:
        return json.dumps(values, default=lambda value: value.tolist()).encode()  # arrays and their numbers
    except (AttributeError, TypeError, ValueError) as error:
        raise InputError(f"judge:{url}: a column is no JSON ({error}); drop it from the data") from None


def _post(url: str, body: bytes, timeout: float, retries: int, wait: float) -> bytes:
    """The answer's body. Raises OSError (HTTP errors and timeouts are such) or HTTPException after the last try."""
    for attempt in range(retries + 1):
        try:
            request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
            return _answer(request, Clock(min(timeout, time_left())))
        except (OSError, http.client.HTTPException) as error:
            pause = wait * 2**attempt
            last = attempt == retries or getattr(error, "code", None) in FOR_GOOD or time_left() < pause
            if last:
                raise
            time.sleep(pause)
    raise AssertionError("unreachable")


def _answer(request: urllib.request.Request, clock: Clock) -> bytes:
    """Raises TimeoutError where its time is over, for an answer that comes in drops, too."""
    parts, missing = [], LARGEST
    with urllib.request.urlopen(request, timeout=max(0.001, clock.left())) as response:
        while missing and (part := response.read1(missing)):
            if clock.left() <= 0:
                raise TimeoutError("the answer was not complete in time")
            parts.append(part)
            missing -= len(part)
    return b"".join(parts)


def _rewards(url: str, answer: bytes, rows: int) -> list[float | None]:
    try:
        rewards = json.loads(answer)["rewards"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise InputError(f"judge:{url}: answered {answer[:100]!r}, which is no JSON object with 'rewards'; mend the "
                         f"judge") from None
    if not isinstance(rewards, list) or len(rewards) != rows:
        given = len(rewards) if isinstance(rewards, list) else type(rewards).__name__
        raise InputError(f"judge:{url}: gave {given} rewards for {rows} rows; mend the judge")
    wrong = [value for value in rewards if value is not None and not isinstance(value, int | float)]
    if wrong:
        raise InputError(f"judge:{url}: gave {wrong[0]!r} as a reward; give numbers, or null to leave a row out")
    return [None if value is None else float(value) for value in rewards]

"""Values from process to process of a run, as JSON, over JAX's coordination service: no device is waited for, and
nothing is compiled for the length of a text. All processes make the same calls in the same order."""

import itertools
import json
import time
from collections.abc import Callable
from typing import Any

PREFIX = "temper"
LAST_WORDS = f"{PREFIX}/ended"
"""of the processes that end: the key of each is its number"""
LISTEN_SECONDS = 0.5
"""how often one that waits listens for last words"""


class LostPeerError(Exception):
    """Another process of the run ends, and has said why."""


_numbers = itertools.count()
_unread: list[str] = []
"""keys that some process may not have read yet"""


def gather(value: Any) -> list[Any]:
    """The values of all processes, in the order of the processes, in each of them."""
    import jax

    if jax.process_count() == 1:
        return [value]
    me, name = jax.process_index(), f"{PREFIX}/{next(_numbers)}"
    if me:
        _put(f"{name}/{me}", value)
        return broadcast(None)
    values = [value, *(_take(f"{name}/{other}") for other in range(1, jax.process_count()))]
    for key in _unread:  # whoever is here has read them
        _client().key_value_delete(key)
    _unread.clear()
    return broadcast(values)


def decided(decide: Callable[[], Any]) -> Any:
    """What process 0 decides, in each of them: what depends on time, such as the requests of a tick."""
    import jax

    return broadcast(decide() if jax.process_index() == 0 else None)


def broadcast(value: Any) -> Any:
    """Process 0's value, in each of them."""
    import jax

    if jax.process_count() == 1:
        return value
    key = f"{PREFIX}/{next(_numbers)}"
    if jax.process_index():
        return _wait_for(key)
    _unread.append(key)
    return json.loads(_put(key, value))  # what the others get


def leave(last_words: str | None) -> None:
    """Before this process ends: tells those that wait here why, or with None nothing, since another has."""
    import jax

    me = _state().process_id  # jax.process_index() might wait for peers that are gone
    try:
        if last_words is not None:
            _client().key_value_set(f"{LAST_WORDS}/{me}", last_words)
    except jax.errors.JaxRuntimeError:
        return  # process 0, which keeps them, is gone
    if me == 0:
        time.sleep(2 * LISTEN_SECONDS)


def _put(key: str, value: Any) -> str:
    text = json.dumps(value)
    _client().key_value_set(key, text)
    return text


def _take(key: str) -> Any:
    value = _wait_for(key)
    _client().key_value_delete(key)
    return value


def _wait_for(key: str) -> Any:
    """For as long as it takes. Raises LostPeerError where a process has said that it ends; one that is killed or frozen
    is missed by its heartbeats, as in a collective."""
    import jax

    while True:
        try:
            return json.loads(_client().blocking_key_value_get(key, int(1000 * LISTEN_SECONDS)))
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise
        for name, text in _client().key_value_dir_get(LAST_WORDS):
            raise LostPeerError(f"process {name.rpartition('/')[2]}: {text}")


def _client() -> Any:
    return _state().client


def _state() -> Any:
    from jax._src import distributed  # JAX gives no public way to it; Orbax goes the same

    return distributed.global_state

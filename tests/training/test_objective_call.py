"""What is wrong with a user's objective is one line: what, in which file and line, and what was expected."""

import functools
import inspect

import jax
import jax.numpy as jnp
import pytest

from errors import InputError
from objectives.base import Loss
from training.objective_call import call_objective
from training.step import Columns

SCORES, BATCH = jnp.ones((2, 3)), Columns(loss_mask=jnp.ones((2, 3)))


def right(scores, batch, scale=1.0):
    return Loss(scale * jnp.sum(scores), jnp.sum(batch["loss_mask"]), {"mean": (jnp.sum(scores), jnp.float32(6))})


def scalar(scores, batch):
    return jnp.sum(scores)


def unsummed(scores, batch):
    return Loss(scores, jnp.float32(1), {})


def bare_metric(scores, batch):
    return Loss(jnp.sum(scores), jnp.float32(1), {"mean": jnp.mean(scores)})


def unsummed_metric(scores, batch):
    return Loss(jnp.sum(scores), jnp.float32(1), {"mean": (scores, jnp.float32(6))})


def misspelled(scores, batch):
    return scores.logs.sum()


def too_few(scores):
    return scores


def through_jax(scores, batch):
    return jax.vmap(lambda row: row + jnp.ones(4))(scores)


def test_a_right_one_is_passed_through():
    assert call_objective(right, SCORES, BATCH).total == 6.0
    assert call_objective(functools.partial(right, scale=2.0), SCORES, BATCH).total == 12.0


@pytest.mark.parametrize(("objective", "words"), [
    (scalar, r"returns an array of shape \[\], no Loss; an objective takes"),
    (unsummed, r"a total of shape \[2, 3\], no scalar: sum it"),
    (bare_metric, "the metric mean in another form"),
    (unsummed_metric, "the metric mean in another form"),
    (misspelled, r"AttributeError: .*logs.*\(return scores.logs.sum"),
    (too_few, "TypeError: .*positional"), (through_jax, r"at line \d+ \(return jax.vmap")])
def test_a_wrong_one_is_named_with_its_place(objective, words):
    with pytest.raises(InputError, match=words) as error:
        jax.jit(functools.partial(call_objective, objective))(SCORES, BATCH)
    line = inspect.getsourcelines(objective)[1]
    assert f"the objective {objective.__name__} ({__file__}:{line})" in str(error.value)
    assert "\n" not in str(error.value)
    if objective in (misspelled, through_jax):
        assert f" at line {line + 1} (return" in str(error.value)


class Callable:
    def __call__(self, scores, batch):
        raise ValueError("two\nlines")


def test_an_object_that_is_called_is_named_with_its_place():
    line = inspect.getsourcelines(Callable.__call__)[1]
    for objective in (Callable(), functools.partial(Callable())):
        with pytest.raises(InputError) as error:
            call_objective(objective, SCORES, BATCH)
        assert f"Callable ({__file__}:{line}) raised ValueError: two at line {line + 1} (raise" in str(error.value)


def test_a_column_that_is_not_there_is_named_by_its_own_line():
    with pytest.raises(InputError, match="reads the column advantages"):
        call_objective(lambda scores, batch: batch["advantages"], SCORES, BATCH)

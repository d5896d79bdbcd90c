"""What XLA compiles is counted, and what it has compiled before is not."""

import jax
import jax.numpy as jnp

from training.compiling import compile_seconds


def test_seconds_grow_where_something_is_compiled():
    array, function = jnp.ones(3), jax.jit(lambda array: array * 2 + 1)
    seconds = [compile_seconds()]
    for argument in (array, array, jnp.ones(4)):
        function(argument)
        seconds.append(compile_seconds())
    assert seconds[0] < seconds[1] == seconds[2] < seconds[3]

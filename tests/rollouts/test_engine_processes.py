"""An engine on one mesh over several processes answers as one process does, in each of them."""

import json

import jax
import numpy as np
import pytest
from processes import WAIT, start_program
from tiny import CONFIG, variables_on

from models.transformer import Transformer
from rollouts.engine import Engine, Request
from rollouts.generate import generate
from rollouts.sampling import make_controls
from rollouts.stops import Ends
from sharding.mesh import MeshConfig, make_layout

WORKER = """
import json, sys
sys.path[:0] = [".", "tests", "tests/rollouts"]
from sharding import hosts
hosts.connect(hosts.HostsConfig(sys.argv[1], int(sys.argv[3]), int(sys.argv[2]), heartbeat_timeout=60))
from sharding.mesh import MeshConfig
import test_engine_processes
with hosts.lost_peers():
    print(json.dumps(test_engine_processes.answers(MeshConfig(*map(int, sys.argv[4:])))), flush=True)
"""
PROMPTS = [[3, 14, 15, 9, 2, 6], [5, 3], [58, 9, 7, 9, 3, 2, 3, 8, 4, 6, 2], list(range(60)), [*range(60), 3]]


def answers(sizes):
    """[tokens, logps] of completions with a cache that grows and pages that are copied, under new weights, and with a
    bias beside a request that is cancelled."""
    layout = make_layout(sizes, jax.devices()[:4])
    variables = variables_on(layout)
    engine = Engine(Transformer(CONFIG), 5, None, 8, layout)
    engine.load(variables)
    given = generate(engine, PROMPTS, jax.random.key(1), max_new_tokens=[40, 9, 21, 30, 30] * 2,
                     controls=make_controls(1.0), ends=Ends((5,)), group_size=2)
    engine.load(jax.tree.map(lambda leaf: 0.9 * leaf, variables), 1)
    given += generate(engine, PROMPTS, jax.random.key(2), max_new_tokens=5, controls=make_controls(0.0))
    key = np.asarray(jax.random.key_data(jax.random.key(9)))
    kept, cancelled = engine.submit([
        Request(PROMPTS[0], 10, key, make_controls(1.0), logit_bias={4: 3.0}), Request(PROMPTS[1], 50, key)])
    outputs = []
    while engine.busy:
        outputs += engine.step()
        engine.cancel([cancelled])
    return [[each.tokens, each.logps] for each in given] + [
        [each.tokens, each.logps] for each in outputs if each.id == kept]


@pytest.fixture(scope="module")
def alone():
    return answers(MeshConfig(2, 2, 1))


@pytest.mark.slow
@pytest.mark.parametrize(("count", "sizes"), [(2, (2, 2, 1)), (4, (4, 1, 1)), (4, (1, 2, 2))])
def test_several_processes_answer_as_one(alone, count, sizes):
    processes = start_program(WORKER, count, *sizes, ids=tuple(range(count)), devices=4 // count)
    printed = [process.communicate(timeout=WAIT) for process in processes]
    for out, errors in printed:
        assert out, errors
        for one, other in zip(alone, json.loads(out.splitlines()[-1]), strict=True):
            assert one[0] == other[0]
            np.testing.assert_allclose(one[1], other[1], atol=1e-5)

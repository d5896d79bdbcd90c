"""Two processes read a checkpoint with one verdict: what fails in one is read again, gone back from, or given up by
both."""

import json

import pytest
from processes import WAIT, start_program

from training.checkpoints import finished_steps

PROGRAM = """
import errno, json, sys
from pathlib import Path
from sharding import hosts
hosts.connect(hosts.HostsConfig(sys.argv[1], 2, int(sys.argv[2]), heartbeat_timeout=10))
import jax, numpy as np, orbax.checkpoint as ocp
from errors import InputError
from sharding.mesh import MeshConfig, make_layout
from training import checkpoints, reading
from training.state import TrainState

run, me, faults = Path(sys.argv[3]), jax.process_index(), json.loads(sys.argv[4])
reading.DELAYS = (0.0,) * len(reading.DELAYS)
layout = make_layout(MeshConfig(fsdp=2, data=1))


def at(step):
    weights = lambda: jax.make_array_from_callback((4, 6), layout.sharding("embed"),
                                                   lambda index: np.full((4, 6), step, np.float32)[index])
    put = lambda value: jax.make_array_from_callback(np.shape(value), layout.sharding(), lambda index: value[index])
    rng = jax.jit(lambda: jax.random.key(step), out_shardings=layout.sharding())()
    return TrainState(put(np.int32(step)), {"w": weights()}, None, {"mu": weights()}, rng)


with hosts.lost_peers(), checkpoints.open_manager(run) as manager:
    for step in (1, 2):
        checkpoints.save(manager, at(step), [step], None)
    manager.wait_until_finished()
    restore = ocp.CheckpointManager.restore

    def read(*given, **named):
        fault = faults[me].pop(0) if faults[me] else ""
        if fault == "stale":
            raise OSError(errno.ESTALE, "Stale file handle")
        if fault == "damage":
            raise Exception("Encountered error") from ValueError("DATA_LOSS: Error decoding")
        return restore(*given, **named)

    ocp.CheckpointManager.restore = read
    try:
        state, position = checkpoints.restore_newest(manager, at(0))
        shard = state.params["w"].addressable_shards[0].data
        print(position[0], int(state.step), float(np.min(shard)), float(np.max(shard)))
        checkpoints.save(manager, state.replace(step=state.step + 5), [7], None)
    except InputError as error:
        print(error)
"""

GAVE_UP = "{run}/checkpoints/2: the checkpoint cannot be read (Stale file handle), after 5 tries; it is left"


@pytest.mark.slow
@pytest.mark.parametrize(("faults", "printed", "left"), [
    ([["stale"], ["", "stale", "stale"]], "2 2 2.0 2.0", [2, 7]),
    ([[], ["damage", "stale"]], "2 2 2.0 2.0", [2, 7]),
    ([[], ["damage", "damage"]], "1 1 1.0 1.0", [1, 6]),
    ([["stale", "damage", "damage"], ["damage", "stale", "damage"]], "2 2 2.0 2.0", [2, 7]),
    ([["stale", "damage", "damage"], ["damage", "stale", "", "damage"]], "1 1 1.0 1.0", [1, 6]),
    ([["stale"] * 5, ["damage"] * 5], GAVE_UP, [1, 2]),
], ids=["stale", "once damaged", "damaged in one", "whole at last", "in turns", "given up"])
def test_one_verdict_of_all(tmp_path, faults, printed, left):
    processes = start_program(PROGRAM, tmp_path, json.dumps(faults), ids=(0, 1))
    ended = [process.communicate(timeout=WAIT) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], ended
    assert all(out.startswith(printed.format(run=tmp_path)) for out, _ in ended), ended
    assert len({out for out, _ in ended}) == 1
    assert finished_steps(tmp_path / "checkpoints") == left

"""Flags and environments of many processes, and two real processes on this machine: together, stopped, killed."""

import os
import re
import signal
import socket
import subprocess
from pathlib import Path

import pytest
from processes import start_program

from errors import InputError, Stopped
from sharding.hosts import HostsConfig, connect, in_cluster, lost_peer_message, lost_peers

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("config", "message"), [
    (HostsConfig(coordinator="a:1"), "give --hosts.num-processes and --hosts.process-id too"),
    (HostsConfig(num_processes=2, process_id=0), "give --hosts.coordinator too"),
    (HostsConfig("a:1", 2, 2), "--hosts.process-id 2 must be from 0 to 1"),
    (HostsConfig("a:1", 2, -1), "--hosts.process-id -1 must be from 0 to 1"),
    (HostsConfig("a", 2, 1), "HOST:PORT"),
    (HostsConfig("a:http", 2, 1), "HOST:PORT"),
    (HostsConfig(heartbeat_timeout=0), "--hosts.heartbeat-timeout"),
])
def test_flags_that_do_not_fit_together(config, message):
    with pytest.raises(InputError, match=message) as caught:
        connect(config)
    assert "\n" not in str(caught.value)


def test_a_coordinator_port_that_is_taken_is_named():
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(InputError, match=f"port {port} cannot be opened"):
            connect(HostsConfig(f"localhost:{port}", 2, 0))


@pytest.mark.parametrize(("environ", "several"), [
    ({}, False),
    ({"SLURM_STEP_NUM_TASKS": "4"}, True),
    ({"SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS": "4"}, False),
    ({"TPU_WORKER_HOSTNAMES": "a,b"}, True),
    ({"TPU_WORKER_HOSTNAMES": "localhost"}, False),
    ({"MEGASCALE_COORDINATOR_ADDRESS": "a"}, True),
])
def test_what_the_environment_says(environ, several):
    assert in_cluster({"JAX_PLATFORMS": "cpu"} | environ) is several


def test_only_a_lost_peer_is_explained():
    lost = ValueError("UNKNOWN: Gloo all-reduce failed: Connection closed by peer\nmore")
    assert re.fullmatch(r"another process .*closed by peer\).*up to step 7 are good: .*", lost_peer_message(lost, 7))
    assert lost_peer_message(ValueError("shapes do not match")) is None
    assert lost_peer_message(InputError("no file: Connection refused")) is None


def test_alone_every_error_passes():
    for error in (ValueError("Gloo "), InputError("bad"), Stopped("stopped")):
        with pytest.raises(type(error)), lost_peers():
            raise error


WORKER = """
import sys
from sharding import hosts
hosts.CONNECT_SECONDS = int(sys.argv[4])
for _ in range(2):  # the second does nothing
    hosts.connect(hosts.HostsConfig(sys.argv[1], 2, int(sys.argv[2]), heartbeat_timeout=6))
import time
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec
sharding = NamedSharding(jax.make_mesh((jax.device_count(),), ("data",)), PartitionSpec("data"))
x = jax.make_array_from_callback((jax.device_count(),), sharding, lambda index: np.ones(4)[index])
with hosts.lost_peers(lambda: 7):
    hosts.barrier("start")
    for step in range(1000):
        total = float(jax.jit(jnp.sum)(x))
        print(step, total, hosts.is_main(), flush=True)
        if sys.argv[3] == "raises" and step == 3 and not hosts.is_main():
            raise KeyError("a bug")
        if hosts.reached_stop(step):
            break
        time.sleep(0.02)
print("stopped at", step, flush=True)
"""


def _start(what: str, ids: tuple[int, ...] = (0, 1), seconds: int = 60, devices: int = 1) -> list[subprocess.Popen]:
    return start_program(WORKER, what, seconds, ids=ids, devices=devices)


def _first_step(process: subprocess.Popen) -> str:
    return next(line for line in process.stdout if line.startswith("0 "))


def test_sigterm_of_one_stops_both_at_the_same_step():
    processes = _start("steps", devices=2)
    assert [_first_step(each) for each in processes] == ["0 4.0 True\n", "0 4.0 False\n"]
    processes[1].send_signal(signal.SIGTERM)
    last = [each.communicate(timeout=60)[0].splitlines()[-1] for each in processes]
    assert last[0] == last[1]
    assert last[0].startswith("stopped at")
    assert [each.returncode for each in processes] == [0, 0]


def test_a_killed_process_ends_the_other_with_one_line():
    main, other = _start("steps")
    _first_step(main)
    other.kill()
    _, errors = main.communicate(timeout=60)
    other.communicate()
    assert main.returncode == 1
    assert re.search(r"^error: another process of this run has ended.*up to step 7 are good.*$", errors, re.M)
    assert "Traceback" not in errors


@pytest.mark.slow
def test_a_process_that_waits_inside_a_collective_ends_when_the_heartbeats_stop():
    main, other = _start("steps", devices=2)
    _first_step(main)
    other.kill()
    _, errors = main.communicate(timeout=60)
    other.communicate()
    assert main.returncode == -signal.SIGABRT
    assert "heartbeat" in errors


def test_an_error_in_one_process_keeps_its_traceback_and_ends_both():
    main, other = _start("raises")
    errors = [each.communicate(timeout=60)[1] for each in (main, other)]
    assert "KeyError: 'a bug'" in errors[1]
    assert "another process of this run has ended" in errors[0]
    assert [main.returncode, other.returncode] == [1, 1]


def test_a_process_whose_peers_never_come_says_so():
    [alone] = _start("steps", ids=(1,), seconds=1)
    _, errors = alone.communicate(timeout=60)
    assert alone.returncode == 1
    assert re.search(r"^error: process 0 at localhost:\d+ could not be reached within 1 s", errors, re.M)


def _launch(script: str, *arguments: str, **environ: str) -> subprocess.Popen:
    return subprocess.Popen(["bash", str(ROOT / "scripts" / "launch" / script), *arguments], cwd=ROOT,
                            env=os.environ | environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_local_gives_every_process_its_flags():
    process = _launch("local.sh", "3", "bash", "-c", 'echo "$@"', "_")
    lines = sorted(process.communicate(timeout=60)[0].splitlines())
    assert [re.sub(":[0-9]+ ", ":PORT ", line) for line in lines] == [
        f"--hosts.coordinator localhost:PORT --hosts.num-processes 3 --hosts.process-id {each}" for each in range(3)]
    assert process.returncode == 0


def test_local_kills_all_when_one_fails():
    process = _launch("local.sh", "2", "bash", "-c", '[ "$6" = 0 ] && exit 3; exec sleep 100', "_")
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 3
    assert "error: a process ended with status 3" in errors


def test_local_passes_sigterm_on():
    waits = "trap 'echo saved; exit 0' TERM; echo up; while :; do sleep .1; done"
    process = _launch("local.sh", "2", "bash", "-c", waits)
    assert [process.stdout.readline() for _ in range(2)] == ["up\n", "up\n"]
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=60)[0] == "saved\nsaved\n"
    assert process.returncode == 0


STAND_INS = {
    "srun": "trap 'exit ${STATUS:-0}' TERM; echo $$ > pid; mv pid srun.pid; for _ in $(seq 300); do sleep .1; done",
    "scancel": 'echo "scancel $*"; kill -TERM $(cat srun.pid)',
    "scontrol": 'echo "scontrol $*"',
}


@pytest.mark.parametrize(("status", "requeued"), [("0", ["scontrol requeue 7"]), ("1", [])])
def test_slurm_saves_and_requeues_ahead_of_the_time_limit(tmp_path, status, requeued):
    for name, text in STAND_INS.items():
        (tmp_path / name).write_text(f"#!/bin/bash\ncd {tmp_path}\n{text}\n")
        (tmp_path / name).chmod(0o755)
    process = _launch("slurm.sh", "python", PATH=f"{tmp_path}:{os.environ['PATH']}", SLURM_JOB_ID="7", STATUS=status)
    while not (tmp_path / "srun.pid").exists():
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    printed = process.communicate(timeout=60)[0].splitlines()
    assert printed == ["scancel --signal=TERM 7", *requeued]
    assert process.returncode == int(status)

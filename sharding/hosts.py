"""Many processes, one run: how they find each other, stop together, and end when one of them is lost.

Every process runs the same command. On one machine with one process nothing here does anything.
"""

import contextlib
import dataclasses
import importlib.util
import os
import socket
import sys
import threading
import traceback
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from errors import InputError, Stopped
from sharding.accelerators import has_tpu_chips
from sharding.compilation_cache import turn_off_unless_shared
from sharding.exchange import LostPeerError, leave

CONNECT_SECONDS = 300
"""how long a process waits at the start for all others"""


@dataclasses.dataclass(frozen=True)
class HostsConfig:
    """The processes of a run. Nothing to set on one machine, under Slurm's srun, or on Cloud TPUs (docs/hosts.md)."""

    coordinator: str | None = None
    """Process 0 listens at this HOST:PORT, a free port that all processes can reach; the three go together."""
    num_processes: int | None = None
    """The run has this many processes, over all machines."""
    process_id: int | None = None
    """This one is the process of this number, from 0 to num_processes - 1."""
    heartbeat_timeout: int = 60
    """A process that is silent for this many seconds is given up for lost, and the others end."""


def connect(config: HostsConfig) -> None:
    """Joins the other processes, by explicit flags or by what the environment says; alone, does nothing.

    Comes before the first use of a JAX device. A second call does nothing. Raises InputError for flags that do not fit
    together; when not all processes are there within CONNECT_SECONDS, ends with one line and status 1 (JAX's own
    client would abort with a stack trace, uncatchably).
    """
    import jax

    if jax.distributed.is_initialized():
        return
    explicit = _explicit(config)
    if config.num_processes == 1 or not (explicit or in_cluster(os.environ)):
        return
    arguments = explicit or _slurm_devices(os.environ)
    with _time_limit(CONNECT_SECONDS, config):
        jax.distributed.initialize(**arguments, heartbeat_timeout_seconds=config.heartbeat_timeout,
                                   initialization_timeout=CONNECT_SECONDS + 60)
    turn_off_unless_shared()


def _explicit(config: HostsConfig) -> dict[str, Any]:
    """What the flags ask of jax.distributed.initialize; empty where there are none."""
    flags = {"coordinator": config.coordinator, "num-processes": config.num_processes, "process-id": config.process_id}
    missing = [f"--hosts.{name}" for name, value in flags.items() if value is None]
    if config.heartbeat_timeout < 1:
        raise InputError(f"--hosts.heartbeat-timeout must be 1 second or more, not {config.heartbeat_timeout}")
    if len(missing) == len(flags):
        return {}
    if missing:
        raise InputError(f"--hosts.coordinator, --hosts.num-processes and --hosts.process-id go together; "
                         f"give {' and '.join(missing)} too, or none of them")
    _check_flags(config)
    return {"coordinator_address": config.coordinator, "num_processes": config.num_processes,
            "process_id": config.process_id, "cluster_detection_method": "deactivate"}


def _check_flags(config: HostsConfig) -> None:
    host, _, port = config.coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise InputError(f"--hosts.coordinator {config.coordinator!r}: the form is HOST:PORT, as in 10.0.0.1:8476")
    if not 0 <= config.process_id < config.num_processes:
        raise InputError(f"--hosts.process-id {config.process_id} must be from 0 to {config.num_processes - 1}: "
                         f"--hosts.num-processes is {config.num_processes}")
    if config.process_id == 0 and config.num_processes > 1:
        _check_free(int(port))


def _check_free(port: int) -> None:
    """JAX's coordinator dies of a segmentation fault where its port is taken, or shares it with another run's."""
    with socket.socket(socket.AF_INET6 if socket.has_ipv6 else socket.AF_INET) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("", port))
        except OSError as error:
            raise InputError(f"--hosts.coordinator: port {port} cannot be opened on this machine ({error.strerror}); "
                             f"choose another, the same for all processes") from None


def in_cluster(environ: Mapping[str, str]) -> bool:
    """Whether several processes were started here by something that jax.distributed.initialize() knows by itself."""
    tasks = [environ.get(name, "1") for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")]
    workers = environ.get("TPU_PROCESS_ADDRESSES") or environ.get("TPU_WORKER_HOSTNAMES", "")
    by_name = "," in workers or "MEGASCALE_COORDINATOR_ADDRESS" in environ
    return any(int(count) > 1 for count in tasks) or by_name or "," in _tpu_vm_workers(environ)


def _tpu_vm_workers(environ: Mapping[str, str]) -> str:
    """The hosts of a Cloud TPU VM's slice, from the metadata server; a slice of one host and any other machine: ""."""
    elsewhere = environ.get("JAX_PLATFORMS", "tpu").split(",")[0] != "tpu" or "TPU_SKIP_MDS_QUERY" in environ
    if elsewhere or not has_tpu_chips() or importlib.util.find_spec("libtpu") is None:
        return ""
    server = environ.get("GCE_METADATA_IP", "metadata.google.internal")
    url = f"http://{server}/computeMetadata/v1/instance/attributes/worker-network-endpoints"
    try:
        request = urllib.request.Request(url, headers={"Metadata-Flavor": "Google"})
        return urllib.request.urlopen(request, timeout=10).read().decode()
    except (urllib.error.URLError, TimeoutError):
        return ""


def _slurm_devices(environ: Mapping[str, str]) -> dict[str, Any]:
    """JAX gives a Slurm task one GPU, by its local id; the only task of a node is to drive all of the node's."""
    alone = environ.get("SLURM_STEP_NUM_TASKS") == environ.get("SLURM_STEP_NUM_NODES", "")
    gpus = int(environ.get("SLURM_GPUS_ON_NODE", "0"))
    return {"local_device_ids": list(range(gpus))} if alone and gpus > 1 else {}


@contextlib.contextmanager
def _time_limit(seconds: int, config: HostsConfig) -> Iterator[None]:
    """Ends the process with one line when the block takes longer; what it interrupts holds no Python lock."""
    others = f"process 0 at {config.coordinator}" if config.process_id else "all other processes"

    def give_up() -> None:
        print(f"error: {others} could not be reached within {seconds} s; start every process of the run, with the "
              f"same --hosts.coordinator and --hosts.num-processes, and check that its port is open between the "
              f"machines", file=sys.stderr, flush=True)
        os._exit(1)

    timer = threading.Timer(seconds, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def is_main() -> bool:
    """Whether this is the one process that writes logs and prints."""
    import jax

    return jax.process_index() == 0


def warn(text: str) -> None:
    """One line on standard error, once for all processes of a run."""
    if is_main():
        print(f"warning: {text}", file=sys.stderr)


def barrier(name: str) -> None:
    """Waits until all processes are here, for as long as it takes; every process passes the same barriers in order."""
    import jax

    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


def reached_stop(step: int) -> bool:
    """Whether a SIGTERM that any process received asks for a stop after this step: the same step in all processes.

    To be called once after every step, by all processes; about 10 microseconds. JAX looks for the signal once a second
    and agrees on the step after the furthest one. From connect() on JAX owns SIGTERM: it kills nothing by itself, and a
    handler installed by `signal.signal` afterwards takes the signal away from it. False in a run of one process.
    """
    from jax.experimental import multihost_utils

    return multihost_utils.reached_preemption_sync_point(step)


_LOST = ("Connection closed by peer", "Connection reset by peer", "Connection refused", "Broken pipe", "Socket closed",
         "Connection timed out", "remote process exited", "heartbeat timeout", "stopped sending heartbeats",
         "CoordinationService", "coordination service", "Gloo ")
"""how Gloo, NCCL and JAX's coordination service say that a peer is gone"""


def lost_peer_message(error: BaseException, last_step: int | None = None) -> str | None:
    """One line for an error that means that another process is gone; None for any other error."""
    text = str(error)
    lost = isinstance(error, LostPeerError) or any(sign in text for sign in _LOST)
    if isinstance(error, InputError) or not lost:
        return None
    good = "its checkpoints are good" if last_step is None else f"its checkpoints up to step {last_step} are good"
    return (f"another process of this run has ended, or the network between them failed ({text.splitlines()[0]}); "
            f"{good}: start all processes again with the same command")


@contextlib.contextmanager
def lost_peers(last_step: Callable[[], int | None] = lambda: None) -> Iterator[None]:
    """Where a run of several processes fails, this process says why and ends at once, with a status other than 0.

    An ordinary exit would wait for the others at JAX's shutdown barrier, for a heartbeat timeout and longer, while they
    wait for this one in a collective. So no `finally` and no `with` outside of the block is left any more: to be put
    around what needs the others. `last_step` gives the newest checkpoint, for the message. A Stopped, which all
    processes raise at the same step, passes; and alone, before connect() or without it, everything does.
    """
    try:
        yield
    except Stopped:
        raise
    except BaseException as error:
        if not _connected():
            raise
        status = _report(error, last_step)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _connected() -> bool:
    """Asks jax.distributed and not jax.process_count(), which would wait for peers that may be gone."""
    if "jax" not in sys.modules:
        return False
    import jax

    return jax.distributed.is_initialized()


def _report(error: BaseException, last_step: Callable[[], int | None]) -> int:
    """Prints what ended this process, and tells the others; its exit status."""
    lost = lost_peer_message(error, last_step())
    own = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
    leave(None if lost else own)
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    if isinstance(error, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
        return 130
    if lost is None and not isinstance(error, InputError):
        traceback.print_exception(error)
    else:
        print(f"error: {lost or error}", file=sys.stderr)
    return 1

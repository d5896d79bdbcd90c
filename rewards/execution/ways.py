"""What a sandbox is made with beside its namespaces, which a machine may or may not let us have.

Some limits need rights that bwrap takes away from what it runs. It leaves them to inside.py, which uses them and gives
them up before it does anything else.
"""

import contextlib
import dataclasses
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

_USER = 65534
"""nobody"""
_MAPS = {"uid": f"1 0 1\n{_USER} {_USER} 1\n", "gid": f"{_USER} 0 1\n"}
"""inside, outside, how many: root, who makes the sandbox, is no root in it"""


@dataclasses.dataclass(frozen=True)
class Way:
    files: bool
    """limit the number of files in the folder, by mounting it anew with rights in the sandbox's own user namespace"""
    user: bool
    """be another user than the trainer, which is root: a limit on threads (RLIMIT_NPROC) binds all others"""

    def options(self) -> list[str]:
        """bwrap's."""
        names = ["CAP_SYS_ADMIN"] * self.files + ["CAP_SETUID"] * self.user
        return ["--unshare-user", *(word for name in names for word in ("--cap-add", name))]

    def job(self, files: int, threads: int, readable: Sequence[str] = ()) -> dict[str, Any]:
        """What inside.py is asked to do: arguments of its give_up. Where what it is to read is the trainer's alone, it
        stays the trainer as to files."""
        return {"files": files if self.files else None, "user": _USER if self.user else None,
                "owner": _USER if self.user and all(_readable_by_all(path) for path in readable) else None,
                "threads": threads if self.user or _threads_are_counted_apart() else None}

    def missing(self) -> str:
        """What does not hold."""
        lacks = {"the number of files": not self.files, "the number of threads": self.job(0, 0)["threads"] is None}
        return " and ".join(name for name, lack in lacks.items() if lack)


def ways() -> list[Way]:
    """The best first."""
    plain = [Way(files=True, user=False), Way(files=False, user=False)]
    return [Way(files=True, user=True), *plain] if os.geteuid() == 0 else plain


def _readable_by_all(path: str) -> bool:
    return os.stat(path).st_mode & 0o5 == 0o5 or not os.path.isdir(path)


def _threads_are_counted_apart() -> bool:
    """Whether RLIMIT_NPROC counts a sandbox's threads alone: before Linux 5.14 it counts all that its user has."""
    major, minor = re.findall(r"\d+", os.uname().release)[:2]
    return os.geteuid() != 0 and (int(major), int(minor)) >= (5, 14)


@contextlib.contextmanager
def users(way: Way) -> Iterator[tuple[list[str], list[int], Callable[[], None]]]:
    """bwrap's options for the users inside, the descriptors they name, and what to do once bwrap was started.

    bwrap maps one user, the trainer's. Where there are to be two, it waits until we have done so.
    """
    if not way.user:
        yield [], [], lambda: None
        return
    (told, tells), (waits, goes) = os.pipe(), os.pipe()
    with open(told, "rb") as info, open(tells, "wb") as says, open(waits, "rb") as wait, open(goes, "wb", 0) as go:
        def map_users() -> None:
            says.close()
            wait.close()
            _map_users(info)
            with contextlib.suppress(BrokenPipeError):  # bwrap has ended; its status tells
                go.write(b"1")

        yield ["--userns-block-fd", str(waits), "--info-fd", str(tells)], [waits, tells], map_users


def _map_users(info: IO[bytes]) -> None:
    """Writes _MAPS for the namespace of the process that bwrap names."""
    text = info.read()  # it closes the pipe when all is said, or ends
    for kind, users_map in _MAPS.items() if text else ():
        Path(f"/proc/{json.loads(text)['child-pid']}/{kind}_map").write_text(users_map)

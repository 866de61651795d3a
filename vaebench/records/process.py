"""Name a process exactly, and tell whether a named process has ended."""

import hashlib
import os
import re
import socket
import uuid
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

__all__ = ["Process", "this_process"]

_TEXT = re.compile(r"process (\d{1,10}) on (.+?)(?: \[(\S+)\])?")
_ENDED = "ended"


class _Place(NamedTuple):
    """Where a process number has a meaning. Each part is empty if the system does not tell it."""

    machine: str
    boot: str
    namespace: str
    """Containers on one machine can have the same host name and different processes of one number."""


@dataclass(frozen=True)
class Process:
    """A process. Two processes are equal only if they are the same one, also after a restart of the machine."""

    pid: int
    host: str
    instance: str = ""
    """The place and the start of the process; empty in files of earlier versions, which did not write it."""

    @classmethod
    def parse(cls, text: str) -> "Process | None":
        """Return the process that `text` named; None if the text names no process."""
        found = _TEXT.fullmatch(text.strip())
        return cls(int(found[1]), found[2], found[3] or "") if found and 0 < int(found[1]) < 2**31 else None

    @property
    def text(self) -> str:
        """The process as `parse` reads it."""
        return f"{self} [{self.instance}]" if self.instance else str(self)

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"

    def is_here(self) -> bool:
        """Return whether the process ran on this machine since its start, so that locks exclude it and this process."""
        return self._place() == _place() if _place().boot else self.host == socket.gethostname()

    def has_ended(self) -> bool:
        """Return whether the process has certainly ended; False if this machine cannot tell."""
        if self.host != socket.gethostname() or os.name != "posix":  # on Windows os.kill would end the process
            return False
        start = ""
        if self.instance:
            place, here, start = self._place(), _place(), self.instance.rpartition("-")[2]
            if place is None:
                return False
            if place.boot != here.boot:
                return place.machine == here.machine != ""  # the machine was restarted
            if place.namespace != here.namespace:
                return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except OSError:
            pass  # it is a process of another user
        found = _start(self.pid)
        return found == _ENDED or bool(start and found and found != start)

    def _place(self) -> _Place | None:
        parts = self.instance.split("-")[:-1]
        return _Place(*parts) if len(parts) == len(_Place._fields) else None


def this_process() -> Process:
    """Return this process. The host keeps the name that it had at the first call."""
    return _process(os.getpid())


@cache
def _process(pid: int) -> Process:
    return Process(pid, socket.gethostname(), "-".join([*_place(), _start(pid) or uuid.uuid4().hex]))


@cache
def _place() -> _Place:
    try:
        namespace = "".join(filter(str.isdigit, os.readlink("/proc/self/ns/pid")))
    except OSError:
        namespace = ""
    return _Place(_digest("/etc/machine-id"), _digest("/proc/sys/kernel/random/boot_id"), namespace)


def _digest(path: str) -> str:
    """Return a digest of a file's text, "" if there is none. A machine's id itself should not be published."""
    try:
        text = Path(path).read_bytes().strip()
    except OSError:
        return ""
    return hashlib.sha256(text).hexdigest()[:12] if text else ""


def _start(pid: int) -> str:
    """Return when a process started, in clock ticks since the start of the machine; "" if the system does not tell.

    `_ENDED` for a process that has ended and whose parent has not asked for its exit code yet.
    Source: https://man7.org/linux/man-pages/man5/proc_pid_stat.5.html, fields 3 and 22.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return ""
    return _ENDED if fields[0] in (b"Z", b"X") else fields[19].decode()

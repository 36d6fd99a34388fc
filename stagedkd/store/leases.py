"""Leases: who makes an artifact, over processes and hosts that share the store.

The lease of a key is a folder, `.leases/<kind>-<key>/`, that holds one empty file; the file's name says who holds it,
its time of change is the heartbeat. Every step is one atomic operation of the file system:

- to enter, a folder that holds one's file is renamed into place: that fails where a file is there already;
- to renew, the file's time is set to now: that fails once it has another name;
- to take over a dead holder's lease, his file is renamed to one's own: of several takers one finds it;
- to leave, the file is removed, then the empty folder.

A holder is dead when he has not renewed for the seconds that his file names, or, on this machine, when his process is
gone. Times are compared as the file system gives them, never with a local clock. A holder that was frozen may come back
after another took over: `Lease.require` raises then, and nothing that he has open is in the other's way (store.py).
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
import shutil
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from stagedkd.errors import StoreError

SECONDS = 60.0
TAKEN = (errno.ENOTEMPTY, errno.EEXIST)  # what a rename says of a folder that is there and not empty


@dataclass(frozen=True)
class Owner:
    """Who holds a lease. `machine` tells boots and containers apart, `start` a process from a later one of its number
    (0: unknown); `seconds` without a heartbeat make him dead."""

    seconds: float
    host: str
    machine: str
    pid: int
    start: int
    token: str

    @classmethod
    def new(cls, seconds: float) -> Owner:
        """This process, with a token of its own."""
        host = re.sub(r"[^A-Za-z0-9.-]", "-", socket.gethostname())[:64]
        return cls(seconds, host, _machine(), os.getpid(), _start(os.getpid()) or 0, secrets.token_hex(8))

    @classmethod
    def of(cls, name: str) -> Owner:
        """Who a file's name names; a stranger whom only his heartbeat keeps alive where it cannot be read."""
        try:
            seconds, host, machine, pid, start, token = name.split("_")
            return cls(float(seconds), host, machine, int(pid), int(start), token)
        except ValueError:
            return cls(SECONDS, "unknown", "", 0, 0, name)

    @property
    def name(self) -> str:
        return f"{self.seconds:g}_{self.host}_{self.machine}_{self.pid}_{self.start}_{self.token}"

    @property
    def gone(self) -> bool:
        """His process was on this machine and has ended."""
        if self.machine != _machine():
            return False
        start = _start(self.pid)
        return start is None or (0 not in (start, self.start) and start != self.start)

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


@cache
def _machine() -> str:
    """This boot of this machine, and its space of process numbers: containers may share a host name."""
    parts = [socket.gethostname()]
    try:
        parts += [Path("/proc/sys/kernel/random/boot_id").read_text(), str(Path("/proc/self/ns/pid").readlink())]
    except OSError:
        parts.append(str(uuid.getnode()))
    return hashlib.sha256("|".join(parts).encode()).hexdigest()[:12]


def _start(pid: int) -> int | None:
    """When a process of this machine was started, in ticks since the boot; 0: unknown; None: it is gone."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass  # somebody else's, and alive
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return 0
    return None if fields[0] in (b"Z", b"X") else int(fields[19])


class Lease:
    """A lease that is held. A thread renews it four times in its time; it ends with `end`, or with the process."""

    def __init__(self, place: Path, owner: Owner) -> None:
        self.owner, self._path = owner, place / owner.name
        self._lost, self._renewed = False, time.monotonic()
        self._ended = threading.Event()
        self.renew()
        self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)
        self._thread.start()

    @property
    def lost(self) -> bool:
        """Another holds it now, as far as the last heartbeat knows."""
        return self._lost

    def renew(self) -> bool:
        """Set the heartbeat; False once the lease is lost. A holder that is late goes on where nobody took over."""
        try:
            os.utime(self._path)
            self._renewed = time.monotonic()
        except FileNotFoundError:
            self._lost = True
        except OSError:  # the file system is away: who follows us meanwhile renames the file, and we find that later
            pass
        return not self._lost

    def require(self) -> None:
        """Renew, or raise StoreError: the lease is lost, or was not renewed in its time, so that it may be by now."""
        if self.renew():
            late = time.monotonic() - self._renewed
            if late <= self.owner.seconds:
                return
            hint = "nothing was published; the same command goes on from the last checkpoint"
            raise StoreError(f"the store cannot be reached for {late:.1f} s: is its file system there?", hint=hint)
        hint = "nothing was published here; the same command takes what the other makes, or goes on"
        by = holder(self._path.parent)
        if by is None:
            what = f"another run took this stage over and has left it, or somebody removed {self._path.parent}"
            raise StoreError(what, hint=hint)
        message = f"another run took this stage over ({by}): no sign of life came from this one"
        raise StoreError(f"{message} for more than {self.owner.seconds:g} s", hint=hint)

    def end(self) -> None:
        """Leave it to the next one."""
        self._ended.set()
        self._thread.join(timeout=1)
        with suppress(OSError):
            self._path.unlink(missing_ok=True)
            self._path.parent.rmdir()

    def _beat(self) -> None:
        while not self._ended.wait(self.owner.seconds / 4) and self.renew():
            pass


def acquire(
    place: Path, seconds: float, waiting: Callable[[], None] = lambda: None, check: Callable[[], None] = lambda: None
) -> Lease:
    """Wait for the lease of a key, in the folder `place`, and hold it.

    Args:
        waiting: called once if somebody else has it.
        check: called while waiting; what it raises ends the wait.
    """
    told, pause = False, 0.02
    with _Claim(place, seconds) as claim:
        while True:
            lease = claim.attempt()
            if lease is not None:
                return lease
            if not told:
                waiting()
            told = True
            check()
            time.sleep(pause)
            pause = min(1.5 * pause, 1.0, max(0.02, seconds / 4))


def try_acquire(place: Path, seconds: float = SECONDS) -> Lease | None:
    """The lease of a key, or None where somebody has it."""
    with _Claim(place, seconds) as claim:
        return claim.attempt()


def holder(place: Path) -> Owner | None:
    """Who holds the lease of a key, dead or alive."""
    try:  # names with a dot are a network file system's own, of files removed while open
        names = sorted(path.name for path in place.iterdir())
        return next((Owner.of(name) for name in names if not name.startswith(".")), None)
    except FileNotFoundError:
        return None


def active(folder: Path) -> Iterator[tuple[str, Owner]]:
    """The leases below `folder` whose holders live: the name of each, and who holds it."""
    if not folder.is_dir():
        return
    with _Claim(folder / "none", SECONDS) as claim:
        for place in sorted(folder.iterdir()):
            owner = holder(place) if not place.name.startswith(".") else None
            if owner is not None and not claim.finds_dead(place, owner):
                yield place.name, owner


class _Claim:
    """A claim to one lease: a folder beside it with one's file, which is renamed into place."""

    def __init__(self, place: Path, seconds: float) -> None:
        self.place, self.seconds = place, seconds

    def __enter__(self) -> _Claim:
        self.owner = Owner.new(self.seconds)
        self.mine = self.place.with_name(f".new-{self.owner.token}")
        self.mine.mkdir(parents=True)
        (self.mine / self.owner.name).touch()
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.mine, ignore_errors=True)

    def attempt(self) -> Lease | None:
        """Enter, or take over from a dead holder; None where a living one has it."""
        if not self._enter():
            owner = holder(self.place)
            if owner is None or not self.finds_dead(self.place, owner) or not self._take(owner):
                return None
        lease = Lease(self.place, self.owner)
        if not lease.lost:
            return lease
        lease.end()  # frozen on the way in, and taken over
        self.__exit__()
        self.__enter__()
        return None

    def _enter(self) -> bool:
        os.utime(self.mine / self.owner.name)
        try:
            self.mine.rename(self.place)
        except OSError as error:
            if error.errno in TAKEN:
                return False
            raise
        return True

    def _take(self, owner: Owner) -> bool:
        """Rename the dead holder's file to one's own; its time first, so that nobody finds us dead."""
        try:
            os.utime(self.place / owner.name)
            (self.place / owner.name).rename(self.place / self.owner.name)
        except FileNotFoundError:
            return False
        return True

    def finds_dead(self, place: Path, owner: Owner) -> bool:
        """Whether a holder is dead. Now is what the file system says of a file that is touched now."""
        if owner.gone:
            return True
        os.utime(self.mine / self.owner.name)
        now = (self.mine / self.owner.name).stat().st_mtime
        try:
            return now - (place / owner.name).stat().st_mtime > owner.seconds
        except FileNotFoundError:
            return False


def clear(folder: Path) -> None:
    """Remove the leases below `folder` that dead holders left, and the claims of those who died waiting."""
    if not folder.is_dir():
        return
    with _Claim(folder / "none", SECONDS) as claim:
        for place in sorted(folder.iterdir()):
            owner = holder(place)
            if owner is None or place == claim.mine or not claim.finds_dead(place, owner):
                continue
            if place.name.startswith(".new-"):
                shutil.rmtree(place, ignore_errors=True)
            elif (lease := try_acquire(place)) is not None:
                lease.end()

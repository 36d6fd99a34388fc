"""Leases: which process makes an artifact, among all processes and hosts that share a store.

The *holder* of a lease is the process that may make and publish the artifact of one content key. The *heartbeat* is a
file's modification time, which the holder sets to now again and again. In a *takeover*, another process gets the lease
of a holder that is dead.

The lease of a key is a folder, `.leases/<kind>-<key>/`, with one empty file. The name of the file says who the holder
is (`Owner.name`), and its modification time is the heartbeat. Where the folder is missing or empty, the lease is free.
Every step is one atomic operation of the file system:

1. Enter. A process makes a folder `.new-<token>/` beside the lease, with its own file in it, and renames that folder to
   the name of the lease. The rename fails if a file is there already, so only one process can enter.
2. Renew. The holder sets the time of its file to now. This fails once the file has another name: the lease is lost.
3. Take over. A process that finds the holder dead sets the time of the holder's file to now and renames the file to its
   own name. If several processes try, one rename succeeds; the others find that the file does not exist any more.
4. Leave. The holder removes its file, then the empty folder.

A holder is dead if it has not renewed for the seconds that its file's name states, or if its process ran on this
machine and has ended. A heartbeat that is dated in the future counts from when it is first seen. "Now" is the time of a
file that was touched just now, as the file system gives it. A local clock is never used, so the clocks of the hosts
need not agree.

A holder that is late keeps its lease if nobody took over. A holder that was frozen (by SIGSTOP, or on a laptop that
slept) may wake up after a takeover. `Lease.require` raises an error then, and no file that the old holder still has
open is in the new holder's way (see store.py).
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
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from stagedkd.errors import StoreError

SECONDS = 60.0
AHEAD_SECONDS = 5.0  # a heartbeat that is further in the future was written by a wrong clock
READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)
NOT_EMPTY = (errno.ENOTEMPTY, errno.EEXIST)  # errors of a rename onto a folder that exists and is not empty


@dataclass(frozen=True)
class Owner:
    """The process that holds a lease. It counts as dead after `seconds` without a heartbeat. `machine` tells boots and
    containers apart. `start` tells the process from a later one with the same `pid`; 0 means unknown."""

    seconds: float
    host: str
    machine: str
    pid: int
    start: int
    token: str

    @classmethod
    def new(cls, seconds: float) -> Owner:
        """This process, with a new random token."""
        host = re.sub(r"[^A-Za-z0-9.-]", "-", socket.gethostname())[:64]
        start = _process_start(os.getpid()) or 0
        return cls(seconds, host, _machine_id(), os.getpid(), start, secrets.token_hex(8))

    @classmethod
    def of(cls, name: str) -> Owner:
        """The owner that a file's name states. If the name cannot be read: an unknown owner, which is alive as long as
        its heartbeat is."""
        try:
            seconds, host, machine, pid, start, token = name.split("_")
            return cls(float(seconds), host, machine, int(pid), int(start), token)
        except ValueError:
            return cls(SECONDS, "unknown", "", 0, 0, name)

    @property
    def name(self) -> str:
        """The name of the owner's file."""
        return f"{self.seconds:g}_{self.host}_{self.machine}_{self.pid}_{self.start}_{self.token}"

    @property
    def gone(self) -> bool:
        """Whether the process ran on this machine and has ended. False if it ran elsewhere."""
        if self.machine != _machine_id():
            return False
        start = _process_start(self.pid)
        return start is None or (0 not in (start, self.start) and start != self.start)

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


@cache
def _machine_id() -> str:
    """12 hex digits for this boot of this machine and its namespace of process numbers: containers may share a host
    name."""
    parts = [socket.gethostname()]
    try:
        parts += [Path("/proc/sys/kernel/random/boot_id").read_text(), str(Path("/proc/self/ns/pid").readlink())]
    except OSError:
        parts.append(str(uuid.getnode()))
    return hashlib.sha256("|".join(parts).encode()).hexdigest()[:12]


def _process_start(pid: int) -> int | None:
    """The time when a process of this machine was started, in ticks since the boot. 0: unknown; None: it has ended."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass  # another user's process, which is alive
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return 0
    return None if fields[0] in (b"Z", b"X") else int(fields[19])


class Lease:
    """A lease that this process holds. A thread renews it four times within `seconds`. It ends with `end`, or with the
    process."""

    def __init__(self, folder: Path, owner: Owner) -> None:
        self.owner, self._path = owner, folder / owner.name
        self._lost, self._renewed = False, time.monotonic()
        self._ended = threading.Event()
        self.renew()
        self._thread = threading.Thread(target=self._keep_renewing, name="lease", daemon=True)
        self._thread.start()

    @property
    def lost(self) -> bool:
        """Whether the last heartbeat found that another process has taken over."""
        return self._lost

    def renew(self) -> bool:
        """Set the heartbeat. Returns False if the lease is lost. A late holder keeps the lease if nobody took over."""
        try:
            os.utime(self._path)
            self._renewed = time.monotonic()
        except FileNotFoundError:
            self._lost = True
        except OSError:  # no file system: if another process takes over meanwhile, a later renewal finds it
            pass
        return not self._lost

    def require(self) -> None:
        """Renew the lease.

        Raises:
            StoreError: the lease is lost, or may be lost by now since it could not be renewed in time.
        """
        if self.renew():
            late = time.monotonic() - self._renewed
            if late <= self.owner.seconds:
                return
            hint = "check its file system, then run the same command: it resumes from the last checkpoint"
            message = f"the store cannot be reached: no heartbeat was written for {late:.1f} s; nothing was published"
            raise StoreError(message, hint=hint)
        hint = "run the same command: it uses what the other run makes, or resumes; nothing was published here"
        other = holder(self._path.parent)
        if other is None:
            message = f"another run took this stage over and has left it, or somebody removed {self._path.parent}"
            raise StoreError(message, hint=hint)
        message = f"another run took this stage over ({other}): this run gave no sign of life"
        raise StoreError(f"{message} for more than {self.owner.seconds:g} s", hint=hint)

    def end(self) -> None:
        """Leave: remove the file and the folder, so that the next process can enter."""
        self._ended.set()
        self._thread.join(timeout=1)
        with suppress(OSError):
            self._path.unlink(missing_ok=True)
            self._path.parent.rmdir()

    def _keep_renewing(self) -> None:
        while not self._ended.wait(self.owner.seconds / 4) and self.renew():
            pass


def acquire(
    folder: Path,
    seconds: float,
    waiting: Callable[[], None] = lambda: None,
    check: Callable[[], None] = lambda: None,
    note: Callable[[str], None] = lambda text: None,
) -> Lease:
    """Wait until the lease is free or its holder is dead, then hold it.

    Args:
        folder: the lease's folder, `.leases/<kind>-<key>`.
        seconds: time without a heartbeat after which the new holder counts as dead.
        waiting: called once if another process holds the lease.
        check: called again and again during the wait; an error that it raises ends the wait.
        note: called once if the holder's heartbeat is dated in the future.
    """
    announced, pause = False, 0.02
    with _Claim(folder, seconds, note) as claim:
        while True:
            lease = claim.attempt()
            if lease is not None:
                return lease
            if not announced:
                waiting()
            announced = True
            check()
            time.sleep(pause)
            pause = min(1.5 * pause, 1.0, max(0.02, seconds / 4))


def try_acquire(folder: Path, seconds: float = SECONDS) -> Lease | None:
    """Hold the lease in `folder` without waiting. Returns None if a living process holds it."""
    with _Claim(folder, seconds) as claim:
        return claim.attempt()


def holder(folder: Path) -> Owner | None:
    """The holder of the lease in `folder`, dead or alive; None if the lease is free."""
    try:  # network file systems use names that begin with a dot for files that were removed while open
        names = sorted(path.name for path in folder.iterdir())
        return next((Owner.of(name) for name in names if not name.startswith(".")), None)
    except FileNotFoundError:
        return None


def active(root: Path) -> Iterator[tuple[str, Owner]]:
    """Every lease below `root` whose holder is alive: the name of its folder, and the holder. Where nothing can be
    written, there is no "now": then every holder counts as alive whose process is not known to have ended."""
    if not root.is_dir():
        return
    claim = _Claim(root / "none", SECONDS)
    with ExitStack() as stack:
        try:
            stack.enter_context(claim)
            finds_dead = claim.finds_dead
        except OSError as error:
            if error.errno not in READ_ONLY:
                raise

            def finds_dead(folder: Path, owner: Owner) -> bool:
                return owner.gone

        for folder in sorted(root.iterdir()):
            owner = holder(folder) if not folder.name.startswith(".") else None
            if owner is not None and not finds_dead(folder, owner):
                yield folder.name, owner


class _Claim:
    """A process that wants the lease in `folder`. `candidate` is the folder `.new-<token>/` beside it, with this
    process's file, which `_enter` renames to `folder`. `ahead` is the last heartbeat that was dated in the future, and
    the time when it was first seen."""

    def __init__(self, folder: Path, seconds: float, note: Callable[[str], None] = lambda text: None) -> None:
        self.folder, self.seconds, self.note = folder, seconds, note
        self.ahead = (0.0, 0.0)

    def __enter__(self) -> _Claim:
        self.owner = Owner.new(self.seconds)
        self.candidate = self.folder.with_name(f".new-{self.owner.token}")
        self.candidate.mkdir(parents=True)
        (self.candidate / self.owner.name).touch()
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.candidate, ignore_errors=True)

    def attempt(self) -> Lease | None:
        """Enter, or take over from a dead holder. Returns None if the holder is alive."""
        if not self._enter():
            owner = holder(self.folder)
            if owner is None or not self.finds_dead(self.folder, owner) or not self._take_over(owner):
                return None
        lease = Lease(self.folder, self.owner)
        if not lease.lost:
            return lease
        lease.end()  # this process was frozen right after it got the lease, and another took over
        self.__exit__()
        self.__enter__()
        return None

    def _enter(self) -> bool:
        """Rename the candidate to the lease's folder. Returns False if the lease is held."""
        os.utime(self.candidate / self.owner.name)
        try:
            self.candidate.rename(self.folder)
        except OSError as error:
            if error.errno in NOT_EMPTY:
                return False
            raise
        return True

    def _take_over(self, owner: Owner) -> bool:
        """Rename the dead holder's file to this process's name. Returns False if another process was faster. The time
        is set before the rename, so that the new holder looks alive at once."""
        try:
            os.utime(self.folder / owner.name)
            (self.folder / owner.name).rename(self.folder / self.owner.name)
        except FileNotFoundError:
            return False
        return True

    def finds_dead(self, folder: Path, owner: Owner) -> bool:
        """Whether the holder of the lease in `folder` is dead. "Now" is the time that the file system gives this
        process's own file when it is touched."""
        if owner.gone:
            return True
        os.utime(self.candidate / self.owner.name)
        now = (self.candidate / self.owner.name).stat().st_mtime
        try:
            heartbeat = (folder / owner.name).stat().st_mtime
        except FileNotFoundError:
            return False
        if heartbeat - now <= AHEAD_SECONDS:
            return now - heartbeat > owner.seconds
        if self.ahead[0] != heartbeat:
            self.note(
                f"the lease of {owner} is dated {heartbeat - now:.0f} s in the future, so a clock was wrong: "
                f"it is taken over if it is not renewed for {owner.seconds:g} s ({folder})"
            )
            self.ahead = (heartbeat, now)
        return now - self.ahead[1] > owner.seconds


def clear(root: Path, prefix: str = "", *, ended: bool = False) -> None:
    """Remove the leases of dead holders below `root` whose names begin with `prefix`, and the `.new-<token>` folders of
    processes that died waiting. `ended`: only where the process is known to have ended, since a frozen one may wake."""
    if not root.is_dir():
        return
    with _Claim(root / "none", SECONDS) as claim:
        for folder in sorted(root.iterdir()):
            owner = holder(folder)
            if owner is None or folder == claim.candidate or not folder.name.startswith((".new-", prefix)):
                continue
            if not (owner.gone if ended else claim.finds_dead(folder, owner)):
                continue
            if folder.name.startswith(".new-"):
                shutil.rmtree(folder, ignore_errors=True)
            elif (lease := try_acquire(folder)) is not None:
                lease.end()

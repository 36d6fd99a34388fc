"""Leases of the store: one holder at a time, whoever dies, freezes or comes back."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from stagedkd.errors import StoreError
from stagedkd.store.leases import Owner, _Claim, acquire, active, holder, try_acquire

HOLD = """
import sys, time
from pathlib import Path
from stagedkd.store.leases import acquire
place, seconds, log = Path(sys.argv[1]), float(sys.argv[2]), Path(sys.argv[3])
lease = acquire(place, seconds)
log.write_text("held")
{then}
"""
FOREVER = "time.sleep(600)"


def process(code: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], text=True, stderr=subprocess.PIPE)


def until(what: object, seconds: float = 20) -> None:
    assert callable(what)
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.01)


def holding(place: Path, seconds: float, then: str = FOREVER) -> subprocess.Popen[str]:
    """A process that holds the lease of `place` by now."""
    log = place.parent / f"log{time.monotonic_ns()}"
    made = process(HOLD.format(then=then), place, seconds, log)
    until(log.exists)
    log.unlink()
    return made


def test_one_holds_and_the_other_waits(tmp_path: Path) -> None:
    place, said, done = tmp_path / "leases" / "key", [0], threading.Event()
    first = acquire(place, 1)
    assert try_acquire(place) is None and holder(place) == first.owner and not first.lost

    def second() -> None:
        lease = acquire(place, 1, lambda: said.append(1))
        done.set()
        lease.end()

    thread = threading.Thread(target=second)
    thread.start()
    assert not done.wait(1.6)  # longer than the lease: it is renewed
    first.end()
    assert done.wait(5) and said == [0, 1]
    thread.join()
    assert list(place.parent.iterdir()) == []  # nothing is left behind


def test_a_wait_ends_by_what_the_check_raises(tmp_path: Path) -> None:
    lease = acquire(tmp_path / "key", 60)

    def check() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        acquire(tmp_path / "key", 60, check=check)
    lease.end()
    assert list(tmp_path.iterdir()) == []


def test_a_killed_holder_of_this_machine_is_followed_at_once(tmp_path: Path) -> None:
    dead = holding(tmp_path / "key", 600)
    dead.kill()  # and not waited for: a zombie is dead, too
    until(lambda: (lease := try_acquire(tmp_path / "key")) is not None and lease.end() is None, 5)
    dead.communicate()
    assert holder(tmp_path / "key") is None


def rename_holder(place: Path, **changes: object) -> Owner:
    """The lease of `place` as another would have it."""
    old = next(place.iterdir())
    owner = Owner(**{**Owner.of(old.name).__dict__, **changes})
    old.rename(place / owner.name)
    return owner


def test_a_reused_process_number_is_no_holder(tmp_path: Path) -> None:
    acquire(tmp_path / "key", 600)
    rename_holder(tmp_path / "key", token="a")
    assert try_acquire(tmp_path / "key") is None  # this process lives
    rename_holder(tmp_path / "key", start=Owner.new(1).start - 1)
    lease = try_acquire(tmp_path / "key")
    assert lease is not None
    lease.end()


def test_another_host_is_judged_by_its_heartbeat_and_the_file_systems_clock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    acquire(tmp_path / "key", 600)
    gone = process("")
    gone.communicate()
    rename_holder(tmp_path / "key", machine="elsewhere", host="elsewhere", pid=gone.pid)
    monkeypatch.setattr(time, "time", lambda: 4e9)  # a local clock that is far ahead says nothing
    assert try_acquire(tmp_path / "key") is None
    assert [(name, owner.host) for name, owner in active(tmp_path)] == [("key", "elsewhere")]
    (file,) = (tmp_path / "key").iterdir()
    os.utime(file, (file.stat().st_mtime - 599,) * 2)
    assert try_acquire(tmp_path / "key", 1) is None  # the holder's seconds count, not ours
    os.utime(file, (file.stat().st_mtime - 2,) * 2)
    assert not list(active(tmp_path))
    lease = try_acquire(tmp_path / "key")
    assert lease is not None
    lease.end()


def test_a_frozen_holder_finds_out_that_it_lost(tmp_path: Path) -> None:
    then = "import os, signal; os.kill(os.getpid(), signal.SIGSTOP); lease.require()"
    frozen = holding(tmp_path / "key", 1, then)
    mine = acquire(tmp_path / "key", 1)  # waits for its lease to run out
    frozen.send_signal(signal.SIGCONT)
    _, errors = frozen.communicate(timeout=60)
    assert "StoreError: another run took this stage over (process" in errors and str(os.getpid()) in errors
    mine.require()
    mine.end()


def test_a_late_holder_goes_on_where_nobody_took_over(tmp_path: Path) -> None:
    frozen = holding(
        tmp_path / "key", 0.2, "import os, signal; os.kill(os.getpid(), signal.SIGSTOP); lease.require(); lease.end()"
    )
    time.sleep(0.8)
    frozen.send_signal(signal.SIGCONT)
    assert frozen.communicate(timeout=60)[1] == "" and holder(tmp_path / "key") is None


def test_the_heartbeat_keeps_no_process_alive_and_breaks_no_signal(tmp_path: Path) -> None:
    ended = holding(tmp_path / "key", 60, "raise SystemExit(3)")
    assert ended.communicate(timeout=60)[1] == "" and ended.returncode == 3
    # whoever is started in the background of a shell may have SIGINT ignored, and so its children
    code = "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)"
    code += (
        "\ntry:\n    time.sleep(600)\nexcept KeyboardInterrupt:\n    lease.end()\n    print('left', file=sys.stderr)"
    )
    stopped = holding(tmp_path / "key", 60, code)
    time.sleep(0.5)  # it holds the lease, and is about to sleep
    stopped.send_signal(signal.SIGINT)
    assert stopped.communicate(timeout=60)[1].strip() == "left"
    assert holder(tmp_path / "key") is None


def test_a_file_system_that_is_away_stops_the_holder_until_it_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease, utime = acquire(tmp_path / "key", 0.4), os.utime

    def away(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "utime", away)
    lease.require()
    time.sleep(0.6)
    with pytest.raises(StoreError, match="cannot be reached"):
        lease.require()
    monkeypatch.setattr(os, "utime", utime)
    lease.require()  # nobody took over
    (tmp_path / "key" / lease.owner.name).rename(tmp_path / "key" / Owner.new(60).name)
    for _ in range(2):
        with pytest.raises(StoreError, match="took this stage over"):
            lease.require()  # what is lost stays lost
    lease.end()


RACE = """
import os, sys, time
from pathlib import Path
from stagedkd.store.leases import acquire, try_acquire
place, log, rounds = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
for i in range(rounds):
    at = place / str(i) / "key"
    while not at.parent.joinpath("go").exists():
        time.sleep(0.0005)
    lease = try_acquire(at)
    with (log / f"{i}").open("a") as stream:
        stream.write("1" if lease else "0")
    while (log / str(i)).stat().st_size < 8:
        time.sleep(0.0005)
    if lease:
        lease.require()
        assert not lease.lost
"""


def test_of_eight_that_take_over_one_dead_lease_one_wins(tmp_path: Path) -> None:
    rounds, log = 40, tmp_path / "log"
    log.mkdir()
    dead = process("")
    dead.communicate()
    names = [Owner(600, "x", machine, dead.pid, 1, "dead").name for machine in (Owner.new(1).machine, "elsewhere")]
    for i in range(rounds):
        (tmp_path / str(i) / "key").mkdir(parents=True)
        if i % 4:  # and every fourth time there is none: they enter
            file = tmp_path / str(i) / "key" / names[i % 2]  # dead since its process is gone, or by its heartbeat
            file.touch()
            os.utime(file, (file.stat().st_mtime - 601 * (i % 2),) * 2)
    racers = [process(RACE, tmp_path, log, rounds) for _ in range(8)]
    for i in range(rounds):
        (tmp_path / str(i) / "go").touch()
        until(lambda i=i: (log / str(i)).exists() and (log / str(i)).stat().st_size == 8)
    assert [racer.communicate(timeout=60)[1] for racer in racers] == [""] * 8
    assert {(log / str(i)).read_text().count("1") for i in range(rounds)} == {1}


def test_who_has_just_taken_over_looks_alive(tmp_path: Path) -> None:
    """Before his first heartbeat, too: the dead holder's old time does not pass to him."""
    acquire(tmp_path / "key", 600)
    dead = rename_holder(tmp_path / "key", machine="elsewhere", seconds=1.0)
    os.utime(tmp_path / "key" / dead.name, (1, 1))
    with _Claim(tmp_path / "key", 1) as first, _Claim(tmp_path / "key", 1) as second:
        assert second.finds_dead(second.folder, dead) and first._take_over(dead)
        assert not second.finds_dead(second.folder, first.owner) and not second._take_over(dead)

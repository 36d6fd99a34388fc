"""Faults of the outside world: each has one sentence that names the file, and a hint that fits."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from stagedkd import cli, compile_plan, load_spec
from stagedkd._version import __version__
from stagedkd.errors import HostError, LockError, Origin, StoreError, UsageError, about, host_error, printable
from stagedkd.experiment.survey import _file_names  # pyright: ignore[reportPrivateUsage]
from stagedkd.files import locked, usual_rights, write_whole
from stagedkd.plan.lock import read_lock
from stagedkd.spec.yaml import read_yaml, scalar
from stagedkd.stages.context import catching_signals
from stagedkd.store import leases, maintenance
from stagedkd.store.records import record, records
from stagedkd.store.store import Store
from tests.conftest import Command

ROOT = os.getuid() == 0


@pytest.mark.parametrize(
    ("number", "hint"),
    [
        (errno.ENOSPC, "free some space"),
        (errno.EDQUOT, "quota"),
        (errno.EACCES, "get the right to it"),
        (errno.EROFS, "mount its file system for writing"),
        (errno.ENOTDIR, "where a folder must be"),
        (errno.ENAMETOOLONG, "a shorter name"),
        (errno.EMFILE, "ulimit -n"),
        (errno.ENOLCK, "file locks"),
        (errno.EXDEV, "correct this"),
    ],
)
def test_every_error_of_the_system_has_a_sentence(number: int, hint: str) -> None:
    error = host_error(OSError(number, os.strerror(number), "a/file"))
    assert error is not None and error.message == f"a/file: {os.strerror(number)}" and hint in error.hint
    assert "free some space" not in error.hint or number in (errno.ENOSPC, errno.EDQUOT)


def test_what_is_no_fault_of_the_machine_stays_what_it_is() -> None:
    assert host_error(KeyError("x")) is None and host_error(BrokenPipeError(errno.EPIPE, "")) is None
    assert host_error(ModuleNotFoundError("x")) is None and host_error(RuntimeError("x")) is None
    for error in (
        MemoryError(),
        RuntimeError("can't start new thread"),
        RuntimeError("Symlink loop from 'a'"),
        ImportError("liba.so: failed to map segment"),
        ValueError("I/O error: No space left on device (os error 28)"),
    ):
        assert isinstance(host_error(error), HostError)
    with pytest.raises(HostError) as caught, about(Origin("specs/a.yaml")):
        Path("/proc/none/x").touch()
    assert caught.value.origin.file == "specs/a.yaml" and isinstance(caught.value.__cause__, FileNotFoundError)


def test_a_full_disk_is_told_with_the_file_that_was_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "metrics.json"
    write_whole(target, "old")

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match=r"metrics\.json") as caught:
        write_whole(target, "new")
    assert caught.value.errno == errno.ENOSPC and " -> " not in str(caught.value)
    assert target.read_text("utf-8") == "old" and list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, there: bool
) -> None:
    """Also where a lock file is there already: nobody waits for it."""

    def no_flock(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    if there:
        (tmp_path / "guard").touch()
    monkeypatch.setattr(fcntl, "flock", no_flock)
    with (
        pytest.raises(HostError, match=f"guard: {os.strerror(number)}") as caught,
        about(Origin()),
        locked(tmp_path / "guard"),
    ):
        pass
    assert "file locks" in caught.value.hint


def test_a_lock_keeps_others_out(tmp_path: Path) -> None:
    order: list[str] = []

    def other() -> None:
        with locked(tmp_path / "new/guard"):
            order.append("other")

    thread = threading.Thread(target=other)
    with locked(tmp_path / "new/guard"):
        thread.start()
        time.sleep(0.1)
        order.append("first")
    thread.join()
    assert order == ["first", "other"]


def test_files_have_the_rights_of_the_umask(tmp_path: Path) -> None:
    import numpy as np
    from safetensors.numpy import save_file

    before = os.umask(0o002)
    try:
        with usual_rights(tmp_path / "a.safetensors"):
            save_file({"x": np.zeros(3)}, tmp_path / "a.safetensors")
        write_whole(tmp_path / "b.json", "{}")
        with locked(tmp_path / "guard"):
            pass
    finally:
        os.umask(before)
    assert {oct(path.stat().st_mode & 0o777) for path in tmp_path.iterdir()} == {"0o664"}


def test_pipes_devices_and_loops_are_no_specs(project: Path, stagedkd: Command) -> None:
    os.mkfifo(project / "specs/pipe.yaml")
    (project / "specs/loop.yaml").symlink_to("loop.yaml")
    for name, words in (("specs/pipe.yaml", "a pipe or a device"), ("/dev/zero", "a pipe"), ("specs", "is a folder")):
        with pytest.raises(UsageError, match=words):
            read_yaml(Path(name))
    with pytest.raises(UsageError, match="File name too long"):
        read_yaml(Path("x" * 300))
    found = stagedkd("check", "specs/loop.yaml")
    assert found.returncode == 1 and "in a circle" in found.stderr
    os.mkfifo(project / "stagedkd.lock")
    with pytest.raises(LockError, match="is not a file"):
        read_lock(project / "stagedkd.lock")


@pytest.mark.parametrize("text", ["1" + "0" * 300, "9" * 5000, "0x" + "f" * 6000, "0o" + "7" * 6000])
def test_huge_numbers_are_words(text: str) -> None:
    assert scalar(text) == text and scalar("1000000") == 1_000_000


def test_names_give_no_orders_to_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    from rich.table import Table

    from stagedkd.cli.common import console, print_lines

    name = "a\x1b[31mb\x9b2J\x07"
    table = Table("class")
    table.add_row(name)
    print_lines([name, "tab\there"])
    console().print(table)
    shown = capsys.readouterr().out
    assert "\x1b" not in shown and "\x9b" not in shown and "\x07" not in shown
    assert shown.count("a\\x1b[31") == 2 and "tab\there" in shown and printable("é\n") == "é\n"


def test_animations_have_one_file_each() -> None:
    labels = ["a b", "a_b", "Run", "run", "x/y", "x\x1by", "L" * 250, "L" * 251]
    names = _file_names(labels)
    assert len({name.casefold() for name in names.values()}) == len(labels)
    assert names["a_b"] == "a_b.webp" and all(name.isprintable() and len(name) < 60 for name in names.values())


def test_a_fault_that_nobody_foresaw_is_reported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def wrong(**_: object) -> None:
        load_spec(None)  # type: ignore[arg-type]

    monkeypatch.setattr(cli, "app", wrong)
    with pytest.raises(SystemExit) as caught:
        cli.main()
    shown = capsys.readouterr().err
    assert caught.value.code == 70 and "Traceback" not in shown
    assert "internal error: " in shown and "at stagedkd/spec/" in shown and __version__ in shown


INTERRUPTED = """
import os, signal, sys
class Finder:
    def find_spec(self, name, *_):
        if name == "stagedkd.cli":
            os.kill(os.getpid(), signal.SIGINT)
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.meta_path.insert(0, Finder())
from stagedkd.__main__ import main
main()
"""


def test_ctrl_c_before_the_command_line_is_loaded_ends_it_without_a_traceback() -> None:
    done = subprocess.run([sys.executable, "-c", INTERRUPTED], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (-signal.SIGINT, "")


def test_output_that_cannot_be_written_is_one_sentence(project: Path) -> None:
    command = [sys.executable, "-P", "-m", "stagedkd", "check", "specs/tiny.yaml"]
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        found = subprocess.run(command, cwd=project, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert found.returncode == 1 and found.stderr.startswith("error: the system says: No space left on device")
    assert "Traceback" not in found.stderr and "Exception" not in found.stderr


@pytest.mark.parametrize("ignored", [False, True])
def test_a_terminal_that_goes_stops_a_run(ignored: bool) -> None:
    """Twice, as the shell and the system do it; and not at all under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)
    try:
        with catching_signals() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.number == (None if ignored else signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_lease_of_the_future_is_noted_and_taken_over(tmp_path: Path) -> None:
    place = tmp_path / ".leases/teach-1"
    place.mkdir(parents=True)
    owner = leases.Owner(0.3, "elsewhere", "0123", 1, 1, "another")
    (place / owner.name).touch()
    os.utime(place / owner.name, (time.time() + 7200, time.time() + 7200))
    notes: list[str] = []
    lease = leases.acquire(place, 0.3, note=notes.append)
    lease.end()
    assert len(notes) == 1 and "process 1 on elsewhere is dated 7" in notes[0] and "in the future" in notes[0]


def test_a_store_that_cannot_be_written_still_shows_its_leases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lease = leases.try_acquire(tmp_path / ".leases/teach-1")
    assert lease is not None

    def read_only(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "mkdir", read_only)
    assert [name for name, _ in leases.active(tmp_path / ".leases")] == ["teach-1"]
    monkeypatch.undo()
    lease.end()


# ---------------------------------------------------------------- gc


def refused(command: Command, *words: str) -> str:
    """What gc says when it refuses; nothing may be deleted then."""
    found = command("store", "gc", "--yes", "--runs", "0", *words)
    assert found.returncode in (1, 2) and "Traceback" not in found.stderr and not found.stdout, found
    return found.stderr


@pytest.mark.slow
def test_gc_refuses_where_it_does_not_know_what_is_needed(project: Path, stagedkd: Command) -> None:
    folder = project / "store/teach-0123456789ab"
    folder.mkdir(parents=True)
    unlocked = (project / "specs/tiny.yaml").read_text("utf-8")
    unlocked = unlocked.replace("kind: shapes, classes: 4, train: 48, val: 16, test: 16", "kind: folder, path: set")
    (project / "specs/videos.yaml").write_text(unlocked, "utf-8")
    for words in ("stagedkd.lock is missing", "stagedkd.lock lacks its data or weights"):
        said = refused(stagedkd)
        assert "specs/videos.yaml: " in said and words in said and "stagedkd lock specs/videos.yaml" in said
        (project / "stagedkd.lock").write_text("{}", "utf-8")
    (project / "stagedkd.lock").write_text("{", "utf-8")
    assert "is not a lock file" in refused(stagedkd)
    (project / "stagedkd.lock").unlink()
    (project / "specs/videos.yaml").unlink()
    (project / "dvc.lock").mkdir()
    assert "dvc.lock: Is a directory" in refused(stagedkd)
    (project / "dvc.lock").rmdir()
    mark = record(project / "store", "tiny", ["0" * 64])
    (project / f"store/.runs/{mark}.json").write_text("{", "utf-8")
    assert f"{mark}.json" in refused(stagedkd) and records(project / "store") == []
    (project / "specs").rename(project / "away")
    assert "there is no spec below" in refused(stagedkd) and folder.is_dir()


@pytest.mark.slow
def test_a_run_is_protected_until_its_report_is_written(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from stagedkd.cli import run as run_command

    seen: list[int] = []

    def look(*_: object, **__: object) -> bool:
        seen.append(len(Store(project / "store").active()[0]))
        return True

    monkeypatch.setattr(run_command, "print_results", look)
    monkeypatch.setattr(run_command, "rehearse", None)
    plan = compile_plan(load_spec("specs/tiny.yaml"))
    from tests.test_store import publish

    publish(Store(project / "store"), plan, *plan.stages)
    run_command.run(Path("specs/tiny.yaml"), no_dvc=True)
    assert seen == [1] and not Store(project / "store").active()[0]


# ---------------------------------------------------------------- reproduce


def test_reproduce_refuses_tampered_manifests(project: Path) -> None:
    """Also where the keys fit, as the keys of somebody who has changed them on purpose do."""
    from stagedkd.plan.key import Key, stage_key
    from stagedkd.store.manifest import Upstream, manifest_of

    plan = compile_plan(load_spec("specs/tiny.yaml"))
    student = plan.stage("student")
    manifest = manifest_of(plan, student)
    assert maintenance.closure_problems(manifest) == []
    assert "the kind is '../x'" in maintenance.closure_problems(manifest.model_copy(update={"kind": "../x"}))[0]

    def changed(needs: dict[str, Key]) -> list[str]:
        key = stage_key(student.work, needs)
        closure = {**manifest.closure, key: Upstream(work=student.work, needs=needs)}
        return maintenance.closure_problems(manifest.model_copy(update={"key": key, "closure": closure}))

    needs = dict(manifest.needs)
    assert changed(needs) == []
    assert "its input 'teacher' is prepare" in changed({**needs, "teacher": needs["data"]})[0]
    assert "its input 'data' is missing" in changed({k: v for k, v in needs.items() if k != "data"})[0]
    assert "its input 'more' is prepare" in changed({**needs, "more": needs["data"]})[0]


def test_reproduce_reads_no_model_outside_the_project(project: Path) -> None:
    from stagedkd.spec.own_files import OwnFiles
    from stagedkd.spec.schema.networks.hf import put_model_digest

    outside = project.parent / "model"
    outside.mkdir(exist_ok=True)
    (outside / "config.json").write_text("{}", "utf-8")
    values: dict[str, Any] = {"model": "../model", "pretrained": False}
    assert "outside the project" in put_model_digest(values, project, OwnFiles(project).digest)[0]


def test_a_rebuild_goes_on_in_its_folder(project: Path) -> None:
    from stagedkd.experiment.reproduce import _begin  # pyright: ignore[reportPrivateUsage]
    from stagedkd.store.manifest import manifest_of

    plan = compile_plan(load_spec("specs/tiny.yaml"))
    student, teacher = (manifest_of(plan, plan.stage(name)) for name in ("student", "teacher"))
    _begin(project / "again", [student])
    (project / "again/.work").mkdir()
    _begin(project / "again", [student])
    with pytest.raises(UsageError, match="the rebuild of another result"):
        _begin(project / "again", [teacher])
    with pytest.raises(UsageError, match="already exists"):
        _begin(project / "specs", [student])


# ---------------------------------------------------------------- rights


@pytest.mark.skipif(not ROOT, reason="changes the user, so it needs root")
def test_a_second_user_gets_a_sentence_about_rights() -> None:
    """In a child process, which becomes another user of the same group. Pytest's own folders are closed to others."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        _share(Store(Path(folder) / "store"))


def _share(store: Store) -> None:
    record(store.root, "tiny", ["0" * 64])

    def as_other(check: Callable[[], None]) -> int:
        pid = os.fork()
        if pid == 0:
            code = 1
            with suppress(BaseException):
                os.setgid(3000)
                os.setuid(1002)
                check()
                code = 0
            os._exit(code)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    def refuses() -> None:
        try:
            with store.at_work("other", ["1" * 64]):
                pass
        except StoreError as error:
            assert "Permission denied" in error.message and "get the right to it" in error.hint
            assert "free some space" not in error.hint
            return
        raise AssertionError

    def works() -> None:
        with store.at_work("other", ["1" * 64]):
            pass

    assert as_other(refuses) == 0
    for path in (store.root, store.root / ".runs"):
        os.chown(path, -1, 3000)
        path.chmod(0o2775)
    assert as_other(works) == 0


def test_ctrl_c_that_a_library_wraps_is_no_fault_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """A library in another language may make an error of its own of a KeyboardInterrupt in a callback."""
    from stagedkd import cli

    for text, code in (("Error building a validator:\n  KeyboardInterrupt", 130), ("Error building a validator", 70)):

        def fail(text: str = text, **_: object) -> None:
            raise RuntimeError(text)

        monkeypatch.setattr(cli, "app", fail)
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        assert stopped.value.code == code

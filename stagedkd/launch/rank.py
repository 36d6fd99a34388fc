"""The processes of ranks: torchrun, which the launcher starts, and the ranks, which torchrun starts.

    python -m stagedkd.launch.rank torchrun FOLDER COUNT    the launcher's child
    python -m stagedkd.launch.rank rank FOLDER              torchrun's children

FOLDER and its files are described in torchrun.py.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# The type stubs of torch, safetensors and Parsl are incomplete.
from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stagedkd.files import write_whole
from stagedkd.launch.protocol import MEETING, ProgressWriter, WorkRequest, error_as_json, stop_by_file
from stagedkd.launch.torchrun import POLL_SECONDS
from stagedkd.plan.cpus import limit_spinning
from stagedkd.stages.context import Listener, Result, Silent, Stop, stop_signals

if TYPE_CHECKING:
    import torch

PR_SET_PDEATHSIG = 1
STOP_SECONDS = 5.0  # from a signal to all processes until torchrun has announced the stop, on a busy machine
PATIENCE = timedelta(hours=12)  # a rank waits while the first one decodes videos; the launcher watches for lost ones


def main() -> None:
    """Run torchrun or a rank, and exit with its code."""
    role, folder = sys.argv[1], Path(sys.argv[2])
    limit_spinning()
    die_with_launcher()
    handle_signals(folder, announces=role == "torchrun")
    code = run_torchrun(folder, int(sys.argv[3])) if role == "torchrun" else run_rank(folder)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # at once: torch is slow to exit, and after an error other ranks may hang in an exchange


def die_with_launcher() -> None:
    """End this process when the launcher ends, however it ends: the launcher alone holds the other end of stdin, which
    all ranks inherit. On Linux the kernel also ends it with its parent, in case Python is too late."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL))

    def wait() -> None:
        while os.read(0, 64):
            pass
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=wait, daemon=True).start()


def handle_signals(folder: Path, *, announces: bool) -> None:
    """Take the signals of `stop_signals`, which a scheduler may send to all processes at once, for a stop.

    torchrun announces the stop, as the launcher does, and the ranks continue to their checkpoint. A rank ends at once
    where no stop is announced, another rank has failed, or a second signal comes: then torchrun ends the other ranks.
    """
    receiving, sending = socket.socketpair()
    sending.setblocking(False)
    stops = stop_signals()
    for number in stops:
        signal.signal(number, _ignore)
        if sys.platform != "win32":
            signal.siginterrupt(number, False)  # reads of an exchange continue
    # The number comes by a socket: the main thread may be in an exchange, where Python runs no handler.
    signal.set_wakeup_fd(sending.detach(), warn_on_full_buffer=False)
    react = announce_stop if announces else await_stop
    threading.Thread(target=react, args=(folder, receiving, stops), daemon=True).start()


def _ignore(_number: int, _frame: Any) -> None:
    """A signal handler that does nothing: the number comes by the socket."""


def announce_stop(folder: Path, signals: socket.socket, stops: Sequence[int]) -> None:
    """Write the file `stop` when a signal comes."""
    while number := signals.recv(1)[0]:
        if number in stops and not (folder / "stop").exists():
            write_whole(folder / "stop", str(number))


def await_stop(folder: Path, signals: socket.socket, stops: Sequence[int]) -> None:
    """After a signal, end this process unless the file `stop` appears within a few seconds."""
    while (number := signals.recv(1)[0]) not in stops:
        pass
    signals.settimeout(POLL_SECONDS)
    until = time.monotonic() + STOP_SECONDS
    while ((folder / "stop").exists() or time.monotonic() < until) and not any(folder.glob("error-*.json")):
        with suppress(TimeoutError):
            if (second := signals.recv(1)[0]) in stops and second != signal.SIGHUP:
                break
    os._exit(128 + number)


def run_torchrun(folder: Path, count: int) -> int:
    """Run torchrun on this machine, and give its exit code. Write the exit codes of failed ranks to `lost.json`."""
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    command = ["--nnodes=1", f"--nproc-per-node={count}", "--rdzv-backend=c10d", "--rdzv-conf=store_type=file"]
    command += [f"--rdzv-endpoint={os.environ[MEETING]}/torchrun"]
    command += [f"--log-dir={os.environ[MEETING]}"]  # otherwise each call leaves a folder behind
    command += ["--local-addr=127.0.0.1"]  # the host's name may lead nowhere
    command += ["--signals-to-handle=SIGQUIT"]  # `handle_signals` handles the others
    try:
        run.main([*command, "-m", "stagedkd.launch.rank", "rank", str(folder)])
    except ChildFailedError as error:
        lost = {str(rank): failure.exitcode for rank, failure in error.failures.items()}
        write_whole(folder / "lost.json", json.dumps(lost))
        return 1
    return 0


def run_rank(folder: Path) -> int:
    """Do the work of the requested stage as one of the ranks, and give the exit code.

    The first rank writes `result.json`; a rank that fails writes `error-<rank>.json`.
    """
    number, count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    try:
        result = _work(folder, number, count)
        if number == 0:
            text = json.dumps({"metrics": dict(result.metrics), "run": dict(result.run)})
            write_whole(folder / "result.json", text)
        return 0
    except BaseException as error:
        values = {"rank": number, **error_as_json(error)}
        write_whole(folder / f"error-{number}.json", json.dumps(values))
        traceback.print_exc()
        return 1


def _work(folder: Path, number: int, count: int) -> Result:
    """Join the process group and do the work of the requested stage."""
    import torch
    import torch.distributed as dist

    from stagedkd.stages.networks import device_of
    from stagedkd.stages.stage import work_on

    request = WorkRequest.read(folder / "request.json")
    cuda = device_of(request.runtime.device).type == "cuda"
    if cuda:
        torch.cuda.set_device(number)
    device = torch.device("cuda", number) if cuda else None
    store = dist.FileStore(f"{os.environ[MEETING]}/ranks", count)  # pyright: ignore[reportPrivateImportUsage]
    backend = "nccl" if cuda else "gloo"
    dist.init_process_group(backend, None, PATIENCE, count, number, store, device_id=device)
    listener: Listener = ProgressWriter(folder / "progress.jsonl") if number == 0 else Silent()
    with stop_by_file(folder / "stop", Stop()) if number == 0 else nullcontext(Stop()) as stop:
        result = work_on(request.context(listener, stop, number, count))
    if request.rehearses:
        result = replace(result, run={**result.run, "memory": _largest(result.run["memory"], device)})
    dist.barrier()
    dist.destroy_process_group()
    return result


def _largest(memory: Mapping[str, int], device: torch.device | None) -> dict[str, int]:
    """The largest peak of memory among the ranks, by kind, in bytes. All ranks measure the same kinds."""
    import torch
    import torch.distributed as dist

    names = sorted(memory)
    peaks = torch.tensor([memory[name] for name in names], dtype=torch.int64, device=device)
    dist.all_reduce(peaks, dist.ReduceOp.MAX)
    return {name: int(peak) for name, peak in zip(names, peaks, strict=True)}


if __name__ == "__main__":
    main()

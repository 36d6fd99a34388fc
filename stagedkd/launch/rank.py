"""One process of several that do a stage's training: what torchrun starts, and what starts torchrun.

    python -m stagedkd.launch.rank lead FOLDER COUNT    the launcher's child: torchrun
    python -m stagedkd.launch.rank rank FOLDER          torchrun's children

FOLDER and its files are described in ranks.py.
"""

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
from contextlib import nullcontext, suppress
from datetime import timedelta
from pathlib import Path

from stagedkd.files import write_whole
from stagedkd.launch.protocol import Saying, fault_of, stopped_by
from stagedkd.launch.torchrun import POLL_SECONDS, RanksOrder
from stagedkd.stages.context import Context, Done, Listener, Silent, Stop
from stagedkd.store.manifest import manifest_of
from stagedkd.store.store import Store, Workspace

PR_SET_PDEATHSIG = 1
STOPS = (signal.SIGTERM, signal.SIGINT)
WORD_SECONDS = 5.0  # between a signal to all processes and the lead's word of it, on a busy machine
PATIENCE = timedelta(hours=12)  # a rank waits while the first one decodes videos; the launcher watches for lost ones


def main() -> None:
    """Entry of both."""
    role, folder = sys.argv[1], Path(sys.argv[2])
    tie()
    heed(folder, leads=role == "lead")
    code = lead(folder, int(sys.argv[3])) if role == "lead" else take_part(folder)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # at once: torch takes its time to leave, and after a fault others may hang in an exchange


def tie() -> None:
    """End this process when the launcher ends, however it ends: the other end of stdin, which all ranks inherit, is the
    launcher's alone. On Linux the kernel ends it with its parent, too, should Python not get to it."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL))

    def wait() -> None:
        while os.read(0, 64):
            pass
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=wait, daemon=True).start()


def heed(folder: Path, *, leads: bool) -> None:
    """Take SIGTERM and SIGINT, which a scheduler may send to all processes at once, for a stop: torchrun leaves word of
    it, as the launcher does, and ranks go on to their checkpoint. A rank ends at once where no such word comes, another
    has failed, or a second signal comes: then it is torchrun that ends the ranks that are left."""
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    for number in STOPS:
        signal.signal(number, lambda *_: None)
        if sys.platform != "win32":
            signal.siginterrupt(number, False)  # reads of an exchange go on
    # the number comes by a socket: the main thread may be in an exchange, and hears nothing
    signal.set_wakeup_fd(theirs.detach(), warn_on_full_buffer=False)
    threading.Thread(target=_leave_word if leads else _await_word, args=(folder, ours), daemon=True).start()


def _leave_word(folder: Path, signals: socket.socket) -> None:
    while number := signals.recv(1)[0]:
        if number in STOPS and not (folder / "stop").exists():
            write_whole(folder / "stop", str(number))


def _await_word(folder: Path, signals: socket.socket) -> None:
    while (number := signals.recv(1)[0]) not in STOPS:
        pass
    signals.settimeout(POLL_SECONDS)
    until = time.monotonic() + WORD_SECONDS
    while ((folder / "stop").exists() or time.monotonic() < until) and not any(folder.glob("fault-*.json")):
        with suppress(TimeoutError):
            if signals.recv(1)[0] in STOPS:
                break
    os._exit(128 + number)


def lead(folder: Path, count: int) -> int:
    """Run torchrun on this machine; `lost.json` says how ranks ended that did not end well. Gives the exit code."""
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    command = ["--standalone", f"--nproc-per-node={count}"]
    command += ["--local-addr=127.0.0.1"]  # the host's name may lead nowhere
    command += ["--signals-to-handle=SIGHUP,SIGQUIT"]  # the others are heeded
    try:
        run.main([*command, "-m", "stagedkd.launch.rank", "rank", str(folder)])
    except ChildFailedError as error:
        lost = {str(rank): failure.exitcode for rank, failure in error.failures.items()}
        write_whole(folder / "lost.json", json.dumps(lost))
        return 1
    return 0


def take_part(folder: Path) -> int:
    """Do the ordered stage's work as one of the ranks; the first one leaves `done.json`. A rank that fails says why in
    `fault-<rank>.json`. Gives the exit code."""
    number, count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    try:
        done = _work(folder, number, count)
        if number == 0:
            text = json.dumps({"metrics": dict(done.metrics), "run": dict(done.run)})
            write_whole(folder / "done.json", text)
        return 0
    except BaseException as error:
        fault = {"rank": number, **fault_of(error)}
        write_whole(folder / f"fault-{number}.json", json.dumps(fault))
        traceback.print_exc()
        return 1


def _work(folder: Path, number: int, count: int) -> Done:
    import torch
    import torch.distributed as dist

    from stagedkd.experiment.run import work_on
    from stagedkd.stages.networks import device_of

    order = RanksOrder.model_validate_json((folder / "order.json").read_bytes(), strict=False)
    cuda = device_of(order.runtime.device).type == "cuda"
    if cuda:
        torch.cuda.set_device(number)
    own = torch.device("cuda", number) if cuda else None
    dist.init_process_group("nccl" if cuda else "gloo", timeout=PATIENCE, device_id=own)
    with stopped_by(folder / "stop", Stop()) if number == 0 else nullcontext(Stop()) as stop:
        done = work_on(_context(order, folder, number, count, stop))
    dist.barrier()
    dist.destroy_process_group()
    return done


def _context(order: RanksOrder, folder: Path, number: int, count: int, stop: Stop) -> Context:
    """What the stage is handed in this rank: the launcher's, read anew from the store."""
    plan, store = order.graph, Store(order.runtime.folder("store"))
    stage = plan.stage(order.stage)
    inputs = {name: store.artifact(other) for name, other in plan.inputs(stage).items()}
    listener: Listener = Saying(folder / "says.jsonl") if number == 0 else Silent()
    workspace = Workspace(Path(order.files), Path(order.scratch))
    return Context(
        plan,
        stage,
        inputs,
        workspace,
        manifest_of(plan, stage),
        order.runtime,
        listener,
        stop,
        rank=number,
        ranks=count,
    )


if __name__ == "__main__":
    main()

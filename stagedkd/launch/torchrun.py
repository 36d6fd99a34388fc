"""The launcher of ranks: several processes that share the trainings of one stage.

The launcher holds the lease of the stage, starts torchrun, shows the first rank's progress and passes signals on;
rank.py is the other side. The launcher does not load torch.

The files are in the stage's scratch folder, below `ranks/`: `request.json`, `progress.jsonl` (of the first rank),
`stop` (the number of a signal), `result.json` or `error-<rank>.json`, `lost.json` (exit codes of failed ranks),
`log.txt`.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir

from stagedkd.errors import Interrupted, StagedkdError, TrainingError, UsageError
from stagedkd.files import write_whole
from stagedkd.launch.protocol import MEETING, ProgressReader, WorkRequest, error_from_json
from stagedkd.plan.graph import Stage
from stagedkd.plan.runtime import Runtime
from stagedkd.stages.context import Context, Result
from stagedkd.store.leases import Owner
from stagedkd.store.store import KEPT

POLL_SECONDS = 0.05
STOP_SECONDS = 60.0  # from a signal until ranks that do not answer are ended; schedulers usually allow that long
MEETINGS = "stagedkd-"  # begins the names of the folders in which ranks meet
END_SECONDS = 5.0  # from closing stdin until the processes are killed


def check_ranks(stages: Iterable[Stage], runtime: Runtime) -> None:
    """Check, before anything runs, that the stages can be trained by `gpus` processes.

    Raises:
        UsageError: a batch cannot be divided evenly, or there are fewer devices.
    """
    count = runtime.gpus
    if count == 1:
        return
    for stage in stages:
        for phase in stage.work.trainings:
            if phase.train.batch % count:
                message = f"stage {stage.name}: a batch of {phase.train.batch} cannot be divided by gpus: {count}"
                raise UsageError(message, hint=f"set train.batch to a multiple of {count}, or gpus to a divisor of it")
    import torch

    from stagedkd.stages.networks import device_of

    kind = device_of(runtime.device).type
    if kind == "mps":
        raise UsageError("mps is a single device: gpus must be 1", hint="set gpus: 1, or use --device cpu")
    if kind == "cuda" and torch.cuda.device_count() < count:
        available = torch.cuda.device_count()
        raise UsageError(f"gpus: {count}, but this machine has {available}", hint=f"set --gpus {available} or fewer")


def wants_ranks(stage: Stage, runtime: Runtime) -> bool:
    """Whether a stage has trainings that several processes share."""
    return runtime.gpus > 1 and bool(stage.work.trainings)


def work_in_ranks(context: Context) -> Result:
    """Do a stage's work in `gpus` processes under torchrun, none of which outlives this one.

    Raises:
        TrainingError: a rank was lost; all ranks have ended, and the last checkpoint stays.
        Interrupted: a signal came; the first rank has written a checkpoint, or the message names the last one.
        StagedkdError: the error that a rank raised.
    """
    folder = context.workspace.scratch / "ranks"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    runtime = context.runtime.model_copy(update={"threads": threads_of_ranks(context.runtime)})
    request = WorkRequest.of_context(context, runtime)
    (folder / "request.json").write_text(request.model_dump_json(), "utf-8")
    code = _launch(folder.resolve(), context, runtime)
    result = folder / "result.json"
    if code == 0 and result.exists():
        return Result(**json.loads(result.read_text("utf-8")))
    raise _error(context, folder, code)


def threads_of_ranks(runtime: Runtime) -> int:
    """The threads of each rank: as the runtime sets them, or the CPUs that this process may use, divided evenly."""
    return runtime.threads or max(1, runtime.used_threads // runtime.gpus)


def _free_gpu_memory() -> None:
    """Free the GPU memory that torch, if it is loaded, reserves for this process, since the first rank needs it."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def _start(folder: Path, runtime: Runtime, meeting: str) -> subprocess.Popen[bytes]:
    """Start torchrun with a pipe as its stdin, whose other end this process holds. When the pipe closes, for whatever
    reason this process ends, the ranks end (rank.die_with_launcher).

    The ranks meet over files in the folder `meeting`, and exchange data over the loopback interface. So they listen on
    no address that another machine reaches; torch's own meeting place listens on all of them.
    """
    command = [sys.executable, "-m", "stagedkd.launch.rank", "torchrun", str(folder), str(runtime.gpus)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(runtime.threads), MEETING: meeting}
    environment["PYTHONSAFEPATH"] = "1"  # otherwise -m looks for modules in the working folder first
    loopback = "lo0" if sys.platform == "darwin" else "lo"
    environment |= {"GLOO_SOCKET_IFNAME": loopback, "NCCL_SOCKET_IFNAME": loopback}
    environment["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"  # a server that torchrun would start for its ranks
    with (folder / "log.txt").open("wb") as log:
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,  # so that Ctrl-C reaches this process alone, and the ranks reach their checkpoint
        )


def _meeting() -> TemporaryDirectory[str]:
    """Make the folder in which the ranks meet, and remove those of launchers that were killed. It is local, since
    network file systems may have no locks. Its name tells its launcher."""
    for path in Path(gettempdir()).glob(f"{MEETINGS}*-*"):
        if Owner.of(path.name.removeprefix(MEETINGS).rpartition("-")[0]).gone:
            shutil.rmtree(path, ignore_errors=True)
    return TemporaryDirectory(prefix=f"{MEETINGS}{Owner.new(1).name}-")


def _launch(folder: Path, context: Context, runtime: Runtime) -> int:
    """Run torchrun to its end, or end it if it does not answer a stop; give its exit code."""
    _free_gpu_memory()
    meeting = _meeting()
    process = _start(folder, runtime, meeting.name)
    progress = ProgressReader(folder / "progress.jsonl", context.listener)
    stop_file, stopped_at = folder / "stop", None
    try:
        while process.poll() is None:
            progress.relay()
            number = context.stop.get()
            if number is not None and not stop_file.exists():
                write_whole(stop_file, str(number))
            if stopped_at is None and stop_file.exists():
                stopped_at = time.monotonic()
            if stopped_at is not None and time.monotonic() - stopped_at > STOP_SECONDS:
                break
            time.sleep(POLL_SECONDS)
        progress.relay()
    finally:
        assert process.stdin is not None
        process.stdin.close()
        try:
            process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        meeting.cleanup()
    return process.returncode


def _error(context: Context, folder: Path, code: int) -> StagedkdError:
    """The error that explains why the ranks ended. Errors of stagedkd come first, then a signal to this process, then a
    rank that was killed, then any other error: a lost rank makes the others fail in their next exchange."""
    stage, count = context.stage.name, context.runtime.gpus
    raised = [json.loads(path.read_text("utf-8")) for path in sorted(folder.glob("error-*.json"))]
    for values in raised:
        if values["ours"]:
            return error_from_json(values)
    number = context.stop.number or int(_text(folder / "stop") or 0)
    if number:
        last = _last_checkpoint(context.workspace.scratch)
        return Interrupted(number, f"stopped by signal {number}; the ranks of stage {stage} were ended; {last}")
    lost: dict[str, int] = json.loads(_text(folder / "lost.json") or "{}")
    hint = f"see their output in {folder / 'log.txt'}; the same command resumes from the last checkpoint"
    for rank, exit_code in sorted(lost.items()):
        if exit_code < 0 and exit_code != -signal.SIGTERM:  # torchrun ends the other ranks by SIGTERM
            name = signal.Signals(-exit_code).name
            return TrainingError(f"stage {stage}: rank {rank} of {count} was ended by {name}", hint=hint)
    for values in raised:
        return TrainingError(f"stage {stage}: rank {values['rank']} of {count}: {values['message']}", hint=hint)
    return TrainingError(f"stage {stage}: the {count} ranks ended with exit code {code}", hint=hint)


def _last_checkpoint(scratch: Path) -> str:
    """Describe the checkpoint from which the stage would resume, and when it was written."""
    checkpoints = [(path.stat().st_mtime, path) for path in scratch.rglob("*") if path.suffix in KEPT]
    if not checkpoints:
        return "there is no checkpoint yet"
    written, path = max(checkpoints)
    return f"the last checkpoint is {path}, written at {time.strftime('%H:%M:%S', time.localtime(written))}"


def _text(path: Path) -> str:
    return path.read_text("utf-8") if path.exists() else ""

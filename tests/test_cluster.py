"""`run --engine parsl`: its YAML, Parsl's own objects made of it, and real workers, some of which are killed."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
import types
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stagedkd.errors import SpecError, UsageError
from stagedkd.launch import worker
from stagedkd.launch.cluster import Cluster, load_cluster
from stagedkd.launch.parsl import check_cluster, config_of, provider_of
from stagedkd.plan.compile import compile_experiment
from stagedkd.plan.runtime import load_runtime
from stagedkd.spec.load import load_experiment
from stagedkd.spec.yaml import parse_yaml
from stagedkd.store.leases import Owner, holder
from tests.conftest import REPO
from tests.tools import files_of

MARK = "STAGEDKD_TEST_MARK"  # in the environment of every process of a test
DOCS = (REPO / "docs" / "cluster.md").read_text("utf-8")


def cluster_of(folder: Path, text: str) -> Cluster:
    (folder / "cluster.yaml").write_text(text, "utf-8")
    return load_cluster(load_runtime(folder, cluster=folder / "cluster.yaml"))


# The file.


def test_every_fault_of_the_file_has_its_place_and_a_hint(tmp_path: Path) -> None:
    text = (
        "provider: {kind: slurm, waltime: 1:00:00}\nper_accelerator: 0\nretries: many\nacelerators: 2\nworkers: two\n"
    )
    with pytest.raises(SpecError) as caught:
        cluster_of(tmp_path, text)
    problems = {problem.message: problem for problem in caught.value.problems}
    assert set(problems) == {
        "unknown key 'provider.waltime'",
        "'per_accelerator' must be at least 1, not 0",
        "'retries' must be a whole number, not 'many'",
        "unknown key 'acelerators'",
        "'workers' must be a whole number, not 'two'",
    }
    wrong = problems["unknown key 'provider.waltime'"]
    assert wrong.place is not None and str(wrong.place).endswith("cluster.yaml:1:25") and "walltime" in wrong.hint
    assert problems["unknown key 'acelerators'"].hint == "did you mean 'accelerators'?"
    assert problems["'per_accelerator' must be at least 1, not 0"].hint == "allowed: 1 to 1,024"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("provider: {kind: slrm}", "'provider.kind' cannot be 'slrm'"),
        ("provider: {}", "'provider' needs 'kind'"),
        ("provider: {kind: slurm}", "'provider.walltime' is missing"),
        ("provider: {kind: kubernetes, image: x}", "'provider.persistent_volumes' is missing"),
        ("provider: {kind: local, image: x}", "unknown key 'provider.image'"),
        ("accelerators: all", "'accelerators' must be a count or a list of names, not 'all'"),
        ("share: 2", "unknown key 'share'"),  # the former name of per_accelerator
        ("workers: 9\naccelerators: 2\nper_accelerator: 4", "9 workers, but 2 accelerators with per_accelerator 4"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        cluster_of(tmp_path, text)
    assert message in caught.value.problems[0].message and caught.value.problems[0].place is not None


def test_the_file_is_that_of_params_yaml_or_of_the_option(tmp_path: Path) -> None:
    assert load_cluster(load_runtime(tmp_path)) == Cluster()
    (tmp_path / "params.yaml").write_text("runtime: {cluster: conf/gpus.yaml}\n", "utf-8")
    with pytest.raises(UsageError, match=r"gpus\.yaml does not exist"):
        load_cluster(load_runtime(tmp_path))
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "gpus.yaml").write_text("workers: 3\n", "utf-8")
    assert load_cluster(load_runtime(tmp_path)).workers == 3
    assert cluster_of(tmp_path, "workers: 4").workers == 4


@pytest.mark.parametrize(
    ("text", "visible", "slots", "devices"),
    [
        ("{}", 0, 1, 0),
        ("{}", 4, 4, 4),
        ("workers: 3", 0, 3, 0),
        ("per_accelerator: 2", 4, 8, 4),
        ("{accelerators: [1, GPU-3f], per_accelerator: 3}", 8, 6, ("1", "GPU-3f")),
        ("{accelerators: 4, workers: 2}", 0, 2, 4),
        ("{accelerators: 0, workers: 2}", 8, 2, 0),
        ("provider: {kind: slurm, walltime: 1:00:00, gpus_per_node: 4}", 9, 4, 4),
        ("provider: {kind: slurm, walltime: 1:00:00}", 9, 1, 0),
    ],
)
def test_workers_of_a_node(tmp_path: Path, text: str, visible: int, slots: int, devices: Any) -> None:
    cluster = cluster_of(tmp_path, text)
    assert (cluster.slots(visible), cluster.devices(visible)) == (slots, devices)


# Parsl's own objects.


def test_parsl_is_told_what_the_file_says(tmp_path: Path) -> None:
    """No port but loopback for workers here, nothing outside the folder, no usage report, every slot a worker."""
    owner = Owner.new(60)
    config = config_of(cluster_of(tmp_path, "{accelerators: [0, 1], per_accelerator: 3}"), tmp_path / "run", owner, 0)
    (executor,) = config.executors
    assert executor.max_workers_per_node == 6 and executor.workers_per_node == 6
    assert executor.all_addresses == {"127.0.0.1"} and executor.loopback_address == "127.0.0.1"
    assert config.run_dir == str(tmp_path / "run" / "parsl") and config.usage_tracking == 0 and config.retries == 0
    assert executor.encrypted and executor.launch_cmd.startswith(sys.executable) and owner.name in executor.launch_cmd
    assert config.strategy == "simple"


def test_the_address_for_workers_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that the file says, or those of this machine's interfaces. Parsl would ask a web service for one more."""
    import parsl.executors.high_throughput.executor as htex

    monkeypatch.setattr(htex, "get_all_addresses", lambda: pytest.fail("the network was asked"))
    text = "{provider: {kind: slurm, walltime: 1:00:00}, address: 10.1.2.3}"
    (said,) = config_of(cluster_of(tmp_path, text), tmp_path, Owner.new(60), 0).executors
    assert said.all_addresses == {"10.1.2.3"} and said.address == "10.1.2.3"
    (unsaid,) = config_of(cluster_of(tmp_path, text.split(", address")[0] + "}"), tmp_path, Owner.new(60), 0).executors
    assert unsaid.address is None and "127.0.0.1" in unsaid.all_addresses
    assert all(re.fullmatch(r"[0-9.]+", address) for address in unsaid.all_addresses)


def test_slurm_is_told_what_the_file_says(tmp_path: Path) -> None:
    text = (
        "provider: {kind: slurm, partition: gpu, account: us, qos: high, constraint: a100, nodes_per_block: 2, cores_per_node: 32,"
        " mem_per_node: 64, gpus_per_node: 4, gres: 'scratch:1', init_blocks: 0, min_blocks: 0, max_blocks: 3,"
        " walltime: 04:00:00, worker_init: source env.sh, scheduler_options: '#SBATCH --mail-type=END', exclusive: true}"
    )
    made = provider_of(cluster_of(tmp_path, text).provider)
    assert type(made).__name__ == "SlurmProvider" and type(made.launcher).__name__ == "SrunLauncher"
    assert (made.walltime, made.nodes_per_block, made.init_blocks, made.max_blocks) == ("04:00:00", 2, 0, 3)
    assert (made.cores_per_node, made.mem_per_node, made.worker_init) == (32, 64, "source env.sh\n")
    options = set(made.scheduler_options.splitlines())
    assert options == {
        "#SBATCH --mail-type=END",
        "#SBATCH --exclusive",
        "#SBATCH --partition=gpu",
        "#SBATCH --account=us",
        "#SBATCH --qos=high",
        "#SBATCH --constraint=a100",
        "#SBATCH --gpus-per-node=4",
        "#SBATCH --gres=scratch:1",
    }
    alone = provider_of(cluster_of(tmp_path, "provider: {kind: slurm, walltime: 1:00:00}").provider)
    assert type(alone.launcher).__name__ == "SingleNodeLauncher" and "exclusive" not in alone.scheduler_options


def test_kubernetes_is_told_what_the_file_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = cluster_of(
        tmp_path,
        "provider: {kind: kubernetes, image: 'us/stagedkd:1', namespace: lab, max_blocks: 4, max_mem: 32Gi,"
        " persistent_volumes: {work: /work, videos: /data}, extra_limits: {nvidia.com/gpu: '1'}}\naccelerators: 1\n",
    )
    if importlib.util.find_spec("kubernetes") is None:
        with pytest.raises(UsageError, match="needs the package kubernetes"):
            check_cluster(cluster, load_runtime(tmp_path))
    import parsl.providers.kubernetes.kube as kube

    fake = types.SimpleNamespace(
        CoreV1Api=object, load_kube_config=lambda: None, config_exception=types.SimpleNamespace(ConfigException=OSError)
    )
    for name, value in (("client", fake), ("config", fake), ("_kubernetes_enabled", True)):
        monkeypatch.setattr(kube, name, value, raising=False)
    made = provider_of(cluster.provider)
    assert (made.image, made.namespace, made.max_blocks, made.init_blocks) == ("us/stagedkd:1", "lab", 4, 1)
    assert made.persistent_volumes == [("work", "/work"), ("videos", "/data")]
    assert made.extra_limits == {"nvidia.com/gpu": "1"} and (made.init_mem, made.max_mem) == ("4Gi", "32Gi")
    (executor,) = config_of(cluster, tmp_path, Owner.new(60), 0).executors
    assert executor.launch_cmd.startswith("python -m stagedkd.launch.watchdog") and executor.max_workers_per_node == 1


def test_the_files_of_the_documentation_are_valid(tmp_path: Path) -> None:
    blocks = [text for text in re.findall(r"```yaml\n(.*?)```", DOCS, re.DOTALL) if "provider" in text]
    kinds = [cluster_of(tmp_path, text).provider.kind for text in blocks]
    assert kinds == ["local", "slurm", "kubernetes"]
    assert all(parse_yaml(text, "x").map for text in blocks)


# What a worker sees.


@pytest.mark.parametrize(
    ("devices", "given", "seen"),
    [
        (("5", "7"), None, ["5", "7", "5", "7"]),
        (2, None, ["0", "1", "0", "1"]),
        (2, "3,6", ["3", "6", "3", "6"]),  # as Slurm gives them where it does not number them anew
        (0, "3,6", ["3,6"] * 4),
    ],
)
def test_workers_share_accelerators_evenly(
    monkeypatch: pytest.MonkeyPatch, devices: Any, given: str | None, seen: list[str]
) -> None:
    found: list[str] = []
    for rank in range(4):
        worker.pin.cache_clear()
        monkeypatch.setenv("PARSL_WORKER_RANK", str(rank))
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if given is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
        for _ in range(2):  # a worker does many stages
            worker.pin(devices)
        found.append(os.environ["CUDA_VISIBLE_DEVICES"])
    assert found == seen
    worker.pin.cache_clear()


def test_cores_are_shared_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)
    for workers, threads in ((1, 16), (3, 5), (32, 1)):
        monkeypatch.delenv("OMP_NUM_THREADS")
        monkeypatch.setenv("PARSL_WORKER_COUNT", str(workers))
        worker.threads_per_worker.cache_clear()
        assert worker.threads_per_worker() == threads
        monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as a worker sets it for its stages
        assert worker.threads_per_worker() == threads
    worker.threads_per_worker.cache_clear()


def test_one_training_over_several_devices_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="gpus: 2 divides one training"):
        check_cluster(Cluster(), load_runtime(tmp_path, gpus=2))


# Real workers. 12 cells: three students, four seeds, one teacher; 28 unique stages.

BASE = """\
data: {kind: shapes, classes: 4, train: 32, val: 16, test: 16}
clip: {frames: 4, size: 16}
labels: {clean: 0.5, noisy: 0.25, noise: {kind: symmetric, rate: 0.5}}
train: {batch: 16, lr: 1e-2, warmup_epochs: 0.5}
teacher: {arch: resnet3d, width: 8, blocks: [1, 1], epochs: 1}
student: {arch: resnet3d, width: 4, blocks: [1, 1], substages: [[stem, layer1], [layer2]]}
distill: {phases: {joint: {epochs: 12, losses: {ce: 0.1, kd: 0.9, sp: 10}}}}
"""
GRID = "extends: base.yaml\ngrid: {seeds: 4, axes: {student: {w4: {}, w6: {width: 6}, w8: {width: 8}}}}\n"
TORN = """\
extends: base.yaml
grid:
  axes:
    student:
      w4: {}
      torn: {arch: file, path: nets/torn.py, params: 5000, substages: [[stem], [mid]]}
      w6: {width: 6}
"""
TORN_NET = """\
from torch import nn


class Torn(nn.Module):
    def forward(self, x):
        return x * float("nan")


def build(classes):
    net = nn.Sequential()
    net.add_module("stem", nn.Conv3d(3, 6, 3, (1, 2, 2), 1))
    net.add_module("mid", nn.Conv3d(6, 6, 3, 2, 1))
    net.add_module("head", nn.Sequential(nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(6, classes), Torn()))
    return net
"""
slow = pytest.mark.slow
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="finds processes in /proc")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with the grids."""
    folder = tmp_path_factory.mktemp("cluster")
    for part in ("specs", "nets"):
        (folder / part).mkdir()
    (folder / "nets" / "torn.py").write_text(TORN_NET, "utf-8")
    for name, text in (("base", BASE), ("grid", GRID), ("torn", TORN)):
        (folder / "specs" / f"{name}.yaml").write_text(text, "utf-8")
    (folder / "params.yaml").write_text("runtime: {device: cpu, threads: 1, checkpoint_seconds: 0}\n", "utf-8")
    (folder / "two.yaml").write_text("workers: 2\n", "utf-8")
    return folder


def start(place: Path, store: str, *more: str, spec: str = "grid", **environment: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "stagedkd.cli", "run", f"specs/{spec}.yaml", "--store", store, *more]
    command += ["--results", f"results-{store}", "--no-dvc"]
    variables = os.environ | {"OMP_NUM_THREADS": "1", MARK: f"{place}/{store}", **environment}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=place, env=variables, stdout=pipe, stderr=pipe, text=True)


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    errors = process.communicate(timeout=600)[1]
    return process.returncode, errors


@pytest.fixture(scope="module")
def reference(place: Path) -> dict[str, bytes]:
    """What the grid gives in one process."""
    code, errors = ended(start(place, "alone"))
    assert code == 0, errors
    return files_of(place / "alone")


def processes(mark: str) -> set[int]:
    """Whoever has this mark in its environment, but zombies."""
    return {pid for pid, _ in living() if f"{MARK}={mark}".encode() in content(pid, "environ").split(b"\0")}


def living() -> Iterator[tuple[int, int]]:
    """Every process but zombies, and its parent."""
    for entry in Path("/proc").iterdir():
        fields = content(int(entry.name), "stat").rpartition(b")")[2].split() if entry.name.isdigit() else []
        if fields and fields[0] != b"Z":
            yield int(entry.name), int(fields[1])


def content(pid: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""


def of_launcher(mark: str, launcher: int) -> set[int]:
    """All processes of a run: by their mark, and the interchange, whose title takes the place of its environment."""
    return processes(mark) | {pid for pid, parent in living() if parent == launcher}


def gone_after(pids: set[int], seconds: float) -> float:
    """Seconds until none of these processes is there; fails where some stay."""
    begin = time.monotonic()
    while left := pids & {pid for pid, _ in living()}:
        assert time.monotonic() - begin < seconds, [content(pid, "cmdline") for pid in left]
        time.sleep(0.05)
    return time.monotonic() - begin


def student_at_work(store: Path, process: subprocess.Popen[str]) -> tuple[str, int]:
    """A student that has a checkpoint and is not done, and the worker that trains it."""
    deadline = time.monotonic() + 100
    while time.monotonic() < deadline and process.poll() is None:
        for checkpoint in store.glob(".work/distill-*/*.pt"):
            name = checkpoint.parent.name.partition(".")[0]
            owner = holder(store / ".leases" / name)
            if owner is not None and not owner.gone:  # not of a run that was killed
                return name, owner.pid
        time.sleep(0.005)
    raise AssertionError(ended(process)[1])


def require_whole(place: Path, store: str) -> Counter[str]:
    """Each unique stage of the grid is there and trained every epoch once; how often each went on after a kill."""
    plans = compile_experiment(load_experiment(place / "specs" / "grid.yaml"))
    assert len(plans.cells) == 12 and len(plans.unique) == 28
    resumed: Counter[str] = Counter()
    for stage in plans.unique.values():
        folder = place / store / stage.folder
        assert (folder / "files" / "manifest.json").is_file(), stage.name
        if stage.work.kind not in ("teach", "distill"):
            continue
        rows = [json.loads(line) for line in (folder / "events.jsonl").read_text("utf-8").splitlines()]
        epochs = [(row["phase"], row["epoch"]) for row in rows if row["event"] == "epoch"]
        assert len(epochs) == len(set(epochs)) == (12 if stage.work.kind == "distill" else 1)
        resumed[stage.folder] = sum(row["event"] == "resumed" for row in rows)
    work = [path.name for path in (place / store / ".work").iterdir()]
    assert len(list((place / store).glob("*-*"))) == 28 and not work, work
    return resumed


@slow
@linux
def test_a_grid_over_two_workers_one_of_them_killed(place: Path, reference: dict[str, bytes]) -> None:
    process = start(place, "two", "--engine", "parsl", "--cluster", "two.yaml")
    name, pid = student_at_work(place / "two", process)
    pids = of_launcher(f"{place}/two", process.pid)
    os.kill(pid, signal.SIGKILL)
    code, errors = ended(process)
    assert code == 0, errors
    assert files_of(place / "two") == reference
    resumed = require_whole(place, "two")
    assert {folder: count for folder, count in resumed.items() if count} == {name[: len("distill-") + 12]: 1}
    assert errors.count("its worker was lost; try 2 of 4") == 1
    done = Counter(re.findall(r"^\[(\d+)/28\] \S+ done in", errors, re.MULTILINE))
    assert done == Counter(map(str, range(1, 29))), errors
    assert not (place / "runinfo").exists() and gone_after(pids, 10) < 10
    assert not processes(f"{place}/two")
    code, errors = ended(start(place, "two", "--engine", "parsl", "--cluster", "two.yaml"))
    assert code == 0 and "nothing to do" in errors


@slow
@linux
def test_the_end_of_the_launcher_is_that_of_its_workers(place: Path, reference: dict[str, bytes]) -> None:
    """By kill -9, after which nothing stays; by SIGTERM, after a checkpoint; and the same command goes on."""
    process = start(place, "ends", "--engine", "parsl", "--cluster", "two.yaml")
    student_at_work(place / "ends", process)
    pids = of_launcher(f"{place}/ends", process.pid)
    assert any(b"interchange" in content(pid, "cmdline") for pid in pids) and len(pids) >= 5
    process.kill()
    process.communicate()
    assert gone_after(pids, 10) < 5
    while late := processes(
        f"{place}/ends"
    ):  # a worker that was just being started: it must not be taken for a new one
        gone_after(late, 10)

    process = start(place, "ends", "--engine", "parsl", "--cluster", "two.yaml")
    student_at_work(place / "ends", process)
    pids = of_launcher(f"{place}/ends", process.pid)
    process.send_signal(signal.SIGTERM)
    code, errors = ended(process)
    assert code == 143 and "have written checkpoints" in errors and "Traceback" not in errors, errors
    gone_after(pids, 10)

    code, errors = ended(start(place, "ends", "--engine", "parsl", "--cluster", "two.yaml"))
    assert code == 0, errors
    assert files_of(place / "ends") == reference


@slow
def test_a_stage_that_fails_takes_its_cell_alone(place: Path) -> None:
    ends = [ended(start(place, "torn-one", spec="torn"))]
    ends += [ended(start(place, "torn-two", "--engine", "parsl", "--cluster", "two.yaml", spec="torn"))]
    assert [code for code, _ in ends] == [1, 1], ends
    one, two = (errors[errors.index("error: ") :] for _, errors in ends)
    assert one == two and "1 of 3 cells failed" in one and "student=torn" in one
    assert files_of(place / "torn-one") == files_of(place / "torn-two")
    assert "worker was lost" not in ends[1][1]  # a fault of the stage's own is not tried again


SBATCH = """\
#!/bin/sh
cp "$1" "$SLURM_FAKE/job.sh"
setsid bash "$1" >"$SLURM_FAKE/job.log" 2>&1 </dev/null &
echo $! > "$SLURM_FAKE/id"
echo "Submitted batch job $!"
"""
SCANCEL = '#!/bin/sh\nkill -- -$1\ntouch "$SLURM_FAKE/cancelled"\n'
SQUEUE = '#!/bin/sh\necho "$(cat "$SLURM_FAKE/id") R"\n'


@slow
@linux
def test_workers_in_a_job_of_a_scheduler(place: Path, tmp_path: Path, reference: dict[str, bytes]) -> None:
    """Parsl's Slurm provider, with a scheduler that runs every job here."""
    for name, text in (("sbatch", SBATCH), ("squeue", SQUEUE), ("scancel", SCANCEL)):
        (tmp_path / name).write_text(text, "utf-8")
        (tmp_path / name).chmod(0o755)
    text = "provider: {kind: slurm, partition: gpu, walltime: 0:30:00}\nworkers: 2\naddress: 127.0.0.1\n"
    (place / "slurm.yaml").write_text(text, "utf-8")
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_FAKE": str(tmp_path)}
    code, errors = ended(start(place, "jobs", "--engine", "parsl", "--cluster", "slurm.yaml", **environment))
    assert code == 0, errors
    assert files_of(place / "jobs") == reference
    job = (tmp_path / "job.sh").read_text("utf-8")
    assert "#SBATCH --partition=gpu" in job and "#SBATCH --time=30" in job
    assert (tmp_path / "cancelled").exists() and gone_after(processes(f"{place}/jobs"), 10) < 10

"""How many CPUs a run may use, and how its threads wait."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from stagedkd.errors import SpecError, UsageError
from stagedkd.plan.cpus import limit_spinning, usable_cpus
from stagedkd.plan.runtime import Runtime, load_runtime


def machine(root: Path, cgroup: str) -> Path:
    """A root folder that says in which control groups a process is."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(cgroup, "utf-8")
    return root


def count(root: Path, affinity: int = 64, **environ: str) -> int:
    return usable_cpus(environ, root, affinity).count


def test_affinity_counts_where_nothing_else_is_said(tmp_path: Path) -> None:
    found = usable_cpus({}, tmp_path, 6)
    assert found.count == 6 and not found.limited
    assert 1 <= usable_cpus({}).count <= (os.cpu_count() or 1)
    if hasattr(os, "sched_getaffinity"):
        code = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        code += "from stagedkd.plan.cpus import usable_cpus; print(usable_cpus({}).count)"
        assert subprocess.check_output([sys.executable, "-c", code], text=True) == "1\n"


@pytest.mark.parametrize(("quota", "cpus"), [("max", 64), ("400000", 4), ("350000", 3), ("50000", 1)])
def test_the_quota_of_a_version_2_group_counts(tmp_path: Path, quota: str, cpus: int) -> None:
    root = machine(tmp_path, "0::/jobs/mine\n")
    group = root / "sys/fs/cgroup/jobs/mine"
    group.mkdir(parents=True)
    (group / "cpu.max").write_text(f"{quota} 100000\n")
    assert count(root) == cpus


def test_the_least_quota_of_the_groups_above_counts(tmp_path: Path) -> None:
    root = machine(tmp_path, "0::/pod/mine\n")
    for group, quota in (("pod/mine", "max"), ("pod", "200000"), (".", "800000")):
        folder = root / "sys/fs/cgroup" / group
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "cpu.max").write_text(f"{quota} 100000\n")
    assert count(root) == 2
    assert usable_cpus({}, root, 64).limit == "the CPU quota of the control group"


@pytest.mark.parametrize("top", ["cpu", "cpu,cpuacct"])
@pytest.mark.parametrize("visible", [True, False])
def test_the_quota_of_a_version_1_group_counts(tmp_path: Path, top: str, visible: bool) -> None:
    """In a container /proc names the group by a path that is not visible: the mounted folder is that group."""
    root = machine(tmp_path, "5:memory:/docker/abc\n4:cpu,cpuacct:/docker/abc\n0::/\n")
    group = root / "sys/fs/cgroup" / top / ("docker/abc" if visible else "")
    group.mkdir(parents=True)
    (group / "cpu.cfs_quota_us").write_text("300000\n")
    (group / "cpu.cfs_period_us").write_text("100000\n")
    assert count(root) == 3
    (group / "cpu.cfs_quota_us").write_text("-1\n")
    assert count(root) == 64


def test_groups_that_cannot_be_read_limit_nothing(tmp_path: Path) -> None:
    root = machine(tmp_path, "0::/\n")
    (root / "sys/fs/cgroup").mkdir(parents=True)
    for text in ("", "garbage\n", "0 0\n", "1 2 3\n"):
        (root / "sys/fs/cgroup/cpu.max").write_text(text)
        assert count(root) == 64


@pytest.mark.parametrize("name", ["OMP_NUM_THREADS", "SLURM_CPUS_PER_TASK"])
def test_the_variables_count(tmp_path: Path, name: str) -> None:
    assert count(tmp_path, **{name: "3"}) == 3
    assert count(tmp_path, 2, **{name: "3"}) == 2
    for text in ("", "0", "many", "-2"):
        assert count(tmp_path, **{name: text}) == 64
    assert usable_cpus({name: "3"}, tmp_path, 64).limit == name
    assert count(tmp_path, OMP_NUM_THREADS="4,2", SLURM_CPUS_PER_TASK="8") == 4


def test_threads_follow_from_settings_and_the_machine() -> None:
    """OMP_NUM_THREADS is 1 in all tests; a setting stands above it. A number of jobs divides the CPUs."""
    assert Runtime().used_threads == 1
    assert Runtime(threads=3).used_threads == 3
    assert Runtime(threads=3, jobs=2).used_threads == 3
    code = "from stagedkd.plan.runtime import Runtime as R; print([R(jobs=n).used_threads for n in ('auto', 1, 2, 99)])"
    environ = {name: value for name, value in os.environ.items() if name not in ("OMP_NUM_THREADS",)}
    cpus = usable_cpus(environ).count
    found = json.loads(subprocess.check_output([sys.executable, "-c", code], env=environ, text=True))
    assert found == [cpus, cpus, max(1, cpus // 2), max(1, cpus // 99)]


def test_jobs_is_auto_or_a_number(tmp_path: Path) -> None:
    assert load_runtime(tmp_path).jobs == "auto" and load_runtime(tmp_path, jobs=3).jobs == 3
    for wrong in (0, 257, "many"):
        with pytest.raises(UsageError, match=f"--jobs {wrong}"):
            load_runtime(tmp_path, jobs=wrong)
    (tmp_path / "params.yaml").write_text("runtime: {jobs: 0}\n")
    with pytest.raises(SpecError, match=r"runtime\.jobs"):
        load_runtime(tmp_path)


@pytest.mark.parametrize("name", ["GOMP_SPINCOUNT", "OMP_WAIT_POLICY"])
def test_what_the_user_says_about_waiting_stands(name: str) -> None:
    environ = {name: "7"}
    limit_spinning(environ)
    assert environ == {name: "7"}


def test_the_limit_is_set_before_torch_loads_the_runtime_that_reads_it() -> None:
    """By the command line; the runtime itself says what it has read."""
    code = "import sys\nfrom stagedkd.cli import main\nsys.argv = ['stagedkd', '--version']\ntry: main()\nexcept SystemExit: pass\n"
    code += "assert 'torch' not in sys.modules\nimport torch\ntorch.ones(2, 2)"
    environ = os.environ | {"OMP_DISPLAY_ENV": "verbose"}
    shown = subprocess.run([sys.executable, "-c", code], env=environ, text=True, capture_output=True, check=True).stderr
    if "GOMP_SPINCOUNT" not in shown:
        pytest.skip("torch has another OpenMP runtime here")
    assert "GOMP_SPINCOUNT = '2000'" in shown

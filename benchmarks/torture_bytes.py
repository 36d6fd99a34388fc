"""The attacks of benchmarks/torture.py on bytes: flipped bits in files of a project; mutated specs, tables, videos."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from torture_runs import NET, REPO, Said, Verdict, call, difference, files_of, guarded, remains, write_forms, write_set

from stagedkd.errors import DataError, LockError, SpecError, UsageError
from stagedkd.spec.load import load_experiment

RUN = ("run", "specs/real.yaml", "--no-dvc", "-q")
REAL = """\
data: {kind: csv, path: set/clips.csv, folds: 3, test_folds: 0}
clip: {frames: 4, size: 16, views: 2}
labels: {clean: 0.6}
train: {batch: 4, lr: 1e-2, warmup_epochs: 0}
teacher: {arch: file, path: nets/own.py, args: {width: 8}, params: 2000, substages: [[stem], [mid]], epochs: 1}
student: {arch: file, path: nets/own.py, params: 1000, substages: [[stem], [mid]]}
distill: {phases: {joint: {epochs: 6, losses: {ce: 0.1, kd: 0.9, sp: 10}}}}
"""
PARAMS = "runtime: {{device: cpu, threads: 1, checkpoint_seconds: 0, lease_seconds: 5, data_dir: {}}}\n"
# The user writes these; another content is another experiment, or none.
NOT_FLIPPED = re.compile(r"(specs|nets|results)/|params\.yaml|.*\.(lock|guard|csv)$|store/\.(leases|trash)/")
NAMES = ("manifest.json", "run.json", "events.jsonl", "checkpoint.pt", "began.json", "inputs.json", "hashes.json")
VARIES = ("seconds", "latency", "dead", "notes", "device")  # in the report, from run.json
SPEC_SECONDS, TABLE_SECONDS, VIDEO_SECONDS = 5.0, 10.0, 20.0
CELL_SECONDS = 0.02  # beyond that, for each cell of a grid


def write_project(folder: Path, spec: str = REAL, data_dir: str = "data") -> None:
    """Write the files of a project with videos in `data_dir`."""
    for name, text in (("nets/own.py", NET), ("specs/real.yaml", spec), ("params.yaml", PARAMS.format(data_dir))):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, "utf-8")


def flip(path: Path, dice: random.Random) -> str:
    """Flip a random bit of a file. Returns which."""
    content = bytearray(path.read_bytes())
    bit = dice.randrange(8 * len(content))
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)
    return f"bit {bit % 8} of byte {bit // 8}"


class Flips:
    """A flipped bit in a file of a project that has run, or that was stopped in the middle of a training; then
    `store verify`, a run, and the numbers of the report."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        rows = write_set(folder / "data/set")
        (folder / "data/set/clips.csv").write_text("\n".join(["path,label,group", *rows]) + "\n")
        finished = folder / "finished"
        write_project(finished, data_dir=str(folder / "data"))
        shutil.copytree(finished, folder / "stopped")
        said = [call(finished, *RUN), _stopped(folder / "stopped")]
        self.shown = self._numbers(finished) or {}
        self.reference = files_of(finished / "store")
        if said[0].code or said[1].code != 128 + signal.SIGTERM or not self.shown:
            raise RuntimeError(f"the reference failed: {said}")

    def trial(self, number: int, dice: random.Random) -> Sequence[Verdict]:
        """Flip one bit."""
        start, place = dice.choice(["finished", "stopped"]), self.folder / "trial"
        shutil.copytree(self.folder / start, place, symlinks=True)
        self.data: tuple[str, ...] = ()
        try:
            kinds: dict[str, list[Path]] = {}
            for path in sorted(path for path in place.rglob("*") if path.is_file() and path.stat().st_size):
                name = path.relative_to(place).as_posix()
                if not NOT_FLIPPED.match(name) or name == "stagedkd.lock":
                    kinds.setdefault(path.name if path.name in NAMES else name[:2] + path.suffix, []).append(path)
            kinds["data"] = sorted((self.folder / "data/set").glob("*.avi"))
            kind = dice.choice(sorted(kinds))
            path = dice.choice(kinds[kind])
            if kind == "data":
                shutil.copytree(self.folder / "data", place / "data")
                path, self.data = place / "data/set" / path.name, ("--data-dir", "data")
            before = path.read_bytes()
            what = f"{start}, {path.relative_to(place)}, {flip(path, dice)}"
            kind_of, text = self._judge(place, path, before, exact=start == "finished")
            return [Verdict(kind_of, f"{what}: {text}")]
        finally:
            shutil.rmtree(place)

    def _judge(self, place: Path, path: Path, before: bytes, *, exact: bool) -> tuple[Any, str]:
        """Look at what the flipped bit does. Returns the kind of verdict, and what was said."""
        said: list[Said] = []
        for _ in range(5):
            verified = call(place, "store", "verify")
            run = call(place, *RUN, *self.data)
            said += [each for each in (verified, run) if each.code or each.fault or "note: " in each.text]
            if fault := verified.fault or run.fault:
                return "wrong", fault
            if not run.code and "artifacts are broken" not in verified.text:
                break
            if not follow(run if run.code else verified, place, path, before):
                return "wrong", f"the hint cannot be followed: {(run if run.code else verified).text[-600:]}"
        else:
            return "wrong", f"following the hints leads nowhere: {said[-1].text[-600:]}"
        text = " | ".join(" ".join(each.text.split())[:300] for each in said)
        is_named = any(path.name in each.text for each in said)
        found, expected = self._numbers(place), self.shown
        if found is None:
            return "wrong", f"the report cannot be read; {text}"
        if is_named or not exact:
            found, expected = without(found), without(expected)
        if wrong := difference(files_of(place / "store"), self.reference) or remains(place / "store"):
            return "wrong", f"{wrong}; {text}"
        if found != expected:
            other = [name for name in expected if found.get(name) != expected[name]]
            return "wrong", f"other numbers: {other}; {text}"
        if any(each.code for each in said) and not is_named:
            return "wrong", f"the error does not name the file; {text}"
        return ("named" if is_named else "right"), text

    def _numbers(self, place: Path) -> dict[str, Any] | None:
        """The numbers of the report; None if there are none."""
        said = call(place, "show", "specs/real.yaml", "--json")
        return None if said.code else json.loads(said.text[said.text.index("{") :])  # after notes


def _stopped(place: Path) -> Said:
    """Run a project, and stop it once the student has a checkpoint."""

    def stop() -> None:
        while not any(place.glob("store/.work/distill-*/checkpoint.pt")):
            time.sleep(0.001)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=stop)
    thread.start()
    said = call(place, *RUN)
    thread.join()
    return said


def without(values: Any) -> Any:
    """The numbers of a report that do not vary from run to run."""
    if isinstance(values, dict):
        return {name: without(value) for name, value in values.items() if name not in VARIES}
    return [without(value) for value in values] if isinstance(values, list) else values


def follow(said: Said, place: Path, path: Path, before: bytes) -> bool:
    """Do what the hint of an error says. Returns whether it says anything that can be done."""
    _, _, hint = said.text.partition("help: ")
    if targets := re.findall(r"(?:remove|delete) (/[^\s,:;]+)", hint):
        for target in targets:
            with suppress(FileNotFoundError):
                shutil.rmtree(target) if Path(target).is_dir() else Path(target).unlink()
        return True
    if "restore" in hint:
        path.write_bytes(before)
        return True
    if "delete their folders" in hint:
        broken = set(re.findall(r"^ +(\w+-[0-9a-f]{12}): ", said.text, re.MULTILINE))
        for name in broken:
            shutil.rmtree(place / "store" / name)
        return bool(broken)
    if "delete the other files" in hint:
        path.unlink()
        return True
    return False


_PLAIN = """null true no -1 0 1 1e-3 1e400 .nan .inf '' [] {} [1,[2]] {a:1} auto all kind arch extends recipe grid axes
seeds include exclude $delete $replace &a *a !!int --- ? | > % @ ` << 0x1F 0o17 1_000 ../x / . resnet3d r3d_18 ce kd"""
_ODD = ("\t", "\x00", "\u2028", "\ufeff", "\x85", "\U0001f600", "\ud800", "9" * 5000, "[" * 70, "99999999999999999999")
WORDS = (*_PLAIN.split(), *_ODD)
BREAKS = re.compile(r"([\s,:{}\[\]]+)")


def mutate(text: str, dice: random.Random, words: Sequence[str]) -> str:
    """One to four changes: lines and words deleted, doubled, swapped, replaced by others, or the text cut."""
    for _ in range(dice.choice([1, 1, 1, 2, 3, 4])):
        lines, parts, kind = text.split("\n"), BREAKS.split(text), dice.randrange(11)
        i, j, at = dice.randrange(len(lines)), dice.randrange(len(lines)), dice.randrange(len(parts))
        if kind == 0:
            del lines[i]
        elif kind == 1:
            lines.insert(j, lines[i])
        elif kind == 2:
            lines[i], lines[j] = lines[j], lines[i]
        elif kind == 3:
            lines[i] = dice.choice(["  ", "    ", " ", ""]) + lines[i].lstrip()
        elif kind == 4:
            lines = [text[: dice.randrange(len(text) + 1)]]
        else:
            other = dice.randrange(len(parts))
            if kind == 5:
                parts[at] = ""
            elif kind == 6:
                parts[at] *= 2
            elif kind == 7:
                parts[at], parts[other] = parts[other], parts[at]
            elif kind == 8:
                parts[at] = str(dice.choice([0, -1, 2.5, 1e300, 2**63, 10**25, 1e-320]))
            else:
                parts[at] = dice.choice(words)
            lines = ["".join(parts)]
        text = "\n".join(lines)
    return text


class Specs:
    """A mutated text of a shipped spec, beside the file that it comes from."""

    def __init__(self, folder: Path) -> None:
        for name in ("specs", "stagedkd/recipes"):
            shutil.copytree(REPO / name, folder / Path(name).name)
        (folder / "params.yaml").write_text("runtime: {}\n")
        self.texts = {p: p.read_text("utf-8") for p in sorted(folder.glob("specs/**/*.yaml")) if ".tuned" not in p.name}
        own = {word for text in self.texts.values() for word in re.split(r"[\s,:{}\[\]]+", text) if word}
        self.words = (*WORDS, *sorted(own))

    def trial(self, number: int, dice: random.Random) -> Sequence[Verdict]:
        """Load and compile one text."""
        source = dice.choice(list(self.texts))
        path = source.with_name("fuzzed.yaml")
        text = mutate(self.texts[source], dice, self.words)
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        started, cells = time.process_time(), list[int]()
        verdict = guarded(SPEC_SECONDS + CELL_SECONDS * 10_000, source.name, lambda: compiled(path, cells))
        took = time.process_time() - started
        if took > SPEC_SECONDS + CELL_SECONDS * sum(cells):
            return [Verdict("wrong", f"{source.name}: it took {took:.1f} s for {sum(cells)} cells")]
        return [verdict]


def compiled(path: Path, cells: list[int]) -> Verdict:
    """Compile a spec, or read the places of its errors. Adds the number of its cells to `cells`."""
    from stagedkd.plan.compile import compile_experiment
    from stagedkd.plan.lock import Lock

    try:
        experiment = load_experiment(path)
        cells.append(len(experiment.cells))
        compile_experiment(experiment, Lock())
    except SpecError as error:
        bare = [problem.message for problem in error.problems if problem.place is None or problem.place.line < 1]
        if bare or not error.problems or not error.render():
            return Verdict("wrong", f"an error without a place: {bare}")
        return Verdict("named")
    return Verdict("right")


class Tables:
    """A mutated table or list over a folder of small videos."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        rows = write_set(folder / "data/set")
        cells = [row.split(",") for row in rows]
        self.texts = (
            "\n".join(["path,label,group", *rows]),
            "\n".join(["path\tlabel\tsplit", *(f"{p}\t{c}\t{'train' if g < 'g4' else 'val'}" for p, c, g in cells)]),
            "\n".join(f"{path} {int(label == 'b')}" for path, label, _ in cells),
            "\n".join(["video_path;class_name", *(f'"{path}";"{label}"' for path, label, _ in cells)]),
            "\r\n".join(["path,label,start,end", *(f"{path},{label},0.0,0.1" for path, label, _ in cells)]),
            "\n".join(["path,label,clean", *(f"{path},{label},{label}" for path, label, _ in cells)]),
        )
        write_project(folder)

    def trial(self, number: int, dice: random.Random) -> Sequence[Verdict]:
        """Survey, lock and compile one table."""
        text = mutate(dice.choice(self.texts), dice, (*WORDS, "a", "b", "0.avi", "set/0.avi", "train", '"', "g1", "#"))
        content = text.encode(dice.choice(["utf-8"] * 9 + ["utf-16", "latin-1"]), "replace")
        (self.folder / "data/set/clips.csv").write_bytes(content)
        return [guarded(TABLE_SECONDS, "table", self._read)]

    def _read(self) -> Verdict:
        from stagedkd.experiment.locking import lock_specs
        from stagedkd.experiment.survey import survey
        from stagedkd.plan.compile import compile_plan
        from stagedkd.plan.runtime import load_runtime
        from stagedkd.stages.context import Silent

        (self.folder / "stagedkd.lock").unlink(missing_ok=True)
        spec, runtime = load_experiment(self.folder / "specs/real.yaml").cells[0].spec, load_runtime(self.folder)
        try:
            found = survey(spec, runtime, Silent())
            compile_plan(spec, lock_specs([spec], runtime, accept=True)[0])
        except (DataError, UsageError, LockError) as error:
            is_named = "clips.csv" in error.message or "data.columns" in error.message
            return Verdict("named") if is_named else Verdict("wrong", f"no place: {error.message[:300]}")
        counted = sum(sum(splits.values()) for splits in found.counts.values())
        if counted + found.unlabelled + found.unused != found.clips:
            return Verdict("wrong", f"{found.clips} clips, but {counted} counted")
        return Verdict("right")


class Videos:
    """Mutated videos of several containers, through the stage `data`: a child process for each batch."""

    BATCH = 20

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        write_forms(folder / "whole")
        write_set(folder / "good")

    def trial(self, number: int, dice: random.Random) -> Sequence[Verdict]:
        """One batch: as many videos, each with a seed of its own."""
        seeds = [f"{dice.random():.17f}" for _ in range(self.BATCH)]
        verdicts: list[Verdict] = []
        while len(verdicts) < len(seeds):  # a batch goes on behind a video that ended its process
            verdicts += self._batch(seeds[len(verdicts) :])
        return verdicts

    def _batch(self, seeds: Sequence[str]) -> list[Verdict]:
        """Run a child process over these videos, to the end or to the first one that ends it."""
        words = [sys.executable, __file__, str(self.folder), *seeds]
        environment = {**os.environ, "PYTHONPATH": str(REPO)}
        child = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment)
        try:
            output, hang = child.communicate(timeout=60 + VIDEO_SECONDS * len(seeds))[0], False
        except subprocess.TimeoutExpired:
            child.kill()
            output, hang = child.communicate()[0], True
        verdicts = [Verdict(**json.loads(line)) for line in output.splitlines()]
        if hang:
            verdicts.append(Verdict("wrong", f"video {seeds[len(verdicts)]}: a hang"))
        elif len(verdicts) < len(seeds):
            ended = f"video {seeds[len(verdicts)]}: exit code {child.returncode}"
            is_crash = child.returncode in (-signal.SIGSEGV, -signal.SIGABRT, -signal.SIGFPE, -signal.SIGBUS)
            verdicts.append(Verdict("named", f"DECODER CRASHED: {ended}") if is_crash else Verdict("wrong", ended))
        return verdicts


def mutated_bytes(content: bytes, dice: random.Random) -> bytes:
    """One to many changes of bytes: flipped, cut, overwritten, moved, doubled."""
    data = bytearray(content)
    for _ in range(dice.choice([1, 1, 2, 5, 20, 100])):
        at, kind = dice.randrange(max(1, len(data))), dice.randrange(7)
        if kind < 3 and data:
            data[at % len(data)] ^= 1 << dice.randrange(8)
        elif kind == 3:
            data[at : at + 4] = dice.choice([b"\0" * 4, b"\xff" * 4, dice.randbytes(4)])
        elif kind == 4:
            del data[at : at + dice.choice([1, 4, 100])]
        elif kind == 5:
            data[at:at] = data[at : at + dice.choice([1, 4, 100])]
        elif dice.random() < 0.2:
            del data[at:]
    return bytes(data)


def try_video(folder: Path, seed: str) -> Verdict:
    """Put a mutated video beside good ones, and make the stage `data`."""
    from stagedkd import load_spec
    from stagedkd.experiment.run import locked_plan, run_stage
    from stagedkd.plan.runtime import load_runtime
    from stagedkd.stages.context import Silent

    dice, place = random.Random(seed), folder / f"batch-{os.getpid()}"
    shutil.copytree(folder / "good", place / "data/set/a", ignore=shutil.ignore_patterns("[13579]*"))
    shutil.copytree(folder / "good", place / "data/set/b", ignore=shutil.ignore_patterns("[02468]*", "10*"))
    whole = dice.choice(sorted((folder / "whole").iterdir()))
    bad = place / f"data/set/a/bad{whole.suffix}"
    bad.write_bytes(mutated_bytes(whole.read_bytes(), dice))
    data = "{kind: folder, path: set, folds: 3, test_folds: 0}"
    write_project(place, REAL.replace("{kind: csv, path: set/clips.csv, folds: 3, test_folds: 0}", data))
    try:
        runtime = load_runtime(place)
        plan = locked_plan(load_spec(place / "specs/real.yaml"), runtime, Silent())
        artifact, _ = run_stage(plan, plan.stage("data"), runtime, Silent())
        rows = json.loads((artifact.folder / "files/data.json").read_text("utf-8"))
    except DataError as error:
        is_named = bad.name in error.message
        return Verdict("named" if is_named else "wrong", "" if is_named else error.message[:300])
    finally:
        shutil.rmtree(place)
    others = [row["path"] for row in rows["bad_files"] if bad.name not in row["path"]]
    if others or sum(rows["clips"].values()) < 11:
        return Verdict("wrong", f"{whole.suffix}: good videos are left out: {others}")
    return Verdict("named" if rows["bad_files"] or rows.get("file_notes") else "right")


def main() -> None:
    folder = Path(sys.argv[1])
    for seed in sys.argv[2:]:
        verdict = guarded(VIDEO_SECONDS, f"video {seed}", lambda seed=seed: try_video(folder, seed))
        print(json.dumps(verdict.__dict__), flush=True)


if __name__ == "__main__":
    main()

"""The process of one runtime in a benchmark.

    python -m stagedkd.deploy.bench_worker PATH THREADS

PATH is an export, or else a network that torch runs. The process prints a line of JSON: the batches that it takes. For
each line on stdin, `{"batch": b, "count": n}`, it runs n calls and prints their seconds; for `{"memory": true}`, the
peak of its memory in bytes.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


def main() -> None:
    """Load the runtime, then answer."""
    path, threads = Path(sys.argv[1]), int(sys.argv[2])
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)  # what libraries print
    run, shape, batches = _load(path, threads)
    answers.write(json.dumps(batches) + "\n")
    dice = np.random.default_rng(0)
    for line in sys.stdin:
        request = json.loads(line)
        if "memory" in request:
            from stagedkd.stages.memory import peak_memory

            answers.write(json.dumps(peak_memory().get("resident")) + "\n")
            continue
        frames = dice.integers(0, 256, (request["batch"], *shape), np.uint8)
        seconds: list[float] = []
        for _ in range(request["count"]):
            started = time.perf_counter()
            run(frames)
            seconds.append(time.perf_counter() - started)
        answers.write(json.dumps(seconds) + "\n")


def _load(path: Path, threads: int) -> tuple[Callable[[Any], Any], tuple[int, ...], list[int]]:
    """Give what runs frames, uint8 (B, T, H, W, 3), the shape of one clip, and the batches that it takes."""
    import torch

    from stagedkd.deploy.bench import BATCHES
    from stagedkd.deploy.export.graph import FramesToLogits, input_shape
    from stagedkd.deploy.export.write import FORMS, REPORT
    from stagedkd.deploy.student import find_student
    from stagedkd.models.network import channels_last
    from stagedkd.report.card import CARD, read_card

    torch.set_num_threads(threads)
    if (path / REPORT).is_file():  # an export
        facts = json.loads((path / REPORT).read_text("utf-8"))
        loaded = FORMS[facts["form"]]().load(path, threads)
        assert loaded is not None, "it does not run on this machine"
        batches: list[int] = [facts["batch"]] if facts["batch"] else list(BATCHES)
        return loaded, input_shape(read_card(path / CARD)), batches
    found = find_student(path)
    network = found.new_network().eval()
    channels_last(network)
    module = FramesToLogits(network, found.card).eval()

    def run(frames: Any) -> Any:
        clips = torch.from_numpy(frames)
        with torch.inference_mode():  # one clip alone runs as two: torch takes a slow kernel for one
            return module(clips if len(clips) > 1 else torch.cat([clips, clips]))[: len(clips)]

    return run, input_shape(found.card), list(BATCHES)


if __name__ == "__main__":
    main()

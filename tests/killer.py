"""Run stagedkd and end it by SIGKILL at a given moment: `python killer.py WHERE N ARGUMENTS...`.

WHERE is step (before the N-th training step), checkpoint (half-way through writing the N-th checkpoint), publish
(before the N-th flush of a publication) or rename (just before the N-th artifact is renamed into place).
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any


def main() -> None:
    where, moment = sys.argv[1], int(sys.argv[2])
    sys.argv = ["stagedkd", *sys.argv[3:]]
    import torch

    from stagedkd import cli
    from stagedkd.store import store
    from stagedkd.train import loop

    count = 0

    def reached() -> bool:
        nonlocal count
        count += 1
        return count == moment

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    step, save, flush, rename = loop.train_step, torch.save, store.flush, Path.rename

    def killing_step(*args: Any, **named: Any) -> Any:
        if where == "step" and reached():
            die()
        return step(*args, **named)

    def killing_save(state: Any, stream: Any) -> None:
        if where == "checkpoint" and reached():
            stream.write(b"half a checkpoint")
            stream.flush()
            die()
        save(state, stream)

    def killing_flush(path: Path) -> None:
        if where == "publish" and reached():
            die()
        flush(path)

    def killing_rename(path: Path, target: Path) -> Path:
        if where == "rename" and path.name == "artifact" and reached():
            die()
        return rename(path, target)

    loop.train_step, torch.save, store.flush, Path.rename = killing_step, killing_save, killing_flush, killing_rename
    cli.main()


if __name__ == "__main__":
    main()

"""torchvision's functionals, loaded when the first one is called. torchvision takes as long to import as torch, since
it imports torch's compiler, and many stages need neither."""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    from torchvision.transforms.v2 import functional

    return getattr(functional, name)

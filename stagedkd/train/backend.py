"""What torch does with half types and with too little memory.

Half types on the CPU run without a library that computes them wrongly, and there too little memory is a plain error.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# The type stubs of torch are incomplete.
from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import torch

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory is used up. On the CPU torch raises a plain RuntimeError."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)


@contextmanager
def sound_backend(device: torch.device, precision: str) -> Generator[None]:
    """Inside, half types on the CPU run without oneDNN, whose bf16 gradients of small 3-D convolutions were measured to
    be wrong (docs/decisions/0005)."""
    before = torch.backends.mkldnn.enabled
    torch.backends.mkldnn.enabled = before and not (device.type == "cpu" and precision != "fp32")
    try:
        yield
    finally:
        torch.backends.mkldnn.enabled = before

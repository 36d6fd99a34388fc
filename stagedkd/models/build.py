"""From an architecture in the spec to a network, and from a weight file into it."""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any, assert_never

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from stagedkd.errors import DataError
from stagedkd.models.network import Anatomy, Network
from stagedkd.models.resnet3d import resnet3d
from stagedkd.spec.schema.networks import Arch, FileArch, HfArch, Resnet3dArch, TorchvisionArch, TsmArch

HEAD_NAMES = ("fc.", "head.", "classifier.")


def build(arch: Arch, classes: int, *, root: Path) -> Network:
    """A randomly initialised network with `classes` outputs, on the current default device.

    Args:
        root: the project's folder, which paths of one's own networks are relative to.
    Raises:
        ValueError: one's own file does not give a module of at least one block and a head; see also `hf`.
        UsageError: what a network needs is not installed or not there.
    """
    match arch:
        case Resnet3dArch():
            return resnet3d(arch.width, arch.blocks, arch.conv, classes)
        case TorchvisionArch():
            from stagedkd.models.torchvision_video import torchvision_video  # torchvision takes seconds to import

            return torchvision_video(arch.arch, classes)
        case TsmArch():
            from stagedkd.models.tsm import tsm

            return tsm(arch.backbone, arch.shift, classes)
        case HfArch():
            from stagedkd.models.hf import hf

            return hf(arch, classes, root)
        case FileArch():
            return _own(arch, classes, root)
        case _:
            assert_never(arch)


def load_pretrained(network: Network, arch: Arch, root: Path) -> list[str]:
    """Put the weights of `arch.pretrained_from` into a network that `build` made of `arch`.

    Returns:
        the names of the head's tensors that were left as they are.
    Raises:
        DataError: the weights cannot be read, or are not all there. UsageError: see `build`.
    """
    assert isinstance(arch, HfArch), "no other family comes with weights"
    from stagedkd.models import hf  # transformers takes seconds to import

    return hf.load_pretrained(network, arch, root)


_loaded = itertools.count()


def own_function(path: Path, name: str) -> Callable[..., Any]:
    """Run one's own file and give its function. Raises ValueError: there is none."""
    spec = importlib.util.spec_from_file_location(f"stagedkd_own_{next(_loaded)}", path)
    if spec is None or spec.loader is None:
        raise ValueError("not a Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    function = getattr(module, name, None)
    if not callable(function):
        raise ValueError(f"there is no function {name}")
    return function


def _own(arch: FileArch, classes: int, root: Path) -> Network:
    """Run one's own file. Its children are the blocks, the last of them the head."""
    net = own_function(root / arch.path, "build")(classes, **arch.args)
    names = [name for name, _ in net.named_children()] if isinstance(net, nn.Module) else []
    if len(names) < 2:
        raise ValueError("build() must give an nn.Module with at least two named children: blocks and a head")
    *blocks, head = names
    return Network(net, Anatomy({name: (name,) for name in blocks}, (head,), _finish_own))


def _finish_own(net: nn.Module, state: Tensor) -> Tensor:
    return list(net.children())[-1](state)


def read_weights(path: Path) -> dict[str, Tensor]:
    """Tensors of a .safetensors file, or of a .pth file through `weights_only=True`. Raises DataError."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        hint = "use safetensors, or a .pth that holds tensors alone"
        raise DataError(f"{path} cannot be read: {str(error).splitlines()[0]}", hint=hint) from error
    found = found.get("state_dict", found) if isinstance(found, dict) else found
    if not isinstance(found, dict) or not all(isinstance(t, Tensor) for t in found.values()):
        raise DataError(f"{path} holds no state dict")
    return found


def load_weights(network: Network, path: Path) -> list[str]:
    """Load a weight file; the head is left as it is where its shape differs (another number of classes). The batch
    counters of norms, which old files lack, may be missing.

    Returns:
        the names of the head's tensors that were left out.
    Raises:
        DataError: other names or shapes do not match; lists them.
    """
    given, own = read_weights(path), network.net.state_dict()
    skipped = [n for n in sorted(given) if n in own and n.startswith(HEAD_NAMES) and given[n].shape != own[n].shape]
    wrong = [f"{n} is not in the network" for n in given if n not in own]
    wrong += [f"{n} is missing in the file" for n in own if n not in given and not n.endswith(".num_batches_tracked")]
    wrong += [
        f"{n}: {tuple(given[n].shape)} in the file, {tuple(own[n].shape)} in the network"
        for n in given
        if n in own and n not in skipped and given[n].shape != own[n].shape
    ]
    if wrong:
        more = f"\n    and {len(wrong) - 12} more" if len(wrong) > 12 else ""
        raise DataError(f"{path} does not fit the network:\n    " + "\n    ".join(wrong[:12]) + more)
    network.net.load_state_dict({**own, **{n: t for n, t in given.items() if n not in skipped}})
    return skipped

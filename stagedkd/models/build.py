"""Build the network of an architecture in the spec, and load a weight file into it."""

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
    """Build a randomly initialised network with `classes` outputs, on the current default device.

    Args:
        root: the project's folder; the paths of the user's files are relative to it.
    Raises:
        ValueError: the user's file does not return a module of at least one block and a head; see also `hf`.
        UsageError: a library or a folder that the network needs is missing.
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
            return _user_network(arch, classes, root)
        case _:
            assert_never(arch)


def load_pretrained(network: Network, arch: Arch, root: Path) -> list[str]:
    """Load the weights of `arch.pretrained_from` into a network that `build` made from `arch`.

    Returns:
        the names of the head's tensors that were not loaded.
    Raises:
        DataError: the weights cannot be read or are incomplete. UsageError: see `build`.
    """
    assert isinstance(arch, HfArch), "no other family comes with weights"
    from stagedkd.models import hf  # transformers takes seconds to import

    return hf.load_pretrained(network, arch, root)


_loaded = itertools.count()


def user_function(path: Path, name: str) -> Callable[..., Any]:
    """Run a file of the user's own code and return its function. Raises ValueError: the file has no such function."""
    spec = importlib.util.spec_from_file_location(f"stagedkd_user_{next(_loaded)}", path)
    if spec is None or spec.loader is None:
        raise ValueError("not a Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    function = getattr(module, name, None)
    if not callable(function):
        raise ValueError(f"there is no function {name}")
    return function


def _user_network(arch: FileArch, classes: int, root: Path) -> Network:
    """Build a network of the user's own code. The module's children are the blocks; the last child is the head."""
    net = user_function(root / arch.path, "build")(classes, **arch.args)
    names = [name for name, _ in net.named_children()] if isinstance(net, nn.Module) else []
    if len(names) < 2:
        raise ValueError("build() must return an nn.Module with at least two named children: blocks and a head")
    *blocks, head = names
    return Network(net, Anatomy({name: (name,) for name in blocks}, (head,), _finish_user_network))


def _finish_user_network(net: nn.Module, state: Tensor) -> Tensor:
    return list(net.children())[-1](state)


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a .safetensors file, or of a .pth file through `weights_only=True`. Raises DataError."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        hint = "use a .safetensors file, or a .pth file that holds only tensors"
        raise DataError(f"{path} cannot be read: {str(error).splitlines()[0]}", hint=hint) from error
    state = content.get("state_dict", content) if isinstance(content, dict) else content
    if not isinstance(state, dict) or not all(isinstance(t, Tensor) for t in state.values()):
        raise DataError(f"{path} does not hold a state dict", hint="save the weights of a network: net.state_dict()")
    return state


def load_weights(network: Network, path: Path) -> list[str]:
    """Load a weight file. Tensors of the head are skipped if their shape differs (another number of classes). The batch
    counters of norms may be missing, as they are in old files.

    Returns:
        the names of the head's tensors that were skipped.
    Raises:
        DataError: other names or shapes do not match; the message lists them.
    """
    saved, current = read_weights(path), network.net.state_dict()
    unequal = [n for n in saved if n in current and saved[n].shape != current[n].shape]
    skipped = [n for n in sorted(unequal) if n.startswith(HEAD_NAMES)]
    problems = [f"{n} is not in the network" for n in saved if n not in current]
    absent = [n for n in current if n not in saved and not n.endswith(".num_batches_tracked")]
    problems += [f"{n} is missing in the file" for n in absent]
    problems += [
        f"{n}: {tuple(saved[n].shape)} in the file, {tuple(current[n].shape)} in the network"
        for n in unequal
        if n not in skipped
    ]
    if problems:
        more = f"\n    and {len(problems) - 12} more" if len(problems) > 12 else ""
        raise DataError(f"{path} does not fit the network:\n    " + "\n    ".join(problems[:12]) + more)
    network.net.load_state_dict({**current, **{n: t for n, t in saved.items() if n not in skipped}})
    return skipped

"""Build the network of an architecture in the spec, and read the weights that a model comes with."""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Callable
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType
from typing import Any, assert_never

import torch
from torch import Tensor, nn

from stagedkd.errors import StagedkdError
from stagedkd.files import FileBytes
from stagedkd.models.head import Given
from stagedkd.models.network import Anatomy, Network
from stagedkd.models.resnet3d import resnet3d
from stagedkd.spec.schema.networks import Arch, FileArch, HfArch, OutputsArch, Resnet3dArch, TorchvisionArch, TsmArch
from stagedkd.store.pinned import read_pinned


def build(arch: Arch, classes: int, *, root: Path) -> Network:
    """Build a randomly initialised network with `classes` outputs, on the current default device.

    Args:
        root: the project's folder; the paths of the user's files are relative to it.
    Raises:
        ValueError: the user's file does not return a module of at least one block and a head; see also `hf`.
        UsageError: a library or a folder that the network needs is missing.
        DataError: a file of the user is not the one that the network's key stands for.
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
        case OutputsArch():
            raise ValueError("outputs from a file are no network")
        case _:
            assert_never(arch)


def read_pretrained(network: Network, arch: Arch, root: Path) -> Given:
    """Read what the weights of `arch.pretrained_from` give a network that `build` made from `arch`.

    Raises:
        DataError: the weights cannot be read or are incomplete. UsageError: see `build`.
    """
    assert isinstance(arch, HfArch), "no other family comes with weights"
    from stagedkd.models import hf  # transformers takes seconds to import

    return hf.read_pretrained(network, arch, root)


def class_dims(network: Network, arch: Arch, classes: int, root: Path) -> dict[str, int]:
    """Find the tensors of a network that have a part for each class, by building it for one class more on the meta
    device. `network` was built from `arch` for `classes`.

    Returns:
        for each of these tensors, the dimension that counts the classes; none where the user's own code does not build
        for another number.
    """
    try:
        with torch.device("meta"), torch.random.fork_rng(devices=[]):
            wider = build(arch, classes + 1, root=root).net.state_dict()
    except StagedkdError:
        raise
    except Exception:
        if arch.user_files is None or not arch.user_files.code:
            raise
        return {}
    dims: dict[str, int] = {}
    for name, tensor in network.net.state_dict().items():
        sizes = enumerate(zip(tensor.shape, wider[name].shape if name in wider else tensor.shape, strict=False))
        grown = [dim for dim, (size, other) in sizes if size != other]
        if len(grown) == 1 and tensor.shape[grown[0]] == classes:
            dims[name] = grown[0]
    return dims


_loaded = itertools.count()


class _BytesLoader(SourceFileLoader):
    """Loads a module from bytes that were read before. Neither the file nor a .pyc beside it is read: Python takes the
    latter where size and second of change agree."""

    def __init__(self, name: str, file: FileBytes) -> None:
        super().__init__(name, str(file.path))
        self.file = file

    def get_code(self, fullname: str) -> CodeType:
        return self.source_to_code(self.file.content, str(self.file.path))


def user_function(file: FileBytes, name: str) -> Callable[..., Any]:
    """Run a file of the user's own code and return its function. Raises ValueError: the file has no such function."""
    module_name = f"stagedkd_user_{next(_loaded)}"
    spec = importlib.util.spec_from_file_location(module_name, file.path, loader=_BytesLoader(module_name, file))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    function = getattr(module, name, None)
    if not callable(function):
        raise ValueError(f"there is no function {name}")
    return function


def _user_network(arch: FileArch, classes: int, root: Path) -> Network:
    """Build a network of the user's own code. The module's children are the blocks; the last child is the head."""
    net = user_function(read_pinned(root / arch.path, arch.digest), "build")(classes, **arch.args)
    names = [name for name, _ in net.named_children()] if isinstance(net, nn.Module) else []
    if len(names) < 2:
        raise ValueError("build() must return an nn.Module with at least two named children: blocks and a head")
    *blocks, head = names
    return Network(net, Anatomy({name: (name,) for name in blocks}, (head,), _finish_user_network))


def _finish_user_network(net: nn.Module, state: Tensor) -> Tensor:
    return list(net.children())[-1](state)

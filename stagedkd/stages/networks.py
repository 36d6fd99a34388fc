"""Networks in stages: built on the device with a seed, loaded from artifacts, written with their manifest."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# The type stubs of torch, safetensors and Parsl are incomplete.
from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from stagedkd.errors import StoreError, TrainingError, UsageError
from stagedkd.models.build import build, load_pretrained, load_weights, user_function
from stagedkd.models.network import Network
from stagedkd.plan.work import PhaseWork, Weights, Work
from stagedkd.spec.schema import Arch
from stagedkd.stages.context import Context
from stagedkd.stages.weights import weights_file
from stagedkd.store.manifest import Manifest
from stagedkd.store.store import Artifact


def device_of(name: str) -> torch.device:
    """The device of a runtime: `auto` takes CUDA, then MPS, then the CPU. Raises UsageError: it is not there."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(kind for kind, found in there.items() if found))
    if not there[name]:
        raise UsageError(
            f"no device {name} here", hint=f"use --device {next(k for k, v in there.items() if v)} or auto"
        )
    return torch.device(name)


def new_network(context: Context, arch: Arch, classes: int, weights: Weights | None, seed: int) -> Network:
    """A fresh network on the CPU, initialised from `seed`, then from its weight file or its model's weights."""
    torch.manual_seed(seed)
    if arch.user_files is not None and arch.user_files.code:
        context.listener.note(f"running code of your own: {arch.user_files.path}")
    network = build_or_refuse(arch, classes, context.root)
    skipped, source = list[str](), ""
    if weights is not None:
        source = weights.name
        skipped = load_weights(network, weights_file(weights.name, arch, context.runtime))
    elif arch.pretrained_from:
        source = arch.pretrained_from
        skipped = load_pretrained(network, arch, context.root)
    if skipped:
        context.listener.note(f"{source}: the head is new ({', '.join(skipped)} not loaded)")
    return network


def build_or_refuse(arch: Arch, classes: int, root: Path) -> Network:
    """`build`, with a fault in one's own file as an error of ours."""
    try:
        return build(arch, classes, root=root)
    except Exception as error:
        if arch.user_files is None or not arch.user_files.code:
            raise
        message = f"{arch.user_files.path} cannot be built: {type(error).__name__}: {error}"
        raise TrainingError(
            message, hint="it must have build(classes, **args) -> nn.Module, blocks first, head last"
        ) from error


def user_losses(context: Context, phases: Sequence[PhaseWork]) -> dict[str, Callable[..., Tensor]]:
    """The losses of the user's own that the phases name, by their file. Raises TrainingError: a file cannot be run."""
    found: dict[str, Callable[..., Tensor]] = {}
    for path in sorted({phase.losses.file.path for phase in phases if phase.losses.file}):
        context.listener.note(f"running code of your own: {path}")
        try:
            found[path] = user_function(context.root / path, "loss")
        except Exception as error:
            message = f"{path} cannot be used: {type(error).__name__}: {error}"
            raise TrainingError(message, hint="it must have loss(student, teacher, **args) -> scalar") from error
    return found


def network_file(work: Work) -> str:
    """The name of the file in which a stage of this work leaves its network. The work must make one."""
    assert work.network_file is not None, f"{work.kind} makes no network"
    return work.network_file


def load_network(artifact: Artifact, arch: Arch, classes: int, root: Path) -> Network:
    """The trained network of an artifact, on the CPU. Raises StoreError: the file does not fit the architecture."""
    network = build_or_refuse(arch, classes, root)
    path = artifact.file(network_file(artifact.manifest.work))
    try:
        network.net.load_state_dict(load_file(path))
    except Exception as error:
        raise StoreError(f"{path} does not fit {arch.arch}: {str(error).splitlines()[0]}") from error
    return network


def save_network(context: Context, network: Network) -> None:
    """Write the network with its manifest as metadata, so that it can be rebuilt from the file alone; of several ranks
    the first one does."""
    if not context.first:
        return
    tensors = {name: t.detach().cpu().contiguous() for name, t in network.net.state_dict().items()}
    manifest: Manifest = context.manifest
    text = json.dumps(manifest.model_dump(mode="json"), sort_keys=True, ensure_ascii=False)
    save_file(tensors, context.workspace.files / network_file(context.stage.work), metadata={"stagedkd": text})

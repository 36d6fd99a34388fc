"""The networks of stages: built from a seed, loaded from artifacts, written with their manifest."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# The type stubs of torch, safetensors and Parsl are incomplete.
from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load, save_file
from torch import Tensor

from stagedkd.errors import Advice, DataError, StagedkdError, StoreError, TrainingError, UsageError
from stagedkd.files import usual_rights
from stagedkd.models.build import build, class_dims, read_pretrained, user_function
from stagedkd.models.head import Fitted, Head, fit_head
from stagedkd.models.network import Network
from stagedkd.models.quantise import holds_quantisers, quantise
from stagedkd.models.weights import read_weights
from stagedkd.plan.kind import PhaseWork, Weights
from stagedkd.plan.runtime import Runtime
from stagedkd.plan.work import NetworkWork, Work
from stagedkd.spec.schema import Arch, Size, sides
from stagedkd.stages.context import Context
from stagedkd.stages.weights import named_by_torchvision, weights_file
from stagedkd.store.manifest import Manifest
from stagedkd.store.pinned import read_pinned
from stagedkd.store.store import Artifact

WEIGHTS_CHANGED = Advice("restore the file that stagedkd.lock names, or accept this one", "lock")


def device_of(name: str) -> torch.device:
    """The device of a runtime: `auto` takes CUDA, then MPS, then the CPU. Raises UsageError: it is not available."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    best = next(kind for kind, usable in available.items() if usable)
    if name == "auto":
        return torch.device(best)
    if not available[name]:
        raise UsageError(f"this machine has no {name} device", hint=f"use --device {best} or auto")
    return torch.device(name)


def new_network(
    context: Context, arch: Arch, classes: Sequence[str], weights: Weights | None, seed: int, *, trained: bool = True
) -> Network:
    """Build a network on the CPU, initialised from `seed`, then from its weight file or its model's weights.

    Args:
        classes: of the data, in the order of the outputs. trained: whether a training follows.
    Raises:
        DataError: the weights cannot be used; or the head would be new, and no training follows.
    """
    torch.manual_seed(seed)
    if arch.user_files is not None and arch.user_files.code:
        context.listener.note(f"running your own code: {arch.user_files.path}")
    network = build_or_refuse(arch, len(classes), context.root)
    source = weights.name if weights is not None else arch.pretrained_from
    if source:
        fitted = fit_weights(network, arch, classes, weights, context.runtime, trained=trained)
        fitted.load(network.net)
        for note in fitted.notes:
            context.listener.note(f"{source}: {note}")
    return network


def fit_weights(
    network: Network, arch: Arch, classes: Sequence[str], weights: Weights | None, runtime: Runtime, *, trained: bool
) -> Fitted:
    """Read the weights with which a network starts, with its head in the order of `classes`. The network is not
    changed; it may be on the meta device.

    Raises:
        DataError: see `new_network`; or the file is not the one of the lock. UsageError: the file does not exist.
    """
    root = Path(runtime.root)
    head = Head(tuple(classes), class_dims(network, arch, len(classes), root))
    if weights is not None:
        file = read_pinned(weights_file(weights.name, arch, runtime), weights.sha256, WEIGHTS_CHANGED)
        named, source = named_by_torchvision(weights.name, arch), weights.name
        given = read_weights(file, network, head, named)
    else:
        given, source = read_pretrained(network, arch, root), arch.pretrained_from
    try:
        fitted = fit_head(given, head)
    except DataError as error:
        raise DataError(f"{source}: {error.message}", hint=error.hint) from None
    if fitted.reason and not trained:
        message = f"{source}: with epochs: 0 parts of the head would stay random: {fitted.reason}"
        raise DataError(message, hint=f"raise epochs, or give weights for the {len(classes)} classes of the data")
    return fitted


def build_or_refuse(arch: Arch, classes: int, root: Path) -> Network:
    """Build a network. Raises TrainingError: the user's own file fails. DataError: it is not the one of the key."""
    try:
        return build(arch, classes, root=root)
    except StagedkdError:
        raise
    except Exception as error:
        if arch.user_files is None or not arch.user_files.code:
            raise
        message = f"{arch.user_files.path} cannot be built: {type(error).__name__}: {error}"
        hint = "it must define build(classes, **args) -> nn.Module, with the blocks first and the head last"
        raise TrainingError(message, hint=hint) from error


def user_losses(context: Context, phases: Sequence[PhaseWork]) -> dict[str, Callable[..., Tensor]]:
    """Load the user's own losses that the phases name, by file.

    Raises:
        TrainingError: a file cannot be run. DataError: it is not the one that the stage's key stands for.
    """
    functions: dict[str, Callable[..., Tensor]] = {}
    for path, digest in sorted({(f.path, f.digest) for phase in phases if (f := phase.losses.file)}):
        context.listener.note(f"running your own code: {path}")
        file = read_pinned(context.root / path, digest)
        try:
            functions[path] = user_function(file, "loss")
        except Exception as error:
            message = f"{path} cannot be used: {type(error).__name__}: {error}"
            raise TrainingError(message, hint="it must define loss(student, teacher, **args) -> scalar") from error
    return functions


def network_file(work: Work) -> str:
    """The name of the file to which a stage of this work writes its network. The work must make a network."""
    assert work.network_file is not None, f"{work.kind} makes no network"
    return work.network_file


def load_network(artifact: Artifact, arch: Arch, classes: int, root: Path) -> Network:
    """Load the trained network of an artifact on the CPU. Raises StoreError: the file does not fit the architecture."""
    network = build_or_refuse(arch, classes, root)
    work = artifact.manifest.work
    name = network_file(work)
    content = artifact.read(name)
    assert isinstance(work, NetworkWork)
    try:
        load_state(network, load(content), work.clip.seen(work.input))
    except Exception as error:
        path = artifact.folder / "files" / name
        raise StoreError(f"{path} does not fit {arch.arch}: {str(error).splitlines()[0]}") from error
    return network


def load_state(network: Network, state: Mapping[str, Tensor], view: tuple[int, Size]) -> None:
    """Load a state into a new network on the CPU, which gets quantisers if the state has them.

    Args:
        view: frames and size of the clips that it takes, as in `Clip.seen`.
    Raises:
        RuntimeError: the state does not fit.
    """
    if holds_quantisers(state):
        frames, size = view
        quantise(network, torch.zeros(2, 3, frames, *sides(size)))
    network.net.load_state_dict(state)


def save_network(context: Context, network: Network) -> None:
    """Write the network with its manifest as metadata, so that it can be rebuilt from the file alone. If there are
    several ranks, only the first one writes."""
    if not context.first:
        return
    tensors = {name: t.detach().cpu().contiguous() for name, t in network.net.state_dict().items()}
    manifest: Manifest = context.manifest
    text = json.dumps(manifest.model_dump(mode="json"), sort_keys=True, ensure_ascii=False)
    path = context.workspace.files / network_file(context.stage.work)
    with usual_rights(path):
        save_file(tensors, path, metadata={"stagedkd": text})

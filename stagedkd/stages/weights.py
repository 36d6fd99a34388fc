"""Weight files: a path below the project, or a torchvision name whose file torch's cache has or torch downloads."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
from __future__ import annotations

from pathlib import Path, PurePath

from stagedkd.errors import UsageError
from stagedkd.plan.lock import weights_id
from stagedkd.plan.runtime import Runtime
from stagedkd.spec.schema import Architecture, NetworkFields, Spec, Student, Teacher, is_weight_file


def weights_file(name: str, arch: Architecture, runtime: Runtime) -> Path:
    """Find the file of `weights: name`, and download it if torchvision provides it.

    Raises:
        UsageError: the file does not exist and cannot be downloaded. The hint says where to put it.
    """
    if is_weight_file(name):
        path = Path(runtime.root) / name
        if path.is_dir():
            hint = "name the weight file in it; for a model of transformers, use arch: hf with this folder as model"
            raise UsageError(f"weight file {path} is a folder", hint=hint)
        if not path.is_file():
            raise UsageError(f"weight file {path} does not exist", hint="give a path relative to the project's folder")
        return path
    assert arch.torchvision_name is not None, "check_rules allows weight names for torchvision's networks only"
    return _torchvision_file(arch.torchvision_name, name)


def named_by_torchvision(name: str, arch: Architecture) -> tuple[str, ...]:
    """Return the classes of torchvision's weights, in the order of the outputs; () for a file, which names its own."""
    if is_weight_file(name) or arch.torchvision_name is None:
        return ()
    from torchvision.models import get_model_weights  # pyright: ignore[reportMissingTypeStubs]

    return tuple(get_model_weights(arch.torchvision_name)[name].meta["categories"])


def _torchvision_file(arch: str, name: str) -> Path:
    import torch
    from torchvision.models import get_model_weights  # pyright: ignore[reportMissingTypeStubs]

    url: str = get_model_weights(arch)[name].url
    path = Path(torch.hub.get_dir()) / "checkpoints" / PurePath(url).name
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(url, str(path), hash_prefix=path.stem.rpartition("-")[2], progress=False)
        except Exception as error:
            hint = f"download {PurePath(url).name} on a machine with network access and put it in {path.parent}"
            raise UsageError(f"weights {name} of {arch} cannot be downloaded: {error}", hint=hint) from error
    return path


def all_weights(spec: Spec) -> dict[str, Teacher | Student]:
    """The networks of a spec that name weights, by the weights' name in the lock."""
    listed = spec.cascade if spec.cascade != "auto" else ()
    networks: list[Teacher | Student] = [spec.teacher, *spec.co_teachers, spec.student]
    networks += [n for n in listed if isinstance(n, NetworkFields)]
    return {weights_id(n.weights, n): n for n in networks if n.weights is not None}

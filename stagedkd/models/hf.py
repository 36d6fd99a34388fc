"""Video classifiers of Hugging Face's transformers: VideoMAE, TimeSformer, ViViT and V-JEPA 2, cut into their layers.

The networks are those of transformers, with the same parameter names, except V-JEPA 2's predictor, which a classifier
never runs. transformers takes seconds to import and is optional, so the functions that need it import it.

Shape legend: B clips, C channels, T frames, H, W pixels, L tokens, D token width, N classes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn

from stagedkd.errors import DataError, UsageError
from stagedkd.files import FileBytes
from stagedkd.models.head import Given, by_output
from stagedkd.models.network import Anatomy, Network, State
from stagedkd.spec.schema.networks.hf import HUB, HfArch, model_digest, model_files
from stagedkd.store.pinned import CHANGED, read_pinned

PART = re.compile(r"model-\d+-of-\d+\.safetensors")
INSTALL = "pip install 'stagedkd[hf]'"


@dataclass(frozen=True)
class _Family:
    """The parts of a family as paths in the network.

    name: of the classes in transformers. head: the modules behind the last layer, in order (a configuration may omit
    some). cls: whether token 0 is a CLS token, which has no place. time_last: whether tokens run through H, W and then
    T.
    """

    name: str
    stem: str
    layers: str
    head: tuple[str, ...]
    cls: bool = False
    time_last: bool = False


FAMILIES = {
    "videomae": _Family(
        "VideoMAE", "videomae.embeddings", "videomae.encoder.layer", ("videomae.layernorm", "fc_norm", "classifier")
    ),
    "timesformer": _Family(
        "Timesformer",
        "timesformer.embeddings",
        "timesformer.encoder.layer",
        ("timesformer.layernorm", "classifier"),
        cls=True,
        time_last=True,
    ),
    "vivit": _Family("Vivit", "vivit.embeddings", "vivit.layers", ("vivit.layernorm", "classifier"), cls=True),
    "vjepa2": _Family(
        "VJEPA2",
        "vjepa2.encoder.embeddings",
        "vjepa2.encoder.layer",
        ("vjepa2.encoder.layernorm", "pooler", "classifier"),
    ),
}


def hf(arch: HfArch, classes: int, root: Path) -> Network:
    """Build a network of transformers, randomly initialised from its configuration, with `classes` outputs.

    Args:
        root: the project's folder; if `arch.model` is a folder, it is relative to it.
    Raises:
        ValueError: the configuration is of an unsupported model type, has another number of layers than `arch.layers`,
            or cannot be built.
        UsageError: transformers is missing, or the model is neither a folder nor available from the hub.
        DataError: the folder is not the one that the network's key stands for.
    """
    model_type, config = _configuration(arch, classes, root)
    family = FAMILIES[model_type]
    try:
        net: nn.Module = getattr(_transformers(), f"{family.name}ForVideoClassification")(config)
    except Exception as error:  # transformers raises errors of many types for a wrong configuration
        raise ValueError(f"config.json of {arch.model} cannot be built: {_first_line(error)}") from error
    if model_type == "vjepa2":
        net.get_submodule("vjepa2").predictor = nn.Identity()  # used only in pre-training
    clip, patch = _sizes(config)
    grid = (clip[0] // patch[0], clip[1] // patch[1], clip[2] // patch[2])
    names = (f"layer{i + 1}" for i in range(arch.layers))
    paths = {"stem": (family.stem,), **{name: (f"{family.layers}.{i}",) for i, name in enumerate(names)}}
    head = tuple(path for path in family.head if _part(net, path) is not None)
    return Network(
        net,
        Anatomy(
            paths,
            head,
            partial(_finish, head=head),
            partial(_step, stem=family.stem.split(".")[0]),
            partial(_map, family=family, grid=grid),
            partial(_size_problem, model_type=model_type, clip=clip),
            from_map=None if family.cls else _tokens,  # a map lacks the CLS token
            embed=partial(_embed, head=head),
        ),
    )


def read_pretrained(network: Network, arch: HfArch, root: Path) -> Given:
    """Read what the weights of `arch.model` give a network that `hf` made from the same `arch`. The head is new if the
    number of classes differs or the model has none. A folder's weights are read only from .safetensors. The names of
    the outputs are those of `id2label` in config.json.

    Raises:
        DataError: the weights cannot be read or are incomplete. UsageError: see `hf`.
    """
    current = network.net.state_dict()
    classes = len(current["classifier.bias"])
    model_type, config = _configuration(arch, classes, root)
    labels = by_output(_raw_configuration(arch, root).get("id2label"))
    kind = getattr(_transformers(), f"{FAMILIES[model_type].name}ForVideoClassification")
    folder = _folder(arch, root)
    given: dict[str, Any] = {"state_dict": _weights(folder, arch)} if folder else {}
    try:
        with _quiet(), torch.random.fork_rng(devices=[]):
            pretrained, info = kind.from_pretrained(
                None if folder else arch.model,
                config=config,
                dtype=torch.float32,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                **given,
            )
    except Exception as error:
        raise DataError(f"the weights of {arch.model} cannot be read: {_first_line(error)}") from error
    mismatched = {name: saved for name, saved, _ in info["mismatched_keys"]}
    new = sorted((set(info["missing_keys"]) | mismatched.keys()) & current.keys())
    wrong = [name for name in new if not name.startswith(tuple(f"{path}." for path in network.anatomy.head))]
    if wrong:
        raise DataError(f"the weights of {arch.model} do not fit its config.json: {', '.join(wrong[:12])}")
    tensors = {name: tensor for name, tensor in pretrained.state_dict().items() if name in current and name not in new}
    lacking = [name for name in new if name.startswith("classifier.")]
    outputs = next((int(mismatched[name][0]) for name in lacking if name in mismatched), None) if lacking else classes
    return Given(tensors, tuple(new), outputs, labels if len(labels) == classes else ())


def _transformers() -> ModuleType:
    try:
        import transformers
    except ImportError as error:
        raise UsageError(f"transformers is not installed: {INSTALL}", hint=INSTALL) from error
    return transformers


def _folder(arch: HfArch, root: Path) -> Path | None:
    """Return the model's folder, or None if it is an id of the hub. Raises UsageError: the folder no longer exists."""
    folder = root / arch.model
    if folder.is_dir():
        return folder
    if arch.digest and not arch.digest.startswith(HUB):
        hint = "restore it, or set 'model' to a path relative to the project's folder"
        raise UsageError(f"the folder {folder} does not exist", hint=hint)
    return None


def _read_model(folder: Path, digest: str, *, pretrained: bool) -> dict[str, FileBytes]:
    """Read the files of a model folder once, by name. Raises DataError: they are not those that the key stands for."""
    files = {path.name: read_pinned(path, None) for path in model_files(folder, pretrained=pretrained)}
    if model_digest({name: file.digest for name, file in files.items()}) != digest:
        raise DataError(f"{folder} was changed: it is not the model that the stage's key stands for", hint=CHANGED)
    return files


@cache
def _config(folder: Path, digest: str, pretrained: bool) -> bytes:
    """Return config.json of a folder that was read and compared as a whole, once in a process."""
    return _read_model(folder, digest, pretrained=pretrained)["config.json"].content


def _weights(folder: Path, arch: HfArch) -> dict[str, Tensor]:
    """Return the weights of a folder: model.safetensors, or else all parts of it."""
    files = _read_model(folder, arch.digest, pretrained=True)
    names = [name for name in files if PART.fullmatch(name)]
    whole = ["model.safetensors"] if "model.safetensors" in files else names
    if not whole:
        raise DataError(f"{folder} has no model.safetensors", hint="write the folder with save_pretrained")
    try:
        return {name: tensor for file in whole for name, tensor in load(files[file].content).items()}
    except SafetensorError as error:
        raise DataError(f"the weights of {arch.model} cannot be read: {_first_line(error)}") from error


def _configuration(arch: HfArch, classes: int, root: Path) -> tuple[str, Any]:
    """Return the model's type and its configuration for `classes` outputs.

    Only the fields that describe the network are used. A config.json may also name other code, kernels or number
    formats to load; these are ignored."""
    transformers, raw = _transformers(), _raw_configuration(arch, root)
    model_type = str(raw.get("model_type"))
    if model_type not in FAMILIES:
        raise ValueError(f"{arch.model} is a {model_type}, which is not supported: use one of {', '.join(FAMILIES)}")
    kind = getattr(transformers, f"{FAMILIES[model_type].name}Config")
    fields = {*kind.__annotations__, "qkv_bias"} - {"model_type"}
    try:
        config = kind(**{name: value for name, value in raw.items() if name in fields}, num_labels=classes)
    except Exception as error:
        raise ValueError(f"config.json of {arch.model}: {_first_line(error)}") from error
    if config.num_hidden_layers != arch.layers:
        actual = config.num_hidden_layers
        raise ValueError(f"{arch.model} has {actual} layers, not {arch.layers}: set layers: {actual}")
    if model_type == "timesformer" and config.attention_type == "space_only":
        raise ValueError(f"{arch.model} has attention_type space_only, which gives a prediction per frame")
    if model_type == "timesformer" and not (isinstance(config.image_size, int) and isinstance(config.patch_size, int)):
        raise ValueError(f"{arch.model}: image_size and patch_size of a timesformer must be one number each")
    # set explicitly, since the last bits differ
    config._attn_implementation = "eager" if model_type == "timesformer" else "sdpa"
    return model_type, config


def _raw_configuration(arch: HfArch, root: Path) -> dict[str, Any]:
    """Return the content of config.json; {} if it is no map. Raises UsageError: there is none."""
    folder = _folder(arch, root)
    try:
        if folder is not None:
            (folder / "config.json").stat()
            raw = json.loads(_config(folder, arch.digest, arch.pretrained))
        else:
            raw = _transformers().PreTrainedConfig.get_config_dict(arch.model)[0]
    except (OSError, ValueError) as error:
        what = "has no config.json" if folder else "is neither a folder of the project nor available from the hub"
        raise UsageError(f"{arch.model} {what}: {_first_line(error)}") from error
    return raw if isinstance(raw, dict) else {"model_type": "none"}


def _first_line(error: Exception) -> str:
    """Return the first line of an error's message that is not empty, or the error's type."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


@contextmanager
def _quiet() -> Generator[None]:
    """Silence the reports and progress bars of transformers: `load_pretrained` reports what is new or wrong."""
    logging = cast(Any, _transformers()).utils.logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _sizes(config: Any) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Return (T, H, W) of the clip that a network is made for, and of the patch that becomes one token."""
    if config.model_type == "vjepa2":
        clip = (config.frames_per_clip, *_pair(config.crop_size))
    else:
        clip = (config.num_frames, *_pair(config.image_size))
    if config.model_type == "vivit":
        return clip, tuple(config.tubelet_size)
    return clip, (getattr(config, "tubelet_size", 1), *_pair(config.patch_size))


def _pair(size: int | list[int] | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def _part(net: nn.Module, path: str) -> nn.Module | None:
    """Return a module by its path, or None if the configuration omits it."""
    part: Any = net
    for name in path.split("."):
        part = getattr(part, name, None)
    return part


def _size_problem(size: tuple[int, int, int], model_type: str, clip: tuple[int, int, int]) -> str:
    """Return why the network cannot take a clip of this size, or ""."""
    if size == clip:
        return ""
    required, actual = ("x".join(map(str, s)) for s in (clip, size))
    return f"this {model_type} runs at {required} only, not {actual}"


def _step(module: nn.Module, state: Tensor, stem: str) -> Tensor:
    """Run one module. The state is the clip, then tokens (B, L, D). Some layers also return attention maps."""
    if state.ndim == 5:
        clip_BTCHW = state.transpose(1, 2)
        return module(clip_BTCHW, None) if stem == "videomae" else module(clip_BTCHW)  # None: no token is masked
    output = module(state)
    return output[0] if isinstance(output, tuple) else output


def _map(tokens_BLD: State, family: _Family, grid: tuple[int, int, int]) -> Tensor:
    """Return the tokens as a map (B, D, T', H', W'), without CLS."""
    feat_BDL = (tokens_BLD[:, 1:] if family.cls else tokens_BLD).transpose(1, 2)
    if family.time_last:
        return feat_BDL.unflatten(2, (*grid[1:], grid[0])).permute(0, 1, 4, 2, 3)
    return feat_BDL.unflatten(2, grid)


def _tokens(feat_BDTHW: Tensor) -> Tensor:
    """Return a map as tokens (B, L, D), the inverse of `_map` without CLS."""
    return feat_BDTHW.flatten(2).transpose(1, 2)


def _finish(net: nn.Module, tokens_BLD: Tensor, head: tuple[str, ...]) -> Tensor:
    """Run the head: a norm, then the mean, the attentive pooler or token 0, then the classifier."""
    return net.get_submodule("classifier")(_embed(net, tokens_BLD, head))


def _embed(net: nn.Module, tokens_BLD: Tensor, head: tuple[str, ...]) -> Tensor:
    """Return the feature in front of the classifier (B, D)."""
    x = tokens_BLD
    if head[0].endswith("layernorm"):
        x = net.get_submodule(head[0])(x)
    if "fc_norm" in head:
        return net.get_submodule("fc_norm")(x.mean(1))
    return net.get_submodule("pooler")(x) if "pooler" in head else x[:, 0]

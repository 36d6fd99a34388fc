"""The family `hf`: video classifiers of Hugging Face's transformers.

`model:` is a folder of the project, identified by its content, or an id of the hub.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, cast

from pydantic import Field

from stagedkd.spec.schema.base import Count, Word
from stagedkd.spec.schema.networks.base import (
    Architecture,
    Cut,
    DigestOf,
    StudentFields,
    TeacherFields,
    UserFiles,
    merge_cut,
)
from stagedkd.spec.schema.views import Size

HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*\Z")
HUB = "hub:"  # before the id in a digest


class HfArch(Architecture):
    """A video classifier of Hugging Face's transformers: VideoMAE, TimeSformer, ViViT or V-JEPA 2. It needs the extra
    `stagedkd[hf]`. `check`, `plan` and `explain` neither import transformers nor build the model."""

    unkeyed: ClassVar[frozenset[str]] = frozenset({"model", "params", "takes"})
    arch: Literal["hf"]
    """A video classifier of Hugging Face's transformers."""
    model: Word
    """A folder in the project with `config.json` and `.safetensors` files, keyed by their content; or an id of the hub
    such as `owner/name`, keyed by the id."""
    layers: Annotated[int, Field(ge=1, le=1024)]
    """Number of transformer layers of the model. A wrong number is refused before anything runs."""
    pretrained: bool = True
    """true: start from the model's weights. false: start from random weights in its configuration."""
    params: Count | None = None
    """Number of parameters without the head; needed for shares in `cascade` and for `cascade: auto`."""
    digest: str = Field(default="", repr=False)  # set by the loader: the folder's content or the hub's id
    takes: tuple[int, int, int] | None = Field(default=None, repr=False)  # set by the loader: see _clip_taken

    @property
    def block_names(self) -> tuple[str, ...]:
        return transformer_blocks(self.layers)

    @property
    def natural_cut(self) -> Cut:
        return transformer_cut(self.layers)

    @property
    def mergeable_cut(self) -> Cut:
        return single_layers(self.layers)

    @property
    def strides(self) -> None:
        return None

    @property
    def trunk_params(self) -> int | None:
        return self.params

    @property
    def title(self) -> str:
        return f"hf {self.model}"

    @property
    def pretrained_from(self) -> str:
        return self.model if self.pretrained else ""

    @property
    def unpinned_model(self) -> str:
        return self.pretrained_from if self.digest.startswith(HUB) else ""

    @property
    def runs_from_maps(self) -> None:
        return None  # config.json says whether there is a class token

    @property
    def fixed_input(self) -> tuple[int, Size] | None:
        if self.takes is None:
            return None  # only the built network knows
        frames, height, width = self.takes
        return frames, height if height == width else (height, width)

    @property
    def user_files(self) -> UserFiles | None:
        return None if self.digest.startswith(HUB) else UserFiles(self.model, self.digest, code=False)

    @classmethod
    def put_digest(cls, values: dict[str, Any], root: Path, digest_of: DigestOf) -> tuple[str, str, str]:
        return "model", *put_model_digest(values, root, digest_of)


class HfStudent(StudentFields, HfArch):
    """A student or assistant from transformers."""


class HfTeacher(TeacherFields, HfArch):
    """A teacher from transformers."""


def transformer_blocks(layers: int) -> tuple[str, ...]:
    """Return the block names of a network of `arch: hf`: stem (the embeddings), layer1 ... layerN."""
    return ("stem", *(f"layer{i + 1}" for i in range(layers)))


def transformer_cut(layers: int) -> Cut:
    """Cut the layers into 4 equal substages, or fewer if there are fewer layers. The stem is in the first one."""
    return merge_cut(single_layers(layers), min(4, layers))


def single_layers(layers: int) -> Cut:
    """Cut after every layer. The stem is with the first one."""
    names = transformer_blocks(layers)
    return names[:2], *((name,) for name in names[2:])


def put_model_digest(network: dict[str, Any], root: Path, digest_of: DigestOf) -> tuple[str, str]:
    """Put the digest of a network's `model`, and the clip that it takes, into its values. Nothing is imported or
    downloaded.

    Args:
        network: the values of an `arch: hf` network, before validation.
        root: the project's folder.
        digest_of: gives the SHA-256 of a file below the root; None if it is missing, unreadable or outside the root.
    Returns:
        (message, hint); both are "" if there is no problem.
    """
    name = network.get("model")
    if not isinstance(name, str) or not name:
        return "", ""  # validation will refuse it
    folder = root / name
    if not _is_folder(folder):
        network["digest"] = HUB + name
        hint = "give a folder with config.json, or an id such as owner/name"
        return ("", "") if HUB_ID.match(name) else (f"{name} is not a folder in the project", hint)
    pretrained = network.get("pretrained") is not False
    files = model_files(folder, pretrained=pretrained)
    if pretrained and len(files) == 1:
        return f"{name} has no .safetensors files", "write them with save_pretrained, or set pretrained: false"
    digests = {file.name: digest_of(file) for file in files}
    missing = [name for name, digest in digests.items() if digest is None]
    if missing:
        return f"{missing[0]} of {name} is missing or outside the project", "write the folder with save_pretrained"
    network["digest"] = model_digest({name: str(digest) for name, digest in digests.items()})
    network["takes"] = _clip_taken(folder / "config.json")
    return "", ""


def model_files(folder: Path, *, pretrained: bool) -> list[Path]:
    """Return the files of a model's folder that enter keys: config.json, and the weights unless they are not used."""
    return [folder / "config.json", *(sorted(folder.glob("*.safetensors")) if pretrained else ())]


def model_digest(digests: Mapping[str, str]) -> str:
    """Return the digest of a model from those of its files, by name, in the order of `model_files`."""
    text = "\n".join(f"{name} {digest}" for name, digest in digests.items())
    return hashlib.sha256(text.encode()).hexdigest()


def _clip_taken(config: Path) -> tuple[int, int, int] | None:
    """Return frames, height and width of the clips of a model; None if its config.json does not say them, or is wrong,
    which building the network reports."""
    try:
        fields: Any = json.loads(config.read_text("utf-8"))
    except (OSError, ValueError):
        return None
    values = cast("dict[str, Any]", fields) if isinstance(fields, dict) else {}
    names = ("frames_per_clip", "crop_size") if values.get("model_type") == "vjepa2" else ("num_frames", "image_size")
    frames, size = (values.get(name) for name in names)
    pair = tuple(cast("list[Any]", size)) if isinstance(size, list) else (size, size)
    clip = tuple(number for number in (frames, *pair) if isinstance(number, int))
    return (clip[0], clip[1], clip[2]) if len(clip) == len(pair) + 1 == 3 else None


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # a name that is too long
        return False

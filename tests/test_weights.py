"""Weight files as people have them: found under any name and prefix, refused in our words, their classes put in order.

Every pickle here is harmless: the objects in it hold values and run nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import pickle
import subprocess
import sys
import types
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchvision.models import get_model_weights

from stagedkd import compile_plan, load_spec
from stagedkd.errors import DataError, SpecError, UsageError
from stagedkd.files import FileBytes
from stagedkd.models.build import build, class_dims, read_pretrained
from stagedkd.models.head import Given, Head, fit_head, matched, named_classes
from stagedkd.models.network import Network
from stagedkd.models.resnet3d import resnet3d
from stagedkd.models.weight_file import Content, read_content, wanted_classes
from stagedkd.models.weights import read_weights
from stagedkd.plan.lock import DataLock, Lock
from stagedkd.plan.runtime import Runtime
from stagedkd.report.results import NetworkResult
from stagedkd.report.statistics import near_chance, wilson
from stagedkd.spec.schema import is_weight_file
from stagedkd.spec.schema.networks import Resnet3dArch
from stagedkd.spec.schema.networks.torchvision import ZOO, TorchvisionArch
from stagedkd.spec.schema.networks.tsm import TSM, TsmArch
from stagedkd.stages.weights import weights_file
from stagedkd.store.manifest import manifest_of
from tests.conftest import Command
from tests.pages import plain
from tests.test_models_more import arch as hf_arch
from tests.test_models_more import saved
from tests.tools import pinned

Tensors = dict[str, Tensor]
HEAD = Head(("a", "b", "c"), {"fc.weight": 0, "fc.bias": 0})
KEPT = "the head is kept: output 0 is 'a', output 1 is 'b', output 2 is 'c'"
UNNAMED = f"{KEPT}, as the data order them: the weights name no classes"
NAMED = f"{KEPT}, as the weights name them"
NEW = "the head is newly initialised (fc.bias, fc.weight not loaded)"


def pasted(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a command of a hint in the shell, where `python` is this environment's."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return subprocess.run(
        command, shell=True, cwd=folder, env=os.environ | {"PATH": path}, capture_output=True, text=True, check=False
    )


def network(classes: int = 3, seed: int = 0) -> Network:
    torch.manual_seed(seed)
    return resnet3d(4, (1,), "full", classes)


SAVED: Tensors = network(seed=1).net.state_dict()
MEAN: Tensors = {name: tensor + 1 for name, tensor in SAVED.items()}
TRUNK: Tensors = {name: tensor for name, tensor in SAVED.items() if not name.startswith("fc.")}
FIVE: Tensors = {**network(5, seed=2).net.state_dict(), **TRUNK}


def under(prefix: str, tensors: Tensors = SAVED) -> Tensors:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def mm(head: Tensors, meta: Any) -> dict[str, Any]:
    """A checkpoint as mmaction2 writes it."""
    fc = {f"cls_head.fc_cls.{name}": head[f"fc.{name}"] for name in ("weight", "bias")}
    return {"state_dict": {**under("backbone.", TRUNK), **fc}, "meta": meta}


def loaded(path: Path) -> tuple[Tensors, tuple[str, ...]]:
    """What a network holds after the weights of a file, and what was said."""
    made = network()
    fitted = fit_head(read_weights(FileBytes.read(path), made, HEAD), HEAD)
    fitted.load(made.net)
    return made.net.state_dict(), fitted.notes


def equal(one: Tensors, other: Tensors, but: str = "-") -> bool:
    return all(torch.equal(tensor, one[name]) for name, tensor in other.items() if not name.startswith(but))


BELOW = "the weights are those below '{}', without the prefix '{}'".format
PLAIN_BELOW = "the weights are those below '{}'".format

# name, what torch.save writes, whose tensors are loaded, notes
FOUND: list[tuple[str, Any, Tensors, list[str]]] = [
    ("plain", SAVED, SAVED, [UNNAMED]),
    (
        "module",
        under("module."),
        SAVED,
        ["the weights are those at the top level, without the prefix 'module.'", UNNAMED],
    ),
    (
        "slowfast",
        {"epoch": 4, "model_state": under("module."), "optimizer_state": {"state": {0: {"step": torch.tensor(1.0)}}}},
        SAVED,
        [BELOW("model_state", "module."), "not loaded: epoch, optimizer_state", UNNAMED],
    ),
    ("net", {"net": SAVED, "acc": 0.5}, SAVED, [PLAIN_BELOW("net"), "not loaded: acc", UNNAMED]),
    ("videomae", {"module": under("_orig_mod.")}, SAVED, [BELOW("module", "_orig_mod."), UNNAMED]),
    ("nested", {"model": under("module._orig_mod.")}, SAVED, [BELOW("model", "module._orig_mod."), UNNAMED]),
    ("deep", {"ckpt": {"model": {"weights": SAVED}}}, SAVED, [PLAIN_BELOW("ckpt.model.weights"), UNNAMED]),
    (
        "lightning",
        {"state_dict": under("net."), "hyper_parameters": {"class_names": ["a", "b", "c"]}, "callbacks": {}},
        SAVED,
        [BELOW("state_dict", "net."), "not loaded: hyper_parameters, callbacks", NAMED],
    ),
    (
        "timm",
        {"arch": "r3d", "state_dict": SAVED, "state_dict_ema": MEAN},
        MEAN,
        [
            PLAIN_BELOW("state_dict_ema"),
            "'state_dict_ema' and 'state_dict' fit: the first is taken, a mean of the weights over the training",
            "not loaded: arch, state_dict",
            UNNAMED,
        ],
    ),
    (
        "a mean without all tensors",
        {"model": SAVED, "model_ema": {name: MEAN[name] for name in MEAN if "running" not in name}},
        SAVED,
        [PLAIN_BELOW("model"), "not loaded: model_ema", UNNAMED],
    ),
    (
        "torch's AveragedModel",
        {"n_averaged": torch.tensor(7), **under("module.")},
        SAVED,
        ["the weights are those at the top level, without the prefix 'module.'", "not loaded: n_averaged", UNNAMED],
    ),
    (
        "a copy beside",
        {"state_dict": {**under("model."), **{f"ema.{n}": t for n, t in MEAN.items() if n.endswith("weight")}}},
        SAVED,
        [
            BELOW("state_dict", "model."),
            "not loaded: 7 tensors of another copy of the network, such as ema.stem.0.weight",
            UNNAMED,
        ],
    ),
    (
        "mmaction2",
        mm(SAVED, {"CLASSES": ("a", " b", "c")}),
        SAVED,
        [
            BELOW("state_dict", "backbone."),
            "the head is called cls_head.fc_cls there, and fc here",
            "not loaded: meta",
            NAMED,
        ],
    ),
    (
        "half",
        {n: t.half() if t.is_floating_point() else t for n, t in SAVED.items()},
        {n: t.half().to(t.dtype) for n, t in SAVED.items()},
        ["17 tensors of float16 are cast to float32", UNNAMED],
    ),
    (
        "placeholders",
        {"model": SAVED, "id2label": {i: f"LABEL_{i}" for i in range(3)}},
        SAVED,
        [PLAIN_BELOW("model"), "not loaded: id2label", UNNAMED],
    ),
    (
        "numbers",
        {"model": SAVED, "classes": ["0", "1", "2"]},
        SAVED,
        [PLAIN_BELOW("model"), "not loaded: classes", UNNAMED],
    ),
    (
        "other counts",
        {"model": SAVED, "classes": ["x", "y"]},
        SAVED,
        [PLAIN_BELOW("model"), "not loaded: classes", UNNAMED],
    ),
]


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize(("name", "content", "wanted", "notes"), FOUND, ids=[row[0] for row in FOUND])
def test_the_network_is_found_in_a_file(
    tmp_path: Path, name: str, content: Any, wanted: Tensors, notes: list[str], legacy: bool
) -> None:
    torch.save(content, tmp_path / "w.pth", _use_new_zipfile_serialization=not legacy)
    tensors, said = loaded(tmp_path / "w.pth")
    assert equal(tensors, wanted) and list(said) == notes


HEADS: list[tuple[str, Any, str]] = [
    ("five classes", {"model": FIVE}, "the weights have 5 classes, the data 3"),
    ("mmengine", mm(FIVE, {"dataset_meta": {"classes": tuple("abcde")}}), "the weights have 5 classes, the data 3"),
    ("no head", {"model": TRUNK}, "the weights have none"),
    (
        "other classes",
        {"model": SAVED, "classes": ["a", "x", "y"]},
        "the weights are for other classes: 'x', 'y' of 3 are not in the data",
    ),
    (
        "one twice",
        {"model": SAVED, "classes": ["a", "b", "b"]},
        "the weights are for other classes: some are named twice",
    ),
]


@pytest.mark.parametrize(("content", "reason"), [row[1:] for row in HEADS], ids=[row[0] for row in HEADS])
def test_a_head_for_other_classes_is_new_and_the_reason_is_said(tmp_path: Path, content: Any, reason: str) -> None:
    torch.save(content, tmp_path / "w.pth")
    tensors, said = loaded(tmp_path / "w.pth")
    assert equal(tensors, SAVED, but="fc.") and equal(tensors, network().net.state_dict(), but=("stem", "layer"))
    assert said[-1] == f"{NEW}: {reason}"


NAMINGS: list[dict[str, Any]] = [  # in each, output 0 is c, output 1 is a, output 2 is b
    {"classes": ["c", "a", "b"]},
    {"CLASSES": ("C", "A", "B")},
    {"id2label": {0: "c", 1: "a", 2: "b"}},
    {"id2label": {"2": "b", "0": "c", "1": "a"}},
    {"class_to_idx": {"a": 1, "b": 2, "c": 0}},
    {"meta": {"dataset_meta": {"classes": ["c ", " a", "b"]}}},
    {"hyper_parameters": {"data": {"label2id": {"a": 1, "b": 2, "c": 0}}}},
]


@pytest.mark.parametrize("naming", NAMINGS, ids=[json.dumps(naming) for naming in NAMINGS])
def test_a_head_in_another_order_is_put_into_that_of_the_data(tmp_path: Path, naming: dict[str, Any]) -> None:
    torch.save({"model": SAVED, **naming}, tmp_path / "w.pth")
    tensors, said = loaded(tmp_path / "w.pth")
    assert equal(tensors, TRUNK)
    for name in ("fc.weight", "fc.bias"):
        assert torch.equal(tensors[name], torch.stack([SAVED[name][i] for i in (1, 2, 0)]))
    assert said[-1] == (
        "the head is kept, and put into the order of the data: "
        "output 0 is 'a' (was 1), output 1 is 'b' (was 2), output 2 is 'c' (was 0)"
    )
    metadata = {name: json.dumps(value) for name, value in naming.items()}
    save_file(SAVED, tmp_path / "w.safetensors", metadata)
    again, said_again = loaded(tmp_path / "w.safetensors")
    assert equal(again, tensors) and said_again[-1] == said[-1]


def test_a_head_that_cannot_be_moved_is_refused(tmp_path: Path) -> None:
    """Where the user's own code builds for one number of classes alone, the head's tensors are not known."""
    made, head = network(), Head(("a", "b", "c"), {})
    torch.save({"model": SAVED, "classes": ["a", "b", "c"]}, tmp_path / "w.pth")
    assert fit_head(read_weights(FileBytes.read(tmp_path / "w.pth"), made, head), head).notes[-1] == NAMED
    for names in (["b", "a", "c"], ["a", "b", "x"]):
        torch.save({"model": SAVED, "classes": names}, tmp_path / "w.pth")
        with pytest.raises(DataError) as error:
            fit_head(read_weights(FileBytes.read(tmp_path / "w.pth"), made, head), head)
        outputs = ", ".join(f"output {i} is '{name}'" for i, name in enumerate(names))
        assert error.value.message == f"the weights are for other classes, or another order: {outputs}"


def test_names_are_matched_as_loosely_as_is_unique() -> None:
    assert matched(("caf\u00e9", "b"), ("b ", "cafe\u0301")) == [1, 0]
    assert matched(("Run", "run"), ("run", "Run")) == [1, 0]
    assert matched(("Run", "walk"), ("WALK", "run")) == [1, 0]
    assert matched(("riding_a_bike", "run"), ("run", "riding a bike")) == [1, 0]
    assert matched(("Run", "run"), ("RUN", "run")) is None
    assert matched(("a", "b"), ("a", "b", "c")) is None and matched(("a", "b"), ("a", "x")) is None


def test_numbers_are_names_where_the_data_have_numbers(tmp_path: Path) -> None:
    """Twelve folders 0 ... 11 as torchvision's ImageFolder sorts them: as words."""
    torch.manual_seed(0)
    made, count = resnet3d(4, (1,), "full", 12), 12
    tensors = made.net.state_dict()
    order = sorted(str(i) for i in range(count))
    torch.save({"model": tensors, "classes": order}, tmp_path / "w.pth")
    head = Head(tuple(str(i) for i in range(count)), HEAD.dims)
    fitted = fit_head(read_weights(FileBytes.read(tmp_path / "w.pth"), made, head), head)
    rows = [order.index(str(i)) for i in range(count)]
    assert torch.equal(fitted.tensors["fc.weight"], tensors["fc.weight"][rows]) and rows[2] == 4
    torch.save({"model": tensors}, tmp_path / "w.pth")
    plain = fit_head(read_weights(FileBytes.read(tmp_path / "w.pth"), made, head), head)
    kept = "the head is kept: output 0 is '0', output 1 is '1', ... output 11 is '11'"
    assert plain.notes[-1] == f"{kept}, as the data order them: the weights name no classes"


WRONG: list[tuple[str, Any, str, str]] = [  # name, content, message behind the path, hint
    (
        "two networks",
        {"student": SAVED, "teacher": MEAN},
        " holds several networks that fit: 'student' and 'teacher'",
        "write the one that you mean into a file of its own: torch.save(content[KEY], FILE)",
    ),
    (
        "a decoder",
        {"model": {**SAVED, "decoder.w": torch.zeros(2)}},
        " does not fit the network ('model'):\n    decoder.w is not in the network",
        "",
    ),
    (
        "another head",
        {**SAVED, "aux.weight": torch.zeros(3, 4)},
        " does not fit the network:\n    aux.weight is not in the network",
        "",
    ),
    (
        "a hole",
        {n: t for n, t in SAVED.items() if n != "stem.1.bias"},
        " does not fit the network:\n    stem.1.bias is missing in the file",
        "",
    ),
    (
        "half a head",
        {n: t for n, t in SAVED.items() if n != "fc.bias"},
        " does not fit the network:\n    fc.bias is missing in the file",
        "",
    ),
    (
        "a width",
        {**SAVED, "stem.1.bias": torch.zeros(5)},
        " does not fit the network:\n    stem.1.bias: (5,) in the file, (4,) in the network",
        "",
    ),
    (
        "int8",
        {**SAVED, "stem.1.bias": torch.zeros(4, dtype=torch.int8)},
        " does not fit the network:\n    stem.1.bias: int8 in the file, float32 in the network",
        "",
    ),
    (
        "sparse",
        {**SAVED, "fc.weight": SAVED["fc.weight"].to_sparse()},
        " does not fit the network:\n    fc.weight: it is sparse in the file",
        "",
    ),
    (
        "no numbers",
        {**SAVED, "stem.1.bias": torch.zeros(4, device="meta")},
        " does not fit the network:\n    stem.1.bias: it has no numbers in the file (meta device)",
        "",
    ),
    (
        "NaN",
        {**SAVED, "stem.1.bias": torch.full((4,), float("nan"))},
        " has numbers that are not finite: stem.1.bias",
        "its training diverged, or the file is damaged: take an earlier checkpoint",
    ),
    (
        "too large for float32",
        {**SAVED, "stem.1.bias": torch.full((4,), 1e300, dtype=torch.float64)},
        " has numbers that are not finite: stem.1.bias",
        "its training diverged, or the file is damaged: take an earlier checkpoint",
    ),
    ("no tensor", {"epoch": 3}, " does not hold a state dict", "save the weights of a network: net.state_dict()"),
    (
        "one tensor",
        SAVED["fc.weight"],
        " does not hold a state dict",
        "save the weights of a network: net.state_dict()",
    ),
    ("a list", [SAVED], " does not hold a state dict", "save the weights of a network: net.state_dict()"),
    (
        "two namings",
        {"model": SAVED, "classes": ["b", "a", "c"], "id2label": {0: "a", 1: "b", 2: "c"}},
        ": the file names its classes in 2 ways: output 0 is 'a', output 1 is 'b', output 2 is 'c'; output 0 is 'b', output 1 is 'a', output 2 is 'c'",
        "keep one of them in the file",
    ),
]


@pytest.mark.parametrize(("content", "message", "hint"), [row[1:] for row in WRONG], ids=[row[0] for row in WRONG])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_what_does_not_fit_is_listed(tmp_path: Path, content: Any, message: str, hint: str) -> None:
    path = tmp_path / "w.pth"
    torch.save(content, path)
    with pytest.raises(DataError) as error:
        loaded(path)
    assert error.value.message == f"{path}{message}" and error.value.hint == hint


def test_names_in_a_file_cannot_steer_the_terminal(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save({"mo\x1b[31mdel": {"x\x1b]0;y\x07\u202ez": torch.zeros(1), **SAVED}}, path)
    with pytest.raises(DataError) as error:
        loaded(path)
    assert (
        error.value.message == f"{path} does not fit the network ('mo?[31mdel'):\n    x?]0;y??z is not in the network"
    )


# Files that are no tensors

AGAIN = "copy or download it again, and compare its size with that of the source"
CUT = "it is damaged, or was cut off before its end"
UNPACK = "unpack it, and name the file inside"
OWN_SAVE = 'torch.save(net.state_dict(), "w-tensors.pth")'


def blobs(folder: Path) -> dict[str, tuple[bytes, str, str]]:
    """Kinds of files: the content, what is said of it, the hint."""
    torch.save(SAVED, folder / "zip")
    torch.save(SAVED, folder / "legacy", _use_new_zipfile_serialization=False)
    save_file(SAVED, folder / "st")
    np.savez(folder / "np.npz", a=np.zeros(3))
    whole, legacy, st = ((folder / name).read_bytes() for name in ("zip", "legacy", "st"))
    arrays = (
        "convert it:\n    python -c 'import numpy, torch; "
        'torch.save({n: torch.from_numpy(a) for n, a in numpy.load("FOLDER/w.pth").items()}, "FOLDER/w-tensors.pth")\''
    )
    program = f"in the program that wrote it, where you trust it: {OWN_SAVE}"
    return {
        "nothing": (b"", "it is empty", AGAIN),
        "LFS": (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n",
            "it is a pointer of Git LFS, not the weights themselves",
            "run: git lfs pull",
        ),
        "annex": (
            b"/annex/objects/SHA256E-s3--0.pth\n",
            "it is a pointer of git-annex, not the weights themselves",
            "run: git annex get FILE",
        ),
        "HTML": (
            b"\n<!DOCTYPE html>\n<html>",
            "it is a web page, not weights",
            "download the file itself: the link led to a page about it",
        ),
        "XML": (
            b"<?xml version='1.0'?><Error>",
            "it is a web page, not weights",
            "download the file itself: the link led to a page about it",
        ),
        "text": (b"Not Found\nsorry", "it is text: Not Found", AGAIN),
        "JSON": (b'{"message": "gone"}', 'it is text: {"message": "gone"}', AGAIN),
        "gzip": (b"\x1f\x8b\x08...", "it is a compressed file", UNPACK),
        "HDF5": (b"\x89HDF\r\n\x1a\n", "it is an HDF5 file, as Keras writes it", "convert it to a .safetensors file"),
        "npy": (
            b"\x93NUMPY\x01",
            "it is a NumPy array",
            "save the named tensors of a network: torch.save(net.state_dict(), FILE)",
        ),
        "npz": ((folder / "np.npz").read_bytes(), "it is an archive of NumPy arrays", arrays),
        "tar": (
            b"x" * 257 + b"ustar\x0000",
            "it is a tar archive, the form of torch.save before 2017",
            f"in the program that wrote it, with a newer torch: {OWN_SAVE}",
        ),
        "zeros": (bytes(4096), "it begins with zeros, so it was not written to its end", AGAIN),
        "noise": (
            b"\x01\x00\xff\xfe" * 200,
            "it is neither a .safetensors file nor one of torch.save, or it is damaged",
            AGAIN,
        ),
        "half a file": (whole[: len(whole) // 2], CUT, AGAIN),
        "the first bytes": (whole[:40], CUT, AGAIN),
        "half a legacy file": (legacy[: len(legacy) // 2], CUT, AGAIN),
        "legacy without storages": (legacy[:-8], CUT, AGAIN),
        "half a safetensors": (st[: len(st) // 2], "it is a damaged .safetensors file, or one that was cut off", AGAIN),
        "its header": (st[:100], "it is a damaged .safetensors file, or one that was cut off", AGAIN),
        "pickle": (pickle.dumps({"a": 1}), "it is a plain pickle, not a file of torch.save", program),
        "pickle of objects": (
            pickle.dumps(argparse.Namespace()),
            "it is a plain pickle with objects of argparse.Namespace, not a file of torch.save",
            program,
        ),
    }


@pytest.mark.parametrize("suffix", [".pth", ".bin", ".safetensors"])
def test_what_is_no_file_of_tensors_is_said(tmp_path: Path, suffix: str) -> None:
    """The suffix does not matter: first bytes say what a file is."""
    for kind, (content, message, hint) in blobs(tmp_path).items():
        path = tmp_path / f"w{suffix}"
        path.write_bytes(content)
        with pytest.raises(DataError) as error:
            read_content(FileBytes.read(path))
        assert error.value.message == f"{path} cannot be read: {message}", kind
        assert error.value.hint == hint.replace("w.pth", path.name).replace("FOLDER", str(path.parent)), kind


def test_the_suffix_does_not_matter(tmp_path: Path) -> None:
    save_file(SAVED, tmp_path / "w.pth")
    torch.save(SAVED, tmp_path / "w.safetensors")
    assert equal(loaded(tmp_path / "w.pth")[0], SAVED) and equal(loaded(tmp_path / "w.safetensors")[0], SAVED)
    names = ["a.pt", "b.PTH", "c.pyth", "d.bin", "e.SafeTensors", "f.ckpt", "g.pth.tar", "dir/h.pt"]
    assert all(map(is_weight_file, names))
    assert not any(map(is_weight_file, ["KINETICS400_V1", "a.onnx", "b.npz", "c.index.json", "d.pkl", "pth"]))


HARMLESS: list[tuple[str, Any, str]] = [
    ("namespace", argparse.Namespace(lr=1), "argparse.Namespace"),
    ("simple", types.SimpleNamespace(lr=1), "types.SimpleNamespace"),
    ("path", pathlib.PurePosixPath("x"), "pathlib.PurePosixPath"),
    ("number", np.float64(0.5), "numpy._core.multiarray.scalar, numpy.dtype"),
    ("array", np.zeros(3, np.int32), "numpy._core.multiarray._reconstruct, numpy.ndarray, numpy.dtype"),
]


@pytest.mark.slow
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize(("value", "classes"), [row[1:] for row in HARMLESS], ids=[row[0] for row in HARMLESS])
def test_pickled_objects_are_named_and_the_hint_works(tmp_path: Path, value: Any, classes: str, legacy: bool) -> None:
    path = tmp_path / "my w.pth"
    torch.save({"model": SAVED, "args": value, "epoch": 3}, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(DataError) as error:
        read_content(FileBytes.read(path))
    reason = f"beside tensors, it holds pickled objects of {classes}, and a pickle can run any code"
    assert error.value.message == f"{path} cannot be read: {reason}" and error.value.__cause__ is None
    where, command = error.value.hint.split("\n    ")
    assert where == "write its tensors alone into a new file, where you trust it:" and "weights_only" not in command
    done = pasted(command, tmp_path.parent)  # not where the file is: a spec's paths are relative to the project
    assert done.returncode == 0, done.stderr
    tensors, said = loaded(tmp_path / "my w-tensors.pth")
    assert equal(tensors, SAVED) and said[0] == PLAIN_BELOW("model")


def test_a_refusal_repeats_nothing_of_torch(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    for content, reason in (
        (
            nn.Sequential(nn.Linear(2, 2)),
            "it holds a whole network as a pickled object (torch.nn.modules.container.Sequential, torch.nn.modules.linear.Linear), not its tensors alone",
        ),
        (
            {"model": SAVED, "parser": argparse.HelpFormatter},
            "beside tensors, it holds pickled objects of argparse.HelpFormatter, and a pickle can run any code",
        ),
    ):
        torch.save(content, path)
        with pytest.raises(DataError) as error:
            read_content(FileBytes.read(path))
        assert error.value.message == f"{path} cannot be read: {reason}"
        assert (
            error.value.hint.endswith(f"in the program that wrote it: {OWN_SAVE}")
            or error.value.hint == f"in the program that wrote it, where you trust it: {OWN_SAVE}"
        )
        assert (
            not {"\x1b", "weights_only", "2.6"} & {*error.value.render().split()} and "\x1b" not in error.value.render()
        )


def test_names_of_classes_are_read_without_unpickling(tmp_path: Path) -> None:
    """The classes of every protocol, and those in the memo: none of them exists, so unpickling would fail."""
    for protocol in range(6):
        blob = pickle.dumps([argparse.Namespace(a=1), argparse.Namespace(b=types.SimpleNamespace())], protocol)
        path = tmp_path / "w.pth"
        path.write_bytes(blob.replace(b"argparse", b"argparsX"))
        found = wanted_classes(FileBytes.read(path))
        assert {"argparsX.Namespace", "types.SimpleNamespace"} <= {*found}, protocol
    path.write_bytes(b"\x80\x04cos\nsystem\n")
    assert wanted_classes(FileBytes.read(path)) == ["os.system"]
    with pytest.raises(DataError, match=r"it is a plain pickle with objects of os\.system, not a file of torch.save"):
        read_content(FileBytes.read(path))


def test_a_torchscript_program_is_refused_and_its_hint_works(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(nn.Linear(2, 3)).save(tmp_path / "w.pt")
    with pytest.raises(DataError) as error:
        read_content(FileBytes.read(tmp_path / "w.pt"))
    assert error.value.message.endswith(
        "w.pt cannot be read: it is a TorchScript program (torch.jit.save), not tensors alone"
    )
    assert pasted(error.value.hint.split("\n    ")[1], tmp_path.parent).returncode == 0
    assert set(read_content(FileBytes.read(tmp_path / "w-tensors.pth")).tree) == {"weight", "bias"}


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_parts_of_a_network_are_refused_and_the_hint_joins_them(tmp_path: Path, suffix: str) -> None:
    save: Callable[[Any, Path], Any] = save_file if suffix == ".safetensors" else torch.save
    halves = [dict(list(SAVED.items())[i::2]) for i in (0, 1)]
    for i, half in enumerate(halves, 1):
        save(half, tmp_path / f"model-0000{i}-of-00002{suffix}")
    path = tmp_path / f"model-00001-of-00002{suffix}"
    with pytest.raises(DataError) as error:
        loaded(path)
    assert error.value.message == f"{path} cannot be read: it is one of 2 parts of a network"
    assert pasted(error.value.hint.split("\n    ")[1], tmp_path.parent).returncode == 0
    assert equal(loaded(tmp_path / f"model{suffix}")[0], SAVED)


def test_a_folder_is_no_weight_file(tmp_path: Path) -> None:
    (tmp_path / "net.bin").mkdir()
    arch, runtime = Resnet3dArch(arch="resnet3d"), Runtime(root=str(tmp_path))
    with pytest.raises(UsageError, match=r"net\.bin is a folder") as error:
        weights_file("net.bin", arch, runtime)
    assert (
        error.value.hint
        == "name the weight file in it; for a model of transformers, use arch: hf with this folder as model"
    )


# The head that a spec asks for


def test_the_tensors_with_a_part_for_each_class_are_found() -> None:
    assert class_dims(network(), Resnet3dArch(arch="resnet3d", width=4, blocks=(1,)), 3, Path()) == HEAD.dims


@pytest.mark.slow
def test_a_model_of_transformers_names_its_classes_in_config_json(tmp_path: Path) -> None:
    plain = saved(tmp_path / "net", num_labels=3, id2label={0: "c", 1: "a", 2: "b"})
    arch, head = pinned(hf_arch(), tmp_path), Head(("a", "b", "c"), {"classifier.weight": 0, "classifier.bias": 0})
    made, clip = build(arch, 3, root=tmp_path).eval(), torch.randn(2, 3, 4, 16, 16)
    assert class_dims(made, arch, 3, tmp_path) == head.dims
    fitted = fit_head(read_pretrained(made, arch, tmp_path), head)
    fitted.load(made.net)
    with torch.no_grad():
        torch.testing.assert_close(made(clip), plain(clip.transpose(1, 2)).logits[:, [1, 2, 0]])
    assert fitted.notes[0].startswith("the head is kept, and put into the order of the data: output 0 is 'a' (was 1)")
    other = fit_head(read_pretrained(made, arch, tmp_path), Head(("x", "y", "z"), head.dims))
    assert other.reason == "the weights are for other classes: 'c', 'a', 'b' of 3 are not in the data"
    wide = build(arch, 5, root=tmp_path)
    five = fit_head(read_pretrained(wide, arch, tmp_path), Head(tuple("abcde"), head.dims))
    assert five.reason == "the weights have 3 classes, the data 5"


def test_our_own_files_name_the_classes_of_their_data(project: Path) -> None:
    plan = compile_plan(load_spec("specs/tiny.yaml"))
    text = manifest_of(plan, plan.stage("student")).model_dump_json()
    content = Content({}, {"stagedkd": text})
    assert named_classes(content, 4, tuple("wxyz")) == ("right", "left", "down", "up")
    (project / "specs" / "video.yaml").write_text(VIDEO.replace("epochs: 0", "epochs: 1"), "utf-8")
    entry = DataLock(fingerprint="0" * 64, classes=("b", "a"), clips=9, files={"x": "1:0"})
    lock = Lock(data={"folder:videos": entry}, weights={"r3d_18/KINETICS400_V1": "0" * 64})
    plan = compile_plan(load_spec("specs/video.yaml"), lock)
    content = Content({}, {"stagedkd": manifest_of(plan, plan.stage("teacher")).model_dump_json()})
    assert named_classes(content, 2, ("a", "b")) == ("b", "a")
    assert named_classes(content, 3, ("a", "b", "c")) == ()
    older = manifest_of(plan, plan.stage("teacher")).model_dump_json().replace('"version":', '"version":9')
    assert named_classes(Content({}, {"stagedkd": older}), 2, ("a", "b")) == ("b", "a")
    with pytest.raises(DataError, match="another version of stagedkd made it, and the order of its classes"):
        named_classes(Content({}, {"stagedkd": "{}"}), 2, ("a", "b"))


def test_a_new_norm_does_not_take_the_classifier_with_it() -> None:
    """VideoMAE's fc_norm is a part of the head that knows nothing of classes."""
    tensors = {"classifier.weight": torch.eye(2), "classifier.bias": torch.zeros(2)}
    head = Head(("a", "b"), {"classifier.weight": 0, "classifier.bias": 0})
    fitted = fit_head(Given(tensors, ("fc_norm.weight",), 2, ("b", "a")), head)
    assert torch.equal(fitted.tensors["classifier.weight"], torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
    assert fitted.new == ("fc_norm.weight",) and fitted.reason == "the weights lack fc_norm.weight"
    lost = fit_head(Given({}, ("classifier.bias", "classifier.weight"), 5), head)
    assert lost.reason == "the weights have 5 classes, the data 2"


def test_numbered_data_are_told_that_they_can_be_named() -> None:
    fitted = fit_head(Given({"fc.weight": torch.eye(2)}, (), 2, ("walk", "run")), Head(("0", "1"), {"fc.weight": 0}))
    assert fitted.reason.endswith("are not in the data; the data number their classes, and data.classes can name them")


def test_a_file_with_keys_that_are_no_words_is_read(tmp_path: Path) -> None:
    torch.save({**SAVED, 0: "x", ("a", 1): 2}, tmp_path / "w.pth")
    tensors, said = loaded(tmp_path / "w.pth")
    assert equal(tensors, SAVED) and "not loaded: 0, ('a', 1)" in said


def test_the_classes_of_torchvisions_weights_are_counted() -> None:
    archs = [TorchvisionArch.model_validate({"arch": name}) for name in ZOO]
    archs += [TsmArch.model_validate({"arch": "tsm", "backbone": name}) for name in TSM]
    for arch in archs:
        for name in arch.weight_names:
            categories = get_model_weights(str(arch.torchvision_name))[name].meta["categories"]
            assert len(categories) == arch.weight_classes, (arch, name)


VIDEO = """\
data: {kind: folder, path: videos}
clip: {frames: 8, size: 32}
teacher: {arch: r3d_18, weights: KINETICS400_V1, epochs: 0}
student: {arch: resnet3d, width: 4, blocks: [1, 1]}
distill: {phases: {joint: {epochs: 1, losses: {kd: 1}}}}
"""


def test_a_head_that_would_stay_random_is_refused_as_soon_as_the_classes_are_known(project: Path) -> None:
    path = project / "specs" / "video.yaml"
    path.write_text(VIDEO, "utf-8")
    spec = load_spec(path)
    assert compile_plan(spec).stage("teacher").key is None  # the lock does not know the classes
    for count in (12, 400):
        entry = DataLock(fingerprint="0" * 64, classes=tuple(f"c{i}" for i in range(count)), clips=9, files={})
        lock = Lock(data={"folder:videos": entry})
        if count == 400:
            assert compile_plan(spec, lock).stage("teacher")
            continue
        with pytest.raises(SpecError) as error:
            compile_plan(spec, lock)
        (problem,) = error.value.problems
        assert (
            problem.message
            == "teacher: with epochs: 0 the head would stay random: KINETICS400_V1 has 400 classes, the data 12"
        )
        assert problem.hint == "raise epochs, or give weights for the 12 classes of the data"
    simulated = "data={$replace: {kind: shapes, classes: 4, train: 8, val: 4, test: 4}}"
    with pytest.raises(SpecError, match="KINETICS400_V1 has 400 classes, the data 4") as error:
        load_spec(path, [simulated])
    place = error.value.problems[0].place
    assert place is not None and (place.line, place.text[place.column - 1 :][:23]) == (3, "weights: KINETICS400_V1")


def test_labels_are_declared_for_weights_alone_and_move_no_key(project: Path) -> None:
    declared = "teacher.labels={source: Kinetics-400, count: 240000}"
    with pytest.raises(
        SpecError, match="labels are declared for weights that were made elsewhere, and this network has none"
    ):
        load_spec("specs/tiny.yaml", [declared])
    lock = Lock(weights={"t.pth": "0" * 64})
    plain = compile_plan(load_spec("specs/tiny.yaml", ["teacher.weights=t.pth", "teacher.labels=same"]), lock)
    said = compile_plan(load_spec("specs/tiny.yaml", ["teacher.weights=t.pth", declared]), lock)
    assert [s.key for s in plain.stages] == [s.key for s in said.stages] and said.stage("teacher").key
    origin = "the teacher comes from t.pth and is trained further here; the labels behind its weights: "
    assert origin + "240,000 of Kinetics-400 (declared)" in said.notes
    assert origin + "not declared (teacher.labels: {source: ..., count: ...})" in plain.notes
    true = compile_plan(load_spec("specs/tiny.yaml", ["teacher.weights=t.pth", "teacher.epochs=0"]), lock)
    assert not [note for note in true.notes if "true labels" in note]


# What the report says


def test_near_chance_is_wilsons_lower_end_against_the_commonest_class() -> None:
    """Of 100 clips, 1 / 10 by guessing: Wilson's lower end of 16 right is 0.1010, of 15 right 0.0931."""
    assert near_chance(wilson(15, 100), 10, None) and not near_chance(wilson(16, 100), 10, None)
    assert near_chance(wilson(16, 100), 10, 0.3) and not near_chance(wilson(60, 100), 10, 0.3)
    assert near_chance(wilson(0, 0), 2, None)


def result(**changes: Any) -> NetworkResult:
    values = {
        "name": "teacher",
        "arch": "a",
        "top1": 0.1,
        "interval": (0.05, 0.2),
        "top5": None,
        "ece": 0.0,
        "per_class": {},
        "params": 1,
    }
    values |= {
        "flops": 1,
        "labels": "none",
        "labelled_clips": 0,
        "training_clips": 0,
        "steps": 0,
        "train_flops": None,
        "seconds": None,
    }
    return NetworkResult(**values | {"latency": None, "key": "k"} | changes)


def test_the_table_says_which_labels_made_a_network() -> None:
    ready = "240,000 of Kinetics-400 (declared)"
    trained = {"labelled_clips": 120, "training_clips": 1200}
    assert result().labels_used == "not trained here"
    assert result(declared=ready).labels_used == ready
    assert result(labels="same", **trained).labels_used == "120 of 1200"
    assert result(labels="all", **trained).labels_used == "120 of 1200 (true)"
    assert result(labels="same", declared=ready, **trained).labels_used == f"{ready}, then 120 of 1200"


# By the command line

BRIGHT = '''\
"""A network that knows grey levels by their brightness."""
from collections import OrderedDict

from torch import nn


class Mean(nn.Module):
    def forward(self, x):
        return x.mean(dim=(2, 3, 4), keepdim=True)


class Head(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.fc = nn.Linear(1, classes)

    def forward(self, x):
        return self.fc(x.flatten(1).mean(1, keepdim=True))


def build(classes):
    return nn.Sequential(OrderedDict(stem=nn.Conv3d(3, 3, 1), mean=Mean(), head=Head(classes)))
'''
READY = """\
data: {kind: csv, path: names.csv}
clip: {frames: 4, size: 16}
augment: {crop: 1, jitter: 0, hue: 0, flip: 0}
train: {batch: 8, warmup_epochs: 0}
teacher:
  {arch: file, path: nets/bright.py, weights: nets/t.PTH, epochs: 0, labels: {source: "[my] set", count: 4800},
   input: {normalize: none}}
student: {arch: resnet3d, width: 4, blocks: [1, 1, 1], epochs: 1}
distill: {phases: {joint: {losses: {kd: 1.0}}}}
"""


@pytest.fixture
def grey(project: Path, clips: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Tensors]:
    """A project with a ready teacher, and the tensors of the user who brought it: output i is the i-th grey level."""
    folder = clips / "people" / "11_numeric_ids"
    (project / "nets").mkdir()
    (project / "nets" / "bright.py").write_text(BRIGHT, "utf-8")
    (project / "specs" / "ready.yaml").write_text(READY, "utf-8")
    monkeypatch.setenv("STAGEDKD_DATA", str(folder))
    return project, load_file(folder / "nets" / "teacher.safetensors")


def results_of(project: Path) -> dict[str, Any]:
    return json.loads((project / "results" / "ready" / "metrics.json").read_text("utf-8"))


@pytest.mark.slow
def test_a_ready_teacher_of_a_checkpoint_is_right_in_every_clip(grey: tuple[Path, Tensors], stagedkd: Command) -> None:
    project, tensors = grey
    content = {"epoch": 9, "model_state": under("module.", tensors), "optimizer_state": {}}
    torch.save(content, project / "nets" / "t.PTH")
    found = stagedkd("run", "specs/ready.yaml")
    assert found.returncode == 0, found.stderr
    for note in (
        BELOW("model_state", "module."),
        "not loaded: epoch, optimizer_state",
        "the head is kept: output 0 is 'class00', output 1 is 'class01', ... output 11 is 'class11'",
    ):
        assert f"note: nets/t.PTH: {note}" in found.stderr, found.stderr
    teacher = results_of(project)["teacher"]
    assert teacher["top1"] == 1.0 and teacher["labels"] == "none" and "chance" not in found.stdout
    assert "4,800 of [my] set (declared)" in found.stdout and "true labels" not in found.stdout + found.stderr
    page = (project / "results" / "ready" / "report.html").read_text("utf-8")
    assert "<td>4,800 of [my] set (declared)</td>" in plain(page)

    # the same network with its outputs shuffled, and named: it is put in order
    names = [f"class{i:02}" for i in range(12)]
    order = [7, 3, 11, 0, 5, 1, 10, 2, 9, 4, 8, 6]
    shuffled = {n: t[order] if n.startswith("head.") else t for n, t in tensors.items()}
    torch.save({"model": shuffled, "classes": [names[i] for i in order]}, project / "nets" / "t.PTH")
    assert stagedkd("lock", "specs/ready.yaml").returncode == 0
    again = stagedkd("run", "specs/ready.yaml")
    assert again.returncode == 0 and results_of(project)["teacher"]["top1"] == 1.0, again.stderr
    assert (
        "put into the order of the data: output 0 is 'class00' (was 3), output 1 is 'class01' (was 5)" in again.stderr
    )

    # shuffled and not named: it is wrong everywhere, and that is said at the end and in the report
    torch.save({"model": shuffled}, project / "nets" / "t.PTH")
    stagedkd("lock", "specs/ready.yaml")
    wrong = stagedkd("run", "specs/ready.yaml", "--set", "teacher.labels=same")
    assert wrong.returncode == 0, wrong.stderr
    note = next(line for line in wrong.stdout.splitlines() if "near chance" in line)
    assert note == (
        "note: the teacher is near chance on the val split: top-1 0.0% (95% interval 0.0% to 24.2%), and guessing gives "
        "8.3%. It may have nothing to teach: do the classes of nets/t.PTH have the order of the data, and were its clips "
        "normalised and sampled like these (input.normalize, clip.sampler, clip.stride)?"
    )
    (project_page,) = (project / "results").glob("ready*labels*/report.html")
    assert "the teacher is near chance on the val split" in project_page.read_text("utf-8")
    assert "not trained here" in wrong.stdout


@pytest.mark.slow
def test_a_ready_teacher_that_cannot_be_used_stops_the_run_before_a_clip_is_read(
    grey: tuple[Path, Tensors], stagedkd: Command
) -> None:
    project, tensors = grey
    path = project / "nets" / "t.PTH"
    fewer = {n: t[:5] if n.startswith("head.") else t for n, t in tensors.items()}
    other = [f"other{i}" for i in range(12)]
    for content, message, hint in (
        (
            {"model": fewer},
            "nets/t.PTH: with epochs: 0 parts of the head would stay random: the weights have 5 classes, the data 12",
            "raise epochs, or give weights for the 12 classes of the data",
        ),
        (
            {"model": tensors, "classes": other},
            "nets/t.PTH: with epochs: 0 parts of the head would stay random: the weights are for other classes: 'other0', 'other1', 'other2' and 9 more of 12 are not in the data",
            "raise epochs, or give weights for the 12 classes of the data",
        ),
        (
            {"model": tensors, "args": argparse.HelpFormatter},
            f"{path} cannot be read: beside tensors, it holds pickled objects of argparse.HelpFormatter, and a pickle can run any code",
            "write its tensors alone",
        ),
    ):
        torch.save(content, path)
        stagedkd("lock", "specs/ready.yaml")
        found = stagedkd("run", "specs/ready.yaml")
        assert found.returncode == 1, found.stderr
        assert f"error: stage teacher: {message}\n  help: {hint}" in found.stderr, found.stderr
        assert not list((project / "store").glob("*-*")), "something was made"

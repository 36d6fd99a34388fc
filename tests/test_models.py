"""Networks: equal to torchvision's, cut where the zoo says, run no further than asked."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import get_args

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision.models import get_model

from stagedkd.errors import DataError
from stagedkd.models.build import build
from stagedkd.models.network import Network
from stagedkd.models.resnet3d import resnet3d
from stagedkd.models.shapes import measure
from stagedkd.models.torchvision_video import meta_trunk_params, torchvision_video
from stagedkd.spec.schema.networks import FileArch, Resnet3dArch, TorchvisionArch
from stagedkd.spec.schema.networks.base import merge_cut
from stagedkd.spec.schema.networks.resnet3d import resnet3d_trunk_params, width_for
from stagedkd.spec.schema.networks.torchvision import ZOO
from tests.conftest import OWN_NET
from tests.tools import load_weights, pinned

SIZE = {"mvit": (16, 224), "swin3d": (8, 64), "s3d": (16, 64), "resnet": (8, 32)}
CONFIGS = [(8, (1, 1, 1), "full"), (16, (2, 1), "r2plus1d"), (12, (1, 2, 1, 1), "mixed"), (4, (1,), "full")]


@pytest.mark.parametrize("arch", ZOO)
def test_the_zoo_says_what_is_built(arch: str) -> None:
    entry = ZOO[arch]
    frames, size = entry.input or SIZE[entry.family]
    shape = measure(lambda: torchvision_video(arch, 7), frames, size)
    assert tuple(shape.maps) == entry.blocks == tuple(name for substage in entry.substages for name in substage)
    assert shape.trunk_params == entry.trunk_params == meta_trunk_params(arch)
    grids = [shape.maps[substage[-1]] for substage in entry.substages]
    assert len(grids) == 4 and all(len(grid) == 4 for grid in grids)
    assert all(below[0] > above[0] or below[1:] != above[1:] for above, below in zip(grids, grids[1:], strict=False))


@pytest.mark.parametrize(("width", "blocks", "conv"), CONFIGS)
def test_resnet3d_has_the_closed_forms_parameters(width: int, blocks: tuple[int, ...], conv: str) -> None:
    shape = measure(lambda: resnet3d(width, blocks, conv, 5), 8, 24)  # pyright: ignore[reportArgumentType]
    assert shape.trunk_params == resnet3d_trunk_params(width, blocks, conv)
    assert width_for(shape.trunk_params, blocks, conv) == width


def test_flops_are_twice_the_multiply_adds() -> None:
    """R3D-18 at 16x112x112: 40.7 G multiply-adds (torchvision's model table)."""
    shape = measure(lambda: torchvision_video("r3d_18", 400), 16, 112)
    assert shape.flops == pytest.approx(2 * 40.7e9, rel=0.01)


@pytest.mark.parametrize(
    "arch", ["r3d_18", "mc3_18", "s3d", "swin3d_t", pytest.param("mvit_v2_s", marks=pytest.mark.slow)]
)
def test_logits_are_torchvisions(arch: str) -> None:
    torch.manual_seed(0)
    frames, size = SIZE[ZOO[arch].family]
    plain = get_model(arch, weights=None, num_classes=7).eval()
    network = torchvision_video(arch, 7).eval()
    network.net.load_state_dict(plain.state_dict())
    clip = torch.randn(1, 3, frames, size, size)
    if arch == "s3d":
        plain.avgpool = nn.AvgPool3d((2, 2, 2), stride=1)  # what torchvision's fixed window would be at this size
    with torch.no_grad():
        torch.testing.assert_close(network(clip), plain(clip), rtol=1e-5, atol=1e-6)


def count_calls(network: Network) -> list[str]:
    seen: list[str] = []
    for name in network.blocks:
        for module in network.block_modules(name):
            module.register_forward_hook(lambda *_, name=name: seen.append(name))
    for module in network.head_modules:
        module.register_forward_hook(lambda *_: seen.append("head"))
    return seen


def test_only_what_is_needed_is_run() -> None:
    network = resnet3d(4, (1, 1, 1), "full", 3)
    seen, clip = count_calls(network), torch.randn(2, 3, 4, 16, 16)
    maps, logits = network.run(clip, taps=("layer1",), head=False)
    assert seen == ["stem", "layer1"] and set(maps) == {"layer1"} and logits is None
    seen.clear()
    maps, logits = network.run(clip, upto="layer2", head=False)
    assert seen == ["stem", "layer1", "layer2"] and not maps
    seen.clear()
    maps, logits = network.run(clip, taps=("layer1",))
    assert seen == ["stem", "layer1", "layer2", "layer3", "head"] and logits is not None and logits.shape == (2, 3)
    assert maps["layer1"].shape == (2, 4, 4, 8, 8)


def test_a_copy_stands_alone() -> None:
    network = resnet3d(4, (1,), "full", 3).eval()
    twin = copy.deepcopy(network)
    clip = torch.randn(1, 3, 4, 16, 16)
    with torch.no_grad():
        before = twin(clip)
        for parameter in network.parameters():
            parameter.add_(1)
        assert torch.equal(twin(clip), before) and not torch.equal(network(clip), before)


def test_weights_keep_torchvisions_names_and_the_head_is_replaced(tmp_path: Path) -> None:
    plain = get_model("r3d_18", weights=None)
    for suffix in (".safetensors", ".pth"):
        path = tmp_path / f"r3d{suffix}"
        save_file(plain.state_dict(), path) if suffix == ".safetensors" else torch.save(plain.state_dict(), path)
        network = torchvision_video("r3d_18", 5)
        assert load_weights(network, path, TorchvisionArch(arch="r3d_18")) == ["fc.bias", "fc.weight"]
        assert torch.equal(
            network.net.state_dict()["layer4.1.conv2.1.weight"], plain.state_dict()["layer4.1.conv2.1.weight"]
        )
        assert torch.equal(network.net.state_dict()["stem.0.weight"], plain.state_dict()["stem.0.weight"])


def test_wrong_weights_are_listed(tmp_path: Path) -> None:
    small = Resnet3dArch(arch="resnet3d", width=4, blocks=(1,))
    save_file({"stem.0.weight": torch.zeros(1), "other": torch.zeros(2)}, tmp_path / "w.safetensors")
    with pytest.raises(DataError, match=r"(?s)other is not in the network.*missing in the file"):
        load_weights(resnet3d(4, (1,), "full", 3), tmp_path / "w.safetensors", small)
    (tmp_path / "bad.pth").write_bytes(b"\x80\x04cos\nsystem\n")
    with pytest.raises(DataError, match="cannot be read"):
        load_weights(resnet3d(4, (1,), "full", 3), tmp_path / "bad.pth", small)


def test_a_wrong_input_names_the_right_one() -> None:
    with pytest.raises(ValueError, match="mvit runs at 16x224x224 only, not 8x112x112"):
        measure(lambda: torchvision_video("mvit_v2_s", 5), 8, 112)
    with pytest.raises(ValueError, match="s3d needs at least"):
        measure(lambda: torchvision_video("s3d", 5), 4, 32)


def test_ones_own_network(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN_NET, "utf-8")
    network = build(pinned(FileArch(arch="file", path="own.py", args={"width": 8}), tmp_path), 5, root=tmp_path)
    assert network.blocks == ("stem", "mid") and network(torch.randn(2, 3, 4, 16, 16)).shape == (2, 5)
    (tmp_path / "none.py").write_text("def build(classes):\n    return None\n", "utf-8")
    with pytest.raises(ValueError, match="at least two named children"):
        build(pinned(FileArch(arch="file", path="none.py"), tmp_path), 5, root=tmp_path)


def test_cuts_merge_evenly() -> None:
    stages = ZOO["s3d"].substages
    assert merge_cut(stages, 4) == stages
    assert merge_cut(stages, 2) == (stages[0] + stages[1], stages[2] + stages[3])
    with pytest.raises(ValueError, match="4 natural substages, fewer than 5"):
        merge_cut(stages, 5)


def test_every_torchvision_network_builds_by_name() -> None:
    assert get_args(TorchvisionArch.model_fields["arch"].annotation) == tuple(ZOO)

"""Networks of `arch: tsm` and `arch: hf`: equal to what they are made of, cut where the zoo says."""

from __future__ import annotations

import copy
import itertools
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchvision.models import get_model, get_model_weights

from stagedkd import compile_plan, load_spec, run
from stagedkd.errors import DataError, SpecError, UsageError
from stagedkd.experiment.locking import lock_specs
from stagedkd.experiment.preflight import preflight
from stagedkd.models.build import build
from stagedkd.models.hf import hf
from stagedkd.models.network import Network, channels_last
from stagedkd.models.shapes import measure
from stagedkd.models.tsm import temporal_shift, tsm
from stagedkd.plan.lock import Lock
from stagedkd.plan.runtime import Runtime, load_runtime
from stagedkd.plan.work import DistillWork, TeachWork
from stagedkd.spec.schema.networks import HfArch, HfStudent, TsmArch, TsmStudent
from stagedkd.spec.schema.networks.hf import transformer_cut
from stagedkd.spec.schema.networks.tsm import TSM
from tests.tools import file_bytes, load_pretrained, load_weights, pinned

BACKBONES = [
    "mobilenet_v3_small",
    "mobilenet_v2",
    "resnet18",
    *(pytest.param(name, marks=pytest.mark.slow) for name in ("mobilenet_v3_large", "resnet50")),
]

# ---------------------------------------------------------------- tsm


def by_the_paper(x_BTCHW: Tensor, moved: int) -> Tensor:
    """The shift of Lin et al. 2019 (section 3), place by place: channels below `moved` show the next frame, the next
    `moved` the one before, and beyond the clip there are zeros."""
    found = torch.zeros_like(x_BTCHW)
    clips, frames, channels = x_BTCHW.shape[:3]
    for b, t, c in itertools.product(range(clips), range(frames), range(channels)):
        source = t + 1 if c < moved else t - 1 if c < 2 * moved else t
        if 0 <= source < frames:
            found[b, t, c] = x_BTCHW[b, source, c]
    return found


@pytest.mark.parametrize(
    ("channels", "share", "moved"),
    [(8, 0.125, 1), (24, 0.125, 3), (20, 0.125, 2), (6, 0.5, 3), (100, 0.29, 29), (7, 0.125, 0)],
)
def test_the_shift_is_the_papers(channels: int, share: float, moved: int) -> None:
    x_BTCHW = torch.randn(2, 5, channels, 2, 3, dtype=torch.float64)
    found = temporal_shift(x_BTCHW.flatten(0, 1), 5, share).unflatten(0, (2, 5))
    assert torch.equal(found, by_the_paper(x_BTCHW, moved))


def settled(network: Network) -> Network:
    """In float64, with statistics of batch norms as after training and a head that says something: in a fresh mobilenet
    nothing of the clip would reach the logits."""
    network.train()
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    for module in norms:
        module.momentum = None
    with torch.no_grad():
        network(torch.randn(4, 3, 4, 32, 32))
    for module in norms:
        module.momentum = 0.1
    for module in network.head_modules[-1].modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.3)
    return network.double().eval()


def same(found: Tensor, wanted: Tensor) -> None:
    """Equal logits, which must differ between clips or nothing is said."""
    assert wanted.std(0).min() > 1e-3
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-8)


def first_convolutions(net: nn.Module) -> Iterator[nn.Module]:
    """Of every residual branch: what the shift stands before."""
    for module in net.modules():
        kind = type(module).__name__
        if kind in ("BasicBlock", "Bottleneck"):
            yield module.get_submodule("conv1")
        elif kind == "InvertedResidual" and module.use_res_connect:
            branch = getattr(module, "conv", None) or module.get_submodule("block")
            yield next(m for m in branch.modules() if isinstance(m, nn.Conv2d))


@pytest.mark.parametrize("backbone", BACKBONES)
def test_tsm_is_torchvisions_network_with_a_shift_before_each_residual_branch(backbone: str) -> None:
    torch.manual_seed(0)
    network = settled(tsm(backbone, 0.125, 7))
    plain = get_model(backbone, weights=None, num_classes=7).double().eval()
    plain.load_state_dict(network.net.state_dict())
    frames = 5

    def shifted(_: nn.Module, inputs: tuple[Tensor]) -> Tensor:
        x_BTCHW = inputs[0].unflatten(0, (-1, frames))
        return by_the_paper(x_BTCHW, x_BTCHW.shape[2] // 8).flatten(0, 1)

    hooks = [module.register_forward_pre_hook(shifted) for module in first_convolutions(plain)]
    expected = {"resnet18": 8, "resnet50": 16, "mobilenet_v2": 10, "mobilenet_v3_small": 6, "mobilenet_v3_large": 10}
    assert len(hooks) == expected[backbone]
    clip = torch.randn(2, 3, frames, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        wanted = plain(clip.transpose(1, 2).flatten(0, 1)).unflatten(0, (2, frames)).mean(1)
        same(network(clip), wanted)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_without_a_shift_frames_are_alone(backbone: str) -> None:
    torch.manual_seed(0)
    network, clip = settled(tsm(backbone, 0.0, 7)), torch.randn(2, 3, 4, 32, 32, dtype=torch.float64)
    plain = get_model(backbone, weights=None, num_classes=7).double().eval()
    plain.load_state_dict(network.net.state_dict())
    with torch.no_grad():
        each = torch.stack([plain(clip[:, :, t]) for t in range(4)])
        same(network(clip), each.mean(0))
        mixed = clip[:, :, [2, 0, 3, 1]]
        same(network(mixed), network(clip))
        moving = tsm(backbone, 0.125, 7).double().eval()
        moving.net.load_state_dict(plain.state_dict())
        assert (moving(mixed) - moving(clip)).abs().max() > 1e-3  # and with one, order counts


@pytest.mark.parametrize("backbone", BACKBONES)
def test_tsm_learns_in_every_parameter(backbone: str) -> None:
    torch.manual_seed(0)
    network = build(TsmArch(arch="tsm", backbone=backbone), 5, root=Path()).train()  # pyright: ignore[reportArgumentType]
    logits = network(torch.randn(2, 3, 8, 32, 32))
    assert logits.shape == (2, 5)
    nn.functional.cross_entropy(logits, torch.tensor([1, 4])).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0 or name.endswith(".bias") or "bn" in name, name


@pytest.mark.parametrize("backbone", TSM)
def test_the_zoo_says_what_tsm_is(backbone: str) -> None:
    entry = TSM[backbone]
    shape = measure(lambda: tsm(backbone, 0.125, 7), 4, 64)
    assert tuple(shape.maps) == entry.blocks == tuple(name for substage in entry.substages for name in substage)
    assert shape.trunk_params == entry.trunk_params
    assert entry.weights == tuple(weights.name for weights in get_model_weights(backbone))
    assert [shape.maps[substage[-1]][1:] for substage in entry.substages] == [(4, s, s) for s in (16, 8, 4, 2)]
    grids = [shape.maps[name][2:] for name in entry.blocks]
    assert len(set(grids[1:])) == len(grids) - 1 or entry.family == "resnet2d"  # a stage wherever the stride changes
    network = tsm(backbone, 0.125, 7)
    inside = [p for name in network.blocks for m in network.block_modules(name) for p in m.parameters()]
    inside += [p for m in network.head_modules for p in m.parameters()]
    assert {id(p) for p in inside} == {id(p) for p in network.parameters()} and len(inside) == len(
        {id(p) for p in inside}
    )
    built = TsmStudent(arch="tsm", backbone=backbone)  # pyright: ignore[reportArgumentType]
    assert built.natural_cut == entry.substages


def test_every_backbone_builds_by_name() -> None:
    assert set(get_args(TsmArch.model_fields["backbone"].annotation)) == set(TSM)


def taps_agree(network: Network, clip: Tensor) -> None:
    """Runs that stop early give the same maps as a full one, and run nothing behind."""
    seen: list[str] = []
    for name in network.blocks:
        for module in network.block_modules(name):
            for leaf in (part for part in module.modules() if not list(part.children())):
                leaf.register_forward_hook(lambda *_, name=name: seen.append(name))
    with torch.no_grad():
        full, logits = network.run(clip, taps=network.blocks)
        assert logits is not None and torch.equal(logits, network(clip)) and tuple(full) == network.blocks
        for i, name in enumerate(network.blocks):
            seen.clear()
            maps, none = network.run(clip, taps=(name,), head=False)
            assert none is None and torch.equal(maps[name], full[name]) and maps[name].ndim == 5
            assert set(seen) == set(network.blocks[: i + 1])
            upto, _ = network.run(clip, upto=name, taps=network.blocks[:1], head=False)
            assert torch.equal(upto[network.blocks[0]], full[network.blocks[0]])
        twin = copy.deepcopy(network)
        for parameter in network.parameters():
            parameter.add_(1)
        assert torch.equal(twin(clip), logits) and not torch.equal(network(clip), logits)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_tsm_is_run_as_far_as_asked(backbone: str) -> None:
    torch.manual_seed(0)
    taps_agree(tsm(backbone, 0.125, 3).eval(), torch.randn(2, 3, 4, 32, 32))


def test_maps_of_tsm_keep_clips_and_frames_apart() -> None:
    """Frame 2 of clip 1 is changed; without a shift, only there does any map change."""
    torch.manual_seed(0)
    network, clip = tsm("resnet18", 0.0, 3).eval(), torch.randn(3, 3, 4, 32, 32)
    other = clip.clone()
    other[1, :, 2] += 1
    with torch.no_grad():
        before, after = (network.run(x, taps=network.blocks)[0] for x in (clip, other))
    for name in network.blocks:
        moved = (before[name] != after[name]).any(1).flatten(2).any(2)
        assert moved.nonzero().tolist() == [[1, 2]], name


def test_imagenet_weights_load_by_their_own_names(tmp_path: Path) -> None:
    for backbone in TSM:
        plain = get_model(backbone, weights=None)
        given = {
            name: tensor for name, tensor in plain.state_dict().items() if not name.endswith("num_batches_tracked")
        }
        torch.save(given, tmp_path / "old.pth")  # files from before 2018 have no counters
        save_file(plain.state_dict(), tmp_path / "new.safetensors")
        for name in ("old.pth", "new.safetensors"):
            network = tsm(backbone, 0.125, 5)
            head = "fc" if backbone.startswith("resnet") else "classifier.3" if "v3" in backbone else "classifier.1"
            assert load_weights(network, tmp_path / name, TsmArch(arch="tsm", backbone=backbone)) == [
                f"{head}.bias",
                f"{head}.weight",
            ]
            own = network.net.state_dict()
            assert all(torch.equal(own[n], t) for n, t in given.items() if not n.startswith(head))


def test_weights_and_clips_of_both_ranks_are_laid_out_channels_last() -> None:
    torch.manual_seed(0)
    network, clip = settled(tsm("mobilenet_v2", 0.125, 3)), torch.randn(2, 3, 4, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        before = network(clip)
        channels_last(network)
        weights = {name: weight for name, weight in network.net.named_parameters() if weight.ndim == 4}
        depthwise, pointwise = weights["features.1.conv.0.0.weight"], weights["features.1.conv.1.weight"]
        assert (depthwise.shape[1], *pointwise.shape[2:]) == (1, 1, 1)  # contiguous in both layouts
        assert all(weight.stride(1) == 1 and weight.stride(3) == weight.shape[1] for weight in weights.values())
        after = network(clip.contiguous(memory_format=torch.channels_last_3d))
    same(after, before)


# ---------------------------------------------------------------- hf

SMALL: dict[str, Any] = {"hidden_size": 24, "num_hidden_layers": 5, "num_attention_heads": 2, "num_labels": 7}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {  # classes' name, and what makes a tiny one for 4x16x16
    "videomae": ("VideoMAE", {**SMALL, "image_size": 16, "patch_size": 8, "num_frames": 4, "intermediate_size": 32}),
    "videomae_token": (
        "VideoMAE",
        {**SMALL, "image_size": 16, "patch_size": 8, "num_frames": 4, "use_mean_pooling": False},
    ),
    "timesformer": (
        "Timesformer",
        {**SMALL, "image_size": 16, "patch_size": 8, "num_frames": 4, "intermediate_size": 32},
    ),
    "timesformer_joint": (
        "Timesformer",
        {**SMALL, "image_size": 16, "patch_size": 8, "num_frames": 4, "attention_type": "joint_space_time"},
    ),
    "vivit": (
        "Vivit",
        {**SMALL, "image_size": 16, "tubelet_size": [2, 8, 8], "num_frames": 4, "intermediate_size": 32},
    ),
    "vjepa2": (
        "VJEPA2",
        {
            **SMALL,
            "crop_size": 16,
            "patch_size": 8,
            "frames_per_clip": 4,
            "pred_hidden_size": 24,
            "pred_num_attention_heads": 2,
            "pred_num_hidden_layers": 1,
            "num_pooler_layers": 1,
        },
    ),
}


def saved(folder: Path, family: str = "videomae", **changes: Any) -> nn.Module:
    """A tiny network of transformers with random weights, and its folder as save_pretrained writes it."""
    import transformers

    kind, config = FAMILIES[family]
    torch.manual_seed(3)
    with torch.random.fork_rng(devices=[]):
        made = getattr(transformers, f"{kind}ForVideoClassification")(
            getattr(transformers, f"{kind}Config")(**config | changes)
        )
        for name, parameter in made.named_parameters():
            nn.init.normal_(parameter, mean=float(parameter.ndim == 1 and name.endswith("weight")), std=0.3)
    made.save_pretrained(folder)
    return made.eval()


def arch(name: str = "net", layers: int = 5, pretrained: bool = True) -> HfArch:
    return HfArch(arch="hf", model=name, layers=layers, pretrained=pretrained)


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_transformers(family: str, tmp_path: Path) -> None:
    plain = saved(tmp_path / "net", family)
    network = build(pinned(arch(), tmp_path), 7, root=tmp_path).eval()
    clip = torch.randn(2, 3, 4, 16, 16)
    assert load_pretrained(network, pinned(arch(), tmp_path), tmp_path) == []
    with torch.no_grad():
        wanted = plain(clip.transpose(1, 2)).logits
        torch.testing.assert_close(network(clip), wanted)
    assert wanted.std(0).min() > 1e-3
    assert not [name for name in network.net.state_dict() if "predictor" in name]


@pytest.mark.parametrize("family", FAMILIES)
def test_hf_is_cut_into_its_layers(family: str, tmp_path: Path) -> None:
    saved(tmp_path / "net", family)
    torch.manual_seed(0)
    network = hf(pinned(arch(), tmp_path), 7, tmp_path).eval()
    assert network.blocks == ("stem", "layer1", "layer2", "layer3", "layer4", "layer5")
    shape = measure(lambda: hf(pinned(arch(), tmp_path), 7, tmp_path), 4, 16)
    depth = 4 if family.startswith("timesformer") else 2
    assert set(shape.maps.values()) == {(24, depth, 2, 2)} and shape.flops > 0
    inside = [p for name in network.blocks for m in network.block_modules(name) for p in m.parameters()]
    inside += [p for m in network.head_modules for p in m.parameters()]
    assert {id(p) for p in inside} == {id(p) for p in network.parameters()}
    nn.functional.cross_entropy(network.train()(torch.randn(2, 3, 4, 16, 16)), torch.tensor([1, 4])).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
    taps_agree(network.eval(), torch.randn(2, 3, 4, 16, 16))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_token_lies_where_its_pixels_do(family: str, tmp_path: Path) -> None:
    """A pixel is changed; of the stem's map only the place of its patch changes."""
    saved(tmp_path / "net", family)
    network = hf(pinned(arch(), tmp_path), 7, tmp_path).eval()
    tubelet = 1 if family.startswith("timesformer") else 2
    clip = torch.randn(1, 3, 4, 16, 16)
    for t, h, w in itertools.product(range(4), range(2), range(2)):
        other = clip.clone()
        other[0, 1, t, 8 * h + 5, 8 * w + 3] += 1
        with torch.no_grad():
            before, after = (network.run(x, taps=("stem",), head=False)[0]["stem"] for x in (clip, other))
        assert (before != after).any(1)[0].nonzero().tolist() == [[t // tubelet, h, w]]


def test_layers_are_cut_into_four_equal_runs() -> None:
    runs = {layers: [len(run) for run in transformer_cut(layers)] for layers in (1, 2, 3, 4, 5, 12, 24)}
    assert runs == {
        1: [2],
        2: [2, 1],
        3: [2, 1, 1],
        4: [2, 1, 1, 1],
        5: [2, 1, 2, 1],
        12: [4, 3, 3, 3],
        24: [7, 6, 6, 6],
    }
    cut = HfStudent(arch="hf", model="a/b", layers=12).natural_cut
    assert cut[0] == ("stem", "layer1", "layer2", "layer3") and cut[3] == ("layer10", "layer11", "layer12")


@pytest.mark.parametrize("family", ["videomae", "timesformer", "vivit", "vjepa2"])
def test_another_number_of_classes_gets_a_new_head_that_the_seed_decides(family: str, tmp_path: Path) -> None:
    plain = saved(tmp_path / "net", family).state_dict()
    torch.manual_seed(5)
    network = hf(pinned(arch(), tmp_path), 3, tmp_path)
    fresh, noise = copy.deepcopy(network.net.state_dict()), torch.get_rng_state()
    assert load_pretrained(network, pinned(arch(), tmp_path), tmp_path) == ["classifier.bias", "classifier.weight"]
    assert torch.equal(torch.get_rng_state(), noise)
    for name, tensor in network.net.state_dict().items():
        assert torch.equal(tensor, fresh[name] if name.startswith("classifier.") else plain[name]), name


def test_a_pretraining_checkpoint_has_no_head(tmp_path: Path) -> None:
    import transformers

    config = {name: value for name, value in FAMILIES["videomae"][1].items() if name != "num_labels"}
    made = transformers.VideoMAEForPreTraining(
        transformers.VideoMAEConfig(
            **config, decoder_num_hidden_layers=1, decoder_hidden_size=12, decoder_num_attention_heads=2
        )
    )
    made.save_pretrained(tmp_path / "net")
    network = hf(pinned(arch(), tmp_path), 3, tmp_path)
    new = load_pretrained(network, pinned(arch(), tmp_path), tmp_path)
    assert new == ["classifier.bias", "classifier.weight", "fc_norm.bias", "fc_norm.weight"]
    name = "videomae.encoder.layer.3.intermediate.dense.weight"
    assert torch.equal(network.net.state_dict()[name], made.state_dict()[name])


def test_wrong_weights_are_said(tmp_path: Path) -> None:
    saved(tmp_path / "net")
    path, network = tmp_path / "net/model.safetensors", hf(pinned(arch(), tmp_path), 7, tmp_path)
    whole = load_file(path)
    name = "videomae.encoder.layer.3.output.dense.weight"
    for given in ({n: t for n, t in whole.items() if n != name}, {**whole, name: torch.zeros(2, 2)}):
        save_file(given, path, metadata={"format": "pt"})
        with pytest.raises(DataError, match=f"do not fit its config.json: {name}"):
            load_pretrained(network, pinned(arch(), tmp_path), tmp_path)
    path.write_bytes(b"no weights")
    with pytest.raises(DataError, match="the weights of net cannot be read"):
        load_pretrained(network, pinned(arch(), tmp_path), tmp_path)
    path.unlink()
    torch.save(whole, tmp_path / "net/pytorch_model.bin")  # what is not in the key is not read
    with pytest.raises(DataError, match="net was changed"):
        load_pretrained(network, pinned(arch(), tmp_path), tmp_path)


@pytest.mark.parametrize("family", ["videomae", "timesformer", "vivit", "vjepa2"])
@pytest.mark.parametrize("size", [(8, 16, 16), (4, 24, 24), (4, 16, 24), (2, 16, 16)])
def test_another_input_is_told_the_right_one(family: str, size: tuple[int, int, int], tmp_path: Path) -> None:
    saved(tmp_path / "net", family)
    with pytest.raises(ValueError, match=f"this {family} runs at 4x16x16 only, not {'x'.join(map(str, size))}"):
        hf(pinned(arch(), tmp_path), 7, tmp_path)(torch.randn(1, 3, *size))


def edited(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | changes), "utf-8")


@pytest.mark.parametrize(
    ("family", "changes", "words"),
    [
        ("videomae", {"num_hidden_layers": 4}, "net has 4 layers, not 5: set layers: 4"),
        (
            "videomae",
            {"model_type": "bert"},
            "net is a bert, which is not supported: use one of videomae, timesformer, vivit, vjepa2",
        ),
        ("videomae", {"hidden_size": "x"}, "config.json of net"),
        ("videomae", {"hidden_act": "none"}, "config.json of net cannot be built"),
        ("videomae", {"num_attention_heads": 7}, "config.json of net cannot be built"),
        ("timesformer", {"attention_type": "space_only"}, "a prediction per frame"),
        ("timesformer", {"image_size": [16, 16]}, "one number each"),
    ],
)
def test_a_wrong_configuration_is_said(family: str, changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    saved(tmp_path / "net", family)
    edited(tmp_path / "net", **changes)
    with pytest.raises(ValueError, match=words):
        hf(pinned(arch(), tmp_path), 7, tmp_path)


def test_a_configuration_chooses_no_code(tmp_path: Path) -> None:
    """Kernels, number formats and Python files that a config.json may name are left alone."""
    saved(tmp_path / "net")
    (tmp_path / "net/mine.py").write_text("raise SystemExit('run')", "utf-8")
    edited(
        tmp_path / "net",
        auto_map={"AutoConfig": "mine.C", "AutoModelForVideoClassification": "mine.M"},
        dtype="bfloat16",
        attn_implementation="someone/kernel",
        quantization_config={"quant_method": "bitsandbytes", "load_in_8bit": True},
    )
    network = hf(pinned(arch(), tmp_path), 7, tmp_path)
    assert load_pretrained(network, pinned(arch(), tmp_path), tmp_path) == []
    assert {p.dtype for p in network.parameters()} == {torch.float32}


def test_a_model_that_is_not_there_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers

    def offline(name: str, **_: Any) -> None:
        raise OSError(f"no network for {name}")

    monkeypatch.setattr(transformers.PreTrainedConfig, "get_config_dict", offline)
    with pytest.raises(UsageError, match="owner/name is neither a folder of the project nor available from the hub"):
        hf(pinned(arch("owner/name"), tmp_path), 7, tmp_path)
    gone = HfArch(arch="hf", model="gone", layers=5, digest="0" * 64)
    with pytest.raises(UsageError, match="does not exist"):
        hf(gone, 7, tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"empty has no config\.json"):
        hf(pinned(arch("empty"), tmp_path), 7, tmp_path)


def test_an_id_is_given_to_transformers_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers

    saved(tmp_path / "elsewhere")
    kind, asked = transformers.VideoMAEForVideoClassification, list[tuple[str, set[str]]]()
    read, config = kind.from_pretrained, transformers.PreTrainedConfig.get_config_dict

    def from_pretrained(name: str, **options: Any) -> Any:
        asked.append((name, set(options)))
        return read(str(tmp_path / "elsewhere"), **options)

    def get_config_dict(name: str) -> Any:
        asked.append((name, set()))
        return config(str(tmp_path / "elsewhere"))

    monkeypatch.setattr(kind, "from_pretrained", from_pretrained)
    monkeypatch.setattr(transformers.PreTrainedConfig, "get_config_dict", get_config_dict)
    mine = HfArch(arch="hf", model="owner/name", layers=5, digest="hub:owner/name")
    assert load_pretrained(hf(mine, 7, tmp_path), mine, tmp_path) == []
    assert {name for name, _ in asked} == {"owner/name"}
    assert all("trust_remote_code" not in options for _, options in asked)


def test_without_transformers_the_command_that_installs_it_is_named(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(project / "net")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UsageError, match=r"transformers is not installed: pip install 'stagedkd\[hf\]'"):
        hf(pinned(arch(), project), 7, project)
    plan = compile_plan(load_spec("specs/tiny.yaml", [*SETS, f"teacher={TEACHER}"]))
    with pytest.raises(SpecError, match=r"teacher: hf cannot be used: .*pip install 'stagedkd\[hf\]'"):
        preflight(plan, project)


# ---------------------------------------------------------------- in specs

TEACHER = "{$replace: {arch: hf, model: net, layers: 5, labels: all, epochs: 1}}"
STUDENT = "{$replace: {arch: tsm, backbone: mobilenet_v3_small}}"
SETS = ["cascade=[]", "distill.phases.grow.epochs=1", "distill.phases.joint.epochs=1"]
BOTH = [*SETS, f"teacher={TEACHER}", f"student={STUDENT}"]


def test_a_spec_of_both_is_compiled_and_measured(project: Path) -> None:
    saved(project / "net")
    plan = compile_plan(load_spec("specs/tiny.yaml", BOTH))
    teacher, student = plan.stage("teacher").work, plan.stage("student").work
    assert isinstance(teacher, TeachWork) and isinstance(student, DistillWork)
    assert isinstance(teacher.arch, HfArch) and isinstance(student.arch, TsmArch) and student.arch.shift == 0.125
    assert student.cut == TSM["mobilenet_v3_small"].substages and student.teacher_cut == transformer_cut(5)
    assert teacher.arch.title == "hf net" and student.arch.title == "tsm mobilenet_v3_small"
    found = preflight(plan, project)
    assert [pair.teacher for pair in found.pairs] == [(24, 2, 2, 2)] * 4
    assert [pair.student for pair in found.pairs] == [(16, 4, 4, 4), (24, 4, 2, 2), (48, 4, 1, 1), (576, 4, 1, 1)]
    keys = {name: plan.stage(name).key for name in ("data", "teacher", "student")}
    other = compile_plan(load_spec("specs/tiny.yaml", [*BOTH, "student.shift=0.25"]))
    assert {name for name, key in keys.items() if other.stage(name).key != key} == {"student"}
    (project / "net").rename(project / "moved")
    moved = compile_plan(load_spec("specs/tiny.yaml", [*BOTH, "teacher.model=moved"]))
    assert {name: moved.stage(name).key for name in keys} == keys  # a folder is told by its content


def test_a_wrong_number_of_layers_is_found_before_anything_runs(project: Path) -> None:
    saved(project / "net")
    plan = compile_plan(load_spec("specs/tiny.yaml", [*BOTH, "teacher.layers=12"]))
    with pytest.raises(SpecError, match="teacher: hf cannot be used: net has 5 layers, not 12: set layers: 5"):
        preflight(plan, project)
    with pytest.raises(SpecError, match="hf net takes only clips of 4x16x16") as caught:
        load_spec("specs/tiny.yaml", [*BOTH, "clip.frames=8"])
    assert caught.value.problems[0].hint.startswith("set clip: {frames: 4, size: 16}, and an input:")
    config = json.loads((project / "net/config.json").read_text("utf-8"))
    del config["image_size"]  # then only the built network knows it
    (project / "net/config.json").write_text(json.dumps(config), "utf-8")
    plan = compile_plan(load_spec("specs/tiny.yaml", BOTH))
    with pytest.raises(SpecError, match="this videomae runs at 4x224x224 only, not 4x16x16"):
        preflight(plan, project)
    saved(project / "net")
    own = "teacher.input={frames: 4, size: 16}"
    assert preflight(compile_plan(load_spec("specs/tiny.yaml", [*BOTH, "clip.size=32", "clip.frames=8", own])), project)


def test_weights_of_one_name_are_a_file_for_each_network(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both are called IMAGENET1K_V1."""
    folder = project / "hub/checkpoints"
    folder.mkdir(parents=True)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(project / "hub"))
    for name in ("resnet18", "mobilenet_v3_small"):
        url: str = get_model_weights(name)["IMAGENET1K_V1"].url
        torch.save(get_model(name, weights=None).state_dict(), folder / url.rpartition("/")[2])
    teacher = "teacher={$replace: {arch: tsm, backbone: resnet18, weights: IMAGENET1K_V1, epochs: 1}}"
    spec = load_spec("specs/tiny.yaml", [*BOTH, teacher, "student.weights=IMAGENET1K_V1"])
    assert {stage.key for stage in compile_plan(spec).stages if stage.name in ("teacher", "student")} == {None}
    lock, lines = lock_specs([spec], Runtime(root=str(project)), accept=False)
    assert set(lock.weights) == {"resnet18/IMAGENET1K_V1", "mobilenet_v3_small/IMAGENET1K_V1"} and len(lines) == 2
    works = [compile_plan(spec, lock).stage(name).work for name in ("teacher", "student")]
    digests = [work.weights.sha256 for work in works if isinstance(work, TeachWork | DistillWork) and work.weights]
    assert digests == list(lock.weights.values()) and len(set(digests)) == 2
    assert compile_plan(spec, Lock(weights={"IMAGENET1K_V1": "0" * 64})).stage("teacher").key is None


@pytest.mark.slow
@pytest.mark.parametrize("family", ["videomae", "vjepa2"])
def test_a_run_with_an_hf_teacher_and_a_tsm_student(project: Path, family: str) -> None:
    saved(project / "net", family)
    spec = load_spec("specs/tiny.yaml", [*BOTH, "data.train=32"])
    run(spec, load_runtime(project))
    (student,) = (project / "store").glob("distill-*/files/student.safetensors")
    assert set(load_file(student)) == set(get_model("mobilenet_v3_small", weights=None).state_dict())
    manifests = [json.loads(p.read_text("utf-8")) for p in (project / "store").glob("evaluate-*/files/manifest.json")]
    assert len(manifests) == 3 and all(0 <= found["metrics"]["top1"] <= 1 for found in manifests)
    before = file_bytes(project / "store")
    run(spec, load_runtime(project))
    assert file_bytes(project / "store") == before


@pytest.mark.slow
def test_an_hf_student_of_a_tsm_teacher_is_trained(project: Path) -> None:
    saved(project / "net", "timesformer")
    student = "{$replace: {arch: hf, model: net, layers: 5, pretrained: false}}"
    teacher = "{$replace: {arch: tsm, backbone: mobilenet_v2, labels: all, epochs: 1}}"
    run(
        load_spec("specs/tiny.yaml", [*SETS, f"teacher={teacher}", f"student={student}", "data.train=32"]),
        load_runtime(project),
    )
    assert len(list((project / "store").glob("evaluate-*/files/manifest.json"))) == 3

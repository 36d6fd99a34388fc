"""Views that are not square: their geometry, sizes in the language, what networks take, and a run over real files."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError
from safetensors.torch import load_file
from torch.nn import functional as F

from stagedkd import compile_plan, load_spec, losses, report, run
from stagedkd.data.address import Address
from stagedkd.data.decode import decode, scaled
from stagedkd.data.draws import Stream, uniform
from stagedkd.data.mix import Batch, mix, strong_view
from stagedkd.data.preview import PreviewClip, animation, contact_sheet
from stagedkd.data.source import VideoClips, VideoFiles, videos_of
from stagedkd.data.views import Video, View, apply_view, eval_views, fit_input, train_view
from stagedkd.errors import SpecError
from stagedkd.experiment.survey import preview
from stagedkd.models.build import build
from stagedkd.models.shapes import measure
from stagedkd.models.torchvision_video import torchvision_video
from stagedkd.models.tsm import tsm
from stagedkd.plan.key import digest
from stagedkd.plan.runtime import load_runtime
from stagedkd.spec.jsonschema import json_schema
from stagedkd.spec.load import load_experiment
from stagedkd.spec.schema import Augment, Clip, Input, arch_of, sides
from stagedkd.spec.schema.networks.torchvision import ZOO
from stagedkd.spec.schema.networks.tsm import TSM
from stagedkd.train.evaluate import latency
from tests.conftest import Command
from tests.tools import Heard
from tests.videos import write_video

CPU = torch.device("cpu")
SIDE = st.integers(8, 200)
FRAME = st.integers(8, 700)

SPEC = """\
data: {kind: csv, path: clips.csv, folds: 3, test_folds: 0}
clip: {frames: 4, size: [24, 40]}
augment: {crop: 0.6, flip: 0.5, cutmix: 1.0}
train: {batch: 4, lr: 1e-2, warmup_epochs: 0.5}
teacher: {arch: resnet3d, width: 8, blocks: [1, 1], labels: all, epochs: 2}
cascade: []
student:
  arch: resnet3d
  width: 4
  blocks: [1, 1]
  substages: [[stem, layer1], [layer2]]
  epochs: 4
  input: {size: [12, 20]}
distill:
  phases:
    grow: {substages: one_by_one, epochs: 1, losses: {gaussian_w2: 1.0, at: 1.0, cka: 0.1}}
    joint: {epochs: 2, losses: {ce: 0.1, kd: 0.9, review: 0.1, stage_cka: 0.1}}
control: ce
evaluate: {clips: 2, crops: 3}
"""


@pytest.fixture
def wide(project: Path) -> Path:
    """A project with nine generated videos of several shapes, and a spec whose view is 24 high and 40 wide."""
    rows = ["path,label,group"]
    shapes = [(80, 32), (64, 48), (36, 64)]
    for i in range(9):
        write_video(project / f"data/{i}.avi", 6, shapes[i % 3], noisy=i % 2 == 0)
        rows.append(f"{i}.avi,{'even' if i % 2 == 0 else 'odd'},{i}")
    (project / "data/clips.csv").write_text("\n".join(rows) + "\n", "utf-8")
    (project / "specs/wide.yaml").write_text(SPEC, "utf-8")
    return project


# ---------------------------------------------------------------- geometry


def largest(height: int, width: int, size: tuple[int, int]) -> tuple[Fraction, Fraction]:
    """The largest box of the view's shape that fits into a frame, exactly."""
    scale = min(Fraction(height, size[0]), Fraction(width, size[1]))
    return scale * size[0], scale * size[1]


@given(FRAME, FRAME, st.tuples(SIDE, SIDE))
def test_evaluation_cuts_the_largest_boxes_of_the_views_shape(height: int, width: int, size: tuple[int, int]) -> None:
    clip, video = Clip.model_validate({"frames": 2, "size": size}), Video(4, height, width)
    tall, wide = largest(height, width, size)
    (centre,) = eval_views(clip, 1, 1, video)
    top, left, box_tall, box_wide = centre.box
    assert abs(box_tall - tall) <= Fraction(1, 2) or box_tall == 1
    assert abs(box_wide - wide) <= Fraction(1, 2) or box_wide == 1
    assert box_tall == height or box_wide == width
    assert abs(2 * top + box_tall - height) <= 1 and abs(2 * left + box_wide - width) <= 1
    first, middle, last = (view.box for view in eval_views(clip, 1, 3, video))
    assert middle == centre.box and first[:2] == (0, 0)
    assert (last[0] + last[2], last[1] + last[3]) == (height, width)


@given(FRAME, FRAME, st.tuples(SIDE, SIDE), st.floats(0.05, 1), st.floats(1, 4), st.integers(0, 99))
@example(height=8, width=8, size=(8, 111), crop=0.5, ratio=3.0, clip_id=38)
def test_random_boxes_are_inside_and_keep_the_views_shape(
    height: int, width: int, size: tuple[int, int], crop: float, ratio: float, clip_id: int
) -> None:
    clip = Clip.model_validate({"frames": 2, "size": size})
    augment = Augment(crop=crop, ratio=ratio)
    top, left, tall, wide = train_view(clip, augment, 1, 2, clip_id, Video(4, height, width)).box
    assert top >= 0 and left >= 0 and tall >= 1 and wide >= 1
    assert top + tall <= height and left + wide <= width
    most_tall, most_wide = (max(1.0, float(side)) for side in largest(height, width, size))  # a pixel at least
    stretch = ratio**0.5 if crop < 1 else 1.0
    assert tall <= most_tall * stretch + 1 and wide <= most_wide * stretch + 1
    if tall < height and wide < width:  # not cut off by the frame: the sides are those of the view, within the ratio
        within = crop**0.5 if crop < 1 else 1.0
        assert tall >= most_tall * within / stretch - 1 and wide >= most_wide * within / stretch - 1
        assert (tall - 1.01) / (wide + 1.01) * size[1] / size[0] <= stretch**2 + 1e-6
        assert (wide - 1.01) / (tall + 1.01) * size[0] / size[1] <= stretch**2 + 1e-6


def test_a_crop_of_ratio_one_has_the_views_shape_within_a_pixel() -> None:
    clip, video = Clip(frames=2, size=(64, 160)), Video(4, 240, 320)
    boxes = {train_view(clip, Augment(crop=0.3, ratio=1), 0, e, 0, video).box for e in range(200)}
    assert len(boxes) > 150
    assert all(abs(tall - wide * 64 / 160) <= 1 for _, _, tall, wide in boxes)
    assert {tall > 100 for _, _, tall, _ in boxes} == {False, True}  # small and large ones


def square_box(size: int, augment: Augment, seed: int, epoch: int, clip_id: int, video: Video) -> tuple[int, ...]:
    """The box of a square view by the formula that square views have always had."""
    draw = uniform(seed, Stream.VIEW, epoch, clip_id, np.arange(11)).tolist()
    side: float = min(video.height, video.width)
    stretch = 1.0
    if augment.crop < 1:
        side *= (augment.crop + (1 - augment.crop) * draw[1]) ** 0.5
        stretch = float(np.exp((draw[9] - 0.5) * np.log(augment.ratio)))
    tall, wide = min(video.height, max(1, round(side / stretch))), min(video.width, max(1, round(side * stretch)))
    return int(draw[2] * (video.height - tall + 1)), int(draw[3] * (video.width - wide + 1)), tall, wide


@given(SIDE, FRAME, FRAME, st.sampled_from([1.0, 0.6, 0.08]), st.integers(0, 999))
def test_a_square_view_is_what_it_always_was(size: int, height: int, width: int, crop: float, clip_id: int) -> None:
    clip, augment, video = Clip(frames=2, size=size), Augment(crop=crop), Video(4, height, width)
    wanted = square_box(size, augment, 5, 1, clip_id, video)
    assert train_view(clip, augment, 5, 1, clip_id, video).box == wanted
    side = min(height, width)
    boxes = [(round(p * (height - side)), round(p * (width - side)), side, side) for p in (0.0, 0.5, 1.0)]
    assert [view.box for view in eval_views(clip, 1, 3, video)] == boxes
    assert clip.shorter_side == round(size * 8 / 7)


@given(FRAME, FRAME, st.tuples(SIDE, SIDE))
def test_the_default_resize_enlarges_no_box(height: int, width: int, size: tuple[int, int]) -> None:
    clip = Clip.model_validate({"size": size})
    tall, wide = largest(*scaled(height, width, clip.shorter_side), size)
    assert tall >= size[0] and wide >= size[1]


@pytest.mark.parametrize(
    "size", [(64, 160), (200, 24), (1024, 8), (112, 112)], ids=lambda size: "x".join(map(str, size))
)
def test_resize_must_hold_the_shorter_side(size: tuple[int, int]) -> None:
    short = min(size)
    assert Clip.model_validate({"size": size, "resize": short}).shorter_side == short
    assert Clip.model_validate({"size": size}).shorter_side == round(max(size) * 8 / 7)


# ---------------------------------------------------------------- pixels


def test_a_view_is_cut_and_scaled_as_pillow_does() -> None:
    picture = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 3, 90, 130), np.uint8))
    view = View(np.arange(2), (7, 11, 60, 110))
    made = apply_view(picture, view, (24, 40))
    assert made.shape == (3, 2, 24, 40) and made.dtype == torch.float32
    for i, frame in enumerate(picture):
        image = Image.fromarray(frame.permute(1, 2, 0).numpy()).crop((11, 7, 121, 67))
        wanted = np.asarray(image.resize((40, 24), Image.Resampling.BILINEAR))
        assert np.abs(made[:, i].permute(1, 2, 0).numpy() * 255 - wanted).max() <= 1.01
    flipped = apply_view(picture, View(np.arange(2), (7, 11, 60, 110), flip=True), (24, 40))
    assert torch.equal(flipped, made.flip(-1))
    exact = apply_view(picture, View(np.arange(2), (7, 11, 24, 40)), (24, 40))  # the box has the size: no pixel changes
    assert torch.equal(exact * 255, picture[:, :, 7:31, 11:51].transpose(0, 1).float())
    assert View(np.arange(2), (0, 0, 24, 40)).is_plain((24, 40))
    assert not View(np.arange(2), (0, 0, 24, 40)).is_plain(24)


@pytest.mark.parametrize("augment", [Augment(flip=1.0), Augment(crop=1.0, jitter=0.0), Augment(hue=0.1, flip=0.5)])
def test_a_number_and_a_pair_give_the_same_bits(augment: Augment) -> None:
    picture = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (3, 3, 40, 64), np.uint8))
    one, other = Clip(frames=3, size=24), Clip.model_validate({"frames": 3, "size": (24, 24)})
    assert one == other and one.size == other.size == 24 and digest(one) == digest(other)
    video = Video(3, 40, 64)
    for epoch in range(5):
        view = train_view(one, augment, 0, epoch, 0, video)
        assert torch.equal(apply_view(picture, view, 24), apply_view(picture, view, (24, 24)))


def test_a_network_scales_the_view_to_its_input() -> None:
    clip = torch.rand(2, 3, 4, 24, 40)
    same = fit_input(clip, Input(normalize="none", size=(24, 40)))
    assert same is clip or torch.equal(same, clip)
    small = fit_input(clip, Input(normalize="none", size=(12, 20)))
    flat = clip.transpose(1, 2).flatten(0, 1)
    wanted = F.interpolate(flat, (12, 20), mode="bilinear", antialias=True).unflatten(0, (2, 4)).transpose(1, 2)
    torch.testing.assert_close(small, wanted)
    assert fit_input(clip, Input(size=24)).shape == (2, 3, 4, 24, 24)  # as high as the view, but not as wide
    assert fit_input(clip, Input(frames=2, size=(24, 20))).shape == (2, 3, 2, 24, 20)


def test_mixed_and_strong_views_keep_the_shape() -> None:
    clip = torch.zeros(4, 3, 2, 24, 40)
    clip[:] = torch.arange(4.0)[:, None, None, None, None]
    for step in range(20):
        mixed = mix(Batch(clip, torch.arange(4)), Augment(cutmix=1.0), 0, 0, step)
        assert mixed.order_B is not None and mixed.clip_B3THW.shape == clip.shape
        moved = mixed.order_B != torch.arange(4)
        shares = (mixed.clip_B3THW == clip).float().mean((1, 2, 3, 4))[moved]
        assert torch.allclose(shares, torch.full_like(shares, mixed.fraction))
    grey = strong_view(torch.rand(4, 3, 2, 24, 40), 0, 0, 0) == 0.5
    covered = grey.all(1).all(1)
    rows, columns = covered.any(2).sum(1), covered.any(1).sum(1)
    assert rows.tolist() == [12] * 4 and columns.tolist() == [20] * 4


def test_strips_keep_their_own_pixels(clips: Path) -> None:
    """The mouths of miracl are 160x64: at `resize: 64` a view of [64, 160] is the frame itself."""
    if not (clips / "miracl").is_dir():
        pytest.skip("no miracl here")
    path = sorted((clips / "miracl/words/hello").glob("*.mp4"))[0]
    frames = decode(Address(path), 64).frames_THWC
    assert frames.shape[1:] == (64, 160, 3)
    clip = Clip(frames=4, size=(64, 160), resize=64)
    source = VideoClips(VideoFiles(path.parent, 64), [path.name], [Video(len(frames), 64, 160)], clip, CPU)
    (view,) = source.views([0], 1, 1)
    start = (len(frames) - 4) // 2
    assert torch.equal(view[0] * 255, torch.from_numpy(frames[start : start + 4]).permute(3, 0, 1, 2).float())
    table = {"frames": [9, 9], "height": [64, 240], "width": [160, 320]}
    tall = [video.height for video in videos_of(table, Clip(size=(64, 160)))]
    assert tall == [183, 183]
    boxes = [eval_views(Clip(size=(64, 160)), 1, 1, v)[0].box for v in videos_of(table, Clip(size=(64, 160)))]
    assert [box[2:] for box in boxes] == [(183, 458), (98, 244)]  # as docs/data.md says


# ---------------------------------------------------------------- the language


@pytest.mark.parametrize(
    ("size", "column", "message", "hint"),
    [
        ("[64]", 25, "'clip.size' must be a whole number or [height, width], not [64]", ""),
        ("[]", 25, "'clip.size' must be a whole number or [height, width], not []", ""),
        ("[64, 0]", 30, "'clip.size.1' must be at least 8, not 0", "allowed: 8 to 1,024"),
        ("[2000, 64]", 26, "'clip.size.0' must be at most 1,024, not 2000", "allowed: 8 to 1,024"),
        ('"64x160"', 25, "'clip.size' must be a whole number or [height, width], not '64x160'", ""),
        ("[64.5, 160]", 26, "'clip.size.0' must be a whole number, not 64.5", "allowed: 8 to 1,024"),
        ("[64, 160, 3]", 25, "'clip.size' must be a whole number or [height, width], not [64, 160, 3]", ""),
        ("[[64, 160]]", 25, "'clip.size' must be a whole number or [height, width], not [a list]", ""),
        ("{h: 64}", 25, "'clip.size' must be a whole number or [height, width], not a map", ""),
        ("64.0", 25, "'clip.size' must be a whole number, not 64.0", "allowed: 8 to 1,024"),
        ("[64, 160], resize: 60", 7, "'clip': resize 60 is smaller than the shorter side of size [64, 160]", ""),
        ("64, resize: 60", 7, "'clip': resize 60 is smaller than size 64", ""),
    ],
)
def test_a_wrong_size_is_said_at_its_place(wide: Path, size: str, column: int, message: str, hint: str) -> None:
    (wide / "specs/wide.yaml").write_text(SPEC.replace("size: [24, 40]", f"size: {size}"), "utf-8")
    with pytest.raises(SpecError) as caught:
        load_spec("specs/wide.yaml")
    first = caught.value.problems[0]
    assert first.place is not None
    assert (first.place.line, first.place.column, first.message, first.hint) == (2, column, message, hint)


@pytest.mark.parametrize(
    ("override", "message", "hint"),
    [
        (
            "student.input.size=[25, 40]",
            "input.size is [25, 40], but clip.size is only [24, 40]",
            "raise clip.size; the other networks can have an input of their own",
        ),
        ("student.input.size=40", "input.size is 40, but clip.size is only [24, 40]", "raise clip.size"),
        ("student.input.size=[0, 40]", "'student.input.size.0' must be at least 8, not 0", "allowed: 8 to 1,024"),
        ("teacher={$replace: {arch: mvit_v2_s, epochs: 1}}", "mvit_v2_s takes only clips of 16x224x224", "set clip: {"),
        (
            "teacher={$replace: {arch: s3d, epochs: 1}}",
            "s3d needs at least 8 frames of 32x32, not 4x24x40",
            "set clip.frames to 8 or more, and both sides of clip.size to 32 or more",
        ),
        (
            "data={$replace: {kind: shapes, classes: 2}}",
            "simulated clips are squares, and clip.size is [24, 40]",
            "write one number",
        ),
        ("distill.pairing=[[1]]", "'distill.pairing.0' needs 2 items, not 1", ""),
    ],
)
def test_a_size_that_does_not_fit_is_said(wide: Path, override: str, message: str, hint: str) -> None:
    with pytest.raises(SpecError) as caught:
        load_spec("specs/wide.yaml", ["evaluate.crops=1", "evaluate.clips=1", override])
    found = [problem for problem in caught.value.problems if problem.message == message]
    assert found and found[0].hint.startswith(hint) and found[0].place is not None


def test_an_input_of_another_shape_is_warned_of(wide: Path) -> None:
    assert not load_experiment("specs/wide.yaml", ["student.input.size=[13, 21]"]).notes  # within a pixel
    (note,) = load_experiment("specs/wide.yaml", ["student.input.size=20"]).notes
    assert note.severity == "warning" and note.message == "input.size 20x20 distorts pictures: the view is 24x40"
    assert note.hint == "[20, 33] keeps the shape"


def test_a_model_folder_says_which_clips_it_takes(wide: Path) -> None:
    folder = wide / "net"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    network = ["teacher={$replace: {arch: hf, model: net, layers: 4, epochs: 1}}"]

    def takes(**config: object) -> object:
        (folder / "config.json").write_text(json.dumps(config), "utf-8")
        try:
            return load_spec("specs/wide.yaml", network).teacher.fixed_input
        except SpecError as error:
            return error.problems[0].message

    assert takes(model_type="videomae", num_frames=4, image_size=[24, 40]) == (4, (24, 40))
    assert takes(model_type="vivit", num_frames=16, image_size=224) == "hf net takes only clips of 16x224x224"
    assert takes(model_type="vjepa2", frames_per_clip=4, crop_size=24) == "hf net takes only clips of 4x24x24"
    assert (
        takes(model_type="videomae", num_frames=4) is None
    )  # the default of transformers, which check does not import
    assert takes(model_type="videomae", num_frames=4, image_size="224") is None  # building the network reports it
    with pytest.raises(SpecError, match="'takes' cannot be set"):
        load_spec("specs/wide.yaml", [*network, "teacher.takes=[4, 24, 40]"])


def test_sizes_in_overrides_grids_and_keys(wide: Path) -> None:
    def keys(*overrides: str) -> list[str]:
        return [stage.identity for stage in compile_plan(load_spec("specs/wide.yaml", overrides)).stages]

    assert keys() == keys("clip.size=[24,40]") != keys("clip.size=[24,48]")
    square = ["student.input.size=12"]
    assert keys("clip.size=[24, 24]", *square) == keys("clip.size=24", *square)
    assert keys("clip.size=24", "student.input.size=[12, 12]") == keys("clip.size=24", *square)
    grid = SPEC + "grid: {axes: {clip.size: {strip: [24, 40], square: 24}, student.input.size: [12]}}\n"
    (wide / "specs/grid.yaml").write_text(grid, "utf-8")
    cells = load_experiment("specs/grid.yaml").cells
    assert {cell.labels["clip.size"]: cell.spec.clip.size for cell in cells} == {"strip": (24, 40), "square": 24}
    with pytest.raises(ValidationError):
        Clip.model_validate({"size": (24, True)})


def test_explain_and_the_schema_know_both_forms(wide: Path, stagedkd: Command) -> None:
    found = stagedkd("explain", "specs/wide.yaml", "clip.size", "--set", "clip.size=[32, 64]")
    assert found.returncode == 0 and "[32, 64]" in found.stdout and "[24, 40]" in found.stdout
    shown = stagedkd("diff", "specs/wide.yaml", "--set", "clip.size=[32, 64]")
    assert "clip.size  [24, 40] (specs/wide.yaml:2:25) -> [32, 64] (--set)" in shown.stdout
    assert "teacher              changed: clip.size [24, 40] -> [32, 64]" in shown.stdout
    number, pair = json_schema()["$defs"]["Clip"]["properties"]["size"]["oneOf"]
    assert number == {"type": "integer", "minimum": 8, "maximum": 1024}
    assert pair["prefixItems"] == [number, number] and (pair["minItems"], pair["maxItems"]) == (2, 2)


# ---------------------------------------------------------------- networks and losses


@pytest.mark.parametrize("name", [name for name in (*ZOO, *TSM) if ZOO.get(name, TSM.get(name)).input is None])  # pyright: ignore
def test_networks_run_on_strips(name: str) -> None:
    size = (33, 70)
    make = (lambda: torchvision_video(name, 3)) if name in ZOO else (lambda: tsm(name, 0.125, 3))
    shape = measure(make, 8, size)
    turned = measure(make, 8, (70, 33))
    assert {n: m[:2] + m[:1:-1] for n, m in turned.maps.items()} == dict(shape.maps)
    assert all(wide >= tall for _, _, tall, wide in shape.maps.values())


@pytest.mark.parametrize("name", [name for name in ZOO if ZOO[name].input is None])
def test_the_smallest_clip_that_a_network_takes_is_true(name: str) -> None:
    frames, side = ZOO[name].least
    assert measure(lambda: torchvision_video(name, 3), frames, side).flops > 0
    if ZOO[name].least != (1, 8):
        for smaller in ((frames - 1, side), (frames, (side - 1, 4 * side)), (frames, (4 * side, side - 1))):
            with pytest.raises(ValueError, match="needs at least"):
                measure(lambda: torchvision_video(name, 3), *smaller)


@pytest.mark.parametrize(
    "name", ["at", "cka", "gaussian_w2", "gaussian_kl", "mmd", "nst", "coral", "review", "sp", "hint"]
)
def test_losses_take_maps_that_are_not_square(name: str) -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(4, 6, 2, 3, 5, requires_grad=True), torch.randn(4, 6, 2, 6, 10)
    pooled = losses.pool_to_common(student, teacher)
    assert pooled[0] is student and pooled[1].shape == (4, 6, 2, 3, 5)
    torch.testing.assert_close(pooled[1], teacher.unflatten(-1, (5, 2)).unflatten(3, (3, 2)).mean((4, 6)))
    maps = [feat.flatten(1) for feat in pooled] if name == "cka" else list(pooled)
    loss = getattr(losses, name)(*maps)
    loss.backward()
    assert loss.isfinite() and student.grad is not None and student.grad.abs().sum() > 0
    # turning both maps by 90 degrees turns no value: no loss may depend on which side is the longer one
    turned = [feat.transpose(3, 4) for feat in pooled]
    turned = [feat.flatten(1) for feat in turned] if name == "cka" else turned
    torch.testing.assert_close(getattr(losses, name)(*turned), loss)


# ---------------------------------------------------------------- from files to the student


def test_pictures_of_a_preview_have_the_views_shape(tmp_path: Path) -> None:
    frames = np.zeros((3, 24, 40, 3), np.uint8)
    frames[:, :, -1] = 255  # the last column is white
    clip = PreviewClip("a", "label: a (clean)", frames, frames)
    contact_sheet([clip], tmp_path / "contact.png", "title")
    animation([clip, clip], tmp_path / "a.webp", 3)
    sheet = np.asarray(Image.open(tmp_path / "contact.png").convert("L"))
    black = np.argwhere(sheet == 0)
    (top, left), (bottom, _) = black.min(0), black.max(0)
    assert bottom - top + 1 == 24 * 3 and sheet[top, left : left + 40 * 3].tolist() == [0] * 117 + [255] * 3
    with Image.open(tmp_path / "a.webp") as strip:
        assert strip.size == (2 * (120 + 4) + 4, 2 * (72 + 4) + 18 + 4)


def test_a_run_with_strips(wide: Path) -> None:
    spec = load_spec("specs/wide.yaml")
    runtime = load_runtime(wide, results=wide / "results")
    heard = Heard()
    results = report(run(spec, runtime, heard).plan, runtime)
    assert not [note for note in heard.notes if "enlarged" in note]
    state = load_file(wide / "results/wide/student.safetensors")
    network = build(arch_of(spec.student), 2, root=wide).eval()
    network.net.load_state_dict(state)
    frames, size = spec.clip.seen(spec.student.input)
    assert sides(size) == (12, 20) and network(torch.zeros(1, 3, frames, 12, 20)).shape == (1, 2)
    seconds, spread = latency(network, frames, size, CPU)
    assert spread >= 0 and (seconds is None or seconds > 0)
    assert results.student.flops == measure(lambda: build(arch_of(spec.student), 2, root=wide), frames, size).flops
    # without a cache the pixels are the same, and so is the student
    again = load_spec("specs/wide.yaml", ["clip.cache=none", "name=again"])
    report(run(again, load_runtime(wide, store=wide / "other", results=wide / "results")).plan, runtime)
    for name, tensor in load_file(wide / "results/again/student.safetensors").items():
        assert torch.equal(tensor, state[name]), name


def test_crops_that_are_enlarged_are_said(wide: Path) -> None:
    """64x48 is decoded to 32x24, whose largest box is 32x19; 36x64 to 24x43, with 24x14; 80x32 to 60x24, with 40x24."""
    heard = Heard()
    spec = load_spec("specs/wide.yaml", ["clip.resize=24"])
    written = preview(spec, load_runtime(wide), heard, wide / "preview", 1)
    said = "crops of 6 of 9 videos are enlarged, from 19x32 or so to 24x40: raise clip.resize, which is 24"
    assert said in heard.notes
    assert [path.name for path in written] == ["contact.png", "even.webp", "odd.webp"]

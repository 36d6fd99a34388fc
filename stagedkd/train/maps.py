"""The forms in which losses need the teacher's feature maps: the whole map, its averages on the grid of a pair, or the
Gaussians of its channels there. A loss gives the same bits on a map and on its form.

Shape legend: B clips, C channels, T frames, H, W positions; P cells, F frames with Gaussians of their own (else 1).
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# The type stubs of torch are incomplete.
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import TypeAlias, cast

import torch
from torch import Tensor

from stagedkd import losses
from stagedkd.models.network import EMBEDDING, POSITIONS
from stagedkd.models.shapes import NetworkShape
from stagedkd.spec.schema import Loss
from stagedkd.spec.schema.losses.distribution import Cells, GaussianKl, GaussianW2

Grid: TypeAlias = tuple[int, int, int]
LOGITS = ".logits"  # the name of the logits among the forms; no module can have it


@dataclass(frozen=True)
class Form:
    """What a loss needs of the map behind `block`: the map averaged down to `grid` (None: as it is); with `samples`,
    only the Gaussians of its channels on that grid, by these samples and cells. `block` may also be `LOGITS`."""

    block: str
    grid: Grid | None = None
    samples: str | None = None
    cells: Cells | None = None

    def of(self, feat_BCTHW: Tensor) -> Tensor:
        """Bring a map into this form, (B, ...): the averages (B, C, T, H, W), or Gaussians (B, P, 2, F, C)."""
        if self.grid is not None:
            feat_BCTHW = losses.pool_to(feat_BCTHW, self.grid)
        if self.samples is None:
            return feat_BCTHW
        moments = losses.gaussians(feat_BCTHW, self.samples, self.cells)
        packed_P2KC = torch.stack([torch.stack(cell) for cell in moments.cells])
        return packed_P2KC.unflatten(2, (len(feat_BCTHW), -1)).permute(2, 0, 1, 3, 4)

    def elements(self, network: NetworkShape, classes: int) -> int:
        """The number of elements of one clip in this form."""
        if self.block == LOGITS:
            return classes
        if self.block == EMBEDDING:
            return network.width
        if self.block == POSITIONS:
            return classes * prod(list(network.maps.values())[-1][1:])
        channels, *own = network.maps[self.block]
        grid = self.grid or own
        if self.samples is None:
            return channels * prod(grid)
        return 2 * channels * prod(self.cells or (1,)) * (grid[0] if self.samples == "frames" else 1)

    @property
    def text(self) -> str:
        """In words, for the user."""
        name = self.block.lstrip(".")
        if self.grid is None:
            return name
        cells = f" in {'x'.join(map(str, self.cells))} cells" if self.cells else ""
        return f"{name} {'x'.join(map(str, self.grid))}" if self.samples is None else f"Gaussians of {name}{cells}"


@dataclass(frozen=True)
class KeptMap:
    """What was kept of a feature map, whose grid is `grid`: its forms."""

    grid: Grid
    forms: Mapping[Form, Tensor]

    def on(self, grid: Sequence[int]) -> Tensor | KeptMap:
        """Return the map averaged down to a grid, or its Gaussians there if nothing else was kept."""
        forms = {form: tensor for form, tensor in self.forms.items() if form.grid == tuple(grid)}
        assert forms, f"nothing was kept on {tuple(grid)}"
        averages = [tensor for form, tensor in forms.items() if form.samples is None]
        return averages[0] if averages else KeptMap(self.grid, forms)

    def gaussians(self, loss: Loss) -> losses.Gaussians:
        """Return the Gaussians that a loss compares."""
        assert isinstance(loss, GaussianW2 | GaussianKl)
        by_part = {(form.samples, form.cells): tensor for form, tensor in self.forms.items()}
        packed_BP2FC = by_part[loss.samples, loss.cells]
        cells = packed_BP2FC.unbind(1)
        moments = ([cell.select(1, i).flatten(0, 1).contiguous() for i in (0, 1)] for cell in cells)
        return losses.Gaussians(tuple((mean_KC, var_KC) for mean_KC, var_KC in moments))

    def shuffled(self) -> KeptMap:
        """Give each clip the map of the previous clip of the batch."""
        return KeptMap(self.grid, {form: tensor.roll(1, 0) for form, tensor in self.forms.items()})


TeacherMap: TypeAlias = Tensor | KeptMap


def grid_of(teacher: TeacherMap) -> Grid:
    """The grid (T, H, W) of a teacher's whole map."""
    return teacher.grid if isinstance(teacher, KeptMap) else cast(Grid, tuple(teacher.shape[2:]))


def on_grid(teacher: TeacherMap, grid: Sequence[int]) -> TeacherMap:
    """Average a teacher's map down to a grid."""
    return teacher.on(grid) if isinstance(teacher, KeptMap) else losses.pool_to(teacher, grid)


def whole_map(teacher: TeacherMap) -> Tensor:
    """The map itself, where nothing less will do. It must have been kept."""
    on_its_grid = on_grid(teacher, grid_of(teacher))
    assert isinstance(on_its_grid, Tensor)
    return on_its_grid

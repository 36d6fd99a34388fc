"""A small 3-D ResNet for students, assistants and small teachers (after Tran et al. 2018, at any width).

Shape legend: B clips, C channels, T frames, H, W pixels, N classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from stagedkd.models.network import Anatomy, Network, linear_positions

Conv = Literal["full", "r2plus1d", "mixed"]


def _conv(c_in: int, c_out: int, stride: int, kind: str) -> nn.Module:
    """Return a 3x3x3 convolution; 1x3x3 for `flat`; for `r2plus1d` a factorised one, whose middle width keeps the
    number of parameters (Tran et al. 2018, 3.5)."""
    if kind == "flat":
        return nn.Conv3d(c_in, c_out, (1, 3, 3), (1, stride, stride), (0, 1, 1), bias=False)
    if kind == "r2plus1d":
        mid = (c_in * c_out * 27) // (c_in * 9 + 3 * c_out)
        return nn.Sequential(
            nn.Conv3d(c_in, mid, (1, 3, 3), (1, stride, stride), (0, 1, 1), bias=False),
            nn.BatchNorm3d(mid),
            nn.ReLU(),
            nn.Conv3d(mid, c_out, (3, 1, 1), (stride, 1, 1), (1, 0, 0), bias=False),
        )
    return nn.Conv3d(c_in, c_out, 3, stride, 1, bias=False)


class BasicBlock(nn.Module):
    """Two convolutions and a shortcut around them."""

    def __init__(self, c_in: int, c_out: int, stride: int, kind: str) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv(c_in, c_out, stride, kind), nn.BatchNorm3d(c_out)
        self.conv2, self.bn2 = _conv(c_out, c_out, 1, kind), nn.BatchNorm3d(c_out)
        self.relu1, self.relu2 = nn.ReLU(), nn.ReLU()
        self.shortcut = (
            nn.Identity()
            if stride == 1 and c_in == c_out
            else nn.Sequential(
                nn.Conv3d(c_in, c_out, 1, (1 if kind == "flat" else stride, stride, stride), bias=False),
                nn.BatchNorm3d(c_out),
            )
        )

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        y = self.relu1(self.bn1(self.conv1(x_BCTHW)))
        return self.relu2(self.bn2(self.conv2(y)) + self.shortcut(x_BCTHW))


class ResNet3d(nn.Module):
    """A ResNet with the children stem, layer1 ... layerN, fc, in this order. The stem halves H and W; each layer from
    the second on halves H and W, and also T unless its convolutions are 2-D."""

    def __init__(self, width: int, blocks: Sequence[int], conv: Conv, classes: int) -> None:
        super().__init__()
        kinds = [
            "r2plus1d" if conv == "r2plus1d" else "flat" if conv == "mixed" and i else "full"
            for i in range(len(blocks))
        ]
        self.stem = nn.Sequential(nn.Conv3d(3, width, 3, (1, 2, 2), 1, bias=False), nn.BatchNorm3d(width), nn.ReLU())
        c_in = width
        for i, (count, kind) in enumerate(zip(blocks, kinds, strict=True)):
            c_out, stride = width * 2**i, 1 if i == 0 else 2
            layers = [BasicBlock(c_in if j == 0 else c_out, c_out, stride if j == 0 else 1, kind) for j in range(count)]
            self.add_module(f"layer{i + 1}", nn.Sequential(*layers))
            c_in = c_out
        self.fc = nn.Linear(c_in, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, clip_BCTHW: Tensor) -> Tensor:
        """Return logits (B, N)."""
        x = clip_BCTHW
        for name, child in self.named_children():
            if name != "fc":
                x = child(x)
        return self.fc(x.mean((2, 3, 4)))


def _finish(net: nn.Module, state: Tensor) -> Tensor:
    return net.get_submodule("fc")(state.mean((2, 3, 4)))


def resnet3d(width: int, blocks: Sequence[int], conv: Conv, classes: int) -> Network:
    """Build a `ResNet3d` whose blocks are its children."""
    names = ("stem", *(f"layer{i + 1}" for i in range(len(blocks))))
    anatomy = Anatomy({n: (n,) for n in names}, ("fc",), _finish, positions=linear_positions)
    return Network(ResNet3d(width, blocks, conv, classes), anatomy)

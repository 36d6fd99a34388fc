"""Dead channels: those that are the same for every clip and at every place."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from stagedkd.models.network import Network, at_least_two

CLIPS = 64  # measured on at most so many clips
CONSTANT = 1e-6  # a channel whose range is below this share of the map's largest value is constant


def dead_share(network: Network, clips_BCTHW: Iterable[Tensor], blocks: Sequence[str]) -> float | None:
    """Return the share of channels, in 0..1, that are constant over all clips and all of T, H and W, at the ends of
    `blocks`. None for no clip or no block. Puts the network into eval mode.

    Args:
        clips_BCTHW: batches of normalised float clips, as the network takes them.
    """
    network.eval()
    low: dict[str, Tensor] = {}
    high: dict[str, Tensor] = {}
    with torch.inference_mode():
        for clip_BCTHW in clips_BCTHW if blocks else ():
            maps, _ = network.run(at_least_two(clip_BCTHW), taps=blocks, head=False)
            for name, map_BCTHW in maps.items():
                values = map_BCTHW.float()
                least, most = values.amin((0, 2, 3, 4)), values.amax((0, 2, 3, 4))
                low[name] = torch.minimum(low[name], least) if name in low else least
                high[name] = torch.maximum(high[name], most) if name in high else most
    dead = total = 0
    for name in low:
        largest = torch.maximum(low[name].abs(), high[name].abs()).max()
        dead += int((high[name] - low[name] <= CONSTANT * largest).sum())
        total += len(low[name])
    return dead / total if total else None

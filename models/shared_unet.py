"""The U-Net of Dynamic Sharing: convolutions for all modalities, affines for each."""

from collections.abc import Sequence
from itertools import pairwise
from math import gcd

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from equipoise.models.errors import EquipoiseError
from equipoise.models.shared_trunk import ModalityNorm

WIDTH = 32
"""Channels of the first level at width 1."""


class SharedUNet(nn.Module):
    """[n, C, *positions] of any modality to a feature map [n, 32 * width, *positions] (the U-Net of the released code of Wang
    et al., AAAI 2024, without its last convolution, which is the head of `DynamicSharing`).

    On the way down `levels` times max-pooling by 2; channels double, but the lowest level's, which stay. On the way up
    trilinear (pictures: bilinear) upsampling with aligned corners, the level's own map beside it, channels halved. A level is
    two times a convolution of 3, a norm in 8 groups, and ReLU. With M = 4 modalities of one channel and 3 outputs,
    `width=0.5` has 3,245,235 parameters, 8,832 of them in affines, `width=1` 12,960,099 and 17,664.

    Any size will do: where a level's size is odd, its last position is pooled alone, and the way up goes to the size that the
    level had. (The released code needs sizes that 2^levels divides; there nothing differs.) A norm has fewer groups where
    8 would leave one channel to each, or does not divide its channels.

    Args:
        modalities: who has affines.
        channels: of every modality's input.
        width: a multiple of 1/16 or more: 32 * width is the channels of the first level, an even number.
        levels: how often positions are halved.
        dims: 2 for pictures, 3 for volumes.
    """

    def __init__(
        self, modalities: Sequence[str], channels: int = 1, width: float = 0.5, levels: int = 4, dims: int = 3
    ) -> None:
        super().__init__()
        if dims not in (2, 3):
            raise EquipoiseError(f"SharedUNet is for pictures (dims=2) and volumes (dims=3), not dims={dims}.")
        first = WIDTH * width
        if first < 2 or first % 2:
            raise EquipoiseError(
                f"SharedUNet has 32 * width channels at its first level, an even number of 2 or more, but width={width:g} "
                f"gives {first:g}: use 0.25, 0.5 or 1, for example."
            )
        if levels < 1:
            raise EquipoiseError(f"SharedUNet goes down at least one level, found levels={levels}.")
        self.dims, self.out_features = dims, int(first)
        widths = [self.out_features * 2**level for level in range(levels + 1)]
        skips, widths[-1] = widths[:-1], widths[-1] // 2
        self.down = nn.ModuleList(Level(modalities, a, b, b, dims) for a, b in pairwise([channels, *widths]))
        up, below = [], widths[-1]
        for skip in reversed(skips):
            joined, below = below + skip, max(skip // 2, self.out_features)
            up.append(Level(modalities, joined, joined // 2, below, dims))
        self.up = nn.ModuleList(up)

    def forward(self, x: Tensor, modality: str) -> Tensor:
        pool = F.max_pool2d if self.dims == 2 else F.max_pool3d
        mode = "bilinear" if self.dims == 2 else "trilinear"
        maps: list[Tensor] = []
        for level, block in enumerate(self.down):
            x = block(pool(x, 2, ceil_mode=True) if level else x, modality)
            maps.append(x)
        x = maps.pop()
        for block in self.up:
            skip = maps.pop()
            # Aligned corners: for sizes that 2 divides, upsampling to the level's size is upsampling by 2.
            x = F.interpolate(x, size=skip.shape[2:], mode=mode, align_corners=True)
            x = block(torch.cat([skip, x], dim=1), modality)
        return x


class Level(nn.Module):
    """Two times: a convolution of 3 for all, a norm of the modality's own, ReLU."""

    def __init__(self, modalities: Sequence[str], channels: int, middle: int, out: int, dims: int) -> None:
        super().__init__()
        convolution = nn.Conv2d if dims == 2 else nn.Conv3d
        self.convolutions = nn.ModuleList(
            convolution(a, b, 3, padding=1) for a, b in ((channels, middle), (middle, out))
        )
        self.norms = nn.ModuleList(ModalityNorm(modalities, c, groups_of(c)) for c in (middle, out))

    def forward(self, x: Tensor, modality: str) -> Tensor:
        for convolution, norm in zip(self.convolutions, self.norms):
            x = norm(convolution(x), modality).relu()
        return x


def groups_of(channels: int) -> int:
    """8, or the most below that divide the channels and leave two or more to each."""
    found = gcd(8, channels)
    return found if found < channels else channels // 2

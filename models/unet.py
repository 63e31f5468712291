"""A small U-Net: one image or volume to a feature map of its size."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from equipoise.models.encoders import norm_groups
from equipoise.models.errors import EquipoiseError


class UNet(nn.Module):
    """[n, C, *positions] to [n, out_features, *positions], for pictures (`dims=2`) and volumes (`dims=3`) of any size
    (Ronneberger et al., "U-Net", MICCAI 2015).

    `depth` times: two convolutions of 3, each with GroupNorm and ReLU, then every second position (max-pooling); widths
    double from `hidden`. On the way up positions are repeated (nearest), cut to the size of the level, and joined with what
    the level had. Rows never influence each other.
    """

    def __init__(
        self, in_channels: int, out_features: int = 16, hidden: int = 8, depth: int = 2, dims: int = 3
    ) -> None:
        super().__init__()
        if dims not in (2, 3):
            raise EquipoiseError(f"UNet is for pictures (dims=2) and volumes (dims=3), not dims={dims}.")
        self.dims, self.out_features = dims, out_features
        widths = [hidden * 2**level for level in range(depth + 1)]
        self.down = nn.ModuleList(_double(a, b, dims) for a, b in pairwise([in_channels, *widths]))
        self.up = nn.ModuleList(_double(a + b, b, dims) for b, a in pairwise(widths))
        self.out = _convolution(dims)(widths[0], out_features, 1)

    def forward(self, x: Tensor, length: Tensor | None = None) -> Tensor:
        pool = F.max_pool2d if self.dims == 2 else F.max_pool3d
        levels: list[Tensor] = []
        for level, block in enumerate(self.down):
            # ceil_mode: a level of odd size, or of size 1, keeps its last position.
            x = block(pool(x, 2, ceil_mode=True) if level else x)
            levels.append(x)
        x = levels.pop()
        for block in reversed(self.up):
            skip = levels.pop()
            x = block(torch.cat([skip, repeated(x, skip.shape[2:])], dim=1))
        feature: Tensor = self.out(x)
        return feature


def repeated(x: Tensor, size: Sequence[int]) -> Tensor:
    """Every position twice along each axis, cut to `size`. By indexing: interpolation has no deterministic backward pass on
    CUDA.
    """
    for axis, length in enumerate(size, start=2):
        x = x.repeat_interleave(2, dim=axis).narrow(axis, 0, length)
    return x


def _convolution(dims: int) -> type[nn.Conv2d] | type[nn.Conv3d]:
    return nn.Conv2d if dims == 2 else nn.Conv3d


def _double(a: int, b: int, dims: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels in (a, b):
        layers += [_convolution(dims)(channels, b, 3, padding=1), nn.GroupNorm(norm_groups(b), b), nn.ReLU()]
    return nn.Sequential(*layers)

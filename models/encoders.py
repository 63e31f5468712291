"""Small reference encoders: one row of one modality to one feature vector.

Every encoder has `out_features`, takes `forward(x, length=None)` and gives [n, out_features]. Rows never influence each
other (LayerNorm and GroupNorm, no BatchNorm, no dropout), zero rows are a batch like any other, and what stands beyond
a row's `length` is never read: padding is overwritten with zeros first, so that not even NaN in it reaches a gradient.
"""

from collections.abc import Sequence
from itertools import pairwise
from math import prod

import torch
from torch import Tensor, nn


def valid_steps(length: Tensor, steps: int) -> Tensor:
    """bool [n, steps]: which steps of a padded sequence are real."""
    return torch.arange(steps, device=length.device) < length[:, None]


def zero_padding(x: Tensor, length: Tensor | None) -> Tensor:
    """x [n, T, ...] with zeros from each row's length on."""
    if length is None:
        return x
    padding = ~valid_steps(length, x.shape[1])
    return x.masked_fill(padding.reshape(*padding.shape, *(1,) * (x.ndim - 2)), 0)


def _channels_last(x: Tensor) -> Tensor:
    """[n, T] or [n, T, ...] to [n, T, C]."""
    return x.unsqueeze(2) if x.ndim == 2 else x.flatten(2)


class MLP(nn.Module):
    """Flattens a row of the fixed `in_shape`; ReLU between linear layers, none after the last."""

    def __init__(self, in_shape: int | Sequence[int], hidden: Sequence[int] = (64,), out_features: int = 64) -> None:
        super().__init__()
        widths = [in_shape if isinstance(in_shape, int) else prod(in_shape), *hidden]
        layers: list[nn.Module] = []
        for a, b in pairwise(widths):
            layers += [nn.Linear(a, b), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], out_features))
        self.out_features = out_features

    def forward(self, x: Tensor, length: Tensor | None = None) -> Tensor:
        feature: Tensor = self.layers(zero_padding(x, length).flatten(1))
        return feature


class CNN1d(nn.Module):
    """Convolutions of stride 2 over time on [n, T, C], then the mean over the steps that are real.

    Normalised a step (LayerNorm over channels), not over time: statistics over time would see the padding. For the same
    reason padding is zeroed again before each layer; a row's feature is that of the row without its padding.
    """

    def __init__(
        self, in_channels: int, out_features: int = 64, hidden: int = 64, depth: int = 2, kernel: int = 5
    ) -> None:
        super().__init__()
        widths = [in_channels, *[hidden] * depth]
        self.convolutions = nn.ModuleList(
            nn.Conv1d(a, b, kernel, stride=2, padding=kernel // 2) for a, b in pairwise(widths)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(b) for b in widths[1:])
        self.out = nn.Linear(widths[-1], out_features)
        self.out_features = out_features

    def forward(self, x: Tensor, length: Tensor | None = None) -> Tensor:
        x = _channels_last(x)
        for convolution, norm in zip(self.convolutions, self.norms):
            x = convolution(zero_padding(x, length).transpose(1, 2)).transpose(1, 2)
            x = norm(x).relu()
            length = None if length is None else (length + 1) // 2
        if length is None:
            mean = x.mean(dim=1)
        else:
            mean = zero_padding(x, length).sum(dim=1) / length.clamp(min=1, max=x.shape[1])[:, None]
        feature: Tensor = self.out(mean)
        return feature


class CNN2d(nn.Module):
    """Convolutions of stride 2 on [n, C, H, W], widths doubling from `hidden`, then the mean over positions."""

    def __init__(self, in_channels: int, out_features: int = 64, hidden: int = 32, depth: int = 2) -> None:
        super().__init__()
        widths = [in_channels, *[hidden * 2**i for i in range(depth)]]
        layers: list[nn.Module] = []
        for a, b in pairwise(widths):
            layers += [nn.Conv2d(a, b, 3, stride=2, padding=1), nn.GroupNorm(norm_groups(b), b), nn.ReLU()]
        self.layers = nn.Sequential(*layers)
        self.out = nn.Linear(widths[-1], out_features)
        self.out_features = out_features

    def forward(self, x: Tensor, length: Tensor | None = None) -> Tensor:
        # A plain mean: the backward pass of adaptive pooling is not deterministic on CUDA.
        feature: Tensor = self.out(self.layers(x).mean(dim=(2, 3)))
        return feature


def norm_groups(channels: int) -> int:
    """Up to 8 groups of at least 4 channels, so that a 1 x 1 image is not normalised away."""
    return next(g for g in (8, 4, 2, 1) if g == 1 or (channels % g == 0 and channels // g >= 4))


class GRU(nn.Module):
    """The last state of a GRU over float [n, T] or [n, T, C]; a sequence of length 0 has the state zero."""

    def __init__(self, in_features: int, out_features: int = 64, depth: int = 1) -> None:
        super().__init__()
        self.gru = nn.GRU(in_features, out_features, num_layers=depth, batch_first=True)
        self.out_features = out_features

    def forward(self, x: Tensor, length: Tensor | None = None) -> Tensor:
        x = _channels_last(x)
        if length is None:
            length = torch.full((len(x),), x.shape[1], device=x.device)
        # The state is read at each row's last step instead of packing: packing takes neither zero rows nor length 0.
        longest = int(length.max()) if len(length) else 1
        x = x[:, : max(1, longest)]
        states: Tensor = self.gru(zero_padding(x, length))[0]
        last = length.clamp(min=1, max=x.shape[1]) - 1
        state = states.gather(1, last[:, None, None].expand(-1, 1, states.shape[2])).squeeze(1)
        return state.masked_fill((length < 1)[:, None], 0)


class EmbeddingGRU(nn.Module):
    """Token ids int64 [n, T] through an embedding, then a `GRU`. Id 0 is padding."""

    def __init__(self, vocabulary: int, dim: int = 64, out_features: int = 64, depth: int = 1) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, dim, padding_idx=0)
        self.gru = GRU(dim, out_features, depth)
        self.out_features = out_features

    def forward(self, x: Tensor, length: Tensor | None = None) -> Tensor:
        feature: Tensor = self.gru(self.embedding(zero_padding(x, length)), length)
        return feature

"""What Dynamic Sharing is made of: a normalisation with an affine a modality, and a trunk for vectors."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from equipoise.models.errors import EquipoiseError


class ModalityNorm(nn.Module):
    """GroupNorm over [n, channels, *positions] whose scale and shift are the modality's own: `norm(x, modality)`.

    One group is LayerNorm. There are no running statistics, so the two vectors a modality are all that depends on it.
    """

    def __init__(self, modalities: Sequence[str], channels: int, groups: int = 1) -> None:
        super().__init__()
        self.groups = groups
        self.weight = nn.ParameterDict({m: nn.Parameter(torch.ones(channels)) for m in modalities})
        self.bias = nn.ParameterDict({m: nn.Parameter(torch.zeros(channels)) for m in modalities})

    def forward(self, x: Tensor, modality: str) -> Tensor:
        return F.group_norm(x, self.groups, self.weight[modality], self.bias[modality])

    def owned(self, modality: str) -> list[nn.Parameter]:
        return [self.weight[modality], self.bias[modality]]


class SharedMLP(nn.Module):
    """Vectors [n, dim] of any modality to features [n, dim]: norm and ReLU, then `depth` times Linear, norm and ReLU.

    The Linears are everybody's, the affines of the norms (LayerNorm) each modality's own.
    """

    dims = 0

    def __init__(self, modalities: Sequence[str], dim: int = 64, depth: int = 2) -> None:
        super().__init__()
        if dim < 2:
            raise EquipoiseError(f"SharedMLP normalises over its width, so dim must be 2 or more, found dim={dim}.")
        self.out_features = dim
        self.layers = nn.ModuleList(nn.Linear(dim, dim) for _ in range(depth))
        self.norms = nn.ModuleList(ModalityNorm(modalities, dim) for _ in range(depth + 1))

    def forward(self, x: Tensor, modality: str) -> Tensor:
        first, *others = self.norms
        x = first(x, modality).relu()
        for layer, norm in zip(self.layers, others):
            x = norm(layer(x), modality).relu()
        return x


#: {dims of a trunk: what makes logits of its features}: a linear layer, or one at every position.
HEADS: Mapping[int | None, Callable[[int, int], nn.Module]] = MappingProxyType(
    {0: nn.Linear, 2: partial(nn.Conv2d, kernel_size=1), 3: partial(nn.Conv3d, kernel_size=1)}
)

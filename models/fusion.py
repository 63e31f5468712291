"""Fusions: one feature a modality to logits, and which of them go with which absence and which unimodal logits."""

from collections.abc import Mapping
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from equipoise.models.contract import Absence, Unimodal
from equipoise.models.errors import EquipoiseError, unknown

FusionName = Literal["concat", "sum", "gated", "film", "attention", "average", "cosine"]


class Fusion(nn.Module):
    """Logits [B, K] from {modality: feature [B, D_m]} and `taking_part` bool[B, M].

    The features of absent modalities are already replaced (zeros, or the absent value's feature); `taking_part` is
    False where a modality is to be left out, and only fusions that can leave one out look at it.
    """

    absences: ClassVar[tuple[Absence, ...]] = ("feature", "input", "mean", "token")
    linear: ClassVar[bool] = False
    splits: ClassVar[bool] = False

    def __init__(self, sizes: Mapping[str, int], num_outputs: int, dim: int = 64) -> None:
        super().__init__()
        self.sizes = dict(sizes)

    def split(self, modality: str, feature: Tensor) -> Tensor:
        """Where the fusion `splits`: the logits [n, K] that are one modality's part of the fused ones."""
        raise NotImplementedError

    def owned(self) -> dict[str, list[nn.Parameter]]:
        """{modality: parameters of the fusion that it owns}; the others belong to the head."""
        return {}


class LinearFusion(Fusion):
    """Logits = the sum of one term W_m f_m a modality, and a bias b."""

    linear = True
    splits = True
    head: nn.Linear

    def term(self, modality: str, feature: Tensor) -> Tensor:
        """W_m f_m, [n, K]."""
        raise NotImplementedError

    @property
    def bias(self) -> Tensor:
        """b, [K]."""
        return self.head.bias

    def split(self, modality: str, feature: Tensor) -> Tensor:
        return self.term(modality, feature) + self.bias / len(self.sizes)


class Concat(LinearFusion):
    """logits = W [f_1 .. f_M] + b."""

    def __init__(self, sizes: Mapping[str, int], num_outputs: int, dim: int = 64) -> None:
        super().__init__(sizes, num_outputs, dim)
        self.head = nn.Linear(sum(sizes.values()), num_outputs)

    def forward(self, features: Mapping[str, Tensor], taking_part: Tensor) -> Tensor:
        logits: Tensor = self.head(torch.cat([features[m] for m in self.sizes], dim=1))
        return logits

    def term(self, modality: str, feature: Tensor) -> Tensor:
        names = list(self.sizes)
        start = sum(self.sizes[m] for m in names[: names.index(modality)])
        return F.linear(feature, self.head.weight[:, start : start + self.sizes[modality]])


class Cosine(Concat):
    """logits_k = scale * sum_m cos(f_m, W_m,k), without a bias (Xu et al., "MMCosine", ICASSP 2023): neither the size of a
    feature nor that of its weights lets a modality lead. A feature of zeros adds nothing.
    """

    def __init__(self, sizes: Mapping[str, int], num_outputs: int, dim: int = 64, scale: float = 10.0) -> None:
        Fusion.__init__(self, sizes, num_outputs, dim)
        self.head = nn.Linear(sum(sizes.values()), num_outputs, bias=False)
        self.scale = scale

    @property
    def bias(self) -> Tensor:
        return self.head.weight.new_zeros(self.head.out_features)

    def forward(self, features: Mapping[str, Tensor], taking_part: Tensor) -> Tensor:
        return torch.stack([self.term(m, features[m]) for m in self.sizes]).sum(dim=0)

    def term(self, modality: str, feature: Tensor) -> Tensor:
        names = list(self.sizes)
        start = sum(self.sizes[m] for m in names[: names.index(modality)])
        weight = self.head.weight[:, start : start + self.sizes[modality]]
        return self.scale * F.linear(_unit(feature), _unit(weight))


def _unit(x: Tensor) -> Tensor:
    """Rows of length 1. Shrunk first, so that no square overflows; what is shorter than 1e-6 is divided by that, which bounds
    how far its gradient is stretched.
    """
    return F.normalize(x / x.detach().abs().amax(dim=1, keepdim=True).clamp(min=1), dim=1, eps=1e-6)


class Sum(LinearFusion):
    """logits = W (f_1 + .. + f_M) + b, one W for all. A feature of zeros and a modality left out are the same thing."""

    absences = ("feature", "input", "drop", "mean", "token")

    def __init__(self, sizes: Mapping[str, int], num_outputs: int, dim: int = 64) -> None:
        super().__init__(sizes, num_outputs, dim)
        if len(set(sizes.values())) > 1:
            found = ", ".join(f"{m}: {size}" for m, size in sizes.items())
            raise EquipoiseError(
                f"fusion='sum' adds features, so encoders must agree in out_features, found {found}: make them equal, or "
                "use fusion='concat'."
            )
        self.head = nn.Linear(next(iter(sizes.values())), num_outputs)

    def forward(self, features: Mapping[str, Tensor], taking_part: Tensor) -> Tensor:
        logits: Tensor = self.head(torch.stack([features[m] for m in self.sizes]).sum(dim=0))
        return logits

    def term(self, modality: str, feature: Tensor) -> Tensor:
        return F.linear(feature, self.head.weight)


class Gated(Fusion):
    """Gated multimodal unit (Arevalo et al., "Gated Multimodal Units for Information Fusion", 2017, section 3.1).

    h_m = tanh(W_m f_m),  z_m = sigmoid(V_m [f_1 .. f_M]),  logits = W (sum z_m * h_m) + b

    W_m and V_m have no bias, as in the paper: a feature of zeros adds exactly nothing. For two modalities the paper also
    ties z_2 = 1 - z_1; this is its form for any number.
    """

    def __init__(self, sizes: Mapping[str, int], num_outputs: int, dim: int = 64) -> None:
        super().__init__(sizes, num_outputs, dim)
        total = sum(sizes.values())
        self.value = nn.ModuleDict({m: nn.Linear(size, dim, bias=False) for m, size in sizes.items()})
        self.gate = nn.ModuleDict({m: nn.Linear(total, dim, bias=False) for m in sizes})
        self.head = nn.Linear(dim, num_outputs)

    def forward(self, features: Mapping[str, Tensor], taking_part: Tensor) -> Tensor:
        everything = torch.cat([features[m] for m in self.sizes], dim=1)
        parts = [self.gate[m](everything).sigmoid() * self.value[m](features[m]).tanh() for m in self.sizes]
        logits: Tensor = self.head(torch.stack(parts).sum(dim=0))
        return logits


class FiLM(Fusion):
    """Feature-wise linear modulation (Perez et al., "FiLM: Visual Reasoning with a General Conditioning Layer", 2018).

    h = P f_1;  h <- (1 + gamma_m(f_m)) * h + beta_m(f_m) for m = 2 .. M;  logits = W h + b

    The order of the modalities matters: the first is modulated by the others.
    """

    def __init__(self, sizes: Mapping[str, int], num_outputs: int, dim: int = 64) -> None:
        super().__init__(sizes, num_outputs, dim)
        first, *others = sizes
        self.projection = nn.Linear(sizes[first], dim)
        self.modulation = nn.ModuleDict({m: nn.Linear(sizes[m], 2 * dim) for m in others})
        self.head = nn.Linear(dim, num_outputs)

    def forward(self, features: Mapping[str, Tensor], taking_part: Tensor) -> Tensor:
        first, *others = self.sizes
        h = self.projection(features[first])
        for m in others:
            gamma, beta = self.modulation[m](features[m]).chunk(2, dim=1)
            h = (1 + gamma) * h + beta
        logits: Tensor = self.head(h)
        return logits


class Attention(Fusion):
    """A learned query q attends over one token a modality.

    t_m = P_m f_m,  a = softmax over the modalities taking part of q . t_m / sqrt(dim),  logits = W (sum a_m t_m) + b
    """

    absences = ("feature", "input", "drop", "mean", "token")

    def __init__(self, sizes: Mapping[str, int], num_outputs: int, dim: int = 64) -> None:
        super().__init__(sizes, num_outputs, dim)
        self.token = nn.ModuleDict({m: nn.Linear(size, dim) for m, size in sizes.items()})
        self.query = nn.Parameter(0.02 * torch.randn(dim))
        self.head = nn.Linear(dim, num_outputs)

    def forward(self, features: Mapping[str, Tensor], taking_part: Tensor) -> Tensor:
        tokens = torch.stack([self.token[m](features[m]) for m in self.sizes], dim=1)
        scores = (tokens * self.query).sum(dim=2) / self.query.numel() ** 0.5
        # The lowest number instead of -inf, and zeros after the softmax: a row with nothing taking part stays finite.
        weights = scores.masked_fill(~taking_part, torch.finfo(scores.dtype).min).softmax(dim=1)
        weights = weights.masked_fill(~taking_part, 0)
        logits: Tensor = self.head((weights[:, :, None] * tokens).sum(dim=1))
        return logits


class Average(Fusion):
    """Decision fusion: logits = the mean over the modalities taking part of W_m f_m + b_m.

    Each modality owns its W_m and b_m. For classes, averaging logits is averaging log-probabilities: they differ by a number
    a row, which no probability sees.
    """

    absences = ("drop",)
    splits = True

    def __init__(self, sizes: Mapping[str, int], num_outputs: int, dim: int = 64) -> None:
        super().__init__(sizes, num_outputs, dim)
        self.heads = nn.ModuleDict({m: nn.Linear(size, num_outputs) for m, size in sizes.items()})

    def forward(self, features: Mapping[str, Tensor], taking_part: Tensor) -> Tensor:
        # The head of a modality that no row has does not run: its parameters then get no gradient, not one of zeros.
        there = taking_part.any(dim=0).tolist()
        parts = [
            self.split(m, features[m]).masked_fill(~taking_part[:, i, None], 0)
            for i, m in enumerate(self.sizes)
            if there[i]
        ]
        if not parts:
            # Zeros that depend on a parameter: DDP waits for a worker whose backward pass reaches none. The balanced step
            # forgets them where no row of the global batch has the modality.
            parts = [0 * self.split(m, features[m]) for m in self.sizes]
        return torch.stack(parts).sum(dim=0) / taking_part.sum(dim=1, keepdim=True).clamp(min=1)

    def split(self, modality: str, feature: Tensor) -> Tensor:
        logits: Tensor = self.heads[modality](feature)
        return logits

    def owned(self) -> dict[str, list[nn.Parameter]]:
        return {m: list(head.parameters()) for m, head in self.heads.items()}


FUSIONS: dict[str, type[Fusion]] = {
    "concat": Concat,
    "sum": Sum,
    "gated": Gated,
    "film": FiLM,
    "attention": Attention,
    "average": Average,
    "cosine": Cosine,
}


def check_combination(fusion: str, absence: str, unimodal: str) -> Unimodal:
    """The kind of unimodal logits that a late fusion gets ("auto" resolved).

    Raises an `EquipoiseError` for an unknown name and for a combination without a meaning.
    """
    if fusion not in FUSIONS:
        raise unknown("fusion", fusion, FUSIONS)
    if absence not in get_args(Absence):
        raise unknown("absence", absence, get_args(Absence))
    if unimodal not in ("auto", *get_args(Unimodal)):
        raise unknown("unimodal", unimodal, ("auto", *get_args(Unimodal)))
    kind = FUSIONS[fusion]
    if absence not in kind.absences:
        others = " or ".join(repr(f) for f, k in FUSIONS.items() if absence in k.absences)
        raise EquipoiseError(
            f"absence={absence!r} has no meaning for fusion={fusion!r}, which "
            f"{'takes the mean over what is there' if fusion == 'average' else 'needs a feature of every modality'}: use "
            f"absence={' or '.join(map(repr, kind.absences))}, or fusion={others}."
        )
    if unimodal == "auto":
        return "split" if kind.splits else "heads"
    if unimodal == "split" and not kind.splits:
        linear = " or ".join(repr(f) for f, k in FUSIONS.items() if k.splits)
        raise EquipoiseError(
            f"unimodal='split' has no meaning for fusion={fusion!r}, whose logits are not a sum of one term a modality: use "
            f"unimodal='heads' or 'coalition', or fusion={linear}."
        )
    return unimodal  # type: ignore[return-value]

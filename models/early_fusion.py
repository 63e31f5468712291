"""Early fusion: a single-stream transformer over the tokens of all modalities."""

from collections.abc import Mapping
from functools import partial
from math import ceil, prod
from typing import Literal

import torch
from torch import Tensor, nn

from equipoise.models.contract import Absence, MultimodalModel, Outputs
from equipoise.models.encoders import valid_steps, zero_padding
from equipoise.models.errors import EquipoiseError, unknown
from equipoise.models.presence import AbsentValues, call, check_inputs, check_names, on_rows


class Patches(nn.Module):
    """Splits a flattened row into at most `tokens` pieces of equal length, one Linear for all, plus learned positions.

    Gives tokens [n, tokens, dim] and which of them count, bool [n, tokens]: with a length, those that start before it.
    The first always counts, so that an empty sequence is a token too.
    """

    def __init__(self, in_shape: int | tuple[int, ...], tokens: int = 4, dim: int = 64) -> None:
        super().__init__()
        shape = (in_shape,) if isinstance(in_shape, int) else tuple(in_shape)
        self.values, self.step = prod(shape), prod(shape[1:])
        self.piece = ceil(self.values / tokens)
        self.tokens = ceil(self.values / self.piece)
        self.linear = nn.Linear(self.piece, dim)
        self.positions = nn.Parameter(0.02 * torch.randn(self.tokens, dim))

    def forward(self, x: Tensor, length: Tensor | None = None) -> tuple[Tensor, Tensor]:
        flat = zero_padding(x, length).flatten(1)
        flat = nn.functional.pad(flat, (0, self.tokens * self.piece - self.values))
        tokens = self.linear(flat.reshape(len(x), self.tokens, self.piece)) + self.positions
        if length is None:
            return tokens, torch.ones(tokens.shape[:2], dtype=torch.bool, device=x.device)
        begun = (length * self.step + self.piece - 1) // self.piece
        return tokens, valid_steps(begun.clamp(min=1), self.tokens)


class Words(nn.Module):
    """Token ids int64 [n, T] to one token each: embedding plus learned positions. An empty text is one padding token."""

    def __init__(self, vocabulary: int, max_length: int, dim: int = 64) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, dim)
        self.positions = nn.Parameter(0.02 * torch.randn(max_length, dim))

    def forward(self, x: Tensor, length: Tensor | None = None) -> tuple[Tensor, Tensor]:
        tokens = self.embedding(zero_padding(x, length)) + self.positions[: x.shape[1]]
        if length is None:
            return tokens, torch.ones_like(x, dtype=torch.bool)
        return tokens, valid_steps(length.clamp(min=1), x.shape[1])


class Block(nn.Module):
    """One pre-norm transformer layer without dropout: x + attention(norm(x)), then x + mlp(norm(x)).

    Written out because `nn.TransformerEncoderLayer` and `nn.MultiheadAttention` take another, fused kernel in eval mode
    without gradient, and give NaN in a row whose tokens are all masked.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention, self.norm_mlp = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        rows, tokens, dim = x.shape
        split = self.qkv(self.norm_attention(x)).reshape(rows, tokens, 3, self.heads, dim // self.heads)
        q, k, v = split.permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(2, 3) / (dim // self.heads) ** 0.5
        # The lowest number instead of -inf: a row without a valid token gets equal weights, not NaN.
        weights = scores.masked_fill(~valid[:, None, None, :], torch.finfo(scores.dtype).min).softmax(dim=-1)
        x = x + self.out((weights @ v).transpose(1, 2).reshape(rows, tokens, dim))
        further: Tensor = self.mlp(self.norm_mlp(x))
        return x + further


class EarlyFusion(MultimodalModel):
    """Tokens of all modalities, each with its modality's type embedding, through one transformer; the mean over the
    tokens taking part, then a linear head. There is no feature a modality, so every coalition is a full pass.

    >>> model = EarlyFusion({"image": Patches((1, 28, 28), 7), "audio": Patches(40)}, num_classes=10)  # doctest: +SKIP

    Args:
        tokenizers: {modality: module}, in the order of the columns of `present`. A module maps [n, ...] to tokens
            [n, tokens, dim], or to (tokens, bool [n, tokens]: which of them count); with lengths it takes (x, length).
        num_classes: number of logits.
        dim, depth, heads: width, layers and attention heads of the transformer.
        absence: "drop" (no tokens), "input" (the tokens of the absent value) or "mean" (those of the mean input).
        unimodal: "coalition" ("auto" means the same).
        absent_values: {modality: a row} for absence="input" and "mean", where zeros (and length 0) are not what absence means.
    """

    late_fusion = False
    unimodal = "coalition"

    def __init__(
        self,
        tokenizers: Mapping[str, nn.Module],
        num_classes: int,
        dim: int = 64,
        depth: int = 2,
        heads: int = 4,
        absence: Absence = "drop",
        unimodal: Literal["coalition", "auto"] = "coalition",
        absent_values: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.modalities = check_names(tokenizers)
        check_early(absence, unimodal)
        if dim % heads:
            raise EquipoiseError(f"dim={dim} must be a multiple of heads={heads}.")
        if absent_values and absence not in ("input", "mean"):
            raise EquipoiseError(
                f"absent_values are only read with absence='input' or 'mean', not with absence={absence!r}."
            )
        self.absence = absence
        self.dim = dim
        self.tokenizers = nn.ModuleDict(dict(tokenizers))
        self.types = nn.ParameterDict({m: nn.Parameter(0.02 * torch.randn(dim)) for m in self.modalities})
        self.absent_values = AbsentValues(self.modalities, absent_values)
        self.blocks = nn.ModuleList(Block(dim, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, num_classes)

    def tokens(self, modality: str, x: Tensor, length: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Tokens [n, t, dim] of n rows of one modality with its type embedding, and which count, bool [n, t]."""
        found = call(self.tokenizers[modality], modality, x, length)
        tokens, valid = found if isinstance(found, tuple) else (found, None)
        if tokens.ndim != 3 or tokens.shape[2] != self.dim:
            raise EquipoiseError(
                f"The tokenizer of modality {modality!r} must give [n, tokens, {self.dim}], but it gave "
                f"{tuple(tokens.shape)}: make its width the model's dim."
            )
        if valid is None:
            valid = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        # Here, not after the rows are put together: where no row has the modality, its embedding takes no part either.
        return tokens + self.types[modality], valid

    def forward(self, inputs: Mapping[str, Tensor], present: Tensor) -> Outputs:
        """Logits [B, num_classes] of all tokens together; no features and no unimodal logits, which early fusion has not."""
        check_inputs(inputs, present, self.modalities)
        rows = len(present)
        counts = present.sum(dim=0).tolist()
        sequence = [self.head.weight.new_zeros(rows, 0, self.dim)]
        counted = [present.new_zeros(rows, 0)]
        for i, m in enumerate(self.modalities):
            x, length, has = inputs[m], inputs.get(f"{m}_length"), present[:, i]
            found = on_rows(partial(self.tokens, m), x, length, has, counts[i])
            if self.absence in ("input", "mean"):
                # Also where no row lacks it: all DDP workers must run the same modules.
                tokens, valid = self.tokens(m, *self.absent_values(m, x, length))
                if found:
                    tokens = torch.where(has[:, None, None], found[0], tokens)
                    valid = torch.where(has[:, None], found[1], valid)
                found = tokens.expand(rows, -1, -1), valid.expand(rows, -1)
            if found:
                sequence.append(found[0])
                counted.append(found[1])
        x, valid = torch.cat(sequence, dim=1), torch.cat(counted, dim=1)
        for block in self.blocks:
            x = block(x, valid)
        total = self.norm(x).masked_fill(~valid[:, :, None], 0).sum(dim=1)
        return Outputs(self.head(total / valid.sum(dim=1, keepdim=True).clamp(min=1)))

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        groups = {m: [*self.tokenizers[m].parameters(), self.types[m]] for m in self.modalities}
        return groups | {
            "shared": [*self.blocks.parameters(), *self.norm.parameters()],
            "head": list(self.head.parameters()),
        }


def check_early(absence: str, unimodal: str) -> None:
    """Raise an `EquipoiseError` for an absence or a kind of unimodal logits that early fusion cannot have."""
    if absence in ("feature", "token"):
        raise EquipoiseError(
            f"absence={absence!r} has no meaning for early fusion, which has no feature a modality: use absence='drop', 'input' "
            "or 'mean'."
        )
    if absence not in ("drop", "input", "mean"):
        raise unknown("absence", absence, ("drop", "input", "mean"))
    if unimodal in ("split", "heads"):
        raise EquipoiseError(
            f"unimodal={unimodal!r} has no meaning for early fusion, which has no feature a modality: use "
            "unimodal='coalition', or a late fusion."
        )
    if unimodal not in ("coalition", "auto"):
        raise unknown("unimodal", unimodal, ("coalition", "auto"))

"""The configuration of a model."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from equipoise.models.contract import Absence
from equipoise.models.early_fusion import check_early
from equipoise.models.errors import EquipoiseError
from equipoise.models.fusion import FUSIONS, FusionName, check_combination

EncoderKind = Literal["mlp", "cnn1d", "cnn2d", "gru", "embedding_gru", "unet"]


class EncoderConfig(BaseModel):
    """The encoder of a modality. `kind="auto"` chooses by the modality's kind and shape, see `auto_encoder`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["auto", "mlp", "cnn1d", "cnn2d", "gru", "embedding_gru", "unet"] = "auto"
    hidden: int | None = Field(
        default=None, ge=1, description="width inside: mlp, cnn1d, embedding_gru 64, cnn2d 32, unet 8; gru has none"
    )
    depth: int | None = Field(
        default=None, ge=1, description="hidden or recurrent layers: mlp, gru 1, cnn1d, cnn2d 2; levels of a unet: 2"
    )
    out_features: int | None = Field(
        default=None, ge=1, description="size of the feature: 64; at each position of a unet: 16"
    )


def meaningless(field: str, kind: str, beside: str = "") -> EquipoiseError:
    """A field is set that a model of this kind would not read; a mapping of a file is emptied by an override."""
    emptied = f", or write model.{field}={{}} beside a file that has it" if field in ("encoder", "encoders") else ""
    return EquipoiseError(f"model.{field} has no meaning for model.kind={kind!r}{beside}: leave it out{emptied}.")


class ModelConfig(BaseModel):
    """What model to build. `encoders` has an encoder for single modalities, `encoder` the one for all others."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["late", "early", "sharing"] = "late"
    encoder: EncoderConfig = Field(default_factory=EncoderConfig)
    encoders: dict[str, EncoderConfig] = {}
    # Spelt out: pydantic's sentence on a union of literals names the union.
    fusion: Literal["concat", "sum", "gated", "film", "attention", "average", "cosine", "auto"] = Field(
        "auto", description="late fusion only; auto: what the balancer needs, else concat"
    )
    absence: Literal["feature", "input", "drop", "mean", "token", "auto"] = Field(
        "auto", description="auto: feature for late fusion (average: drop), drop for early and sharing"
    )
    dim: int = Field(
        64, ge=1, description="width inside gated, film, attention, of the early network, of a shared trunk"
    )
    scale: float = Field(10.0, gt=0, description="of the cosines of fusion=cosine")
    depth: int = Field(2, ge=1, description="layers of the early network, of a shared trunk of vectors")
    heads: int = Field(4, ge=1, description="attention heads of the early transformer")
    tokens: int = Field(4, ge=1, description="tokens of a modality that is not text, early transformer only")
    join: Literal["auto", "tokens", "concat"] = Field(
        "auto",
        description="early only: tokens of a transformer, or inputs side by side; auto: tokens, segmentation: concat",
    )
    width: float = Field(0.5, gt=0, description="of the U-Net of sharing and early: 32 * width channels at first")
    levels: int = Field(4, ge=1, description="of the U-Net of sharing and early: how often positions are halved")

    @model_validator(mode="after")
    def _has_a_meaning(self) -> "ModelConfig":
        if self.kind == "early" and self.fusion == "concat":
            # What configurations of early fusion held before "auto" was the default.
            object.__setattr__(self, "fusion", "auto")
        other = {
            "late": ("depth", "heads", "tokens", "join", "width", "levels"),
            "early": (
                "encoder",
                "encoders",
                "fusion",
                "scale",
                *(("heads", "tokens") if self.join == "concat" else ()),
            ),
            "sharing": ("fusion", "scale", "heads", "tokens", "join"),
        }[self.kind]
        for field in other:
            if self.sets(field):
                beside = " and model.join='concat'" if field in ("heads", "tokens") and self.kind == "early" else ""
                raise meaningless(field, self.kind, beside)
        if self.fusion not in ("cosine", "auto") and self.sets("scale"):
            raise EquipoiseError(f"model.scale has no meaning for model.fusion={self.fusion!r}: leave it out.")
        if self.kind == "late":
            check_combination(self.resolved_fusion, self.resolved_absence, "auto")
        elif self.kind == "early":
            check_early(self.resolved_absence, "auto")
        elif self.resolved_absence != "drop":
            raise EquipoiseError(
                f"model.absence={self.absence!r} has no meaning for model.kind='sharing', where absent modalities are left out "
                "of a mean and nothing stands in for them: leave it out, or use model.kind='late'."
            )
        return self

    def sets(self, field: str) -> bool:
        """Whether a field differs from its default."""
        default = type(self).model_fields[field].get_default(call_default_factory=True)
        return bool(getattr(self, field) != default)

    @property
    def described(self) -> str:
        """What kind of model it is, in words."""
        return {"late": "late fusion", "early": "early fusion", "sharing": "Dynamic Sharing"}[self.kind]

    @property
    def resolved_fusion(self) -> FusionName:
        return "concat" if self.fusion == "auto" else self.fusion

    @property
    def resolved_absence(self) -> Absence:
        if self.absence == "auto":
            return FUSIONS[self.resolved_fusion].absences[0] if self.kind == "late" else "drop"
        return self.absence

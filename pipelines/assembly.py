"""From a configuration and a manifest to a model and a task."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from equipoise import balancers
from equipoise.datasets.manifest import Manifest
from equipoise.models import ModelConfig, MultimodalModel, build_model
from equipoise.models.errors import EquipoiseError
from equipoise.models.modality import Modality
from equipoise.pipelines.config import Config


def assemble(config: Config, manifest: Manifest) -> MultimodalModel:
    """The model of a run: seeded by the run's seed, with the balancer's first accepted kind of unimodal logits where the
    model's own default is not among them.
    """
    if config.impairment is not None:
        config.impairment.check(manifest.names)
    name = config.balancer.name
    accepts = balancers.get(name, **config.balancer.options).accepts
    model = build_seeded(config.model, manifest, "auto", config.seed)
    if model.unimodal in accepts:
        return model
    if not model.late_fusion:
        raise EquipoiseError(
            f"Balancer {name!r} needs unimodal logits of kind {' or '.join(accepts)}, and a model that fuses early has only "
            "coalitions: use model.kind=late, or another balancer."
        )
    return build_seeded(config.model, manifest, accepts[0], config.seed)


def autocast_dtype(config: Config) -> torch.dtype | None:
    """What the step's passes through the model are cast to, None for float32."""
    dtype: torch.dtype = getattr(torch, config.precision)
    return None if dtype == torch.float32 else dtype


def fills(modalities: Sequence[Modality], fitted: Mapping[str, Mapping[str, Any]]) -> dict[str, Tensor]:
    """{modality: its mean train input, up to broadcasting} of those that are not standardized, from the fitted state."""
    found = {}
    for m in modalities:
        if "fill" in fitted.get(m.name, {}):
            mean = torch.tensor(fitted[m.name]["fill"], dtype=torch.float64)
            channels = len(m.decoded_shape) >= 3
            found[m.name] = mean.reshape(-1, *(1,) * (len(m.decoded_shape) - 1)) if channels else mean.reshape(m.shape)
    return found


def build_seeded(
    config: ModelConfig | Mapping[str, Any], manifest: Manifest, unimodal: Any, seed: int = 0
) -> MultimodalModel:
    """A model of a configuration, its parameters a function of the seed; leaves torch's global generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        task = manifest.build_task()
        return build_model(
            config if isinstance(config, ModelConfig) else ModelConfig.model_validate(config),
            manifest.modalities,
            task.num_outputs,
            unimodal=unimodal,
            dense=task.dense,
            fills=fills(manifest.modalities, manifest.fitted),
        )

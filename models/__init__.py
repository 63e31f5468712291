"""Models: the contract, tasks, modalities, encoders and fusions. Torch only, no Ray.

Names are loaded when they are first asked for: data workers that read `equipoise.models.modality` need no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from equipoise.models.batch import Batch, check_batch, to_batch
    from equipoise.models.build import build_encoder, build_model
    from equipoise.models.config import EncoderConfig, ModelConfig
    from equipoise.models.contract import Absence, MultimodalModel, Outputs, Unimodal, absent_key, check_ownership
    from equipoise.models.dense import DenseFusion
    from equipoise.models.dynamic_sharing import DynamicSharing
    from equipoise.models.early_concat import EarlyConcat
    from equipoise.models.early_fusion import EarlyFusion, Patches, Words
    from equipoise.models.encoders import GRU, MLP, CNN1d, CNN2d, EmbeddingGRU
    from equipoise.models.errors import EquipoiseError
    from equipoise.models.late_fusion import LateFusion
    from equipoise.models.modality import Modality
    from equipoise.models.multilabel import MultiLabel
    from equipoise.models.regression import Regression
    from equipoise.models.segmentation import Segmentation
    from equipoise.models.shared_trunk import ModalityNorm, SharedMLP
    from equipoise.models.shared_unet import SharedUNet
    from equipoise.models.task import Classification, Task
    from equipoise.models.unet import UNet

_HOMES = {
    "batch": ("Batch", "check_batch", "to_batch"),
    "build": ("build_encoder", "build_model"),
    "config": ("EncoderConfig", "ModelConfig"),
    "contract": ("Absence", "MultimodalModel", "Outputs", "Unimodal", "absent_key", "check_ownership"),
    "dense": ("DenseFusion",),
    "dynamic_sharing": ("DynamicSharing",),
    "early_concat": ("EarlyConcat",),
    "shared_trunk": ("ModalityNorm", "SharedMLP"),
    "shared_unet": ("SharedUNet",),
    "unet": ("UNet",),
    "early_fusion": ("EarlyFusion", "Patches", "Words"),
    "encoders": ("CNN1d", "CNN2d", "EmbeddingGRU", "GRU", "MLP"),
    "errors": ("EquipoiseError",),
    "late_fusion": ("LateFusion",),
    "modality": ("Modality",),
    "multilabel": ("MultiLabel",),
    "regression": ("Regression",),
    "segmentation": ("Segmentation",),
    "task": ("Classification", "Task"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "Absence", "Batch", "CNN1d", "CNN2d", "Classification", "DenseFusion", "DynamicSharing", "EarlyConcat",
    "EarlyFusion", "EmbeddingGRU",
    "EncoderConfig", "EquipoiseError", "GRU", "LateFusion", "MLP", "Modality", "ModalityNorm", "ModelConfig", "MultiLabel",
    "MultimodalModel", "Outputs", "Patches", "Regression", "Segmentation", "SharedMLP",
    "SharedUNet", "Task", "UNet", "Unimodal", "Words",
    "absent_key", "build_encoder", "build_model", "check_batch", "check_ownership", "to_batch",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _HOME_OF:
        return getattr(import_module(f"equipoise.models.{_HOME_OF[name]}"), name)
    raise AttributeError(f"module 'equipoise.models' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)

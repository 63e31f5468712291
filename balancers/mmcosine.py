"""MMCosine: the multimodal cosine loss."""

from typing import ClassVar

from equipoise.balancers.balancer import Family
from equipoise.balancers.joint import Joint


class MMCosine(Joint):
    """Joint training of cosines: no modality can lead by the size of its features or weights (Xu et al., "MMCosine:
    Multi-Modal Cosine Loss Towards Balanced Audio-Visual Fine-Grained Learning", ICASSP 2023).

        z_k = s * sum_m cos(f_m, W_m,k);  L = mean CE(z, y)

    The logits are the fusion's (`model.fusion=cosine`, its scale s `model.scale`), in training and in prediction.
    """

    name = "mmcosine"
    family: ClassVar[Family] = "objective"
    accepts = ("split", "heads")
    fusions = ("cosine",)
    tasks = ("classification",)

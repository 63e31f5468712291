"""Methods that are registered nowhere, for the tests alone."""

from equipoise.balancers import Balancer
from equipoise.balancers.modality_objectives import ModalityObjectives


class SeparateSummed(Balancer):
    """Fused and unimodal losses kept apart and added: must give what `summed` gives on the DDP road."""

    separate = True
    accepts = ("split", "heads")
    objectives = ModalityObjectives.objectives


SKETCHES = {
    "separate_summed": SeparateSummed,
}

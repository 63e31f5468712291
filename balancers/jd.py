"""TorchJD's aggregators over the fused and the unimodal objectives."""

from functools import cached_property
from importlib.util import find_spec
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from equipoise.balancers.balancer import Balancer
from equipoise.balancers.context import StepContext
from equipoise.balancers.gradients import Gradients
from equipoise.balancers.min_norm import root
from equipoise.balancers.modality_objectives import ModalityObjectives, length, shared, weighted
from equipoise.models.contract import MultimodalModel
from equipoise.models.errors import EquipoiseError
from equipoise.models.task import Task


class JD(ModalityObjectives):
    """Jacobian descent: combine the objectives' gradients by an aggregator of the library TorchJD (Quinton and Rey, "Jacobian
    Descent for Multi-Objective Optimization", 2024; each aggregator is of a paper of its own, named in TorchJD's documents).

        J = gradients of the fused and of each unimodal loss over the parameters that several of them reach
        gradient = aggregator(J) there; what a single loss reaches, such as its own head, by that loss's own gradient

    UPGrad, the default, projects each gradient onto the directions along which no objective rises, and takes the mean. Its
    quadratic programs, and DualProj's, are solved exactly by scipy: TorchJD's own solver needs a package under the GPL.

    Needs TorchJD: pip install 'equipoise[jd]'. Without it the method is listed, and refused when a step is made.
    """

    name = "jd"

    class Options(Balancer.Options):
        """Which aggregator of TorchJD, and whose gradients it gets."""

        aggregator: Literal[
            "UPGrad", "DualProj", "AlignedMTL", "IMTLG", "MGDA", "PCGrad", "ConFIG", "GradDrop", "CAGrad", "FairGrad"
        ] = Field("UPGrad", description="the class of torchjd.aggregation")
        arguments: dict[str, float | str] = Field({}, description="what it is made with, such as {c: 0.4} for CAGrad")
        parameters: Literal["shared", "all"] = Field(
            "shared", description="whose gradients are aggregated: what several objectives reach, or all as one vector"
        )

    def check(self, model: MultimodalModel, task: Task) -> None:
        super().check(model, task)
        _ = self.aggregator

    @cached_property
    def aggregator(self) -> Any:
        """The aggregator of TorchJD, from a matrix [k, P] to a vector [P].

        Raises:
            EquipoiseError: TorchJD, or what one of its aggregators needs beside it, is not installed; arguments that the
                aggregator does not take.
        """
        if find_spec("torchjd") is None:
            raise EquipoiseError(
                "Balancer 'jd' needs the library TorchJD, which is not installed: pip install 'equipoise[jd]', or choose the "
                "balancer pcgrad or mgda, which need nothing more."
            )
        from torchjd import aggregation

        name, arguments = self.options.aggregator, dict(self.options.arguments)
        if name in ("UPGrad", "DualProj"):
            arguments["projector"] = projected_weights
        try:
            return getattr(aggregation, name)(**arguments)
        except ImportError as error:
            raise EquipoiseError(f"The aggregator {name!r} of balancer 'jd' needs more than TorchJD: {error}") from None
        except (TypeError, ValueError) as error:
            raise EquipoiseError(
                f"The aggregator {name!r} of balancer 'jd' cannot be made with arguments={self.options.arguments}: {error}."
            ) from None

    def combine(self, gradients: Gradients, ctx: StepContext) -> Tensor:
        spans = shared(gradients) if self.options.parameters == "shared" else [slice(0, gradients.layout.size)]
        # Some aggregators draw from torch's own generators: seeded by the step, which gets them back as they were.
        with torch.random.fork_rng([gradients.flat.device] if gradients.flat.is_cuda else []):
            torch.manual_seed(ctx.generator("jd").initial_seed())
            if not spans:
                combined = gradients.flat.sum(dim=0)
            elif hasattr(self.aggregator, "gramian_weighting"):
                weights = ctx.agreed(self.aggregator.gramian_weighting(gradients.products(spans)))
                combined = weighted(gradients, weights, spans)
                for name, weight in zip(gradients.names, weights.tolist(), strict=True):
                    ctx.report(f"jd_weight_{name}", weight)
            else:
                combined = gradients.flat.sum(dim=0)
                whole = ctx.agreed(self.aggregator(torch.cat([gradients.flat[:, span] for span in spans], dim=1)))
                for span, part in zip(spans, torch.split(whole, [s.stop - s.start for s in spans]), strict=True):
                    combined[span] = part
        ctx.report("jd_norm", length(combined, spans))
        return combined


def projected_weights(directions: Tensor, gram: Tensor) -> Tensor:
    """For each u [k] in `directions` [..., k] the w of the projection G'w of G'u onto the vectors that no gradient opposes.

    It is the w >= u of smallest w'Kw, K = GG' [k, k] (Quinton and Rey, 2024, proposition 1): a non-negative least-squares
    problem for w - u.
    """
    from scipy.optimize import nnls  # every process of a run imports the balancers, and few need this

    f = root(gram.double().cpu().numpy())
    u = directions.double().cpu().numpy()
    found = np.apply_along_axis(lambda row: row + nnls(f, -f @ row, maxiter=100 * len(row))[0], -1, u)
    return torch.from_numpy(found).to(directions)

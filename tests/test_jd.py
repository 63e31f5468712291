"""TorchJD's aggregators through the balanced step: formulas, brute force, chance, and what is refused."""

from importlib.util import find_spec

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles.pareto import min_norm_point, projected_on_dual_cone
from pareto_cases import (
    FULL,
    TWO,
    VECTORS,
    aggregation,
    assert_close,
    by_hand,
    combined,
    expected_of_shared,
    flat,
    measured,
    needs_torchjd,
    shared_names,
    step_of,
)
from world_cases import global_batch

from equipoise import balancers
from equipoise.balancers import jd as jd_module
from equipoise.balancers.jd import projected_weights
from equipoise.models import EquipoiseError


@needs_torchjd
@settings(max_examples=60, deadline=None)
@given(VECTORS, st.integers(0, 4))
def test_projections_onto_the_dual_cone_are_those_of_brute_force(gradients, which):
    g = torch.tensor(gradients, dtype=torch.float64)
    u = torch.eye(len(g), dtype=torch.float64)[which % len(g)]
    w = projected_weights(u, g @ g.T)
    assert bool((w >= u - 1e-12).all())
    np.testing.assert_allclose((w @ g).numpy(), projected_on_dual_cone(g.numpy(), u.numpy() @ g.numpy()), atol=1e-6)


def upgrad(g):
    return np.mean([projected_on_dual_cone(g, row) for row in g], axis=0)


def of_torchjd(name, **arguments):
    return lambda g: getattr(aggregation, name)(**arguments)(torch.from_numpy(g)).numpy()


AGGREGATORS = [
    ("UPGrad", {}, upgrad, 1e-5),
    ("DualProj", {}, lambda g: projected_on_dual_cone(g, g.mean(axis=0)), 1e-5),
    ("MGDA", {"epsilon": 1e-6}, min_norm_point, 0.02),
    ("AlignedMTL", {"scale_mode": "median"}, of_torchjd("AlignedMTL", scale_mode="median"), 1e-5),
    ("IMTLG", {}, of_torchjd("IMTLG"), 1e-5),
    ("ConFIG", {}, of_torchjd("ConFIG"), 1e-5),
    ("FairGrad", {"alpha": 1.0}, of_torchjd("FairGrad", alpha=1.0), 1e-4),
    pytest.param(
        "CAGrad", {"c": 0.4}, of_torchjd("CAGrad", c=0.4), 1e-5,
        marks=pytest.mark.skipif(find_spec("cvxpy") is None, reason="CAGrad needs torchjd[cagrad]"),
    ),
]  # fmt: skip


@needs_torchjd
@pytest.mark.parametrize(("aggregator", "arguments", "formula", "tolerance"), AGGREGATORS)
def test_jd_step(aggregator, arguments, formula, tolerance):
    for t, kind in [(0, "heads"), (FULL, "split")]:
        batch, _, gradients = measured(t, kind)
        found, _, result = step_of("jd", batch, unimodal=kind, aggregator=aggregator, arguments=arguments)
        expected = expected_of_shared(gradients, formula)
        scale = np.linalg.norm(flat(expected))
        for n, g in expected.items():
            np.testing.assert_allclose(found[n], g, atol=tolerance * scale, err_msg=n)
        names = shared_names(gradients)
        assert result.statistics["jd_norm"] == pytest.approx(np.linalg.norm(flat({n: found[n] for n in names})))


@needs_torchjd
@pytest.mark.parametrize("aggregator", ["PCGrad", "GradDrop"])
def test_an_aggregator_s_chance_is_the_step_s(aggregator):
    batch, _, _ = measured(0, "heads")
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first, _, _ = step_of("jd", batch, seed=5, aggregator=aggregator)
    torch.manual_seed(2)
    again, _, _ = step_of("jd", batch, seed=5, aggregator=aggregator)
    assert_close(first, again)
    # The step leaves torch's own generator as it was.
    g = by_hand(fused=TWO, a=[-x for x in TWO])
    torch.set_rng_state(before)
    combined("jd", g, aggregator=aggregator)
    assert torch.equal(torch.get_rng_state(), before)


def test_without_torchjd_the_method_is_listed_and_refused_in_a_sentence(monkeypatch):
    assert "jd" in balancers.names()
    monkeypatch.setattr(jd_module, "find_spec", lambda name: None)
    balancer = balancers.get("jd", aggregator="AlignedMTL")
    with pytest.raises(
        EquipoiseError, match=r"TorchJD, which is not installed: pip install 'equipoise\[jd\]', or choose"
    ):
        step_of(balancer, global_batch(0, torch.float64))


@needs_torchjd
@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"aggregator": "UpGrad"}, "Option 'aggregator' of balancer 'jd': .*'UPGrad'"),
        ({"aggregator": "FairGrad"}, r"'FairGrad' of balancer 'jd' cannot be made with arguments=\{\}: .*'alpha'"),
        ({"aggregator": "MGDA", "arguments": {"epsilon": -1}}, r"'MGDA' .* cannot be made .*epsilon must be positive"),
        pytest.param(
            {"aggregator": "CAGrad", "arguments": {"c": 0.4}},
            r"'CAGrad' .* needs more than TorchJD: .*torchjd\[cagrad\]",
            marks=pytest.mark.skipif(find_spec("cvxpy") is not None, reason="cvxpy is installed"),
        ),
        ({"aggregator": "IMTLG", "arguments": {"c": 1}}, "'IMTLG' of balancer 'jd' cannot be made with arguments.*'c'"),
    ],
)
def test_options_of_jd_that_make_no_aggregator(options, sentence):
    with pytest.raises(EquipoiseError, match=sentence):
        step_of("jd", global_batch(0, torch.float64), **options)

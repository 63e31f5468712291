"""Compiled encoders: the same numbers, the same names, on the road of one summed objective alone."""

import pytest
import torch
from test_balanced_step import batch, make_step, refused
from torch import nn
from world_cases import build_model

from equipoise import balancers
from equipoise.balancers import Monitor
from equipoise.models import MLP, LateFusion, MultimodalModel
from equipoise.pipelines.config import load_config

APART = [name for name in balancers.names() if balancers.get(name).separate]


@pytest.fixture(autouse=True)
def fresh():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


class Traced:
    """A backend that counts the graphs it was given, and how often they run, as they are."""

    def __init__(self):
        self.graphs = self.runs = 0

    def __call__(self, graph, examples):
        self.graphs += 1

        def run(*args):
            self.runs += 1
            return graph.forward(*args)

        return run


def pair(name, backend, **how):
    """Two steps over the same batches, the second with compiled encoders."""
    steps = [make_step(name, dtype=torch.float32, compile=made, **how) for made in (False, {"backend": backend})]
    for t in range(7):  # in steps 5 and 6 no row has "b", and in others the rows that have it vary
        results = [step(batch(t, torch.float32)) for step in steps]
        assert results[1].losses == pytest.approx(results[0].losses, rel=1e-5)
    return steps


def assert_alike(steps, rtol=1e-5, atol=1e-6):
    plain, compiled = (step.model.state_dict() for step in steps)
    assert list(plain) == list(compiled)
    torch.testing.assert_close(compiled, plain, rtol=rtol, atol=atol)


@pytest.mark.parametrize("name", ["joint", "ogm"])
def test_compiled_encoders_train_to_the_same_parameters(name):
    backend = Traced()
    steps = pair(name, backend, optimizer=lambda p: torch.optim.SGD(p, lr=0.05))
    assert_alike(steps)
    # One graph an encoder for any number of rows, one more for a single row.
    assert 3 <= backend.graphs <= 6


@pytest.mark.slow
@pytest.mark.parametrize("name", ["joint", "summed"])
def test_inductor_trains_to_the_same_parameters(name):
    assert_alike(pair(name, "inductor", optimizer=lambda p: torch.optim.SGD(p, lr=0.05)), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_inductor_under_two_workers(gloo):
    [plain], both = (gloo.run("step_cases", "compiled", world, "summed") for world in (1, 2))
    torch.testing.assert_close(torch.tensor(both[0]), torch.tensor(plain), rtol=1e-4, atol=1e-5)
    assert both[0] == both[1]


@pytest.mark.parametrize("name", APART)
def test_a_balancer_that_goes_backward_several_times_is_refused(name):
    sentence = f"Balancer '{name}' goes backward through the encoders once an objective, .* leave compile out"
    with refused(sentence):
        make_step(name, compile=True)
    with refused(sentence):
        load_config({"data": "d", "out": "o", "max_steps": 1, "balancer": name, "compile": True})


@pytest.mark.slow
def test_why_it_is_refused():
    # The day that torch allows this, the refusal can go.
    model = MLP(3)
    model.compile(dynamic=True)
    loss = model(torch.randn(5, 3)).square().sum()
    with pytest.raises(RuntimeError, match="donated buffers"):
        torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)


def test_a_model_without_encoders_is_refused():
    model = build_model(torch.float32, early=True)
    with refused(
        r"EarlyFusion has no encoders to compile: leave compile out, or let its encoder_modules\(\) return them"
    ):
        make_step("joint", model=model, compile=True)
    assert MultimodalModel().encoder_modules() == []


def test_an_encoder_of_two_modalities_is_compiled_once():
    encoder = nn.Linear(3, 2)
    assert LateFusion({"a": encoder, "b": encoder}, 2).encoder_modules() == [encoder]


def test_a_monitor_looks_at_the_encoders_as_they_are():
    # It goes backward several times.
    backend = Traced()
    step = make_step("joint", dtype=torch.float32, compile={"backend": backend}, monitor=Monitor(every=1))
    assert "monitor/norm/a" in step(batch(0, torch.float32)).statistics
    assert backend.runs == 3

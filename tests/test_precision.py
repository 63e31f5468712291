"""Half precision: the step in float16 and bfloat16, the loss scale, and what happens where it is too large."""

from itertools import pairwise

import pytest
import torch
from test_balanced_step import assert_same, batch, make_step, refused, state_of
from torch.amp import GradScaler
from world_cases import build_model, take

from equipoise import balancers

#: One method a road: the fused and unimodal losses summed, and one gradient a set of modalities.
ROADS = ["summed", "gmd"]


def sgd(lr):
    return lambda parameters: torch.optim.SGD(parameters, lr=lr, momentum=0.9)


def parameters(step):
    return torch.cat([p.detach().flatten() for p in step.layout.parameters])


def trained(name, steps=8, **how):
    step = make_step(name, dtype=torch.float32, optimizer=sgd(0.05), clip_norm=0.7, **how)
    results = [step(batch(t, torch.float32)) for t in range(steps)]
    return parameters(step), results


@pytest.mark.parametrize("name", ROADS)
@pytest.mark.parametrize(("half", "near"), [(torch.float16, 2e-3), (torch.bfloat16, 2e-2)])
def test_half_precision_stays_near_float32(name, half, near):
    full, _ = trained(name)
    found, results = trained(name, autocast=half)
    moved = full - parameters(make_step(name, dtype=torch.float32))
    assert 0 < float((found - full).norm() / moved.norm()) < near
    scaled = half == torch.float16
    for result in results:
        assert ("loss_scale" in result.statistics) == scaled
        assert result.statistics.get("skipped", 0.0) == 0.0
    if scaled:
        assert results[0].statistics["loss_scale"] == 2.0**16


@pytest.mark.parametrize("name", balancers.names())
def test_a_scale_changes_no_bit(name):
    # A power of two only moves the exponent: clipping, projections and Adam's moments see the very same numbers.
    def made(scaler):
        step = make_step(name, dtype=torch.float32, clip_norm=0.1, scaler=scaler)
        results = [step(batch(t, torch.float32)) for t in range(3)]
        return step, results

    (plain, expected), (scaled, found) = made(None), made(GradScaler("cpu", init_scale=2.0**10))
    for a, b in zip(expected, found):
        extra = {"loss_scale": 2.0**10, "skipped": 0.0}
        assert b._replace(statistics={}) == a._replace(statistics={})
        torch.testing.assert_close(b.statistics, a.statistics | extra, rtol=0, atol=0, equal_nan=True)
    assert_same(scaled.model.state_dict(), plain.model.state_dict())


@pytest.mark.parametrize("name", ROADS)
def test_micro_batches_under_a_scale_equal_one_batch(name):
    def made():
        scaler = GradScaler("cpu", init_scale=2.0**10)
        return make_step(name, scaler=scaler, clip_norm=0.7)

    whole, parts = made(), made()
    for t in range(2):
        whole(batch(t))
        parts([take(batch(t), slice(0, 5)), take(batch(t), slice(5, 12))])
    torch.testing.assert_close(parameters(parts), parameters(whole), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", balancers.names())
def test_an_overflow_skips_the_step_and_halves_the_scale(name):
    scaler = GradScaler("cpu", init_scale=2.0**10, growth_interval=2)
    step = make_step(name, dtype=torch.float32, scaler=scaler)
    step(batch(0, torch.float32))
    before = state_of(step)
    scaler.update(
        2.0**127
    )  # 2^127 times a loss is finite in float32 where the loss is below 2, a sum of gradients is not
    huge = batch(1, torch.float32)
    huge["inputs"] = {m: x * 2.0**10 for m, x in huge["inputs"].items()}
    result = step(huge)
    assert result.statistics["skipped"] == 1.0
    assert result.statistics["loss_scale"] == 2.0**127
    model, optimizer, after = state_of(step)
    assert_same([model, optimizer, after["balancer"]], [before[0], before[1], before[2]["balancer"]])
    assert after["step"] == before[2]["step"] + 1, "the counter goes on: the batch is spent"
    assert after["scaler"]["scale"] == 2.0**126
    assert all(p.grad is None for p in step.layout.parameters)
    scaler.update(2.0**8)
    assert step(batch(2, torch.float32)).statistics["skipped"] == 0.0
    assert step(batch(3, torch.float32)).statistics["skipped"] == 0.0
    assert scaler.get_scale() == 2.0**9, "two good steps, and it grows again"


def test_a_scale_that_is_too_large_is_found_by_halving():
    step = make_step(
        "summed", dtype=torch.float32, autocast=torch.float16, scaler=GradScaler("cpu", init_scale=2.0**30)
    )
    found = [step(batch(t, torch.float32)).statistics for t in range(25)]
    assert found[0]["skipped"] == 1.0
    assert found[-1]["skipped"] == 0.0
    for now, then in pairwise(found):
        assert then["loss_scale"] == now["loss_scale"] * (0.5 if now["skipped"] else 1.0)


@pytest.mark.parametrize("name", ROADS)
def test_workers_skip_together_where_one_overflows(gloo, name):
    answers = gloo.run("step_cases", "overflow", 2, name)
    assert answers[0][0] == answers[1][0]
    statistics, same = answers[0]
    assert same
    assert answers[1][1]
    assert [s["skipped"] for s in statistics] == [1.0, 0.0]
    assert [s["loss_scale"] for s in statistics] == [2.0**100, 2.0**99]


def test_a_loss_that_is_not_finite_is_refused_and_the_scale_stays():
    step = make_step("summed", dtype=torch.float32, autocast=torch.float16)
    step(batch(0, torch.float32))
    before = state_of(step)
    spoilt = batch(1, torch.float32)
    spoilt["inputs"]["a"] *= 1e9  # beyond the range of float16
    with refused("The objective 'fused' is .* in step 1 of epoch 0: the step was refused on all workers"):
        step(spoilt)
    assert_same(state_of(step), before)
    assert step(batch(2, torch.float32)).statistics["skipped"] == 0.0


@pytest.mark.parametrize("name", ROADS)
def test_a_gradient_that_no_scale_makes_finite_is_refused(name):
    step = make_step(name, dtype=torch.float32, scaler=GradScaler("cpu", init_scale=4.0))
    step(batch(0, torch.float32))
    # sqrt at 0, as in test_balanced_step, on one weight: its derivative is infinite at any scale.
    weight = step.layout.parameters[0]
    hook = weight.register_hook(lambda g: g * float("inf"))
    before = state_of(step)
    assert [step(batch(1, torch.float32)).statistics["skipped"] for _ in range(2)] == [1.0, 1.0]
    with refused("The gradient of .* is not finite in step 3 of epoch 0"):
        step(batch(1, torch.float32))
    assert_same(state_of(step)[:2], before[:2])
    hook.remove()
    assert step(batch(2, torch.float32)).statistics["skipped"] == 0.0


@pytest.mark.parametrize("name", ROADS)
def test_a_resumed_run_goes_on_with_its_scale(tmp_path, name):
    def made():
        scaler = GradScaler("cpu", init_scale=2.0**14, growth_interval=3)
        return make_step(name, dtype=torch.float32, autocast=torch.float16, scaler=scaler)

    whole, first, second = made(), made(), made()
    expected = [whole(batch(t, torch.float32)) for t in range(8)]
    found = [first(batch(t, torch.float32)) for t in range(4)]
    parts = {"model": first.model, "optimizer": first.optimizer, "step": first}
    torch.save({key: part.state_dict() for key, part in parts.items()}, tmp_path / "checkpoint.pt")
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    for key, part in {"model": second.model, "optimizer": second.optimizer, "step": second}.items():
        part.load_state_dict(state[key])
    found += [second(batch(t, torch.float32)) for t in range(4, 8)]
    assert [r.losses for r in found] == [r.losses for r in expected]
    assert [r.statistics["loss_scale"] for r in found] == [2.0**14] * 3 + [2.0**15] * 3 + [2.0**16] * 2
    assert_same(state_of(second), state_of(whole))


def test_a_state_from_before_scaling_loads():
    plain, half = (
        make_step("joint", dtype=torch.float32),
        make_step("joint", dtype=torch.float32, autocast=torch.float16),
    )
    plain(batch(0, torch.float32))
    half.load_state_dict(plain.state_dict())
    assert half.step == 1
    assert half.scaling.value == 2.0**16
    plain.load_state_dict(half.state_dict())


def test_a_scaler_needs_all_parameters_in_the_optimiser():
    model = build_model(torch.float32)
    with refused(
        r"2 of the model's \d+ parameter tensors are not in the optimiser, and a gradient scaler divides only"
    ):
        make_step(model=model, autocast=torch.float16, optimizer=lambda p: torch.optim.SGD(list(p)[2:], lr=0.1))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", ROADS)
@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_half_precision_on_a_gpu_stays_near_float32(name, half):
    def trained_there(autocast):
        model = build_model(torch.float32).cuda()
        step = make_step(name, model=model, autocast=autocast, optimizer=sgd(0.05), clip_norm=0.7)
        skipped = sum(step(batch(t, torch.float32)).statistics.get("skipped", 0.0) for t in range(8))
        return parameters(step), skipped

    (full, _), (found, skipped) = trained_there(None), trained_there(half)
    start = parameters(make_step(name, model=build_model(torch.float32).cuda()))
    assert skipped == 0
    assert 0 < float((found - full).norm() / (full - start).norm()) < (2e-2 if half == torch.bfloat16 else 2e-3)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", ROADS)
def test_an_overflow_on_a_gpu_is_skipped(name):
    model = build_model(torch.float32).cuda()
    step = make_step(name, model=model, autocast=torch.float16, scaler=GradScaler("cuda", init_scale=2.0**40))
    before = parameters(step).clone()
    assert step(batch(0, torch.float32)).statistics["skipped"] == 1.0
    assert torch.equal(parameters(step), before)
    assert step.scaling.value == 2.0**39

"""Each balancer against its formula, written again in numpy (tests/oracles/balancers.py)."""

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from oracles import balancers as oracle
from scipy.stats import binomtest, chisquare
from sklearn.datasets import load_digits
from world_cases import CLASSES, SHAPES, build_model, global_batch, take

from equipoise import balancers
from equipoise.balancers.context import StepContext
from equipoise.models import Classification, EquipoiseError, LateFusion
from equipoise.models.encoders import MLP

FULL = 5  # `global_batch(FULL)`: no row has "b"; the others miss some of each


def parameters(model):
    return {name: p.detach().numpy().copy() for name, p in model.named_parameters()}


def make_step(name, *, unimodal="split", optimizer=None, model=None, seed=11, epoch=0, **options):
    model = model or build_model(torch.float64, unimodal=unimodal)
    optimizer = optimizer(model) if optimizer else torch.optim.SGD(model.parameters(), lr=1.0)
    step = balancers.BalancedStep(model, Classification(CLASSES), balancers.get(name, **options), optimizer, seed=seed)
    step.epoch = epoch
    return step


def gradient_of(name, batch, **how):
    """What SGD with learning rate 1 subtracted: the gradient that the method made. And the parameters it was taken at."""
    step = make_step(name, **how)
    before = parameters(step.model)
    result = step(batch)
    after = parameters(step.model)
    return {n: before[n] - after[n] for n in before}, before, result


def assert_close(found, expected):
    for name, g in expected.items():
        np.testing.assert_allclose(found[name], g, rtol=1e-6, atol=1e-9, err_msg=name)


@pytest.fixture(params=[0, FULL], ids=["some absent", "one absent everywhere"])
def batch(request):
    return global_batch(request.param, torch.float64)


def test_joint_descends_the_fused_loss(batch):
    found, p, result = gradient_of("joint", batch)
    data = oracle.arrays(batch)
    assert result.loss == pytest.approx(oracle.joint_loss(p, data), abs=1e-12)
    assert_close(found, oracle.gradient(lambda p: oracle.joint_loss(p, data), p))


@pytest.mark.parametrize("kind", ["split", "heads"])
def test_summed_descends_the_sum_of_fused_and_unimodal_losses(batch, kind):
    found, p, result = gradient_of("summed", batch, unimodal=kind, weight=0.7)
    data = oracle.arrays(batch)
    assert result.losses["fused"] == pytest.approx(oracle.joint_loss(p, data), abs=1e-12)
    for m, loss in oracle.unimodal_losses(p, data, kind).items():
        assert result.losses[m] == pytest.approx(0.7 * loss, abs=1e-12)
    assert_close(found, oracle.gradient(lambda p: oracle.summed_loss(p, data, kind, 0.7), p))


def test_modality_dropout_descends_the_fused_loss_of_the_masked_batch():
    data = global_batch(0, torch.float64)
    found, p, _ = gradient_of("modality_dropout", data, p=0.5, epoch=2)
    kept = masks(data, epoch=2, p=0.5)
    assert (kept != data["present"]).any()
    masked = oracle.arrays({**data, "present": kept})
    assert_close(found, oracle.gradient(lambda p: oracle.joint_loss(p, masked), p))


# OGM and OGM-GE


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ({"a": 3.0, "b": 2.0}, {"a": 0.851115, "b": 1.0}),  # 1 - tanh(0.1 * 3 / 2)
        ({"a": 2.0, "b": 2.0}, {"a": 1.0, "b": 1.0}),
        ({"a": 0.9, "b": 0.4, "c": 0.1}, {"a": 1 - np.tanh(0.36), "b": 1.0, "c": 1.0}),  # 0.9 against (0.4 + 0.1) / 2
        ({"a": 0.9}, {"a": 1.0}),
        ({"a": 0.9, "b": 1e-3}, {"a": 0.0, "b": 1.0}),
    ],
)
def test_ogm_coefficients_are_the_paper_s(scores, expected):
    counts = dict.fromkeys(scores, 4.0)
    sums = {m: torch.tensor(4 * s, dtype=torch.float64) for m, s in scores.items()}
    reports = {}
    ctx = SimpleNamespace(modalities=tuple(scores), statistics=sums, counts=counts, epoch=0, report=reports.__setitem__)
    assert balancers.get("ogm", alpha=0.1).coefficients(ctx) == pytest.approx(expected, abs=1e-6)
    assert oracle.ogm_coefficients(scores, 0.1) == pytest.approx(expected, abs=1e-6)
    assert reports["ogm_score_a"] == pytest.approx(scores["a"])


@pytest.mark.parametrize("kind", ["split", "heads"])
def test_ogm_scales_the_gradient_of_an_encoder_by_its_coefficient(batch, kind):
    found, p, result = gradient_of("ogm", batch, unimodal=kind, alpha=0.4)
    data = oracle.arrays(batch)
    scores = oracle.ogm_scores(p, data, kind)
    k = oracle.ogm_coefficients(scores, 0.4)
    assert min(k.values()) < 0.7
    for m in k:
        assert result.statistics[f"ogm_score_{m}"] == pytest.approx(scores[m], abs=1e-12)
        assert result.statistics[f"ogm_coefficient_{m}"] == pytest.approx(k[m], abs=1e-12)
    joint, _, _ = gradient_of("joint", batch, unimodal=kind)
    for name, g in joint.items():
        owner = name.split(".")[1]  # encoders.<modality>.layers..., fusion.head...
        if not name.startswith("heads."):
            np.testing.assert_allclose(found[name], k.get(owner, 1.0) * g, rtol=1e-9, atol=1e-12, err_msg=name)


def test_ogm_s_heads_learn_from_detached_features(batch):
    # Their gradient, with its coefficient, is that of their own losses; the encoders (above) get nothing of it.
    found, p, _ = gradient_of("ogm", batch, unimodal="heads")
    data = oracle.arrays(batch)
    k = oracle.ogm_coefficients(oracle.ogm_scores(p, data, "heads"), 0.3)
    heads = [name for name in p if name.startswith("heads.")]
    expected = oracle.gradient(lambda q: sum(oracle.unimodal_losses(q, data, "heads", frozen=p).values()), p, heads)
    assert_close(found, {name: k.get(name.split(".")[1], 1.0) * g for name, g in expected.items()})


def moved(name, optimizer, steps=1, **options):
    """How far each encoder went, and the coefficient of "a" in the last step."""
    step = make_step(name, optimizer=optimizer, **options)
    before = parameters(step.model)
    for t in range(steps):
        result = step(global_batch(t, torch.float64))
    after = parameters(step.model)
    distance = {
        m: np.sqrt(sum(((after[n] - before[n]) ** 2).sum() for n in before if n.startswith(f"encoders.{m}.")))
        for m in SHAPES
    }
    return distance, result.statistics.get("ogm_coefficient_a")


def adam(model):
    return torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)


def test_adam_cancels_a_scaled_gradient_but_not_a_scaled_update():
    plain, _ = moved("joint", adam)
    gradient, k = moved("ogm", adam, apply="gradient")
    update, _ = moved("ogm", adam, apply="update")
    assert k < 0.75
    assert gradient["a"] / plain["a"] > 0.999
    assert update["a"] / plain["a"] == pytest.approx(k, rel=1e-6)
    assert update["c"] == pytest.approx(plain["c"], rel=1e-6), "the weakest modality goes on as it was"


def test_adam_cancels_it_over_many_steps_too():
    plain, _ = moved("joint", adam, steps=30)
    gradient, _ = moved("ogm", adam, steps=30, apply="gradient")
    update, _ = moved("ogm", adam, steps=30, apply="update")
    assert gradient["a"] / plain["a"] > 0.95
    assert update["a"] / plain["a"] < 0.85


@pytest.mark.parametrize("name", ["ogm", "ogm_ge"])
@pytest.mark.parametrize("apply", ["gradient", "update"])
@pytest.mark.parametrize(("epoch", "active"), [(0, False), (1, True), (2, True), (3, False)])
def test_outside_starts_and_ends_ogm_is_joint(name, apply, epoch, active):
    data = global_batch(0, torch.float64)
    joint, _, _ = gradient_of("joint", data)
    found, _, _ = gradient_of(name, data, starts=1, ends=3, apply=apply, epoch=epoch)
    # Subtracted and added again, an update is rounded.
    same = all(np.allclose(found[n], joint[n], rtol=0, atol=1e-14) for n in joint)
    assert same is not active


def wide_model():
    torch.manual_seed(0)
    encoders = {m: MLP((d,), hidden=(100,), out_features=50) for m, d in SHAPES.items()}
    return LateFusion(encoders, CLASSES).double()


def noise_of(seed=0, steps=1):
    """What OGM-GE adds to OGM in its last step, with the gradient of joint there; wide encoders, for good statistics."""
    batches = [global_batch(t, torch.float64) for t in range(steps)]
    step = make_step("ogm_ge", model=wide_model(), seed=seed)
    start = step.model.state_dict()
    for data in batches[:-1]:
        step(data)
    start = {n: v.clone() for n, v in step.model.state_dict().items()}
    step(batches[-1])
    gradients = {}
    for name in ("joint", "ogm"):
        model = wide_model()
        model.load_state_dict(start)
        gradients[name] = gradient_of(name, batches[-1], model=model)[0]
    enhanced = {n: (start[n] - v).numpy() for n, v in step.model.state_dict().items()}
    return {n: enhanced[n] - gradients["ogm"][n] for n in enhanced}, gradients["joint"]


def test_ogm_ge_s_noise_is_as_strong_as_the_gradient_and_on_owned_weights_only():
    noise, joint = noise_of()
    for name, g in joint.items():
        if name.startswith("encoders.") and g.ndim == 2:
            assert noise[name].std() == pytest.approx(g.std(ddof=1), rel=5 / np.sqrt(g.size)), name
            assert abs(noise[name].mean()) < 5 * g.std() / np.sqrt(g.size), name
            assert abs(np.corrcoef(noise[name].ravel(), g.ravel())[0, 1]) < 5 / np.sqrt(g.size), name
        else:
            np.testing.assert_allclose(noise[name], 0, atol=1e-14, err_msg=name)


def test_ogm_ge_s_noise_is_a_function_of_seed_and_step():
    name = "encoders.a.layers.0.weight"
    once, joint = noise_of(seed=1)
    again, _ = noise_of(seed=1)
    np.testing.assert_array_equal(once[name], again[name])
    for seed, steps in [(2, 1), (1, 2)]:
        other, other_joint = noise_of(seed=seed, steps=steps)
        a, b = once[name] / joint[name].std(), other[name] / other_joint[name].std()
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 0.2, (seed, steps)


def test_ogm_slows_the_stronger_half_of_a_digit():
    digits = load_digits()
    images = torch.from_numpy(digits.images.astype(np.float32)) / 16
    halves = {"left": images[:, :, :5], "right": images[:, :, 5:]}
    target = torch.from_numpy(digits.target)
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(target)))

    def distances(name):
        torch.manual_seed(0)
        model = LateFusion({"left": MLP((8, 5), (32,), 16), "right": MLP((8, 3), (32,), 16)}, 10)
        start = {m: [p.detach().clone() for p in model.encoders[m].parameters()] for m in halves}
        optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
        step = balancers.BalancedStep(model, Classification(10), balancers.get(name), optimizer)
        for rows in order.split(64) * 4:
            step(
                {
                    "sample_id": rows,
                    "copy": torch.zeros(len(rows), dtype=torch.int16),
                    "inputs": {m: x[rows] for m, x in halves.items()},
                    "present": torch.ones(len(rows), 2, dtype=torch.bool),
                    "target": target[rows],
                }
            )
        return {
            m: sum(float((p.detach() - q).square().sum()) for p, q in zip(model.encoders[m].parameters(), start[m]))
            ** 0.5
            for m in halves
        }

    joint, ogm = distances("joint"), distances("ogm")
    kept = {m: ogm[m] / joint[m] for m in halves}
    assert joint["left"] > joint["right"], "the left five columns lead"
    assert kept["left"] < 0.9
    assert kept["left"] < kept["right"] - 0.1


# Modality dropout


def masks(data, *, seed=11, epoch=0, **options):
    """What modality dropout leaves of a batch."""
    model = build_model(torch.float64)
    ctx = StepContext(model, Classification(CLASSES), data, seed=seed, epoch=epoch, step=0, group=None)
    return balancers.get("modality_dropout", **options).before_forward(data, ctx)["present"]


def rows_with(present, n=20_000):
    """A batch of `n` rows that all have the same modalities; only what the mask depends on."""
    return {
        "sample_id": torch.arange(n),
        "copy": torch.zeros(n, dtype=torch.int16),
        "inputs": {},
        "present": torch.tensor(present).expand(n, -1).clone(),
        "target": torch.zeros(n, dtype=torch.int64),
    }


PRESENT = [[True, True, True], [True, False, True], [False, True, False]]


@pytest.mark.parametrize("present", PRESENT)
@pytest.mark.parametrize("p", [0.0, 0.3, 0.8, None])
def test_dropout_patterns_come_as_often_as_they_should(present, p):
    data = rows_with(present)
    kept = masks(data, **({"distribution": "uniform"} if p is None else {"p": p}))
    found = Counter(map(tuple, kept.tolist()))
    expected = {pattern: chance for pattern, chance in oracle.dropout_patterns(present, p).items() if chance}
    assert sum(expected.values()) == pytest.approx(1)
    assert set(found) == set(expected), "never nothing, and only what is present is dropped"
    n = len(kept)
    if len(expected) > 1:
        assert chisquare([found[k] for k in expected], [n * c for c in expected.values()]).pvalue > 1e-3
    for m in range(3):
        rate = sum(chance for pattern, chance in expected.items() if pattern[m])
        assert binomtest(int(kept[:, m].sum()), n, min(rate, 1.0)).pvalue > 1e-4


OPTIONS = [{"p": 0.5}, {"distribution": "uniform"}]


@pytest.mark.parametrize("options", OPTIONS)
def test_a_row_s_mask_does_not_depend_on_the_batch_it_is_in(options):
    data = rows_with([True, True, True], 512)
    whole = masks(data, **options)
    order = torch.from_numpy(np.random.default_rng(0).permutation(512))
    assert torch.equal(masks(take(data, order), **options), whole[order])
    split = [masks(take(data, slice(a, b)), **options) for a, b in [(0, 1), (1, 1), (1, 300), (300, 512)]]
    assert torch.equal(torch.cat(split), whole)


@pytest.mark.parametrize("options", OPTIONS)
def test_a_row_s_mask_changes_with_epoch_seed_and_copy(options):
    data = rows_with([True, True, True], 512)
    whole = masks(data, **options)
    others = [
        masks(data, epoch=1, **options),
        masks(data, seed=12, **options),
        masks({**data, "copy": data["copy"] + 1}, **options),
    ]
    for other in others:
        assert 0.2 < (other != whole).double().mean() < 0.8


def test_an_ensemble_is_its_unimodal_models_trained_alone():
    # The oracle is joint training of a model that has one modality, from the same weights, on the rows that have it.
    torch.manual_seed(0)
    sizes = {"a": 6, "b": 4}
    whole = LateFusion({m: MLP(n, (5,), 5) for m, n in sizes.items()}, 3, "average", "drop").double()
    alone = {}
    for m, n in sizes.items():
        alone[m] = LateFusion({m: MLP(n, (5,), 5)}, 3, "average", "drop").double()
        wanted = {k: v for k, v in whole.state_dict().items() if f".{m}." in k}
        alone[m].load_state_dict(wanted)

    def train(model, balancer, batches):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
        step = balancers.BalancedStep(model, Classification(3), balancers.get(balancer), optimizer)
        for batch in batches:
            step(batch)

    rng = np.random.default_rng(1)
    batches = []
    for t in range(12):
        present = torch.from_numpy(rng.random((10, 2)) < 0.7)
        present[:, 0] |= ~present.any(dim=1)
        inputs = {m: torch.from_numpy(rng.normal(size=(10, n))) for m, n in sizes.items()}
        batches.append(
            {
                "sample_id": torch.arange(10) + 10 * t, "copy": torch.zeros(10, dtype=torch.int16), "inputs": inputs,
                "present": present, "target": torch.from_numpy(rng.integers(0, 3, 10)),
            }
        )  # fmt: skip
    train(whole, "ensemble", batches)
    for i, m in enumerate(sizes):
        rows = [b["present"][:, i] for b in batches]
        some = [
            {
                "sample_id": b["sample_id"][r], "copy": b["copy"][r], "inputs": {m: b["inputs"][m][r]},
                "present": torch.ones(int(r.sum()), 1, dtype=torch.bool), "target": b["target"][r],
            }
            for b, r in zip(batches, rows, strict=True)
        ]  # fmt: skip
        train(alone[m], "joint", some)
        for k, v in alone[m].state_dict().items():
            torch.testing.assert_close(whole.state_dict()[k], v, rtol=1e-12, atol=1e-12)
    # Averaged logits and averaged log-probabilities: the same probabilities.
    batch = batches[0] | {"present": torch.ones(10, 2, dtype=torch.bool)}
    logits = whole(batch["inputs"], batch["present"])
    logs = torch.stack([z.log_softmax(dim=1) for z in logits.unimodal_logits.values()]).mean(dim=0)
    torch.testing.assert_close(logits.logits.softmax(dim=1), logs.softmax(dim=1))


def test_an_ensemble_needs_the_average():
    model = LateFusion({"a": MLP(3), "b": MLP(3)}, 2)
    with pytest.raises(
        EquipoiseError, match=r"Balancer 'ensemble' is defined for the fusion 'average', .* fusion='average'"
    ):
        balancers.get("ensemble").check(model, Classification(2))

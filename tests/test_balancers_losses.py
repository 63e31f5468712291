"""CML, MMCosine and PMR against numpy versions, and what each of them is said to do, on digits."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from oracles import balancers as base
from oracles import losses as oracle
from world_cases import CLASSES, build_model, global_batch

from equipoise import balancers
from equipoise.balancers.cml import confidence
from equipoise.balancers.pmr import entropy
from equipoise.datasets.reading import Reader
from equipoise.models import MLP, Classification, EarlyFusion, EquipoiseError, LateFusion, Patches
from equipoise.models.batch import to_batch
from equipoise.pipelines.config import load_config
from equipoise.pipelines.light import train_light


def stepped(name, data, model=None, epoch=0, **options):
    """{parameter: what SGD with learning rate 1 subtracted}, the parameters before, the result, the step."""
    balancer = balancers.get(name, **options)
    how = {"fusion": balancer.fusions[0]} if balancer.fusions else {}
    model = model or build_model(torch.float64, **how)
    step = balancers.BalancedStep(model, Classification(CLASSES), balancer, torch.optim.SGD(model.parameters(), lr=1.0))
    step.epoch = epoch
    return *moved(step, data), step


def moved(step, data):
    p = {n: v.detach().numpy().copy() for n, v in step.model.named_parameters()}
    result = step(data)
    return {n: p[n] - v.detach().numpy() for n, v in step.model.named_parameters()}, p, result


def assert_close(found, expected):
    for name, g in expected.items():
        np.testing.assert_allclose(found[name], g, rtol=1e-6, atol=1e-8, err_msg=name)


@pytest.fixture(params=[0, 5], ids=["some absent", "one absent everywhere"])
def rows(request):
    return global_batch(request.param, torch.float64)


# CML


def test_cml_descends_its_losses(rows):
    model = build_model(torch.float64)
    with torch.no_grad():  # sure of itself, so that confidence rises somewhere
        model.fusion.head.weight.mul_(6)
    found, p, result, _ = stepped("cml", rows, model, weight=0.7)
    arrays = base.arrays(rows)
    expected = oracle.cml_losses(p, arrays, 0.7)
    assert expected["rise"] > 0.01
    assert result.losses == pytest.approx(expected, abs=1e-12)
    assert_close(found, base.gradient(lambda q: sum(oracle.cml_losses(q, arrays, 0.7).values()), p))


def test_confidence_by_hand():
    z = torch.tensor([[0.0, 0.0], [np.log(3), 0.0]])
    assert confidence(z).tolist() == pytest.approx([0.5, 0.75])


def test_one_row_s_rise_is_not_hidden_by_another_s_fall():
    # Row 0 becomes surer without "b" (0 + 2 > 2 - 1), row 1 less sure: of the batch's sum nothing would be left.
    model = LateFusion({"a": MLP(1, (), 1), "b": MLP(1, (), 1)}, 2).double()
    with torch.no_grad():
        for encoder in model.encoders.values():
            encoder.layers[0].weight.fill_(1.0)
            encoder.layers[0].bias.zero_()
        model.fusion.head.weight.copy_(torch.tensor([[1.0, 1.0], [0.0, 0.0]]))
        model.fusion.head.bias.zero_()
    data = {
        "sample_id": torch.arange(2), "copy": torch.zeros(2, dtype=torch.int16),
        "inputs": {"a": torch.tensor([[2.0], [0.5]]).double(), "b": torch.tensor([[-1.0], [3.0]]).double()},
        "present": torch.ones(2, 2, dtype=torch.bool), "target": torch.tensor([0, 0]),
    }  # fmt: skip
    sgd = torch.optim.SGD(model.parameters(), lr=0.0)
    result = balancers.BalancedStep(model, Classification(2), balancers.get("cml"), sgd)(data)
    s = lambda x: 1 / (1 + np.exp(-abs(x)))  # noqa: E731
    # Without b: 2 against 1, and .5 against 3.5; without a: |-1| against 1, and 3 against 3.5.
    assert result.losses["rise"] == pytest.approx((s(2) - s(1)) / 2, abs=1e-12)
    assert s(2) + s(0.5) < s(1) + s(3.5), "over the batch, confidence falls"


# MMCosine


def test_mmcosine_descends_the_loss_of_cosines(rows):
    found, p, result, _ = stepped("mmcosine", rows)
    arrays = base.arrays(rows)

    def loss(q):
        return base.cross_entropy(oracle.cosine_logits(q, arrays, 10.0), arrays["target"]).mean()

    assert result.loss == pytest.approx(loss(p), abs=1e-12)
    assert_close(found, base.gradient(loss, p))


@pytest.mark.parametrize("factor", [7.0, 0.1, 1e200])
def test_sizes_of_features_and_weights_mean_nothing_to_it(factor):
    data = global_batch(0, torch.float64)
    model = build_model(torch.float64, fusion="cosine")
    before = model(data["inputs"], data["present"]).logits
    with torch.no_grad():
        layer = model.encoders["a"].layers[-1]
        layer.weight.mul_(factor)
        layer.bias.mul_(factor)
        model.fusion.head.weight[:, :5].mul_(1 / min(factor, 5))
    torch.testing.assert_close(model(data["inputs"], data["present"]).logits, before, rtol=1e-12, atol=1e-12)
    assert before.abs().max() <= 10 * 3


def test_a_feature_of_zeros_is_no_nan():
    model = LateFusion({"a": MLP(2, (), 3)}, 2, "cosine")
    with torch.no_grad():
        for p in model.encoders.parameters():
            p.zero_()
    logits = model({"a": torch.ones(4, 2)}, torch.ones(4, 1, dtype=torch.bool)).logits
    assert bool((logits == 0).all())
    logits.sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters())


def test_the_scale_is_the_model_s():
    made = {"data": "d", "out": "o", "balancer": "mmcosine", "max_steps": 1}
    config = load_config({**made, "model": {"scale": 8.0}})
    assert (config.model.fusion, config.model.scale) == ("cosine", 8.0)
    with pytest.raises(EquipoiseError, match=r"model\.scale has no meaning for model\.fusion='sum': leave it out"):
        load_config({**made, "balancer": "joint", "model": {"fusion": "sum", "scale": 8.0}})


# PMR


@pytest.mark.parametrize("epoch", [0, 3], ids=["with entropy", "without"])
def test_pmr_follows_prototypes_of_the_global_batches(epoch):
    options = {"alpha": 0.8, "momentum": 0.6, "entropy": 0.3}
    kept = oracle.Prototypes(0.6)
    step, terms = None, set()
    for t in range(7):
        data = global_batch(t, torch.float64)
        if step is None:
            found, p, result, step = stepped("pmr", data, epoch=epoch, **options)
            step.optimizer.param_groups[0]["lr"] = 0.05
        else:
            found, p, result = moved(step, data)
            found = {n: g / 0.05 for n, g in found.items()}
        arrays = base.arrays(data)
        scores = kept.scores(p, arrays)
        ratios = {
            m: np.mean([v for o, v in scores.items() if o != m]) / s for m, s in scores.items() if len(scores) > 1
        }

        def losses(q, arrays=arrays, ratios=ratios):
            out = {"fused": base.joint_loss(q, arrays)}
            for m, (log_p, own) in kept.log_p(q, arrays).items():
                r = ratios.get(m, 1)
                if r > 1:
                    out[f"prototype/{m}"] = 0.8 * min(r - 1, 1) * -log_p[np.arange(len(own)), own].mean()
                elif r < 1 and epoch == 0:
                    h = -(np.exp(log_p) * log_p).sum(axis=1)
                    out[f"entropy/{m}"] = -0.3 * min(1 / r - 1, 1) * h.mean()
            return out

        assert result.losses == pytest.approx(losses(p), abs=1e-10)
        for m, r in ratios.items():
            assert result.statistics[f"pmr_ratio_{m}"] == pytest.approx(r, abs=1e-10)
        terms |= {name.split("/")[0] for name in result.losses}
        if t in (0, 2, 5):
            found_by_numpy = base.gradient(lambda q: sum(losses(q).values()), p)
            for name, g in found_by_numpy.items():
                np.testing.assert_allclose(found[name], g, rtol=1e-5, atol=1e-6, err_msg=name)
        kept.follow(p, arrays)
        for m, known in kept.of.items():
            for k, c in known.items():
                np.testing.assert_allclose(step.balancer._prototypes[m][k], c, atol=1e-12)
    assert terms == ({"fused", "prototype", "entropy"} if epoch == 0 else {"fused", "prototype"})


def test_a_class_that_no_batch_has_had_yet_breaks_no_gradient():
    # p log p of a class without a prototype is 0, and so is its part of the gradient: it has none by p.
    z = torch.tensor([[0.3, -1.0, 2.0], [0.0, 0.5, -200.0]], dtype=torch.float32)
    alone = z.clone().requires_grad_()
    entropy(alone.log_softmax(dim=1)).sum().backward()
    beside = torch.cat([z, torch.full((2, 1), -torch.inf)], dim=1).requires_grad_()
    entropy(beside.log_softmax(dim=1)).sum().backward()
    torch.testing.assert_close(beside.grad[:, :3], alone.grad)
    assert bool((beside.grad[:, 3] == 0).all())
    assert entropy(torch.full((1, 4), 0.25).log()).item() == pytest.approx(np.log(4))

    first = global_batch(0, torch.float64)
    first["target"] = first["target"] % 3
    _, _, _, step = stepped("pmr", first)
    found, _, result = moved(step, global_batch(1, torch.float64))
    assert any(name.startswith("entropy/") for name in result.losses)
    assert all(np.isfinite(g).all() for g in found.values())
    assert step.balancer._seen["a"].sum() > 3


def test_pmr_s_weights_are_the_paper_s():
    # Equation 11: nothing for the modality that is ahead, rho - 1 for the other, at most 1.
    balancer = balancers.get("pmr")
    for right, expected in [({"a": 0.6, "b": 0.4}, 0.5), ({"a": 0.9, "b": 0.1}, 1.0), ({"a": 0.5, "b": 0.5}, 0.0)]:
        ctx = SimpleNamespace(
            modalities=("a", "b"),
            statistics={f"score/{m}": torch.tensor(4 * s) for m, s in right.items()},
            counts={f"prototype/{m}": 4.0 for m in right},
        )
        ratio = balancer.ratios(ctx)
        assert min(max(ratio["b"] - 1, 0), 1) == pytest.approx(expected, abs=1e-6)
        assert max(ratio["a"] - 1, 0) == 0
        assert 1 / ratio["a"] == pytest.approx(ratio["b"]), "and the entropy of the leader has the same weight"


def test_early_fusion_has_no_features_for_prototypes():
    model = EarlyFusion({"a": Patches((4,), 2, 8)}, 2, dim=8, depth=1, heads=2)
    with pytest.raises(EquipoiseError, match=r"'pmr' needs a feature of each modality, .* use late fusion"):
        balancers.get("pmr").check(model, Classification(2))


# On digits.


def trained(data, balancer, seed=0):
    config = {"data": data, "out": "unused", "balancer": balancer, "max_steps": 120, "batch_size": 100, "seed": seed}
    return train_light(load_config({**config, "optimizer": {"lr": 0.01}}))


def test_under_cml_confidence_rises_less_often_where_a_modality_is_taken_away(data):
    reader = Reader(data)
    columns = reader.read("test", np.arange(reader.manifest.splits["test"].rows))
    columns["copy"] = np.zeros(len(columns["sample_id"]), np.int16)
    batch = to_batch(columns, reader.manifest.names, torch.device("cpu"))
    for seed in (0, 1):
        often, far = {}, {}
        for name in ("joint", "cml"):
            model = trained(data, name, seed).model
            with torch.no_grad():
                full = confidence(model(batch["inputs"], batch["present"]).logits)
                rises = []
                for i in range(2):
                    present = batch["present"].clone()
                    present[:, i] = False
                    rises.append(confidence(model(batch["inputs"], present).logits) - full)
            rise = torch.cat(rises)
            often[name], far[name] = (rise > 0).double().mean().item(), rise.clamp(min=0).mean().item()
        # The paper's violation ranking rate, and how far the violations go.
        assert often["cml"] < 0.8 * often["joint"], (seed, often)
        assert far["cml"] < 0.7 * far["joint"], (seed, far)


def test_pmr_brings_the_modality_that_lags_nearer_to_the_other(data):
    # How far the prototypes of the leader are ahead, at the end: with the loss, and watched alone.
    ahead = {}
    for name, options in [("loss", {}), ("watched", {"alpha": 0, "entropy": 0})]:
        steps = trained(data, {"name": "pmr", "options": options}).steps[-30:]
        ahead[name] = np.mean([max(s["pmr_ratio_left"], s["pmr_ratio_right"]) for s in steps])
    assert ahead["watched"] > 1.25
    assert ahead["loss"] - 1 < 0.6 * (ahead["watched"] - 1), ahead

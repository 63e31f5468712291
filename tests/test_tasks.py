"""Tasks: losses in closed form, benefits that are the metrics sample by sample, and logits that are not numbers."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score, roc_auc_score

from equipoise.datasets.task_spec import TaskSpec
from equipoise.models import Classification, MultiLabel, Regression, Segmentation
from equipoise.models.errors import EquipoiseError
from equipoise.valuation import StoreInfo, read_values, write_chunk

K, SIDE = 3, 2

#: {name: (task, the metric that is the mean of its benefit)}
TASKS = {
    "classification": (Classification(K), "accuracy"),
    "labels": (MultiLabel(K), "label_accuracy"),
    "exact": (MultiLabel(K, benefit="exact"), "exact_match"),
    "tolerance": (Regression(1, tolerance=0.5, center=150.0, scale=77.0), "within"),
    "tolerance of three": (Regression(K, tolerance=0.5, loss="l2"), "within"),
    "sign": (Regression(1, benefit="sign"), "acc2"),
    "segmentation": (Segmentation(["WT", "TC", "ET"]), "dice"),
}
every = pytest.mark.parametrize("name", TASKS)


def targets(task, n, seed=0):
    rng = np.random.default_rng(seed)
    if task.name == "classification":
        return torch.from_numpy(rng.integers(0, task.num_outputs, n))
    if task.name == "regression":
        center = float(task.center[0])
        return torch.from_numpy((center + rng.normal(size=(n, task.num_outputs))).astype(np.float32))
    shape = (n, task.num_outputs, *((SIDE, SIDE) if task.dense else ()))
    return torch.from_numpy(rng.integers(0, 2, shape).astype(np.uint8))


def logits_for(task, n, seed=1, dtype=torch.float32):
    g = torch.Generator().manual_seed(seed)
    shape = (n, task.num_outputs, *((SIDE, SIDE) if task.dense else ()))
    return torch.randn(shape, generator=g, dtype=torch.float64).to(dtype)


def measured(task, *parts, thorough=True):
    """The metrics of parts (logits, target), each a chunk of its own, joined as `pipelines.sweeps` does."""
    whole = task.metrics(thorough)
    for logits, target in parts:
        chunk = task.metrics(thorough)
        chunk.update(logits, target)
        for metric, state in {n: dict(m.metric_state) for n, m in chunk.items()}.items():
            whole[metric].merge_state(state)
    return {metric: float(value) for metric, value in whole.compute().items()}


pytestmark = pytest.mark.filterwarnings("ignore:The ``compute`` method of metric")


def closed_form(task, logits, target):
    """Losses by numpy in float64."""
    z, t = logits.double().numpy(), target.double().numpy()
    if task.name == "classification":
        return np.log(np.exp(z).sum(axis=1)) - z[np.arange(len(z)), target.numpy()]
    if task.name == "multilabel":
        p = 1 / (1 + np.exp(-z))
        return -(t * np.log(p) + (1 - t) * np.log(1 - p)).mean(axis=1)
    if task.name == "regression":
        off = (task.center.numpy() + task.scale.numpy() * z - t) / task.scale.numpy()
        return (np.abs(off) if task.loss == "l1" else off**2).mean(axis=1)
    p = 1 / (1 + np.exp(-z))
    sums = lambda x: x.reshape(*x.shape[:2], -1).sum(axis=2)  # noqa: E731
    return (1 - (2 * sums(p * t) + 1) / (sums(p) + sums(t) + 1)).mean(axis=1)


@every
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_losses_are_their_formulas(name, dtype, tolerance):
    task, _ = TASKS[name]
    logits, target = logits_for(task, 9, dtype=dtype), targets(task, 9)
    found = task.losses(logits, target)
    assert found.dtype == dtype
    np.testing.assert_allclose(found, closed_form(task, logits, target), rtol=tolerance, atol=tolerance)
    # A row's loss is its own.
    torch.testing.assert_close(task.losses(logits[3:4], target[3:4])[0], found[3], rtol=1e-6, atol=1e-9)


@every
def test_no_rows_give_no_losses_and_no_benefits(name):
    task, _ = TASKS[name]
    logits, target = logits_for(task, 0).requires_grad_(), targets(task, 0)
    found = task.losses(logits, target)
    assert found.shape == task.benefit(logits, target).shape == (0,)
    assert len(task.predict(logits)) == 0
    found.sum().backward()
    assert logits.grad is not None
    task.check(target)


@every
def test_logits_of_bfloat16_cast_to_float32_are_read_as_what_they_hold(name):
    # What the balanced step and the valuer do after autocast.
    task, _ = TASKS[name]
    narrow, target = logits_for(task, 12, dtype=torch.bfloat16), targets(task, 12)
    np.testing.assert_allclose(
        task.losses(narrow.float(), target), closed_form(task, narrow, target), rtol=1e-5, atol=1e-5
    )
    # Uncast, as a model kept in bfloat16 gives them to sweep(): predictions and benefits are the same.
    assert torch.equal(task.benefit(narrow, target), task.benefit(narrow.float(), target))
    assert torch.equal(task.predict(narrow), task.predict(narrow.float()))


@every
@given(
    seed=st.integers(0, 10**6), n=st.integers(1, 6), scale=st.sampled_from([1e-3, 1.0, 1e3, 1e30]), nan=st.booleans()
)
@settings(max_examples=25, deadline=None)
def test_the_mean_benefit_is_the_metric_however_the_rows_are_cut(name, seed, n, scale, nan):
    task, metric = TASKS[name]
    logits, target = logits_for(task, n, seed) * scale, targets(task, n, seed)
    if nan:
        logits.view(-1)[seed % logits.numel()] = torch.nan
    benefit = task.benefit(logits, target)
    assert ((benefit >= 0) & (benefit <= 1)).all()
    whole = measured(task, (logits, target), thorough=False)
    assert whole[metric] == pytest.approx(float(benefit.double().mean()), abs=1e-6)
    rows = measured(task, *((logits[i : i + 1], target[i : i + 1]) for i in range(n)), thorough=False)
    assert rows == pytest.approx(whole, rel=1e-6, abs=1e-6, nan_ok=True)


@every
def test_logits_that_are_no_numbers_are_worth_nothing(name):
    task, metric = TASKS[name]
    target = targets(task, 40)
    target[:5] = 0 if task.name != "regression" else -1.0
    broken = torch.full_like(logits_for(task, 40), torch.nan)
    assert task.benefit(broken, target).tolist() == [0.0] * 40
    found = measured(task, (broken, target), thorough=False)
    assert found.pop("mae", torch.nan) != 0
    assert all(value == 0 or np.isnan(value) for value in found.values()), found
    assert found[metric] == 0
    # One number that is none spoils its own row alone.
    logits = logits_for(task, 40)
    before = task.benefit(logits, target)
    logits[7].view(-1)[0] = torch.nan
    after = task.benefit(logits, target)
    assert torch.equal(torch.cat([after[:7], after[8:]]), torch.cat([before[:7], before[8:]]))
    assert after[7] <= before[7]


def test_a_region_with_one_position_that_is_no_number_is_not_rightly_empty():
    task = Segmentation(["a", "b"])
    logits, target = torch.full((1, 2, 2, 2), -3.0), torch.zeros(1, 2, 2, 2, dtype=torch.uint8)
    assert task.benefit(logits, target).tolist() == [1.0]
    logits[0, 1, 0, 1] = torch.nan
    assert task.benefit(logits, target).tolist() == [0.5]


def test_small_logits_are_logits_and_small_chunks_are_not_read_otherwise():
    # All in [0, 1], where torchmetrics reads probabilities: 0.25 would be "no", and 0.25 below sigmoid(-0.5).
    task = MultiLabel(2)
    logits = torch.tensor([[0.25, 0.75], [0.125, 0.5], [-0.5, 0.375], [2.0, -1.0]])
    target = torch.tensor([[1, 1], [1, 0], [0, 1], [1, 0]])
    found = measured(task, (logits[:2], target[:2]), (logits[2:], target[2:]))
    assert found["macro_f1"] == pytest.approx(f1_score(target, logits > 0, average="macro"))
    assert found["exact_match"] == 0.75
    assert found["auroc"] == pytest.approx(roc_auc_score(target, logits))
    single = Classification(3)
    scores = torch.tensor(
        [[0.2, 0.9, 0.1], [0.1, 0.2, 0.3], [3.0, 0.0, -1.0], [-2.0, 1.0, 5.0], [0.0, 4.0, 1.0], [1.0, 1, 0]]
    )
    classes = torch.tensor([1, 2, 0, 2, 1, 0])
    cut = measured(single, (scores[:2], classes[:2]), (scores[2:], classes[2:]))
    assert cut["auroc"] == pytest.approx(roc_auc_score(classes, scores.double().softmax(1), multi_class="ovr"))


def test_sure_logits_are_still_ranked():
    # In float32 a probability is 1 from a logit of 17 on.
    task = MultiLabel(1)
    logits, target = torch.tensor([[20.0], [25.0], [30.0], [18.0]]), torch.tensor([[0], [1], [1], [0]])
    assert measured(task, (logits, target))["auroc"] == 1.0


@pytest.mark.parametrize("offset", [1e3, 1e6, 1e9])
def test_correlation_of_numbers_far_from_zero(offset):
    rng = np.random.default_rng(3)
    t = rng.normal(size=(200, 2))
    z = 0.6 * t + rng.normal(size=(200, 2))
    logits, target = torch.from_numpy(z + offset), torch.from_numpy(t + offset)
    wanted = np.mean([np.corrcoef(logits[:, k], target[:, k])[0, 1] for k in range(2)])
    near = 1e-15 * offset  # what float64 keeps of numbers so far off, whoever adds them up
    parts = [slice(0, 1), slice(1, 70), slice(70, 71), slice(71, 71), slice(71, 200)]
    task = Regression(2, tolerance=1.0)
    for cut in ([slice(0, 200)], parts, parts[::-1]):
        found = measured(task, *((logits[s], target[s]) for s in cut))["pearson"]
        assert found == pytest.approx(wanted, abs=max(near, 1e-12) * 100)
    # And far from each other, from chunk to chunk.
    target[:70] -= 2 * offset
    wanted = np.mean([np.corrcoef(logits[:, k], target[:, k])[0, 1] for k in range(2)])
    assert measured(task, *((logits[s], target[s]) for s in parts))["pearson"] == pytest.approx(
        wanted, abs=max(near, 1e-12) * 100
    )


@pytest.mark.parametrize("constant", [0.0, 0.1, 1e9])
def test_correlation_with_what_never_varies_is_none(constant):
    logits, target = torch.full((50, 1), constant, dtype=torch.float64), torch.arange(50.0)[:, None]
    task = Regression(1, tolerance=1.0, center=7.3, scale=0.3)
    for parts in (
        [(logits, target)],
        [(logits[:1], target[:1]), (logits[1:20], target[1:20]), (logits[20:], target[20:])],
    ):
        assert np.isnan(measured(task, *parts)["pearson"])


def test_regression_far_from_zero_loses_and_predicts_the_same_number():
    # float32 holds 2,000,000.125; a float32 center of 2,000,000.06 would be off by a third of the scale.
    task = Regression(1, tolerance=0.1, center=2_000_000.06, scale=0.2)
    target = torch.tensor([[2_000_000.125], [2_000_000.0]])
    exact = (target.double() - 2_000_000.06) / 0.2
    np.testing.assert_allclose(task.losses(exact, target), [0, 0], atol=1e-6)
    np.testing.assert_allclose(task.losses(torch.zeros(2, 1), target), [0.325, 0.3], rtol=1e-5)
    assert task.benefit(exact.float(), target).tolist() == [1, 1]
    assert task.benefit(exact.float() + torch.tensor([[0.4], [0.6]]), target).tolist() == [1, 0]
    assert task.predict(exact).dtype == torch.float64


def test_predictions_are_what_a_person_reads():
    assert Classification(3).predict(torch.tensor([[0.0, 2.0, 1.0], [1.0, 1.0, 0.0]])).tolist() == [1, 0]
    assert MultiLabel(3).predict(torch.tensor([[0.1, 0.0, -0.1]])).tolist() == [[True, False, False]]
    assert Regression(2, tolerance=1, center=[1, 2], scale=[10, 20]).predict(torch.tensor([[0.5, -1.0]])).tolist() == [
        [6, -18]
    ]
    assert Segmentation(["a"]).predict(torch.tensor([[[[0.5, -0.5]]]])).tolist() == [[[[True, False]]]]


def test_score_is_higher_for_the_better():
    assert Classification(2).score({"accuracy": 0.75, "macro_f1": 0.1}) == 0.75
    assert Regression(1, tolerance=1).score({"mae": 2.0}) < Regression(1, tolerance=1).score({"mae": 1.0})
    for task, metric in TASKS.values():
        assert task.headline in task.metrics()
        assert metric in task.metrics()


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Classification(1), "Classification needs at least 2 classes, found num_classes=1."),
        (lambda: MultiLabel(0), "MultiLabel needs at least 1 label, found num_labels=0."),
        (lambda: MultiLabel(2, benefit="exct"), "Unknown benefit of MultiLabel 'exct': did you mean 'exact'?"),
        (lambda: Regression(0, tolerance=1), "Regression needs at least 1 number to predict, found num_targets=0."),
        (lambda: Regression(1, loss="l3", tolerance=1), "Unknown loss of Regression 'l3'"),
        (lambda: Regression(1), "needs a tolerance above 0, in the units of the target, found None."),
        (lambda: Regression(1, tolerance=float("nan")), "needs a tolerance above 0, in the units of the target, found nan."),
        (lambda: Regression(1, tolerance=1, scale=0), "Regression needs a scale above 0 for every number, found [0.0]."),
        (lambda: Segmentation([]), "Segmentation needs the names of its regions, all different, found ()."),
        (lambda: Segmentation(["ET", "et"]), "all different, found ('ET', 'et')."),
        (lambda: Classification(3).check(torch.tensor([0, 3])), "Label 3 in row 1 of the batch is outside the 3 classes 0..2"),
        (lambda: Classification(3).check(torch.tensor([[0.0]])), "must be integers of shape [B], found torch.float32 (1, 1)."),
        (lambda: MultiLabel(1).check(torch.tensor([[torch.nan]])), "row 0 of the batch is nan: a label is 0 or 1."),
    ],
)  # fmt: skip
def test_what_is_wrong_is_one_sentence(make, sentence):
    with pytest.raises(EquipoiseError) as error:
        make()
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


def test_values_of_another_benefit_are_another_store(tmp_path):
    tasks = [
        Classification(2), MultiLabel(2), MultiLabel(2, benefit="exact"), Regression(1, tolerance=1.0),
        Regression(1, tolerance=1.5), Regression(1, tolerance=1.0000001), Regression(1, benefit="sign"), Segmentation(["a"]),
    ]  # fmt: skip
    names = [task.benefit_name for task in tasks]
    assert len(set(names)) == len(names)

    def info(task):
        return StoreInfo(("a", "b"), task.benefit_name, task.graded, "feature", "m", "d", "train", "1")

    write_chunk(tmp_path, 0, info(tasks[3]), np.arange(2), ["x", "y"], np.ones((2, 3), bool), np.ones((2, 2), bool))
    assert len(read_values(tmp_path, info(tasks[3]))) == 2
    for task in (tasks[4], tasks[5], tasks[6]):
        with pytest.raises(EquipoiseError, match=r"is a store of another benefit: benefit 'regression/tolerance=1.0'"):
            read_values(tmp_path, info(task))


@every
def test_the_task_of_a_specification_is_the_task(name):
    task, _ = TASKS[name]
    choices = {
        "classification": {"labels": "abc"},
        "multilabel": {"labels": "abc", "benefit": getattr(task, "kind", None)},
        "regression": {
            "labels": "abc"[: task.num_outputs], "benefit": getattr(task, "kind", None),
            "tolerance": getattr(task, "tolerance", None), "loss": getattr(task, "loss", None),
        },
        "segmentation": {"labels": "abc", "shape": (SIDE, SIDE)},
    }[task.name]  # fmt: skip
    built = TaskSpec(kind=task.name, **{**choices, "labels": tuple(choices["labels"])}).build(
        {"mean": task.center.tolist(), "deviation": task.scale.tolist()} if task.name == "regression" else None
    )
    assert (built.benefit_name, built.graded, built.num_outputs) == (task.benefit_name, task.graded, task.num_outputs)
    logits, target = logits_for(task, 5), targets(task, 5)
    assert torch.equal(built.losses(logits, target), task.losses(logits, target))

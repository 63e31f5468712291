"""Metrics and benefits of every task on vectors with known answers, and states that merge over chunks."""

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr
from sklearn.metrics import f1_score, roc_auc_score

from equipoise.models import Classification, MultiLabel, Regression, Segmentation
from equipoise.models.errors import EquipoiseError
from equipoise.models.segmentation import case_dice, pooled_dice_loss
from equipoise.valuation import Values, get, linear_copies, shapley

TRUE = torch.tensor([[1, 0, 1], [0, 1, 0], [1, 1, 0], [0, 0, 0]])
PREDICTED = torch.tensor([[1, 0, 0], [0, 1, 1], [1, 0, 0], [0, 0, 0]])


def measured(task, logits, target):
    metrics = task.metrics(thorough=True)
    metrics.update(logits, target)
    return {name: float(value) for name, value in metrics.compute().items()}


def test_multilabel_vectors():
    # balgrad.md T9, and T5 for the loss.
    found = measured(MultiLabel(3), PREDICTED * 2.0 - 1, TRUE)
    assert found["macro_f1"] == pytest.approx(0.555556, abs=1e-6)
    assert found["micro_f1"] == pytest.approx(0.666667, abs=1e-6)
    assert found["exact_match"] == 0.25
    assert found["label_accuracy"] == 0.75
    task = MultiLabel(2)
    logits, target = torch.tensor([[1.0, -1.0], [0.0, 2.0]]), torch.tensor([[1, 0], [1, 0]])
    np.testing.assert_allclose(task.losses(logits, target), [0.313262, 1.410038], atol=1e-6)
    assert task.benefit(logits, target).tolist() == [1.0, 0.0]
    assert MultiLabel(3).benefit(PREDICTED * 2.0 - 1, TRUE).tolist() == pytest.approx([2 / 3, 2 / 3, 2 / 3, 1.0])
    assert MultiLabel(3, benefit="exact").benefit(PREDICTED * 2.0 - 1, TRUE).tolist() == [0, 0, 0, 1]


def test_classification_and_labels_as_scikit_learn_has_them():
    rng = np.random.default_rng(0)
    logits, target = torch.from_numpy(rng.normal(size=(80, 4))), torch.from_numpy(np.arange(80) % 4)
    found = measured(Classification(4), logits, target)
    predicted = logits.argmax(dim=1)
    assert found["macro_f1"] == pytest.approx(f1_score(target, predicted, average="macro"), abs=1e-6)
    assert found["accuracy"] == pytest.approx(f1_score(target, predicted, average="micro"), abs=1e-6)
    wanted = roc_auc_score(target, logits.softmax(dim=1), multi_class="ovr")
    assert found["auroc"] == pytest.approx(wanted, abs=1e-6)
    labels = torch.from_numpy(rng.integers(0, 2, (80, 4)))
    found = measured(MultiLabel(4), logits, labels)
    assert found["auroc"] == pytest.approx(roc_auc_score(labels, logits), abs=1e-6)
    assert found["macro_f1"] == pytest.approx(f1_score(labels, logits > 0, average="macro"), abs=1e-6)


def test_regression_vectors():
    rng = np.random.default_rng(1)
    target = torch.from_numpy(rng.normal(size=(60, 1)) * 2).round()
    logits = torch.from_numpy(rng.normal(size=(60, 1)))
    task = Regression(1, benefit="sign", center=0.5, scale=2.0)
    p, t = (0.5 + 2 * logits).numpy()[:, 0], target.numpy()[:, 0]
    found = measured(task, logits, target)
    assert found["mae"] == pytest.approx(np.abs(p - t).mean())
    assert found["pearson"] == pytest.approx(pearsonr(p, t)[0])
    assert found["acc2"] == pytest.approx(((p >= 0) == (t >= 0)).mean())
    assert found["f1"] == pytest.approx(f1_score(t >= 0, p >= 0, average="weighted"))
    some = t != 0
    assert 0 < some.sum() < 60
    assert found["acc2_nonneutral"] == pytest.approx(((p > 0) == (t > 0))[some].mean())
    assert found["f1_nonneutral"] == pytest.approx(f1_score(t[some] > 0, p[some] > 0, average="weighted"))
    assert found["acc7"] == pytest.approx((np.round(np.clip(p, -3, 3)) == np.round(np.clip(t, -3, 3))).mean())
    np.testing.assert_allclose(task.losses(logits, target), np.abs(p - t) / 2)
    near = Regression(1, tolerance=1.0, center=0.5, scale=2.0)
    assert measured(near, logits, target)["within"] == pytest.approx((np.abs(p - t) <= 1).mean())
    assert near.benefit(logits, target).tolist() == (np.abs(p - t) <= 1).astype(float).tolist()
    assert near.score({"mae": 3.0}) == -3.0


def test_dice_vectors():
    # One case: WT 2 of 3 found (4 / 5), TC neither there nor found (1), ET found where there is none (0).
    target = torch.zeros(1, 3, 2, 2, 2, dtype=torch.uint8)
    target[0, 0, 0, 0] = 1
    target[0, 0, 0, 1, 0] = 1
    logits = torch.full((1, 3, 2, 2, 2), -5.0)
    logits[0, 0, 0, 0] = 5.0
    logits[0, 2, 1, 1, 1] = 5.0
    task = Segmentation(["WT", "TC", "ET"])
    assert case_dice(logits, target).tolist() == [pytest.approx([0.8, 1.0, 0.0])]
    found = measured(task, logits, target)
    assert found == pytest.approx({"dice": 0.6, "dice_wt": 0.8, "dice_tc": 1.0, "dice_et": 0.0})
    assert float(task.benefit(logits, target)[0]) == pytest.approx(0.6)
    p, t = logits.sigmoid().numpy(), target.numpy()
    soft = [1 - (2 * (p[0, r] * t[0, r]).sum() + 1) / (p[0, r].sum() + t[0, r].sum() + 1) for r in range(3)]
    assert float(task.losses(logits, target)[0]) == pytest.approx(np.mean(soft), rel=1e-5)
    # Cases count alike, however large: the second is perfect.
    both = measured(task, torch.cat([logits, torch.where(target > 0, 5.0, -5.0)]), torch.cat([target, target]))
    assert both["dice"] == pytest.approx(0.8)


def test_per_sample_dice_has_one_gradient_however_the_batch_is_cut():
    torch.manual_seed(0)
    logits = torch.randn(6, 2, 5, 5, dtype=torch.float64, requires_grad=True)
    target = (torch.rand(6, 2, 5, 5) < torch.linspace(0, 0.9, 6)[:, None, None, None]).to(torch.uint8)
    task = Segmentation(["a", "b"])
    [whole] = torch.autograd.grad(task.losses(logits, target).sum() / 6, logits)
    parts = [slice(0, 1), slice(1, 5), slice(5, 6)]
    [cut] = torch.autograd.grad(sum(task.losses(logits[s], target[s]).sum() for s in parts) / 6, logits)
    torch.testing.assert_close(cut, whole, rtol=1e-12, atol=1e-15)
    [pooled] = torch.autograd.grad(pooled_dice_loss(logits, target), logits)
    [halves] = torch.autograd.grad(sum(pooled_dice_loss(logits[s], target[s]) for s in parts) / 3, logits)
    assert (pooled - halves).norm() > 0.1 * pooled.norm()


CASES = {
    "classification": (Classification(3), lambda r, n: r.integers(0, 3, n)),
    "multilabel": (MultiLabel(3), lambda r, n: r.integers(0, 2, (n, 3)).astype(np.uint8)),
    "regression": (Regression(3, tolerance=1.0), lambda r, n: r.normal(size=(n, 3)) + 100),
    "sentiment": (Regression(3, benefit="sign"), lambda r, n: r.normal(size=(n, 3)).round()),
    "segmentation": (Segmentation("abc"), lambda r, n: r.integers(0, 2, (n, 3, 4, 4)).astype(np.uint8)),
}


@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric")
@pytest.mark.parametrize("name", CASES)
def test_states_of_chunks_merge_into_those_of_the_whole(name):
    # As valuer.py writes them beside a chunk and sweeps.py puts them together.
    task, targets = CASES[name]
    rng = np.random.default_rng(2)
    target = torch.from_numpy(targets(rng, 23))
    logits = torch.from_numpy(rng.normal(size=(23, 3, *target.shape[2:])))
    wanted = measured(task, logits, target)
    merged = task.metrics(thorough=True)
    for part in (slice(0, 1), slice(1, 9), slice(9, 10), slice(10, 23)):
        chunk = task.metrics(thorough=True)
        chunk.update(logits[part], target[part])
        for metric, state in {n: dict(m.metric_state) for n, m in chunk.items()}.items():
            merged[metric].merge_state(state)
    found = {metric: float(value) for metric, value in merged.compute().items()}
    assert found == pytest.approx(wanted, rel=1e-6, nan_ok=True)


@pytest.mark.parametrize("name", CASES)
def test_no_rows_and_no_numbers(name):
    task, targets = CASES[name]
    target = torch.from_numpy(targets(np.random.default_rng(3), 2))
    shape = (2, 3, *target.shape[2:])
    assert task.losses(torch.zeros(shape)[:0], target[:0]).shape == (0,)
    assert task.benefit(torch.zeros(shape)[:0], target[:0]).shape == (0,)
    if task.name in ("multilabel", "regression"):
        assert task.benefit(torch.full(shape, torch.nan), target).tolist() == [0, 0]


@pytest.mark.parametrize(
    ("task", "target", "sentence"),
    [
        (
            MultiLabel(2),
            torch.tensor([[0, 1], [2, 0]]),
            "target of label 0 in row 1 of the batch is 2.0: a label is 0 or 1",
        ),
        (MultiLabel(2), torch.tensor([0, 1]), "must be 0 or 1 of shape [B, 2], found torch.int64 (2,)"),
        (Regression(1, tolerance=1), torch.tensor([[1]]), "must be floats of shape [B, 1], found torch.int64 (1, 1)"),
        (
            Regression(1, tolerance=1),
            torch.tensor([[0.0], [torch.inf]]),
            "target in row 1 of the batch is not a finite",
        ),
        (Segmentation("ab"), torch.zeros(1, 3, 4, 4), "must be 0 or 1 of shape [B, 2, ...] (regions a, b), found"),
        (
            Segmentation("ab"),
            torch.full((1, 2, 4, 4), 3),
            "The mask in row 0 of the batch holds something else than 0 and 1",
        ),
    ],
)
def test_a_bad_target_is_one_sentence(task, target, sentence):
    with pytest.raises(EquipoiseError) as error:
        task.check(target)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


def test_copies_of_a_graded_table_by_hand():
    # M = 2, columns 0, 1, 01. Contributions ((v0 + v01 - v1) / 2, (v1 + v01 - v0) / 2) with v01 = 2 * score.
    score = np.array([[0.5, 0.25, 0.75], [1.0, 0.5, 1.0], [0.0, 0.0, 0.25], [0.5, np.nan, np.nan]])
    present = np.array([[1, 1], [1, 1], [1, 1], [1, 0]], bool)
    phi = shapley(score, present)
    by_hand = np.array([[0.875, 0.625], [1.25, 0.75], [0.25, 0.25], [0.5, np.nan]])
    np.testing.assert_allclose(phi, by_hand, atol=1e-15)
    tau = (0.75 + 1.0 + 0.25 + 0.5) / 4  # 0.625
    # 2 max(0, tau - phi): 0, 0 | 0, 0 | .75, .75 | .25; with u = .5 everywhere .75 is rounded up and .25 is not.
    assert linear_copies(phi, np.full(phi.shape, 0.5), tau).tolist() == [[0, 0], [0, 0], [1, 1], [0, 0]]
    assert linear_copies(phi, np.full(phi.shape, 0.2), tau).tolist() == [[0, 0], [0, 0], [0, 0], [0, 0]]
    assert linear_copies(phi, np.full(phi.shape, 0.8), tau).tolist() == [[0, 0], [0, 0], [1, 1], [1, 0]]
    plan = get("sample", warmup=1).plan(
        1, [Values(np.arange(4), score.astype(np.float32), present)], num_rows=4, num_modalities=2, seed=0
    )
    assert plan.copies[:2].sum() == 0
    assert plan.copies[3, 1] == 0
    assert plan.copies.max() <= 1
    with pytest.raises(EquipoiseError, match="rule='bins' is for benefits of 0 or 1"):
        get("sample", warmup=1, rule="bins").plan(
            1, [Values(np.arange(4), score.astype(np.float32), present)], num_rows=4, num_modalities=2, seed=0
        )


def test_auroc_is_the_mean_over_what_has_a_curve():
    # Perfect, and a class that no row has, or a label that all or no rows have, does not count as 0.
    classes = torch.tensor([0, 1] * 5)
    logits = torch.nn.functional.one_hot(classes, 3) * 8.0
    assert measured(Classification(3), logits, classes)["auroc"] == 1.0
    labels = torch.stack([classes, torch.ones(10).long(), torch.zeros(10).long()], dim=1)
    assert measured(MultiLabel(3), labels * 8.0 - 4, labels)["auroc"] == 1.0
    assert np.isnan(measured(MultiLabel(2), labels[:, 1:] * 8.0 - 4, labels[:, 1:])["auroc"])


def test_no_number_is_the_worst_headline():
    assert Classification(2).score({"accuracy": float("nan")}) == float("-inf")
    assert Regression(1, tolerance=1).score({"mae": float("nan")}) == float("-inf")


def test_maps_of_another_shape_are_refused_even_with_as_many_positions():
    task, logits = Segmentation(["a"]), torch.randn(2, 1, 4, 8)
    mask = (logits > 0).to(torch.uint8).transpose(2, 3)
    for call in (task.losses, task.benefit, task.metrics().update):
        with pytest.raises(EquipoiseError, match=r"maps of shape \(1, 4, 8\) and the masks have \(1, 8, 4\)"):
            call(logits, mask)


def test_mean_benefit_is_the_metric_at_the_edge_of_the_tolerance():
    target = torch.arange(0, 40, dtype=torch.float64)[:, None] * 7
    task = Regression(1, tolerance=50, center=152, scale=77)
    logits = ((target + 50) - 152) / 77
    benefit = float(task.benefit(logits.float(), target).mean())
    assert benefit == pytest.approx(measured(task, logits.float(), target)["within"])

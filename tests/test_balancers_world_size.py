"""N workers on a global batch = one worker on the same batch, for every registered balancer."""

import numpy as np
import pytest

from equipoise import balancers
from equipoise.models.fusion import FUSIONS

#: Registering is being tested: a new balancer runs through every row here without being named.
NAMES = balancers.names()
TOLERANCE = {"float64": 1e-10, "float32": 1e-5}


def relative(a, b):
    top = sum(float(((a[n] - b[n]).astype(np.float64) ** 2).sum()) for n in a)
    return (top / sum(float((b[n].astype(np.float64) ** 2).sum()) for n in b)) ** 0.5


SKETCHED = ["separate_summed"]


def run(gloo, world, name, *, options=None, how=None, dtype="float64", cut="even", micro=1, optimizer="sgd"):
    kind = balancers.get(name).accepts[0] if name in NAMES else "split"
    if name in NAMES and balancers.get(name).fusions:
        fusion = balancers.get(name).fusions[0]
        how = {"fusion": fusion, "absence": FUSIONS[fusion].absences[0], **(how or {})}
    how = {"unimodal": kind, **(how or {})}
    return gloo.run("world_cases", "train", world, name, options or {}, how, dtype, cut, micro, optimizer)


ALONE = {}


def run_alone(gloo, name, cut="even", **case):
    """The parameters that one worker ends with; it has all rows, whatever the cut, so it trains once for all cuts."""
    key = (name, repr(sorted(case.items())))
    if key not in ALONE:
        [ALONE[key]] = run(gloo, 1, name, **case)
    return ALONE[key]


def check(gloo, name, **case):
    alone = run_alone(gloo, name, **case)
    for world in (2, 4):
        replicas = run(gloo, world, name, **case)
        for other in replicas[1:]:
            for parameter in alone:
                np.testing.assert_array_equal(replicas[0][parameter], other[parameter])
        assert relative(replicas[0], alone) < TOLERANCE[case.get("dtype", "float64")]


@pytest.mark.parametrize("cut", ["even", "uneven", "empty"])
@pytest.mark.parametrize("name", NAMES)
def test_workers_equal_one_worker(gloo, name, cut):
    check(gloo, name, cut=cut)


@pytest.mark.parametrize("name", NAMES)
def test_workers_equal_one_worker_float32(gloo, name):
    check(gloo, name, cut="uneven", dtype="float32")


@pytest.mark.parametrize("name", NAMES)
def test_workers_equal_one_worker_with_an_adaptive_optimiser(gloo, name):
    # AdamW tells a gradient of zeros from no gradient: moments and weight decay of an absent modality must agree.
    check(gloo, name, cut="uneven", optimizer="adamw")


@pytest.mark.parametrize("name", NAMES)
def test_micro_batches_equal_one_batch(gloo, name):
    whole = run_alone(gloo, name)
    for world in (1, 2, 4):
        replicas = run(gloo, world, name, cut="uneven", micro=3)
        assert relative(replicas[0], whole) < TOLERANCE["float64"]


@pytest.mark.parametrize("name", SKETCHED)
def test_sketched_methods(gloo, name):
    # The contract holds what the methods of the papers need: both roads, every hook.
    check(gloo, name, cut="empty", optimizer="adamw")
    [whole] = run(gloo, 1, name)
    assert relative(run(gloo, 2, name, cut="uneven", micro=3)[0], whole) < TOLERANCE["float64"]


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("world", [1, 2])
def test_both_roads_agree(gloo, world, optimizer):
    # AdamW would tell a zero gradient from none: the roads agree on who gets none.
    together = run(gloo, world, "summed", optimizer=optimizer)[0]
    apart = run(gloo, world, "separate_summed", optimizer=optimizer)[0]
    assert relative(apart, together) < TOLERANCE["float64"]


@pytest.mark.parametrize("absence", ["feature", "input", "token"])
@pytest.mark.parametrize("fusion", ["sum", "gated", "film", "attention"])
def test_every_fusion_and_absence(gloo, fusion, absence):
    check(gloo, "joint", how={"fusion": fusion, "absence": absence, "unimodal": "heads"}, cut="empty")


@pytest.mark.parametrize("fusion", ["sum", "attention", "average"])
def test_dropped_modalities(gloo, fusion):
    check(gloo, "summed", how={"fusion": fusion, "absence": "drop", "unimodal": "heads"}, cut="empty")


@pytest.mark.parametrize("name", ["joint", "separate_summed"])
@pytest.mark.parametrize(
    "how",
    [
        {"fusion": "average", "absence": "drop", "unimodal": "split"},
        {"fusion": "concat", "absence": "token", "unimodal": "heads"},
        {"fusion": "attention", "absence": "mean", "unimodal": "heads"},
    ],
    ids=str,
)
def test_who_gets_no_gradient_where_one_worker_has_no_rows(gloo, name, how):
    # In two steps no row of any worker has "b": AdamW would tell the zeros of a worker without rows from no gradient.
    check(gloo, name, how=how, cut="empty", optimizer="adamw")


@pytest.mark.parametrize("absence", ["drop", "input"])
@pytest.mark.parametrize("name", ["joint", "modality_dropout", "gmd", "pcgrad", "agm"])
def test_early_fusion(gloo, name, absence):
    check(gloo, name, how={"early": True, "absence": absence, "unimodal": "coalition"}, cut="empty", optimizer="adamw")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("ogm", {"apply": "update"}),
        ("ogm", {"ends": 2}),
        ("agm", {"apply": "update", "alpha": 2.0}),
        ("mslr", {"memory": 1, "initial": {"a": 0.5}}),
        ("mses", {"patience": 1}),
        ("mses", {"patience": 1, "apply": "gradient"}),
    ],
    ids=str,
)
def test_options_of_what_scales(gloo, name, options):
    check(gloo, name, options=options, how={"unimodal": "heads"}, cut="uneven", optimizer="adamw")


@pytest.mark.parametrize(("fusion", "absence"), [("gated", "token"), ("attention", "drop"), ("average", "drop")])
def test_agm_with_every_kind_of_fusion(gloo, fusion, absence):
    check(gloo, "agm", how={"fusion": fusion, "absence": absence, "unimodal": "heads"}, cut="empty", optimizer="adamw")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("gmd", {"subsets": 3, "reduction": "sum"}),
        ("gmd", {"compat": "official"}),
        ("balgrad", {"weights": "norm", "blockwise": True}),
        ("balgrad", {"weights": "inverse"}),
        ("mmpareto", {"apply": "update"}),
        ("pcgrad", {"reduction": "mean"}),
        ("mgda", {"normalization": "loss+", "parameters": "all"}),
        ("jd", {"aggregator": "GradDrop"}),
        ("jd", {"aggregator": "AlignedMTL", "parameters": "all"}),
    ],
    ids=str,
)
def test_options_of_the_gradient_methods(gloo, name, options):
    check(gloo, name, options=options, cut="empty", optimizer="adamw")


def test_unreduced_statistics_fail_this_test(gloo):
    [alone] = run(gloo, 1, "ogm_unreduced")
    [sound] = run(gloo, 1, "ogm")
    assert relative(alone, sound) < 1e-12, "on one worker the planted fault is no fault"
    replicas = run(gloo, 2, "ogm_unreduced")
    assert relative(replicas[0], alone) > 1e-4
    assert any((replicas[0][p] != replicas[1][p]).any() for p in alone), "the replicas should have drifted apart"

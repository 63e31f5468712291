"""Early stopping, without Ray: the rule by hand, and a light run that ends where its own metrics say."""

import pytest

from equipoise.datasets.prepare import prepare
from equipoise.pipelines.config import EarlyStoppingConfig, load_config
from equipoise.pipelines.early_stopping import EarlyStopping
from equipoise.pipelines.light import train_light


@pytest.mark.parametrize(
    ("patience", "min_delta", "values", "end"),
    [
        (None, 0.0, [0.5, 0.4, 0.3, 0.2], None),
        (1, 0.0, [0.5, 0.5, 0.9], 2),  # equal is not better
        (2, 0.0, [0.5, 0.4, 0.6, 0.6, 0.6], 5),
        (2, 0.1, [0.5, 0.55, 0.59, 0.9], 3),  # small steps add up to less than min_delta over the best that counted
        (1, 0.1, [0.5, 0.7, 0.9, 0.95], 4),
        (3, 0.0, [0.1, 0.2, 0.3], None),
    ],
)
def test_the_rule_by_hand(patience, min_delta, values, end):
    stopping = EarlyStopping(EarlyStoppingConfig(patience=patience, min_delta=min_delta))
    assert not stopping.over(0)
    over = []
    for epoch, value in enumerate(values):
        stopping.update(epoch, value)
        resumed = EarlyStopping(stopping.config)
        resumed.load_state_dict(stopping.state_dict())
        over.append(resumed.over(epoch + 1))
        assert over[-1] == stopping.over(epoch + 1)
    assert (over.index(True) + 1 if True in over else None) == end


def test_a_run_ends_where_its_metrics_say(tmp_path):
    prepare("digits", tmp_path / "data")
    base = {"data": str(tmp_path / "data"), "out": "unused", "max_epochs": 12, "seed": 5}
    whole = train_light(load_config(base)).epochs
    short = train_light(load_config({**base, "early_stopping": {"patience": 2, "min_delta": 0.01}})).epochs
    best, since, expected = -1.0, 0, []
    for row in whole:
        expected.append(row)
        since = 0 if row["value"] > best + 0.01 else since + 1
        best = max(best, row["value"]) if since == 0 else best
        if since == 2:
            break
    assert 2 < len(expected) < len(whole)
    for row in (*short, *expected):
        row.pop("seconds", None)  # which the machine decides
    assert short == expected


def test_patience_ends_where_no_epoch_has_a_number():
    stopping = EarlyStopping(EarlyStoppingConfig(patience=2))
    over = []
    for epoch in range(4):
        stopping.update(epoch, float("-inf"))
        over.append(stopping.over(epoch + 1))
    assert over == [False, True, True, True]

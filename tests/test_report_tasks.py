"""The report and the card of multi-label, regression and segmentation runs: their numbers against the store."""

import base64
import html
import io
import json
import re

import duckdb
import numpy as np
import pytest
from huggingface_hub import ModelCard
from PIL import Image
from task_runs import KINDS, task_run
from test_report import embedded, finish, page, rows_of

from equipoise.datasets.reading import Reader
from equipoise.datasets.task_spec import TaskSpec
from equipoise.pipelines.card import write_card
from equipoise.pipelines.files import write_json
from equipoise.pipelines.report import charts, samples
from equipoise.pipelines.tables import matrix_table, measured
from equipoise.valuation import values_of


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """{kind: a run with a history}"""
    out = {kind: finish(task_run(tmp_path_factory.mktemp(kind), kind)[0], steps=20) for kind in KINDS}
    for run in out.values():
        environment = {"python": "3", "workers": 1, "actors": 1, "device": "cpu", "packages": {}}
        write_json(run.path / "environment.json", environment)
    return out


@pytest.fixture(scope="module")
def pages(runs):
    return {kind: page(run) for kind, run in runs.items()}


def stored(run):
    return duckdb.sql(f"select * from read_parquet('{run.values_folder('train', 'best')}/*.parquet')").df()


def cell(row, name):
    return html.unescape(re.search(rf'data-name="{name}"[^>]*>(?:<span[^>]*>)?([^<]*)', row)[1])


@pytest.mark.parametrize("kind", ["multilabel", "segmentation"])
def test_a_graded_run_shows_benefits_and_not_who_was_right(runs, pages, kind):
    run, text = runs[kind], pages[kind]
    table = stored(run).set_index("sample_id")
    full = {i: scores[-1] for i, scores in table["coalitions"].items()}  # nothing lacks in these sets
    names = run.manifest.names
    assert len(rows_of(text)) == 60 or kind == "segmentation"
    for row in rows_of(text):
        i = int(re.search(r'data-id="(\d+)"', row)[1])
        assert float(re.search(r'data-v="([^"]*)" data-name="benefit"', row)[1]) == pytest.approx(full[i])
        assert cell(row, "benefit") == f"{full[i]:.2f}"
        listed = cell(row, "benefit with").split(", ")
        assert listed[0] == f"{'+'.join(names)} {full[i]:.2f}"
        assert listed[-len(names) :] == [f"{m} {table['coalitions'][i][(1 << k) - 1]:.2f}" for k, m in enumerate(names)]
        # Efficiency, in what the page shows.
        contributions = json.loads(html.unescape(re.search(r'data-contributions="(.*?)"', row)[1]))
        assert sum(contributions) == pytest.approx(len(names) * full[i], abs=1e-6)
    assert "right with" not in text.partition("</style>")[2]
    assert "copies " + names[0] not in text.split('id="samples"')[1]
    said = re.search(r"<dt>train benefit</dt><dd>([\d.]+)</dd>", text)[1]
    assert said == measured(float(np.mean(list(full.values()))))
    figure = embedded(text)[0]["figures"]["histogram"]
    for m in names:
        assert sum(figure["series"][m]) == len(table)
        mean = np.average(figure["x"], weights=figure["series"][m])
        width = figure["x"][1] - figure["x"][0]
        assert mean == pytest.approx(table[f"contribution_{m}"].mean(), abs=width / 2)
    assert len(figure["x"]) >= 8


def test_the_bars_of_labels_lie_on_the_grid_of_the_values(runs, pages):
    figure = embedded(pages["multilabel"])[0]["figures"]["histogram"]
    step = figure["x"][1] - figure["x"][0]
    assert (step * 8) == pytest.approx(round(step * 8))  # 2 modalities, 4 labels
    found = stored(runs["multilabel"])["contribution_left"]
    counted = dict(zip(figure["x"], figure["series"]["left"], strict=True))
    assert counted[1.0] == ((found >= 1 - step / 2) & (found < 1 + step / 2)).sum()


@pytest.mark.parametrize(("spread", "width"), [(4.0, 0.25), (1.6, 0.1), (0.3, 0.025), (0.0, 0.01)])
def test_bars_of_graded_contributions_are_as_wide_as_they_spread(spread, width):
    x = np.linspace(0, spread, 101)[:, None]
    assert charts.cell_width(None, np.hstack([x, np.full_like(x, np.nan)])) == width
    assert charts.cell_width(1 / 6) == 1 / 6
    assert charts.cell_width(None) == 0.25
    assert charts.cell_width(1 / 40, x) == pytest.approx(max(1, round(4 * 0.9 * spread)) / 40)


def test_a_regression_shows_its_error_in_the_units_of_the_target(runs, pages):
    run, text = runs["regression"], pages["regression"]
    matrix = run.result("validation", run.checkpoints.best["epoch"]).matrix
    assert matrix[3]["mae"] > 10
    assert '<th class="num">mae (lower is better)</th>' in text
    shown = dict(re.findall(r"<dt>(validation [^<]*)</dt><dd>([^<]*)</dd>", text))
    assert shown["validation mae, all modalities"] == f"{matrix[3]['mae']:.2f}"
    assert shown["validation Avg"] == f"{(matrix[1]['mae'] + matrix[2]['mae']) / 2:.2f}"
    bars = re.findall(r'<td class="num bar" style="--v:([\d.]+)%">([\d.]+)</td>', text.split('id="matrix"')[1])
    largest = max(row["mae"] for row in matrix.values())
    assert [float(width) for width, _ in bars] == pytest.approx(
        [100 * matrix[c]["mae"] / largest for c in (3, 1, 2)], abs=0.06
    )
    assert ", the lowest" in text
    # Its benefit is 0 or 1: a prediction is right within the tolerance.
    assert "right with" in text
    assert "1 where it is within 50 of the target, else 0" in text
    right = values_of(run.values("train")).score[:, -1]
    assert re.search(r"<dt>train benefit</dt><dd>([\d.]+)</dd>", text)[1] == f"{right.mean():.3f}"
    columns = Reader(run.config.data).read("train", np.arange(run.manifest.splits["train"].rows))
    for row in rows_of(text):
        i = int(re.search(r'data-id="(\d+)"', row)[1])
        assert float(cell(row, "target")) == columns["target"][i, 0]


def test_targets_in_words(runs, pages):
    columns = Reader(runs["multilabel"].config.data).read("train", np.arange(300))
    labels = runs["multilabel"].manifest.task.labels
    for row in rows_of(pages["multilabel"]):
        i = int(re.search(r'data-id="(\d+)"', row)[1])
        if i < 300:
            named = ";".join(n for n, v in zip(labels, columns["target"][i], strict=True) if v) or "none"
            assert cell(row, "target") == named
    spec = TaskSpec(kind="segmentation", labels=("whole", "core"), shape=(2, 2))
    assert samples.told(spec, np.array([[[[1, 1], [1, 0]], [[0, 0], [0, 1]]]])) == ["whole 75.0%, core 25.0%"]
    spec = TaskSpec(kind="regression", labels=("a", "b"), tolerance=1)
    assert samples.told(spec, np.array([[1.5, -2000.0]], np.float32)) == ["1.5, -2,000"]


def test_of_a_volume_the_middle_slice_is_drawn():
    x = np.zeros((2, 5, 4, 6), np.float32)
    x[0, 2, 1, 3] = 1
    shown = str(samples.draw_array(x, (0, 1)).html)
    assert "2 × 5 × 4 × 6; 0 to 1; the middle slice of the first channel" in shown
    picture = Image.open(io.BytesIO(base64.b64decode(re.search(r"base64,([^\"]+)", shown)[1])))
    assert picture.size == (6, 4)
    pixels = np.asarray(picture).reshape(-1, 3).astype(int)
    assert (pixels != pixels[0]).any(axis=1).nonzero()[0].tolist() == [9]


def test_runs_of_different_tasks_side_by_side(runs, tmp_path):
    text = page(*runs.values(), out=tmp_path / "all.html")
    assert len(embedded(text)) == 3
    for said in ("regression of 1 number", "segmentation of 3 regions", "multi-label classification with 4 labels"):
        assert said in text


@pytest.mark.parametrize("kind", KINDS)
def test_the_card_says_the_task_and_its_metrics(runs, kind):
    run = runs[kind]
    text = write_card(run).read_text()
    spec = run.manifest.task
    assert f"A late fusion model for {spec.described} from" in text
    assert f"{spec.outputs}: {', '.join(spec.labels)}. The benefit of a prediction is {spec.worth}." in text
    assert ("times the benefit of the prediction from all of them" in text) == (kind != "regression")
    assert ("Of mae, lower is better." in text) == (kind == "regression")
    assert ("predictions.parquet" in text) == (kind == "segmentation")
    matrix = run.result("validation", run.checkpoints.best["epoch"]).matrix
    headline = run.checkpoints.best["metric"]
    found = {r.metric_name: r.metric_value for r in ModelCard.load(run.path / "card.md").data.eval_results}
    assert found[headline] == pytest.approx(matrix[2 ** len(run.manifest.names) - 1][headline])


def test_numbers_of_any_size():
    assert [measured(x) for x in (0.0, 0.98765, 1.0, 43.1234, 49.6, 151.26, 5000.4, 12345.6, -43.1234)] == [
        "0.000", "0.988", "1.000", "43.12", "49.60", "151.3", "5000", "12,346", "-43.12",
    ]  # fmt: skip
    assert [measured(x) for x in (3.21e-6, 0.00042)] == ["3.21e-06", "0.00042"]
    assert measured(43.1234, 4) == "43.123"
    row = {"coalition": "a+b", "modalities": 2, "rows": 67.0, "mae": 43.1234}
    assert [next(iter(column.cells)).plain for column in matrix_table([row], "t").columns] == ["a+b", "67", "43.12"]


def test_values_without_a_modality_have_a_benefit_of_what_they_have(tmp_path):
    from equipoise.pipelines.report.facts import Valued
    from equipoise.valuation.values import Values

    score = np.array([[0.25, np.nan, 0.25], [0.5, 0.75, 1.0]], np.float32)
    present = np.array([[True, False], [True, True]])
    values = Values(np.arange(2), score, present)
    valued = Valued("best", "", ["a", "b"], np.zeros((2, 2)), np.zeros((2, 2), np.uint8), values)
    assert valued.benefits.tolist() == [0.25, 1.0]

"""The report: its numbers against the Parquet files, its samples against the stored bytes, hostile text, missing pieces."""

import base64
import csv
import html
import io
import json
import re
import shutil
import time
import wave
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from light_runs import light_run
from PIL import Image

from equipoise import EquipoiseError, Run
from equipoise.datasets.prepare import prepare
from equipoise.models import Modality
from equipoise.pipelines.history import History
from equipoise.pipelines.report import samples, write_report
from equipoise.pipelines.sweeps import run_sweep
from equipoise.valuation.plan import Plan

HOSTILE = "</script><img src=x onerror=\"document.title='owned'\">"
NAMES = ("picture", "words", "signal", "sound")


def png(i: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.full((8, 8), (i * 37) % 256, np.uint8)).save(out, "PNG")
    return out.getvalue()


def wav(i: int) -> bytes:
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16000)
        file.writeframes((8000 * np.sin(np.arange(1600) * (1 + i % 2) / 9)).astype("<i2").tobytes())
    return out.getvalue()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Pictures, texts, signals and sounds, some missing; a label and texts that would like to be markup."""
    root = tmp_path_factory.mktemp("kinds")
    rows, random = range(160), np.random.default_rng(0)
    kinds = [i % 2 for i in rows]
    table = {
        "source_id": [f"row,{i} {HOSTILE if i % 7 == 0 else ''}" for i in rows],
        "target": [("calm", HOSTILE)[k] for k in kinds],
        "split": ["train" if i < 100 else "validation" if i < 130 else "test" for i in rows],
        "picture": [png(i) for i in rows],
        "words": [
            None if i % 5 == 4 else f"{('yes', 'no')[k if i % 3 else 0]} {HOSTILE} {i}" for i, k in enumerate(kinds)
        ],
        "signal": [(random.normal(k, 1.0, (40 + i % 9, 2))).tolist() for i, k in enumerate(kinds)],
        "sound": [wav(i) if i % 4 else None for i in rows],
    }
    pq.write_table(pa.table(table), root / "rows.parquet")
    modalities = [
        Modality(name="picture", kind="image", shape=(1, 8, 8)),
        Modality(name="words", kind="text", max_length=12),
        Modality(name="signal", kind="sequence", shape=(2,), max_length=50),
        Modality(name="sound", kind="audio", shape=(8,), max_length=12),
    ]
    prepare(root / "rows.parquet", root / "data", modalities=modalities)
    return root / "data"


def finish(run: Run, steps: int = 300) -> Run:
    """Real sweeps of the trained model, and the history of four epochs, one of them without a sweep of train."""
    weights = run.best_checkpoint() / "model.pt"
    for epoch in range(4):
        run_sweep(run.sweep("validation", epoch, weights))
    run.result("train")
    matrix, names = run.result("validation", 0).matrix, run.manifest.names
    metrics, rows = History(run.path / "metrics.parquet"), run.manifest.splits["train"].rows
    for e in range(4):
        row = {"epoch": e, "steps": 10, "step": 10 * (e + 1), "entries": rows + 4 * e, "padding": 0, "repeats": e}
        row |= {f"copies/{m}": i * e for i, m in enumerate(names)} | {"reused_plan": int(e == 2)}
        row |= {"seconds/train": 5.0 + e, "seconds/wait": 2.0, "seconds/compute": 2.5, "seconds/first_batch": 1.5}
        row |= {"seconds/validation": 0.25, "seconds/sweep": None if e == 1 else 0.5}
        row |= {f"contribution/{m}": None if e == 1 else 0.1 * i + e for i, m in enumerate(names)}
        full = 2 ** len(names) - 1
        row |= {f"validation/{k}": v for k, v in matrix[full].items() if k != "rows"}
        row |= {f"validation/{m}/loss": matrix[1 << i]["loss"] for i, m in enumerate(names)}
        metrics.append(row)
    metrics.write()
    history = History(run.path / "steps.parquet")
    for s in range(steps):
        row = {"step": s, "epoch": s // 80, "loss": 2 / (s + 1), "loss/fused": 2 / (s + 1), "lr": 0.1}
        history.append({**row, "cosine/picture/words": np.cos(s), "score_picture": s / 7, "score_words": -s})
    history.write()
    copies = np.arange(rows)[:, None] % np.array([4] * len(names))
    Plan(copies.astype(np.uint8), np.zeros(rows, np.uint8)).save(run.plan(3))
    (run.path / "environment.json").write_text(json.dumps({"device": "cpu", "packages": {"torch": "9.9"}}))
    (run.path / "finished.json").write_text("{}")
    return Run.open(run.path)


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    return finish(light_run(tmp_path_factory.mktemp("runs") / "kinds", data, max_steps=12, batch_size=25))


@pytest.fixture
def copy(run, tmp_path):
    shutil.copytree(run.path, tmp_path / "copy")
    return Run.open(tmp_path / "copy")


def page(*runs: Run, out: Path | None = None) -> str:
    return write_report(runs, out).read_text()


def embedded(text: str) -> list[dict]:
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)[1])[
        "runs"
    ]


def rows_of(text: str) -> list[str]:
    return re.findall(r"<tr data-id=.*?</tr>", text, re.DOTALL)


# Numbers


def test_distributions_are_those_of_the_stored_values(run):
    [found] = embedded(page(run))
    folder = run.values_folder("train", "best")
    rows = duckdb.sql(f"select * from read_parquet('{folder}/*.parquet')").df()
    for m in NAMES:
        x = rows[f"contribution_{m}"].dropna()
        [line] = [line for line in found["summary"] if line[0] == m]
        expected = [
            len(x),
            x.mean(),
            *x.quantile([0.05, 0.25, 0.5, 0.75, 0.95]),
            (x < 0).mean(),
            (x > 0.9999999).mean(),
        ]
        assert line[1:] == pytest.approx(expected)
        figure = found["figures"]["histogram"]
        counted = {k: n for k, n in zip(figure["x"], figure["series"][m]) if n}
        assert counted == (x * 4 + 0.5).apply(np.floor).div(4).value_counts().to_dict()
    both = rows[["contribution_picture", "contribution_sound"]].dropna()
    cells = found["figures"]["scatter/picture/sound"]["cells"]
    assert sum(c[2] for c in cells) == len(both)
    assert sum(c[0] * c[2] for c in cells) == pytest.approx(both.iloc[:, 0].mul(4).add(0.5).apply(np.floor).sum() / 4)


def test_figures_are_the_columns_of_the_files(run):
    text = page(run)
    [found] = embedded(text)
    figures, metrics, steps = found["figures"], run.metrics, run.steps
    assert figures["contributions"]["series"]["signal"] == pytest.approx([0.2, None, 2.2, 3.2])
    best = {m["name"]: m["y"] for m in figures["contributions"]["marks"]}
    assert best["best checkpoint: words"] == pytest.approx(run.result("train").contributions["words"])
    assert figures["entries"]["series"]["copies of sound"] == [0, 3, 6, 9]
    assert figures["entries"]["series"]["originals"] == [100] * 4
    assert "earlier plan" in figures["entries"]["flagged"]["2"]
    assert figures["copies"]["series"]["words"] == [25] * 4
    assert figures["validation/loss"]["series"]["all modalities"] == metrics["validation/loss"].tolist()
    assert figures["validation/loss"]["series"]["sound alone"] == metrics["validation/sound/loss"].tolist()
    by_hand = [steps["loss/fused"][i : i + 3].mean() for i in range(0, 300, 3)]
    assert figures["loss"]["series"]["fused"] == pytest.approx(by_hand)
    assert figures["cosine"]["series"]["picture/words"] == pytest.approx(
        np.cos(np.arange(300)).reshape(-1, 3).mean(axis=1)
    )
    assert set(figures["score"]["series"]) == {"picture", "words"}
    spent = figures["seconds"]["series"]
    assert spent["first batch"] == [1.5] * 4
    assert spent["data wait"] == [0.5] * 4
    assert spent["rest of training"] == [0.5, 1.5, 2.5, 3.5]
    assert spent["sweep of train"] == [0.5, 0, 0.5, 0.5]
    total = metrics["seconds/train"].sum() + metrics["seconds/validation"].sum() + metrics["seconds/sweep"].sum()
    assert sum(map(sum, spent.values())) == pytest.approx(total)
    for said in ("Conflicts between objectives", "torch 9.9", "words: 25 (copies 3)", "Finished after 4 epochs"):
        assert said in text


def test_the_matrix_with_avg_and_gap(run):
    text = page(run)
    [found] = embedded(text)
    own = run.result("validation", run.checkpoints.best["epoch"]).matrix
    rows = {row["coalition"]: row for row in found["matrices"]["validation"]}
    assert len(rows) == 15
    assert rows["picture+sound"]["accuracy"] == own[0b1001]["accuracy"]
    missing = [own[15 ^ 1 << m]["accuracy"] for m in range(4)]
    shown = dict(re.findall(r"<dt>(validation \w+)</dt><dd>([\d.]+)</dd>", text))
    assert shown == {
        "validation Avg": f"{np.mean(missing):.3f}",
        "validation Gap": f"{max(missing) - min(missing):.3f}",
    }


def test_a_report_looks_at_test_only_where_it_was_evaluated(copy):
    assert "test" not in embedded(page(copy))[0]["matrices"]
    assert not copy.values_folder("test", "best").exists()
    matrix = copy.matrix("test")
    [first, *_] = embedded(page(copy))[0]["matrices"]["test"]
    assert first["accuracy"] == matrix["accuracy"][0]


# Samples


def test_the_most_one_sided_samples_come_as_themselves(run):
    text = page(run)
    source = pq.read_table(Path(run.config.data).parent / "rows.parquet").to_pandas().set_index("source_id")
    values = run.values("train").to_pandas().set_index("sample_id")
    phi = values[[f"contribution_{m}" for m in NAMES]]
    gaps = (phi.max(axis=1) - phi.min(axis=1)).where(phi.notna().sum(axis=1) > 1, 0)
    shown = rows_of(text)
    assert f"{len(shown)} shown of 100 valued" in text
    assert len(shown) == min(samples.SAMPLES, (gaps > 1e-9).sum())
    seen = set()
    for row in shown:
        sample_id = int(re.search(r'data-id="(\d+)"', row)[1])
        told = values.loc[sample_id]
        stored = source.loc[told["source_id"]]
        assert html.unescape(re.search(r'data-source="(.*?)"', row)[1]) == told["source_id"]
        assert html.unescape(re.search(r'data-label="(.*?)"', row)[1]) == stored["target"]
        assert float(re.search(r'data-v="([^"]*)" data-name="one-sided"', row)[1]) == pytest.approx(gaps[sample_id])
        contributions = json.loads(html.unescape(re.search(r'data-contributions="(.*?)"', row)[1]))
        assert contributions == pytest.approx([None if v != v else v for v in phi.loc[sample_id]])
        picture = re.search(r'src="data:image/png;base64,([^"]+)"', row)[1]
        assert base64.b64decode(picture) == stored["picture"]
        if not isinstance(stored["words"], float):  # pandas' NaN for the missing ones
            assert html.unescape(re.search(r'<span class="text">(.*?)</span>', row)[1]) == stored["words"]
        if stored["sound"] is not None:
            sound = re.search(r'<audio[^>]*src="data:audio/wav;base64,([^"]+)"', row)[1]
            assert base64.b64decode(sound) == stored["sound"]
        assert f"{len(stored['signal'])} × 2; " in row
        assert row.count("absent") == int(stored[["words", "sound"]].isna().sum())
        seen.add(sample_id)
    # Each modality that leads: none left out is more one-sided than one shown.
    leader = phi.fillna(-np.inf).to_numpy().argmax(axis=1)
    for m in range(4):
        inside = [gaps[i] for i in gaps.index if leader[i] == m and i in seen]
        outside = [gaps[i] for i in gaps.index if leader[i] == m and i not in seen]
        assert not inside or not outside or min(inside) >= max(outside) - 1e-9


def test_arrays_are_bars_lines_or_heat_maps():
    ramp = np.arange(80, dtype=np.float32)
    assert samples.draw_array(ramp[:33], (0, 80)).html.count("<rect") == 33
    assert samples.draw_array(ramp, (0, 80)).html.count("<polyline") == 1
    assert samples.draw_array(ramp.reshape(40, 2), (0, 80)).html.count("<polyline") == 2
    shown = samples.draw_array(ramp[:40].reshape(8, 5), (0, 80))
    picture = re.search(r"base64,([^\"]+)", str(shown.html))[1]
    assert Image.open(io.BytesIO(base64.b64decode(picture))).size == (5, 8)
    assert shown.sort == 19.5


def test_peaks_survive_the_thinning_of_long_signals():
    x = np.zeros(10000, np.float32)
    x[4321] = 1
    points = re.search(r'points="([^"]+)"', str(samples.draw_array(x, (0, 1)).html))[1].split()
    assert len(points) < 200
    assert min(float(p.split(",")[1]) for p in points) == 4.0


def test_the_page_is_bounded(run, monkeypatch):
    monkeypatch.setattr("equipoise.pipelines.report.BYTES", 20000)
    text = page(run)
    assert 0 < len(rows_of(text)) < 60
    assert "more would not fit into the page." in text
    big = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (400, 400, 3), np.uint8)).save(big, "PNG")
    m = Modality(name="p", kind="image", shape=(3, 400, 400))
    shown = samples.show(m, big.getvalue())
    assert len(shown.html) < 150_000 < len(big.getvalue())
    assert "reduced; stored: " in shown.html


def test_hostile_text_is_text(run):
    text = page(run)
    assert html.escape(HOSTILE).split("&quot;")[0] in text
    assert "<img src=x" not in text
    assert len(re.findall("<script", text)) == 2
    assert not re.findall(r"https?://", text)
    assert "default-src 'none'" in text


# Runs that are not done, not whole, not alone


def test_a_run_that_is_still_going_on(copy):
    (copy.path / "finished.json").unlink()
    progress = {"phase": "train", "done": 1200, "total": 2000, "epoch": 4}
    (copy.path / "progress.json").write_text(json.dumps(progress))
    text = page(copy)
    assert re.search(
        r"Not finished \(last sign of life .*: epoch 4, train, 1,200 of 2,000\)\. What follows is of the 4", text
    )
    assert embedded(text)[0]["finished"] is False
    (copy.path / "error.json").write_text(json.dumps("The label 7 is <b>outside</b>."))
    assert "Stopped: The label 7 is &lt;b&gt;outside&lt;/b&gt;." in page(copy)


def test_a_run_before_its_first_epoch(copy):
    (copy.path / "metrics.parquet").unlink()
    (copy.path / "report.html").unlink(missing_ok=True)
    with pytest.raises(
        EquipoiseError, match=r"has not finished its first epoch, so there is nothing to report yet.*again"
    ):
        write_report([copy])
    assert not (copy.path / "report.html").exists()


@pytest.mark.parametrize(
    "gone", ["steps.parquet", "plans", "values", "environment.json", "manifest.json", "checkpoints/best.json"]
)
def test_a_missing_piece_leaves_the_rest(copy, gone):
    path = copy.path / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    found = embedded(page(copy))[0]
    assert found["figures"]["entries"]["series"]["originals"] == [100] * 4
    assert ("copies" in found["figures"]) == (gone != "plans")
    assert ("loss" in found["figures"]) == (gone != "steps.parquet")
    assert (found["valued"] is None) == (gone in ("values", "checkpoints/best.json"))


def test_without_its_data_set_a_run_is_still_reported(copy, data, tmp_path):
    shutil.copytree(data, tmp_path / "gone")
    config = (copy.path / "config.yaml").read_text().replace(str(data), str(tmp_path / "nowhere"))
    (copy.path / "config.yaml").write_text(config)
    text = page(Run.open(copy.path))
    assert "The samples cannot be shown as themselves: " in text
    assert len(rows_of(text)) > 10
    assert "<audio" not in text


def test_several_runs_side_by_side(run, copy):
    text = page(run, copy, out=copy.path / "both.html")
    first, second = embedded(text)
    assert (first["name"], second["name"]) == ("kinds", "copy")
    assert first["figures"] == second["figures"]
    assert text.count('data-figure="contributions"') == 2
    assert [r["name"] for r in embedded(page(run, run, out=copy.path / "twice.html"))] != ["kinds", "kinds"]


def test_above_six_modalities_sizes_and_summaries(tmp_path):
    names, random = [f"v{i}" for i in range(7)], np.random.default_rng(1)
    rows = range(60)
    table = {n: random.normal(size=(60, 3)).tolist() for n in names}
    table |= {"source_id": [str(i) for i in rows], "target": [i % 2 for i in rows]}
    pq.write_table(pa.table(table), tmp_path / "wide.parquet")
    modalities = [Modality(name=n, shape=(3,)) for n in names]
    prepare(tmp_path / "wide.parquet", tmp_path / "data", modalities=modalities, task_labels=["no", "yes"])
    run = finish(light_run(tmp_path / "run", tmp_path / "data", max_steps=2, batch_size=10), steps=3)
    [found] = embedded(page(run))
    own = run.result("validation", 0).matrix
    pairs = [cell["accuracy"] for c, cell in own.items() if c.bit_count() == 2]
    [line] = [row for row in found["matrices"]["validation"] if row["coalition"] == "2 of 7 modalities"]
    assert line == {
        **line,
        "coalitions": 21,
        "mean": pytest.approx(np.mean(pairs)),
        "least": min(pairs),
        "most": max(pairs),
    }
    assert [row[0] for row in found["summary"]] == names
    assert not [key for key in found["figures"] if key == "histogram" or key.startswith("scatter")]


def test_sentences_for_what_cannot_be(run, tmp_path):
    with pytest.raises(EquipoiseError, match="at least one run"):
        write_report([])
    (tmp_path / "file").write_text("")
    with pytest.raises(EquipoiseError, match=r"Cannot write the report .*out\.html: .*--out"):
        write_report([run], tmp_path / "file" / "out.html")
    with pytest.raises(EquipoiseError, match=r"Cannot write the report .*: Is a directory"):
        write_report([run], tmp_path)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_stand_out_from_what_lies_behind_them(scheme):
    style = (Path(samples.__file__).parent / "page.css").read_text()
    light, dark = re.findall(r":root \{(.*?)\}", style, re.DOTALL)[:2]
    colours = dict(re.findall(r"--([\w-]+): (#\w+)", light if scheme == "light" else dark))

    def luminance(code: str) -> float:
        code = code[1:] if len(code) == 7 else "".join(c * 2 for c in code[1:])
        parts = [int(code[i : i + 2], 16) / 255 for i in (0, 2, 4)]
        r, g, b = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
        return 0.2126 * r + 0.7152 * g + 0.0722 * b

    def contrast(a: str, b: str) -> float:
        low, high = sorted((luminance(colours[a]), luminance(colours[b])))
        return (high + 0.05) / (low + 0.05)

    assert all(contrast(f"s{i}", behind) >= 3 for i in range(8) for behind in ("bg", "panel"))  # WCAG 1.4.11
    assert all(contrast(text, behind) >= 4.5 for text in ("ink", "soft") for behind in ("bg", "panel"))  # WCAG 1.4.3


# In a real browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        pytest.skip("no chromium and chromedriver here: apt-get install chromium chromium-driver")
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium drives the browser: pip install selenium")
    from selenium.webdriver.chrome.service import Service

    folder = tmp_path_factory.mktemp("browser")
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for flag in (
        "headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking",
        "disable-component-update", "disable-sync", "disable-dev-shm-usage", f"user-data-dir={folder / 'profile'}",
    ):  # fmt: skip
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    where = {"behavior": "allow", "downloadPath": str(folder / "downloads")}
    driver.execute_cdp_cmd("Browser.setDownloadBehavior", where)
    driver.downloads = folder / "downloads"
    yield driver
    driver.quit()


def opened(driver, run):
    driver.get_log("performance")
    driver.get_log("browser")
    driver.get(write_report([run]).resolve().as_uri())
    return lambda css: driver.find_elements("css selector", css)


def downloaded(driver, name: str) -> str:
    deadline = time.monotonic() + 20
    while not (found := driver.downloads / name).exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    text = found.read_text()
    found.unlink()
    return text


@pytest.mark.browser
def test_in_a_browser_nothing_is_fetched_and_nothing_runs_but_the_page(browser, run):
    find = opened(browser, run)
    assert browser.title == "kinds: Equipoise report"
    assert browser.get_log("browser") == []
    sent = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [m["params"]["request"]["url"] for m in sent if m["method"] == "Network.requestWillBeSent"]
    assert asked
    assert {url.partition(":")[0] for url in asked} <= {"file", "data", "blob"}
    assert sum(url.startswith("file") for url in asked) == 1
    shown = {svg.get_attribute("data-figure") for svg in find("svg.chart") if svg.size["height"] > 100}
    assert {"contributions", "histogram", "entries", "copies", "loss", "validation/loss", "cosine", "seconds"} <= shown
    assert len([key for key in shown if key.startswith("scatter")]) == 1
    picture = find(".media img")[0]
    assert browser.execute_script("return arguments[0].naturalWidth", picture) == 8
    sound = find("audio")[0]
    loaded = "const a = arguments[0], done = arguments[1]; a.onloadedmetadata = () => done(a.duration); a.load()"
    browser.execute_script("arguments[0].preload = 'metadata'", sound)
    assert browser.execute_async_script(loaded, sound) == pytest.approx(0.1, abs=0.02)
    widths = {}
    for width in (400, 1400):
        metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        page_and_view = "const e = document.documentElement; return [e.scrollWidth, e.clientWidth]"
        widths[width] = browser.execute_script(page_and_view)
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    assert all(width - 20 < view <= width for width, (_, view) in widths.items()), "less the scroll bar"
    assert all(whole <= view for whole, view in widths.values()), f"something sticks out: {widths}"


@pytest.mark.browser
def test_in_a_browser_rows_are_sorted_filtered_and_exported(browser, run):
    find = opened(browser, run)
    click = "arguments[0].click()"
    choose = "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('change'))"
    values = run.values("train").to_pandas().set_index("sample_id")

    def ids() -> list[int]:
        return [int(row.get_attribute("data-id")) for row in find(".rows tbody tr") if row.is_displayed()]

    [head] = [h for h in find(".rows th button") if h.get_attribute("textContent") == "contribution picture"]
    for turn in (-1, 1):
        browser.execute_script(click, head)
        column = values["contribution_picture"].loc[ids()].dropna().to_numpy() * turn
        assert (np.diff(column) >= 0).all()
        assert len(set(column)) > 1
    every = ids()
    for button in find(".rows th button"):
        browser.execute_script(click, button)
        assert sorted(ids()) == sorted(every), button.text
    browser.execute_script(choose, find(".by-label")[0], HOSTILE)
    labelled = ids()
    assert 0 < len(labelled) < len(every)
    assert f"{len(labelled)} shown, none selected" in find(".count")[0].text
    for box in [row.find_element("css selector", "input") for row in find(".rows tbody tr") if row.is_displayed()][:3]:
        browser.execute_script(click, box)
    browser.execute_script(click, find(".export")[0])
    rows = list(csv.DictReader(io.StringIO(downloaded(browser, "one-sided-samples.csv"))))
    assert [int(row["sample_id"]) for row in rows] == labelled[:3]
    for row in rows:
        told = values.loc[int(row["sample_id"])]
        assert (row["source_id"], row["label"]) == (told["source_id"], HOSTILE)
        for m in NAMES:
            value = told[f"contribution_{m}"]
            assert row[f"contribution_{m}"] == "" if value != value else float(row[f"contribution_{m}"]) == value
    browser.execute_script(choose, find(".by-label")[0], "")
    browser.execute_script(click, find("thead input.all")[0])
    browser.execute_script(click, find(".export")[1])
    lines = downloaded(browser, "one-sided-samples.txt").splitlines()
    assert sorted(lines) == sorted(values["source_id"].loc[every])
    browser.execute_script(choose, find("select.pair")[0], "scatter/words/sound")
    assert [f.get_attribute("data-key") for f in find(".pairs figure") if f.is_displayed()] == ["scatter/words/sound"]
    assert browser.get_log("browser") == []
    assert browser.title == "kinds: Equipoise report"

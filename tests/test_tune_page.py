"""The page of a search, from files made by hand."""

import html
import json
import math
import re
import shutil

import numpy as np
import pandas as pd
import pytest
import yaml

from equipoise.models.errors import EquipoiseError
from equipoise.pipelines.tuning.config import load_tune
from equipoise.pipelines.tuning.found import read_search
from equipoise.pipelines.tuning.importance import Importance, importance
from equipoise.pipelines.tuning.page import write_page
from equipoise.tune_spaces import Parameter

HOSTILE = '<script>alert("x")</script> & <b>y</b>'
STEPS = 90
SPACE = {
    "balancer.options.tau": {"log": [0.5, 4.0], "default": 1.0, "source": HOSTILE},
    "balancer.options.project": {"choice": [True, False], "default": True},
    "clip_norm": {"choice": [None, 1, 2.5], "default": None},
    "model.encoder.depth": {"integer": [1, 3], "default": 1, "when": {"balancer.options.project": True}},
}


def folder(out, trials, curves=(), confirm=None, **changes):
    """A search's folder. `trials`: rows without the columns that are the same for all."""
    base = {"data": str(out / "data"), "out": str(out / "best"), "balancer": "balgrad", "max_steps": STEPS}
    base |= {"clip_norm": None, "model": {"encoder": {"depth": 1}}}
    config = load_tune({"base": base, "out": str(out), "space": SPACE, **changes})
    out.mkdir(parents=True, exist_ok=True)
    (out / "tune.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    rows = [{"number": n, **row} for n, row in enumerate(trials)]
    table = pd.DataFrame(rows)
    for key in [c for c in table if c.startswith("param/")]:
        if table[key].dropna().map(type).nunique() > 1:
            table[key] = table[key].map(lambda v: v if v is None else str(v))
    table.to_parquet(out / "trials.parquet")
    names = ["number", "epoch", "step", "full", "missing", "score", "loss", "seconds"]
    pd.DataFrame([dict(zip(names, row)) for row in curves], columns=names).to_parquet(out / "curves.parquet")
    if confirm is not None:
        (out / "confirm.json").write_text(json.dumps(confirm))
    return out


def row(status="done", full=0.8, missing=0.6, tau=1.0, project=True, clip=None, depth=None, lr=0.001, **more):
    step = more.pop("step", STEPS)
    return {
        "kind": "light", "status": status, "full": full, "missing": missing, "score": (full + missing) / 2,
        "param/optimizer.lr": lr, "param/optimizer.weight_decay": 0.01, "param/balancer.options.tau": tau,
        "param/balancer.options.blockwise": False, "param/balancer.options.project": project, "param/clip_norm": clip,
        "param/model.encoder.depth": depth or (1 if project else None),
        "epoch": 1, "step": step, "steps": step, "seconds": 2.0, "attempts": 1, "error": None, "pareto": False, **more,
    }  # fmt: skip


def mixed(out):
    """A search with every end: the default, a better one, a tie, two stopped, two failed."""
    draw = np.random.default_rng(0)
    trials = [
        row(full=0.8, missing=0.6),
        row(full=0.9, missing=0.64, tau=2.0, clip=2.5, lr=0.01),
        row(full=0.86, missing=0.68, tau=3.0, clip=1, project=False, lr=0.02),
        *(
            row(
                full=0.7 + 0.1 * u,
                missing=0.5 + 0.1 * u,
                tau=0.5 * 8**u,
                clip=(None, 1)[i % 2],
                project=bool(i % 3),
                lr=0.0005 * (i + 1),
            )
            for i, u in enumerate(draw.random(5))
        ),
        row("stopped", full=0.5, missing=0.4, step=18, project=False),
        row("stopped", full=0.82, missing=0.62, step=36, tau=0.7),
        row("failed", math.nan, math.nan, step=0, steps=9, error=HOSTILE, tau=4.0),
        row("failed", math.nan, math.nan, step=0, steps=9, error=HOSTILE, tau=3.9),
    ]
    curves = [
        (n, e, step, t["full"] * part, t["missing"] * part, t["score"] * part, 1.0, 1.0)
        for n, t in enumerate(trials)
        for e, (step, part) in enumerate([(9, 0.7), (18, 0.8), (36, 0.9), (STEPS, 1.0)])
        if step <= t["step"]
    ]
    runs = [{"full": 0.8, "missing": 0.6, "score": 0.7}, {"full": 0.82, "missing": 0.6, "score": 0.71}]
    better = [{k: v + d for k, v in run.items()} for run, d in zip(runs, (0.01, 0.02))]
    values = {"mean": 0.015, "low": -0.0485, "high": 0.0785, "p": 0.205}
    confirm = {
        "split": "test", "seeds": [1, 2], "level": 0.95, "test": {"default": runs, "best": better},
        "difference": dict.fromkeys(("full", "missing", "score"), values),
    }  # fmt: skip
    return folder(out, trials, curves, confirm, grace=0.1)


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    return mixed(tmp_path_factory.mktemp("searches") / "my & search")


@pytest.fixture(scope="module")
def text(searched):
    return write_page(searched).read_text()


def figure(text, key):
    return re.search(rf'<svg[^>]*data-figure="{key}".*?</svg>', text, re.DOTALL)[0]


def lines(text, key):
    """{trial: classes of its line or dot}."""
    found = re.findall(r'<g class="(trial [\w ]*)" style="[^"]*" data-trial="(\d+)"', figure(text, key))
    return {int(number): css.split()[1:] for css, number in found}


def test_parameters_come_back_as_they_were_drawn(searched):
    found = read_search(searched)
    assert [t.params["clip_norm"] for t in found.trials[:3]] == [None, 2.5, 1]
    assert found.trials[2].params["balancer.options.project"] is False
    assert "model.encoder.depth" not in found.trials[2].params
    assert type(found.trials[0].params["model.encoder.depth"]) is int
    assert found.default is found.trials[0]
    assert found.best is found.trials[1], "0.77 twice: the first of equals"


def test_every_trial_is_a_line_that_says_how_it_ended(text):
    shown = lines(text, "parallel")
    assert sorted(shown) == list(range(12))
    assert (shown[0], shown[1], shown[8], shown[10]) == (["done", "default"], ["done", "best"], ["stopped"], ["failed"])
    drawn = figure(text, "parallel")
    assert ">not drawn<" in drawn
    axes = re.findall(r'class="name mid"[^>]*><title>([^<]*)', drawn)
    assert [a.split(":")[0].split(" on ")[0] for a in axes][-3:] == ["full", "missing", "score"]
    assert sum("logarithmic" in a for a in axes) == 3


def test_curves_and_steps(text):
    shown = lines(text, "curves")
    assert set(shown) == set(range(10)), "failed before their first epoch: no curve"
    assert figure(text, "curves").count('class="dot"') == 2, "one ring a stopped trial"
    spent = 8 * STEPS + 18 + 36 + 2 * 9
    assert f"{spent:,} optimiser steps were spent; the same 12 trials trained to their ends take {12 * STEPS:,}" in text
    saved = 2 * STEPS - 18 - 36
    assert f"Stopping saved {saved} ({saved / 12 / STEPS:.0%})" in text


def test_the_front_is_that_of_fully_trained_trials(text):
    assert "Pareto front of the fully trained trials (2, 1)" in text
    assert lines(text, "pareto")[1] == ["done", "best"]
    assert 8 not in lines(text, "pareto")
    assert "1 stopped trial lies outside of the axes" in text


def test_the_interval_is_said_whatever_it_is(searched, text, tmp_path):
    assert "+0.0150, 95 % interval -0.0485 to +0.0785 over 2 seeds: 0 lies inside, so no difference is shown" in text
    assert len(re.findall("data-objective", figure(text, "confirm"))) == 3
    said = json.loads((searched / "confirm.json").read_text())
    for low, high, words in ((-0.03, -0.01, "the search has not paid"), (0.001, 0.03, "is better than the default")):
        said["difference"]["score"] = {"mean": (low + high) / 2, "low": low, "high": high, "p": 0.01}
        assert words in write_page(folder(tmp_path, [row()], confirm=said)).read_text()
    said["difference"]["score"] |= {"low": math.nan, "high": math.nan, "p": math.nan}
    assert (
        "one seed gives no interval"
        in write_page(folder(tmp_path, [row()], confirm={**said, "seeds": [1]})).read_text()
    )


def test_what_others_wrote_is_text(text):
    assert "<script" not in text
    assert "<b>y</b>" not in text
    assert text.count(html.escape(HOSTILE).replace("&quot;", "&#34;")) == 2, "the source of a range, and one sentence"
    assert "(trials 10, 11)" in text
    assert "<title>my &amp; search: Equipoise search</title>" in text
    assert not re.findall(r"https?://", text)
    assert "default-src 'none'" in text


# Which parameters decide


def planted(number, seed, weight=1.0):
    """Trials in which the first of four parameters makes the score, beside noise."""
    draw = np.random.default_rng(seed)
    space = [Parameter.of(f"p{i}", {"log": [0.001, 1.0], "default": 0.1}) for i in range(3)]
    space.append(Parameter.of("c", {"choice": ["x", "y"], "default": "x"}))
    trials = []
    for _ in range(number):
        params = {p.key: p.quantile(draw.random()) for p in space}
        trials.append((params, weight * math.log10(params["p0"]) + 0.1 * draw.normal()))
    return space, trials


def test_a_planted_parameter_is_found_and_noise_is_not():
    found = importance(*planted(20, seed=1))
    assert isinstance(found, Importance)
    assert next(iter(found.shares)) == "p0"
    assert "p0" in found.clear
    assert found.shares["p0"] > 0.9
    assert sum(found.shares.values()) == pytest.approx(1)
    nothing = importance(*planted(20, seed=2, weight=0.0))
    assert sum(nothing.shares.values()) == pytest.approx(1)
    assert len(nothing.clear) <= 1, "each of four passes with probability 1 / 20"


def test_parameters_of_some_trials_and_values_outside_the_bounds():
    space, trials = planted(12, seed=3)
    trials[0][0]["p0"] = 5.0  # a base's own
    del trials[1][0]["p2"]
    found = importance(space, trials)
    assert found.left == ["p2"]
    assert found.trials == 12


@pytest.mark.parametrize(
    ("number", "score", "said"),
    [(1, 0.5, "too few"), (12, 0.5, "the same score"), (12, math.nan, "0 trials are too few")],
)
def test_where_nothing_can_be_said_of_parameters(number, score, said):
    space, trials = planted(number, seed=4)
    assert said in importance(space, [(params, score) for params, _ in trials])


def test_the_page_says_how_few_trials_there_are(text):
    assert "All trials, after step 9" in text
    assert "10 trials. " in text
    assert "8 trials. " in text
    assert "a rule of thumb asks for" in text
    assert "drawn in some trials only: model.encoder.depth" in text


# Searches with little in them


def test_one_trial(tmp_path):
    text = write_page(folder(tmp_path, [row()], [(0, 0, STEPS, 0.8, 0.6, 0.7, 1.0, 1.0)])).read_text()
    assert "Trial 0 is the best by score on validation; it is the default" in text
    assert "1 trials are too few" in text
    assert "Not made: <code>confirm.seeds</code>" in text


def test_all_failed(tmp_path):
    failed = [row("failed", math.nan, math.nan, step=0, error="Out of room.", tau=1.0 + i) for i in range(3)]
    text = write_page(folder(tmp_path, failed)).read_text()
    assert "No trial was trained to its end, so there is no best one." in text
    assert "Out of room. <span" in text
    assert 'data-figure="pareto"' not in text
    assert sorted(lines(text, "parallel")) == [0, 1, 2]


def test_one_modality_has_no_front(tmp_path):
    trials = [row(full=0.5 + 0.05 * i, missing=0.5 + 0.05 * i, tau=0.6 + i) for i in range(3)]
    text = write_page(folder(tmp_path, trials)).read_text()
    assert "One modality: none can be missing" in text
    assert 'data-figure="pareto"' not in text
    assert re.findall(r"<title>(\w+) on validation", figure(text, "parallel")) == ["full"]


def test_sentences_for_what_cannot_be(tmp_path):
    with pytest.raises(EquipoiseError, match=r"holds no search .*give the folder"):
        write_page(tmp_path / "nowhere")
    out = folder(tmp_path / "young", [row()])
    (out / "trials.parquet").unlink()
    with pytest.raises(EquipoiseError, match=r"No trial in .* has ended.*try again later"):
        write_page(out)


# In a real browser

_LOOK = ("stroke", "strokeWidth", "strokeDasharray")


@pytest.mark.browser
def test_in_a_browser_nothing_is_fetched_and_nothing_sticks_out(tmp_path, searched, text):
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        pytest.skip("no chromium and chromedriver here: apt-get install chromium chromium-driver")
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium drives the browser: pip install selenium")
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for flag in (
        "headless", "no-sandbox", "disable-gpu", "no-first-run", "disable-background-networking", "disable-component-update",
        "disable-sync", "disable-dev-shm-usage", f"user-data-dir={tmp_path / 'profile'}",
    ):  # fmt: skip
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    try:
        driver.get((searched / "index.html").resolve().as_uri())
        assert driver.get_log("browser") == []
        sent = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
        requests = [m["params"] for m in sent if m["method"] == "Network.requestWillBeSent"]
        own = [
            r for r in requests if not r["documentURL"].startswith("chrome")
        ]  # Chromium opens with a page of its own
        asked = [r["request"]["url"] for r in own]
        assert sum(url.startswith("file") for url in asked) == 1
        assert {url.partition(":")[0] for url in asked} <= {"file", "data"}
        style = "return getComputedStyle(arguments[0])[arguments[1]]"
        find = lambda css: driver.find_element("css selector", css)  # noqa: E731
        for scheme, behind in (("light", "rgb(255, 255, 255)"), ("dark", "rgb(18, 22, 27)")):
            said = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
            driver.execute_cdp_cmd("Emulation.setEmulatedMedia", said)
            assert driver.execute_script(style, find("body"), "backgroundColor") == behind
            looks = [
                tuple(
                    driver.execute_script(style, find(f'[data-figure="parallel"] {css} .line'), what) for what in _LOOK
                )
                for css in (".best", ".default", ".stopped", ".failed", '[data-trial="3"]')
            ]
            assert len(set(looks)) == 5, f"told apart: {looks}"
        for width in (400, 1400):
            metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
            driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
            whole, view = driver.execute_script(
                "const e = document.documentElement; return [e.scrollWidth, e.clientWidth]"
            )
            assert width - 20 < view <= width
            assert whole <= view, f"something sticks out at {width}"
        shown = {
            svg.get_attribute("data-figure")
            for svg in driver.find_elements("css selector", "svg.chart")
            if svg.is_displayed()
        }
        assert {"parallel", "curves", "pareto", "confirm", "steps", "importance/1", "importance/2"} <= shown
    finally:
        driver.quit()

"""`write_report`: one self-contained HTML page of one run, or of several side by side.

Drawn as small SVGs of our own over matplotlib's ticks: plotly's and Vega's scripts weigh megabytes, and matplotlib's own
SVG follows neither dark mode nor the width of a telephone. The page holds no address but its own, and a content security
policy by which nothing but its one script runs.
"""

from __future__ import annotations

import base64
import hashlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from equipoise import __version__
from equipoise.models.errors import EquipoiseError
from equipoise.pipelines.files import atomic
from equipoise.pipelines.report import charts
from equipoise.pipelines.report.drawing import draw, legend
from equipoise.pipelines.report.facts import MANY, Facts, named
from equipoise.pipelines.report.figures import Figure, number
from equipoise.pipelines.report.gradients import gradients
from equipoise.pipelines.report.samples import BYTES, one_sided
from equipoise.pipelines.report.template import environment
from equipoise.pipelines.run import Run
from equipoise.pipelines.tables import measured

_HERE = Path(__file__).parent


def write_report(runs: Sequence[Run], out: Path | None = None) -> Path:
    """Write the report of one run, or of several side by side; returns its path (default: report.html in the first).

    Only what is stored is read: no split is swept, and test is in it only if it was evaluated before. A run that is
    still going on is reported as far as it is.

    Raises:
        EquipoiseError: no run; a run before the end of its first epoch; a place that cannot be written.
    """
    if not runs:
        raise EquipoiseError("A report needs at least one run: give a run folder.")
    page = render(named(runs))
    path = Path(out) if out is not None else runs[0].path / "report.html"
    try:
        with atomic(path) as part:
            part.write_text(page, encoding="utf-8")
    except OSError as error:
        raise EquipoiseError(
            f"Cannot write the report {path}: {error.strerror}. Give another file with --out."
        ) from None
    return path


def render(runs: Sequence[Facts]) -> str:
    """The page."""
    parts = [_parts(f, BYTES // len(runs)) for f in runs]
    sections = _sections(parts)
    script = (_HERE / "page.js").read_text(encoding="utf-8")
    templates = environment(_HERE)
    templates.filters["number"] = number
    templates.filters["measured"] = measured
    return templates.get_template("page.html").render(
        runs=parts,
        sections=sections,
        glance=_glance(parts),
        data={"runs": [part["data"] for part in parts]},
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        style=Markup((_HERE / "page.css").read_text(encoding="utf-8")),
        draw=lambda figure: draw(figure, [f for part in parts for f in part["figures"]]),
        legend=legend,
        made=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        version=__version__,
        many=MANY,
    )


def _parts(f: Facts, budget: int) -> dict[str, Any]:
    """Everything the page says of one run."""
    histogram, pairs = charts.distribution(f)
    conflicts, others = charts.reported(f)
    groups = {
        "contributions": charts.contributions(f),
        "distribution": histogram,
        "pairs": pairs,
        "resampling": charts.resampling(f),
        "losses": charts.losses(f),
        "conflicts": [*gradients(f), *conflicts],
        "reported": others,
        "seconds": charts.seconds(f),
    }
    full = {split: f.matrix(split) for split in ("validation", "test")}
    matrices = {split: rows if len(f.modalities) <= MANY else f.by_size(rows) for split, rows in full.items() if rows}
    figures = [figure for group in groups.values() for figure in group]
    samples = one_sided(f, budget)
    valued = None
    if f.valued is not None:
        valued = {"epoch": f.valued.epoch, "rows": len(f.valued.source_id), "of": f.manifest.splits["train"].rows}
    data = {
        "name": f.name,
        "setup": f.setup(),
        "finished": f.run.finished,
        "figures": {figure.key: figure.numbers() for figure in figures},
        "matrices": matrices,
        "valued": valued,
        "summary": charts.summary(f),
    }
    return {
        "f": f,
        "name": f.name,
        "groups": groups,
        "figures": figures,
        "matrices": matrices,
        "full": full,
        "samples": samples,
        "summary": charts.summary(f),
        "data": data,
    }


_TITLES = {
    "contributions": (
        "Contributions by epoch",
        "How much of the benefit of the predictions (1 where they are right) each modality brought, as a mean over train. "
        "At 1 a modality brings its fair share of right predictions; a line far below the others lags. ◇ is the sweep with "
        "the best checkpoint, the dotted upright its epoch.",
    ),
    "resampling": ("What the resampler did", "Entries that each epoch trained on beside every sample once."),
    "losses": ("Losses and metrics", "Training by objective; validation with all modalities and with each alone."),
    "conflicts": (
        "Conflicts between objectives",
        "How the objectives' gradients lie to each other: beyond 90 degrees, what lowers one loss raises the other, and the "
        "largest gradient decides. Before the method, and after where it says what it made of them; then what else it logged.",
    ),
    "reported": ("What the balancer reports", "By step, means over a few steps each."),
    "seconds": (
        "Time by phase",
        "Where data wait is most of it, data is the bottleneck; where the sweep is, more actors help. The first epoch "
        "waits for Ray to start.",
    ),
}


def _sections(parts: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Sections of charts that any run has something for."""
    return {
        key: {"title": title, "lead": lead}
        for key, (title, lead) in _TITLES.items()
        if any(part["groups"][key] for part in parts)
    }


def _glance(parts: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row a run: {name, numbers: {measure: (text, what it is)}}."""
    rows = []
    for part in parts:
        f: Facts = part["f"]
        numbers: dict[str, tuple[str, str]] = {}
        for split, matrix in part["full"].items():
            for row in matrix:
                size, value = row["modalities"], row.get(f.headline)
                if value is not None and (size == len(f.modalities) or (size == 1 and len(f.modalities) <= MANY)):
                    name = "all modalities" if size == len(f.modalities) else f"only {row['coalition']}"
                    numbers[f"{split} {f.headline}, {name}"] = (measured(value), "best epoch")
            if matrix and (pair := f.average_and_gap(matrix)) is not None:
                numbers[f"{split} Avg"] = (measured(pair[0]), f"mean {f.headline} with one modality missing")
                numbers[f"{split} Gap"] = (measured(pair[1]), "largest difference between these")
        if f.valued is not None and f.manifest.task.kind != "classification":
            numbers["train benefit"] = (measured(f.valued.benefit), f"mean, {f.valued.title}: {f.manifest.task.worth}")
        if len(f.modalities) <= MANY:
            for row in part["summary"]:
                numbers[f"contribution of {row[0]}"] = (
                    f"{row[2]:.3f}",
                    f"mean over train, {f.valued.title if f.valued else ''}",
                )
        numbers["steps"] = (f"{f.total_steps:,}", f"{len(f.epochs)} epochs")
        rows.append({"name": part["name"], "numbers": numbers})
    return rows


__all__ = ["Figure", "render", "write_report"]

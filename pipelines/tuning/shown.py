"""What `equipoise tune` shows at its end."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from equipoise.pipelines.tables import table
from equipoise.pipelines.tuning.tune import FinishedSearch

_SHOWN = 10


def show(search: FinishedSearch, console: Console) -> None:
    """The best trials, best against default on test, and where everything lies."""
    trials, select = search.trials, search.select
    fully = trials[trials["status"] == "done"].sort_values([select, "number"], ascending=[False, True])
    names = [name for name in trials.columns if name.startswith("param/")]
    rows = [
        [
            str(row["number"]) + ("*" if row["pareto"] else ""),
            row["kind"],
            *(f"{row[name]:.4f}" for name in ("full", "missing", "score")),
            ", ".join(f"{_leaf(name)} {_short(row[name])}" for name in names if not _absent(row[name])),
        ]
        for row in fully.head(_SHOWN).to_dict("records")
    ]
    counts = trials["status"].value_counts()
    said = ", ".join(f"{counts[status]} {status}" for status in ("done", "stopped", "failed") if status in counts)
    columns = ["trial", "kind", "full", "missing", "score", "parameters"]
    console.print(
        table(f"Validation, the best by {select} of {len(trials)} trials ({said}); *: Pareto front", columns, rows)
    )
    if search.confirmed is not None:
        seeds, level = search.confirmed["seeds"], search.confirmed["level"]
        shown = [
            [
                objective,
                *(
                    f"{sum(run[objective] for run in search.confirmed['test'][which]) / len(seeds):.4f}"
                    for which in _WHICH
                ),
                f"{found['mean']:+.4f}",
                f"{found['low']:+.4f} to {found['high']:+.4f}" if found["low"] == found["low"] else "-",
            ]
            for objective, found in search.confirmed["difference"].items()
        ]
        title = f"Test, best against default on {len(seeds)} new seeds"
        console.print(table(title, ["", *_WHICH, "difference", f"{100 * level:.0f} % interval"], shown))
    lines = [f"{search.back}", f"best configuration: {search.out / 'best.yaml'}", f"page: {search.page}"]
    console.print(Text("\n".join([*lines, f"next: equipoise fit {search.out / 'best.yaml'}"])), soft_wrap=True)


_WHICH = ("default", "best")


def _leaf(name: str) -> str:
    return name.rpartition(".")[2]


def _absent(value: object) -> bool:
    """Not drawn in this trial: a condition was not met."""
    return value is None or value != value


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)

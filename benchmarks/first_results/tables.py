"""The tables of the page."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.first_results import wording as w
from benchmarks.first_results.results import Results
from benchmarks.first_results.statistics import LEVEL, Difference, detectable, holm
from benchmarks.first_results.studies import MEANING, METHODS

VALUED = ("sample", "modality")
#: What is subtracted from what in the tables of differences.
PAIRS = (
    *((method, "joint") for method in METHODS if method != "joint"),
    *((method, "random_copies") for method in VALUED),
    ("sample", "modality_dropout"),
)
FIGURES = ("all", "Avg", "Gap")


def data_sets(results: Sequence[Results]) -> str:
    """What they are, and what was chosen for them."""
    header = ["data set", "what it is", "modalities", "classes", "rows: train / validation / test"]
    header += ["seeds", "steps", "settings", "tries"]
    rows = []
    for found in results:
        counts = [record["rows"] for record in found.of("joint").values()]
        spans = [sorted(count[split] for count in counts) for split in ("train", "validation", "test")]
        chosen = found.study.tries[found.chosen]
        rows.append(
            [
                found.name,
                found.study.about,
                ", ".join(found.modalities),
                f"{len(found.first['classes'])}",
                " / ".join(f"{s[0]:,}" if s[0] == s[-1] else f"{s[0]:,}–{s[-1]:,}" for s in spans),
                f"{found.seeds}",
                f"{found.study.steps:,}",
                ", ".join(f"`{key}={value}`" for key, value in chosen.items()),
                f"{len(found.tries)}",
            ]
        )
    return w.table(header, rows)


def methods() -> str:
    return w.table(["method", "what it is"], [[f"`{name}`", MEANING[name]] for name in METHODS])


def accuracies(found: Results) -> str:
    many = len(found.modalities) > 2
    names = ["all", *(f"without {m}" for m in found.modalities)]
    names += [f"alone {m}" for m in found.modalities] if many else []
    names += ["Avg", "Gap", *(["subsets"] if many else [])]
    contributions = [f"contribution {m}" for m in found.modalities]
    titles = [f"{name.split()[1]} alone" if name.startswith("alone") else name for name in names]
    rows = []
    for method in METHODS:
        cells = [w.spread(found.spread(method, name)) for name in names]
        cells += [w.spread(found.spread(method, name), 2) for name in contributions]
        rows.append([f"`{method}`", *cells, f"{found.spread(method, 'seconds').mean:.1f}"])
    return w.table(["method", *titles, *contributions, "seconds"], rows)


def differences(found: Results) -> str:
    rows = []
    for a, b in PAIRS:
        cells = []
        for name in FIGURES:
            d = found.difference(a, b, name)
            word = f" **{d.verdict}**" if d.verdict in ("higher", "lower") else ""
            cells.append(w.difference(d) + word)
        rows.append([f"`{a}` − `{b}`", *cells])
    interval = f"{w.percent(LEVEL)} interval over {found.seeds} seeds" if found.seeds > 1 else "one seed: no interval"
    return w.table([f"paired difference, {interval}", *FIGURES], rows)


def against_random(results: Sequence[Results]) -> list[tuple[Results, str, str, Difference]]:
    """(data set, method, figure, difference) of every comparison of valuation with random copies."""
    return [
        (found, method, name, found.difference(method, "random_copies", name))
        for method in VALUED
        for name in ("all", "Avg")
        for found in results
    ]


def random_table(results: Sequence[Results]) -> str:
    """Those comparisons; † where the verdict holds when all are looked at together."""
    family = against_random(results)
    held = holm([d.p for *_, d in family])
    rows = []
    for (found, method, name, d), kept in zip(family, held, strict=True):
        mark = " †" if kept and d.verdict in ("higher", "lower") else ""
        detected = w.number(detectable(d.n) * d.deviation)
        rows.append([found.name, f"`{method}`", name, w.difference(d), d.verdict + mark, detected])
    return w.table(["data set", "method − `random_copies`", "figure", "difference", "verdict", "detectable"], rows)

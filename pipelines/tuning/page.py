"""`write_page`: one self-contained HTML page of a search, in the look of the run report. Without any script."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from equipoise import __version__
from equipoise.models.errors import EquipoiseError
from equipoise.pipelines.config import flat
from equipoise.pipelines.files import atomic
from equipoise.pipelines.report.figures import number
from equipoise.pipelines.report.template import environment
from equipoise.pipelines.tables import measured
from equipoise.pipelines.tuning import pictures
from equipoise.pipelines.tuning.found import Found, FoundTrial, read_search
from equipoise.pipelines.tuning.importance import SHUFFLES, Importance, importances

PAGE = "index.html"
_HERE = Path(__file__).parent
_STYLE = _HERE.parent / "report" / "page.css"


def write_page(out: Path) -> Path:
    """Write index.html into the folder of a search, from what is stored there; returns its path.

    A search that is still going on is shown as far as it is.

    Raises:
        EquipoiseError: there is no search, none of its trials has ended, or the page cannot be written.
    """
    text = render(read_search(out), out.name)
    path = out / PAGE
    try:
        with atomic(path) as part:
            part.write_text(text, encoding="utf-8")
    except OSError as error:
        raise EquipoiseError(f"Cannot write the page {path}: {error.strerror}. Make room for it there.") from None
    return path


def render(found: Found, name: str) -> str:
    """The page."""
    templates = environment(_HERE)
    templates.filters["number"] = number
    templates.filters["shown"] = pictures.shown
    templates.filters["measured"] = lambda v: "-" if v != v else measured(v, 4)
    decided = importances(found)
    return templates.get_template("page.html").render(
        name=name,
        found=found,
        style=Markup(_STYLE.read_text(encoding="utf-8") + (_HERE / "page.css").read_text(encoding="utf-8")),
        cards=_cards(found),
        space=_space(found),
        decided=[(title, what, _reading(what)) for title, what in decided.items()],
        bars=pictures.bars,
        is_importance=lambda what: isinstance(what, Importance),
        shuffles=SHUFFLES,
        parallel=pictures.parallel(found),
        curves=pictures.curves(found),
        pareto=pictures.pareto(found),
        front=[trial.number for trial in pictures.front(found)],
        confirmed=_confirmed(found),
        steps=pictures.steps(found),
        steps_said=_steps(found),
        key=pictures.key,
        shades=[number(value) for value in pictures.shade_range(found)],
        failures=_failures(found),
        trials=_ranked(found),
        columns=pictures.short_names([p.key for p in found.parameters]),
        setup=flat(found.config.model_dump(mode="json", exclude={"space"})),
        left=found.config.searched.left,
        made=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        version=__version__,
    )


def _cards(found: Found) -> list[tuple[str, str, str]]:
    """(what, number, in small print)."""
    ended = {status: len(found.of(status)) for status in ("done", "stopped", "failed")}
    kinds = ", ".join(f"{n} {status}" for status, n in ended.items() if n)
    cards = [("trials", str(len(found.trials)), kinds)]
    if found.best is not None:
        cards.append(
            (f"best {found.select}", measured(found.best.values[found.select], 4), f"trial {found.best.number}")
        )
        if not found.one_modality:
            for name in ("full", "missing"):
                if name != found.select:
                    cards.append((f"its {name}", measured(found.best.values[name], 4), "on validation"))
    if found.default is not None and found.default.values[found.select] == found.default.values[found.select]:
        value = measured(found.default.values[found.select], 4)
        cards.append((f"{found.select} of the default", value, f"trial {found.default.number}, {found.default.status}"))
    spent, whole = sum(t.steps for t in found.trials), found.max_steps * len(found.trials)
    cards.append(("optimiser steps", f"{spent:,}", f"{spent / whole:.0%} of those without stopping" if whole else ""))
    cards.append(("time in trials", f"{sum(t.seconds for t in found.trials) / 60:.1f} min", "summed over trials"))
    return cards


def _space(found: Found) -> list[dict[str, Any]]:
    """A row a parameter: what it was drawn from, its default here, and the best trial's value."""
    default, best = found.config.default, found.best
    rows = []
    for p in found.parameters:
        where = " and ".join(f"{key} is {' or '.join(map(str, values))}" for key, values in p.when.items())
        rows.append(
            {
                "key": p.key,
                "text": p.text,
                "where": where,
                "default": pictures.shown(default[p.key]) if p.key in default else "-",
                "best": pictures.shown(best.params[p.key]) if best is not None and p.key in best.params else "-",
                "source": p.source,
            }
        )
    return rows


def _reading(what: Importance | str) -> str:
    """What may be concluded from importances, in words."""
    if isinstance(what, str):
        return what
    names = pictures.short_names(list(what.shares))
    clear = [names[key] for key in what.clear]
    said = f"{what.trials} trials. "
    if clear:
        said += f"Above what shuffled scores give: {', '.join(clear)}. "
    else:
        said += "No parameter is above what shuffled scores give: with these trials nothing is shown to matter. "
    few = 10 * len(what.shares)
    if what.trials < few:
        said += (
            f"That is few for {len(what.shares)} parameters (a rule of thumb asks for {few}): order and size of the bars "
            "may be chance, and a short bar is no proof that a parameter does nothing. "
        )
    if what.left:
        said += f"Not among them, as they are drawn in some trials only: {', '.join(what.left)}. "
    return said.strip()


def _confirmed(found: Found) -> dict[str, Any] | None:
    """Picture, rows and one sentence of best against default."""
    said = found.confirmed
    if said is None:
        return None
    name, count = found.select, len(said["seeds"])
    difference = said["difference"][name]
    mean, low, high = (difference[k] for k in ("mean", "low", "high"))
    if low != low:
        why = "one seed gives" if count < 2 else f"{count} seeds with the very same difference give"
        sentence = f"{name}: {mean:+.4f}; {why} no interval, so nothing is shown."
    else:
        if low > 0:
            verdict = "the best is better than the default"
        elif high < 0:
            verdict = "the best is worse than the default: the search has not paid"
        else:
            verdict = "0 lies inside, so no difference is shown"
        interval = f"{100 * said['level']:.0f} % interval {low:+.4f} to {high:+.4f} over {count} seeds"
        sentence = f"{name}: {mean:+.4f}, {interval}: {verdict}."
    rows = [
        {
            "objective": objective,
            **{which: sum(run[objective] for run in runs) / len(runs) for which, runs in said["test"].items()},
            **values,
        }
        for objective, values in said["difference"].items()
    ]
    return {"picture": pictures.differences(said, name), "rows": rows, "sentence": sentence, "seeds": said["seeds"]}


def _steps(found: Found) -> str:
    spent, whole = sum(t.steps for t in found.trials), found.max_steps * len(found.trials)
    saved = sum(max(found.max_steps - t.step, 0) for t in found.of("stopped"))
    said = f"{spent:,} optimiser steps were spent; the same {len(found.trials)} trials trained to their ends take {whole:,}. "
    return said + f"Stopping saved {saved:,} ({saved / whole:.0%})." if whole else said


def _failures(found: Found) -> list[tuple[str, list[int]]]:
    """(sentence, the trials that ended with it), the most frequent first."""
    by_sentence: dict[str, list[int]] = {}
    for trial in found.of("failed"):
        by_sentence.setdefault(trial.error or "no sentence was left", []).append(trial.number)
    return sorted(by_sentence.items(), key=lambda item: (-len(item[1]), item[1]))


def _ranked(found: Found) -> Sequence[FoundTrial]:
    """All trials: the fully trained by what they are chosen by, then the stopped, then the failed."""
    rank: Mapping[str, int] = {"done": 0, "stopped": 1, "failed": 2}

    def order(trial: FoundTrial) -> tuple[int, float, int]:
        value = trial.values[found.select]
        return rank.get(trial.status, 3), -value if value == value else 0.0, trial.number

    return sorted(found.trials, key=order)

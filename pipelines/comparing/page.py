"""`write_results`: the pages of a comparison, from its frame of runs.

Every number and every sentence that holds one is worked out from the frame; the same frame and `about` give the same bytes.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from markupsafe import Markup

from equipoise import __version__
from equipoise.models.errors import EquipoiseError
from equipoise.pipelines.comparing import conclusions, diagram, tables
from equipoise.pipelines.comparing import document as doc
from equipoise.pipelines.comparing import wording as w
from equipoise.pipelines.comparing.document import Block, Bullets, Heading, Picture, Table, Text, code, plain
from equipoise.pipelines.comparing.frame import PHASES, REFERENCES, Comparison, Planned
from equipoise.pipelines.comparing.statistics import LEVEL
from equipoise.pipelines.files import atomic
from equipoise.pipelines.report.template import environment

TITLE = "Balancing methods compared"
FILES = ("results.md", "results.tex", "results.html", "ranks.svg", "differences.svg", "tests.csv")
_HERE = Path(__file__).parent


def write_results(
    runs: pd.DataFrame,
    out: Path,
    about: Mapping[str, str],
    prefix: str = "",
    planned: Planned | None = None,
    left_out: Mapping[str, str] | None = None,
    equal_time: bool = True,
) -> list[Path]:
    """Write results.md, results.tex (tables alone), results.html (by itself), ranks.svg, differences.svg and tests.csv (every
    test of every family) into `out`; returns their paths.

    Args:
        runs: a row a training (docs/compare.md has the columns), whatever is there.
        out: folder, made if it is not there.
        about: how the page was made, in the order given: {"command": ..., "machine": ..., "date": ..., "hours": ...}. Values
            are plain text, but that of "command" is set as code.
        prefix: before the names of the pictures in results.md, where that will lie in another folder.
        planned: {data set: {method: seeds}} of the final runs that there are to be; without it, what is missing is told by
            what other methods have.
        left_out: {data set: why it is not in the comparison}.
        equal_time: whether there are to be final runs at equal processor time.

    Raises:
        EquipoiseError: a column that is not there, two finished runs in one place, a folder that cannot be written.
    """
    found, out = Comparison(runs, planned, equal_time), Path(out)
    phase = found.phases[0] if found.phases else "steps"
    rankings = [diagram.ranking(found, phase, figure) for figure in diagram.RANKED]
    blocks = page(found, about, rankings, left_out or {})
    texts = {
        "results.md": doc.to_markdown([_moved(block, prefix) for block in blocks]),
        "results.tex": doc.to_latex([block for block in blocks if isinstance(block, Table)]),
        "tests.csv": found.frame().to_csv(index=False, float_format="%.6g", lineterminator="\n"),
    }
    paths = {name: out / name for name in FILES}
    try:
        with atomic(paths["ranks.svg"]) as part:
            diagram.draw_ranks(part, rankings)
        with atomic(paths["differences.svg"]) as part:
            diagram.draw_differences(part, found, phase)
        texts["results.html"] = _html(blocks, out)
        for name, text in texts.items():
            with atomic(paths[name]) as part:
                part.write_text(text, encoding="utf-8")
    except OSError as error:
        raise EquipoiseError(f"Cannot write the results to {out}: {error.strerror}. Give another folder.") from None
    return list(paths.values())


def page(
    found: Comparison, about: Mapping[str, str], rankings: Sequence[diagram.Ranking], left_out: Mapping[str, str]
) -> list[Block]:
    """The page."""
    blocks: list[Block] = [Heading(TITLE, 1), Text(_opening(found)), Heading("In short")]
    blocks += [Bullets([*conclusions.in_short(found), *map(diagram.said, rankings)])]
    blocks += [Picture("differences.svg", "Paired differences to joint and summed, with their intervals")]
    blocks += [Picture("ranks.svg", "Mean ranks over data sets, with the critical difference")]
    lacking = conclusions.missing(found, left_out)
    blocks += [Heading("What is missing"), Bullets(lacking) if lacking else Text("Nothing: every run is there.")]
    blocks += [Heading("How to read it"), *(Text(text) for text in HOW_TO_READ)]
    for phase in found.phases:
        blocks += [Heading(f"At {PHASES[phase]}"), Text(EQUAL[phase])]
        for data in found.data:
            if not found.ran(phase, data):
                continue
            blocks += [Heading(plain(data), 3), tables.accuracies(found, phase, data)]
            blocks += [
                table for r in REFERENCES if (table := tables.differences(found, phase, data, r)).rows
            ]  # none where the reference is not there
            blocks += [tables.costs(found, phase, data)]
        if any(found.tests(phase, "full", reference) for reference in REFERENCES):
            blocks += [Heading("What could be found", 3), Text(FOUND), tables.smallest(found, phase)]
            blocks += [Bullets(conclusions.verdicts(found, phase))]
    blocks += [Heading("Settings that the tuning chose"), Text(SETTINGS)]
    blocks += [table for data in found.data if (table := tables.settings(found, data)).rows]
    blocks += [Heading("Limits"), Bullets(LIMITS), Heading("How this page was made")]
    blocks += [Bullets([f"{plain(key)}: {code(v) if key == 'command' else plain(v)}" for key, v in about.items()])]
    return blocks


def _opening(found: Comparison) -> str:
    seeds = sorted({len(found.seeds(p, d)) for p in found.phases for d in found.data if found.seeds(p, d)})
    over = (
        f"{seeds[0]} to {seeds[-1]} seeds" if len(seeds) > 1 else w.count(seeds[0], "seed") if seeds else "no final run"
    )
    again = " and, once more, for the same processor time," if "time" in found.expected else ""
    sets = w.listed([plain(d) for d in found.data])
    return (
        f"{w.count(len(found.methods), 'method')} on {sets}, {over} on each: tuned on validation with the steps that the "
        f"tables of costs give, then trained for the same number of optimiser steps{again} and looked at once on test. "
        "Differences are called only where a test holds that is corrected for how many there are; all that is not called is "
        "not distinguishable, which is not the same as equal."
    )


HOW_TO_READ = (
    """**Full**: the test metric with all modalities, no noise. **Missing**: each modality in turn missing in every row.
    **Noisy**: each in turn with noise in every row; training saw none. Avg is the mean over modalities, Gap the largest
    difference between two. A smaller Gap is no gain where Avg falls with it.""",
    """A seed is one training with its own draw of train and validation rows, first weights and order of rows; the test rows
    of a data set are the same for all, but where its seeds are folds. Methods are compared seed by seed: Student's paired t,
    two-sided.""",
    f"""One family is every method on every data set for one figure, one reference and one kind of final run. {tables.MARK}
    marks what holds after Holm's correction: the probability that any mark of a family is wrong is at most
    {w.number(LEVEL, 2)}. The intervals are of each difference by itself. `tests.csv` has every p-value, alone and
    adjusted.""",
)
EQUAL = {
    "steps": """Every method made the same number of optimiser steps on a data set. Those with several backward passes a step
    took longer for them.""",
    "time": """Every method had about the processor time that joint training took for its steps on the data set; the costlier
    its step, the fewer it made. The runs of methods that are no slower than joint training are those at equal steps.""",
}
FOUND = """What is not called may be too small to be seen. These are the true differences that the tests find with a probability
of 80 %, from the deviations that the seeds show here."""
SETTINGS = """The score is the one by which configurations were chosen, on validation. The tables of costs give the optimiser
steps that were spent on it."""
LIMITS = (
    "What is said holds for these data sets, models and numbers of steps; other sizes were not looked at.",
    """Where the test rows are the same in every seed, what is said holds for trainings judged on these rows, and other test
    rows of the same source are another draw. Where seeds are folds, the settings were chosen on validation rows of the first
    fold, and these are test rows of other folds.""",
    "Draws of train rows overlap, so that seeds are not quite independent and intervals are somewhat too narrow.",
    """The correction is within a family. There is a family for each figure, reference and kind of final run, and nothing
    corrects over families.""",
    """Tuning has one seed a configuration and few configurations, fewer where a step costs a multiple: a method with many
    options is searched less well than one with few.""",
    """The steps at equal processor time follow from times of whole trainings, whose fixed costs hardly depend on the method:
    the tables of costs give the time that was taken in the end.""",
    """Methods that bring their own fusion or heads are another model: a difference to joint training is then also one of
    model.""",
)


def _moved(block: Block, prefix: str) -> Block:
    return Picture(prefix + block.file, block.alt) if isinstance(block, Picture) else block


def _html(blocks: Sequence[Block], out: Path) -> str:
    """One file that needs no other: the pictures are in it."""
    templates = environment(_HERE)
    sections: list[list[dict[str, Any]]] = [[]]
    for block in blocks[1:]:
        if isinstance(block, Heading) and block.level == 2:
            sections.append([])
        sections[-1].append(_for_html(block, out))
    style = (_HERE.parent / "report" / "page.css").read_text(encoding="utf-8")
    return templates.get_template("page.html").render(
        title=TITLE, sections=[s for s in sections if s], style=Markup(style), version=__version__
    )


def _for_html(block: Block, out: Path) -> dict[str, Any]:
    kind = type(block).__name__
    if isinstance(block, Picture):
        svg = base64.b64encode((out / block.file).read_bytes()).decode()
        return {"kind": kind, "source": f"data:image/svg+xml;base64,{svg}", "alt": block.alt}
    if isinstance(block, Bullets):
        return {"kind": kind, "lines": [doc.html(item) for item in block.items]}
    if isinstance(block, Table):
        rows = [[(doc.html(cell), _css(cell)) for cell in row] for row in block.rows]
        folded = block.name.endswith(("-cost", "-settings"))
        head = [doc.html(cell) for cell in block.header]
        return {"kind": kind, "caption": doc.html(block.caption), "header": head, "rows": rows, "folded": folded}
    return {"kind": kind, "text": doc.html(block.text), "level": getattr(block, "level", 0)}


def _css(cell: str) -> str:
    if len(cell) > 40:
        return "text"
    return "num holds" if cell.endswith(tables.MARK) else "num"

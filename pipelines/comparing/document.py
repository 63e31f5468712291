"""A page as blocks, and the same blocks as Markdown, LaTeX and HTML.

Text within blocks is Markdown of three signs: `code`, **bold** and a backslash before a sign that is meant as itself.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup, escape

from equipoise.pipelines.comparing import wording as w

_TOKEN = re.compile(r"\\(.)|`([^`]*)`|\*\*(.+?)\*\*", re.DOTALL)
_LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "<": r"$<$", ">": r"$>$", "|": r"$|$",
    "−": "$-$", "+": "$+$", "±": r"$\pm$", "–": "--", "†": r"\textsuperscript{$\dagger$}", "…": r"\ldots{}",
    "≤": r"$\leq$", w.SPACE: "~",
}  # fmt: skip


@dataclass(frozen=True)
class Heading:
    """A line above what follows; `level` 1 is the title."""

    text: str
    level: int = 2


@dataclass(frozen=True)
class Text:
    """A paragraph, with marks: **bold**, `code`."""

    text: str


@dataclass(frozen=True)
class Bullets:
    """Paragraphs of a list."""

    items: Sequence[str]


@dataclass(frozen=True)
class Table:
    """Cells are text; the first column names the row. `caption` is said in LaTeX and HTML, `name` is its LaTeX label."""

    name: str
    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]] = field(default_factory=list)


@dataclass(frozen=True)
class Picture:
    """An SVG file beside the page, and what it shows in words."""

    file: str
    alt: str


Block = Heading | Text | Bullets | Table | Picture


def plain(text: object) -> str:
    """Words of others as text: on one line, no sign in them means anything."""
    return re.sub(r"([\\`*_<>\[\]$])", r"\\\1", " ".join(str(text).split()))


def code(text: object) -> str:
    return f"`{' '.join(str(text).split()).replace('`', chr(39))}`"


def _read(text: str, plain: Callable[[str], str], code: Callable[[str], str], bold: Callable[[str], str]) -> str:
    out, at = [], 0
    for found in _TOKEN.finditer(text):
        out.append(plain(text[at : found.start()]))
        sign, verbatim, strong = found.groups()
        if sign is not None:
            out.append(plain(sign))
        elif verbatim is not None:
            out.append(code(verbatim))
        else:
            out.append(bold(_read(strong, plain, code, bold)))
        at = found.end()
    return "".join([*out, plain(text[at:])])


def latex(text: str) -> str:
    """Text for LaTeX, every sign of its own escaped."""

    def escaped(words: str) -> str:
        return "".join(_LATEX.get(c, c) for c in words)

    return _read(text, escaped, lambda t: f"\\texttt{{{escaped(t)}}}", lambda t: f"\\textbf{{{t}}}")


def html(text: str) -> Markup:
    return Markup(_read(text, lambda t: str(escape(t)), lambda t: f"<code>{escape(t)}</code>", lambda t: f"<b>{t}</b>"))


def to_markdown(blocks: Sequence[Block]) -> str:
    return "\n\n".join(map(_markdown, blocks)) + "\n"


def _markdown(block: Block) -> str:
    if isinstance(block, Heading):
        return f"{'#' * block.level} {block.text}"
    if isinstance(block, Text):
        return w.paragraph(block.text)
    if isinstance(block, Bullets):
        return "\n".join(w.paragraph(f"- {item}", "  ") for item in block.items)
    if isinstance(block, Picture):
        return f"![{block.alt}]({block.file})"
    lines = [[cell.replace("|", "\\|") for cell in row] for row in (block.header, *block.rows)]
    rule = f"|{'|'.join(['---'] * len(block.header))}|"
    head, *body = (f"| {' | '.join(line)} |" for line in lines)
    return "\n".join([head, rule, *body])


def to_latex(tables: Sequence[Table]) -> str:
    """The tables alone, each a float with a caption and the label `tab:` and its name."""
    parts = ["% Made by `equipoise compare`; needs \\usepackage{booktabs}. Wide ones want \\small or \\resizebox."]
    for table in tables:
        columns = "l" + "r" * (len(table.header) - 1)
        rows = [" & ".join(map(latex, row)) + r" \\" for row in table.rows]
        lines = [
            r"\begin{table}",
            r"\centering",
            f"\\caption{{{latex(table.caption)}}}",
            f"\\label{{tab:{table.name}}}",
        ]
        lines += [f"\\begin{{tabular}}{{{columns}}}", r"\toprule", " & ".join(map(latex, table.header)) + r" \\"]
        lines += [r"\midrule", *rows, r"\bottomrule", r"\end{tabular}", r"\end{table}"]
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"

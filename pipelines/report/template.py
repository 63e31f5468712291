"""The templates of self-contained pages: the run report's, and in its look those of a search and of a comparison."""

from __future__ import annotations

from pathlib import Path

import jinja2

_HERE = Path(__file__).parent


def environment(folder: Path) -> jinja2.Environment:
    """Templates of `folder`, and base.html, which they extend; everything is escaped, and an unknown name is an error."""
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader([folder, _HERE]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )

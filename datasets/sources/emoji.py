"""Emoji: the picture and the name of each, in the npm package emoji-datasource-google; keywords are in emojilib."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from equipoise.datasets.sources import Source
from equipoise.datasets.sources.installed import not_installed
from equipoise.datasets.sources.splitting import stratified, stratified_groups
from equipoise.models.errors import unknown
from equipoise.models.modality import Modality

CATEGORIES = (
    "Activities",
    "Animals & Nature",
    "Food & Drink",
    "Objects",
    "People & Body",
    "Smileys & Emotion",
    "Symbols",
    "Travel & Places",
)
"""All but Flags, which the name gives away, and Component."""

_HELD_OUT = ("rows", "subcategories")
_TEXT = ("name", "keywords")
_PICTURES, _KEYWORDS = "emoji-datasource-google", "emojilib"
_INSTALL = (
    "`npm install emoji-datasource-google@16.0.0 emojilib@4.0.3` here, or name the folder of your packages with "
    "node_modules="
)
_TERMS = (
    "Pictures: Google's Noto Emoji (Apache-2.0), as shipped with emoji-datasource-google {} (MIT); keywords, where asked "
    "for: emojilib (MIT)."
)


def load(
    *,
    text: str = "name",
    held_out: str = "rows",
    node_modules: str | None = None,
    seed: int = 0,
    test_seed: int | None = None,
) -> Source:
    """`image`, a PNG of 64 x 64 pixels (RGBA), and `text`, the emoji's "name" or its "keywords"; eight
    categories.

    `held_out`, what validation and test are made of: "rows", which leaves near-duplicates on both sides, or
    "subcategories", which is far harder. Both are drawn by `seed`, about 70 / 15 / 15. The packages are looked for in
    `node_modules`, else in the folders of the environment variable NODE_PATH, in ./node_modules and in npm's global folder.
    Raises `EquipoiseError` where they are not there, and for an option that cannot be.
    """
    for option, value, known in (("text", text, _TEXT), ("held_out", held_out, _HELD_OUT)):
        if value not in known:
            raise unknown(f"choice for {option}", str(value), known)
    folder = _package(_PICTURES, node_modules)
    listed = json.loads((folder / "emoji.json").read_text(encoding="utf-8"))
    emoji = sorted((e for e in listed if e["category"] in CATEGORIES), key=lambda e: e["sort_order"])
    words = {e["unified"]: e["name"] for e in emoji} if text == "name" else _keywords(emoji, node_modules)
    category = [e["category"] for e in emoji]
    subcategory = [f"{e['category']} / {e['subcategory']}" for e in emoji]
    if held_out == "rows":
        split = stratified(category, seed, test_seed)
    else:
        split = stratified_groups(category, subcategory, seed, test_seed=test_seed)

    def stream() -> Iterator[dict[str, Any]]:
        for i, e in enumerate(emoji):
            yield {
                "source_id": e["unified"],
                "group": subcategory[i],
                "split": split[i],
                "target": e["category"],
                "image": (folder / "img" / "google" / "64" / e["image"]).read_bytes(),
                "text": words.get(e["unified"]),
            }

    return Source(
        name="emoji",
        modalities=(
            Modality(name="image", kind="image", shape=(4, 64, 64), transform="standardize"),
            Modality(name="text", kind="text", max_length=16 if text == "name" else 48),
        ),
        labels=CATEGORIES,
        rows=stream(),
        grouped=held_out == "subcategories",
        terms=_TERMS.format(json.loads((folder / "package.json").read_text())["version"]),
    )


def _keywords(emoji: Sequence[dict[str, Any]], node_modules: str | None) -> dict[str, str]:
    """{code points: keywords}, without those that have none."""
    file = _package(_KEYWORDS, node_modules) / "dist" / "emoji-en-US.json"
    known = json.loads(file.read_text(encoding="utf-8"))
    found = {}
    for code in (e["unified"] for e in emoji):
        words = known.get("".join(chr(int(point, 16)) for point in code.split("-")), ())
        if words:
            found[code] = ", ".join(words).replace("_", " ")
    return found


def _package(name: str, node_modules: str | None) -> Path:
    for folder in _folders(node_modules):
        if (folder / name / "package.json").is_file():
            return folder / name
    where = "here" if node_modules is None else f"in {node_modules}"
    raise not_installed("emoji", f"the npm package {name}", _INSTALL, where)


def _folders(node_modules: str | None) -> Iterator[Path]:
    """Where npm's packages may be, the slow question last."""
    if node_modules is not None:
        yield Path(node_modules)
        return
    yield from (Path(folder) for folder in os.environ.get("NODE_PATH", "").split(os.pathsep) if folder)
    yield Path("node_modules")
    if npm := shutil.which("npm"):
        try:
            found = subprocess.run([npm, "root", "-g"], capture_output=True, text=True, timeout=60, check=True)
        except (OSError, subprocess.SubprocessError):
            return  # an npm that does not work knows of no packages
        yield Path(found.stdout.strip())

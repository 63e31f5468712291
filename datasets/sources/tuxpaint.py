"""Tux Paint's stamps: a picture, its name and its name spoken, in the Debian package tuxpaint-stamps-default.

545 stamps of 8 categories. A dozen lack speech in French: there the modality is really missing.
"""

from collections import Counter
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from equipoise.datasets.sources import Source
from equipoise.datasets.sources.installed import not_installed
from equipoise.datasets.sources.splitting import stratified, stratified_groups
from equipoise.models.errors import EquipoiseError, unknown
from equipoise.models.modality import Modality

FEWEST = 30  # stamps of a category
_HELD_OUT = ("stamps", "folders")
_INSTALL = "`apt-get install tuxpaint-stamps-default`, or name the folder of the stamps with stamps="
_TERMS = (
    "Tux Paint stamps (GPL-2 as a collection; single stamps also GFDL, CC BY-SA or public domain), as installed by "
    "tuxpaint-stamps-default."
)


def load(
    *,
    language: str = "fr",
    text: str = "en",
    size: int = 64,
    held_out: str = "stamps",
    stamps: str = "/usr/share/tuxpaint/stamps",
    seed: int = 0,
    test_seed: int | None = None,
) -> Source:
    """`image`, a PNG fitted into `size` x `size` pixels (RGBA); `text`, the stamp's description in the language `text`;
    `speech`, the description spoken in `language`, an OGG file.

    A description that is not there in a language is absent. Languages with speech for most stamps: fr, ru, ro, ca, bg, es;
    be, el and da have less. Of text there are many more; with text=fr what is read is what is said. Categories are the
    folders with 30 picture stamps or more, alphabets left out. `held_out`, what validation and test are made of: "stamps",
    or "folders", whole subfolders of a category such as animals/birds; drawn by `seed`, about 70 / 15 / 15.
    Raises `EquipoiseError` where the stamps are not there, and for an option that cannot be.
    """
    if held_out not in _HELD_OUT:
        raise unknown("choice for held_out", str(held_out), _HELD_OUT)
    if isinstance(size, bool) or not isinstance(size, int) or not 8 <= size <= 512:
        raise EquipoiseError(f"size must be 8 to 512 pixels, found {size!r}.")
    root = Path(stamps)
    pictures = _pictures(root)
    if not pictures:
        raise not_installed("tuxpaint", "the Debian package tuxpaint-stamps-default", _INSTALL, f"in {root}")
    described = [_descriptions(picture.with_suffix(".txt")) for picture in pictures]
    spoken = [picture.with_name(f"{picture.stem}_desc_{language}.ogg") for picture in pictures]
    if not any(file.is_file() for file in spoken):
        raise EquipoiseError(
            f"No stamp in {root} is described aloud in language={language!r}: fr, ru, ro, ca, bg, es, be, el and da are."
        )
    if not any(text in words for words in described):
        raise unknown("language of the option text", str(text), sorted(set().union(*described)))
    category = [_category(root, picture) for picture in pictures]
    folder = [str(picture.parent.relative_to(root)) for picture in pictures]
    if held_out == "stamps":
        split = stratified(category, seed, test_seed)
    else:
        split = stratified_groups(category, folder, seed, test_seed=test_seed)

    def stream() -> Iterator[dict[str, Any]]:
        for i, picture in enumerate(pictures):
            yield {
                "source_id": str(picture.relative_to(root).with_suffix("")),
                "group": folder[i],
                "split": split[i],
                "target": category[i],
                "image": _fitted(picture, size),
                "text": described[i].get(text),
                "speech": spoken[i].read_bytes() if spoken[i].is_file() else None,
            }

    return Source(
        name="tuxpaint",
        modalities=(
            Modality(name="image", kind="image", shape=(4, size, size), transform="standardize"),
            Modality(name="text", kind="text", max_length=24),
            Modality(name="speech", kind="audio", shape=(40,), max_length=250, transform="standardize"),
        ),
        labels=tuple(sorted(set(category))),
        rows=stream(),
        grouped=held_out == "folders",
        terms=_TERMS,
    )


def _category(root: Path, picture: Path) -> str:
    return picture.relative_to(root).parts[0]


def _pictures(root: Path) -> list[Path]:
    """The PNG stamps of the categories that have enough of them."""
    found = [
        picture
        for picture in sorted(root.glob("*/**/*.png"))
        if "alphabets" not in picture.parts
        and not picture.stem.endswith(("_mirror", "_flip"))
        and picture.with_suffix(".txt").is_file()
    ]
    counts = Counter(_category(root, picture) for picture in found)
    return [picture for picture in found if counts[_category(root, picture)] >= FEWEST]


def _descriptions(file: Path) -> dict[str, str]:
    """{language: description} of a stamp's text file: English in the first line, then lines such as fr.utf8=Un koala."""
    first, *others = file.read_text(encoding="utf-8").splitlines() or [""]
    found = {"en": first}
    for line in others:
        language, equals, words = line.partition(".utf8=")
        if equals:
            found[language] = words
    return {language: words.strip() for language, words in found.items() if words.strip()}


def _fitted(picture: Path, size: int) -> bytes:
    """The picture as a PNG of `size` x `size`, its proportions kept, transparent around it."""
    with Image.open(picture, formats=("PNG",)) as image:
        fitted = ImageOps.pad(image.convert("RGBA"), (size, size), Image.Resampling.LANCZOS, (0, 0, 0, 0))
    out = BytesIO()
    fitted.save(out, "PNG")
    return out.getvalue()

"""The most one-sided samples, shown as themselves."""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

import numpy as np
import pyarrow as pa
from markupsafe import Markup
from PIL import Image

from equipoise.datasets.columns import Decoder
from equipoise.datasets.reading import Reader
from equipoise.datasets.targets import decode_targets
from equipoise.datasets.task_spec import SEPARATOR, TaskSpec
from equipoise.models.errors import EquipoiseError
from equipoise.models.modality import Modality
from equipoise.pipelines.report.drawing import el
from equipoise.pipelines.report.facts import Facts
from equipoise.pipelines.report.figures import number
from equipoise.valuation.coalitions import bits, coalition_name

SAMPLES = 60  # of a run
BYTES = 3 << 20  # of pictures, sounds and drawings in a page
AS_IT_IS = 128 << 10  # a picture of more bytes is shown reduced
SOUND = 256 << 10  # a sound of more bytes is only named
TEXT = 600  # characters
_TYPES = {b"\x89PNG\r\n\x1a\n": "image/png", b"\xff\xd8\xff": "image/jpeg", b"OggS": "audio/ogg"}
_TYPES |= {b"fLaC": "audio/flac", b"RIFF": "audio/wav"}


@dataclass(frozen=True)
class Shown:
    """One value as HTML, and what it is sorted by."""

    html: Markup
    sort: float | str = ""


@dataclass(frozen=True)
class Sample:
    """A row of the table of samples."""

    sample_id: int
    source_id: str
    label: str
    contributions: list[float | None]
    copies: list[int]
    one_sided: float
    led_by: str
    benefit: float
    right: list[str]
    right_of: int
    present: list[str]
    shown: list[Shown] = field(default_factory=list)


@dataclass(frozen=True)
class Samples:
    """The samples of a run that are shown, and in `why` what is not shown and for what reason."""

    rows: list[Sample]
    valued: int
    of: int
    why: str = ""


def one_sided(f: Facts, budget: int = BYTES) -> Samples | None:
    """The samples whose contributions differ most, from each modality that leads in turn; None without a stored sweep.

    One-sidedness is the largest contribution minus the lowest, of the modalities present. Of equals, the lower sample_id
    comes first: `prepare` dealt them out at random.
    """
    if f.valued is None:
        return None
    table, values = f.valued.contributions, f.valued.values
    total = f.manifest.splits["train"].rows
    several = (~np.isnan(table)).sum(axis=1) > 1
    gap = np.zeros(len(table))
    gap[several] = np.nanmax(table[several], axis=1) - np.nanmin(table[several], axis=1)
    leader = np.where(np.isnan(table), -np.inf, table).argmax(axis=1)
    queues = [np.flatnonzero((leader == m) & (gap > 1e-9)) for m in range(table.shape[1])]
    queues = [queue[np.lexsort((values.sample_id[queue], -gap[queue]))] for queue in queues]
    turns = sorted((turn, m) for m, queue in enumerate(queues) for turn in range(min(len(queue), SAMPLES)))
    chosen = [int(queues[m][turn]) for turn, m in turns[:SAMPLES]]
    if not chosen:
        return Samples([], len(table), total)
    why, media, labels = "", None, [""] * len(chosen)
    try:
        stored = Reader(f.run.config.data, f.manifest.hash).stored("train", values.sample_id[chosen])
        labels = told(f.manifest.task, decode_targets(f.manifest.task, stored["target"].combine_chunks()))
        media = _shown(f.manifest.modalities, stored)
    except (EquipoiseError, OSError) as error:
        why = f"The samples cannot be shown as themselves: {error}"
    rows, spent = [], 0
    for n, at in enumerate(chosen):
        shown = media[n] if media else []
        spent += sum(len(s.html) for s in shown)
        if spent > budget:
            why = f"{len(chosen) - n} more would not fit into the page."
            break
        rows.append(_sample(f, at, float(gap[at]), f.modalities[leader[at]], labels[n], shown))
    return Samples(rows, len(table), total, why)


def told(spec: TaskSpec, targets: np.ndarray) -> list[str]:
    """Targets [n, *spec.row_shape] in words: the class; the labels that are true; the numbers; how much of each region."""
    if spec.kind == "classification":
        return [spec.labels[t] for t in targets.tolist()]
    if spec.kind == "multilabel":
        return [SEPARATOR.join(n for n, there in zip(spec.labels, row) if there) or "none" for row in targets]
    if spec.kind == "regression":
        return [", ".join(number(float(v)) for v in row) for row in targets]
    shares = targets.reshape(*targets.shape[:2], -1).mean(axis=2)
    return [", ".join(f"{n} {share:.1%}" for n, share in zip(spec.labels, row)) for row in shares]


def _sample(f: Facts, at: int, gap: float, led_by: str, label: str, shown: list[Shown]) -> Sample:
    assert f.valued is not None
    values = f.valued.values
    there = int(bits(values.present[at : at + 1])[0])
    inside = [c for c in range(1, values.score.shape[1] + 1) if c & ~there == 0]
    if values.graded:
        inside.sort(key=lambda c: (-c.bit_count(), c))
        shown_of = inside if len(inside) <= 8 else [c for c in inside if c == there or c.bit_count() == 1]
        right = [f"{coalition_name(c, f.modalities)} {values.score[at, c - 1]:.2f}" for c in shown_of]
    else:
        right = [coalition_name(c, f.modalities) for c in inside if values.score[at, c - 1]]
    return Sample(
        int(values.sample_id[at]),
        f.valued.source_id[at],
        label,
        [None if x != x else float(x) for x in f.valued.contributions[at]],
        [int(x) for x in f.valued.copies[at]],
        gap,
        led_by,
        float(f.valued.benefits[at]),
        right,
        len(inside),
        [m for i, m in enumerate(f.modalities) if values.present[at, i]],
        shown,
    )


def _shown(modalities: tuple[Modality, ...], stored: pa.Table) -> list[list[Shown]]:
    columns = []
    for m in modalities:
        values = stored[m.name].to_pylist()
        if m.kind in ("array", "sequence"):
            # Without what was fitted: the numbers as they were measured.
            arrays = [None if v is None else Decoder(m, {}).rows(pa.array([v], pa.large_binary()))[0] for v in values]
            there = np.concatenate([a.ravel() for a in arrays if a is not None] or [np.zeros(1)])
            scale = float(there.min()), float(there.max())
            columns.append([_absent() if a is None else draw_array(a, scale) for a in arrays])
        else:
            columns.append([_absent() if v is None else show(m, v) for v in values])
    return [list(row) for row in zip(*columns)]


def _absent() -> Shown:
    return Shown(el("span", "absent", css="muted"))


def show(m: Modality, value: Any) -> Shown:
    """A stored text, picture or sound."""
    if m.kind == "text":
        more = f" … ({len(value):,} characters)" if len(value) > TEXT else ""
        return Shown(el("span", value[:TEXT] + more, css="text"), value[:80])
    kind = next((t for magic, t in _TYPES.items() if value.startswith(magic)), "")
    size = f"{len(value) / 1024:,.1f} KiB"
    if m.kind == "image" and kind.startswith("image/"):
        said = size
        if len(value) > AS_IT_IS:
            value, kind, said = *_reduced(m, value), f"reduced; stored: {size}"
        css = "small" if max(m.shape[1:]) <= 64 else "large"
        return Shown(el("img", alt=m.name, title=said, css=css, src=_uri(kind, value)), len(value))
    if m.kind == "audio" and kind.startswith("audio/"):
        if len(value) > SOUND:
            return Shown(el("span", f"sound of {size}, too large for the page", css="muted"), len(value))
        return Shown(el("audio", controls="", preload="none", title=size, src=_uri(kind, value)), len(value))
    return Shown(el("span", f"{size} that no browser shows", css="muted"), len(value))


def _reduced(m: Modality, value: bytes) -> tuple[bytes, str]:
    out = BytesIO()
    with Image.open(BytesIO(value), formats=("PNG", "JPEG")) as image:
        if image.size != (m.shape[2], m.shape[1]):
            raise EquipoiseError(f"A stored image of modality {m.name!r} is {image.size}, not as the manifest says.")
        small = image.convert("RGB")
        small.thumbnail((320, 320))
        small.save(out, "JPEG", quality=85)
    return out.getvalue(), "image/jpeg"


def _uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def draw_array(x: np.ndarray, scale: tuple[float, float]) -> Shown:
    """Numbers: bars (one axis, up to 64), lines (a signal: one long axis, at most 12 channels), else a heat map, of a volume
    [C, D, H, W] its middle slice.

    `scale` is the lowest and highest value of the modality in all samples shown, so that they can be compared.
    """
    shape = " × ".join(map(str, x.shape))
    said = f"{shape}; {number(round(float(x.min()), 4))} to {number(round(float(x.max()), 4))}" if x.size else shape
    if x.ndim == 1 and len(x) <= 64:
        picture = _array_bars(x, scale, said)
    elif x.ndim == 1 or (x.ndim == 2 and len(x) >= 24 and x.shape[1] <= 12):
        picture = _array_lines(x.reshape(len(x), -1), scale, said)
    elif x.ndim == 4:
        picture = _heat_map(x[0, x.shape[1] // 2], scale, f"{said}; the middle slice of the first channel")
    else:
        picture = _heat_map(x.reshape(-1, x.shape[-1]), scale, said)
    return Shown(picture, float(x.mean()) if x.size else 0.0)


def _array_bars(x: np.ndarray, scale: tuple[float, float], said: str) -> Markup:
    low, high = min(scale[0], 0.0), max(scale[1], 0.0)
    y = 52 - 48 * (np.append(x, 0.0).astype(float) - low) / ((high - low) or 1.0)
    width = 196 / len(x)
    bars = [
        el("rect", x=2 + i * width, width=width * 0.8, y=float(min(v, y[-1])), height=float(max(abs(v - y[-1]), 0.5)))
        for i, v in enumerate(y[:-1])
    ]
    return el("svg", el("title", said) + Markup("").join(bars), css="mini bars", viewBox="0 0 200 56", role="img")


def _array_lines(x: np.ndarray, scale: tuple[float, float], said: str) -> Markup:
    low, high = scale
    lines = []
    for channel in range(min(x.shape[1], 6)):
        column = x[:, channel].astype(float)
        at = np.arange(len(column))
        if len(column) > 160:  # lowest and highest of each stretch: peaks stay
            parts = np.array_split(at, 80)
            at = np.unique([i for p in parts for i in (p[column[p].argmin()], p[column[p].argmax()])])
        px, py = 2 + 196 * at / max(len(column) - 1, 1), 52 - 48 * (column[at] - low) / ((high - low) or 1.0)
        lines.append(el("polyline", css=f"c{channel}", points=" ".join(f"{a:.1f},{b:.1f}" for a, b in zip(px, py))))
    if x.shape[1] > 6:
        said += "; the first 6 channels"
    return el("svg", el("title", said) + Markup("").join(lines), css="mini lines", viewBox="0 0 200 56", role="img")


def _heat_map(x: np.ndarray, scale: tuple[float, float], said: str) -> Markup:
    import matplotlib

    low, high = scale
    pixels = matplotlib.colormaps["cividis"]((x.astype(float) - low) / ((high - low) or 1.0), bytes=True)[..., :3]
    image = Image.fromarray(np.ascontiguousarray(pixels))
    if max(image.size) > 96:
        image = image.resize((min(image.width, 96), min(image.height, 96)), Image.Resampling.BOX)
    out = BytesIO()
    image.save(out, "PNG", optimize=True)
    css = "heat tall" if image.height > 1.6 * image.width else "heat"
    return el("img", alt=said, title=said, css=css, src=_uri("image/png", out.getvalue()))

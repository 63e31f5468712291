"""The named data sets, prepared and compared with where they come from."""

import numpy as np
import pytest

from equipoise.datasets import sources
from equipoise.datasets.prepare import prepare
from equipoise.datasets.reading import Reader
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


def whole(root, split):
    reader = Reader(root)
    chunks = range(reader.manifest.num_chunks(split))
    ids = [i for c in chunks for i in reader.source_ids(split, c)]
    return ids, reader.read(split, np.arange(reader.manifest.splits[split].rows)), reader.manifest


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


def test_without_seglearn_the_sentence_says_what_to_install(monkeypatch):
    from importlib.metadata import PackageNotFoundError

    from equipoise.datasets.sources import watch

    def missing(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(watch, "distribution", missing)
    with pytest.raises(EquipoiseError, match=r"pip install 'equipoise\[data\]'` or `pip install seglearn==1.2.5`"):
        sources.load("watch")


def test_an_unknown_data_set_names_the_nearest(tmp_path):
    with pytest.raises(EquipoiseError, match=r"Unknown data set 'digit': did you mean 'digits'"):
        prepare("digit", tmp_path / "out")
    assert sources.names() == ("digits", "watch")


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

"""The named data sets of pictures, texts and sound: from packages in miniature, and from the real ones where installed."""

import json
from io import BytesIO

import numpy as np
import pandas as pd
import pytest
import soundfile
from PIL import Image
from source_rows import disjoint, needs, of_split, rows_of, whole

from equipoise.datasets import sources
from equipoise.datasets.prepare import prepare
from equipoise.datasets.sources import emoji
from equipoise.models.errors import EquipoiseError


def test_easy_vqa_keeps_the_packages_test_and_whole_pictures(tmp_path):
    folder = needs("easy-vqa") / "easy_vqa" / "data"
    source, rows = rows_of("easy-vqa", questions=3000, seed=1)
    assert source.grouped
    assert source.labels == tuple((folder / "answers.txt").read_text().split())
    assert len(source.labels) == 13
    assert len({r["source_id"] for r in rows}) == 3000
    asked = {of: json.loads((folder / of / "questions.json").read_text()) for of in ("train", "test")}
    for row in rows[::37]:
        of, _, number = row["source_id"].split("-")
        offset = 0 if of == "train" else len(asked["train"])
        question, answer, image = asked[of][int(number) - offset]
        assert (row["question"], row["target"]) == (question, answer)
        assert row["image"] == (folder / of / "images" / f"{image}.png").read_bytes()
        assert row["group"] == f"{of}-image-{image:04d}"
        assert (row["split"] == "test") == (of == "test")
    counts = pd.Series([r["split"] for r in rows]).value_counts()
    assert counts["test"] == pytest.approx(3000 * 9673 / 48248, abs=60)  # three standard deviations of a fair draw
    assert counts["validation"] / (3000 - counts["test"]) == pytest.approx(0.15, abs=0.03)
    assert disjoint(of_split(rows, "group"))
    again = [r["source_id"] for r in rows_of("easy-vqa", questions=3000, seed=1)[1]]
    assert again == [r["source_id"] for r in rows]
    assert again != [r["source_id"] for r in rows_of("easy-vqa", questions=3000, seed=2)[1]]

    manifest = prepare("easy-vqa", tmp_path / "vqa", questions=600)
    assert {m.name: (m.kind, m.decoded_shape) for m in manifest.modalities} == {
        "image": ("image", (3, 64, 64)),
        "question": ("text", (12,)),
    }
    _, columns, _ = whole(tmp_path / "vqa", "test")
    assert columns["image"].dtype == np.float32
    assert 4 <= columns["question_length"].min() <= columns["question_length"].max() <= 12


def test_all_of_easy_vqa():
    needs("easy-vqa")
    source = sources.load("easy-vqa", questions=None)
    counts = pd.Series([r["source_id"].split("-")[0] for r in source.rows]).value_counts()
    assert counts.to_dict() == {"train": 38575, "test": 9673}
    with pytest.raises(EquipoiseError, match=r"questions must be 100\.\.48248, or null for all, found 50"):
        sources.load("easy-vqa", questions=50)


def png(mode, size, colour):
    file = BytesIO()
    Image.new(mode, size, colour).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def node_modules(tmp_path):
    """The two packages in miniature: 8 categories, each with 8 subcategories of 3 emoji, and a flag."""
    folder = tmp_path / "packages"
    pictures = folder / "emoji-datasource-google" / "img" / "google" / "64"
    pictures.mkdir(parents=True)
    listed = [
        {"unified": "1F1E6-1F1E8", "name": "A FLAG", "category": "Flags", "subcategory": "flag", "sort_order": 999},
    ]
    for c, category in enumerate(emoji.CATEGORIES):
        for i in range(24):
            code = 0x1F600 + 24 * c + i
            listed.insert(0, {
                "unified": f"{code:X}-FE0F", "name": f"THING {c} {i}", "category": category,
                "subcategory": f"part-{i // 3}", "sort_order": 24 * c + i, "image": f"{code:x}-fe0f.png",
            })  # fmt: skip
            (pictures / f"{code:x}-fe0f.png").write_bytes(png("RGBA", (64, 64), (i, c, 0, 255)))
    (pictures.parents[2] / "emoji.json").write_text(json.dumps(listed))
    (pictures.parents[2] / "package.json").write_text('{"version": "16.0.0"}')
    words = folder / "emojilib" / "dist"
    words.mkdir(parents=True)
    (words.parent / "package.json").write_text('{"version": "4.0.3"}')
    named = {"\U0001f600\ufe0f": ["first_thing", "smile"], "\U0001f601\ufe0f": []}
    (words / "emoji-en-US.json").write_text(json.dumps(named))
    return folder


def test_emoji_are_pictures_and_names(node_modules):
    source, rows = rows_of("emoji", node_modules=str(node_modules))
    assert [r["text"] for r in rows[:2]] == ["THING 0 0", "THING 0 1"]
    assert len(rows) == 192  # no flag
    assert pd.crosstab([r["target"] for r in rows], [r["split"] for r in rows])["train"].between(16, 17).all()
    assert np.asarray(Image.open(BytesIO(rows[30]["image"])))[0, 0].tolist() == [6, 1, 0, 255]
    assert "emoji-datasource-google 16.0.0" in source.terms
    _, rows = rows_of("emoji", node_modules=str(node_modules), text="keywords")
    assert [r["text"] for r in rows[:3]] == ["first thing, smile", None, None]
    source, rows = rows_of("emoji", node_modules=str(node_modules), held_out="subcategories")
    assert source.grouped
    assert disjoint(of_split(rows, "group"))
    table = pd.crosstab([r["target"] for r in rows], [r["split"] for r in rows])
    assert (table > 0).all().all()


def test_emoji_are_found_where_node_looks(node_modules, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("NODE_PATH", f"{tmp_path / 'nothing'}:{node_modules}")
    assert len(rows_of("emoji")[1]) == 192
    monkeypatch.delenv("NODE_PATH")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(EquipoiseError, match=(
        r"'emoji' is part of the npm package emoji-datasource-google, which is not installed here: run `npm install "
        r"emoji-datasource-google@16.0.0 emojilib@4.0.3` here, or name the folder of your packages with node_modules="
    )):  # fmt: skip
        sources.load("emoji")
    with pytest.raises(EquipoiseError, match=r"not installed in elsewhere: run `npm install"):
        sources.load("emoji", node_modules="elsewhere")
    npm = tmp_path / "npm"
    npm.write_text(f"#!/bin/sh\necho {node_modules}\n")
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert len(rows_of("emoji")[1]) == 192
    npm.write_text("#!/bin/sh\nexit 1\n")
    node_modules.rename(tmp_path / "node_modules")
    assert len(rows_of("emoji")[1]) == 192
    (tmp_path / "node_modules" / "emojilib").rename(tmp_path / "gone")
    with pytest.raises(EquipoiseError, match="the npm package emojilib, which is not installed here"):
        sources.load("emoji", text="keywords")
    with pytest.raises(EquipoiseError, match="Unknown choice for text 'names': did you mean 'name'"):
        sources.load("emoji", text="names")


def test_the_real_emoji(tmp_path):
    try:
        manifest = prepare("emoji", tmp_path / "emoji", text="keywords")
    except EquipoiseError as error:
        pytest.skip(str(error))
    assert sum(split.rows for split in manifest.splits.values()) == 1636
    assert manifest.task.labels == emoji.CATEGORIES
    _, columns, _ = whole(tmp_path / "emoji", "test")
    assert columns["image"].shape == (246, 4, 64, 64)
    assert columns["present"].all()
    assert columns["text_length"].min() >= 1


@pytest.fixture
def stamps(tmp_path):
    """Two categories of 32 stamps in 8 folders, each 20 x 10 pixels of one colour; one of 3; an alphabet; a mirror."""
    root = tmp_path / "stamps"
    tone = BytesIO()
    soundfile.write(tone, np.sin(np.arange(8000) / 9), 16000, format="OGG")

    def stamp(place, number, speech=True):
        file = root / place
        file.parent.mkdir(parents=True, exist_ok=True)
        file.with_suffix(".png").write_bytes(png("RGBA", (20, 10), (number, 0, 0, 255)))
        french = f"fr.utf8= Chose {number}. \n" if number != 5 else "fr.utf8=\n"
        file.with_suffix(".txt").write_text(f"Thing {number}.\n{french}de.utf8=Ding.\n")
        if speech:
            file.with_name(f"{file.name}_desc_fr.ogg").write_bytes(tone.getvalue())

    for category in ("animals", "town"):
        for i in range(32):
            stamp(f"{category}/part{i // 4}/thing{i:02d}", i, speech=i != 7)
    for i in range(3):
        stamp(f"clothes/hat{i}", i)
    for i in range(40):
        stamp(f"symbols/alphabets/letter{i}", i)
    (root / "town" / "part0" / "thing00_mirror.png").write_bytes(png("RGBA", (20, 10), (0, 0, 0, 0)))
    return root


def test_stamps_are_pictures_texts_and_speech_where_there_is_any(stamps, tmp_path):
    source, rows = rows_of("tuxpaint", stamps=str(stamps), size=32, text="fr")
    assert source.labels == ("animals", "town")
    assert len(rows) == 64
    seventh = rows[7]
    assert (seventh["source_id"], seventh["target"]) == ("animals/part1/thing07", "animals")
    assert (seventh["text"], seventh["speech"]) == ("Chose 7.", None)
    assert rows[5]["text"] is None
    assert rows[6]["speech"] == (stamps / "animals" / "part1" / "thing06_desc_fr.ogg").read_bytes()
    image = np.asarray(Image.open(BytesIO(rows[6]["image"])))
    assert image.shape == (32, 32, 4)
    # Twice as wide as high, in the middle of nothing.
    np.testing.assert_array_equal(image[8:24], np.broadcast_to([6, 0, 0, 255], (16, 32, 4)))
    assert not image[:8, :, 3].any()
    assert not image[24:, :, 3].any()
    assert [r["text"] for r in rows_of("tuxpaint", stamps=str(stamps))[1][:2]] == ["Thing 0.", "Thing 1."]

    manifest = prepare("tuxpaint", tmp_path / "data", stamps=str(stamps), size=32)
    assert manifest.names == ("image", "text", "speech")
    absent = []
    for split in ("train", "validation", "test"):
        ids, columns, _ = whole(tmp_path / "data", split)
        assert columns["present"][:, :2].all()
        absent += [i for i, p, n in zip(ids, columns["present"], columns["speech_length"]) if not p[2] and n == 0]
        assert (columns["speech_length"][columns["present"][:, 2]] == 50).all()  # half a second
    assert sorted(absent) == ["animals/part1/thing07", "town/part1/thing07"]

    assert prepare("tuxpaint", tmp_path / "again", stamps=str(stamps), size=32).hash == manifest.hash

    source, rows = rows_of("tuxpaint", stamps=str(stamps), held_out="folders")
    assert source.grouped
    assert disjoint(of_split(rows, "group"))
    assert (pd.crosstab([r["target"] for r in rows], [r["split"] for r in rows]) > 0).all().all()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"language": "en"}, r"No stamp in .*stamps is described aloud in language='en': fr, ru"),
        ({"text": "fra"}, r"Unknown language of the option text 'fra': did you mean 'fr'"),
        ({"size": 4}, r"size must be 8 to 512 pixels, found 4"),
        ({"held_out": "folder"}, r"Unknown choice for held_out 'folder': did you mean 'folders'"),
        ({"stamps": "/no/stamps"}, r"'tuxpaint' is part of the Debian package tuxpaint-stamps-default, which is not installed "
         r"in /no/stamps: run `apt-get install tuxpaint-stamps-default`, or name the folder of the stamps with stamps=\.$"),
    ],
)  # fmt: skip
def test_stamps_that_cannot_be_had_are_named(options, sentence, stamps):
    with pytest.raises(EquipoiseError, match=sentence):
        sources.load("tuxpaint", **{"stamps": str(stamps), **options})


def test_the_real_stamps():
    try:
        _, rows = rows_of("tuxpaint")
    except EquipoiseError as error:
        pytest.skip(str(error))
    counts = pd.Series([r["target"] for r in rows]).value_counts().to_dict()
    assert counts == {
        "animals": 146, "symbols": 89, "town": 78, "food": 67, "seasonal": 59, "plants": 39, "vehicles": 34,
        "household": 33,
    }  # fmt: skip
    assert sum(r["speech"] is None for r in rows) == 13
    assert all(r["text"] for r in rows)
    assert {r["source_id"]: r["text"] for r in rows}["animals/marsupials/koala"] == "A koala."

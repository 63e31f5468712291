"""The newcomer of docs/own-data.md: the table that the page speaks of, and its commands typed one after another."""

import csv
import re
import shlex
from pathlib import Path

import numpy as np
import typer
from PIL import Image

from equipoise.cli import app

PAGE = "docs/own-data.md"
REPO = Path(__file__).parents[1]
SPECIES, SOUNDS = ("cat", "dog", "hen"), ("it purrs", "it barks, loud", "it clucks")


def write_pets(folder: Path, n: int = 160) -> None:
    """`folder`/pets.csv with its photos, and new.csv: other rows, some lacking more, without a target."""
    rng = np.random.default_rng(0)
    (folder / "photos").mkdir(parents=True)
    head = ["id", "owner", "photo", "note", "walk_x", "walk_y", "walk_z", "species"]
    rows = []
    for i in range(n):
        k = i % 3
        pixels = rng.integers(0, 120, (8, 8, 3)) + 45 * k
        Image.fromarray(pixels.astype(np.uint8)).save(folder / "photos" / f"{i}.png")
        walk = ["", "", ""] if i % 5 == 3 else [f"{v:.2f}" for v in rng.normal(k, 1, 3)]
        photo, note = "" if i % 5 == 1 else f"photos/{i}.png", "" if i % 5 == 2 else SOUNDS[k]
        rows.append([f"pet-{i}", f"owner-{i // 2}", photo, note, *walk, SPECIES[k]])
    for name, some, columns in (("pets.csv", rows[:-20], 8), ("new.csv", rows[-20:], 7)):
        with (folder / name).open("w", newline="") as file:
            csv.writer(file).writerows(row[:columns] for row in [head, *some])


def commands() -> list[list[str]]:
    """The words of every `equipoise` line in the page's first block of commands."""
    block = re.findall(r"```sh\n(.*?)```", (REPO / PAGE).read_text(), re.DOTALL)[0]
    return [shlex.split(line)[1:] for line in block.splitlines()]


def run(words: list[str]) -> None:
    typer.main.get_command(app).main(words, standalone_mode=False)

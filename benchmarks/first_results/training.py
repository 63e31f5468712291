"""One run and its record: what a process of its own does."""

from __future__ import annotations

import ast
import json
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch

import equipoise
from equipoise.datasets.reading import Reader
from equipoise.pipelines.comparing.training import UNUSED
from equipoise.pipelines.config import Config, load_config
from equipoise.pipelines.files import read_json, write_json
from equipoise.pipelines.light import LightRun, Matrix, mean_contributions, train_light

ROOT = Path(equipoise.__file__).parents[1]
#: What the result of a run depends on, beside its configuration and its data.
CODE = (
    "balancers/*.py",
    "datasets/columns.py",
    "datasets/impairment.py",
    "datasets/noise.py",
    "datasets/reading.py",
    "datasets/targets.py",
    "datasets/task_spec.py",
    "models/*.py",
    "valuation/*.py",
    "pipelines/assembly.py",
    "pipelines/early_stopping.py",
    "pipelines/light.py",
    "pipelines/objectives.py",
    "pipelines/optimizers.py",
    "pipelines/sweep_schedule.py",
    "benchmarks/first_results/training.py",
)


@dataclass(frozen=True)
class Job:
    """A run to make. `identity` is what its record must be the record of; `test`: whether the record holds the test split."""

    study: str
    method: str
    seed: int
    config: dict[str, Any]
    identity: dict[str, Any]
    path: str
    test: bool = True

    @classmethod
    def of(
        cls,
        study: str,
        method: str,
        seed: int,
        config: Config,
        folder: Path,
        test: bool = True,
        code: str | None = None,
    ) -> Job:
        """`code`: the hash of all code that the result depends on; by default that of `CODE`."""
        whole = config.model_dump(mode="json")
        identity = {
            "config": {key: value for key, value in whole.items() if key not in UNUSED},
            "data": Reader(config.data).manifest.hash,
            "code": code or code_hash(),
            "torch": torch.__version__,
        }
        return cls(study, method, seed, whole, identity, str(folder / study / f"{method}-{seed}.json"), test)

    def record(self) -> dict[str, Any] | None:
        """What was written for exactly this job, None where there is nothing or something else."""
        try:
            found = read_json(Path(self.path))
        except ValueError:
            return None
        return found if found and found.get("identity") == json.loads(json.dumps(self.identity)) else None


@cache
def code_hash() -> str:
    return hash_of(path for pattern in CODE for path in ROOT.glob(pattern))


def hash_of(files: Iterable[Path], root: Path = ROOT) -> str:
    """Of the files' syntax trees: comments, docstrings and layout do not matter."""
    hashed = sha256()
    for path in sorted(set(files)):
        hashed.update(f"{path.relative_to(root)}\n{_syntax(path)}\n".encode())
    return hashed.hexdigest()


@cache
def _syntax(path: Path) -> str:
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)


#: What else a record is to keep of a training with a test split.
Also = Callable[[LightRun, Config], dict[str, Any]]


def run(job: Job, session: str, also: Also | None = None) -> dict[str, Any]:
    """Train, and write the record whole or not at all."""
    torch.set_num_threads(1)
    wall, cpu = time.perf_counter(), time.process_time()
    config = load_config(job.config)
    light = train_light(config)
    seconds = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
    about = {"study": job.study, "method": job.method, "seed": job.seed, "session": session, "seconds": seconds}
    record = {"identity": job.identity, **about, **found(light, Reader(config.data), job.test)}
    if also is not None and job.test:
        record |= also(light, config)
    write_json(Path(job.path), record)
    return record


def found(light: LightRun, reader: Reader, test: bool = True) -> dict[str, Any]:
    """What a record keeps of a training: all of validation, and of test where `test`."""
    manifest = reader.manifest
    names, classes = manifest.names, manifest.task.num_classes
    target = {name: targets(reader, name) for name in ("train", "test")}
    out: dict[str, Any] = {
        "modalities": list(names),
        "classes": list(manifest.task.labels),
        "rows": {name: split.rows for name, split in manifest.splits.items()},
        "steps": light.epochs[-1]["step"],
        "best": light.best,
        "curve": [
            {key: row[key] for key in ("step", "value", "loss", "train_loss", "entries")} for row in light.epochs
        ],
        "validation": cells(light.matrix["validation"]),
        "whole": int(light.seen[:, -1].sum()),
        "copies": dict(zip(names, light.seen[:, :-1].sum(axis=0).tolist())),
        "rows_copied": dict(zip(names, (light.seen[:, :-1] > 0).sum(axis=0).tolist())),
        "rows_by_class": np.bincount(target["train"], minlength=classes).tolist(),
        "copies_by_class": {
            m: np.bincount(target["train"], light.seen[:, i], classes).astype(int).tolist() for i, m in enumerate(names)
        },
    }
    if test:
        score = light.values["test"].score
        codes, counts = np.unique(np.packbits(score, axis=1, bitorder="little"), axis=0, return_counts=True)
        out["test"] = cells(light.matrix["test"])
        out["contributions"] = mean_contributions([light.values["test"]], names)
        out["patterns"] = {bytes(code).hex(): int(n) for code, n in zip(codes, counts)}
        out["constant"] = asdict(constant(target["train"], target["test"], classes))
    return out


@dataclass(frozen=True)
class Constant:
    """The answer that looks at no modality: the most frequent class, and the frequencies as probabilities."""

    accuracy: float
    loss: float


def constant(train: np.ndarray, test: np.ndarray, classes: int) -> Constant:
    """Accuracy and mean cross-entropy on test of the class frequencies of train (one row more a class, so none is 0)."""
    counts = np.bincount(train, minlength=classes)
    frequencies = (counts + 1) / (counts.sum() + classes)
    return Constant(float(np.mean(test == counts.argmax())), float(-np.log(frequencies[test]).mean()))


def targets(reader: Reader, split: str) -> np.ndarray:
    """int64 [rows], without decoding anything."""
    ids = np.arange(reader.manifest.splits[split].rows)
    return reader.read(split, ids, np.zeros(len(reader.manifest.names), bool))["target"]


def cells(matrix: Matrix) -> dict[str, dict[str, float]]:
    """{coalition id: {"accuracy", "loss"}} with keys as JSON has them."""
    return {str(c): {key: cell[key] for key in ("accuracy", "loss")} for c, cell in matrix.items()}

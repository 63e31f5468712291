"""The code that a method's result depends on: not that of the other methods, so that a new one leaves records as they are."""

from __future__ import annotations

import ast
import inspect
from functools import cache
from pathlib import Path

from benchmarks.first_results.training import CODE, ROOT, hash_of
from equipoise.balancers.balancer import REGISTRY

FOLDER = "balancers"
#: Beside the balancer's own files.
COMMON = (
    *(pattern for pattern in CODE if not pattern.startswith(FOLDER)),
    "pipelines/impaired.py",
    "benchmarks/methods/training.py",
)


@cache
def fingerprint(balancer: str) -> str:
    """Of the balancer's file, the step's, and all that these import; of models, resamplers and data as a whole."""
    common = (path for pattern in COMMON for path in ROOT.glob(pattern))
    # By its name in the repository: the package may lie elsewhere, its files linked.
    own = Path(inspect.getfile(REGISTRY[balancer])).stem
    return hash_of([*common, *imported(ROOT / FOLDER, {own, "step"})])


def imported(folder: Path, modules: set[str]) -> list[Path]:
    """The files of these modules of equipoise.balancers in `folder`, and of those that they import there, however far."""
    waiting, files = set(modules), {}
    while waiting:
        name = waiting.pop()
        files[name] = folder / f"{name}.py"
        for node in ast.walk(ast.parse(files[name].read_text())):
            if isinstance(node, ast.ImportFrom) and node.module == "equipoise.balancers":
                named = {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("equipoise.balancers."):
                named = {str(node.module).split(".")[2]}
            elif isinstance(node, ast.Import):
                parts = [alias.name.split(".") for alias in node.names]
                named = {p[2] for p in parts if p[:2] == ["equipoise", "balancers"] and len(p) > 2}
            else:
                continue
            waiting |= {n for n in named - set(files) if (folder / f"{n}.py").exists()}
    return sorted(files.values())

"""Whether what is installed is what Equipoise needs: Python, packages, links, torch, data sets, trackers."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import sys
from pathlib import Path
from typing import get_args

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

import equipoise
from equipoise.datasets import sources
from equipoise.models.errors import EquipoiseError
from equipoise.pipelines.config import Config
from equipoise.pipelines.findings import Finding
from equipoise.pipelines.trackers import check_tracker

_SHOWN = ("ray", "torch", "numpy", "pyarrow")


def installation() -> list[Finding]:
    package = Path(equipoise.__file__).parent
    return [
        python(),
        *packages(),
        *pins(package.parent / "constraints.txt"),
        links(package),
        hugging_face(),
        torch_build(),
    ]


def optional() -> list[Finding]:
    return [*data_sets(), *trackers()]


def python() -> Finding:
    found = sys.version.split()[0]
    metadata = _metadata()
    needed = metadata["Requires-Python"] if metadata is not None else None
    if needed and found not in SpecifierSet(needed, prereleases=True):
        return Finding(
            "wrong", "Python", f"{found}, but Equipoise needs {needed}.", "Install it in another environment."
        )
    return Finding("ok", "Python", f"{found}, {sys.executable}")


def packages() -> list[Finding]:
    """Every dependency against the range that Equipoise declares."""
    if _metadata() is None:
        return [
            Finding(
                "look", "packages", "Equipoise is not installed: its ranges are not known.", "Run `pip install -e .`"
            )
        ]
    out, fine = [], 0
    for text in importlib.metadata.requires("equipoise") or ():
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        version = _version(requirement.name)
        if version is not None and requirement.specifier.contains(version, prereleases=True):
            fine += 1
            continue
        found = "is not installed" if version is None else f"{version} is installed"
        out.append(
            Finding(
                "wrong",
                requirement.name,
                f"{found}, Equipoise needs {requirement.specifier or 'it'}.",
                f"Run `pip install '{requirement}'`",
            )
        )
    shown = ", ".join(f"{name} {_version(name)}" for name in _SHOWN)
    return [Finding("ok", "packages", f"{fine} in range; {shown}"), *out]


def pins(constraints: Path) -> list[Finding]:
    """Direct dependencies against the versions that the tests run with; in a checkout only."""
    if not constraints.is_file() or _metadata() is None:
        return []
    lines = [line.split("#")[0].strip().partition("==") for line in constraints.read_text().splitlines()]
    pinned = {_canonical(name): version for name, equals, version in lines if equals}
    names = {Requirement(text).name for text in importlib.metadata.requires("equipoise") or ()}
    others = []
    for name in sorted(names):
        version, pin = _version(name), pinned.get(_canonical(name))
        # A local build ("2.13.0+cpu") is the version that it is a build of.
        if version is not None and pin is not None and version.split("+")[0] != pin.split("+")[0]:
            others.append(f"{name} {version} (tested: {pin})")
    if not others:
        return [Finding("ok", "tested with", "the same versions, those of constraints.txt")]
    return [
        Finding(
            "look",
            "tested with",
            f"other versions: {', '.join(others)}.",
            "If something is odd, `pip install -c constraints.txt -e .`",
        )
    ]


def links(package: Path) -> Finding:
    """The rooms of the package: links in a checkout, folders in a wheel."""
    for room in equipoise.ROOMS:
        path = package / room
        if not path.is_dir():
            what = f"a link to {path.readlink()}, which is not there" if path.is_symlink() else "not there"
            if path.is_file():
                what = "a plain file, not a link"
            return Finding(
                "wrong",
                "links",
                f"equipoise/{room} is {what}.",
                "Clone again with `git clone -c core.symlinks=true`, or install a wheel.",
            )
        if path.is_symlink() and path.resolve() != (package.parent / room).resolve():
            return Finding(
                "wrong", "links", f"equipoise/{room} leads to {path.resolve()}.", f"It must lead to ../{room}."
            )
    kind = "links" if (package / equipoise.ROOMS[0]).is_symlink() else "folders"
    return Finding("ok", "links", f"{len(equipoise.ROOMS)} {kind} in {package}")


def hugging_face() -> Finding:
    """Whether `import datasets` is Hugging Face's, and not a folder of that name."""
    spec = importlib.util.find_spec("datasets")
    if spec is None or spec.origin is None:
        what = (
            "is missing" if spec is None else f"is shadowed by {next(iter(spec.submodule_search_locations or []), '?')}"
        )
        return Finding(
            "wrong",
            "datasets",
            f"Hugging Face's package {what}: transformers then dies.",
            "Run `pip install 'datasets>=3'`; docs/house.md says why.",
        )
    return Finding("ok", "datasets", "`import datasets` is Hugging Face's")


def torch_build() -> Finding:
    import torch

    built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU"
    here = len(list(Path("/proc/driver/nvidia/gpus").glob("*")))
    if torch.cuda.is_available():
        names = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
        return Finding("ok", "torch", f"built for {built}; sees {names}")
    if here:
        return Finding(
            "look",
            "torch",
            f"This machine has {here} NVIDIA GPUs, and torch {torch.__version__} (built for {built}) cannot use them.",
            "Install a build of torch for this driver; device=cpu works as it is.",
        )
    return Finding("ok", "torch", f"built for {built}; this machine has no NVIDIA GPU")


def data_sets() -> list[Finding]:
    """The named data sets that could be prepared here, and how to get the others: all are optional."""
    there, missing = [], []
    for name in sources.names():
        try:
            sources.load(name)
            there.append(name)
        except EquipoiseError as error:
            missing.append(Finding("ok", name, f"optional, not here. {error}"))
    return [Finding("ok", "data sets", f"ready for `equipoise prepare`: {', '.join(there)}"), *missing]


def trackers() -> list[Finding]:
    there, missing = [], []
    for name in get_args(Config.model_fields["tracker"].annotation):
        try:
            check_tracker(name)
            there.append(name)
        except EquipoiseError as error:
            missing.append(Finding("ok", name, f"optional, not here. {error}"))
    return [Finding("ok", "trackers", f"ready for tracker=: {', '.join(there)}"), *missing]


def _metadata() -> importlib.metadata.PackageMetadata | None:
    try:
        return importlib.metadata.metadata("equipoise")
    except importlib.metadata.PackageNotFoundError:
        return None


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _canonical(name: str) -> str:
    return name.strip().lower().replace("_", "-").partition("[")[0]

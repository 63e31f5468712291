"""Where the packages that bring data are installed."""

from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from equipoise.models.errors import EquipoiseError


def package_file(data_set: str, package: str, file: str, install: str) -> Path:
    """`file`, relative to site-packages, of an installed Python package, found without importing the package.

    Raises `EquipoiseError` with the commands `install` where it is not there.
    """
    try:
        path = Path(str(distribution(package).locate_file(file)))
    except PackageNotFoundError:
        path = None
    if path is None or not path.exists():
        raise not_installed(data_set, f"the package {package}", install)
    return path


def not_installed(data_set: str, what: str, install: str, where: str = "here") -> EquipoiseError:
    return EquipoiseError(
        f"The data set {data_set!r} is part of {what}, which is not installed {where}: run {install}."
    )

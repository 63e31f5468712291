"""The one error a person is meant to read: a sentence that says what is wrong, where, and what to do."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import BaseModel, ValidationError


class EquipoiseError(ValueError):
    """Bad input or a bad configuration, in the user's words. The command line prints it without a traceback."""


def unknown(kind: str, name: str, known: Iterable[str]) -> EquipoiseError:
    """An `EquipoiseError` for a name that does not exist: it names the nearest one that does, or all of them."""
    names = sorted(known)
    near = get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else "known: " + ", ".join(names) + "."
    return EquipoiseError(f"Unknown {kind} {name!r}: {hint}")


def option_error(owner: str, options: type[BaseModel], error: ValidationError) -> EquipoiseError:
    """What pydantic found wrong with the options of `owner`, as a sentence; that of a validator of ours, as it stands."""
    found = error.errors()
    if isinstance(ours := found[0].get("ctx", {}).get("error"), EquipoiseError):
        return ours
    # A misspelt option may leave a required one missing as well: name the misspelling.
    first = next((e for e in found if e["type"] == "extra_forbidden"), found[0])
    key = ".".join(map(str, first["loc"]))
    if first["type"] == "extra_forbidden":
        known = options.model_fields
        return (
            unknown(f"option of {owner}:", key, known)
            if known
            else EquipoiseError(f"The {owner} has no options, found {key!r}.")
        )
    if first["type"] == "missing":
        return EquipoiseError(f"{owner} needs the option {key!r}: give {key}=...")
    return EquipoiseError(f"Option {key!r} of {owner}: {first['msg']}, found {first['input']!r}.")

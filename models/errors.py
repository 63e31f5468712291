"""The one error a person is meant to read: a sentence that says what is wrong, where, and what to do."""

from collections.abc import Iterable
from difflib import get_close_matches


class EquipoiseError(ValueError):
    """Bad input or a bad configuration, in the user's words. The command line prints it without a traceback."""


def unknown(kind: str, name: str, known: Iterable[str]) -> EquipoiseError:
    """An `EquipoiseError` for a name that does not exist: it names the nearest one that does, or all of them."""
    names = sorted(known)
    near = get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else "known: " + ", ".join(names) + "."
    return EquipoiseError(f"Unknown {kind} {name!r}: {hint}")

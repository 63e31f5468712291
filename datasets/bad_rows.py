"""Rows that cannot be used: refused as a list, or left out and listed."""

from equipoise.datasets.manifest import Skipped
from equipoise.models.errors import EquipoiseError, unknown

CHOICES = ("stop", "skip")
_SHOWN = 20


class BadRowError(Exception):
    """A row that cannot be used: `where` it stands and, as a clause that does not depend on that, `reason`."""

    def __init__(self, where: str, reason: str, source_id: str, split: str = "") -> None:
        # What is not UTF-8 can be neither printed nor stored.
        where, reason, source_id = (text.encode("utf-8", "replace").decode() for text in (where, reason, source_id))
        super().__init__(f"{where} {reason}" if reason.startswith("has ") else f"{where}: {reason}")
        self.reason, self.source_id, self.split = reason, source_id, split


class BadRows:
    """The rows of a source that cannot be used. `skip`: they are left out and all listed in `skipped`; else refused.

    `rows` is how many were looked at, and counted by whoever looks.
    """

    def __init__(self, skip: bool) -> None:
        self.skip, self.rows, self.count = skip, 0, 0
        self.skipped: list[Skipped] = []
        self._sentences: list[str] = []

    @property
    def refused(self) -> bool:
        return bool(self.count) and not self.skip

    def add(self, bad: BadRowError) -> None:
        self.count += 1
        if self.skip:
            self.skipped.append(Skipped(source_id=bad.source_id, split=bad.split, reason=bad.reason))
        elif len(self._sentences) < _SHOWN:
            self._sentences.append(str(bad) + ("" if str(bad).endswith("?") else "."))

    def check(self) -> None:
        """Raise an `EquipoiseError` with the first of the bad rows, and how many there are, unless they are skipped."""
        if not self.refused:
            return
        if self.count == 1:
            raise EquipoiseError(f"{self._sentences[0]} Or leave it out with on_bad=skip.")
        more = [f"and {self.count - _SHOWN} more."] if self.count > _SHOWN else []
        raise EquipoiseError(
            "\n  ".join(
                [
                    f"{self.count} of {self.rows} rows cannot be used: mend them, or leave them out with on_bad=skip.",
                    *self._sentences,
                    *more,
                ]
            )
        )


def check_choice(on_bad: str) -> bool:
    """Whether bad rows are skipped. Raises `EquipoiseError` for what is no choice."""
    if on_bad not in CHOICES:
        raise unknown("choice for on_bad", str(on_bad), CHOICES)
    return on_bad == "skip"

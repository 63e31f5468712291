"""The error of one value that cannot be."""


class BadValueError(ValueError):
    """A value that a modality cannot hold. The message is a clause that follows "modality 'm' of row 'r' "."""

"""The exceptions of the model package, for what only its user can correct."""


class ModelError(ValueError):
    """A wrong setting or file; its message is `where = value: what is allowed: what to do`."""


class Unreachable(ModelError):
    """Weights that could not be fetched: the same may succeed later, or on another machine."""


class MissingCheckpoint(FileNotFoundError, ModelError):
    """There is no checkpoint where one was named; says what is there instead."""

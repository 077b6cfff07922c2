"""The one exception of the model package, for mistakes that only its user can correct."""


class ModelError(ValueError):
    """A wrong setting or file; its message is `where = value: what is allowed: what to do`."""

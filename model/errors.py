"""The one exception of the model package for mistakes that only its user can mend."""


class ModelError(ValueError):
    """A wrong setting or file, told as `where = value: what is allowed: what to do`."""

"""What a user can mend, told in one line."""


class InputError(ValueError):
    """What was expected, what came, and the likely cause; the command line prints it and exits with 2."""


class OutOfMemoryError(InputError):
    """Something would take more memory than there is."""


class UnsupportedError(TypeError):
    """A distribution or program of a kind that a computation has no way to deal with."""

"""Errors that the user can fix, reported in one line."""


class InputError(ValueError):
    """Invalid input: what was expected, what was given, and the likely cause. The command line exits with status 2."""


class OutOfMemoryError(InputError):
    """A computation needs more memory than is free."""


class UnsupportedError(InputError, TypeError):
    """A distribution or program that a computation does not support."""

"""Errors that a user can act on."""


class BadInputError(ValueError):
    """The user's input cannot work. The message names the field, the value and what is allowed.

    Entry points print the message alone and exit with code 2. One positional argument, so that it survives pickling
    between processes.
    """


class NonFiniteLossError(RuntimeError):
    """A loss or score is NaN or infinite; the message says where."""

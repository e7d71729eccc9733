"""The one exception class that the command line turns into a single line and exit code 2."""


class InputError(ValueError):
    """A mistake in what the user gave us: what, got, expected, how to mend it, in one line."""


class NonFiniteLoss(RuntimeError):
    """Training met a loss that is no number; the last good state is on disk."""

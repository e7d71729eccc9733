"""The exceptions that the command line turns into a single line, and what it exits with."""


class InputError(ValueError):
    """A mistake in what the user gave us: what, got, expected, how to mend it, in one line.

    Line breaks and characters that can't be printed come from the user's values and paths; they are shown escaped, and
    what is beyond 1,000 characters is left out in the middle, so that the line can be read in a terminal or a log.
    """

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message, 1000))


class NonFiniteLoss(RuntimeError):
    """Training met a loss that is no number; the last good state is on disk."""


def one_line(text: object, limit: int) -> str:
    """`text` on one line, at most `limit` characters, with nothing that a terminal would obey."""
    line = " ".join(str(text).split())
    line = "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in line)
    return line if len(line) <= limit else f"{line[: limit * 2 // 3]} ... {line[5 - limit // 3 :]}"


def count_of(number: int, noun: str) -> str:
    """A count before its noun, whose plural ends in -s: "1 shard", "2,000 shards"."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


class Interrupted(KeyboardInterrupt):
    """Somebody asked a command to stop, and its text says what was saved.

    It is no `Exception`, so that no library's `except Exception` on the way takes it for an error of its own.

    Args:
        message: One line.
        exit_code: `128 + signum`, as a shell expects it of a signal (`training/interrupt.py` lists all).
    """

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code

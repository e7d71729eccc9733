"""The command line's entry: every mistake of the user's is one line on stderr and exit code 2."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from ..errors import InputError, Interrupted, NonFiniteLoss, one_line
from .parser import parse


def main(argv: Sequence[str] | None = None) -> int:
    """Run `lrc`.

    Returns:
        0, or 2 for the user's mistakes, 1 for training that had to stop, 75 when its time is over, and 128 and the
        signal's number after one: 130 for Ctrl-C, 143 for SIGTERM, 138 for SIGUSR1, 129 for SIGHUP.
    """
    _make_writable()
    if not sys.stderr.isatty():
        # tqdm reads this when it is imported: bars of other libraries say nothing to a file. Ours are lines there.
        os.environ.setdefault("TQDM_DISABLE", "1")
    try:
        # argparse ends a process by itself after --help and --version.
        arguments = parse(sys.argv[1:] if argv is None else argv)
        # Imported by need: `lrc recipes` and a misspelt key should not wait for PyTorch.
        import_module(f".{arguments.command}", __package__).run(arguments)
        sys.stdout.flush()
    except InputError as error:
        print(f"lrc: error{_who()}: {error}", file=sys.stderr)
        return 2
    except NonFiniteLoss as error:
        print(f"lrc: training stopped{_who()}: {one_line(error, 1000)}", file=sys.stderr)
        return 1
    except Interrupted as stop:
        if not _who():  # all processes stop together
            print(f"lrc: {one_line(stop, 1000)}", file=sys.stderr)
        return stop.exit_code
    except KeyboardInterrupt:
        print("lrc: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # Whoever read the output has seen enough, as `head` has.
        _drop_output()
        return 0
    except OSError as error:  # of the disk that standard output goes to, for instance
        print(f"lrc: error: {one_line(error, 1000)}", file=sys.stderr)
        if error.filename is None:
            _drop_output()
        return 2
    return 0


def _who() -> str:
    """Which of several processes says it; nothing of the first one, or the only one."""
    rank = os.environ.get("RANK", "0")
    return "" if rank == "0" else f" (process {rank})"


def _make_writable() -> None:
    """Let prints go nowhere where a stream was closed, and escape what a terminal's encoding does not have."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w", encoding="utf-8"))
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _drop_output() -> None:
    """Python would complain once more when it exits, of what it could not write."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

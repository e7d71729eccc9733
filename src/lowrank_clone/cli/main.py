"""The command line's entry: every mistake of the user's is one line on stderr and exit code 2."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module

from ..errors import InputError, Interrupted, NonFiniteLoss, one_line
from .parser import parse


def main(argv: Sequence[str] | None = None) -> int:
    """Run `lrc`.

    Returns:
        0, or 2 for the user's mistakes, 1 for training that had to stop, 130 after Ctrl-C, 143 after SIGTERM.
    """
    try:
        # argparse ends a process by itself after --help and --version.
        arguments = parse(sys.argv[1:] if argv is None else argv)
        # Imported by need: `lrc recipes` and a misspelt key should not wait for PyTorch.
        import_module(f".{arguments.command}", __package__).run(arguments)
        sys.stdout.flush()
    except InputError as error:
        print(f"lrc: error: {error}", file=sys.stderr)
        return 2
    except NonFiniteLoss as error:
        print(f"lrc: training stopped: {one_line(error, 1000)}", file=sys.stderr)
        return 1
    except Interrupted as stop:
        print(f"lrc: {one_line(stop, 1000)}", file=sys.stderr)
        return stop.exit_code
    except KeyboardInterrupt:
        print("lrc: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # Whoever read the output has seen enough, as `head` has; Python would complain once more when it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return 0

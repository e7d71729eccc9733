"""Errors of the disk as one line. Imports no PyTorch, so that mistakes are told at once."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from ..errors import InputError, one_line

# What a disk says that is full, or that may not be written to.
_FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EACCES, errno.EPERM)


@contextmanager
def disk_errors(doing: str, advice: str | Callable[[], str] = "") -> Iterator[None]:
    """Turn an error of the disk into one line: what was being done, the system's reason, and what to do.

    Libraries that meet a full disk often fail once more while they close their files; the first error is told then.

    Args:
        advice: What to do; a function where that is known only afterwards.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        cause = _full_disk_before(error) or error
        if not isinstance(cause, OSError | SafetensorError):
            raise
        reason = (isinstance(cause, OSError) and cause.strerror) or one_line(cause, 300)
        where = f" `{shown_path(cause.filename)}`" if isinstance(cause, OSError) and cause.filename else ""
        what_to_do = advice if isinstance(advice, str) else advice()
        raise InputError(f"{doing}:{where} {reason}{f'; {what_to_do}' if what_to_do else ''}") from error


def _full_disk_before(error: BaseException) -> OSError | None:
    """The full disk that was met before this error, if there was one."""
    chain = [error]
    while (before := chain[-1].__cause__ or chain[-1].__context__) is not None and before not in chain:
        chain.append(before)
    return next((found for found in chain if isinstance(found, OSError) and found.errno in _FULL), None)


def shown_path(path: Path | str) -> str:
    """A path in an error's one line, cut where it is too long to read."""
    return one_line(path, 150)

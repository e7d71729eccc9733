"""Execution `interleaved`: the teacher's layer i runs just before the student's layer i.

Then the targets of one layer only are alive at a time. Both models run their own unchanged forward pass, the teacher's
in a thread of its own; a baton goes back and forth at the edges of the layers, so the two never run at the same time.
"""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from typing import Any

import torch
from torch import nn

from ..hooks import hooked


class _Stopped(BaseException):
    """Ends the call of a strand that nobody will continue."""


class Strand:
    """A call in a thread of its own that runs only while its creator waits for it, so the two never run at once.

    The creator calls `advance`, and waits until the call has come to its next `pause` or its end; inside the call
    `pause` waits for the next `advance`. What the call raises is raised by the `advance` that let it run.

    Of what torch keeps by thread, autocast and the CUDA device and stream go with it; grad mode and other modes do not.
    """

    def __init__(self, call: Callable[[], None], device: torch.device) -> None:
        self._call, self._surroundings = call, _surroundings(device)
        self._go, self._back = threading.Semaphore(0), threading.Semaphore(0)
        self._error: BaseException | None = None
        self._finished = self._stopping = False
        context = contextvars.copy_context()
        self._thread = threading.Thread(
            target=lambda: context.run(self._run), name="lowrank_clone teacher", daemon=True
        )
        self._thread.start()

    def advance(self) -> None:
        """Let the call run to its next pause or its end; raises what it raises."""
        if self._finished:
            return
        self._go.release()
        self._back.acquire()
        error, self._error = self._error, None
        if error is not None:
            raise error

    def finish(self) -> None:
        """Let the call run to its end."""
        while not self._finished:
            self.advance()

    def pause(self) -> None:
        """From inside the call: hand over to the creator, and wait to be continued."""
        self._back.release()
        self._wait()

    def close(self) -> None:
        """End the thread, wherever the call is."""
        self._stopping = True
        self._go.release()
        self._thread.join()

    def _wait(self) -> None:
        self._go.acquire()
        if self._stopping:
            raise _Stopped

    def _run(self) -> None:
        try:
            self._wait()
            with self._surroundings():
                self._call()
        except _Stopped:
            pass
        except BaseException as error:  # raised again where the creator waits
            self._error = error
        finally:
            self._finished = True
            self._back.release()


def interleave(
    teacher: Callable[[], None],
    student: Callable[[], None],
    teacher_blocks: Iterable[nn.Module],
    student_blocks: Iterable[nn.Module],
    device: torch.device,
) -> None:
    """Run both calls, the teacher always one block ahead of the student.

    An error on either side ends both and is raised here.
    """
    strand = Strand(teacher, device)
    with (
        hooked([(block, lambda *_: strand.pause()) for block in teacher_blocks], "after"),
        hooked([(block, lambda *_: strand.advance()) for block in student_blocks], "before"),
        closing(strand),  # closed before the hooks go: the teacher must not go on without its pauses
    ):
        student()
        strand.finish()


def _surroundings(device: torch.device) -> Callable[[], Any]:
    """A context that makes another thread's ops on `device` what they would be here."""
    kinds = ("cpu",) if device.type == "cpu" else ("cpu", device.type)
    autocast = [(kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in kinds]
    stream = torch.cuda.current_stream(device) if device.type == "cuda" else None

    @contextmanager
    def surroundings() -> Iterator[None]:
        with ExitStack() as stack:
            if stream is not None:
                stack.enter_context(torch.cuda.stream(stream))  # selects its device too
            for kind, enabled, dtype in autocast:
                stack.enter_context(torch.autocast(kind, dtype=dtype, enabled=enabled))
            yield

    return surroundings

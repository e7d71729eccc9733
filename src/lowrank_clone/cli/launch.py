"""`lrc train --launch`: start the same command in several processes of this machine, with `accelerate launch`."""

from __future__ import annotations

import logging
import os
import signal
from argparse import Namespace
from collections.abc import Sequence
from importlib.resources import as_file, files

from ..errors import InputError

ENGINES = ("ddp", "fsdp2")
# How long processes that were told to stop may take to finish their step and save, in seconds.
PATIENCE = 3600


def check_launch(arguments: Namespace) -> None:
    """Check `--processes`.

    Raises:
        InputError: It is no number of processes, or stands without `--launch`.
    """
    if arguments.processes is None:
        return
    if arguments.launch is None:
        raise InputError(
            f"--processes: got {arguments.processes} without --launch, expected `--launch ddp` or `--launch fsdp2` too"
        )
    if arguments.processes < 1:
        raise InputError(f"--processes: got {arguments.processes}, expected a whole number of 1 or more")


def launch(arguments: Namespace) -> int:
    """Run `lrc train` as the arguments say, in `--processes` processes; 0, or the exit code of the first that failed.

    A signal that this process gets is passed on to all of them; a second one, too.

    Raises:
        InputError: How many processes is not said and can't be told.
    """
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    number = arguments.processes if arguments.processes is not None else _devices()
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(PATIENCE))
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # a failed process says itself why
    threads = max(1, (os.cpu_count() or 1) // number)
    with as_file(files("lowrank_clone.recipe") / "accelerate" / f"{arguments.launch}.yaml") as config:
        options = ["--config_file", str(config), "--num_processes", str(number), "--main_process_port", "0"]
        options += ["--num_cpu_threads_per_process", str(threads), "-m", "lowrank_clone", *_command(arguments)]
        try:
            launch_command(launch_command_parser().parse_args(options))
        except ChildFailedError as error:
            code = error.get_first_failure()[1].exitcode
            return code if code >= 0 else 128 - code
        except SignalException as stop:
            return 128 + signal.Signals(stop.sigval).value
    return 0


def _devices() -> int:
    """How many accelerators this machine has.

    Raises:
        InputError: None.
    """
    import torch

    number = torch.accelerator.device_count()
    if number == 0:
        raise InputError("--launch: this machine has no accelerator; say with --processes how many processes to start")
    return number


def _command(arguments: Namespace) -> Sequence[str]:
    flags = ["--dry-run"] * arguments.dry_run + ["--overwrite"] * arguments.overwrite
    flags += [] if arguments.resume is None else [f"--resume={arguments.resume}"]
    flags += [f"--allow={section}" for section in arguments.allow]
    return ["train", arguments.recipe, *arguments.overrides, *flags]

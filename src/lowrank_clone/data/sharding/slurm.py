"""datatrove's Slurm executor: the same tasks as a job array, of which the last one completes the shards."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from datatrove.executor import SlurmPipelineExecutor
from datatrove.io import DataFolder
from fsspec.implementations.local import LocalFileSystem
from loguru import logger

from ...errors import InputError, one_line
from .tasks import MakeShards, Work

FOLDER = ".slurm"
_JOB_ID = "job-id"
_PACKAGE_ROOT = Path(__file__).parents[3]


def submit(work: Work, tasks: int, options: Mapping[str, str]) -> str:
    """Submit the work as an array of `tasks` tasks.

    Args:
        options: Of sbatch, without dashes; `partition` and `time` are among them.

    Returns:
        The job's id.

    Raises:
        InputError: There is no sbatch here, or it refuses the job.
    """
    for name in ("partition", "time"):
        if name not in options:
            raise InputError(f"--slurm: no {name} is given; expected `--slurm {name}=...`, which sbatch needs")
    if shutil.which("sbatch") is None:
        raise InputError("--executor: got slurm, but there is no sbatch on this machine; start it on a login node")
    folder = work.jobs[0].folder / FOLDER
    shutil.rmtree(folder, ignore_errors=True)
    work.save(folder)
    # A job's script finds the command and this package as this process does.
    path = [os.path.dirname(sys.executable), os.environ.get("PATH", "")]
    python = [str(_PACKAGE_ROOT), os.environ.get("PYTHONPATH", "")]
    exports = {"PATH": os.pathsep.join(path), "PYTHONPATH": os.pathsep.join(filter(None, python))}
    executor = SlurmPipelineExecutor(
        [MakeShards(str(folder), alone=True)],
        tasks=tasks,
        time=options["time"],
        partition=options["partition"],
        job_name="lrc-data",
        qos="",  # else `normal`, which not every cluster has
        env_command="\n".join(f"export {name}={shlex.quote(value)}" for name, value in exports.items()),
        sbatch_args=dict(options),
        logging_dir=DataFolder(str(folder), fs=LocalFileSystem()),
        skip_completed=False,
        with_srun=False,
    )
    logger.disable("datatrove")  # what is to be said is said here
    try:
        executor.run()
    except (subprocess.CalledProcessError, OSError, IndexError) as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise InputError(
            f"--slurm: sbatch does not take the job ({one_line(error, 300)}); its own words are above"
        ) from error
    job = str(executor.job_id)
    for made in work.jobs:
        (made.folder / FOLDER).mkdir(exist_ok=True)
        (made.folder / FOLDER / _JOB_ID).write_text(job, encoding="utf-8")
    return job


def queued(folder: Path) -> str | None:
    """The job that was submitted for the shards in a folder and has not ended; None if there is none.

    Raises:
        InputError: This machine can't ask for it.
    """
    try:
        job = (folder / FOLDER / _JOB_ID).read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return None
    if shutil.which("squeue") is None:
        raise InputError(
            f"Slurm's job {job} was submitted to make the shards in {folder}, and there is no squeue on this machine "
            f"that could say whether it has ended; if it has, remove {folder / FOLDER}"
        )
    found = subprocess.run(["squeue", "--noheader", "--jobs", job], capture_output=True, text=True, check=False)
    return job if found.returncode == 0 and found.stdout.strip() else None

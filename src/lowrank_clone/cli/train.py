"""`lrc train`."""

from __future__ import annotations

from argparse import Namespace

from ..errors import InputError
from ..recipe.load import load_recipe
from ..run.demo_teacher import with_installed_teacher
from ..run.output_folder import Resume
from ..run.quick_checks import check_early
from .launch import check_launch, launch


def run(arguments: Namespace) -> None:
    """`lrc train RECIPE [section.key=value ...] [--dry-run] [--resume [auto] | --overwrite] [--allow SECTION]`

    With `--launch ENGINE [--processes N]`, the same in several processes.
    """
    check_launch(arguments)
    recipe = with_installed_teacher(load_recipe(arguments.recipe, arguments.overrides))
    resume: Resume = "auto" if arguments.resume == "auto" else arguments.resume is not None
    if arguments.allow and not resume:
        raise InputError(
            f"--allow {arguments.allow[0]}: got it without --resume, expected both; a new run differs from nothing"
        )
    check_early(recipe, resume=resume, overwrite=arguments.overwrite)

    if arguments.launch is not None:
        raise SystemExit(launch(arguments))

    # Imported here: what was checked until now should not wait for PyTorch.
    from ..run.execute import execute
    from ..run.forecast import forecast, time_lines
    from ..run.job import check
    from .tables import console, print_plan, quiet_bars

    quiet_bars()
    job = check(recipe, resume=resume, overwrite=arguments.overwrite, allow=arguments.allow)
    console.quiet = job.arguments.process_index > 0
    if job.finished is not None:
        console.print(job.finished)
        return
    expected = forecast(job)
    if arguments.dry_run:
        cost = print_plan(recipe, job.plan)
        for line in expected.lines():
            console.print(line)
        if expected.tokens is not None:
            for line in time_lines(cost, expected.tokens, job.arguments.device, job.plan.teacher_width):
                console.print(line)
        console.print("Everything that can be checked without weights is in order; nothing was run.")
        return
    result = execute(job, console)
    before = "" if result.before is None else f"{result.before.loss:.4f} -> "
    console.print(
        f"Validation loss {before}{result.after.loss:.4f} nats/token after {result.tokens:,} "
        f"tokens (teacher {result.teacher.loss:.4f}). The student is in {job.folder / 'student'}."
    )

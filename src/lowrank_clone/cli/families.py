"""`lrc families`."""

from __future__ import annotations

from argparse import Namespace

from ..plan.families import survey, survey_all
from ..run.families import COLUMNS, YES, quietly, to_markdown, try_family
from .tables import console, new_table


def run(arguments: Namespace) -> None:
    """`lrc families [TYPE] [--markdown]`"""
    with quietly():
        found = [survey(arguments.model_type)] if arguments.model_type else survey_all()
        if arguments.markdown:
            print(to_markdown([try_family(family) for family in found]))
            return
        if arguments.model_type:
            (family,) = found
            trial = try_family(family)
            table = new_table("of a tiny model", "", title=f"{family.model_type} ({family.layout} layout)")
            table.add_row("plan", YES if family.supported else family.reason)
            for column in COLUMNS if family.supported else ():
                table.add_row(column, trial.cells[column])
            console.print(table)
            return
    table = new_table(
        "type", "supported", "taps", "remark", title="Causal language models of the installed transformers"
    )
    for family in found:
        taps = "" if family.plan is None else str(len(family.plan.taps))
        table.add_row(family.model_type, "yes" if family.supported else "no", taps, family.reason)
    console.print(table)
    console.print(
        f"{sum(family.supported for family in found)} of {len(found)} types can be cloned. `lrc families TYPE` tries "
        "everything else on a tiny model of one type."
    )

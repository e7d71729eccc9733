"""`lrc families`."""

from __future__ import annotations

import warnings
from argparse import Namespace

from transformers.utils import logging

from ..plan.families import survey, survey_all, to_markdown
from .tables import console, new_table


def run(arguments: Namespace) -> None:
    """`lrc families [TYPE] [--markdown]`"""
    # Making a config of each type by its defaults is not what the library's advice to users of one model is about.
    logging.set_verbosity(logging.CRITICAL)
    warnings.simplefilter("ignore")
    found = [survey(arguments.model_type)] if arguments.model_type else survey_all()
    if arguments.markdown:
        print(to_markdown(found))
        return
    table = new_table(
        "type", "supported", "taps", "remark", title="Causal language models of the installed transformers"
    )
    for family in found:
        table.add_row(family.model_type, "yes" if family.supported else "no", str(family.taps or ""), family.reason)
    console.print(table)
    console.print(f"{sum(family.supported for family in found)} of {len(found)} types can be cloned.")

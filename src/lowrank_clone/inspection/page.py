"""One self-contained HTML page of an inspection."""

from __future__ import annotations

import base64
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path

from .inspect import Inspection
from .sheets import Sheet, factor_sheet, format_number, sheets


@dataclass(frozen=True)
class RunFacts:
    """Where the numbers of an inspection come from. `measured` is a date."""

    run: str
    teacher: str
    checkpoint: str
    trained_tokens: int
    measured: str
    version: str


def write_page(inspection: Inspection, facts: RunFacts, figures: Mapping[str, Path], path: Path) -> None:
    """One HTML page that needs nothing beside it: tables, and figures as inline PNGs."""
    errors, *start, ranks, spectra, masking = sheets(inspection)
    medians = [error.error for error in inspection.errors if error.error is not None]
    head = {
        "run": facts.run,
        "teacher": f"{facts.teacher}, {inspection.teacher_width} channels",
        "student": f"{inspection.student_width} channels, {facts.checkpoint}, {facts.trained_tokens:,} training tokens",
        "median relative error": f"{format_number(statistics.median(medians))} over {len(medians)} taps"
        if medians
        else "n/a",
        "measured": f"{facts.measured}, on {inspection.tokens:,} validation tokens, lowrank-clone {facts.version}",
    }
    facts_html = "".join(f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>" for key, value in head.items())
    by_layer = _fold("Table", _table(errors)) + "".join(_fold("Before training", _table(sheet)) for sheet in start)
    singles = _fold("Every factor", _table(factor_sheet(inspection.spectra)))
    curves_note = f"Source: metrics.jsonl of the run, {facts.trained_tokens:,} training tokens; units on the axes."
    sections = [
        ("Loss curves", curves_note, _image(figures.get("curves"), "Loss against training tokens")),
        (errors.title, errors.note, _image(figures["relative_error"], errors.title) + by_layer),
        (ranks.title, ranks.note, _image(figures["effective_rank"], ranks.title) + _fold("Table", _table(ranks))),
        (spectra.title, spectra.note, _table(spectra) + _image(figures["factors"], spectra.title) + singles),
        (masking.title, masking.note, _table(masking) + _image(figures.get("masking"), masking.title)),
    ]  # fmt: skip
    body = "".join(
        f"<section><h2>{escape(title)}</h2><p class=note>{escape(note)}</p>{content}</section>"
        for title, note, content in sections
    )
    title = escape(f"Inspection of {facts.run}")
    path.write_text(
        f"<!doctype html><html lang=en><head><meta charset=utf-8><title>{title}</title>"
        '<meta name=viewport content="width=device-width, initial-scale=1">'
        f"<style>{_STYLE}</style></head><body><h1>{title}</h1><dl>{facts_html}</dl>{body}</body></html>\n",
        encoding="utf-8",
    )


_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fff; max-width: 62rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.6rem } h2 { font-size: 1.25rem; margin-top: 2.5rem; border-bottom: 1px solid #ddd }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1.2rem } dt { color: #666 } dd { margin: 0 }
.note { color: #555; font-size: .9rem } img { max-width: 100%; height: auto; display: block; margin: 1rem 0 }
.wide { overflow-x: auto; margin: 1rem 0 } table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums }
th, td { padding: .2rem .7rem; text-align: right; border-bottom: 1px solid #eee } th { border-bottom: 2px solid #999 }
th:first-child, td:first-child { text-align: left } summary { cursor: pointer; color: #1f6fb4 }
"""  # noqa: E501


def _table(sheet: Sheet) -> str:
    head = "".join(f"<th>{escape(column)}</th>" for column in sheet.columns)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in sheet.rows)
    return f"<div class=wide><table><tr>{head}</tr>{body}</table></div>" if sheet.rows else ""


def _fold(summary: str, content: str) -> str:
    return f"<details><summary>{escape(summary)}</summary>{content}</details>"


def _image(path: Path | None, alt: str) -> str:
    if path is None:
        return ""
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    return f'<img alt="{escape(alt)}" src="data:image/png;base64,{data}">'

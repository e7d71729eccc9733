"""Tables, figures and the page of an inspection with known numbers."""

from __future__ import annotations

import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest

from lowrank_clone.inspection.activations import TapError
from lowrank_clone.inspection.figures import draw_inspection
from lowrank_clone.inspection.inspect import Inspection
from lowrank_clone.inspection.neurons import MaskedLosses, MaskTest
from lowrank_clone.inspection.page import RunFacts, write_page
from lowrank_clone.inspection.ranks import StreamRank
from lowrank_clone.inspection.sheets import (
    changes,
    error_sheet,
    factor_sheet,
    masking_sheet,
    rank_sheet,
    sheets,
    spectra_sheet,
)
from lowrank_clone.inspection.spectra import Spectrum
from lowrank_clone.plan.roles import TapSpec

FACTS = RunFacts("runs/<a>", "teacher & co", "checkpoint-8", 1234, "2026-01-02", "0.1.0")


def tap_error(layer: int, place: str, error: float | None) -> TapError:
    module = f"model.layers.{layer}.{place}"
    return TapError(TapSpec(f"{module}.weight", module, "read", "ffn", layer, 40), error)


def inspection(**overrides: Any) -> Inspection:
    fields: dict[str, Any] = {
        "tokens": 4096,
        "teacher_width": 24,
        "student_width": 16,
        "errors": (
            tap_error(0, "mlp.up", 0.5),
            tap_error(0, "mlp.down", None),
            tap_error(1, "mlp.up", 1.5),
            tap_error(2, "experts", 2e-5),
        ),
        "ranks": (StreamRank(0, 20.0, 5.0), StreamRank(1, 10.0, 8.0)),
        "spectra": (
            Spectrum("model.layers.0.mlp.up.weight", 0, "mlp.up", True, (4.0, 2.0)),
            Spectrum("model.layers.1.mlp.up.weight", 1, "mlp.up", True, (3.0, 0.0)),
            Spectrum("model.embed.weight", None, "model.embed", False, (1.0, 1.0)),
        ),
        "masking": MaskTest(
            (("model.layers.0.mlp.up.weight", 3), ("model.layers.1.mlp.up.weight", 0)),
            80,
            1020,
            MaskedLosses(2.0, 3.5, (2.01, 2.03)),
            MaskedLosses(2.5, 3.0, (2.5, 2.6)),
        ),
    }
    return Inspection(**(fields | overrides))


METRICS = [
    {"step": 1, "tokens": 100, "lm": 5.0, "kl": 2.0, "clone": 7.0},
    {"step": 2, "tokens": 200, "lm": 4.0, "kl": 1.0, "clone": 6.0},
    {"step": 2, "eval_lm": 4.5},
]


def test_sheets_show_the_numbers() -> None:
    measured = inspection()
    errors = error_sheet(measured.errors, measured.tokens)
    assert errors.columns == ("layer", "up", "down", "experts")
    assert errors.rows == (
        ("0", "0.500", "n/a", ""),
        ("1", "1.50", "", ""),
        ("2", "", "", "2.00e-05"),
        ("median", "1.00", "n/a", "2.00e-05"),
    )
    assert rank_sheet(measured).rows == (("into the first", "20.0", "5.0", "25%"), ("0", "10.0", "8.0", "80%"))
    up, embedding = spectra_sheet(measured.spectra).rows
    assert up[:4] == ("up", "2", "4.00", "0.00")
    assert up[-1] == "∞"
    assert embedding[0] == "embed (the matrix itself)"
    assert embedding[4:] == ("2.0 of 2", "1.00", "1.00")
    assert len(factor_sheet(measured.spectra).rows) == 3
    masking = masking_sheet(measured)
    assert masking.rows[0] == ("teacher", "2.0000", "+1.5000", "+0.0200 (+0.0100 … +0.0300)")
    assert "0 (1), 1 (1)" in masking.note
    assert changes(MaskedLosses(1.0, 1.5, ())) == (0.5, [])


def test_places_are_shortened_as_far_as_they_stay_apart() -> None:
    places = ("experts.0.up", "experts.1.up", "mlp.down", "experts.0")
    sheet = error_sheet([tap_error(0, place, 1234.5) for place in places], 1)
    assert sheet.columns[1:] == ("experts.0.up", "experts.1.up", "down", "experts.0")
    assert sheet.rows[0] == ("0", *["1,234"] * 4)


def test_every_sheet_says_unit_and_source() -> None:
    for sheet in sheets(inspection(start_errors=inspection().errors)):
        assert "nit" in sheet.note
        assert "Source: " in sheet.note


class Page(HTMLParser):
    """Checks that tags are closed, and collects what a browser would fetch."""

    void = ("meta", "img")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.fetched += [value or "" for key, value in attrs if key in ("src", "href")]
        if tag not in self.void:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_needs_nothing_beside_it(tmp_path: Path) -> None:
    measured = inspection(start_errors=inspection().errors)
    figures = draw_inspection(measured, METRICS, tmp_path / "inspect")
    assert set(figures) == {"curves", "relative_error", "effective_rank", "factors", "masking"}
    write_page(measured, FACTS, figures, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == []
    assert len(page.fetched) == 5
    assert all(url.startswith("data:image/png;base64,") for url in page.fetched)
    assert "<script" not in text
    assert "runs/&lt;a&gt;" in text
    assert "teacher &amp; co" in text
    assert re.search(r"<td>up</td><td>2</td><td>4.00</td>", text)
    assert plt.get_fignums() == []


@pytest.mark.parametrize("error", [None, 0.0, 0.3, math.inf])
def test_little_to_show_is_no_obstacle(tmp_path: Path, error: float | None) -> None:
    measured = inspection(errors=(tap_error(0, "mlp.up", error),), masking=None)
    figures = draw_inspection(measured, [], tmp_path)
    assert set(figures) == {"relative_error", "effective_rank", "factors"}
    write_page(measured, FACTS, figures, tmp_path / "report.html")
    assert "Not observable" in (tmp_path / "report.html").read_text(encoding="utf-8")

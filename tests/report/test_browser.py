"""The page in a browser: every figure is drawn, nothing is said on the console, at any width and in both themes.

Chromium is a package of the system (`apt-get install chromium`); Playwright drives the one that is installed.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from report.runs import metrics, view

from lowrank_clone.report.charts import charts
from lowrank_clone.report.html import page
from lowrank_clone.report.view import RunView

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed (apt-get install chromium)"),
]
# How many colours a canvas has, and how wide it and its place are.
CANVASES = """() => [...document.querySelectorAll(".chart")].map((place) => {
  const canvas = place.querySelector("canvas");
  if (!canvas) return { name: place.id, colours: 0, text: place.textContent };
  const pixels = new Uint32Array(canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data.buffer);
  const width = canvas.getBoundingClientRect().width;
  return { name: place.id, colours: new Set(pixels).size, width, place: place.clientWidth };
})"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


class Opened:
    """A page that was opened from the disk, and whatever it said or asked for."""

    def __init__(self, browser: Any, file: Path, **options: Any) -> None:
        self.context = browser.new_context(**options)
        self.page = self.context.new_page()
        self.said: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.asked(request.url))
        self.page.goto(file.as_uri())
        self.page.wait_for_function("document.documentElement.dataset.drawn", timeout=60_000)

    def asked(self, url: str) -> None:
        if not url.startswith(("file:", "data:", "blob:")):
            self.said.append(f"asked for {url}")

    def __enter__(self) -> Opened:
        return self

    def __exit__(self, *error: object) -> None:
        self.context.close()


def written(folder: Path, runs: list[RunView]) -> Path:
    file = folder / "a report.html"
    file.write_text(page(runs), encoding="utf-8")
    return file


def sets() -> dict[str, list[RunView]]:
    many = [view(f"a run with a rather long name {i}", metrics=metrics(40, 5, 5 + i / 5)) for i in range(10)]
    hostile = view("</script><b>x & 'y' \"z\"", teacher="<img src=x onerror=alert(1)>")
    one_log = view(metrics=[{"step": 1, "lm": 3.0, "tokens": 64}], ranks=(), samples=())
    return {"one": [view()], "two": [view("a"), hostile], "ten": many, "one log": [one_log]}


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("kind", sets())
def test_every_figure_is_drawn_and_nothing_is_said(
    browser: Any, kind: str, width: int, scheme: Any, tmp_path: Path
) -> None:
    runs = sets()[kind]
    file = written(tmp_path, runs)
    with Opened(browser, file, viewport={"width": width, "height": 844}, color_scheme=scheme) as opened:
        drawn = opened.page.evaluate(CANVASES)
        assert [canvas["name"] for canvas in drawn] == [f"chart-{chart.name}" for chart in charts(runs)]
        for canvas in drawn:
            assert canvas["colours"] > 20, canvas  # of text and lines with soft edges; an empty canvas has one
            assert canvas["width"] <= canvas["place"] + 1, canvas
        assert opened.page.evaluate("document.documentElement.scrollWidth") <= width
        background = opened.page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert background == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 23, 28)"}[scheme]
        assert opened.said == []


def test_the_page_follows_the_theme_while_it_is_open(browser: Any, tmp_path: Path) -> None:
    brightest = """() => {
      const canvas = document.querySelector("#chart-loss canvas");
      const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
      let most = 0;
      for (let i = 0; i < data.length; i += 4) if (data[i + 3] === 255) most = Math.max(most, Math.min(...data.slice(i, i + 3)));
      return most;
    }"""  # noqa: E501
    with Opened(browser, written(tmp_path, [view()]), color_scheme="light") as opened:
        light = opened.page.evaluate(brightest)
        opened.page.evaluate("delete document.documentElement.dataset.drawn")
        opened.page.emulate_media(color_scheme="dark")
        opened.page.wait_for_function("document.documentElement.dataset.drawn")
        assert opened.page.evaluate(brightest) == 0xE4  # the least of the ink's red, green and blue
        assert light != 0xE4 and opened.said == []


def test_the_slider_shows_an_earlier_evaluation_and_play_goes_through_them(browser: Any, tmp_path: Path) -> None:
    shown = "() => Math.round(window.views.relative_error.data('data_0').find((d) => d.l === 0).e * 1000) / 1000"
    with Opened(browser, written(tmp_path, [view()])) as opened:
        at_end = opened.page.evaluate(shown)
        slider = opened.page.locator("#chart-relative_error input[type=range]")
        slider.focus()
        slider.press("Home")
        opened.page.wait_for_function("window.views.relative_error.signal('frame') == 0")
        opened.page.wait_for_timeout(100)
        assert (at_end, opened.page.evaluate(shown)) == (0.143, 1.0)  # (1 + 0 + 0) / (6 + 1), and / (0 + 1)
        opened.page.locator("#chart-relative_error button").click()
        opened.page.wait_for_function("window.views.relative_error.signal('frame') == 2")
        assert opened.said == []


def test_the_nearest_point_tells_its_numbers_and_a_hostile_name_stays_text(browser: Any, tmp_path: Path) -> None:
    with Opened(browser, written(tmp_path, sets()["two"]), viewport={"width": 1280, "height": 900}) as opened:
        opened.page.locator("#chart-lm canvas").hover(position={"x": 900, "y": 150})
        tip = opened.page.locator("#vg-tooltip-element")
        tip.wait_for(state="visible")
        assert "training tokens" in tip.inner_text() and tip.locator("img, b").count() == 0
        assert opened.said == []


def test_a_figure_can_be_saved(browser: Any, tmp_path: Path) -> None:
    with Opened(browser, written(tmp_path, [view()])) as opened:
        opened.page.locator("#chart-lm summary").click()
        with opened.page.expect_download() as saved:
            opened.page.locator("#chart-lm .vega-actions a", has_text="SVG").click()
        saved.value.save_as(tmp_path / "lm.svg")
        assert (tmp_path / "lm.svg").read_text(encoding="utf-8").startswith("<svg") and opened.said == []


def test_fingers_scroll_the_page_over_a_figure(browser: Any, tmp_path: Path) -> None:
    options = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
    with Opened(browser, written(tmp_path, [view()]), **options) as opened:
        signals = opened.page.evaluate("Object.keys(window.views.lm.getState().signals)")
        assert "frame" not in signals and not [name for name in signals if name.startswith("zoom")]
        assert opened.page.evaluate("getComputedStyle(document.querySelector('canvas')).touchAction") == "pan-y"

"""The page: whole, self-contained, and safe from whatever names and texts hold."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pytest
from report.runs import metrics, view

from lowrank_clone.report.html import GENERATOR, page, score_table
from lowrank_clone.report.view import Grid, Sample, Score

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)> & \" ' {{ 7*7 }} \u2028 ‮x <!-- ]]> é漢"


class Outline(HTMLParser):
    """Tags, attributes and the text of each element that a browser would see."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def specs(text: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="specs">(.*?)</script>', text, re.DOTALL)
    assert found is not None
    tree: dict[str, Any] = json.loads(found[1])
    return tree


def test_the_page_has_everything_and_refers_to_nothing_outside() -> None:
    text = page([view()])
    assert len(text) < 1_200_000 and GENERATOR in text[:1024].encode()
    seen = Outline(text)
    assert seen.tags.count("script") == 3
    links = [value for name, value in seen.attributes if name in ("src", "href", "action", "data")]
    assert all(link is None or link.startswith(("#", "data:")) for link in links)
    for id_ in ("facts", "losses", "activations", "speed", "evaluation", "samples", "events", "plan", "recipe"):
        assert ("id", id_) in seen.attributes and ("href", f"#{id_}") in seen.attributes
    shown = " ".join(" ".join(seen.texts).split())
    for told in (
        "come to its teacher, Big?",
        "4.500 nats",
        "0.4000 ± 0.0100",
        "a tree",
        "spike",
        "1,000",
        "hidden_size",
    ):
        assert told in shown
    assert [f"chart-{name}" for name in specs(text)] == [v for k, v in seen.attributes if v and v.startswith("chart-")]


def test_hostile_names_and_texts_are_shown_and_do_nothing() -> None:
    run = view(
        HOSTILE,
        folder=HOSTILE,
        teacher=HOSTILE,
        recipe=HOSTILE,
        notes=(HOSTILE,),
        samples=(Sample(*[HOSTILE] * 4),),
        events=Grid(("step", "what", "details"), (("3", HOSTILE, HOSTILE),)),
        scores=(Score(HOSTILE, HOSTILE, HOSTILE, 0.5, None),),
        versions={HOSTILE: HOSTILE},
        settings={HOSTILE: HOSTILE},
    )
    text, plain = page([run, view("b", text="other")]), page([view("a"), view("b", text="other")])
    ours, theirs = Outline(text), Outline(plain)
    assert ours.tags.count("script") == theirs.tags.count("script") == 3 and "img" not in ours.tags
    assert not [name for name, _ in ours.attributes if name.startswith("on")]
    assert "{{ 7*7 }}" in " ".join(ours.texts)
    values = specs(text)["lm"]["data"]["values"]
    assert values[0]["run"] == HOSTILE
    assert "49" not in " ".join(ours.texts).partition("onerror=alert(2)")[2][:40]


def test_expressions_hold_nothing_of_the_user_s() -> None:
    text = json.dumps(specs(page([view("datum.v;alert(1)", teacher="alert(3)"), view("b")])))
    expressions = re.findall(r'"(?:expr|calculate|filter|test|labelExpr)": "([^"]*)"', text)
    assert expressions and not [expression for expression in expressions if "alert" in expression]


def test_a_run_with_nothing_says_what_is_missing() -> None:
    bare = view(
        losses={}, metrics=[], student=None, taps=(), samples=(), ranks=(), scores=(), events=Grid((), ()), versions={}
    )
    shown = " ".join(Outline(page([bare])).texts)
    for told in ("No losses were logged", "No relative errors", "No speeds", "No evaluation results", "No samples"):
        assert told in shown


@pytest.mark.parametrize("damage", [float("nan"), float("inf")])
def test_numbers_that_are_none_never_reach_the_page(damage: float) -> None:
    lines = [*metrics(), {"step": 6, "lm": damage, "grad_norm": damage, "tokens": 384}]
    assert specs(page([view(metrics=lines)]))


def test_only_a_live_page_loads_itself_again() -> None:
    assert ("data-live", "30") in Outline(page([view()], live=30)).attributes
    assert not [name for name, _ in Outline(page([view()])).attributes if name == "data-live"]


def test_scores_side_by_side() -> None:
    other = replace(view("b"), scores=(Score("piqa", "acc", "student", 0.6, None),))
    assert score_table([view("a"), other]) == Grid(
        ("task", "metric", "a: student", "b: student"),
        (("arc_easy", "acc", "0.4000 ± 0.0100", "–"), ("piqa", "acc", "–", "0.6000")),
    )

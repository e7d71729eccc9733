"""What a report says in sentences: the numbers are those of the run, and nothing is ranked that can't be."""

from __future__ import annotations

import math

from report.runs import view

from lowrank_clone.report.words import answer, differences, facts, incomparable, question, short, state


def test_the_question_and_the_answer_of_one_run() -> None:
    run = view()
    assert question([run]) == (
        "How close does a student of 16 channels, with 50% of the parameters, come to its teacher, Big?"
    )
    assert answer([run]) == (
        "After 384 training tokens it loses 4.500 nats per token on 248 held-out tokens, 1.500 above its teacher with "
        f"3.000 (perplexity {math.exp(4.5):.4g} for {math.exp(3.0):.4g}). Training closed 25% of the gap that its "
        "start left."
    )


def test_a_run_that_goes_on_or_has_no_losses_says_so() -> None:
    assert answer([view(finished=False, step=3)]).startswith("So far, at step 3 of 6 and after 384 training tokens")
    assert answer([view(finished=False, steps=None)]).startswith("So far, at step 6 and after")
    assert "can't be told yet" in answer([view(losses={"teacher": 3.0})])
    assert "0.500 below its teacher" in answer([view(losses={"teacher": 3.0, "before": 2.8, "now": 2.5})])
    assert "closed" not in answer([view(losses={"teacher": 3.0, "before": 3.5, "now": 3.9})])
    assert question([view(student=None)]) == "How close does the student come to its teacher, Big?"


def test_runs_on_one_text_are_ranked_by_their_gap() -> None:
    runs = [view("a"), view("b", losses={"teacher": 3.0, "now": 3.5}, tokens=128, finished=False)]
    assert question(runs) == "Which of these 2 students comes closest to their teacher, Big?"
    assert answer(runs) == (
        "b: 3.500 nats per token on the same held-out text, 0.500 above its teacher after 128 training tokens; then a "
        "4.500. Not finished: b. They saw unequal numbers of tokens (128 to 384)."
    )
    assert incomparable(runs) == []


def test_runs_on_other_texts_or_tokenizers_are_not_ranked_and_it_is_said_why() -> None:
    texts = [view("a"), view("b", text="xyz")]
    assert "Their losses can't be ranked. They were validated on other texts" in answer(texts)
    vocabularies = [view("a"), view("b", text="xyz", vocabulary="49,152 entries")]
    assert incomparable(vocabularies) == [
        "They have other tokenizers (a 96 entries, b 49,152 entries), and nats per token of one are not those of "
        "another: compare bits per byte on the same text."
    ]
    assert "not known of b" in incomparable([view("a"), view("b", text="xyz", vocabulary=None)])[0]
    assert "not recorded of a" in " ".join(incomparable([view("a", text=None), view("b")]))
    assert "no validation losses of b" in answer([view("a"), view("b", losses={})])


def test_facts_and_differences_have_a_column_for_each_run() -> None:
    runs = [
        view("a"),
        view("b", settings={"student.hidden_size": "20", "method.init": "random"}, metrics=[], student=None),
    ]
    table = {row[0]: row[1:] for row in facts(runs).rows}
    assert table["gap to the teacher"] == ("1.500", "1.500")
    assert table["gap closed by training"][0] == "25%"
    assert table["tokens per second"] == ("1,004", "–")  # the median of 1,001 to 1,006
    assert table["memory"] == ("0.50 GiB at most", "–")
    assert table["parameters"] == ("20k → 10k", "–")
    assert table["started"][0] == "2026-01-02 03:04:05 UTC"
    assert differences(runs).rows == (("method.init", "–", "random"), ("student.hidden_size", "16", "20"))


def test_counts_in_three_digits() -> None:
    assert [short(n) for n in (7, 1000, 89_676_672, 1.5e9, 2e12)] == ["7", "1k", "89.7M", "1.5B", "2T"]
    assert state(view(finished=False, step=3)) == "unfinished, step 3 of 6"

"""How tapped modules run, and what padding a family ignores: found by a trial pass, never by a family's name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from oracles import naive_objective, relative_error
from tiny import batch, tiny_model
from torch import Tensor
from transformers import PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from lowrank_clone.errors import InputError
from lowrank_clone.model import CloneModel
from lowrank_clone.objective.probe import TapRuns, foresee_taps, probe_taps
from lowrank_clone.plan.classify import make_plan
from lowrank_clone.plan.tiny import tiny_config, tried_tiny_model
from lowrank_clone.plan.tiny import tiny_model as random_model
from lowrank_clone.training.optim import bind

ATTENDING = ("self_attention.experts.input", "self_attention.experts.output")
DELAYED = "self_attn.qkv_proj.v_proj_delayed"
ROWS = "its rows are not the batch's tokens"


def teacher_of(family: str, **changes: Any) -> PreTrainedModel:
    return random_model(tiny_config(CONFIG_MAPPING[family](), **changes))


def probed(family: str, **changes: Any) -> Any:
    teacher = teacher_of(family, **changes)
    plan = make_plan(teacher.config, 16)
    return plan, probe_taps(teacher, plan.taps, plan.teacher_width)


def places(plan: Any, names: Any) -> set[str]:
    return {tap.module.partition(f".{tap.layer}.")[2] for tap in plan.taps if tap.name in names}


def test_most_modules_run_once_on_the_batch_s_tokens() -> None:
    plan, probe = probed("qwen3_moe")
    assert not probe.left_out and not probe.changed
    assert probe.runs == {tap.name: TapRuns(1, 1) for tap in plan.taps}


def test_experts_that_run_on_every_token_have_a_copy_of_the_tokens_each() -> None:
    plan, probe = probed("llama4_text", num_local_experts=3)
    copies = {name: runs.copies for name, runs in probe.runs.items() if runs.copies != 1}
    assert places(plan, copies) == {"feed_forward.experts"} and set(copies.values()) == {3}
    # The routed experts' output is added into the shared expert's, which a tap has seen by then.
    assert {name.partition(".0.")[2] for name in probe.changed} >= {"feed_forward.shared_expert.down_proj"}


def test_modules_of_a_loop_run_several_times() -> None:
    _, probe = probed("hrm_text")
    assert not probe.left_out and {runs.calls for runs in probe.runs.values()} == {2, 4}


@pytest.mark.parametrize(
    ("family", "left_out"),
    [
        (
            "jetmoe",
            {f"{part}.{end}_linear" for part in ("mlp", "self_attention.experts") for end in ("input", "output")},
        ),
        ("zaya", {DELAYED}),
    ],
)
def test_rows_that_a_router_chose_are_not_compared(
    family: str, left_out: set[str], caplog: pytest.LogCaptureFixture
) -> None:
    plan, probe = probed(family)
    assert places(plan, probe.left_out) == left_out and set(probe.left_out.values()) == {ROWS}
    clone = CloneModel(teacher_of(family), 16)
    assert {tap.name for tap in clone.taps} == set(probe.runs)
    (message,) = (record.message for record in caplog.records if record.name.endswith("probe"))
    assert ROWS in message and all(f"`{place}`" in message for place in left_out)


def test_a_module_that_is_never_called_is_not_compared() -> None:
    plan, probe = probed("longcat_flash")
    assert places(plan, probe.left_out) == {"mlp.router.classifier"}
    assert set(probe.left_out.values()) == {"never called: another module uses its weight"}


@pytest.mark.parametrize(("family", "expected"), [("qwen3_moe", ""), ("zaya", f"`{DELAYED}` ({ROWS})")])
def test_what_will_not_be_compared_is_known_without_weights(family: str, expected: str) -> None:
    assert foresee_taps(make_plan(CONFIG_MAPPING[family](), 1024)) == expected


def test_a_layout_of_which_no_tiny_model_runs_is_left_to_the_teacher_itself() -> None:
    config = tiny_config(CONFIG_MAPPING["qwen3"]())
    config.rope_parameters = {"rope_type": "longrope", "rope_theta": 1e4, "factor": 4.0}
    config.rope_parameters |= {"short_factor": [1.0, 2.0, 3.0], "long_factor": [1.0, 2.0, 3.0]}  # one is missing
    assert tried_tiny_model(config) is None
    config.rope_parameters |= {"short_factor": [1.0] * 48, "long_factor": [2.0] * 48}  # of a head of 96
    assert tried_tiny_model(config) is not None


# Experts that see every token, loops, a router's choice, states beside the tokens, and ordinary ones.
SEVERAL = ["llama4_text", "hrm_text", "jetmoe", "zaya", "qwen3_next", "mamba"]
TERMS = ("lm", "kl", "clone")


@pytest.mark.parametrize("family", SEVERAL)
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_batch_is_its_sequences(family: str, side: str) -> None:
    clone, ids, lengths = CloneModel(teacher_of(family), 16, factor_std=0.1), batch(3, 12), (12, 7, 9)
    kept = [slice(0, n) if side == "right" else slice(12 - n, 12) for n in lengths]
    mask = torch.zeros_like(ids)
    for row, tokens in enumerate(kept):
        mask[row, tokens] = 1
    with torch.no_grad():
        padded = clone(ids * mask, attention_mask=mask)
        alone = [clone(ids[row : row + 1, tokens]) for row, tokens in enumerate(kept)]
    for name in TERMS:
        weights = [n - (name == "lm") for n in lengths]
        parts = sum(w * float(getattr(o, name)) for w, o in zip(weights, alone, strict=True)) / sum(weights)
        assert float(getattr(padded, name)) == pytest.approx(parts, rel=1e-5)


@pytest.mark.parametrize("family", SEVERAL)
def test_counts_change_no_tap_s_weight_and_micro_batches_add_up(family: str) -> None:
    clone, ids = CloneModel(teacher_of(family), 16, factor_std=0.1), batch(4, 12)
    with torch.no_grad():
        plain, counted = clone(ids), clone(ids, num_items_in_batch=torch.tensor([44, 48]))
        fours, twos = (list(clone.accumulate([{"input_ids": b} for b in ids.split(n)])) for n in (1, 2))
    for name, value in plain.taps.items():
        torch.testing.assert_close(counted.taps[name], value)
        for several in (fours, twos):
            torch.testing.assert_close(torch.stack([each.taps[name] for each in several]).sum(), value)


@pytest.mark.parametrize("experts", [2, 6])
def test_a_tap_weighs_what_a_token_gets_whatever_the_number_of_experts(experts: int) -> None:
    """Of experts that see every token all but the chosen one give zeros: their number must not divide the error."""
    clone = CloneModel(teacher_of("llama4_text", num_local_experts=experts), 16, factor_std=0.1)
    naive = naive_objective(clone, batch())
    with torch.no_grad():
        taps = clone(batch()).taps
    for name, value in naive.taps.items():
        assert relative_error(taps[name], value) < 1e-4


@pytest.mark.parametrize("family", ["zaya", "hrm_text", "llama4_text"])
def test_normalised_losses_stay_finite_over_steps(family: str) -> None:
    clone = CloneModel(teacher_of(family), 16, factor_std=0.1, clone_normalization="target").train()
    optimizer = bind(torch.optim.AdamW(clone.factors.parameters(), lr=3e-3), clone.factors, max_grad_norm=1.0)
    losses: list[Tensor] = []
    for _ in range(4):
        losses.append(clone(batch()).loss)
        losses[-1].backward()
        optimizer.step()
    assert all(loss.isfinite() for loss in losses) and losses[-1] < losses[0]


def test_padding_that_a_family_lets_into_its_state_is_refused() -> None:
    clone, ids = CloneModel(teacher_of("recurrent_gemma"), 16), batch()
    left, right = torch.ones_like(ids), torch.ones_like(ids)
    left[0, :3], right[0, -3:] = 0, 0
    with pytest.raises(
        InputError, match=r"padding on the left, which `recurrent_gemma` does not ignore.*pad on the ri"
    ):
        clone(ids, attention_mask=left)
    assert clone(ids, attention_mask=right).loss.isfinite() and clone(ids, attention_mask=left | 1).loss.isfinite()
    assert CloneModel(tiny_model("llama"), 16)(ids, attention_mask=left).loss.isfinite()

"""What each type can do is found by doing it to a tiny model of its layout: a sample of docs/families.md."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from lowrank_clone.plan.classify import make_plan
from lowrank_clone.plan.decoder import decoder_config
from lowrank_clone.plan.families import survey
from lowrank_clone.plan.layouts import LAYOUTS, layout_config
from lowrank_clone.plan.tiny import tiny_config
from lowrank_clone.run.families import COLUMNS, YES, quietly, to_markdown, try_family
from lowrank_clone.starts.calibration.foresee import can_calibrate

FAMILIES = Path(__file__).parents[2] / "docs" / "families.md"
# What is no plain yes.
LESS = {
    "llama": {},
    "recurrent_gemma": {"padding": "refused on the left"},
    "gemma4_text": {"calibrated": "alone fails with KeyError: 'sliding_attention'"},
    "jetmoe": {"taps": "6 of 14; without `mlp.input_linear`"},
}


@pytest.mark.parametrize("family", LESS)
def test_a_family_is_tried_in_every_column(family: str) -> None:
    with quietly(), warnings.catch_warnings():
        trial = try_family(survey(family))
    assert trial.cells.keys() == set(COLUMNS)
    for column, outcome in trial.cells.items():
        expected = LESS[family].get(column, YES)
        assert outcome == YES if expected == YES else expected in outcome
    (row,) = [line for line in FAMILIES.read_text(encoding="utf-8").splitlines() if line.startswith(f"| {family} ")]
    assert f"transformers {transformers.__version__}" not in FAMILIES.read_text(encoding="utf-8") or all(
        outcome in row for outcome in trial.cells.values()
    )


def test_a_refused_family_is_listed_with_its_reason() -> None:
    trial = try_family(survey("lfm2"))
    assert not trial.cells
    row = to_markdown([trial]).splitlines()[-1]
    assert row.startswith("| lfm2 | LiquidAI/LFM2-1.2B | `lfm2`: `model.layers.0.conv.conv.weight`")


@pytest.mark.parametrize(("family", "reason"), [("gemma4_text", "alone fails"), ("zaya", "another output alone")])
def test_what_can_not_be_calibrated_is_known_without_weights(family: str, reason: str) -> None:
    config = layout_config(family)
    assert reason in str(can_calibrate(make_plan(config, config.hidden_size // 2)))


def test_the_usual_can_be_calibrated() -> None:
    config = layout_config("qwen3_moe")
    assert can_calibrate(make_plan(config, config.hidden_size // 2)) is None


@pytest.mark.parametrize("family", LAYOUTS)
def test_a_layout_is_another_than_the_default(family: str) -> None:
    with quietly():
        config = layout_config(family)
    try:
        default = CONFIG_MAPPING[family]()
    except Exception:  # some have no default config
        return
    assert {key: getattr(config, key) for key in LAYOUTS[family].fields} == LAYOUTS[family].fields
    assert config.to_dict() != default.to_dict()


def test_a_tiny_config_keeps_each_kind_of_layer_once() -> None:
    config = layout_config("gemma4_text")
    tiny = tiny_config(config)
    # Twice where the last layers share the first ones' keys and values.
    assert tiny.layer_types == ["sliding_attention", "full_attention"] * 2 and tiny.num_kv_shared_layers == 2
    once = tiny_config(decoder_config(CONFIG_MAPPING["qwen3_next"]()))
    assert once.layer_types == ["linear_attention", "full_attention"]


def test_quiet_is_over_afterwards() -> None:
    before = transformers.logging.get_verbosity()
    with quietly():
        warnings.warn("not seen", stacklevel=1)
    assert transformers.logging.get_verbosity() == before

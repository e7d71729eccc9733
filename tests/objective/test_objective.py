"""The objective: ranges of its numbers, and the published code's."""

import pytest
from tiny import batch, tiny_model

from lowrank_clone import CloneModel, InputError, Objective


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", 0.0),
        ("temperature", 1e-30),
        ("temperature", float("nan")),
        ("temperature", 1e9),
        ("kl_weight", 1e300),
    ]
    + [(weight, -1.0) for weight in ("lm_weight", "kl_weight", "clone_weight")],
)
def test_a_number_out_of_its_range_is_refused(field: str, value: float) -> None:
    with pytest.raises(InputError, match=f"objective.{field}: got .* expected a number from"):
        Objective(**{field: value})


def test_the_published_kl_is_a_sum_over_positions_without_the_square_of_the_temperature() -> None:
    published = Objective.published(2048, clone_weight=0.5)
    assert published.kl_weight * published.temperature**2 == 2048
    assert (published.attn_out_tap, published.clone_weight, published.temperature) == ("teacher", 0.5, 40.0)
    assert Objective.published(512, temperature=8.0).kl_weight == 8.0


def test_terms_given_one_by_one_change_the_objective() -> None:
    given = Objective(temperature=2.0, clone_weight=0.7)
    whole = CloneModel(tiny_model("llama"), 16, objective=given)
    apart = CloneModel(tiny_model("llama"), 16, objective=Objective(temperature=9.0), temperature=2.0, clone_weight=0.7)
    assert whole.objective == apart.objective == given
    assert whole(batch()).loss.item() == apart(batch()).loss.item()
    with pytest.raises(InputError, match=r"`temprature`, which is no field .* did you mean `temperature`"):
        CloneModel(tiny_model("llama"), 16, temprature=2.0)


@pytest.mark.parametrize(
    ("field", "value"),
    [("temperature", wrong) for wrong in ("4", None, True, 1 + 2j, [1])]
    + [("lm_weight", "1"), ("kl_weight", None), ("clone_weight", True)]
    + [("clone_normalization", wrong) for wrong in ("foo", "Target", None, True)]
    + [("attn_out_tap", wrong) for wrong in ("foo", "Teacher", None)]
    + [("target_gradient", wrong) for wrong in ("no", "false", 0, None)],
)
def test_a_value_of_another_kind_is_refused(field: str, value: object) -> None:
    with pytest.raises(InputError, match=f"objective.{field}: got .* expected"):
        Objective(**{field: value})


@pytest.mark.parametrize("length", ["2048", None, 0, -5, 1.5, True])
def test_a_length_that_is_none_is_refused(length: object) -> None:
    with pytest.raises(InputError, match=r"sequence_length: got .* expected a whole number"):
        Objective.published(length)


def test_the_published_temperature_is_checked_before_it_divides() -> None:
    for wrong in (0, "a"):
        with pytest.raises(InputError, match=r"objective.temperature"):
            Objective.published(128, temperature=wrong)

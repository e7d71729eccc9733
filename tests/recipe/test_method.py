"""The recipe's method section: taps by name, ramps, switches, baselines, and what is refused."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pytest
import torch
from tiny import batch, tiny_config, tiny_model

from lowrank_clone import CloneArguments, CloneModel, CloneTrainer, InputError, Objective, make_plan
from lowrank_clone.recipe.method import calibration_batches, check_method, choose_taps, clone_settings
from lowrank_clone.recipe.schedule import MethodSchedule, kinds_at, value_at_step
from lowrank_clone.recipe.schema import CalibrationConfig, MethodConfig, Ramp, Switch, TapsConfig
from lowrank_clone.training.checkpoint import load_clone

PLAN = make_plan(tiny_config("llama"), 16)


def chosen(**taps) -> list[str]:
    keep = choose_taps(PLAN, MethodConfig(taps=TapsConfig(**taps)))
    return [tap.module for tap in PLAN.taps if keep(tap)]


def test_every_paper_tap_can_be_left_out_by_its_name() -> None:
    modules = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "gate": "gate_proj", "up": "up_proj"}
    modules |= {"attn_out": "o_proj", "ffn_out": "down_proj"}
    for name, module in modules.items():
        left = chosen(off=[name])
        assert len(left) == len(PLAN.taps) - 2
        assert not any(path.endswith(module) for path in left)


def test_taps_by_module_name_and_by_layer() -> None:
    assert len(chosen(off=["q_proj", "down_proj"])) == 10
    assert {path.split(".")[2] for path in chosen(layers=[1, 1])} == {"1"}


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (MethodConfig(taps=TapsConfig(off=["gaet"])), "method.taps.off: got `gaet`"),
        (MethodConfig(taps=TapsConfig(layers=[0, 2])), "method.taps.layers"),
        (MethodConfig(parameterization={"fnn": "dense"}), "expected one of attention"),
        (MethodConfig(parameterization={"ffn": Switch(kind="dense", from_step=10)}), "from_step: got 10"),
        (MethodConfig(baseline="scratch", start_from="runs/a"), "method.baseline"),
    ],
)
def test_refused(method: MethodConfig, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        check_method(PLAN, method, max_steps=10)
    assert "\n" not in str(caught.value)


def test_pca_with_a_tied_head_is_refused() -> None:
    plan = make_plan(tiny_config("llama", tie_word_embeddings=True), 16)
    with pytest.raises(InputError, match=r"method\.calibration\.basis: `pca` does not go with a tied head"):
        check_method(plan, MethodConfig(init="calibrated", calibration=CalibrationConfig(basis="pca")))
    shared = MethodConfig(init="calibrated", calibration=CalibrationConfig(basis="pca"), head_factor="embedding")
    with pytest.raises(InputError, match=r"method\.calibration\.basis: `pca` does not go with a tied head"):
        check_method(PLAN, shared)


def test_a_ramp_beyond_the_range_is_refused() -> None:
    with pytest.raises(ValueError, match=r"method.temperature: got 0, expected a number from"):
        MethodConfig(temperature=Ramp(start=40.0, end=0.0))


def test_ramp_is_linear_over_the_steps() -> None:
    assert [value_at_step(Ramp(start=40.0, end=0.0), step, 5) for step in range(5)] == [40.0, 30.0, 20.0, 10.0, 0.0]
    assert value_at_step(7.0, 3, 5) == 7.0


def test_switches_by_step() -> None:
    method = MethodConfig(parameterization={"ffn": Switch(kind="dense", from_step=2), "attention": "core"})
    assert kinds_at(method, 1) == {"ffn": "projected", "attention": "core"}
    assert kinds_at(method, 2) == {"ffn": "dense", "attention": "core"}


def test_baselines_turn_terms_off() -> None:
    scratch = clone_settings(PLAN, MethodConfig(baseline="scratch"))["objective"]
    assert (scratch.kl_weight, scratch.clone_weight) == (0.0, 0.0)
    assert clone_settings(PLAN, MethodConfig(baseline="logit_kd"))["objective"].kl_weight == 1.0
    assert set(clone_settings(PLAN, MethodConfig(baseline="channels_dense"))["parameterization"].values()) == {"dense"}


def test_calibration_takes_blocks_without_padding_first() -> None:
    rows = [{"input_ids": torch.full((4,), i)} for i in range(5)]
    rows[0]["attention_mask"] = torch.tensor([1, 1, 0, 0])
    method = MethodConfig(calibration=CalibrationConfig(tokens=8))
    assert [int(row[0]) for row in torch.cat(calibration_batches(rows, method))] == [1, 2]
    method = MethodConfig(calibration=CalibrationConfig(tokens=100))
    assert [int(row[0]) for row in torch.cat(calibration_batches(rows, method))] == [1, 2, 3, 4, 0]


def test_calibration_batches_hold_the_asked_tokens() -> None:
    blocks = datasets.Dataset.from_dict({"input_ids": batch(20).tolist()})
    method = MethodConfig(calibration=CalibrationConfig(tokens=60))
    got = torch.cat(calibration_batches(blocks, method))
    assert got.shape == (5, 12)
    assert torch.equal(got, batch(20)[:5])


def train(folder: Path, steps: int, resume: Path | None = None) -> tuple[CloneModel, list[float]]:
    method = MethodConfig(
        temperature=Ramp(start=8.0, end=1.0),
        clone_normalization="target",
        parameterization={"ffn": Switch(kind="dense", from_step=2), "attention": Switch(kind="core", from_step=3)},
    )
    clone = CloneModel(tiny_model("llama"), 16, **clone_settings(PLAN, method))
    blocks = datasets.Dataset.from_dict({"input_ids": batch(64).tolist()})
    arguments = CloneArguments(
        output_dir=str(folder),
        per_device_train_batch_size=4,
        max_steps=6,
        save_steps=steps,
        logging_steps=1,
        learning_rate=1e-3,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    trainer = CloneTrainer(clone, arguments, train_dataset=blocks, callbacks=[MethodSchedule(method)])
    trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    return clone, [line["loss"] for line in trainer.state.log_history if "loss" in line]


def test_training_through_switches_resumes_to_the_bit(tmp_path: Path) -> None:
    whole, losses = train(tmp_path / "a", steps=4)
    assert whole.kinds == {"attention": "core", "ffn": "dense", "embedding": "projected"} | (
        {"head": "projected"} if "head" in whole.kinds else {}
    )
    assert whole.objective.temperature == 1.0
    resumed, again = train(tmp_path / "b", steps=100, resume=tmp_path / "a" / "checkpoint-4")
    assert again == losses
    assert all(torch.equal(whole.factors[name], resumed.factors[name]) for name in whole.factors)


def test_a_checkpoint_can_start_another_run_of_the_same_plan(tmp_path: Path) -> None:
    whole, _ = train(tmp_path / "a", steps=4)
    other = CloneModel(tiny_model("llama"), 16)
    load_clone(other, tmp_path / "a" / "checkpoint-6")
    assert other.kinds == whole.kinds
    with torch.no_grad():
        ours, theirs = (model.student(input_ids=batch()).logits for model in (other, whole))
    assert torch.equal(ours, theirs)


def schedule_on(clone: CloneModel, method: MethodConfig, step: int, steps: int) -> None:
    state = SimpleNamespace(global_step=step, max_steps=steps)
    MethodSchedule(method).on_step_begin(None, state, None, model=clone, optimizer=None)


def test_schedule_leaves_the_scratch_baseline_without_kl() -> None:
    clone = SimpleNamespace(objective=Objective(kl_weight=0.0), kinds={})
    schedule_on(clone, MethodConfig(baseline="scratch", kl_weight=Ramp(start=1.0, end=2.0)), 0, 5)
    assert clone.objective.kl_weight == 0.0


def test_schedule_sets_ramps_and_nothing_else_of_the_objective() -> None:
    objective = Objective(temperature=3.0, kl_weight=0.7, clone_weight=0.1)
    clone = SimpleNamespace(objective=objective, kinds={})
    schedule_on(clone, MethodConfig(), 2, 5)
    assert clone.objective == objective
    schedule_on(clone, MethodConfig(kl_weight=Ramp(start=1.0, end=2.0)), 2, 5)
    assert clone.objective == Objective(temperature=3.0, kl_weight=1.5, clone_weight=0.1)


def make_trainer(folder: Path, clone: CloneModel, method: MethodConfig, **options: Any) -> CloneTrainer:
    blocks = datasets.Dataset.from_dict({"input_ids": batch(8).tolist()})
    options = {"per_device_train_batch_size": 4, "save_strategy": "no", "disable_tqdm": True, **options}
    arguments = CloneArguments(output_dir=str(folder), report_to="none", dataloader_pin_memory=False, **options)
    callbacks = [MethodSchedule(method)]
    return CloneTrainer(clone, arguments, train_dataset=blocks, eval_dataset=blocks, callbacks=callbacks)


def test_a_clone_that_is_dense_where_the_recipe_begins_projected_is_refused_before_a_step(tmp_path: Path) -> None:
    def begin(method: MethodConfig) -> None:
        clone = CloneModel(tiny_model("llama"), 16, parameterization={"ffn": "dense", "attention": "core"})
        before = {name: p.detach().clone() for name, p in clone.factors.items()}
        trainer = make_trainer(tmp_path, clone, method, max_steps=3, eval_strategy="no")
        try:
            trainer.train()
        finally:
            assert trainer.state.global_step in (0, 3)
            same = [torch.equal(before[name], p) for name, p in clone.factors.items()]
            assert all(same) == (trainer.state.global_step == 0)

    with pytest.raises(InputError, match="its ffn matrices are `dense`, this run's start `projected`"):
        begin(MethodConfig(parameterization={"ffn": Switch(kind="core", from_step=2)}))
    begin(MethodConfig(parameterization={"ffn": Switch(kind="core", from_step=0)}))
    begin(MethodConfig())  # it says nothing of these groups


@pytest.mark.parametrize("step", [4, 5])
def test_a_switch_after_the_last_step_is_refused_where_only_epochs_are_known(tmp_path: Path, step: int) -> None:
    method = MethodConfig(parameterization={"ffn": Switch(kind="dense", from_step=step)})
    trainer = make_trainer(tmp_path, CloneModel(tiny_model("llama"), 16), method, num_train_epochs=2)
    with pytest.raises(InputError, match=f"from_step: got {step}, expected less than the run's 4 steps"):
        trainer.train()


def test_an_evaluation_before_the_first_step_of_a_resumed_run_has_the_ramp_of_the_last_one(tmp_path: Path) -> None:
    clone = SimpleNamespace(objective=Objective(), kinds={})
    schedule = MethodSchedule(MethodConfig(temperature=Ramp(start=5.0, end=1.0)))
    for step, expected in ((0, 5.0), (1, 5.0), (3, 3.0)):
        schedule.on_train_begin(None, SimpleNamespace(global_step=step, max_steps=5), None, model=clone)
        assert clone.objective.temperature == expected

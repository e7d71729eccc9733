"""Every field of a recipe with another value on `--resume`: free, said, refused unless allowed, or refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from commands import contents, lrc, refused

from lowrank_clone.errors import InputError
from lowrank_clone.recipe.fields import training_fields
from lowrank_clone.recipe.load import load_recipe
from lowrank_clone.run.job import check
from lowrank_clone.run.results import read_results
from lowrank_clone.run.resume import OF_THE_DATA, RULES, rule_of

# Other values than those of the run, for every field beside the Trainer's own, and for those of the Trainer's whose
# other value has to be chosen.
OTHER: dict[str, Any] = {
    "teacher.model": "TEACHER",  # the same one at another place
    "teacher.revision": "main",
    "teacher.dtype": "bfloat16",
    "teacher.attn_implementation": "eager",
    "teacher.dequantize": "true",
    "student.hidden_size": 12,
    "student.dtype": "bfloat16",
    "student.rms_norm_eps": 1e-5,
    "method.temperature": 3.0,
    "method.lm_weight": 0.5,
    "method.kl_weight": "{start: 1.0, end: 0.5}",
    "method.clone_weight": 0.9,
    "method.clone_normalization": "target",
    "method.attn_out_tap": "teacher",
    "method.target_gradient": "false",
    "method.taps": "{off: [q]}",
    "method.init": "channels",
    "method.calibration.tokens": 100,
    "method.factor_std": 0.5,
    "method.parameterization": "{ffn: dense}",
    "method.head_factor": "embedding",
    "method.baseline": "logit_kd",
    "method.execution": "interleaved",
    "method.compile": "true",
    "data.sources": "TEXT",  # the same one at another place
    "data.validation": 0.3,
    "data.max_validation_blocks": 2,
    "data.sequence_length": 16,
    "data.seed": 5,
    "data.num_proc": 1,
    "training.total_tokens": 192,
    "training.max_steps": 3,
    "training.num_train_epochs": 2,
    "training.optim": "adafactor",
    "training.learning_rate": 5e-4,
    "training.lr_scheduler_type": "cosine",
    "training.lr_scheduler_kwargs": "{}",
    "training.warmup_steps": 0,
    "training.eval_strategy": "steps",
    "training.save_strategy": "epoch",
    "training.logging_strategy": "epoch",
    "training.run_name": "other",
    "training.on_spike": "stop",
}


def another(name: str, hint: Any, default: Any) -> object:
    """A value that a field of the Trainer's takes and does not have by default."""
    options = [option for part in (hint, *getattr(hint, "__args__", ())) for option in getattr(part, "__args__", ())]
    words = [option for option in (*getattr(hint, "__args__", ()), *options) if isinstance(option, str)]
    kinds = {part for part in (hint, *getattr(hint, "__args__", ())) if isinstance(part, type)}
    if words:
        return next(word for word in words if word != default)
    if bool in kinds:
        return "false" if default is True else "true"
    if kinds & {int, float}:
        number = default if isinstance(default, (int, float)) else 0
        return number + 1 if number >= 1 or float not in kinds else number / 2 + 0.125
    return "{}" if dict in kinds else "other"


FIELDS = [
    *OTHER,
    *(f"training.{name}" for name in training_fields() if f"training.{name}" not in OTHER and name != "output_dir"),
]


@pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning")
@pytest.mark.parametrize("key", FIELDS)
def test_every_field(key: str, finished: Path, teacher: Path, text: Path, tmp_path: Path) -> None:
    """No field ends in a traceback, and each is free, said or refused as the table says."""
    field = training_fields().get(key.removeprefix("training."))
    value = OTHER[key] if key in OTHER or field is None else another(key, field.hint, field.default)
    override = f"{key}={value}"
    if value in ("TEACHER", "TEXT"):
        link = tmp_path / "link"
        link.symlink_to(teacher if value == "TEACHER" else text)
        override = f"teacher.model={link}" if value == "TEACHER" else f"data.sources=[{{path: {link}}}]"
    file, rule = str(finished.parent / "recipe.yaml"), rule_of(key)[0]

    def remarks(*allow: str) -> str:
        return "\n".join(check(load_recipe(file, [override]), resume=True, allow=allow).remarks)

    try:
        said = remarks()
    except InputError as error:
        message = str(error)
        shorter = key.split(".")[1].removeprefix("dataloader_").removeprefix("hidden_")
        assert shorter in message or "width" in message
        if "the run to resume has" in message:
            assert rule in ("asked", "refused")
            section = "data" if key in OF_THE_DATA else key.split(".")[0]
            assert (f"give --allow {section}" in message) == (rule == "asked")
            if rule == "asked":
                try:
                    assert f"{key}: got" in remarks(section)
                except InputError as fit:  # the checkpoint itself does not fit: its factors are other ones
                    assert str(finished) in str(fit) or "parameterization" in str(fit)
            else:
                with pytest.raises(InputError, match="the run to resume has"):
                    remarks("method", "data", "training")
        return
    shown = "method.calibration" if key.startswith("method.calibration") else key
    changed, rule = f"{shown}: got" in said, rule_of(shown)[0]
    assert changed or rule == "free" or key in SAME, said
    assert not changed or rule == "said"


# What a finished run of this recipe has already by another way, so that nothing changes.
SAME = ("training.num_train_epochs",)


def test_what_is_allowed_happens_and_is_recorded(recipe: Path, run: Path, capsys) -> None:
    options = ("train", recipe, "--resume", "training.max_steps=4", "method.clone_weight=0.9")
    before = contents(run)
    message = refused(capsys, *options)
    assert "method.clone_weight: got 0.9, the run to resume has 0.2" in message and "give --allow method" in message
    assert contents(run) == before
    assert "without --resume" in refused(capsys, "train", recipe, "--allow", "method")
    assert lrc(*options, "--allow", "method") == 0
    results = read_results(run)
    assert results is not None and list(results.changes) == [2]
    assert any("method.clone_weight: got 0.9" in line for line in results.changes[2])
    assert any("training.max_steps: got 4" in line for line in results.changes[2])


def test_another_learning_rate_is_said_and_used(recipe: Path, run: Path, caplog) -> None:
    flat = ("training.lr_scheduler_type=constant", "training.max_steps=4", "training.learning_rate=5e-4")
    assert lrc("train", recipe, "--resume", *flat) == 0
    assert "training.learning_rate: got 0.0005, the run to resume has 0.001" in caplog.text
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["learning_rate"] for line in lines if line["step"] > 2 and "lm" in line] == [5e-4, 5e-4]


def test_a_step_of_as_many_sequences_goes_on(recipe: Path, run: Path, caplog, capsys) -> None:
    more = ("training.max_steps=3", "--resume")
    assert "--allow training" in refused(capsys, "train", recipe, *more, "training.per_device_train_batch_size=1")
    halves = ("training.per_device_train_batch_size=1", "training.gradient_accumulation_steps=2")
    assert lrc("train", recipe, *more, *halves) == 0
    assert "a step has as many sequences" in caplog.text


def test_every_rule_is_one() -> None:
    assert {rule for rule, _ in RULES.values()} == {"free", "said", "asked", "refused"}

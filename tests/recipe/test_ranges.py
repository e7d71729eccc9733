"""Every number of a recipe has a range, and every odd input one line that names its key."""

import dataclasses
import os
import typing
from pathlib import Path

import pytest
from transformers import Gemma2Config, LlamaConfig, TrainingArguments

from lowrank_clone.data.config import SourceConfig
from lowrank_clone.errors import InputError
from lowrank_clone.ranges import Range
from lowrank_clone.recipe.fields import training_fields
from lowrank_clone.recipe.load import load_recipe, shipped_recipes
from lowrank_clone.recipe.student import check_student_overrides
from lowrank_clone.recipe.training import RANGES, check_training_argument
from lowrank_clone.training.arguments import CloneArguments
from lowrank_clone.training.options import OPTIONS

MINIMAL = (
    "teacher: {model: some/model}\nstudent: {hidden_size: 64}\ndata: {sources: [text.txt], sequence_length: 128}\n"
)


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(MINIMAL)
    return path


def refused(path: Path | str, *overrides: str) -> str:
    with pytest.raises(InputError) as caught:
        load_recipe(str(path), overrides)
    message = str(caught.value)
    assert message.isprintable() and len(message) <= 1000
    return message


# --- the fields of TrainingArguments, read without importing them -----------------------------------------------------


@pytest.mark.parametrize("field", dataclasses.fields(CloneArguments), ids=lambda field: field.name)
def test_fields_are_read_from_the_source_as_they_are(field: dataclasses.Field) -> None:
    found = training_fields()[field.name]
    if field.default is not dataclasses.MISSING and isinstance(field.default, bool | int | float | str):
        assert found.default == getattr(field.default, "value", field.default) or field.name == "optim"


def test_no_field_is_missing_or_invented() -> None:
    assert set(training_fields()) == {field.name for field in dataclasses.fields(CloneArguments)}


def is_number(hint: object) -> bool:
    options = typing.get_args(hint) or (hint,)
    return (int in options or float in options) and str not in options


def test_every_number_has_a_range() -> None:
    numbers = {name for name, field in training_fields().items() if is_number(field.hint)}
    assert numbers == set(RANGES)
    assert numbers >= {field.name for field in dataclasses.fields(TrainingArguments) if field.type in ("int", "float")}


@pytest.mark.parametrize("name", RANGES)
def test_ranges_of_training(name: str) -> None:
    limit = RANGES[name]
    whole = training_fields()[name].hint is int or limit.whole
    beyond = [limit.high * 2 + 1, float("inf"), float("nan"), -7]
    beyond += [limit.low] if limit.above else [limit.low - 1] if limit.low - 1 not in limit.also else []
    beyond += [1.5] if whole else []
    for value in beyond:
        kind = int(value) if whole and value == value and abs(value) != float("inf") and value == int(value) else value
        with pytest.raises(InputError, match=rf"training\.{name}: got .*, expected "):
            check_training_argument(name, kind)
    assert limit.holds(limit.high)
    if OPTIONS[name] is None:  # not one that a clone has no use for, whatever its value
        check_training_argument(name, int(limit.high) if whole else limit.high)
    default = training_fields()[name].default
    if default != 0 or not limit.above:
        check_training_argument(name, default)


# --- numbers ----------------------------------------------------------------------------------------------------------

NUMBERS = """
student.hidden_size: 1 0 -8 1.5 1e9 true null many [64] {a: 1}
method.temperature: 1e-30 0 -1 1e9 .inf .nan null warm {start: 0, end: 1} {start: 1, end: 1e9} {start: 1}
method.kl_weight: 1e300 -1 .inf .nan null {start: -1, end: 1} [1]
method.lm_weight: 1e300 -1 .inf null true
method.clone_weight: 1e300 -1 .nan null one
method.factor_std: 0 -1 .inf 1e9 1e-300 null
method.calibration.tokens: 0 -1 1.5 1e12 null
method.calibration: 7 none [1]
method.taps.layers: [1] [1,2,3] [-1,2] [a,b] 3
method.taps.off: q 3 [1]
method.parameterization: {ffn: {kind: dense, from_step: -1}} {ffn: {kind: dense, from_step: 1.5}} {ffn: dens} densee 3
method.compile: yes 1 null
method.start_from: 3 [a]
data.sequence_length: 1 0 -1 1e9 10000000000 1.5 null
data.validation: 0 1 -0.5 .nan .inf 2 null
data.max_validation_blocks: 0 -1 1.5 1e300
data.num_proc: 0 -1 1000000 1.5
data.seed: -1 1.5 null 99999999999999999999
data.on_error: 3 ignore null
data.sources.0.weight: 0 -1 .inf 1e300 null heavy
data.sources.0.max_documents: 0 -1 1.5
data.sources.0.text_column: 3 null [a] a. .a a..b
data.sources.0.special_tokens: 1 yes
data.sources.0.chat_column: a. [a]
data.sources.0.revision: 3 true
data.sources.0.tokens: 0 -1 1.5 .inf many
data.sources.0.repeat: 2 many
data.sources.0.loss_on: assistant user null
data.sources.0.filter: 3 [a] {a: 3} {a: {}} {a: {least: 3}} {a: {min: null}} {a: {min: .nan}} {a: {min: [1]}}
data.sources.0.filter: {a: {in: 3}} {a: {in: []}} {a: {in: [null]}} {a: {equals: null}} {a: {min: 3, max: 2}}
data.sources.0.filter: {a: {min: 3, max: b}} {a..b: {min: 1}} {"": {min: 1}} {a: {min: true}} null
data.packing: best 3 null
data.document_mask: 1 null
data.deduplicate: near 1 null
data.repeat: 2 null
data.shards: 3 [a]
data.sources.0.path: 3 null [a] {a: b}
training.total_tokens: 0 -1 1.5 1e300 .inf many
training.learning_rate: -1 1e9 .inf .nan null fast true
training.num_train_epochs: 0 -1 .inf null
training.max_steps: 0 -5 1.5 99999999999999999999
training.warmup_steps: .5 -1 1.5 .inf
training.max_grad_norm: -1 .inf .nan
training.seed: -1 1.5 99999999999999999999
training.adam_beta1: 1 -0.1 2 .nan
training.adam_beta2: 1 -0.1 2
training.adam_epsilon: 0 -1 .inf
training.muon_momentum: 1 -1
training.weight_decay: -1 1e9
training.logging_steps: 0 -1 1.5
training.eval_steps: 0 -1 1.5
training.save_steps: 0 -1 1.5
training.save_total_limit: 0 -1 1.5
training.dataloader_num_workers: -1 100000
training.dataloader_prefetch_factor: 0 -1
training.gradient_accumulation_steps: 0 -1 1.5 null
training.per_device_train_batch_size: 0 -1 1.5 1e9 null
training.per_device_eval_batch_size: 0 -1
training.eval_delay: -1 .inf
training.label_smoothing_factor: -1 2
training.bf16: yes 1 null
training.output_dir: 3 [a]
training.lr_scheduler_type: linaer null 3
training.eval_strategy: 3 sometimes true
training.optim: adamw 3
training.log_taps: maybe
teacher.dtype: float16 3 null
teacher.model: 3 null [a] {}
"""
CASES = [
    (key, value)
    for line in NUMBERS.split("\n")
    if line
    for key, _, values in [line.partition(": ")]
    for value in values.replace("}, {", "},{").replace(", ", ",\0").replace(": ", ":\0").split(" ")
]


@pytest.mark.parametrize(("key", "value"), [(key, value.replace("\0", " ")) for key, value in CASES])
def test_a_value_that_no_run_can_mean(recipe_file: Path, key: str, value: str) -> None:
    message = refused(recipe_file, f"{key}={value}")
    assert key in message and ("expected" in message or "did you mean" in message), message


@pytest.mark.parametrize("name", shipped_recipes())
def test_shipped_recipes_are_within_their_ranges(name: str) -> None:
    load_recipe(name)


def test_ranges_say_themselves() -> None:
    assert str(Range(0, 10)) == "a number from 0 to 10"
    assert str(Range(0, 0.5, above=True)) == "a number above 0 and up to 0.5"
    assert str(Range(1, 1e6, whole=True, also=(-1,))) == "a whole number from 1 to 1,000,000 or -1"
    assert str(Range(1, 9, whole=True, share=0.3)) == (
        "a whole number from 1 to 9, or a share of the run above 0 and below 0.3"
    )
    assert [Range(1, 9, whole=True, share=0.3).holds(value) for value in (0.1, 0.3, 1, 1.5, 9)] == [1, 0, 1, 0, 1]


# --- the model's config -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "good"),
    [
        ({"rms_norm_eps": -1}, False),
        ({"rms_norm_eps": 0}, False),
        ({"rms_norm_eps": float("inf")}, False),
        ({"rms_norm_eps": 1e-5}, True),
        ({"initializer_range": -0.1}, False),
        ({"attention_dropout": 1.0}, False),
        ({"attention_dropout": -0.1}, False),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": -1.0}}, False),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": float("nan")}}, False),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}, True),
        ({"max_position_embeddings": -1}, False),
        ({"pad_token_id": -2}, False),
        ({"pad_token_id": 0}, True),
        ({"bos_token_id": 0}, True),
        ({"final_logit_softcapping": -30.0}, False),
        ({"final_logit_softcapping": None}, True),
        ({"query_pre_attn_scalar": 0}, True),
    ],
)
def test_numbers_of_the_student_s_config(override: dict, good: bool) -> None:
    config = (
        Gemma2Config().to_dict() if "final" in str(override) or "query" in str(override) else LlamaConfig().to_dict()
    )
    if good:
        check_student_overrides(override, config)
        return
    with pytest.raises(InputError, match=rf"student\.{next(iter(override))}.*: got .*, expected "):
        check_student_overrides(override, config)


# --- recipes that are hardly one --------------------------------------------------------------------------------------


def bomb() -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        (bomb(), "more than 100,000 values"),
        ("a: " + "[" * 10_000 + "]" * 10_000, "nested too deeply"),
        ("a: " + "{a: " * 100 + "1" + "}" * 100, "nested too deeply"),
        ("student: {hidden_size: " + "9" * 5000 + "}", "expected"),
        ("a: &a {b: *a}", "an alias stands inside what it names"),
        ('teacher: {model: "a\\0b"}', "teacher.model: got 'a\\x00b' (str), expected text without NUL"),
        ('teacher: {model: "\\ud800"}', "teacher.model: "),
        ("teacher: {model: a\n  b: c", "expected valid YAML"),
        ("teacher:\n\tmodel: a", "expected valid YAML"),
        ("%TAG ! tag:x,2000:\n---\nteacher: !x {}", "expected"),
        ("base: nowhere.yaml", "no such file or shipped recipe"),
        ("base: .", "it is a folder"),
        ("base: [a]", "base: got ['a'] (list), expected the name or path of another recipe"),
        ('base: "a\\0b"', "base: got"),
        ("'\x1b[31mred': 1", "expected valid YAML"),
        ('"\\x1b[31mred": 1', "unknown key `\\x1b[31mred`"),
        (f"{'k' * 1000}: 1", "unknown key `kkkk"),
        ("teacher: {model: " + "m" * 100_000 + ", dtype: x}", "teacher.dtype: "),
        (MINIMAL.replace("64", "9" * 400), "student.hidden_size: "),
    ],
)
def test_recipes_that_are_hardly_one(tmp_path: Path, text: str, part: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    assert part in refused(path)


@pytest.mark.parametrize("text", ["\ufeff" + MINIMAL, MINIMAL.replace("\n", "\r\n"), MINIMAL + "\n\n...\n"])
def test_marks_of_other_editors_do_no_harm(tmp_path: Path, text: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(text.encode())
    assert load_recipe(str(path)).student.hidden_size == 64


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "zero.yaml").symlink_to("/dev/zero")
    (tmp_path / "loop.yaml").symlink_to(tmp_path / "loop.yaml")
    with open(tmp_path / "large.yaml", "wb") as large:
        large.truncate(100 * 2**20)
    assert "no regular file" in refused(tmp_path / "pipe.yaml")
    assert "no regular file" in refused(tmp_path / "zero.yaml")
    assert "cannot be read" in refused(tmp_path / "loop.yaml")
    assert "has 104,857,600 bytes" in refused(tmp_path / "large.yaml")
    assert "no such file" in refused("x" * 5000) or "cannot be read" in refused("x" * 5000)
    assert "no such file" in refused("new\nline\x1b[0m.yaml")


# --- overrides --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("", "expected `section.key=value`"),
        ("=", "expected `section.key=value`"),
        ("=x", "expected `section.key=value`"),
        ("a.b", "expected `section.key=value`"),
        (".=x", "expected `section.key=value`"),
        ("a..b=x", "expected `section.key=value`"),
        ("training.learning_rate", "without spaces, as in"),
        ("data.sources.5.path=x", "`data.sources` is ['text.txt'] (list), which has no `5`"),
        ("data.sources.-1.path=x", "which has no `-1`"),
        ("data.sources.x=1", "which has no `x`"),
        ("data.sources.0.pth=x", "unknown key `data.sources.0.pth`; did you mean `data.sources.0.path`?"),
        ("method.temperature={star: 1, end: 2}", "did you mean `method.temperature.start`?"),
        ("method.taps.of=[q]", "did you mean `method.taps.off`?"),
        ("method.calibration.token=3", "did you mean `method.calibration.tokens`?"),
        ("data.validation=[{pth: a}]", "did you mean `data.validation.0.path`?"),
        ("method.temperature=" + "9" * 400, "method.temperature: got "),
        ("training.max_steps=" + "9" * 400, "training.max_steps: got "),
        ("training.learning_rate=" + "9" * 400, "training.learning_rate: got "),
        ("data.sources.0=", "data.sources.0: got null"),
        ("data.sources=", "data.sources: got null"),
        ("data=", "data.sources: missing"),
        ("teacher=", "teacher.model: missing"),
        ("teacher.model.x=1", "`teacher.model` is 'some/model' (str), which has no `x`"),
        ("training.learning_rate=[1", "expected valid YAML"),
        ("training.lr_scheduler_kwargs=3", "training.lr_scheduler_kwargs: got 3 (int), expected a mapping or text"),
        ("training.\u200blearning_rate=1", "did you mean `training.learning_rate`?"),
        ("base=lrc-1.5b", "unknown key `base`"),
        ("training.learning_rate=" + "9" * 5000, "expected"),
        ("x" * 5000 + "=1", "unknown key `xxx"),
    ],
)
def test_odd_overrides(recipe_file: Path, override: str, part: str) -> None:
    assert part in refused(recipe_file, override)


def test_sources_in_short_can_be_overridden_by_part(recipe_file: Path, tmp_path: Path) -> None:
    source = load_recipe(str(recipe_file), ["data.sources.0.weight=2", "data.sources.0.text_column=body"]).data.sources
    assert [(one.path, one.weight, one.text_column) for one in source] == [("text.txt", 2.0, "body")]
    shorter = tmp_path / "shorter.yaml"
    shorter.write_text(MINIMAL.replace("[text.txt]", "text.txt"))
    assert load_recipe(str(shorter), ["data.sources.0.weight=2"]).data.sources == [
        SourceConfig(path="text.txt", weight=2.0)
    ]
    assert load_recipe(str(recipe_file), ["data.sources.0=other.txt"]).data.sources[0].path == "other.txt"
    assert load_recipe(str(recipe_file), [" training.learning_rate =1e-4"]).training.arguments == {
        "learning_rate": 1e-4
    }

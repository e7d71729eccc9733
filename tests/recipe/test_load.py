"""Recipes: what ships loads, what is written reads back equal, and each mistake is one line that names its mend."""

import dataclasses
from pathlib import Path

import pytest
from transformers import LlamaConfig

from lowrank_clone.errors import InputError
from lowrank_clone.recipe.load import dump_recipe, load_recipe, parse_recipe, shipped_recipes
from lowrank_clone.recipe.messages import ALIASES
from lowrank_clone.recipe.schema import Recipe, StudentConfig
from lowrank_clone.recipe.student import check_student_overrides
from lowrank_clone.recipe.training import check_training_argument, training_arguments
from lowrank_clone.training.arguments import CloneArguments

MINIMAL = """\
teacher: {model: some/model}
student: {hidden_size: 64}
data: {sources: [text.txt], sequence_length: 128}
"""


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(MINIMAL)
    return path


def error_of(path: Path | str, *overrides: str) -> str:
    """The message of the error that loading gives; one line by definition."""
    with pytest.raises(InputError) as caught:
        load_recipe(str(path), overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


# --- shipped recipes --------------------------------------------------------------------------------------------------


def test_shipped_names() -> None:
    assert shipped_recipes() == [
        "calibrated-1.5b",
        "demo",
        "dense-1.5b",
        "lrc-1.5b",
        "lrc-1.5b-mix-1.0",
        "lrc-1.7b",
        "lrc-2.7b-b",
        "lrc-4b",
        "red-1.5b",
    ]


@pytest.mark.parametrize("name", shipped_recipes())
def test_shipped_recipe_loads_and_makes_training_arguments(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    arguments = training_arguments(recipe, world_size=8) | {"output_dir": str(tmp_path)}
    assert CloneArguments(**arguments).max_steps > 0


@pytest.mark.parametrize(
    ("name", "hidden_size", "tokens_per_step", "clone_weight", "learning_rate"),
    [
        ("lrc-1.5b", 1536, 49_152, 0.2, 1e-4),
        ("lrc-1.7b", 1200, 32_768, 0.5, 6.7e-5),
        ("lrc-4b", 2048, 32_768, 0.5, 1e-4),
    ],
)
def test_paper_values(
    name: str, hidden_size: int, tokens_per_step: int, clone_weight: float, learning_rate: float
) -> None:
    recipe = load_recipe(name)
    arguments = training_arguments(recipe, world_size=8)
    length = recipe.data.sequence_length
    assert recipe.student.hidden_size == hidden_size
    assert recipe.method.clone_weight == clone_weight
    assert recipe.method.kl_weight == pytest.approx(length / recipe.method.temperature**2)
    assert arguments["learning_rate"] == learning_rate
    assert 8 * arguments["per_device_train_batch_size"] * length == tokens_per_step
    assert arguments["max_steps"] == -(-recipe.training.total_tokens // tokens_per_step)


@pytest.mark.parametrize(
    ("overrides", "muon"),
    [
        (["method.init=calibrated"], True),
        (["method.init=calibrated", "training.optim=adamw_torch"], False),
        (["method.init=calibrated", "training.muon=false"], False),
        (["method.init=calibrated", "method.start_from=runs/a"], False),
        (["method.init=channels"], False),
        (["method.init=channels", "training.muon=true"], True),
    ],
)
def test_a_calibrated_start_is_trained_with_muon_unless_told_otherwise(
    recipe_file: Path, overrides: list[str], muon: bool
) -> None:
    assert training_arguments(load_recipe(str(recipe_file), overrides)).get("muon", False) == muon


# --- recipes on recipes -----------------------------------------------------------------------------------------------


def test_a_recipe_lies_over_its_base(tmp_path: Path) -> None:
    (tmp_path / "first.yaml").write_text(
        "base: lrc-1.5b\nmethod: {clone_weight: 0.5}\ndata: {sources: [{path: a.txt}]}\n"
    )
    (tmp_path / "second.yaml").write_text("base: first.yaml\nmethod: {temperature: 1.0}\n")
    recipe, paper = load_recipe(str(tmp_path / "second.yaml"), ["method.lm_weight=0.5"]), load_recipe("lrc-1.5b")
    assert (recipe.method.temperature, recipe.method.clone_weight, recipe.method.lm_weight) == (1.0, 0.5, 0.5)
    assert recipe.method.kl_weight == paper.method.kl_weight and recipe.training == paper.training
    assert [source.path for source in recipe.data.sources] == ["a.txt"]
    assert recipe.data.sequence_length == paper.data.sequence_length


@pytest.mark.parametrize(
    ("base", "message"),
    [
        ("itself.yaml", "rests on this recipe itself"),
        ("other.yaml", "rests on this recipe itself"),
        ("3", "expected the name or path of another recipe"),
        ("lrc-1.4b", "no such file or shipped recipe"),
    ],
)
def test_bases_that_can_not_be_had(base: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "itself.yaml").write_text(f"base: {base}\n")
    (tmp_path / "other.yaml").write_text("base: itself.yaml\n")
    with pytest.raises(InputError, match=message):
        load_recipe(str(tmp_path / "itself.yaml"))


def test_red_and_lrc_differ_in_start_temperature_and_kl_weight() -> None:
    red, lrc = load_recipe("red-1.5b"), load_recipe("lrc-1.5b")
    assert (red.method.init, red.method.temperature, red.method.kl_weight) == ("channels", 1.0, 1.0)
    assert (lrc.method.init, lrc.method.temperature) == ("random", 40.0)
    assert red.data == lrc.data and red.teacher == lrc.teacher and red.student == lrc.student


# --- reading ----------------------------------------------------------------------------------------------------------


def test_defaults(recipe_file: Path) -> None:
    recipe = load_recipe(str(recipe_file))
    assert recipe.teacher.dtype == "auto"
    assert recipe.method.temperature == 40.0
    assert recipe.training.arguments == {}
    assert recipe.data.sources[0].path == "text.txt"


def test_recipes_are_frozen(recipe_file: Path) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        load_recipe(str(recipe_file)).method.temperature = 1.0


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3e-4", 3e-4),
        ("1E+2", 100.0),
        ("-2.5e3", -2500.0),
        (".5", 0.5),
        ("1_000", 1000),
        ("007", "007"),
        ("no", "no"),
        ("true", True),
        ("null", None),
        ("", None),
        ("2024-01-01", "2024-01-01"),
        ("1:30", "1:30"),
        ("[1, 2e0]", [1, 2.0]),
    ],
)
def test_scalars(recipe_file: Path, text: str, value: object) -> None:
    got = load_recipe(str(recipe_file), [f"student.some_field={text}"]).student.overrides["some_field"]
    assert got == value
    assert type(got) is type(value)


def test_overrides_reach_every_section(recipe_file: Path) -> None:
    recipe = load_recipe(
        str(recipe_file),
        [
            "teacher.dtype=bfloat16",
            "student.rms_norm_eps=1e-5",
            "method.temperature=1",
            "data.sequence_length=64",
            "training.learning_rate=3e-4",
            "training.lr_scheduler_kwargs.min_lr=1e-6",
            "training.eval_strategy=no",
        ],
    )
    assert recipe.teacher.dtype == "bfloat16"
    assert recipe.student.overrides == {"rms_norm_eps": 1e-5}
    assert recipe.method.temperature == 1.0
    assert recipe.data.sequence_length == 64
    assert recipe.training.arguments["learning_rate"] == 3e-4
    assert recipe.training.arguments["lr_scheduler_kwargs"] == {"min_lr": 1e-6}
    assert recipe.training.arguments["eval_strategy"] == "no"


def test_override_of_a_list_element(tmp_path: Path) -> None:
    path = tmp_path / "two.yaml"
    path.write_text(MINIMAL.replace("[text.txt]", "[{path: a.txt}, {path: b.txt}]"))
    sources = load_recipe(str(path), ["data.sources.1.weight=2"]).data.sources
    assert [source.weight for source in sources] == [1.0, 2.0]


def test_an_override_of_an_alias_changes_one_place(tmp_path: Path) -> None:
    path = tmp_path / "alias.yaml"
    path.write_text(MINIMAL.replace("[text.txt]", "[&a {path: a.txt}, *a]"))
    sources = load_recipe(str(path), ["data.sources.1.path=b.txt"]).data.sources
    assert [source.path for source in sources] == ["a.txt", "b.txt"]


@pytest.mark.parametrize("section", ["method", "training"])
def test_an_empty_section_has_defaults(recipe_file: Path, section: str) -> None:
    assert load_recipe(str(recipe_file), [f"{section}="]) == load_recipe(str(recipe_file))


@pytest.mark.parametrize("name", shipped_recipes())
def test_round_trip_of_shipped_recipes(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    path = tmp_path / "copy.yaml"
    path.write_text(dump_recipe(recipe))
    assert load_recipe(str(path)) == recipe


def test_round_trip_of_text_that_looks_like_something_else(recipe_file: Path, tmp_path: Path) -> None:
    awkward = ["3e-4", "1_0", "no", "null", "2024-01-01", "1:30", "0x10", "~", "", "<<", "é: #", "two\nlines"]
    overrides = {f"field_{i}": text for i, text in enumerate(awkward)}
    recipe = dataclasses.replace(load_recipe(str(recipe_file)), student=StudentConfig(8, overrides=overrides))
    path = tmp_path / "copy.yaml"
    path.write_text(dump_recipe(recipe), encoding="utf-8")
    assert load_recipe(str(path)) == recipe


# --- length in tokens -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "world_size", "steps"),
    [
        (["training.total_tokens=1024"], 1, 1),
        (["training.total_tokens=1025"], 1, 2),
        (["training.total_tokens=1e4", "training.per_device_train_batch_size=2"], 1, 40),
        (["training.total_tokens=10240", "training.gradient_accumulation_steps=5"], 2, 1),
    ],
)
def test_total_tokens_sets_max_steps(recipe_file: Path, overrides: list[str], world_size: int, steps: int) -> None:
    assert training_arguments(load_recipe(str(recipe_file), overrides), world_size)["max_steps"] == steps


@pytest.mark.parametrize(
    ("length", "warmup", "logging", "evaluation"),
    [
        ("max_steps=1", 1, 1, 1),
        ("max_steps=7", 1, 1, 1),
        ("max_steps=200", 4, 2, 20),
        ("max_steps=1000", 20, 10, 100),
        ("max_steps=100000", 2000, 10, 10000),
        ("total_tokens=204800", 4, 2, 20),  # 200 steps of 8 x 128 tokens
        ("num_train_epochs=2", 0.02, 0.01, 0.1),
    ],
)
def test_a_silent_recipe_gets_what_suits_its_length(
    recipe_file: Path, length: str, warmup: float, logging: float, evaluation: float, tmp_path: Path
) -> None:
    arguments = training_arguments(load_recipe(str(recipe_file), [f"training.{length}"]))
    got = [arguments[key] for key in ("warmup_steps", "logging_steps", "eval_steps", "save_steps")]
    assert got == [warmup, logging, evaluation, evaluation]
    assert (arguments["eval_strategy"], arguments["eval_on_start"], arguments["save_total_limit"]) == ("steps", True, 2)
    CloneArguments(output_dir=str(tmp_path), **arguments)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["eval_strategy=no"], {"eval_steps": None, "eval_on_start": None}),
        (["eval_strategy=epoch"], {"eval_steps": None, "eval_on_start": True}),
        (["eval_steps=5"], {"eval_strategy": "steps", "eval_steps": 5, "save_steps": 5}),
        (["save_strategy=no"], {"save_steps": None, "save_total_limit": None}),
        (["save_steps=7", "save_total_limit=1"], {"save_steps": 7, "save_total_limit": 1, "eval_steps": 10}),
        (["logging_steps=3"], {"logging_steps": 3}),
        (["warmup_steps=0"], {"warmup_steps": 0}),
        (["lr_scheduler_type=constant"], {"warmup_steps": None}),  # a schedule without one
        (["lr_scheduler_type=cosine"], {"warmup_steps": 2}),
        (["eval_on_start=false"], {"eval_on_start": False}),
    ],
)
def test_what_a_recipe_says_is_left_as_it_is(recipe_file: Path, given: list[str], expected: dict[str, object]) -> None:
    asked = ["training.max_steps=100", *(f"training.{one}" for one in given)]
    arguments = training_arguments(load_recipe(str(recipe_file), asked))
    assert {key: arguments.get(key) for key in expected} == expected


# --- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "suggestion"),
    [
        ("trainin.lr=1", "training.learning_rate"),
        ("training.lr=1", "training.learning_rate"),
        ("training.learning_rte=1", "training.learning_rate"),
        ("training.batch_size=1", "training.per_device_train_batch_size"),
        ("training.temperature=1", "method.temperature"),
        ("temperature=1", "method.temperature"),
        ("method.temprature=1", "method.temperature"),
        ("methods=1", "method"),
        ("training.totl_tokens=1", "training.total_tokens"),
        ("teacher.modle=a", "teacher.model"),
        ("data.source=a", "data.sources"),
        ("data.sources=[{pth: a}]", "data.sources.0.path"),
        ("data.validation=[{pth: a}]", "data.validation.0.path"),
    ],
)
def test_unknown_key_suggests_the_nearest(recipe_file: Path, override: str, suggestion: str) -> None:
    message = error_of(recipe_file, override)
    assert message.startswith("unknown key `")
    assert message.endswith(f"; did you mean `{suggestion}`?")


@pytest.mark.parametrize(("alias", "key"), ALIASES.items())
def test_what_others_call_a_field_is_found(recipe_file: Path, alias: str, key: str) -> None:
    assert error_of(recipe_file, f"training.{alias}=1").endswith(f".{key}`?")


def test_unknown_key_example_of_the_documentation(recipe_file: Path) -> None:
    expected = "unknown key `trainin.lr`; did you mean `training.learning_rate`?"
    assert error_of(recipe_file, "trainin.lr=1") == expected


def test_unknown_key_that_resembles_nothing_lists_what_there_is(recipe_file: Path) -> None:
    assert "`method` takes temperature, lm_weight, kl_weight, " in error_of(recipe_file, "method.qqq=1")
    assert "sections are teacher, student, " in error_of(recipe_file, "qqq=1")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.learning_rate=fast", "training.learning_rate: got 'fast' (str), expected a number"),
        ("training.learning_rate=-1", "training.learning_rate: got -1 (int), expected a number from 0 to 10"),
        ("training.max_steps=1.5", "training.max_steps: got 1.5 (float), expected an integer"),
        ("training.bf16=yes", "training.bf16: got 'yes' (str), expected true or false"),
        ("training.total_tokens=2.5", "training.total_tokens: got 2.5 (float), expected an integer"),
        ("student.hidden_size=0", "student.hidden_size: got 0 (int), expected a whole number from 4 to 1,000,000"),
        ("student.hidden_size=-8", "student.hidden_size: got -8 (int), expected a whole number from 4 to 1,000,000"),
        ("student.hidden_size=12.5", "student.hidden_size: got 12.5 (float), expected an integer"),
        ("student.hidden_size=true", "student.hidden_size: got true (bool), expected an integer"),
        ("student.hidden_size=big", "student.hidden_size: got 'big' (str), expected an integer"),
        ("student.hidden_size=", "student.hidden_size: got null, expected an integer"),
        ("method.temperature=0", "method.temperature: got 0, expected a number from 0.01 to 10,000"),
        ("method.temperature=.nan", "method.temperature: got nan (float), expected a finite number or a mapping"),
        ("method.kl_weight=[1]", "method.kl_weight: got [1] (list), expected a number or a mapping"),
        ("teacher.model=7", "teacher.model: got 7 (int), expected text"),
        ("data.sources=7", "data.sources: got 7 (int), expected a list"),
        ("data.sequence_length=long", "data.sequence_length: got 'long' (str), expected an integer"),
        ("data.validation={}", "data.validation: got {} (dict), expected a number"),
        ("method.attn_out_tap=x", "method.attn_out_tap: got 'x' (str), expected one of student, teacher"),
        ("teacher=llama", "teacher: got 'llama' (str), expected a mapping"),
        ("training=[1]", "training: got [1] (list), expected a mapping"),
    ],
)
def test_wrong_value(recipe_file: Path, override: str, message: str) -> None:
    assert error_of(recipe_file, override) == message


@pytest.mark.parametrize(
    ("override", "choice"),
    [
        ("teacher.dtype=float23", "float32"),
        ("method.attn_out_tap=studnet", "student"),
        ("training.lr_scheduler_type=linaer", "linear"),
        ("training.optim=adamw", "adamw_torch"),
        ("training.eval_strategy=step", "steps"),
    ],
)
def test_wrong_choice_suggests_the_nearest(recipe_file: Path, override: str, choice: str) -> None:
    assert f"did you mean {choice}" in error_of(recipe_file, override)


@pytest.mark.parametrize("rival", ["max_steps=10", "num_train_epochs=1"])
def test_two_lengths(recipe_file: Path, rival: str) -> None:
    message = error_of(recipe_file, "training.total_tokens=100", f"training.{rival}")
    assert rival.split("=")[0] in message
    assert "total_tokens to null" in message


def test_a_length_that_is_said_later_replaces_another(recipe_file: Path, tmp_path: Path) -> None:
    recipe_file.write_text(MINIMAL + "training: {num_train_epochs: 2, learning_rate: 1e-3}\n")
    for override, total, rest in (
        ("training.max_steps=5", None, {"max_steps": 5}),
        ("training.total_tokens=1e6", 1_000_000, {}),
        ("training.num_train_epochs=3", None, {"num_train_epochs": 3}),
        ("training.max_steps=-1", None, {"num_train_epochs": 2, "max_steps": -1}),
    ):
        training = load_recipe(str(recipe_file), [override]).training
        assert (training.total_tokens, training.arguments) == (total, {"learning_rate": 1e-3, **rest})
    above = tmp_path / "above.yaml"
    above.write_text("base: recipe.yaml\ntraining: {max_steps: 7}\n")
    assert load_recipe(str(above)).training.arguments == {"learning_rate": 1e-3, "max_steps": 7}
    with pytest.raises(InputError, match="expected only one of the two"):
        load_recipe(str(recipe_file), ["training.max_steps=5", "training.total_tokens=9"])


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", ["is empty", "teacher, student"]),
        ("# nothing\n", ["is empty"]),
        ("- a\n- b\n", ["list", "expected a mapping"]),
        ("teacher: {model: a}\nteacher: {model: b}\n", ["line 2, column 1", "duplicate key `teacher`"]),
        ("teacher:\n  model: a\n  model: b\n", ["line 3, column 3", "duplicate key `model`"]),
        ("teacher: {model: a\n", ["line 2", "valid YAML"]),
        ("teacher: model: a\n", ["line 1, column 15", "valid YAML"]),
        ("teacher:\n\tmodel: a\n", ["line 2", "valid YAML"]),
        ("1: {model: a}\n", ["line 1", "key 1 is not text"]),
        ("teacher: !!python/object:os.system {}\n", ["line 1", "valid YAML"]),
        ("teacher: &a [*a]\n", ["expected"]),
        ("teacher: !!set {a}\n", ["expected"]),
        ("teacher: \x00\n", ["valid YAML"]),
        ("a: 1\n---\nb: 1\n", ["line 2", "valid YAML"]),
        (MINIMAL.replace("teacher: {model: some/model}\n", ""), ["teacher.model: missing", "teacher.model=..."]),
        (MINIMAL.replace("hidden_size", "hiden_size"), ["`student.hiden_size`", "did you mean `student.hidden_size`"]),
        (MINIMAL.replace("hidden_size", "num_layers"), ["student.hidden_size: missing"]),
        (MINIMAL + "trainin: {learning_rate: 1e-4}\n", ["`trainin.learning_rate`", "`training.learning_rate`"]),
    ],
)
def test_unreadable_recipe(tmp_path: Path, text: str, parts: list[str]) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    message = error_of(path)
    assert all(part in message for part in parts), message


def test_missing_file_suggests_a_shipped_recipe() -> None:
    assert error_of("lrc-1.6b").startswith("recipe `lrc-1.6b`: no such file or shipped recipe; did you mean `lrc-1.")
    assert "shipped recipes: calibrated-1.5b, demo, " in error_of("nowhere/zzz")


def test_files_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "binary.yaml"
    path.write_bytes(b"teacher: \xff\xfe\n")
    assert "not UTF-8 text (byte 9)" in error_of(path)
    assert "cannot be read" in error_of(tmp_path)


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("training.learning_rate", "expected `section.key=value`"),
        ("=3", "expected `section.key=value`"),
        ("training..x=3", "expected `section.key=value`"),
        ("training.x=[1", "expected valid YAML"),
        ("teacher.model.x=1", "`teacher.model` is 'some/model' (str), which has no `x`"),
        ("data.sources.5.weight=1", "`data.sources` is ['text.txt'] (list), which has no `5`"),
    ],
)
def test_malformed_override(recipe_file: Path, override: str, part: str) -> None:
    message = error_of(recipe_file, override)
    assert override in message
    assert part in message


def test_mistakes_in_python_are_value_errors() -> None:
    with pytest.raises(ValueError):
        StudentConfig(hidden_size=0)


# --- the student's overrides ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "part"),
    [
        ({"rms_norm_esp": 1e-5}, "unknown key `student.rms_norm_esp`; did you mean `student.rms_norm_eps`?"),
        ({"hidden_sise": 8}, "did you mean `student.hidden_size`?"),
        ({"qqqqq": 8}, "neither a student key nor a field of the model's config"),
        ({"rms_norm_eps": "tiny"}, "student.rms_norm_eps: got 'tiny' (str), expected a number"),
        ({"tie_word_embeddings": 1}, "student.tie_word_embeddings: got 1 (int), expected true or false"),
        ({"vocab_size": 1.5}, "student.vocab_size: got 1.5 (float), expected an integer"),
    ],
)
def test_bad_student_overrides(overrides: dict[str, object], part: str) -> None:
    with pytest.raises(InputError) as caught:
        check_student_overrides(overrides, LlamaConfig().to_dict())
    assert part in str(caught.value)


def test_good_student_overrides() -> None:
    overrides = {"rms_norm_eps": 1, "tie_word_embeddings": True, "pad_token_id": 3}
    check_student_overrides(overrides, LlamaConfig().to_dict())


# --- TrainingArguments ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("field", dataclasses.fields(CloneArguments), ids=lambda field: field.name)
def test_every_training_argument_is_taken_with_its_default(field: dataclasses.Field) -> None:
    factory = field.default_factory
    value = field.default if factory is dataclasses.MISSING else factory()
    check_training_argument(field.name, getattr(value, "value", value))


def test_parse_recipe_takes_a_mapping() -> None:
    tree = {"teacher": {"model": "m"}, "student": {"hidden_size": 8}, "data": {"sources": ["a.txt"]}}
    assert isinstance(parse_recipe(tree), Recipe)

"""The recipe: one strict YAML file with the sections teacher, student, method, data and training.

`load_recipe` turns a file or the name of a shipped recipe into a checked `Recipe`; `dump_recipe` writes it back. Two
sections are open: any other key of `student` overrides a field of the model's config, and `training` takes any field of
`transformers.TrainingArguments`. Every mistake is an `InputError` of one line that names the key, says what it got and
what it expected, and where a key is unknown suggests the nearest one.

Scalars are read by YAML 1.2 rules: `3e-4` is a number, and only `true` and `false` are booleans, so that
`eval_strategy: no` stays text.
"""

import dataclasses
import difflib
import functools
import json
import math
import os
import re
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import Enum
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, Union

import yaml
from pydantic import BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError, field_validator
from pydantic.dataclasses import dataclass

from .data import DataConfig, SourceConfig
from .errors import InputError
from .trainer import CloneArguments

STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

Dtype = Literal["auto", "float32", "bfloat16"]
ParameterizationKind = Literal["projected", "dense", "core"]
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]


@dataclass(frozen=True, config=STRICT)
class TeacherConfig:
    """The frozen model that is distilled."""

    model: str
    """Hub id, local folder, or a .gguf file, which is dequantised."""
    revision: str | None = None
    """Branch, tag or commit on the Hub; null is the default branch."""
    dtype: Dtype = "auto"
    """Type of the teacher's weights; auto is bfloat16 on an accelerator and float32 on the CPU."""
    attn_implementation: Literal["sdpa", "eager", "flash_attention_2", "flex_attention"] = "sdpa"
    """Attention implementation of both models."""


@dataclass(frozen=True, config=STRICT)
class StudentConfig:
    """The model that is trained: the teacher's architecture with a narrower residual stream."""

    hidden_size: int = Field(gt=0)
    """Residual width d_S of the student; smaller than the teacher's."""
    dtype: Dtype = "auto"
    """Type of the student's weights (the factors are float32 always); auto is as for the teacher."""
    overrides: dict[str, Any] = Field(default_factory=dict)
    """Fields of the model's config that differ from the teacher's; in YAML these keys stand in the section itself."""


@dataclass(frozen=True, config=STRICT)
class Ramp:
    """A value that changes linearly over the optimiser steps of a run."""

    start: NonNegativeFloat
    """Value at the first step."""
    end: NonNegativeFloat
    """Value at the last step."""


@dataclass(frozen=True, config=STRICT)
class Switch:
    """A parameterisation that begins later; until then the group is projected."""

    kind: ParameterizationKind
    """Kind from `from_step` on."""
    from_step: int = Field(default=0, ge=0)
    """Optimiser step before which the switch happens."""


@dataclass(frozen=True, config=STRICT)
class TapsConfig:
    """A choice among the plan's taps."""

    off: list[str] = Field(default_factory=list)
    """Taps to leave out: q, k, v, gate, up, attn_out, ffn_out, or the name of a module such as qkv_proj."""
    layers: list[int] | None = Field(default=None, min_length=2, max_length=2)
    """First and last layer whose taps are compared, counted from 0; null is all."""


@dataclass(frozen=True, config=STRICT)
class CalibrationConfig:
    """How a start looks at the teacher."""

    tokens: int = Field(default=16_384, gt=0)
    """Tokens of training text that the start reads; `channels` reads 15 sequences of them at most."""
    basis: Literal["reads", "channels", "pca"] = "reads"
    """Basis of the student's residual stream under init: calibrated."""


@dataclass(frozen=True, config=STRICT)
class MethodConfig:
    """The objective L = lm_weight · LM + kl_weight · T² · KL + clone_weight · Σ MSE, and where training starts."""

    temperature: PositiveFloat | Ramp = 40.0
    """Temperature T at which the KL compares teacher and student: a number, or {start, end} for a linear change."""
    kl_weight: NonNegativeFloat | Ramp = 1.0
    """Weight of T² times the KL, which is a mean over tokens: a number, or {start, end} for a linear change."""
    lm_weight: float = Field(default=1.0, ge=0)
    """Weight of the next-token loss on the data."""
    clone_weight: float = Field(default=0.2, ge=0)
    """Weight α of the activation losses, which are summed over layers and taps."""
    clone_normalization: Literal["none", "target"] = "none"
    """none is the plain MSE of the paper; target divides each tap's MSE by the mean square of its target."""
    attn_out_tap: Literal["student", "teacher"] = "student"
    """Width at which attention outputs are compared: student is the paper, teacher the published code."""
    target_gradient: bool = True
    """Whether the factor of a write learns from the target of its tap too (the paper) or not."""
    taps: TapsConfig = Field(default_factory=TapsConfig)
    """Which activations are compared; all unless said otherwise."""
    init: Literal["random", "channels", "calibrated"] = "random"
    """Start of the factors: random is LRC, channels is RED, calibrated is this library's closed-form start."""
    calibration: CalibrationConfig = Field(default_factory=CalibrationConfig)
    """Text and basis of the starts `channels` and `calibrated`."""
    factor_std: float = Field(default=0.02, gt=0)
    """Standard deviation of the factors' random start."""
    start_from: str | None = None
    """Folder of an earlier run or checkpoint of the same plan whose factors are the start, in place of `init`."""
    parameterization: Literal["projected"] | dict[str, ParameterizationKind | Switch] = "projected"
    """projected is W = B · Z with the teacher's weight as B. Or a kind for each group (attention, ffn, experts,
    embedding, head): projected, dense (W itself) or core (W in a complete orthonormal basis); {kind, from_step}
    switches later."""
    head_factor: Literal["own", "embedding"] = "own"
    """Whether an untied LM head has a factor of its own or shares the embedding's."""
    baseline: Literal["scratch", "logit_kd", "channels_dense"] | None = None
    """Reference method in place of the clone: the same-shaped student from scratch with the next-token loss (scratch)
    and with the KL too (logit_kd), or channel-selected weights trained densely with both (channels_dense)."""
    execution: Literal["sequential", "interleaved"] = "sequential"
    """Teacher and student one after the other, or layer by layer in turn, which keeps one layer's targets only."""
    compile: bool = False
    """Compile each layer of both models with torch.compile."""


def _whole(value: object) -> object:
    """10e9 tokens are meant as an integer, though YAML reads a float."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


@dataclass(frozen=True, config=STRICT)
class TrainingConfig:
    """Arguments of the Trainer, and the length of training in tokens."""

    total_tokens: Annotated[int, BeforeValidator(_whole), Field(gt=0)] | None = None
    """Tokens to train on; sets max_steps from the tokens of one step, rounded up."""
    arguments: dict[str, Any] = Field(default_factory=dict)
    """Fields of transformers.TrainingArguments, and `muon`, `muon_momentum` and `log_taps` of CloneArguments; in YAML
    these keys stand in the section itself."""

    @field_validator("arguments")
    @classmethod
    def _check_arguments(cls, arguments: dict[str, Any]) -> dict[str, Any]:
        for key, value in arguments.items():
            _check_training_argument(key, value)
        return arguments

    def __post_init__(self) -> None:
        rivals = [key for key in ("max_steps", "num_train_epochs") if self.arguments.get(key, -1) > 0]
        if self.total_tokens is not None and rivals:
            raise InputError(
                f"training.{rivals[0]}: got {self.arguments[rivals[0]]} beside training.total_tokens, expected only "
                "one of the two; remove it, or set training.total_tokens to null"
            )


@dataclass(frozen=True, config=STRICT)
class Recipe:
    """Everything that defines a run."""

    teacher: TeacherConfig
    """The frozen model."""
    student: StudentConfig
    """The trained model."""
    data: DataConfig
    """Text and how it is cut into sequences."""
    method: MethodConfig = Field(default_factory=MethodConfig)
    """The objective and the start."""
    training: TrainingConfig = Field(default_factory=TrainingConfig)
    """Optimisation, evaluation, saving and logging."""


_SECTIONS: dict[str, type] = {
    "teacher": TeacherConfig,
    "student": StudentConfig,
    "method": MethodConfig,
    "data": DataConfig,
    "training": TrainingConfig,
}
_RECIPES = resources.files(__package__) / "recipes"
# The field that holds an open section's other keys.
_OPEN = {"student": "overrides", "training": "arguments"}
_TRAINING_FIELDS = {field.name: field for field in dataclasses.fields(CloneArguments)}


# --- loading and writing ----------------------------------------------------------------------------------------------


def load_recipe(path_or_name: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file or a shipped recipe, apply overrides such as `training.learning_rate=3e-4`, and check it.

    Raises:
        InputError: the file cannot be read or is not a mapping in valid YAML, a key is unknown, missing or given twice,
            or a value has the wrong type or is out of range.
    """
    tree = _read(path_or_name)
    for override in overrides:
        _apply_override(tree, override)
    return parse_recipe(tree)


def parse_recipe(tree: Mapping[str, Any]) -> Recipe:
    """Check a recipe that was read from YAML already.

    Raises:
        InputError: a key is unknown or missing, or a value has the wrong type or is out of range.
    """
    for key in tree:
        if key not in _SECTIONS:
            raise _unknown_key(_first_leaf(key, tree[key]))
    folded = {name: _fold(name, tree.get(name)) for name in _SECTIONS}
    try:
        # Of pydantic's strict modes only the one for JSON takes mappings for dataclasses and lists for tuples.
        return TypeAdapter(Recipe).validate_json(json.dumps(folded), strict=True)
    except ValidationError as error:
        raise _input_error(error, folded) from None


def dump_recipe(recipe: Recipe) -> str:
    """The recipe as YAML with every default written out; `load_recipe` reads an equal recipe from it."""
    tree = TypeAdapter(Recipe).dump_python(recipe, mode="json")
    for section, rest in _OPEN.items():
        tree[section].update(tree[section].pop(rest))
    ordered = {name: tree[name] for name in _SECTIONS}
    return yaml.dump(ordered, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def shipped_recipes() -> list[str]:
    """Names of the recipes that come with the library."""
    return sorted(file.name.removesuffix(".yaml") for file in _RECIPES.iterdir() if file.name.endswith(".yaml"))


def training_arguments(recipe: Recipe, world_size: int = 1) -> dict[str, Any]:
    """Keyword arguments for `CloneArguments`, `total_tokens` turned into `max_steps` for `world_size` processes.

    From a calibrated start matrices are trained with Muon unless the recipe names an optimiser, since AdamW's first
    steps undo such a start at its usual rates (see `optim.MuonAdamW`).
    """
    arguments, method = dict(recipe.training.arguments), recipe.method
    if method.init == "calibrated" and method.start_from is None and method.baseline is None:
        arguments.setdefault("muon", "optim" not in arguments)
    if recipe.training.total_tokens is not None:
        sequences = math.prod(batch_sizes(recipe)) * world_size
        arguments["max_steps"] = math.ceil(recipe.training.total_tokens / (sequences * recipe.data.sequence_length))
    return arguments


def batch_sizes(recipe: Recipe) -> tuple[int, int]:
    """Sequences of a micro-batch on one device, and micro-batches of an optimiser step."""
    batch, accumulation = (
        recipe.training.arguments.get(key, _TRAINING_FIELDS[key].default)
        for key in ("per_device_train_batch_size", "gradient_accumulation_steps")
    )
    return batch, accumulation


def check_student_overrides(overrides: Mapping[str, Any], teacher_config: Mapping[str, Any]) -> None:
    """Check the student's overrides against the teacher's config, as `PretrainedConfig.to_dict` gives it.

    Raises:
        InputError: the config has no such field, or its value is of another type.
    """
    for key, value in overrides.items():
        if key not in teacher_config:
            known = [f"student.{name}" for name in [*_keys_of("student"), *teacher_config]]
            raise _unknown_key(f"student.{key}", known, "it is neither a student key nor a field of the model's config")
        old = teacher_config[key]
        if old is not None and value is not None and not _same_kind(value, old):
            expected = _KINDS.get(type(old), type(old).__name__)
            raise InputError(f"student.{key}: got {_show(value)}, expected {expected}, as the teacher's {_show(old)}")


# --- strict YAML ------------------------------------------------------------------------------------------------------


def _read(path_or_name: str, above: tuple[str, ...] = ()) -> dict[str, Any]:
    """A recipe's tree, laid over that of the recipe that it names as `base`."""
    if path_or_name in shipped_recipes():
        text = (_RECIPES / f"{path_or_name}.yaml").read_text(encoding="utf-8")
    else:
        text = _read_file(path_or_name)
    tree = _parse_yaml(text, path_or_name)
    if tree is None:
        raise InputError(f"{path_or_name}: the recipe is empty; expected the sections {', '.join(_SECTIONS)}")
    if not isinstance(tree, dict):
        raise InputError(f"{path_or_name}: got {_show(tree)}, expected a mapping of {', '.join(_SECTIONS)}")
    base = tree.pop("base", None)
    if base is None:
        return tree
    if not isinstance(base, str):
        raise InputError(f"{path_or_name}: base: got {_show(base)}, expected the name or path of another recipe")
    if base not in shipped_recipes():
        base = os.path.normpath(Path(path_or_name).parent / base)
    if base in (*above, os.path.normpath(path_or_name)):
        raise InputError(f"{path_or_name}: base: `{base}` rests on this recipe itself; expected another one")
    return _overlay(_read(base, (*above, os.path.normpath(path_or_name))), tree)


def _overlay(base: dict[str, Any], tree: Mapping[str, Any]) -> dict[str, Any]:
    """Mappings key by key; anything else, lists included, in place of what was there."""
    for key, value in tree.items():
        old = base.get(key)
        base[key] = _overlay(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return base


def _read_file(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        names = shipped_recipes()
        near = difflib.get_close_matches(path, names, n=1)
        hint = f"did you mean `{near[0]}`?" if near else f"shipped recipes: {', '.join(names)}"
        raise InputError(f"recipe `{path}`: no such file or shipped recipe; {hint}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"recipe `{path}`: not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    except OSError as error:
        raise InputError(f"recipe `{path}`: cannot be read ({error.strerror}); expected a YAML file") from None


def _parse_yaml(text: str, name: str) -> Any:
    try:
        tree = yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise InputError(f"{name}{where}: {error.problem or error.context}; expected valid YAML") from None
    except yaml.reader.ReaderError as error:
        raise InputError(f"{name}: {error.reason} (at character {error.position}); expected valid YAML") from None
    try:
        # Also gives each alias a copy of its own, so that an override changes one place.
        return json.loads(json.dumps(tree))
    except (TypeError, ValueError) as error:
        raise InputError(f"{name}: {error}; expected text, numbers, true, false, null, lists and mappings") from None


class _Loader(yaml.SafeLoader):
    """YAML 1.2 scalars, text keys only, and no key twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            key = key_node.value
            if key_node.tag not in ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"):
                raise yaml.MarkedYAMLError(problem=f"key {key!s:.40} is not text", problem_mark=key_node.start_mark)
            if key in seen:
                raise yaml.MarkedYAMLError(problem=f"duplicate key `{key}`", problem_mark=key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


class _Dumper(yaml.SafeDumper):
    """Quotes text that either YAML 1.1 or `_Loader` would take for something else."""


_SCALARS = {
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    # Digits with a leading zero stay text: no octal numbers, and a commit id is not cut.
    "int": (r"[-+]?(0|[1-9][0-9_]*)", list("-+0123456789")),
    "float": (
        r"[-+]?([0-9]*\.[0-9]+|[0-9]+\.)([eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+"
        r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
    "merge": (r"<<", ["<"]),
}
_Loader.yaml_implicit_resolvers = {}  # none of YAML 1.1's
for _tag, (_pattern, _first) in _SCALARS.items():
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _first)


def _apply_override(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    parts = key.split(".")
    if not equals or not all(parts):
        raise InputError(f"override `{override}`: expected `section.key=value`, as in `training.learning_rate=3e-4`")
    node: Any = tree
    for depth, part in enumerate(parts):
        if isinstance(node, list) and part.isdigit() and int(part) < len(node):
            index: Any = int(part)
        elif isinstance(node, dict):
            index = part
        else:
            holder = ".".join(parts[:depth])
            raise InputError(f"override `{override}`: `{holder}` is {_show(node)}, which has no `{part}`")
        if depth == len(parts) - 1:
            node[index] = _parse_yaml(text, f"override `{override}`")
        elif isinstance(node, dict) and node.get(index) is None:
            node[index] = {}
        node = node[index]


def _fold(section: str, content: Any) -> Any:
    """Move an open section's other keys into the field that holds them; an empty section is one of defaults."""
    if content is None:
        return {}
    if section not in _OPEN or not isinstance(content, dict):
        return content
    own = {key: value for key, value in content.items() if key in _keys_of(section)}
    return own | {_OPEN[section]: {key: value for key, value in content.items() if key not in own}}


# --- checks and their one-line messages -------------------------------------------------------------------------------

_KINDS: dict[type, str] = {
    bool: "true or false",
    int: "an integer",
    float: "a number",
    str: "text",
    list: "a list",
    dict: "a mapping",
}

_EXPECTED = {
    "int_type": "an integer",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "text",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "a mapping",
    "dataclass_type": "a mapping",
    "none_required": "null",
    "greater_than": "a number greater than {gt:g}",
    "greater_than_equal": "a number of at least {ge:g}",
    "less_than": "a number less than {lt:g}",
    "less_than_equal": "a number of at most {le:g}",
    "too_short": "at least {min_length} entries",
    "string_too_short": "text of at least {min_length} characters",
}

_TRAINING_LIMITS = {
    "learning_rate": Field(ge=0),
    "per_device_train_batch_size": Field(gt=0),
    "per_device_eval_batch_size": Field(gt=0),
    "gradient_accumulation_steps": Field(gt=0),
    "muon_momentum": Field(ge=0, lt=1),
}


def _check_training_argument(key: str, value: Any) -> None:
    if key not in _TRAINING_FIELDS:
        raise _unknown_key(f"training.{key}", reason="it is no field of transformers.TrainingArguments either")
    try:
        _training_adapter(key).validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        raise InputError(_wrong_value(("training", key), value, error.errors())) from None


@functools.cache
def _training_adapter(key: str) -> TypeAdapter[Any]:
    hint = _without_free_text(typing.get_type_hints(CloneArguments)[key])
    return TypeAdapter(Annotated[hint, _TRAINING_LIMITS[key]] if key in _TRAINING_LIMITS else hint)


def _without_free_text(hint: Any) -> Any:
    """An enum's values are the only text that `TrainingArguments` takes, though it annotates `SomeEnum | str`."""
    options = typing.get_args(hint)
    is_union = typing.get_origin(hint) in (Union, types.UnionType)
    if is_union and any(isinstance(option, type) and issubclass(option, Enum) for option in options):
        return Union[tuple(option for option in options if option is not str)]  # noqa: UP007 - built at run time
    return hint


def _input_error(error: ValidationError, folded: Mapping[str, Any]) -> InputError:
    """The most telling of pydantic's errors as one line: an unknown key explains a missing one, so it goes first."""
    errors = sorted(error.errors(), key=lambda item: item["type"] != "unexpected_keyword_argument")
    first = errors[0]
    path, value = _resolve(first["loc"], folded)
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, InputError):
        return cause
    if first["type"] == "unexpected_keyword_argument":
        return _unknown_key(_dotted(path))
    if first["type"] == "missing":
        return _missing_key(_dotted([*path, first["loc"][-1]]), value)
    return InputError(_wrong_value(path, value, [item for item in errors if _resolve(item["loc"], folded)[0] == path]))


def _resolve(loc: Sequence[int | str], tree: Any) -> tuple[list[int | str], Any]:
    """An error's location and the value there, without the names of union members that pydantic puts in between."""
    path: list[int | str] = []
    for step in loc:
        entries = dict(enumerate(tree)) if isinstance(tree, list) else tree
        if isinstance(entries, dict) and step in entries:
            path.append(step)
            tree = entries[step]
    return path, tree


def _wrong_value(path: Sequence[int | str], value: Any, errors: Iterable[Mapping[str, Any]]) -> str:
    items = [error for error in errors if error["type"] != "missing"]
    expected = " or ".join(dict.fromkeys(_expected(item) for item in items))
    choices = [choice for item in items for choice in _choices(item)]
    near = _nearest_choice(value, choices) if isinstance(value, str) else None
    hint = f"; did you mean {near}?" if near else ""
    return f"{_dotted(path)}: got {_show(value)}, expected {expected}{hint}"


def _expected(error: Mapping[str, Any]) -> str:
    if choices := _choices(error):
        shown = choices if len(choices) <= 12 else [*choices[:6], f"or {len(choices) - 6} others"]
        return f"{'one of ' if len(choices) > 1 else ''}{', '.join(shown)}"
    template = _EXPECTED.get(error["type"])
    if template is None:
        return str(error.get("ctx", {}).get("error", error["msg"]))
    return template.format(**error.get("ctx", {}))


def _choices(error: Mapping[str, Any]) -> list[str]:
    """The values that a choice takes; pydantic has them as text: 'a', 'b' or 'c'."""
    listed = error.get("ctx", {}).get("expected", "") if error["type"] in ("literal_error", "enum") else ""
    return re.findall(r"[^\s,']+", listed.replace(" or ", ", "))


def _nearest_choice(value: str, choices: Sequence[str]) -> str | None:
    begun = [choice for choice in choices if value and choice.startswith(value)]
    return next(iter(begun + difflib.get_close_matches(value, choices, n=1)), None)


def _missing_key(key: str, section: Any) -> InputError:
    rest = section.get(_OPEN.get(key.split(".")[0], ""), {})
    for misspelt in rest:
        if _likeness(misspelt, key.split(".")[-1]) >= 0.8:
            return _unknown_key(f"{key.rpartition('.')[0]}.{misspelt}", [key])
    return InputError(f"{key}: missing, expected a value; add it to the recipe or give `{key}=...`")


def _unknown_key(key: str, known: Sequence[str] | None = None, reason: str = "") -> InputError:
    near = _nearest(key, list(_known_keys()) if known is None else known)
    if near is not None:
        return InputError(f"unknown key `{key}`; did you mean `{near}`?")
    section = key.split(".")[0]
    keys = f"`{section}` takes {', '.join(_keys_of(section))}" if section in _SECTIONS else ""
    return InputError(f"unknown key `{key}`; {reason or keys or 'sections are ' + ', '.join(_SECTIONS)}")


def _known_keys() -> Iterator[str]:
    for section in _SECTIONS:
        yield section
        yield from (f"{section}.{key}" for key in _keys_of(section))
    for sources in ("sources", "validation"):
        yield from (f"data.{sources}.0.{field.name}" for field in dataclasses.fields(SourceConfig))
    yield from (f"training.{key}" for key in _TRAINING_FIELDS)


def _keys_of(section: str) -> list[str]:
    fields = dataclasses.fields(_SECTIONS[section])
    return [field.name for field in fields if field.name != _OPEN.get(section)]


def _nearest(key: str, known: Sequence[str]) -> str | None:
    """The known dotted key whose last part is most like this one's; the rest of the path breaks ties."""
    head, _, last = key.rpartition(".")

    def score(candidate: str) -> tuple[float, float]:
        other_head, _, other_last = candidate.rpartition(".")
        return _likeness(last, other_last), difflib.SequenceMatcher(None, head, other_head).ratio()

    best = max(known, key=score)
    return best if score(best)[0] >= 0.6 else None


def _likeness(short: str, full: str) -> float:
    """How well one name stands for another, from 0 to 1; initials (`lr`) and some of the words (`batch_size`) count."""
    words = full.split("_")
    if short != full and short == "".join(word[:1] for word in words):
        return 0.75
    if short != full and set(short.split("_")) <= set(words):
        return 0.7
    return difflib.SequenceMatcher(None, short, full).ratio()


def _first_leaf(key: str, value: Any) -> str:
    while isinstance(value, dict) and value:
        inner = next(iter(value))
        key, value = f"{key}.{inner}", value[inner]
    return key


def _dotted(path: Iterable[int | str]) -> str:
    """A location as the user writes it: open sections' other keys stand in the section itself."""
    steps = list(path)
    if len(steps) > 1 and _OPEN.get(str(steps[0])) == steps[1]:
        del steps[1]
    return ".".join(str(step) for step in steps)


def _show(value: Any) -> str:
    """A value in an error message: short, on one line, with its type."""
    if value is None:
        return "null"
    text = str(value).lower() if isinstance(value, bool) else repr(value)
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({type(value).__name__})"


def _same_kind(value: Any, old: Any) -> bool:
    if isinstance(old, float):
        return isinstance(value, int | float) and not isinstance(value, bool)
    return type(value) is type(old)

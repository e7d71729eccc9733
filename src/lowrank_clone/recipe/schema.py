"""The recipe's dataclasses: one strict section each for teacher, student, method, data and training."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field
from pydantic.dataclasses import dataclass

from ..data.config import DataConfig
from ..objective.objective import Objective
from ..ranges import Range
from ..starts.registry import FACTOR_STDS, STARTS, StreamBasis

STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

Dtype = Literal["auto", "float32", "bfloat16"]
ParameterizationKind = Literal["projected", "dense", "core"]
if TYPE_CHECKING:
    StartName = str
else:
    StartName = Literal[STARTS]
Step = Annotated[int, AfterValidator(Range(0, 1e9, whole=True))]


@dataclass(frozen=True, config=STRICT)
class TeacherConfig:
    """The frozen model that is distilled."""

    model: str
    """Hub id, local folder, or a .gguf file, which is dequantised."""
    revision: str | None = None
    """Branch, tag or commit on the Hub; null is the default branch."""
    dtype: Dtype = "auto"
    """Type of the teacher's weights; auto is bfloat16 on an accelerator and on a CPU that multiplies it natively
    (AVX512-BF16), and float32 on any other CPU."""
    attn_implementation: Literal["auto", "sdpa", "eager", "flash_attention_2", "flex_attention"] = "auto"
    """Attention implementation of both models; auto is sdpa where their class has it, else eager."""
    dequantize: bool = False
    """Load weights that are stored quantised (MXFP4, block FP8) as the floats that they stand for."""


@dataclass(frozen=True, config=STRICT)
class StudentConfig:
    """The model that is trained: the teacher's architecture with a narrower residual stream."""

    hidden_size: Annotated[int, AfterValidator(Range(4, 1_000_000, whole=True))]
    """Residual width d_S of the student; smaller than the teacher's."""
    dtype: Dtype = "auto"
    """Type of the student's weights (the factors are float32 always); auto is as for the teacher."""
    overrides: dict[str, Any] = Field(default_factory=dict)
    """Fields of the model's config that differ from the teacher's; in YAML these keys stand in the section itself."""


@dataclass(frozen=True, config=STRICT)
class Ramp:
    """A value that changes linearly over the optimiser steps of a run."""

    start: float
    """Value at the first step."""
    end: float
    """Value at the last step."""


@dataclass(frozen=True, config=STRICT)
class Switch:
    """A parameterisation that begins later; until then the group is projected."""

    kind: ParameterizationKind
    """Kind from `from_step` on."""
    from_step: Step = 0
    """Optimiser step before which the switch happens."""


@dataclass(frozen=True, config=STRICT)
class TapsConfig:
    """A choice among the plan's taps."""

    off: list[str] = Field(default_factory=list)
    """Taps to leave out: q, k, v, gate, up, attn_out, ffn_out, or the name of a module such as qkv_proj."""
    layers: Annotated[list[Step], Field(min_length=2, max_length=2)] | None = None
    """First and last layer whose taps are compared, counted from 0; null is all."""


@dataclass(frozen=True, config=STRICT)
class CalibrationConfig:
    """How a start looks at the teacher."""

    tokens: Annotated[int, AfterValidator(Range(1, 1e9, whole=True))] = 16_384
    """Tokens of training text that the start reads; `channels` reads 15 sequences of them at most."""
    basis: StreamBasis = "reads"
    """Basis of the student's residual stream under init: calibrated."""


@dataclass(frozen=True, config=STRICT)
class MethodConfig(Objective):
    """The objective L = lm_weight · LM + kl_weight · T² · KL + clone_weight · Σ MSE, and where training starts.

    Its fields beside those below are `Objective`'s; two of them may change while a run goes.
    """

    temperature: float | Ramp = Objective.temperature  # type: ignore[assignment]
    """Temperature T at which the KL compares teacher and student: a number, or {start, end} for a linear change."""
    kl_weight: float | Ramp = Objective.kl_weight  # type: ignore[assignment]
    """Weight of T² times the KL, which is a mean over tokens: a number, or {start, end} for a linear change."""
    taps: TapsConfig = Field(default_factory=TapsConfig)
    """Which activations are compared; all unless said otherwise."""
    init: StartName = "random"
    """Start of the factors: random is LRC, channels is RED, calibrated is this library's closed-form start."""
    calibration: CalibrationConfig = Field(default_factory=CalibrationConfig)
    """Text and basis of the starts `channels` and `calibrated`."""
    factor_std: Annotated[float, AfterValidator(FACTOR_STDS)] = 0.02
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

    _place: ClassVar[str] = "method"

    def _numbers(self, value: Any) -> Iterable[float]:
        return (value.start, value.end) if isinstance(value, Ramp) else (value,)


def _whole(value: object) -> object:
    """10e9 tokens are meant as an integer, though YAML reads a float."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


# How long a run is may be said in one of these ways.
LENGTHS = ("total_tokens", "max_steps", "num_train_epochs")


@dataclass(frozen=True, config=STRICT)
class TrainingConfig:
    """Arguments of the Trainer, and the length of training in tokens."""

    total_tokens: Annotated[int, BeforeValidator(_whole), AfterValidator(Range(1, 1e15, whole=True))] | None = None
    """Tokens to train on; sets max_steps from the tokens of one step, rounded up."""
    arguments: dict[str, Any] = Field(default_factory=dict)
    """Fields of transformers.TrainingArguments, and `muon`, `muon_momentum` and `log_taps` of CloneArguments; in YAML
    these keys stand in the section itself."""


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


SECTIONS: dict[str, type] = {
    "teacher": TeacherConfig,
    "student": StudentConfig,
    "method": MethodConfig,
    "data": DataConfig,
    "training": TrainingConfig,
}
# The field that holds an open section's other keys.
OPEN_FIELDS = {"student": "overrides", "training": "arguments"}

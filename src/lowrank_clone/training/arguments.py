"""`transformers.TrainingArguments` with the defaults that a clone needs."""

import dataclasses
import os
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, Literal

from transformers import TrainingArguments

from ..errors import InputError
from ..ranges import check_choice
from .arguments_trial import try_arguments
from .engines import take_engine
from .options import check_option
from .ranges import RANGES


@dataclass
class CloneArguments(TrainingArguments):
    """`TrainingArguments` with the defaults that a clone needs, `log_taps` and `muon`.

    `options.py` says of every field whether it works. A warm-up of n steps has rates (k + 1) / (n + 1) of the full one,
    k = 0 .. n - 1, so that its first step learns something (`warmup.py`).

    Raises:
        InputError: A field is out of range, a clone has no use for it, or what it asks for can't be made. All of it
            is tried out here, before anything that takes long.
    """

    log_taps: bool = field(default=True, metadata={"help": "Log the loss of every tap under `tap/<parameter>`."})
    prediction_loss_only: bool = field(default=True, metadata={"help": "Evaluate losses, not logits."})
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "A non-finite loss stops training."})
    label_names: list[str] | None = field(default_factory=list, metadata={"help": "Labels are optional."})
    muon: bool = field(default=False, metadata={"help": "Matrices with Muon, the rest with AdamW (`MuonAdamW`)."})
    muon_momentum: float = field(default=0.95, metadata={"help": "Momentum of Muon."})
    max_hours: float = field(default=0.0, metadata={"help": "Save and stop after so long; 0 is never."})
    rehearse: bool = field(default=True, metadata={"help": "Run the largest batch once before the first step."})
    save_minutes: float = field(default=15.0, metadata={"help": "Save when so long nothing was saved; 0 is never."})
    teacher_sharding: str = field(default="none", metadata={"help": "none, or fsdp: sharded too, under FSDP2."})
    on_spike: Literal["skip", "rewind", "stop"] = field(
        default="skip", metadata={"help": "What is done about a step that would spoil the run (`spikes.py`)."}
    )
    spike_deviations: float = field(
        default=0.0, metadata={"help": "Robust deviations above the median that make a spike; 0 is only no number."}
    )
    spike_window: int = field(default=200, metadata={"help": "Steps with which a step is compared."})
    spike_limit: int = field(default=10, metadata={"help": "Spikes among so many steps, beyond which the run stops."})
    adam_beta2: float = field(default=0.999, metadata={"help": "As published (LRC, arXiv 2505.12781, appendix)."})

    def __post_init__(self) -> None:
        self.engine = take_engine()
        for spec in dataclasses.fields(self):
            value = getattr(self, spec.name)
            default: Any = spec.default
            if spec.default_factory is not dataclasses.MISSING:
                default = spec.default_factory()
            check_option(spec.name, value, default)
            if spec.name in RANGES and value is not None:
                self._check_range(spec.name, value)
        if self.muon and not str(getattr(self.optim, "value", self.optim)).startswith("adamw_torch"):
            raise InputError(
                f"training.optim: got {self.optim} beside training.muon, which trains what is no matrix with AdamW; "
                "remove one of the two"
            )
        if self.ddp_backend is not None and int(os.environ.get("WORLD_SIZE", "1")) == 1:
            raise InputError(
                f"training.ddp_backend: got {self.ddp_backend} in one process; start several with torchrun"
            )
        check_choice("training.teacher_sharding", self.teacher_sharding, ("none", "fsdp"))
        if self.teacher_sharding == "fsdp" and self.engine.name == "ddp":
            raise InputError(
                "training.teacher_sharding: got fsdp under DDP, expected none; start with `lrc train RECIPE --launch "
                "fsdp2`, which shards the student and its factors too"
            )
        if self.engine.name == "fsdp2" and str(getattr(self.optim, "value", self.optim)) == "adafactor":
            raise InputError(
                "training.optim: got adafactor under FSDP2, expected another one; it can't step tensors in parts"
            )
        if self.greater_is_better is None:  # transformers takes whatever is not called a loss for a score
            self.greater_is_better = False
        try:
            super().__post_init__()
        except (ValueError, TypeError, ImportError, NotImplementedError, OSError) as error:
            raise InputError(f"training: {' '.join(str(error).split())}") from error
        try_arguments(self)

    def _check_range(self, name: str, value: Any) -> None:
        if isinstance(value, bool) or not isinstance(value, Real) or not RANGES[name].holds(float(value)):
            raise InputError(f"training.{name}: got {value!r}, expected {RANGES[name]}")

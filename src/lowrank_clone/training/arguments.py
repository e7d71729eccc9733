"""`transformers.TrainingArguments` with the defaults that a clone needs."""

import dataclasses
from dataclasses import dataclass, field

from transformers import TrainingArguments

from ..errors import InputError


@dataclass
class CloneArguments(TrainingArguments):
    """`TrainingArguments` with the defaults that a clone needs, `log_taps` and `muon`.

    The student's precision is `CloneModel(dtype=...)`, since its master weights are float32 factors in any case; `bf16`
    and `fp16` (autocast over float32 weights) stay off.
    """

    log_taps: bool = field(default=True, metadata={"help": "Log the loss of every tap under `tap/<parameter>`."})
    prediction_loss_only: bool = field(default=True, metadata={"help": "Evaluate losses, not logits."})
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "A non-finite loss stops training."})
    label_names: list[str] | None = field(default_factory=list, metadata={"help": "Labels are optional."})
    muon: bool = field(default=False, metadata={"help": "Matrices with Muon, the rest with AdamW (`MuonAdamW`)."})
    muon_momentum: float = field(default=0.95, metadata={"help": "Momentum of Muon."})
    save_minutes: float = field(default=15.0, metadata={"help": "Save when so long nothing was saved; 0 is never."})
    adam_beta2: float = field(default=0.999, metadata={"help": "As published (LRC, arXiv 2505.12781, appendix)."})

    def __post_init__(self) -> None:
        # Before Trainer's own checks, which import what these need.
        if self.fp16 or self.bf16:
            which = "fp16" if self.fp16 else "bf16"
            raise InputError(
                f"training.{which}: got true, expected false; the student's precision is `student.dtype` "
                "(CloneModel(dtype=torch.bfloat16)), its factors are float32 in any case"
            )
        if self.deepspeed or self.fsdp:
            raise InputError("training.deepspeed and training.fsdp are not supported yet; use one process or DDP")
        if self.muon and not str(getattr(self.optim, "value", self.optim)).startswith("adamw_torch"):
            raise InputError(
                f"training.optim: got {self.optim} beside training.muon, which trains what is no matrix with AdamW; "
                "remove one of the two"
            )
        super().__post_init__()


TRAINING_FIELDS = {field.name: field for field in dataclasses.fields(CloneArguments)}

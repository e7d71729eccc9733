"""What every number among the training arguments may be; needs no PyTorch, so that recipes are checked at once."""

from ..ranges import Range

_COUNT = Range(1, 1_000_000, whole=True)
_SHARE = Range(0, 1)
_SEED = Range(0, 2**32 - 1, whole=True)
# Every number that `TrainingArguments` and `CloneArguments` take (a test holds the list complete). They are far beyond
# what anybody trains with; outside them is a slip, or transformers would take the number for "not given".
RANGES: dict[str, Range] = {
    "per_device_train_batch_size": _COUNT,
    "per_device_eval_batch_size": _COUNT,
    "gradient_accumulation_steps": _COUNT,
    "num_train_epochs": Range(0, 1e6, above=True),
    "max_steps": Range(1, 1e9, whole=True, also=(-1,)),
    "learning_rate": Range(0, 10),
    # A warm-up over a third of the run or more is hardly meant: .5 is half of the run, not half a step.
    "warmup_steps": Range(0, 1e9, whole=True, share=0.3),
    "weight_decay": Range(0, 10),
    "adam_beta1": Range(0, 0.99999),
    "adam_beta2": Range(0, 0.9999999),
    "adam_epsilon": Range(0, 1, above=True),
    "muon_momentum": Range(0, 0.99999),
    "save_minutes": Range(0, 1e6),
    "max_hours": Range(0, 1e6),
    "spike_deviations": Range(0, 1e6),
    "spike_window": Range(20, 100_000, whole=True),
    "spike_limit": Range(0, 1e9, whole=True),
    "max_grad_norm": Range(0, 1e6),
    "label_smoothing_factor": _SHARE,
    "neftune_noise_alpha": Range(0, 1000),
    "torch_empty_cache_steps": _COUNT,
    "logging_steps": Range(1, 1e9, whole=True, share=1),
    "eval_steps": Range(1, 1e9, whole=True, share=1),
    "save_steps": Range(1, 1e9, whole=True, share=1),
    "eval_delay": Range(0, 1e9),
    "eval_accumulation_steps": _COUNT,
    "save_total_limit": _COUNT,
    "seed": _SEED,
    "data_seed": _SEED,
    "dataloader_num_workers": Range(0, 256, whole=True),
    "dataloader_prefetch_factor": Range(1, 10_000, whole=True),
    "ddp_bucket_cap_mb": _COUNT,
    "ddp_timeout": Range(1, 1e7, whole=True),
    "local_rank": Range(0, 65_535, whole=True, also=(-1,)),
}

"""Where trackers of `training.report_to` write."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from transformers import Trainer
from transformers.integrations import TensorBoardCallback


def place_trackers(trainer: Trainer, folder: Path) -> str | None:
    """Let TensorBoard write beside the run's folder, in `FOLDER-tensorboard`, unless its variable says where.

    The variable is TENSORBOARD_LOGGING_DIR. In the folder itself its files would be left by a run that failed, and go
    with the run that they are of when that is replaced.

    Returns:
        How to look at them, or None if TensorBoard is not asked for.
    """
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, TensorBoardCallback):
            beside = folder.with_name(f"{folder.name}-tensorboard")
            if callback.logging_dir is None:
                callback.logging_dir = str(beside / datetime.now().strftime("%Y-%m-%d-%H%M%S"))
                return f"tensorboard --logdir {beside}"
            return f"tensorboard --logdir {callback.logging_dir}"
    return None

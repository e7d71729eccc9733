"""Noise that a config asks for in training only: dropout of all kinds, dropped layers, jitter of routers.

It regularised the teacher's own training. A clone is to be like its teacher, so its student trains without
(`execution.checkpointing.set_training`); the fields stay in the config that is exported, as they say nothing about
inference.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_NOISE = re.compile(r"drop(out|path|connect)?(_|$)|jitter")


def training_noise(fields: Mapping[str, Any]) -> dict[str, float]:
    """The fields of a config that ask for noise in training, with their values above 0.

    By name, which serves what is said of them alone: the noise itself is off whatever its field is called.
    """
    numbers = {key: value for key, value in fields.items() if isinstance(value, (int, float)) and value is not True}
    return {key: value for key, value in numbers.items() if value > 0 and _NOISE.search(key)}

"""How several processes were started to train one clone, and what of their launcher's wishes there is here.

`accelerate launch` says by environment variables what it wants of `accelerate`. DDP is accelerate's affair. FSDP2 is
not: accelerate would shard an optimiser's parameters with those of the model, and a clone's optimiser holds factors,
which are no part of it. So `take_engine` takes the wish for FSDP2 out of the environment, where accelerate, and
transformers when it loads a teacher, would act on it, and `fully_sharded.py` does what it asks for.
"""

from __future__ import annotations

import os
from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Literal

from accelerate import FullyShardedDataParallelPlugin
from torch.distributed.fsdp import CPUOffloadPolicy

from ..errors import InputError

ASKS_FOR_FSDP = "ACCELERATE_USE_FSDP"
# Where the wish is kept that was taken: a second set of arguments in the same process means the same engine.
TAKEN = "LOWRANK_CLONE_FSDP2"


@dataclass(frozen=True)
class Engine:
    """What trains a clone: `none` in one process, `ddp` or `fsdp2` in several.

    reshard_after_forward: Whether a block's parts are gathered once more for its backward pass (FSDP2).
    """

    name: Literal["none", "ddp", "fsdp2"]
    reshard_after_forward: bool = True


def take_engine(environ: MutableMapping[str, str] = os.environ) -> Engine:
    """The engine that the launcher asks for.

    Raises:
        InputError: It asks for something of FSDP that there is not for a clone.
    """
    if _true(environ.get("ACCELERATE_USE_DEEPSPEED", "")):
        raise InputError(
            "the launcher asks for DeepSpeed, expected DDP or FSDP2; its optimisers partition the model's own "
            "parameters, and a clone's are factors beside it; FSDP2 shards those, their optimiser's state and the "
            "gradients, as ZeRO-2 would: `lrc train RECIPE --launch fsdp2`"
        )
    if _true(environ.pop(ASKS_FOR_FSDP, "")):
        environ[TAKEN] = str(_checked_plugin().reshard_after_forward).lower()
    if int(environ.get("WORLD_SIZE", "1")) == 1:
        return Engine("none")
    if TAKEN in environ:
        return Engine("fsdp2", _true(environ[TAKEN]))
    return Engine("ddp")


def _checked_plugin() -> FullyShardedDataParallelPlugin:
    version = os.environ.get("FSDP_VERSION", "1")
    if version != "2":
        raise InputError(
            f"the launcher asks for FSDP {version}, expected 2; set fsdp_version: 2 (--fsdp_version 2), or start with "
            "`lrc train RECIPE --launch fsdp2`"
        )
    try:
        plugin = FullyShardedDataParallelPlugin()
    except (ValueError, KeyError) as error:
        raise InputError(f"the launcher's FSDP: {' '.join(str(error).split())}") from error
    wrong = {
        "fsdp_offload_params": (isinstance(plugin.cpu_offload, CPUOffloadPolicy), "factors are not kept on the CPU"),
        "fsdp_activation_checkpointing": (plugin.activation_checkpointing, "set training.activation_checkpointing"),
        "fsdp_ignored_modules": (plugin.ignored_modules, "every part of the student is sharded"),
        "fsdp_auto_wrap_policy": (
            os.environ.get("FSDP_AUTO_WRAP_POLICY", "").upper() == "SIZE_BASED_WRAP",
            "a clone is sharded block by block; give TRANSFORMER_BASED_WRAP or nothing",
        ),
    }
    for name, (asked, instead) in wrong.items():
        if asked:
            raise InputError(f"the launcher's {name}: got {asked}, expected nothing; {instead}")
    return plugin


def _true(flag: str) -> bool:
    return flag.lower() in ("1", "true", "yes", "y", "on", "t")

"""Which engine a launcher's variables mean, and what of its wishes is refused."""

import pytest
from tiny_trainer import arguments

from lowrank_clone import InputError
from lowrank_clone.training.engines import Engine, take_engine

FSDP2 = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch):
    """Set the launcher's variables, and leave none of ours behind."""

    def launch(**variables: str) -> None:
        for name in ("ACCELERATE_USE_FSDP", "LOWRANK_CLONE_FSDP2"):
            monkeypatch.setenv(name, "")
            monkeypatch.delenv(name)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return launch


def test_the_wish_for_fsdp2_is_taken_once_and_remembered(launched) -> None:
    import os

    launched(**FSDP2, WORLD_SIZE="4")
    assert take_engine() == Engine("fsdp2") == take_engine()
    assert "ACCELERATE_USE_FSDP" not in os.environ  # accelerate and transformers would act on it
    launched(**FSDP2, WORLD_SIZE="4", FSDP_RESHARD_AFTER_FORWARD="false")
    assert take_engine() == Engine("fsdp2", reshard_after_forward=False)


def test_one_process_needs_no_engine(launched) -> None:
    launched(**FSDP2, WORLD_SIZE="1")
    assert take_engine() == Engine("none")
    launched(WORLD_SIZE="2")
    assert take_engine() == Engine("ddp")


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, r"asks for DeepSpeed, expected DDP or FSDP2.*--launch fsdp2"),
        ({"FSDP_VERSION": "1"}, r"FSDP 1, expected 2.*fsdp_version: 2"),
        ({"FSDP_OFFLOAD_PARAMS": "true"}, r"fsdp_offload_params: got .*expected nothing"),
        ({"FSDP_ACTIVATION_CHECKPOINTING": "true"}, r"set training.activation_checkpointing"),
        ({"FSDP_IGNORED_MODULES": "lm_head"}, r"fsdp_ignored_modules: got lm_head"),
        ({"FSDP_AUTO_WRAP_POLICY": "SIZE_BASED_WRAP"}, r"block by block"),
        ({"FSDP_RESHARD_AFTER_FORWARD": "perhaps"}, r"the launcher's FSDP: "),
    ],
)
def test_what_there_is_not_is_refused_in_one_line(variables: dict[str, str], said: str, launched) -> None:
    launched(**{**FSDP2, "WORLD_SIZE": "2", **variables})
    with pytest.raises(InputError, match=said) as caught:
        take_engine()
    assert "\n" not in str(caught.value)


def test_an_optimiser_that_cannot_step_parts_is_refused(launched, tmp_path) -> None:
    launched(**FSDP2, WORLD_SIZE="2")
    with pytest.raises(InputError, match=r"training.optim: got adafactor under FSDP2, expected another"):
        arguments(tmp_path, optim="adafactor")


def test_a_sharded_teacher_needs_fsdp2(launched, tmp_path) -> None:
    with pytest.raises(InputError, match=r"training.teacher_sharding: got 'some', expected one of none, fsdp"):
        arguments(tmp_path, teacher_sharding="some")
    launched(WORLD_SIZE="2")
    with pytest.raises(InputError, match=r"teacher_sharding: got fsdp under DDP, expected none; .*--launch fsdp2"):
        arguments(tmp_path, teacher_sharding="fsdp")

"""Checkpoints: what is loaded into what, damage of every file, and that nothing counts before it is complete."""

from __future__ import annotations

import copy
import json
import logging
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import batch, tiny_model
from torch import Tensor

from lowrank_clone import CloneArguments, CloneModel, CloneTrainer, InputError
from lowrank_clone.factors.bases import Core
from lowrank_clone.factors.transfer import expected_links
from lowrank_clone.training import checksums
from lowrank_clone.training.checkpoint import load_clone, save_clone, start_clone
from lowrank_clone.training.digest import CHUNK, digest_of
from lowrank_clone.training.last_checkpoint import last_checkpoint

OUT = "model.layers.0.self_attn.o_proj.weight"


def clone(family: str = "llama", teacher: dict[str, Any] | None = None, **options: Any) -> CloneModel:
    return CloneModel(tiny_model(family, **(teacher or {})), 16, **{"factor_std": 0.2, **options}).eval()


def logits(model: CloneModel) -> Tensor:
    with torch.no_grad():
        return model.student(input_ids=batch()).logits


def shaken(model: CloneModel) -> CloneModel:
    """Every factor moved, so that a dense one is no longer what a projected one could be."""
    generator = torch.Generator().manual_seed(5)
    noise = {name: p + 0.1 * torch.randn(p.shape, generator=generator) for name, p in model.factors.items()}
    model.factors.load({name: value.detach() for name, value in noise.items()})
    return model


# --- one parameterization into another --------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "starcoder2", "gpt_oss"])
@pytest.mark.parametrize("ours", ["projected", "dense", "core"])
@pytest.mark.parametrize("theirs", ["projected", "dense", "core"])
def test_every_kind_starts_every_kind_or_is_refused(theirs: str, ours: str, family: str, tmp_path: Path) -> None:
    groups = ("attention", "experts" if family == "gpt_oss" else "ffn")
    first = shaken(clone(family, parameterization=dict.fromkeys(groups, theirs), seed=1))
    save_clone(first, tmp_path)
    second = clone(family, parameterization=dict.fromkeys(groups, ours), seed=2)
    before = {name: p.detach().clone() for name, p in second.factors.items()}
    if ours == "projected" != theirs:
        with pytest.raises(InputError, match=f"its attention matrices are `{theirs}`") as caught:
            start_clone(second, tmp_path)
        assert "\n" not in str(caught.value) and "method.parameterization.attention" in str(caught.value)
        assert all(torch.equal(before[name], p) for name, p in second.factors.items())
        load_clone(second, tmp_path)  # going on takes their kinds
        assert second.kinds == first.kinds
    else:
        start_clone(second, tmp_path)
        assert {second.kinds[group] for group in groups} == {ours}
    torch.testing.assert_close(logits(second), logits(first), rtol=1e-4, atol=1e-4)
    second.factors.push()
    torch.testing.assert_close(logits(second), logits(first), rtol=1e-4, atol=1e-4)
    if theirs == ours:
        assert torch.equal(logits(second), logits(first))


def test_a_projected_checkpoint_loads_into_what_has_switched_since(tmp_path: Path) -> None:
    first = shaken(clone(seed=1))
    save_clone(first, tmp_path)
    second = clone(parameterization={"ffn": "dense", "attention": "core"}, seed=2)
    load_clone(second, tmp_path)
    assert second.kinds["ffn"] == "dense" and second.kinds["attention"] == "core"
    torch.testing.assert_close(logits(second), logits(first), rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        for name in ("loss", "clone"):
            torch.testing.assert_close(second(batch())[name], first(batch())[name], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", ["llama", "starcoder2", "gpt_oss"])
@pytest.mark.parametrize("share", ["own", "embedding"])
def test_links_are_known_without_weights(share: str, family: str, tied: bool) -> None:
    cases: list[dict[str, str]] = [{}, {"embedding": "dense"}, {"attention": "core"}]
    cases += [] if tied else [{"head": "dense"}, {"embedding": "dense", "head": "dense"}]
    model = clone(family, {"tie_word_embeddings": tied}, head_factor=share)
    for kinds in cases:
        other = clone(family, {"tie_word_embeddings": tied}, head_factor=share, parameterization=kinds)
        expected = expected_links(model.plan, kinds, share == "embedding", [name for name, _ in model.targets.items()])
        assert expected == {link.name: link.factor for link in other.factors.links}


# --- a checkpoint that lacks a factor ---------------------------------------------------------------------------------


def test_a_head_of_its_own_takes_the_shared_factor(tmp_path: Path) -> None:
    first = shaken(clone(teacher={"tie_word_embeddings": False}, head_factor="embedding"))
    save_clone(first, tmp_path)
    second = clone(teacher={"tie_word_embeddings": False}, head_factor="own", seed=2)
    load_clone(second, tmp_path)
    assert torch.equal(second.factors["lm_head.weight"], first.factors["model.embed_tokens.weight"])
    assert torch.equal(logits(second), logits(first))


def test_a_shared_head_can_not_take_two_factors(tmp_path: Path) -> None:
    save_clone(clone(teacher={"tie_word_embeddings": False}, head_factor="own"), tmp_path)
    second = clone(teacher={"tie_word_embeddings": False}, head_factor="embedding", seed=2)
    with pytest.raises(InputError, match=r"set method\.head_factor to own"):
        load_clone(second, tmp_path)


def test_a_target_takes_the_z_of_its_write_or_is_refused(tmp_path: Path) -> None:
    first = shaken(clone(attn_out_tap="teacher", seed=1))
    save_clone(first, tmp_path / "projected")
    second = clone(parameterization={"attention": "dense"}, seed=2)
    load_clone(second, tmp_path / "projected")
    assert torch.equal(second.factors[OUT + ".Z"], first.factors[OUT])
    torch.testing.assert_close(logits(second), logits(first), rtol=1e-4, atol=1e-4)

    save_clone(clone(attn_out_tap="teacher", parameterization={"attention": "dense"}), tmp_path / "dense")
    third = clone(seed=2)
    before = {name: p.detach().clone() for name, p in third.factors.items()}
    with pytest.raises(InputError, match=f"no Z for the target of the tap on `{OUT}`") as caught:
        load_clone(third, tmp_path / "dense")
    assert "\n" not in str(caught.value)
    assert all(torch.equal(before[name], third.factors[name]) for name in before if name in third.factors)


def test_targets_that_are_not_compared_here_are_left(tmp_path: Path) -> None:
    first = shaken(clone(parameterization={"attention": "dense"}, seed=1))
    save_clone(first, tmp_path)
    second = clone(attn_out_tap="teacher", parameterization={"attention": "dense"}, seed=2)
    load_clone(second, tmp_path)
    assert OUT + ".Z" not in second.factors
    assert torch.equal(logits(second), logits(first))


def test_a_student_from_scratch_and_a_clone_do_not_mix(tmp_path: Path) -> None:
    options: dict[str, Any] = {"start": "scratch", "kl_weight": 0.0, "clone_weight": 0.0}
    save_clone(clone(**options), tmp_path / "scratch")
    save_clone(
        clone(parameterization=dict.fromkeys(("attention", "ffn", "embedding", "head"), "dense")), tmp_path / "b"
    )
    with pytest.raises(InputError, match="its student is from scratch"):
        load_clone(clone(), tmp_path / "scratch")
    with pytest.raises(InputError, match="its student is a clone"):
        load_clone(clone(**options), tmp_path / "b")
    load_clone(clone(**options), tmp_path / "scratch")


def test_running_means_that_are_not_there_are_refused(tmp_path: Path) -> None:
    save_clone(clone(), tmp_path / "none")
    with pytest.raises(InputError, match=r"no running mean squares.*clone_normalization"):
        load_clone(clone(clone_normalization="target"), tmp_path / "none")
    start_clone(clone(clone_normalization="target"), tmp_path / "none")  # a new run has none yet
    one = clone(clone_normalization="target").train()
    one(batch())
    save_clone(one, tmp_path / "target")
    some = clone(clone_normalization="target", taps=lambda tap: tap.kind == "write")
    with pytest.raises(InputError, match=r"no running mean squares.*method\.taps"):
        load_clone(some, tmp_path / "target")
    other = clone(clone_normalization="target")
    load_clone(other, tmp_path / "target")
    for model in (one, other):
        model.target_squares.fold()
    assert torch.equal(one.target_squares.mean, other.target_squares.mean)


# --- the teacher's digest ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", [0, 1, CHUNK - 1, CHUNK, 2 * CHUNK + 5])
def test_every_number_of_the_teacher_counts(place: int) -> None:
    model = torch.nn.Module()
    model.weight = torch.nn.Parameter(torch.randn(3, CHUNK))
    before, kept = digest_of(model), model.weight.detach().clone()
    assert digest_of(model) == before
    with torch.no_grad():
        model.weight.view(-1)[place] = torch.nextafter(model.weight.view(-1)[place], torch.tensor(9.0))
    assert digest_of(model) != before
    with torch.no_grad():
        model.weight.copy_(kept)
    assert digest_of(model) == before
    with torch.no_grad():
        model.weight.copy_(kept[[1, 0, 2]])  # as a reordered vocabulary does
    assert digest_of(model) != before


def test_the_digest_is_that_of_the_numbers_whatever_their_dtype() -> None:
    model = tiny_model("llama", dtype=torch.bfloat16)
    wide = tiny_model("llama", dtype=torch.bfloat16).float()
    assert digest_of(model) == digest_of(wide) != digest_of(tiny_model("llama"))
    renamed = torch.nn.ModuleDict({"a": wide.model})
    assert digest_of(renamed) != digest_of(torch.nn.ModuleDict({"b": wide.model}))


def test_a_teacher_with_another_vocabulary_order_is_refused(tmp_path: Path) -> None:
    save_clone(clone(), tmp_path)
    teacher = tiny_model("llama")
    with torch.no_grad():
        rows = teacher.model.embed_tokens.weight
        rows[[-1, -2]] = rows[[-2, -1]]
    with pytest.raises(InputError, match="other weights"):
        load_clone(CloneModel(teacher, 16), tmp_path)


# --- damage -----------------------------------------------------------------------------------------------------------


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "missing": Path.unlink,
    "empty": lambda path: path.write_bytes(b""),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-7]),
    "flipped": flip,
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
}
FILES = ("factors.safetensors", "plan.json", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    trainer(folder).train()
    return folder


def trainer(folder: Path) -> CloneTrainer:
    arguments = CloneArguments(
        output_dir=str(folder),
        per_device_train_batch_size=2,
        max_steps=4,
        save_steps=2,
        learning_rate=1e-3,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    return CloneTrainer(clone(), arguments, train_dataset=[{"input_ids": row} for row in batch(8, 8)])


@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.parametrize("file", [*FILES, "manifest.json"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(
    file: str, how: str, run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    if (file, how) == ("manifest.json", "longer"):
        pytest.skip("a zero after the end of a JSON object is an error like any other")
    folder = shutil.copytree(run, tmp_path / "run")
    DAMAGES[how](folder / "checkpoint-4" / file)
    with caplog.at_level(logging.WARNING):
        assert last_checkpoint(folder) == folder / "checkpoint-2"
    (said,) = [record.getMessage() for record in caplog.records if record.name.startswith("lowrank_clone")]
    assert "checkpoint-4 is not used" in said and "\n" not in said and file in said
    shutil.rmtree(folder / "checkpoint-2")
    assert last_checkpoint(folder) is None


@pytest.mark.parametrize("file", FILES)
def test_resuming_from_a_damaged_checkpoint_is_refused(file: str, run: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(run, tmp_path / "run")
    flip(folder / "checkpoint-4" / file)
    resumed = trainer(folder)
    before = {name: p.detach().clone() for name, p in resumed.clone.factors.items()}
    with pytest.raises(InputError, match=f"{file} is damaged") as caught:
        resumed.train(resume_from_checkpoint=str(folder / "checkpoint-4"))
    assert "\n" not in str(caught.value)
    assert all(torch.equal(before[name], p) for name, p in resumed.clone.factors.items())


class Planted:
    """What runs code when it is unpickled without care."""

    def __reduce__(self) -> Any:
        return (Path.touch, (Path("planted"),))


@pytest.mark.parametrize("file", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
@pytest.mark.parametrize(
    "content", [b"", b"no pickle", pickle.dumps(Planted(), protocol=2)], ids=["empty", "text", "planted"]
)
def test_files_of_the_trainer_that_can_not_be_read_end_in_one_line(
    file: str, content: bytes, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = shutil.copytree(run, tmp_path / "run")
    (folder / "checkpoint-2" / file).write_bytes(content)
    checksums.seal(folder / "checkpoint-2")
    with pytest.raises(InputError, match="can't be gone on with") as caught:
        trainer(folder).train(resume_from_checkpoint=str(folder / "checkpoint-2"))
    assert "\n" not in str(caught.value) and not (tmp_path / "planted").exists()


def retold(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    plan = json.loads((folder / "plan.json").read_text())
    plan = change(plan) or plan
    (folder / "plan.json").write_text(json.dumps(plan))
    checksums.seal(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda plan: plan.pop("kinds") and None, "plan.json is damaged: `kinds`: field required"),
        (lambda plan: plan.update(more=1), "plan.json is damaged: `more`: unexpected"),
        (lambda plan: plan.update(kinds=[]), "plan.json is damaged: `kinds`: input should be"),
        (lambda plan: plan["kinds"].update(ffn="thin"), "plan.json is damaged: `kinds.ffn`: string should"),
        (lambda plan: plan["kinds"].pop("ffn") and None, "its groups are"),
        (lambda plan: plan["links"].pop("lm_head.weight") and None, "`factor:lm_head.weight` generates nothing"),
        (lambda plan: plan["links"].update(a="b"), "`factor:b` is not stored"),
        (lambda plan: plan.update(student_width="16"), "plan.json is damaged: `student_width`"),
        (lambda plan: plan.update(format=1), "plan.json has format 1, expected 2; another version"),
        (lambda plan: plan.pop("format") and None, "plan.json has format None, expected 2"),
        (lambda plan: [plan], "plan.json has format None, expected 2"),
        (lambda plan: plan["tensors"].append("factor:a"), "plan.json is damaged: `factor:a` generates nothing"),
    ],
)
def test_a_plan_of_another_version_is_refused(change: Any, message: str, tmp_path: Path) -> None:
    save_clone(clone(), tmp_path)
    retold(tmp_path, change)
    with pytest.raises(InputError, match=message) as caught:
        load_clone(clone(), tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop("factor:lm_head.weight") is None, "lacks `factor:lm_head.weight`"),
        (lambda tensors: tensors.update({"factor:a": torch.ones(1)}), "holds, beyond what its plan lists, `factor:a`"),
        (lambda tensors: tensors["factor:lm_head.weight"].fill_(torch.nan), "`lm_head.weight` holds numbers that are"),
        (
            lambda tensors: tensors.update({"factor:lm_head.weight": tensors["factor:lm_head.weight"].half()}),
            "`lm_head.weight` is stored as torch.float16, expected torch.float32",
        ),
        (
            lambda tensors: tensors.update({"factor:lm_head.weight": tensors["factor:lm_head.weight"].double()}),
            "`lm_head.weight` is stored as torch.float64",
        ),
        (
            lambda tensors: tensors.update({"factor:lm_head.weight": torch.ones(16, 24)}),
            r"`lm_head.weight`: got shape \[16, 24\]",
        ),
    ],
)
def test_factors_that_are_not_what_was_written_are_refused(change: Any, message: str, tmp_path: Path) -> None:
    save_clone(clone(), tmp_path)
    tensors = load_file(tmp_path / "factors.safetensors")
    change(tensors)
    save_file(tensors, tmp_path / "factors.safetensors")
    with pytest.raises(InputError, match=r"factors\.safetensors is damaged"):
        load_clone(clone(), tmp_path)
    checksums.seal(tmp_path)
    model = clone(seed=2)
    before = {name: p.detach().clone() for name, p in model.factors.items()}
    with pytest.raises(InputError, match=message) as caught:
        load_clone(model, tmp_path)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(before[name], p) for name, p in model.factors.items())


# --- saving -----------------------------------------------------------------------------------------------------------


def test_a_save_that_is_cut_off_leaves_what_was_there(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint-2"
    with checksums.written_whole(folder):
        (folder / "trainer_state.json").write_text('{"global_step": 2}')
    assert last_checkpoint(tmp_path) == folder
    with pytest.raises(OSError, match="full"), checksums.written_whole(folder):
        assert last_checkpoint(tmp_path) == tmp_path / "_checkpoint-2"  # as after a kill at this moment
        (folder / "trainer_state.json").write_text('{"cut')
        raise OSError("full")
    assert last_checkpoint(tmp_path) == folder
    assert (folder / "trainer_state.json").read_text() == '{"global_step": 2}'
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-2"]


def test_files_of_others_in_a_checkpoint_s_folder_are_left(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint-2"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(OSError, match="full"), checksums.written_whole(folder):
        (folder / "plan.json").write_text("{}")
        raise OSError("full")
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]


# --- the module itself ------------------------------------------------------------------------------------------------


def copies(model: CloneModel) -> dict[str, CloneModel]:
    return {"deepcopy": copy.deepcopy(model), "pickle": pickle.loads(pickle.dumps(model))}


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_a_copy_is_a_clone_of_its_own(how: str) -> None:
    model = clone("starcoder2", parameterization={"ffn": "core"})
    other = copies(model)[how]
    before = logits(model)
    assert torch.equal(logits(other), before)
    shaken(other)
    assert not torch.equal(logits(other), before) and torch.equal(logits(model), before)
    leaves = {id(p) for p in other.parameters()}
    assert all(id(link.leaf) in leaves for link in other.factors.links)
    other.train()(batch()).loss.backward()
    assert set(other.factors.gradients()) == set(other.factors)


def test_a_compiled_clone_is_not_copied() -> None:
    model = clone()
    model.compile_layers(backend="eager")
    for how in (copy.deepcopy, pickle.dumps):
        with pytest.raises(InputError, match="compiled"):
            how(model)


def test_state_dict_holds_the_factors(tmp_path: Path) -> None:
    model, other = clone(parameterization={"ffn": "dense"}, seed=1), clone(seed=2)
    torch.save(model.state_dict(), tmp_path / "state.pt")
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert other.kinds == model.kinds and torch.equal(logits(other), logits(model))
    other.factors.push()
    assert torch.equal(logits(other), logits(model))
    state = model.state_dict()
    with pytest.raises(InputError, match="assign"):
        other.load_state_dict(state, assign=True)
    with pytest.raises(InputError, match="no factors"):
        other.load_state_dict({name: value for name, value in state.items() if name != "_extra_state"}, strict=False)


def test_bases_move_with_the_model() -> None:
    model = clone(parameterization={"ffn": "core"}, attn_out_tap="teacher", clone_normalization="target")
    model.train()(batch())
    seen: set[int] = set()

    def visit(tensor: Tensor) -> Tensor:
        seen.add(tensor.data_ptr())
        return tensor

    model._apply(visit)
    owned = [link.basis for link in model.factors.links if isinstance(link.basis, Core)]
    assert owned and all({b.reflections.data_ptr(), b.scales.data_ptr()} <= seen for b in owned)
    model.to("meta")
    places = {p.device.type for p in model.factors.parameters()} | {
        link.leaf.device.type for link in model.factors.links
    }
    for link in model.factors.links:
        places |= {value.device.type for value in vars(link.basis).values() if isinstance(value, Tensor)}
    assert places == {"meta"}
    leaves = {id(p) for p in model.parameters()}
    assert all(id(link.leaf) in leaves for link in model.factors.links)


@pytest.mark.parametrize("kind", ["projected", "dense", "core"])
def test_a_cast_model_is_the_model_of_that_dtype(kind: str) -> None:
    kinds = {"ffn": kind, "attention": kind}
    model = shaken(clone(parameterization=kinds))
    for dtype in (torch.bfloat16, torch.float16):
        other = copy.deepcopy(model).to(dtype)
        assert {p.dtype for p in other.factors.parameters()} == {torch.float32}
        assert {p.dtype for p in other.parameters()} == {dtype}
        torch.testing.assert_close(logits(other).float(), logits(model), rtol=0.1, atol=0.5)
        before = [link.leaf.detach().clone() for link in other.factors.links]
        other.factors.push()
        assert all(torch.equal(a, link.leaf) for a, link in zip(before, other.factors.links, strict=True))
    wide = copy.deepcopy(model).to(torch.float64)
    assert {p.dtype for p in wide.factors.parameters()} == {torch.float64}
    torch.testing.assert_close(logits(wide).float(), logits(model), rtol=1e-4, atol=1e-4)
    wide.train()(batch()).loss.backward()
    assert {grad.dtype for grad in wide.factors.gradients().values()} == {torch.float64}
    assert {p.dtype for p in wide.float().factors.parameters()} == {torch.float32}

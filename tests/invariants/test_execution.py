"""Losses and gradients are the same however they are computed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import pytest
import torch
from oracles import naive_objective
from tiny import VOCAB, batch, tiny_model
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lowrank_clone.model import CloneModel
from lowrank_clone.objective import lm_kl
from lowrank_clone.training.optim import bind

# Dynamo looks at `.grad` of what it is given, layers' inputs too.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")

TEMPERATURE, KL_WEIGHT, CLONE_WEIGHT = 2.0, 0.7, 0.3


@pytest.fixture(autouse=True)
def _fresh_dynamo() -> Iterator[None]:
    yield
    torch._dynamo.reset()


def clone(
    family: str = "llama",
    attn: str = "eager",
    dtype: torch.dtype = torch.float64,
    device: str = "cpu",
    fields: Mapping[str, Any] | None = None,
    **options: Any,
) -> CloneModel:
    teacher = tiny_model(family, dtype=dtype, **(fields or {})).to(device)
    teacher.set_attn_implementation(attn)
    weights = {"temperature": TEMPERATURE, "kl_weight": KL_WEIGHT, "clone_weight": CLONE_WEIGHT}
    return CloneModel(teacher, 16, **weights, **options).train()


def results(model: CloneModel) -> dict[str, Tensor]:
    """The terms of one batch, and every factor's gradient."""
    output = model(batch().to(model.student.device))
    output.loss.backward()
    model.factors.pull()
    terms = {"loss": output.loss, "lm": output.lm, "kl": output.kl, **output.taps}
    return terms | {f"{name}.grad": factor.grad for name, factor in model.factors.named_parameters()}


def naive_results(model: CloneModel) -> dict[str, Tensor]:
    naive = naive_objective(model, batch())
    gradients = {f"{name}.grad": gradient for name, gradient in naive.gradients.items()}
    return {"loss": naive.loss, "lm": naive.lm, "kl": naive.kl, **naive.taps, **gradients}


def compiled(**options: Any) -> CloneModel:
    model = clone(**options)
    model.compile_layers(backend="aot_eager")
    return model


def checkpointed(model: CloneModel, recompute: str = "all") -> CloneModel:
    model.activation_checkpointing_enable({"recompute": recompute})
    return model


WAYS: dict[str, Callable[..., CloneModel]] = {
    "fused": clone,
    "interleaved": partial(clone, execution="interleaved"),
    "checkpointed": lambda **family: checkpointed(clone(**family)),
    "compiled": compiled,
    "compiled and interleaved": partial(compiled, execution="interleaved"),
    "compiled and checkpointed": lambda **family: checkpointed(compiled(**family)),
    "all three": lambda **family: checkpointed(compiled(execution="interleaved", **family)),
    "elementwise": lambda **family: checkpointed(clone(**family), "elementwise"),
    "elementwise and interleaved": lambda **family: checkpointed(
        clone(execution="interleaved", **family), "elementwise"
    ),
    "elementwise and compiled": lambda **family: checkpointed(compiled(**family), "elementwise"),
    "sdpa": partial(clone, attn="sdpa"),
    "elementwise and sdpa": lambda **family: checkpointed(clone(attn="sdpa", **family), "elementwise"),
}
# What the model changes in place after a tapped module has returned it: q, k and v are clamped; the routed experts are
# added to the shared one's output.
IN_PLACE: dict[str, dict[str, Any]] = {
    "olmo": {"clip_qkv": 0.3, "hidden_size": 32},
    "llama4_text": {"num_local_experts": 4, "num_experts_per_tok": 1, "intermediate_size_mlp": 40},
}


def assert_close(ours: dict[str, Tensor], theirs: dict[str, Tensor], tolerance: float = 1e-9) -> None:
    assert ours.keys() == theirs.keys()
    for name in ours:
        error = (ours[name] - theirs[name]).norm() / theirs[name].norm().clamp(min=1e-12)
        assert error < tolerance, f"{name}: relative error {error:.1e}"


@pytest.mark.parametrize("way", WAYS)
def test_every_way_gives_the_naive_result(way: str) -> None:
    # Rotary angles are float32, and each implementation of attention rounds its own way.
    assert_close(results(WAYS[way]()), naive_results(clone()), 1e-6 if "sdpa" in way else 1e-9)


@pytest.mark.parametrize("way", ["fused", "interleaved", "all three", "elementwise", "elementwise and compiled"])
@pytest.mark.parametrize("family", IN_PLACE)
def test_what_a_family_changes_in_place_is_compared_as_it_was_returned(family: str, way: str) -> None:
    fields = IN_PLACE[family]
    assert_close(results(WAYS[way](family=family, fields=fields)), naive_results(clone(family, fields=fields)))


@pytest.mark.parametrize("rows", [1, 5, 24, 1000])
@pytest.mark.parametrize("block_rows", [1, 3, 1000])
def test_every_chunk_size_gives_the_naive_result(monkeypatch: pytest.MonkeyPatch, rows: int, block_rows: int) -> None:
    monkeypatch.setitem(lm_kl.CHUNK_ELEMENTS, "cpu", VOCAB * rows)
    monkeypatch.setitem(lm_kl.BLOCK_ELEMENTS, "cpu", VOCAB * block_rows)
    assert_close(results(clone()), naive_results(clone()))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="flex attention has no backward pass on the CPU")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
def test_flex_attention_gives_the_result_of_eager_attention() -> None:
    models = [clone(attn=attn, dtype=torch.float32, device="cuda") for attn in ("flex_attention", "eager")]
    assert_close(results(models[0]), results(models[1]), 1e-3)


@pytest.mark.parametrize("family", ["gemma2", "cohere", "mixtral"])
def test_compiled_families(family: str) -> None:
    # The products of experts know no float64.
    dtype, tolerance = (torch.float32, 1e-4) if family == "mixtral" else (torch.float64, 1e-9)
    model = clone(family, dtype=dtype)
    model.compile_layers(backend="aot_eager")
    assert_close(results(model), results(clone(family, dtype=dtype)), tolerance)


def test_layers_of_equal_structure_share_their_compiled_code() -> None:
    from torch._dynamo.testing import CompileCounterWithBackend

    counter = CompileCounterWithBackend("aot_eager")
    model = CloneModel(tiny_model("llama", num_hidden_layers=4), 16).train()
    model.compile_layers(backend=counter, fullgraph=True)
    for _ in range(2):
        model(batch()).loss.backward()
    assert counter.frame_count == 2  # one for the teacher, one for the student


def test_compiled_layers_follow_the_factors() -> None:
    eager, other = clone(), compiled()
    for model in (eager, other):
        optimizer = bind(torch.optim.AdamW(model.factors.parameters(), lr=1e-2), model.factors)
        for _ in range(2):
            model(batch()).loss.backward()
            optimizer.step()
    assert_close({"loss": other(batch()).loss}, {"loss": eager(batch()).loss})


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the compiler's own
def test_inductor_gives_the_eager_result() -> None:
    models = [CloneModel(tiny_model("llama"), 16).train() for _ in range(2)]
    models[1].compile_layers()
    assert_close(results(models[1]), results(models[0]), 1e-4)


class NoHostRead(TorchDispatchMode):
    """Refuses what makes the host wait for the device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name().removeprefix("aten::").split(".")[0]
        if name in ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero"):
            raise AssertionError(f"{name} reads a tensor on the host")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("normalization", ["none", "target"])
def test_no_host_reads_on_packed_sequences(monkeypatch: pytest.MonkeyPatch, normalization: str) -> None:
    # transformers itself reads one boolean per forward pass here, to see whether positions start anew within a row.
    monkeypatch.setattr("transformers.masking_utils.find_packed_sequence_indices", lambda position_ids: None)
    monkeypatch.setattr("lowrank_clone.objective.batch.readable", lambda values: False)  # as on an accelerator
    model = CloneModel(tiny_model("llama"), 16, clone_normalization=normalization).train()
    optimizer = bind(torch.optim.AdamW(model.factors.parameters(), foreach=True), model.factors, max_grad_norm=1.0)
    counts = torch.tensor([22, 24])
    for _ in range(2):  # the first mean of the targets is read once
        model(batch()).loss.backward()
        optimizer.step()
    with NoHostRead():
        for _ in range(2):
            model(batch(), num_items_in_batch=counts).loss.backward()
        model.factors.pull()
        model.factors.push()

"""The cost model against PyTorch's own FLOP counter, and against tensors that exist."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from tiny import batch, tiny_config, tiny_model
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from lowrank_clone.cost.accelerators import ACCELERATORS
from lowrank_clone.cost.estimate import Cost, estimate
from lowrank_clone.errors import InputError
from lowrank_clone.model import CloneModel
from lowrank_clone.objective.objective import Objective
from lowrank_clone.plan.classify import make_plan
from lowrank_clone.training.optim import bind

ROWS, LENGTH, WIDTH = 2, 12, 16
DENSE = ("llama", "qwen2", "qwen3", "gemma2", "phi3", "olmo2", "cohere", "starcoder2")
RECOMPUTED: tuple[dict[str, Any], ...] = ({"recompute": "all"}, {"recompute": "all", "every_n_layers": 2}, {})
FAMILIES = (*DENSE, "qwen3_moe", "mixtral", "gpt_oss")


def cost_of(plan: Any, **options: Any) -> Cost:
    return estimate(plan, micro_batch=ROWS, sequence_length=LENGTH, dtype=torch.float32, device="cpu", **options)


def counted(call: Any) -> int:
    """FLOPs by PyTorch's counter, told of the in-place product that it does not know."""
    addmm = {torch.ops.aten.addmm_: lambda to, left, right, **_: 2 * left[0] * left[1] * right[1]}
    with FlopCounterMode(display=False, custom_mapping=addmm) as counter:
        call()
    return counter.get_total_flops()


def clone_of(family: str, **options: Any) -> CloneModel:
    """A clone whose products are all explicit, and so counted."""
    clone = CloneModel(tiny_model(family), WIDTH, **options).train()
    if clone.config.to_dict().get("num_experts_per_tok"):
        clone.teacher.set_experts_implementation("eager")
        clone.student.set_experts_implementation("eager")
    return clone


@pytest.mark.parametrize("family", FAMILIES)
def test_flops_are_exact(family: str) -> None:
    clone = clone_of(family)
    cost = cost_of(clone.plan)
    tokens = ROWS * LENGTH
    output: list[torch.Tensor] = []

    def run() -> None:
        output.append(clone(batch(ROWS, LENGTH)).loss)

    forward = counted(run)
    backward = counted(lambda: output[0].backward())
    generation = counted(clone.factors.pull) + counted(clone.factors.push)
    expected = {part: value * tokens for part, value in cost.flops.items()}
    both = expected["teacher forward"] + expected["student forward"] + expected["student backward"]
    assert forward + backward == pytest.approx(both + expected["losses"] + expected["taps"], rel=1e-12)
    assert generation == pytest.approx(expected["pull and push"], rel=1e-12)
    with torch.no_grad():
        teacher = counted(lambda: clone.teacher(batch(ROWS, LENGTH), use_cache=False, logits_to_keep=1))
    assert teacher == pytest.approx(expected["teacher forward"], rel=1e-12)


def test_flops_of_options_are_exact() -> None:
    options = {"attn_out_tap": "teacher", "taps": lambda tap: tap.layer == 0}
    clone = clone_of("llama", **options)
    cost = cost_of(clone.plan, objective=clone.objective, taps=clone.taps, accumulation=2)
    measured = counted(lambda: clone(batch(ROWS, LENGTH)).loss.backward())
    generation = cost.flops["pull and push"]
    assert measured == pytest.approx((cost.flops_per_token - generation) * ROWS * LENGTH, rel=1e-12)
    pulled_and_pushed = counted(clone.factors.pull) + counted(clone.factors.push)
    assert pulled_and_pushed == pytest.approx(generation * 2 * ROWS * LENGTH, rel=1e-12)


@pytest.mark.parametrize(
    "terms",
    [
        {"kl_weight": 0.0, "clone_weight": 0.0},
        {"kl_weight": 0.0},
        {"clone_weight": 0.0},
        {"target_gradient": False},
        {"attn_out_tap": "teacher", "target_gradient": False},
    ],
    ids=str,
)
def test_flops_of_objectives_are_exact(terms: dict[str, Any]) -> None:
    clone = clone_of("qwen3", objective=Objective(**terms))
    cost = cost_of(clone.plan, objective=clone.objective)
    measured = counted(lambda: clone(batch(ROWS, LENGTH)).loss.backward())
    assert measured == pytest.approx((cost.flops_per_token - cost.flops["pull and push"]) * ROWS * LENGTH, rel=1e-12)
    assert cost.memory["student weights"] == 4 * sum(
        leaf.numel() for leaf in (*clone.student.parameters(), *(leaf for _, leaf in clone.targets.items()))
    )


def test_recomputation_is_one_forward_pass_of_the_layers_at_most() -> None:
    plain, checkpointed = clone_of("llama"), clone_of("llama")
    checkpointed.activation_checkpointing_enable()
    flops = [counted(lambda clone=clone: clone(batch(ROWS, LENGTH)).loss.backward()) for clone in (plain, checkpointed)]
    predicted = cost_of(plain.plan, recompute="all").flops["student recomputation"] * ROWS * LENGTH
    # It stops as soon as backward has all that it needs, which is before each layer's last product.
    assert 0.7 * predicted < flops[1] - flops[0] <= predicted


def test_elementwise_recomputation_multiplies_nothing_twice() -> None:
    plain, checkpointed = clone_of("llama"), clone_of("llama")
    checkpointed.activation_checkpointing_enable({"recompute": "elementwise"})
    for clone in (plain, checkpointed):
        clone.student.set_attn_implementation("sdpa")
    flops = [counted(lambda clone=clone: clone(batch(ROWS, LENGTH)).loss.backward()) for clone in (plain, checkpointed)]
    assert flops[0] == flops[1]
    assert cost_of(plain.plan, recompute="elementwise").flops["student recomputation"] == 0


def test_half_the_layers_checkpointed_cost_half() -> None:
    plan = make_plan(tiny_config("llama", num_hidden_layers=4), WIDTH)
    whole, half, none = (cost_of(plan, **options) for options in RECOMPUTED)
    assert half.flops["student recomputation"] == whole.flops["student recomputation"] / 2
    assert whole.memory["activations"] < half.memory["activations"] < none.memory["activations"]


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt_oss", "mixtral"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bytes_of_parameters_are_exact(family: str, dtype: torch.dtype) -> None:
    clone = CloneModel(tiny_model(family, dtype=dtype), WIDTH)
    memory = estimate(clone.plan, micro_batch=ROWS, sequence_length=LENGTH, dtype=dtype).memory

    def size(parameters: Any) -> int:
        return sum(p.numel() * p.element_size() for p in parameters)

    leaves = [leaf for _, leaf in clone.targets.items()]
    assert memory["teacher weights"] == size(clone.teacher.parameters())
    assert memory["student weights"] == size(clone.student.parameters()) + size(leaves)
    assert memory["factors"] == size(clone.factors.parameters())
    assert memory["gradients of the student"] == size([link.leaf for link in clone.factors.links])


@pytest.mark.parametrize("family", ["llama", "qwen3", "phi3", "olmo2"])
def test_activations_are_those_that_autograd_keeps(family: str) -> None:
    clone = CloneModel(tiny_model(family), WIDTH).train()
    clone.student.set_attn_implementation("sdpa")
    own = {p.untyped_storage().data_ptr() for p in clone.student.parameters()}
    kept: dict[int, tuple[int, torch.Tensor]] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        clone.student.get_decoder()(input_ids=batch(4, 48), use_cache=False)
    measured = sum(size for size, _ in kept.values())
    memory = estimate(clone.plan, micro_batch=4, sequence_length=48, dtype=torch.float32).memory
    assert memory["activations"] == pytest.approx(measured, rel=0.15)


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("recompute", ["nothing", "elementwise", "all"])
@pytest.mark.parametrize("family", ["llama", "qwen3", "phi3", "olmo2"])
def test_peak_memory_is_what_the_allocator_counts(family: str, recompute: Any, accumulation: int) -> None:
    sizes = {
        "hidden_size": 96,
        "intermediate_size": 256,
        "num_hidden_layers": 6,
        "num_attention_heads": 6,
        "head_dim": 16,
    }
    teacher = tiny_model(family, vocab_size=1000, **sizes)
    teacher.set_attn_implementation("sdpa")
    clone = CloneModel(teacher, 64).train()
    if recompute != "nothing":
        clone.activation_checkpointing_enable({"recompute": recompute})
    optimizer = bind(torch.optim.AdamW(clone.factors.parameters()), clone.factors)
    ids = torch.randint(3, 1000, (4, 128))

    def step() -> None:
        for _ in range(accumulation):
            clone(ids).loss.backward()
        optimizer.step()

    step()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    changes = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    measured = max(
        itertools.accumulate(event.nbytes() for event in sorted(changes, key=lambda event: event.start_ns()))
    )
    options = {"recompute": recompute, "accumulation": accumulation, "dtype": torch.float32, "device": "cpu"}
    cost = estimate(clone.plan, micro_batch=4, sequence_length=128, **options)
    predicted = cost.peak_bytes - cost.weight_bytes - cost.memory["optimiser"]
    assert predicted == pytest.approx(measured, rel=0.15)


def test_dense_and_core_train_what_is_deployed() -> None:
    kinds = {"ffn": "core", "attention": "dense"}
    clone = CloneModel(tiny_model("llama"), WIDTH, parameterization=kinds)
    trained = sum(factor.numel() for factor in clone.factors.parameters())
    cost = cost_of(clone.plan, parameterization=kinds)
    assert cost.memory["factors"] == 4 * trained
    assert cost.flops["pull and push"] > 0


def test_a_budget() -> None:
    plan = make_plan(tiny_config("llama"), WIDTH)
    cost = estimate(plan, micro_batch=ROWS, sequence_length=LENGTH)
    run = cost.run(1e9, "h100-80gb", devices=2, utilisation=0.5)
    seconds = 1e9 * cost.flops_per_token / (2 * 0.5 * ACCELERATORS["h100-80gb"].bfloat16)
    assert run.hours == pytest.approx(seconds / 3600)
    assert run.kilowatt_hours == pytest.approx(run.hours * 2 * 0.7)
    assert run.fits
    assert not estimate(plan, micro_batch=2**20, sequence_length=2**12).run(1e9).fits


def test_a_budget_of_nonsense_is_refused() -> None:
    cost = cost_of(make_plan(tiny_config("llama"), WIDTH))
    with pytest.raises(InputError, match="accelerator: got 'abacus', expected one of a100"):
        cost.run(1e9, "abacus")
    with pytest.raises(InputError, match="utilisation: got 40"):
        cost.run(1e9, utilisation=40)


def test_rows_name_every_part_and_the_fullest_moment() -> None:
    cost = cost_of(make_plan(tiny_config("llama"), WIDTH))
    labels = [label for label, _ in cost.rows()]
    assert len(labels) == len(set(labels)) == len(cost.flops) + len(cost.memory) + 2
    assert labels[-1] == f"peak, {cost.fullest.name}, GiB"


def test_the_fullest_moment_follows_the_batch() -> None:
    plan = make_plan(tiny_config("llama"), WIDTH)
    large = estimate(plan, micro_batch=64, sequence_length=512, dtype=torch.float32)
    assert large.fullest.name == "in the loss"
    assert estimate(plan, micro_batch=1, sequence_length=1).fullest.name == "at the end of backward"
    for moment in large.moments:
        assert large.peak_bytes >= moment.bytes == sum(moment.parts.values())
        assert set(moment.parts) <= {*large.memory, "gradient of the head"}

"""Peak memory of an optimiser step at true shapes, counted tensor by tensor, beside what the cost model says.

    python benchmarks/memory.py                              # all shapes, and the table
    python benchmarks/memory.py --shape qwen2.5-7b --batch 1 4096 --accumulation 2

Nothing is computed and no GPU is needed: models, factors, optimiser and every operator of two steps run on PyTorch's
fake tensors, which have shapes and dtypes and no contents, and each storage is counted from the operator that makes it
to the moment when nothing refers to it any more. What differs between devices is set to a GPU's: size of the loss's
chunks, products of 16-bit factors that come out in float32, attention that is causal without a mask. A GPU needs more
than this count: its context, the libraries' workspaces, and what the allocator rounds up and can't reuse.
"""

from __future__ import annotations

import argparse
import json
import warnings
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, get_args
from unittest import mock

import torch
from speed import SHAPES
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AttentionInterface, AttentionMaskInterface, AutoModelForCausalLM, MistralConfig

from lowrank_clone import model
from lowrank_clone.cost.estimate import Cost, Recompute, estimate
from lowrank_clone.factors import links
from lowrank_clone.factors import teacher as teacher_checks
from lowrank_clone.model import CloneModel
from lowrank_clone.objective import batch as batch_checks
from lowrank_clone.objective import head, lm_kl
from lowrank_clone.objective.head import Head
from lowrank_clone.objective.probe import Probe, TapRuns
from lowrank_clone.training.optim import bind

# Shape, dtype, rows and length of a micro-batch.
CASES: dict[str, tuple[torch.dtype, tuple[int, int]]] = {
    "smollm2-135m": (torch.float32, (2, 512)),
    "llama-3.2-3b": (torch.bfloat16, (4, 2048)),
    "qwen2.5-7b": (torch.bfloat16, (2, 2048)),
}
RECOMPUTE = get_args(Recompute)


class Tally(TorchDispatchMode):
    """Bytes of all storages that operators have made and that are alive."""

    def __init__(self) -> None:
        super().__init__()
        self._alive: dict[int, weakref.ref[Any]] = {}
        self.bytes = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._alive:
            return

        def gone(_: Any) -> None:
            del self._alive[key]
            self.bytes -= size

        self._alive[key] = weakref.ref(storage, gone)
        self.bytes += size
        self.peak = max(self.peak, self.bytes)


@contextmanager
def as_on_a_gpu() -> Iterator[None]:
    """Let fake tensors of the CPU take the ways that tensors of a GPU take."""
    with ExitStack() as stack:
        stack.enter_context(mock.patch.dict(lm_kl.CHUNK_ELEMENTS, clear=True))
        stack.enter_context(mock.patch.dict(lm_kl.BLOCK_ELEMENTS, clear=True))
        for module in (head, lm_kl):
            stack.enter_context(mock.patch.object(module, "widens_products", lambda device: True))
        stack.enter_context(mock.patch.object(batch_checks, "readable", lambda values: False))
        # Whether numbers are finite can't be asked of tensors that have none.
        stack.enter_context(mock.patch.object(teacher_checks, "_check_finite", lambda teacher: None))
        stack.enter_context(mock.patch.object(links, "_check_start", lambda *_: None))
        # The taps compare addresses, and fake tensors have none to share.
        stack.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor")
        yield


def causal(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, scaling: float, **_: Any) -> Any:
    """Attention as GPUs run it: a kernel that keeps no [length, length] tensor and repeats no heads."""
    output = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling, enable_gqa=True)
    return output.transpose(1, 2).contiguous(), None


AttentionInterface.register("causal", causal)
AttentionMaskInterface.register("causal", lambda *args, **kwargs: None)


def head_of(side: Any) -> Head:
    """`taps.read_head` without looking at logits, which have no contents here; the model still runs once."""
    with torch.no_grad():
        side(input_ids=torch.zeros(1, 4, dtype=torch.long), use_cache=False)
    return Head(side.get_output_embeddings().weight)


def probe_of(side: Any, taps: Any, width: int) -> Probe:
    """`probe.probe_taps` without looking at outputs: every tapped module of a dense model runs once."""
    return Probe({tap.name: TapRuns() for tap in taps}, {}, frozenset())


def count(
    shape: str, dtype: torch.dtype, batch: tuple[int, int], accumulation: int, recompute: Recompute
) -> tuple[int, int, Cost]:
    """Bytes of weights and factors before the first step, bytes at the peak of the second, and the prediction."""
    fields = SHAPES[shape]
    config = MistralConfig(**fields["config"], sliding_window=None, max_position_embeddings=8192)
    tally = Tally()
    known = mock.patch.multiple(model, read_head=head_of, probe_taps=probe_of)
    with as_on_a_gpu(), known, FakeTensorMode(), tally:
        teacher = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="causal")
        clone = CloneModel(teacher, fields["student"]).train()
        if recompute != "nothing":
            clone.activation_checkpointing_enable({"recompute": recompute})
        optimizer = bind(torch.optim.AdamW(clone.factors.parameters(), fused=True), clone.factors)
        ids = torch.randint(0, config.vocab_size, batch)

        def step() -> None:
            for _ in range(accumulation):
                (clone(ids).loss / accumulation).backward()
            optimizer.step()

        before = tally.bytes
        step()
        tally.peak = 0
        step()
    options = {"accumulation": accumulation, "dtype": dtype, "recompute": recompute}
    predicted = estimate(clone.plan, micro_batch=batch[0], sequence_length=batch[1], **options)
    return before, tally.peak, predicted


def table(rows: list[dict[str, Any]]) -> str:
    """The counts as Markdown."""
    lines = [
        "| shape | dtype | micro-batch | micro-batches | recomputed | weights, GiB | peak, GiB | cost model / count |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        shape = f"{row['shape']} -> {SHAPES[row['shape']]['student']}"
        lines.append(
            f"| {shape} | {row['dtype']} | {row['rows']} x {row['length']:,} | {row['accumulation']} "
            f"| {row['recompute']} | {row['weights'] / 2**30:.2f} | {row['peak'] / 2**30:.2f} "
            f"| {row['predicted'] / row['peak']:.3f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=[*CASES, "tiny"], action="append", help="this shape only; may be repeated")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"])
    parser.add_argument("--batch", type=int, nargs=2, metavar=("ROWS", "LENGTH"))
    parser.add_argument("--accumulation", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--recompute", nargs="+", choices=RECOMPUTE, default=list(RECOMPUTE))
    parser.add_argument("--output", type=Path, help="raw figures, JSON")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for shape in options.shape or CASES:
        dtype, batch = CASES.get(shape, (torch.float32, (2, 64)))
        dtype = getattr(torch, options.dtype) if options.dtype else dtype
        batch = tuple(options.batch) if options.batch else batch
        for recompute in options.recompute:
            for accumulation in options.accumulation:
                weights, peak, cost = count(shape, dtype, batch, accumulation, recompute)
                rows.append(
                    {
                        "shape": shape,
                        "dtype": str(dtype).removeprefix("torch."),
                        "rows": batch[0],
                        "length": batch[1],
                        "accumulation": accumulation,
                        "recompute": recompute,
                        "weights": weights,
                        "peak": peak,
                        "predicted_weights": int(cost.weight_bytes),
                        "predicted": int(cost.peak_bytes),
                    }
                )
    if options.output:
        options.output.write_text(json.dumps(rows, indent=1) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()

"""samples.json: what a report shows of a finished run that only both models can tell, written when training ends."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from ..data.prepare import Blocks
from ..hooks import evaluating
from ..inspection.ranks import rows_ranks
from ..model import CloneModel
from ..objective.evaluate import rows_per_batch
from ..report.view import Rank, Sample

SAMPLES_FILE = "samples.json"
COUNT, PROMPT, LENGTH = 4, 48, 48  # texts; tokens of each that are given and that are generated, half a block at most


def measure_samples(clone: CloneModel, blocks: Blocks, tokenizer: PreTrainedTokenizerBase) -> str:
    """The text of samples.json: greedy continuations of validation text, and effective ranks on a few blocks of it."""
    validation = blocks.validation
    chosen = sorted({i * len(validation) // COUNT for i in range(COUNT)})
    ids = torch.stack([validation[i]["input_ids"] for i in chosen]).to(clone.student.device)
    given = min(PROMPT, ids.shape[1] // 2)
    after = min(LENGTH, ids.shape[1] - given)
    prompts = ids[:, :given]
    with torch.compiler.set_stance("force_eager"):  # one compilation for each length would take longer than the text
        written = [continuations(model, prompts, after, tokenizer) for model in (clone.teacher, clone.student)]
        few = validation.select(range(min(len(validation), rows_per_batch(ids.shape[1]))))
        ranks = rows_ranks(clone.teacher, clone.student, clone.plan, few)
    truths = ids[:, given : given + after]
    parts: list[Any] = [prompts, truths, *written]
    decoded = [tokenizer.batch_decode(part, skip_special_tokens=False) for part in parts]
    samples = [Sample(*texts) for texts in zip(*decoded, strict=True)]
    tree = {
        "samples": [asdict(sample) for sample in samples],
        "ranks": [asdict(Rank(r.layer, r.teacher, r.student)) for r in ranks],
        "rank_tokens": len(few) * ids.shape[1],
    }
    return json.dumps(tree, indent=1) + "\n"


@torch.no_grad()
def continuations(
    model: PreTrainedModel, prompts: Tensor, tokens: int, tokenizer: PreTrainedTokenizerBase
) -> list[Tensor]:
    """The ids that `model` writes greedily after each of `prompts` [n, length], up to the end of its text."""
    end = tokenizer.eos_token_id
    with evaluating(model):
        output: Any = model.generate(  # type: ignore[operator]
            prompts,
            attention_mask=torch.ones_like(prompts),
            max_new_tokens=tokens,
            do_sample=False,
            eos_token_id=end,
            pad_token_id=end if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
        )
    return [_ended(row, end) for row in output[:, prompts.shape[1] :]]


def _ended(row: Tensor, end: int | None) -> Tensor:
    """The row up to and with its first end of text."""
    found = [] if end is None else (row == end).nonzero().flatten().tolist()
    return row[: found[0] + 1] if found else row


def read_samples(folder: Path) -> tuple[tuple[Sample, ...], tuple[Rank, ...], int] | None:
    """What a run in `folder` wrote; None if it wrote nothing that can be read."""
    try:
        tree = json.loads((folder / SAMPLES_FILE).read_bytes())
        samples = tuple(Sample(**{key: str(text) for key, text in sample.items()}) for sample in tree["samples"])
        ranks = tuple(Rank(int(r["layer"]), float(r["teacher"]), float(r["student"])) for r in tree["ranks"])
        return samples, ranks, int(tree["rank_tokens"])
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None

"""samples.json: what a report shows of a finished run that only both models can tell, written when training ends."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from ..hooks import evaluating
from ..inspection.ranks import rows_ranks
from ..model import CloneModel
from ..objective.evaluate import rows_per_batch
from ..objective.tokens import document_starts
from ..report.view import Rank, Sample

SAMPLES_FILE = "samples.json"
COUNT, PROMPT, LENGTH = 4, 48, 48  # texts; tokens of each that are given, half of it at most, and that are generated


def measure_samples(
    clone: CloneModel, validation: Sequence[Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase
) -> str:
    """The text of samples.json: greedy continuations of validation text, and effective ranks on a few rows of it.

    Args:
        validation: Rows with `input_ids`, and `attention_mask`, `position_ids` where they have any. Of each row its
            longest document is looked at.
    """
    chosen = [longest_document(validation[i]) for i in sorted({i * len(validation) // COUNT for i in range(COUNT)})]
    few = range(min(len(validation), rows_per_batch(len(validation[0]["input_ids"]))))
    texts = [longest_document(validation[i]) for i in few]
    samples = []
    with torch.compiler.set_stance("force_eager"):  # one compilation for each length would take longer than the text
        for ids in chosen:
            given = max(1, min(PROMPT, len(ids) // 2))
            prompt, truth = ids[:given], ids[given : given + LENGTH]
            written = [continuation_ids(model, prompt, LENGTH, tokenizer) for model in (clone.teacher, clone.student)]
            parts: list[Any] = [prompt, truth, *written]
            samples.append(Sample(*(str(tokenizer.decode(part, skip_special_tokens=False)) for part in parts)))
        ranks = rows_ranks(clone.teacher, clone.student, clone.plan, texts)
    tree = {
        "samples": [asdict(sample) for sample in samples],
        "ranks": [asdict(Rank(r.layer, r.teacher, r.student)) for r in ranks],
        "rank_tokens": sum(map(len, texts)),
    }
    return json.dumps(tree, indent=1) + "\n"


def longest_document(row: Mapping[str, Any]) -> Tensor:
    """The ids of the longest document of a packed row, [length]."""
    ids = torch.as_tensor(row["input_ids"])
    mask, positions = row.get("attention_mask"), row.get("position_ids")
    present = torch.ones_like(ids, dtype=torch.bool) if mask is None else torch.as_tensor(mask) != 0
    starts = document_starts(present[None], None if positions is None else torch.as_tensor(positions)[None])[0]
    document = starts.long().cumsum(-1).masked_fill(~present, 0)
    return ids[document == document[present].mode().values]


@torch.no_grad()
def continuation_ids(model: PreTrainedModel, prompt: Tensor, tokens: int, tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """The ids that `model` writes greedily after `prompt` [length], up to and with the end of its text."""
    end = tokenizer.eos_token_id
    ids = prompt[None].to(model.device)
    with evaluating(model):
        output: Any = model.generate(  # type: ignore[operator]
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=tokens,
            do_sample=False,
            eos_token_id=end,
            pad_token_id=end if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
        )
    written: Tensor = output[0, len(prompt) :].cpu()
    return written


def read_samples(folder: Path) -> tuple[tuple[Sample, ...], tuple[Rank, ...], int] | None:
    """What a run in `folder` wrote; None if it wrote nothing that can be read."""
    try:
        tree = json.loads((folder / SAMPLES_FILE).read_bytes())
        samples = tuple(Sample(**{key: str(text) for key, text in sample.items()}) for sample in tree["samples"])
        ranks = tuple(Rank(int(r["layer"]), float(r["teacher"]), float(r["student"])) for r in tree["ranks"])
        if not all(math.isfinite(number) for rank in ranks for number in (rank.teacher, rank.student)):
            return None
        return samples, ranks, int(tree["rank_tokens"])
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None

"""What a finished run writes for its report: greedy text and ranks."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from tiny import tiny_model
from tiny_tokenizer import tiny_tokenizer

from lowrank_clone.inspection.ranks import stream_ranks
from lowrank_clone.model import CloneModel
from lowrank_clone.run.samples import continuation_ids, longest_document, measure_samples

TOKENIZER = tiny_tokenizer(bos=False, eos=True, chat=True)


def clone_of(**options: Any) -> CloneModel:
    teacher = tiny_model("llama", vocab_size=258, bos_token_id=256, eos_token_id=257, pad_token_id=None)
    return CloneModel(teacher, 16, factor_std=0.2, **options)


def rows(count: int, length: int) -> list[list[int]]:
    return torch.randint(97, 122, (count, length), generator=torch.Generator().manual_seed(0)).tolist()


def greedy(model: Any, prompt: list[int], tokens: int) -> list[int]:
    """One whole forward pass for each token, up to the end of text."""
    ids = torch.tensor([prompt])
    for _ in range(tokens):
        if ids[0, -1] == 257:
            break
        with torch.no_grad():
            ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], dim=1)
    return ids[0, len(prompt) :].tolist()


def test_continuations_are_greedy_and_end_with_the_text() -> None:
    clone = clone_of()
    for prompt in rows(3, 6):
        for model in (clone.teacher, clone.student):
            found = continuation_ids(model, torch.tensor(prompt), 12, TOKENIZER)
            assert found.tolist() == greedy(model, prompt, 12)


@pytest.mark.parametrize(("count", "length"), [(1, 8), (9, 32), (3, 160), (2, 2)])
def test_samples_are_spread_over_the_validation_text(count: int, length: int) -> None:
    clone, ids = clone_of(), rows(count, length)
    held_out = [{"input_ids": row} for row in ids]
    modes = [module.training for module in clone.modules()]
    tree = json.loads(measure_samples(clone, held_out, TOKENIZER))
    assert [module.training for module in clone.modules()] == modes
    given = min(48, length // 2)
    prompts = [TOKENIZER.decode(ids[i][:given]) for i in sorted({i * count // 4 for i in range(4)})]
    assert [sample["prompt"] for sample in tree["samples"]] == prompts
    assert tree["samples"][0]["truth"] == TOKENIZER.decode(ids[0][given : given + 48])
    assert tree["samples"][0]["teacher"] == TOKENIZER.decode(greedy(clone.teacher, ids[0][:given], 48))
    oracle = stream_ranks(clone.teacher, clone.student, clone.plan, held_out)
    assert tree["rank_tokens"] == count * length
    assert [rank["student"] for rank in tree["ranks"]] == pytest.approx([rank.student for rank in oracle], rel=1e-5)


def test_of_a_packed_row_the_longest_document_is_taken_without_padding() -> None:
    ids = torch.arange(10)
    row = {"input_ids": ids, "position_ids": torch.tensor([0, 1, 0, 1, 2, 3, 0, 1, 0, 0])}
    assert longest_document(row).tolist() == [2, 3, 4, 5]
    padded = {**row, "attention_mask": torch.tensor([1, 1, 1, 0, 0, 0, 1, 1, 0, 0])}
    assert longest_document(padded).tolist() == [0, 1]
    assert longest_document({"input_ids": ids}).tolist() == list(range(10))


def test_layers_that_are_compiled_write_the_same() -> None:
    plain, compiled = clone_of(), clone_of()
    compiled.compile_layers(backend="eager")
    prompt = torch.tensor(rows(1, 6)[0])
    with torch.compiler.set_stance("force_eager"):
        found = [continuation_ids(clone.student, prompt, 8, TOKENIZER) for clone in (plain, compiled)]
    assert found[0].tolist() == found[1].tolist()

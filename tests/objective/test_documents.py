"""Documents packed into a row: each has the logits and the loss that it has alone, or the family is refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tiny import VOCAB, tiny_config, tiny_model
from torch import Tensor

from lowrank_clone.errors import InputError
from lowrank_clone.model import CloneModel
from lowrank_clone.objective import documents
from lowrank_clone.objective.documents import document_mask_refusal, model_inputs, packed
from lowrank_clone.objective.evaluate import language_loss
from lowrank_clone.plan.classify import make_plan

pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
LENGTHS = ((5, 21, 4), (2, 9, 8))  # the second row is padded with eleven places


def packed_batch(padded: bool = True) -> tuple[dict[str, Tensor], list[Tensor]]:
    """Two packed rows, and their documents."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, VOCAB, (2, 30), generator=generator)
    lengths = [list(LENGTHS[0]), [*LENGTHS[1], 11]]
    positions = torch.stack([torch.cat([torch.arange(length) for length in row]) for row in lengths])
    texts = [text for row, row_lengths in zip(ids, lengths, strict=True) for text in row.split(row_lengths)]
    batch = {"input_ids": ids, "position_ids": positions}
    if padded:
        texts = texts[:-1]
        batch["attention_mask"] = torch.ones_like(ids)
        batch["attention_mask"][1, 19:] = 0
    return batch, [text[None] for text in texts]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3_text", "qwen3_moe"])
def test_logits_of_a_packed_row_are_those_of_each_document_alone(family: str, attention: str) -> None:
    check_logits(family, attention)


@pytest.mark.slow  # compiles for minutes
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_flex_attention_does_the_same(family: str) -> None:
    check_logits(family, "flex_attention")


@torch.no_grad()
def check_logits(family: str, attention: str) -> None:
    model = tiny_model(family)
    model.set_attn_implementation(attention)
    for padded in (False, True):
        batch, texts = packed_batch(padded)
        logits = model(**model_inputs(batch, model), use_cache=False).logits.flatten(0, 1)
        alone = torch.cat([model(input_ids=text, use_cache=False).logits[0] for text in texts])
        torch.testing.assert_close(logits[: len(alone)], alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("place", [0, 12])
@torch.no_grad()
def test_nothing_of_a_document_reaches_the_next(place: int) -> None:
    model, (batch, _) = tiny_model("gemma3_text"), packed_batch()
    before = model(**model_inputs(batch, model), use_cache=False).logits
    batch["input_ids"] = batch["input_ids"].clone()
    batch["input_ids"][0, place] = (batch["input_ids"][0, place] + 1) % VOCAB
    moved = (
        (model(**model_inputs(batch, model), use_cache=False).logits != before).any(-1)[0].nonzero().flatten().tolist()
    )
    assert moved == list(range(place, 5 if place == 0 else 26))


def checkpointed(clone: CloneModel) -> CloneModel:
    clone.activation_checkpointing_enable()
    return clone


def compiled(clone: CloneModel) -> CloneModel:
    clone.compile_layers(backend="aot_eager")
    return clone


WAYS: dict[str, Callable[[CloneModel], CloneModel]] = {
    "sequential": lambda clone: clone,
    "interleaved": lambda clone: clone,
    "checkpointed": checkpointed,
    "compiled": compiled,
}


@pytest.mark.parametrize("way", WAYS)
def test_the_loss_of_packed_rows_is_that_of_the_documents_alone(way: str) -> None:
    order = "interleaved" if way == "interleaved" else "sequential"
    plain = CloneModel(tiny_model("gemma3_text", dtype=torch.float64), 16, temperature=2.0, factor_std=0.2)
    teacher = tiny_model("gemma3_text", dtype=torch.float64)
    clone = WAYS[way](CloneModel(teacher, 16, temperature=2.0, factor_std=0.2, execution=order)).train()
    batch, texts = packed_batch()
    together = clone(**batch)
    together.loss.backward()
    alone = list[dict[str, float]]()
    for output in plain.accumulate([{"input_ids": text} for text in texts]):
        output.loss.backward()
        alone.append({term: float(getattr(output, term).detach()) for term in ("loss", "lm", "kl", "clone")})
    for term in alone[0]:
        total = sum(output[term] for output in alone)
        assert float(getattr(together, term).detach()) == pytest.approx(total, rel=1e-9), term
    for ours, theirs in zip(clone.student.parameters(), plain.student.parameters(), strict=True):
        assert (ours.grad is None) == (theirs.grad is None)
        if ours.grad is not None:
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-6)
    torch._dynamo.reset()


def test_the_evaluation_of_packed_rows_is_that_of_the_documents_alone() -> None:
    model, (batch, texts) = tiny_model("llama"), packed_batch()
    rows = [{name: values[i] for name, values in batch.items()} for i in range(2)]
    del rows[0]["attention_mask"]  # rows leave out what says nothing
    alone = [language_loss(model, [{"input_ids": text[0]}]) for text in texts]
    tokens = sum(loss.tokens for loss in alone)
    together = language_loss(model, rows)
    assert together.tokens == tokens == 49 - len(texts)
    assert together.loss == pytest.approx(sum(loss.loss * loss.tokens for loss in alone) / tokens, rel=1e-5)


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3_text", "qwen3_moe", "mixtral", "phi3", "olmo2"])
def test_families_that_keep_documents_apart(family: str) -> None:
    assert document_mask_refusal(make_plan(tiny_config(family), 16)) is None


# `mamba` carries a state, `falcon_h1` has attention beside such layers, `opt` counts positions by its own mask.
@pytest.mark.parametrize("family", ["mamba", "falcon_h1", "qwen3_next", "opt"])
def test_families_that_do_not_are_refused(family: str) -> None:
    class AnyPlan:
        teacher_config = tiny_config(family)

    refusal = document_mask_refusal(AnyPlan())  # type: ignore[arg-type]
    assert refusal is not None and f"`{family}`" in refusal


def test_a_packed_batch_of_a_refused_family(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "document_mask_refusal", lambda plan: "`llama` is refused")
    clone, (batch, texts) = CloneModel(tiny_model("llama"), 16), packed_batch()
    with pytest.raises(InputError, match="position_ids: got rows of several documents, and `llama` is refused"):
        clone(**batch)
    clone(input_ids=texts[1], position_ids=torch.arange(21)[None])  # one document is none of its business


def test_what_is_packed() -> None:
    batch, _ = packed_batch()
    assert packed(batch)
    assert not packed({"input_ids": batch["input_ids"]})
    left = {"input_ids": torch.ones(1, 4, dtype=torch.long), "attention_mask": torch.tensor([[0, 0, 1, 1]])}
    assert not packed({**left, "position_ids": torch.tensor([[1, 1, 0, 1]])})
    model = tiny_model("llama")
    given = model_inputs({**left, "position_ids": torch.tensor([[1, 1, 0, 1]])}, model)
    assert given["attention_mask"].tolist() == [[0, 0, 1, 1]]  # padding of one document stays what it was


def test_flash_attention_is_given_one_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "is_flash_attention_requested", lambda config: True)
    model, (batch, texts) = tiny_model("llama"), packed_batch()
    given = model_inputs(batch, model)
    assert [values.shape for values in given.values()] == [(1, 60), (1, 60)]
    with torch.no_grad():
        logits = model(**given, use_cache=False).logits[0]
        alone = torch.cat([model(input_ids=text, use_cache=False).logits[0] for text in texts])
    torch.testing.assert_close(logits[:49], alone, rtol=1e-4, atol=1e-4)
    batch["position_ids"] = batch["position_ids"] + 1
    with pytest.raises(InputError, match="does not begin at position 0"):
        model_inputs(batch, model)

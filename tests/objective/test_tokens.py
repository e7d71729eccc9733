"""Which positions count: by what each predicts, against a loop over documents; and batches that are refused."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from oracles import positions, relative_error
from tiny import VOCAB, batch, tiny_model
from torch import Tensor

from lowrank_clone.errors import InputError
from lowrank_clone.model import CloneModel
from lowrank_clone.objective.tokens import count_tokens, counted

PLACES = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 0, 1, 2, 3, 4]])


def clone(**options: Any) -> CloneModel:
    return CloneModel(tiny_model("llama"), 16, factor_std=0.2, **options).train()


def masked(*columns: int) -> Tensor:
    labels = batch(1)
    labels[:, list(columns)] = -100
    return labels


# --- positions --------------------------------------------------------------------------------------------------------


def test_counting_is_a_loop_over_documents() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        ids = torch.randint(3, VOCAB, (3, 9), generator=generator)
        inputs: dict[str, Tensor | None] = {"attention_mask": None, "labels": None, "position_ids": None}
        if torch.rand((), generator=generator) < 0.7:
            inputs["attention_mask"] = (torch.rand(3, 9, generator=generator) < 0.8).long()
        if torch.rand((), generator=generator) < 0.7:
            inputs["labels"] = ids.masked_fill(torch.rand(3, 9, generator=generator) < 0.3, -100)
        if torch.rand((), generator=generator) < 0.7:
            starts = torch.rand(3, 9, generator=generator) < 0.3
            inputs["position_ids"] = torch.stack([_restarting(row) for row in starts])
        targets, compared = counted(ids, **inputs)
        expected, wanted = positions(ids, **inputs)
        assert torch.equal(targets, expected.flatten()) and torch.equal(compared, wanted.flatten()), inputs


def _restarting(starts: Tensor) -> Tensor:
    places = [0]
    for start in starts[1:].tolist():
        places.append(0 if start else places[-1] + 1)
    return torch.tensor(places)


def kl_of_positions(model: CloneModel, ids: Tensor, **inputs: Tensor) -> Tensor:
    """[length], T^2 KL of one row's positions, from whole logits."""
    temperature = model.objective.temperature
    with torch.no_grad():
        p, q = (
            (m(ids, use_cache=False, **inputs).logits.double() / temperature).log_softmax(-1)
            for m in (model.teacher, model.student)
        )
    return temperature**2 * (p.exp() * (p - q)).sum(-1)[0]


def test_without_labels_all_positions_are_compared_as_published() -> None:
    model = clone(temperature=2.0).eval()
    expected = kl_of_positions(model, batch(1)).mean()
    assert float(model(batch(1)).kl) == pytest.approx(float(expected), rel=1e-5)
    assert float(model(batch(1), labels=batch(1)).kl) == pytest.approx(float(expected), rel=1e-5)


def test_behind_a_masked_prompt_the_positions_are_compared_that_predict_the_answer() -> None:
    model = clone(temperature=2.0).eval()
    output = model(batch(1), labels=masked(*range(5)))
    assert float(output.kl) == pytest.approx(float(kl_of_positions(model, batch(1))[4:11].mean()), rel=1e-5)


def test_the_label_of_a_document_s_first_token_changes_nothing() -> None:
    model = clone()
    plain = model(batch(1), position_ids=PLACES)
    labelled = model(batch(1), position_ids=PLACES, labels=masked(0, 4, 7))
    for name in ("loss", "lm", "kl", "clone"):
        assert relative_error(labelled[name].detach(), plain[name].detach()) < 1e-5, name


def test_no_document_predicts_the_next_one_s_first_token() -> None:
    model = clone().eval()
    logits = model.student(batch(1), position_ids=PLACES, use_cache=False).logits[0].log_softmax(-1)
    own = [i for i in range(11) if PLACES[0, i + 1] != 0]
    expected = -torch.stack([logits[i, batch(1)[0, i + 1]] for i in own]).mean()
    assert float(model(batch(1), position_ids=PLACES).lm) == pytest.approx(float(expected.detach()), rel=1e-5)


@pytest.mark.parametrize("labels", [None, "prompts"])
def test_a_packed_row_is_its_documents_padded(labels: str | None) -> None:
    """What three documents give in one row, they give in three rows."""
    model, ids = clone(), batch(1)
    given = masked(0, 1, 4, 5) if labels else ids
    packed = {"input_ids": ids, "position_ids": PLACES}
    rows, mask, row_labels = (torch.zeros(3, 5, dtype=torch.long) for _ in range(3))
    for row, (start, end) in enumerate(((0, 4), (4, 7), (7, 12))):
        rows[row, : end - start], row_labels[row, : end - start] = ids[0, start:end], given[0, start:end]
        mask[row, : end - start] = 1
    apart = {"input_ids": rows, "attention_mask": mask}
    if labels:
        packed["labels"], apart["labels"] = given, row_labels
    assert torch.equal(count_tokens(packed), count_tokens(apart))
    one, three = model(**packed), model(**apart)
    for name in ("loss", "lm", "kl", "clone"):
        assert relative_error(one[name].detach(), three[name].detach()) < 1e-4, name


# --- accumulation by hand ---------------------------------------------------------------------------------------------


def test_packed_micro_batches_are_one_batch_normalised_too() -> None:
    """`position_ids` take part in what is measured before the first step."""
    ids, places = batch(4), torch.cat([PLACES, PLACES.flip(-1).sort().values, PLACES, PLACES])
    whole, halves = clone(clone_normalization="target"), clone(clone_normalization="target")
    (one,) = whole.accumulate([{"input_ids": ids, "position_ids": places}])
    parts = halves.accumulate([{"input_ids": ids[i : i + 2], "position_ids": places[i : i + 2]} for i in (0, 2)])
    outputs = list(parts)
    for name in ("loss", "lm", "clone"):
        assert relative_error(sum(output[name].detach() for output in outputs), one[name].detach()) < 1e-5, name


@pytest.mark.parametrize(
    "count", [24, torch.tensor(24), torch.tensor([24]), torch.tensor([22.0, 24.0]), torch.tensor([-1, -1]), [22, 24]]
)
def test_a_count_that_is_none_is_refused(count: Any) -> None:
    with pytest.raises(InputError, match=r"num_items_in_batch: got .*accumulate") as caught:
        clone()(batch(), num_items_in_batch=count)
    assert "\n" not in str(caught.value)


def test_accumulate_refuses_no_batch_and_counts_of_the_user_s_own() -> None:
    with pytest.raises(InputError, match="got no batch"):
        next(clone().accumulate([]))
    for one in ({"input_ids": batch()}, batch()):
        with pytest.raises(InputError, match=r"accumulate: got one (dict|Tensor), expected the micro-batches"):
            next(clone().accumulate(one))
    with pytest.raises(InputError, match="got `num_items_in_batch`"):
        next(clone().accumulate([{"input_ids": batch(), "num_items_in_batch": torch.tensor([1, 1])}]))


# --- refusals ---------------------------------------------------------------------------------------------------------

IDS = batch()
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "list": ({"input_ids": [[5, 6]]}, "input_ids: got a list, expected a tensor"),
    "text": ({"input_ids": None, "labels": IDS}, "got labels, expected input_ids; tokenise"),
    "floats": ({"input_ids": IDS.float()}, "input_ids: got torch.float32, expected whole numbers"),
    "bools": ({"input_ids": IDS.bool()}, "input_ids: got torch.bool, expected whole numbers"),
    "one row": ({"input_ids": IDS[0]}, r"input_ids: got shape [12], expected [batch, length]"),
    "no row": ({"input_ids": IDS[:0]}, r"input_ids: got shape [0, 12], expected"),
    "beyond": ({"input_ids": IDS + VOCAB}, f"expected numbers from 0 and below the vocabulary's size {VOCAB}"),
    "negative": ({"input_ids": -IDS}, "expected numbers from 0 and below"),
    "four axes": (
        {"input_ids": IDS, "attention_mask": torch.ones(2, 1, 12, 12)},
        "attention_mask: got [2, 1, 12, 12], expected the shape of input_ids, [2, 12]",
    ),
    "numbers of documents": (
        {"input_ids": IDS, "attention_mask": torch.arange(12).expand(2, -1) // 4},
        "attention_mask: got the value 2, expected 1 for a token and 0 for padding",
    ),
    "short mask": ({"input_ids": IDS, "attention_mask": torch.ones(2, 11)}, "attention_mask: got [2, 11], expected"),
    "short labels": ({"input_ids": IDS, "labels": IDS[:, 1:]}, "labels: got [2, 11], expected the shape"),
    "labels of floats": ({"input_ids": IDS, "labels": IDS.float()}, "labels: got torch.float32, expected whole"),
    "labels of -1": ({"input_ids": IDS, "labels": IDS.masked_fill(IDS < 9, -1)}, "labels: got -1, expected numbers"),
    "labels beyond": ({"input_ids": IDS, "labels": IDS + VOCAB}, "labels: got"),
    "places of three axes": (
        {"input_ids": IDS, "position_ids": torch.arange(12).expand(3, 2, -1)},
        "position_ids: got [3, 2, 12], expected the shape of input_ids",
    ),
    "negative places": ({"input_ids": IDS, "position_ids": -IDS}, "position_ids: got -"),
    "flash attention": ({"input_ids": IDS, "cu_seq_lens_q": torch.tensor([0, 4])}, "got `cu_seq_lens_q`, expected"),
    "embeddings": ({"input_ids": IDS, "inputs_embeds": torch.ones(2, 12, 24)}, "got `inputs_embeds`, expected"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_batch_that_would_be_misread_is_refused(case: str) -> None:
    inputs, message = REFUSED[case]
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        clone()(**inputs)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.uint8, torch.bool, torch.float32])
def test_masks_and_whole_numbers_of_any_size_are_taken(dtype: torch.dtype) -> None:
    model, mask = clone(), (torch.arange(12).expand(2, -1) < 9).long()
    expected = model(IDS, attention_mask=mask, labels=IDS).loss
    ids = IDS.to(dtype) if dtype in (torch.int32, torch.int16, torch.uint8) else IDS
    assert torch.allclose(model(ids, attention_mask=mask.to(dtype), labels=ids).loss, expected, rtol=1e-6)


def test_one_row_of_positions_serves_all_rows() -> None:
    model = clone()
    assert torch.allclose(
        model(IDS, position_ids=PLACES).loss, model(IDS, position_ids=PLACES.expand(2, -1)).loss, rtol=1e-6
    )


def test_a_step_without_a_counted_token_leaves_no_mean_of_zeros() -> None:
    model = clone(clone_normalization="target")
    model(IDS, labels=torch.full_like(IDS, -100))
    model.factors.push()
    assert torch.isfinite(model(IDS).clone)

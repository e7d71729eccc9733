"""What labels of -100 leave out, for every place where tokens are counted; rows with different optional columns."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny import batch, tiny_model
from torch import Tensor

from lowrank_clone.model import CloneModel
from lowrank_clone.objective.evaluate import language_loss
from lowrank_clone.objective.tokens import count_tokens, counted
from lowrank_clone.training.batches import new_batches, padded
from lowrank_clone.training.evaluation import evaluate_losses


def clone(**options: Any) -> CloneModel:
    return CloneModel(tiny_model("llama"), 16, factor_std=0.2, temperature=2.0, **options).train()


def prompt_masked() -> dict[str, Tensor]:
    labels = batch()
    labels[:, :7] = -100
    return {"input_ids": batch(), "labels": labels}


def test_labels_leave_out_the_language_loss_alone() -> None:
    given = prompt_masked()
    assert count_tokens(given).tolist() == [10, 10]
    assert count_tokens(given, "lm").tolist() == [10, 24]
    whole = {"input_ids": batch()}
    everywhere, masked, only_lm = clone()(**whole), clone()(**given), clone(mask_scope="lm")(**given)
    for term in ("kl", "clone"):
        assert float(getattr(only_lm, term)) == pytest.approx(float(getattr(everywhere, term)), rel=1e-6)
        assert float(getattr(only_lm, term)) != pytest.approx(float(getattr(masked, term)), rel=1e-3)
    assert float(only_lm.lm) == pytest.approx(float(masked.lm), rel=1e-6)


def test_padding_is_left_out_of_everything() -> None:
    given = prompt_masked() | {"attention_mask": torch.ones(2, 12, dtype=torch.long)}
    given["attention_mask"][1, 9:] = 0
    _, compared = counted(given["input_ids"], given["attention_mask"], given["labels"], None, "lm")
    assert torch.equal(compared.view(2, 12), given["attention_mask"].bool())


@pytest.mark.parametrize("scope", ["all", "lm"])
def test_micro_batches_and_evaluation_count_alike(scope: Any) -> None:
    model, given = clone(mask_scope=scope), prompt_masked()
    parts = [{name: values[i : i + 1] for name, values in given.items()} for i in range(2)]
    parts[1]["labels"] = parts[1]["labels"].masked_fill(torch.arange(12) < 10, -100)
    whole = {name: torch.cat([part[name] for part in parts]) for name in given}
    together = model(**whole)
    outputs = list(model.accumulate(parts))
    measured = evaluate_losses(model, parts, lambda total: total)
    for term in ("lm", "kl", "clone"):
        expected = float(getattr(together, term))
        assert sum(float(getattr(output, term)) for output in outputs) == pytest.approx(expected, rel=1e-5)
        assert measured[term] == pytest.approx(expected, rel=1e-5)
    rows = [{name: values[0] for name, values in part.items()} for part in parts]
    alone = language_loss(model.student, rows)
    assert (alone.loss, alone.tokens) == (pytest.approx(float(together.lm), rel=1e-5), int(count_tokens(whole)[0]))


def test_rows_that_leave_out_what_says_nothing() -> None:
    ids = batch(3)
    rows = [{"input_ids": row} for row in ids]
    rows[1] |= {
        "labels": ids[1].masked_fill(torch.arange(12) > 5, -100),
        "attention_mask": (torch.arange(12) < 9).long(),
    }
    rows[2] |= {"position_ids": torch.tensor([0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 5, 6]), "labels": None}
    made = padded(rows)
    assert torch.equal(made["labels"], torch.stack([ids[0], rows[1]["labels"], ids[2]]))
    assert made["attention_mask"].sum(1).tolist() == [12, 9, 12]
    assert made["position_ids"][0].tolist() == made["position_ids"][1].tolist() == list(range(12))
    together = count_tokens(made)
    alone = [count_tokens({k: v[None] for k, v in row.items() if v is not None}) for row in rows]
    assert together.tolist() == torch.stack(alone).sum(0).tolist()
    shorter = padded([{"input_ids": ids[0][:5]}, rows[1]])
    assert shorter["labels"].tolist() == [[*ids[0][:5].tolist(), *[-100] * 7], rows[1]["labels"].tolist()]
    assert shorter["attention_mask"].sum(1).tolist() == [5, 9]
    assert set(padded([rows[0], rows[0]])) == {"input_ids"}


@pytest.mark.parametrize("scope", ["all", "lm"])
def test_rows_that_fill_up_the_last_batch_count_nowhere(scope: Any) -> None:
    state = SimpleNamespace(end_of_dataloader=True, active_dataloader=None, remainder=-1)
    second: Any = SimpleNamespace(  # of two processes, which read two rows each of a data set of three
        accelerator=SimpleNamespace(gradient_state=state),
        args=SimpleNamespace(process_index=1, world_size=2),
        _prepare_inputs=dict,
    )
    ((made, new),) = new_batches(second, [{"input_ids": batch()}], range(3), scope)
    assert new == 1
    assert count_tokens(made, scope).tolist() == count_tokens({"input_ids": batch()[:1]}, scope).tolist()
    model = clone(mask_scope=scope)
    alone, filled = model(input_ids=batch()[:1]), model(**made)
    for term in ("lm", "kl", "clone"):
        assert float(getattr(filled, term)) == pytest.approx(float(getattr(alone, term)), rel=1e-5)

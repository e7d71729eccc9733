"""The published Low-Rank Clone training scheme, re-created small from its description: what `speed.py` compares with.

Written from the paper (arXiv 2505.12781) and from what its code is known to do, not from that code:

* attention matrices are applied activation-first: a read is `(x Z^T) W_T^T`, a write `(x W_T^T) Z`;
* FFN, embedding and LM head are generated inside autograd at every micro-batch, a tied one once as each;
* LM and KL are taken from full-vocabulary logits, the KL summed over positions and divided by the batch size;
* activations of both models are kept until a loss per layer and tap is taken at the end, and every scalar is read to
  the host.

Axes: n tokens, d_T and d_S the residual widths, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, PreTrainedModel

READS = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")


class ActivationFirst(nn.Module):
    """An attention matrix that is never generated: two products per call, through the teacher's width.

    The write's output at teacher width is its tap, and so is kept in `before`.
    """

    def __init__(self, weight: Tensor, factor: nn.Parameter, write: bool) -> None:
        super().__init__()
        self.weight, self.factor, self.write = weight, factor, write

    def forward(self, x: Tensor) -> Tensor:
        """Read: [n, d_S] -> [n, out]. Write: [n, in] -> [n, d_S]."""
        if not self.write:
            return F.linear(x @ self.factor.T, self.weight)
        self.before = F.linear(x, self.weight)
        return self.before @ self.factor


class Generated(nn.Module):
    """A matrix that is generated inside autograd whenever it is used."""

    def __init__(self, weight: Tensor, factor: nn.Parameter, write: bool = False, lookup: bool = False) -> None:
        super().__init__()
        self.frozen, self.factor, self.write, self.lookup = weight, factor, write, lookup

    @property
    def weight(self) -> Tensor:
        return self.factor.T @ self.frozen if self.write else self.frozen @ self.factor

    def forward(self, x: Tensor) -> Tensor:
        return F.embedding(x, self.weight) if self.lookup else F.linear(x, self.weight)


class PublishedScheme(nn.Module):
    """Teacher, and a student of Llama's architecture that is held as one factor per matrix of the teacher."""

    def __init__(
        self, teacher: PreTrainedModel, hidden_size: int, temperature: float = 40.0, alpha: float = 0.2
    ) -> None:
        super().__init__()
        self.teacher = teacher.requires_grad_(False).eval()
        self.temperature, self.alpha = temperature, alpha
        config = teacher.config.__class__.from_dict(
            teacher.config.to_dict() | {"hidden_size": hidden_size, "head_dim": teacher.config.head_dim}
        )
        with torch.device("meta"):
            student = AutoModelForCausalLM.from_config(config, attn_implementation=teacher.config._attn_implementation)
        width = teacher.config.hidden_size
        kind = {"device": teacher.device, "dtype": teacher.dtype}
        new_factor = lambda: nn.Parameter(torch.randn(width, hidden_size, **kind) * 0.02)  # noqa: E731
        for block, original in zip(student.model.layers, teacher.model.layers, strict=True):
            for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
                weight = getattr(original.self_attn, name).weight
                setattr(block.self_attn, name, ActivationFirst(weight, new_factor(), name == "o_proj"))
            for name in ("gate_proj", "up_proj", "down_proj"):
                weight = getattr(original.mlp, name).weight
                setattr(block.mlp, name, Generated(weight, new_factor(), name == "down_proj"))
        table = new_factor()
        student.model.embed_tokens = Generated(teacher.get_input_embeddings().weight, table, lookup=True)
        tied = teacher.config.tie_word_embeddings
        student.lm_head = Generated(teacher.get_output_embeddings().weight, table if tied else new_factor())
        for module in student.modules():
            for name, parameter in list(module._parameters.items()):
                if parameter is not None and parameter.is_meta:
                    setattr(module, name, nn.Parameter(torch.ones(parameter.shape, **kind)))
        student.model.rotary_emb = teacher.model.rotary_emb
        self.student = student.train()
        self._kept: dict[str, dict[str, Tensor]] = {"teacher": {}, "student": {}}
        for side, model in (("teacher", teacher), ("student", student)):
            for name, module in model.named_modules():
                if name.rsplit(".", 1)[-1] in (*READS, "o_proj", "down_proj"):
                    module.register_forward_hook(self._keep(side, name))

    def trained(self) -> list[nn.Parameter]:
        """Factors and norms."""
        return [p for p in self.student.parameters() if p.requires_grad]

    def _keep(self, side: str, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, _: object, output: Tensor) -> None:
            self._kept[side][name] = module.before if isinstance(module, ActivationFirst) and module.write else output

        return hook

    def forward(self, input_ids: Tensor) -> tuple[Tensor, dict[str, float]]:
        """The loss of [batch, length] ids, and every term as a Python number."""
        with torch.no_grad():
            teacher_logits = self.teacher(input_ids=input_ids, use_cache=False).logits
        logits = self.student(input_ids=input_ids, use_cache=False).logits
        lm, kl = naive_lm_kl(logits, teacher_logits, input_ids, self.temperature)
        terms = {"lm": lm.item(), "kl": kl.item()}
        total = lm + kl
        theirs, ours = self._kept["teacher"], self._kept["student"]
        for name, output in ours.items():
            target = theirs[name]
            if name.endswith("down_proj"):
                target = target @ self.student.get_submodule(name).factor
            mse = F.mse_loss(output, target)
            terms[name] = mse.item()
            total = total + self.alpha * mse
        theirs.clear()
        ours.clear()
        terms["loss"] = total.item()
        return total, terms


def naive_lm_kl(logits: Tensor, teacher_logits: Tensor, ids: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """LM and KL from whole [batch, length, V] logits, as written without a thought of memory."""
    shifted = logits[:, :-1].float().contiguous()
    lm = F.cross_entropy(shifted.view(-1, shifted.shape[-1]), ids[:, 1:].flatten())
    log_p = F.log_softmax(logits.float() / temperature, dim=-1)
    p_teacher = F.softmax(teacher_logits.float() / temperature, dim=-1)
    kl = F.kl_div(log_p, p_teacher, reduction="none").sum(-1).sum(-1).mean()
    return lm, kl

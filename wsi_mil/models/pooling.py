"""From patches to bags: attention, mean and maximum of hidden vectors, and the pooling of scores.

Comes in: hidden vectors (T, H) or scores (T, O) of the patches of several bags, one below the other, and
which patch is in which bag (B, T). Goes out: bags, and what each patch had to do with them. It knows no task
and no training. Ragged bags need no padding; rows that are in no bag are ignored. Everything works under
``torch.func.vmap``, by which several networks are trained at once.

Every pool has ``stream`` for one bag of any size: it takes a function that yields the chunks of the bag anew
each time it is called, and gives what ``forward`` gives, without ever holding all hidden vectors.
"""

from collections.abc import Callable, Iterable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from wsi_mil.models.tasks import Activation

Chunks = Callable[[], Iterable[Tensor]]
"""A function that yields a bag's hidden vectors, chunk by chunk."""

_NEVER = -1e30
"""Score of patches outside a bag: its exponential is exactly 0, and a bag of no patch has no NaN."""

_SHARPNESS = 5.0
"""r of log-sum-exp pooling: from the mean (0) to the maximum (infinity)."""


class AttentionPool(nn.Module):
    """Attention pooling of Ilse, Tomczak & Welling, ICML 2018 (arXiv:1802.04712), without biases.

    Equation (8): a_k = softmax_k( w^T tanh(V h_k) ); gated, equation (9):
    a_k = softmax_k( w^T (tanh(V h_k) * sigmoid(U h_k)) ). The bag is z = sum_k a_k h_k, equation (7). With A
    branches there are A vectors w, and as many bags z.
    """

    def __init__(self, dim: int, attention_dim: int, *, gated: bool, branches: int = 1) -> None:
        """Make the pool with random weights, drawn from torch's global generator."""
        super().__init__()
        self.branches = branches
        self.V = nn.Linear(dim, attention_dim, bias=False)
        self.U = nn.Linear(dim, attention_dim, bias=False) if gated else None
        self.w = nn.Linear(attention_dim, branches, bias=False)

    def scores(self, h_TH: Tensor) -> Tensor:
        """Return what the softmax is taken of: (T, A) float32."""
        e_TL = torch.tanh(self.V(h_TH))
        if self.U is not None:
            e_TL = e_TL * torch.sigmoid(self.U(h_TH))
        scores: Tensor = self.w(e_TL)
        return scores.float()

    def forward(self, h_TH: Tensor, in_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Return the pooled z (B, A, H) and the attention (T, A) of each patch in its bag."""
        score_AT = self.scores(h_TH).transpose(0, 1)
        score_BAT = torch.where(in_BT[:, None], score_AT[None], _NEVER)
        a_BAT = score_BAT.softmax(dim=2)
        z_BAH = torch.matmul(a_BAT.to(h_TH.dtype), h_TH)
        return z_BAH, (a_BAT * in_BT[:, None]).sum(dim=0).transpose(0, 1)

    def stream(self, chunks: Chunks) -> tuple[Tensor, Tensor]:
        """Return z (1, A, H) and the attention (N, A) of one bag; the softmax is kept as running sums.

        Source: Milakov & Gimelshein, arXiv:1805.02867 (online normaliser of softmax).
        """
        highest_A = total_A = z_AH = torch.zeros(())
        scores: list[Tensor] = []
        for h_TH in chunks():
            score_TA = self.scores(h_TH)
            top_A = score_TA.amax(dim=0)
            new_A = torch.maximum(highest_A, top_A) if scores else top_A
            weight_TA = (score_TA - new_A).exp()
            part_AH = weight_TA.transpose(0, 1) @ h_TH.float()
            if scores:
                shrink_A = (highest_A - new_A).exp()
                total_A = total_A * shrink_A + weight_TA.sum(dim=0)
                z_AH = z_AH * shrink_A[:, None] + part_AH
            else:
                total_A, z_AH = weight_TA.sum(dim=0), part_AH
            highest_A = new_A
            scores.append(score_TA)
        a_NA = (torch.cat(scores) - highest_A).exp() / total_A
        return (z_AH / total_A[:, None])[None], a_NA


class MeanPool(nn.Module):
    """The mean over the patches: every patch has the same attention."""

    branches = 1

    def forward(self, h_TH: Tensor, in_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Return the pooled z (B, 1, H) and the attention (T, 1)."""
        a_BT = in_BT / in_BT.sum(dim=1, keepdim=True).clamp(min=1)
        return torch.matmul(a_BT.to(h_TH.dtype), h_TH)[:, None], a_BT.sum(dim=0)[:, None]

    def stream(self, chunks: Chunks) -> tuple[Tensor, Tensor]:
        """Return z (1, 1, H) and the attention (N, 1) of one bag."""
        count, total_H = 0, torch.zeros(())
        for h_TH in chunks():
            # In double: a million float32 are not summed to 1e-5.
            total_H = total_H + h_TH.sum(dim=0, dtype=torch.float64)
            count += len(h_TH)
        z_H = (total_H / count).float()
        return z_H[None, None], z_H.new_full((count, 1), 1 / count)


class MaxPool(nn.Module):
    """The maximum of each hidden dimension over the patches (embedding level).

    The attention of a patch is the share of the dimensions whose maximum it holds; patches that tie share it.
    """

    branches = 1

    def forward(self, h_TH: Tensor, in_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Return the pooled z (B, 1, H) and the attention (T, 1)."""
        # A loop over the few bags of a step: (B, T, H) at once would be as many times the hidden vectors.
        bags = range(in_BT.shape[0])
        z_BH = torch.stack([torch.where(in_BT[b][:, None], h_TH, _NEVER).amax(dim=0) for b in bags])
        with torch.no_grad():
            attention_T = h_TH.new_zeros(())
            for b in bags:
                holds_TH = ((h_TH == z_BH[b]) & in_BT[b][:, None]).float()
                attention_T = attention_T + (holds_TH / holds_TH.sum(dim=0).clamp(min=1)).mean(dim=1)
        return z_BH[:, None], attention_T[:, None].float()

    def stream(self, chunks: Chunks) -> tuple[Tensor, Tensor]:
        """Return z (1, 1, H) and the attention (N, 1) of one bag; the chunks are asked for twice."""
        z_H = torch.stack([h_TH.amax(dim=0) for h_TH in chunks()]).amax(dim=0)
        count_H = torch.stack([(h_TH == z_H).sum(dim=0) for h_TH in chunks()]).sum(dim=0)
        share_N = torch.cat([((h_TH == z_H) / count_H).mean(dim=1) for h_TH in chunks()])
        return z_H[None, None], share_N[:, None]


class ScorePool(nn.Module):
    """Pooling of the patches' own scores (instance level): theta(X) = sigma(f(x_1), ..., f(x_K)).

    Of probabilities p_k (``activation`` sigmoid): max; mean; noisy-or, 1 - prod_k (1 - p_k); lse,
    log(mean_k exp(r p_k)) / r with r = 5. Of values (identity): max, mean and lse of the values. Computed
    with logarithms of probabilities, so that nothing saturates.

    Sources: Ilse et al. 2018, section 2.2 (max, mean); Maron & Lozano-Perez, NeurIPS 1998 (noisy-or);
    Ramon & De Raedt, ICML workshop 2000 (log-sum-exp).
    """

    def __init__(self, rule: Literal["max", "mean", "noisy-or", "lse"], activation: Activation) -> None:
        """Make the pool; noisy-or is of probabilities only."""
        super().__init__()
        self.rule, self.activation = rule, activation

    def scores(self, logits_TO: Tensor) -> Tensor:
        """Return the patches' scores (T, O): probabilities or values."""
        return logits_TO if self.activation == "identity" else logits_TO.sigmoid()

    def forward(self, logits_TO: Tensor, in_BT: Tensor) -> Tensor:
        """Return the bags' logits (B, O), or values, of the patches' logits."""
        at_BT1 = in_BT[..., None]
        count_B1 = in_BT.sum(dim=1)[:, None].clamp(min=1)

        def total(values_TO: Tensor) -> Tensor:
            """Return the sum over each bag: (B, O)."""
            return torch.where(at_BT1, values_TO[None], 0.0).sum(dim=1)

        def log_total(values_TO: Tensor) -> Tensor:
            """Return the logarithm of the sum of exponentials over each bag: (B, O)."""
            return torch.where(at_BT1, values_TO[None], _NEVER).logsumexp(dim=1)

        if self.rule == "max":
            return torch.where(at_BT1, logits_TO[None], _NEVER).amax(dim=1)
        if self.activation == "identity":
            if self.rule == "mean":
                return total(logits_TO) / count_B1
            return (log_total(_SHARPNESS * logits_TO) - count_B1.log()) / _SHARPNESS
        if self.rule == "mean":
            return log_total(functional.logsigmoid(logits_TO)) - log_total(functional.logsigmoid(-logits_TO))
        if self.rule == "noisy-or":
            none_BO = total(functional.logsigmoid(-logits_TO)).clamp(max=-1e-30)
            return torch.log(-torch.expm1(none_BO)) - none_BO
        p_BO = (log_total(_SHARPNESS * logits_TO.sigmoid()) - count_B1.log()) / _SHARPNESS
        return torch.logit(p_BO, eps=1e-6)

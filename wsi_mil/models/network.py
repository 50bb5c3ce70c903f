"""One network: patches -> hidden vectors -> pooling -> logits.

Comes in: standardised features (T, D) of several bags one below the other, and the bag of each (T,), -1 where
a row is padding. Goes out: logits (B, C), and attention (T, A): one column for all outputs, or one for each.
An encoder may stand in front, and is then trained with it. It knows no file, no label and no training.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from wsi_mil.errors import FormatError
from wsi_mil.models.dropout import ReluDropout
from wsi_mil.models.pooling import AttentionPool, MaxPool, MeanPool, ScorePool
from wsi_mil.models.tasks import Activation, Cox, Ordinal, Regression, Task

Front = Callable[[], nn.Module]
"""Makes an encoder that stands in front of the bag: patches (T, ...) -> features (T, D)."""


class Thresholds(nn.Module):
    """From one score to K - 1 logits score - t_k with t_1 < t_2 < ...: the ordered grades share the score."""

    def __init__(self, count: int) -> None:
        """Make ``count`` thresholds, 2 apart: closer ones leave a grade between them that is never likely."""
        super().__init__()
        self.first = nn.Parameter(torch.tensor([1.0 - count]))
        self.steps = nn.Parameter(torch.full((count - 1,), 1.8546))  # softplus of it is 2

    def forward(self, score_B1: Tensor) -> Tensor:
        """Return the logits (B, K - 1) of P(y > k)."""
        steps = torch.cat((self.first, functional.softplus(self.steps)))
        return score_B1 - steps.cumsum(dim=0)


class Network(nn.Module, ABC):
    """Base: the hidden layer (ReLU, dropout) that each patch passes, after an encoder where there is one."""

    def __init__(self, *, dim: int, hidden_dim: int, dropout: float, front: Front | None) -> None:
        """Make the layer with random weights, drawn from torch's global generator."""
        super().__init__()
        self.front = front() if front else nn.Identity()
        self.hidden = nn.Linear(dim, hidden_dim) if hidden_dim else None
        self.activate = ReluDropout(dropout)

    def embed(self, x_TD: Tensor) -> Tensor:
        """Return the hidden vectors (T, H) of patches."""
        h_TD: Tensor = self.front(x_TD)
        if self.hidden is None:
            return h_TD
        hidden: Tensor = self.activate(self.hidden(h_TD))
        return hidden

    @abstractmethod
    def forward(self, x_TD: Tensor, bag_T: Tensor, bags: int) -> tuple[Tensor, Tensor]:
        """Return logits (B, C) and attention (T, A) of bags one below the other."""

    @abstractmethod
    def whole(self, chunks: Callable[[], Iterable[Tensor]]) -> tuple[Tensor, Tensor]:
        """Return logits (1, C) and attention (N, A) of one bag of any size, as ``forward`` gives them."""

    def losses(self, x_TD: Tensor, bag_T: Tensor, bags: int, target_B: Tensor) -> Tensor | None:
        """Return the loss (B,) of each bag where the network has one of its own, None: the task's is used."""
        del x_TD, bag_T, bags, target_B
        return None

    def shift(self, value: float) -> None:
        """Add a constant to the logits; torchmil's models have no place for it and stay as they are."""

    def start_as_mean(self) -> None:
        """Make an attention even, so that training starts at the mean; without one nothing changes."""

    def draw_glorot(self) -> None:
        """Draw the weights of all linear layers but the encoder's anew, and set their biases to 0.

        Source: Glorot & Bengio, AISTATS 2010 (uniform); so Ilse et al. 2018 start, the attention included.
        """
        for name, layer in self.named_modules():
            if isinstance(layer, nn.Linear) and not name.startswith("front"):
                nn.init.xavier_uniform_(layer.weight)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)


class EmbeddingNetwork(Network):
    """Embedding-based: the hidden vectors are pooled, and the bag is classified."""

    def __init__(self, task: Task, *, model: str, attention_dim: int, branches: str, **hidden: Any) -> None:
        """Make the network with random weights, drawn from torch's global generator."""
        super().__init__(**hidden)
        dim = hidden["hidden_dim"] or hidden["dim"]
        ordinal = isinstance(task, Ordinal)
        outputs = 1 if ordinal else task.outputs
        many = outputs if branches == "class" else 1
        self.pool: AttentionPool | MeanPool | MaxPool = _pool(model, dim, attention_dim, many)
        self.classify = nn.Linear(dim, outputs)
        self.thresholds = Thresholds(task.outputs) if ordinal else None

    def forward(self, x_TD: Tensor, bag_T: Tensor, bags: int) -> tuple[Tensor, Tensor]:
        """Return logits (B, C) and attention (T, A)."""
        z_BAH, a_TA = self.pool(self.embed(x_TD), members(bag_T, bags))
        return self._outputs(z_BAH), a_TA

    def whole(self, chunks: Callable[[], Iterable[Tensor]]) -> tuple[Tensor, Tensor]:
        """Return logits (1, C) and attention (N, A) of one bag of any size."""
        z_BAH, a_NA = self.pool.stream(lambda: (self.embed(x_TD) for x_TD in chunks()))
        return self._outputs(z_BAH), a_NA

    @torch.no_grad()
    def shift(self, value: float) -> None:
        """Add a constant to the logits."""
        self.classify.bias.add_(value)

    def _outputs(self, z_BAH: Tensor) -> Tensor:
        if z_BAH.shape[1] == 1:
            logits_BC: Tensor = self.classify(z_BAH[:, 0]).float()
        else:
            logits_BC = (z_BAH * self.classify.weight).sum(dim=2).float() + self.classify.bias
        return self.shifted(logits_BC)

    def start_as_mean(self) -> None:
        """Set w of the attention to 0."""
        if isinstance(self.pool, AttentionPool):
            nn.init.zeros_(self.pool.w.weight)

    def shifted(self, logits_BO: Tensor) -> Tensor:
        """Return the logits (B, C) of what the classifier gives: less the thresholds of ordered grades."""
        if self.thresholds is None:
            return logits_BO
        logits_BC: Tensor = self.thresholds(logits_BO)
        return logits_BC


class InstanceNetwork(Network):
    """Instance-based: every patch has a score of its own, and the scores are pooled; g is the identity.

    Two classes have one score, the probability of the positive; of more, each is scored against the rest.
    The attention is the scores: a column for each output.
    """

    def __init__(self, task: Task, *, rule: Any, **hidden: Any) -> None:
        """Make the network with random weights, drawn from torch's global generator."""
        super().__init__(**hidden)
        self.binary = task.activation == "softmax" and task.outputs == 2
        ordinal = isinstance(task, Ordinal)
        values = isinstance(task, Ordinal | Regression | Cox)
        if values and rule == "noisy-or":
            raise FormatError(
                f"model instance-noisy-or: pools probabilities, and task {task.kind} has values."
            )
        activation: Activation = "identity" if values else "sigmoid"
        self.score = nn.Linear(
            hidden["hidden_dim"] or hidden["dim"], 1 if self.binary or ordinal else task.outputs
        )
        self.pool = ScorePool(rule, activation)
        self.thresholds = Thresholds(task.outputs) if ordinal else None

    def forward(self, x_TD: Tensor, bag_T: Tensor, bags: int) -> tuple[Tensor, Tensor]:
        """Return logits (B, C) and the scores (T, C) of the patches."""
        return self.outputs(self.score(self.embed(x_TD)).float(), members(bag_T, bags))

    def whole(self, chunks: Callable[[], Iterable[Tensor]]) -> tuple[Tensor, Tensor]:
        """Return logits (1, C) and the scores (N, C) of one bag of any size."""
        logits_NO = torch.cat([self.score(self.embed(x_TD)).float() for x_TD in chunks()])
        return self.outputs(logits_NO, logits_NO.new_ones((1, len(logits_NO)), dtype=torch.bool))

    @torch.no_grad()
    def shift(self, value: float) -> None:
        """Add a constant to the logits of the patches, and so to the bag's, where values are pooled."""
        self.score.bias.add_(value)

    def outputs(self, logits_TO: Tensor, in_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (B, C) and the scores (T, C) of patches that have the logits (T, O)."""
        return self.shifted(self.pool(logits_TO, in_BT)), self.scores(logits_TO)

    def shifted(self, logits_BO: Tensor) -> Tensor:
        """Return logits (B, C) of scores: (0, z) of two classes, less the thresholds of ordered grades."""
        if self.binary:
            return torch.cat((torch.zeros_like(logits_BO), logits_BO), dim=1)
        if self.thresholds is None:
            return logits_BO
        logits_BC: Tensor = self.thresholds(logits_BO)
        return logits_BC

    def scores(self, logits_TO: Tensor) -> Tensor:
        """Return the patches' scores (T, C)."""
        score_TO = self.pool.scores(logits_TO)
        return torch.cat((1 - score_TO, score_TO), dim=1) if self.binary else score_TO


def members(bag_T: Tensor, bags: int) -> Tensor:
    """Return (B, T): whether a patch is in a bag."""
    return bag_T == torch.arange(bags, device=bag_T.device)[:, None]


def _pool(model: str, dim: int, attention_dim: int, branches: int) -> AttentionPool | MeanPool | MaxPool:
    if model in ("gated-attention", "attention"):
        return AttentionPool(dim, attention_dim, gated=model == "gated-attention", branches=branches)
    return MeanPool() if model == "mean" else MaxPool()

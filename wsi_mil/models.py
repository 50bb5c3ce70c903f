"""Multiple instance learning: bag -> prediction, always with the attention over the patches.

Comes in: padded bags (B, N, D) of raw features and a mask of real patches. Goes out: logits (B, C) and
attention (B, N). It knows no file, no label and no training; a model is rebuilt from its tensors and its
head, a JSON dict that says what it is.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from wsi_mil.errors import FormatError

_CONSTANT = 1e-6
"""A feature whose standard deviation is below this is constant: it is centred, and not scaled up."""


class Prediction(NamedTuple):
    """Logits (B, C), whose softmax is the probability of each class, and attention (B, N).

    The attention of a bag sums to 1 over its patches and is 0 where the mask is False.
    """

    logits_BC: Tensor
    attention_BN: Tensor


class AttentionPool(nn.Module):
    """Attention pooling of Ilse, Tomczak & Welling, ICML 2018 (arXiv:1802.04712), without biases.

    Equation (8): a_k = softmax_k( w^T tanh(V h_k) ); gated, equation (9):
    a_k = softmax_k( w^T (tanh(V h_k) * sigmoid(U h_k)) ). The bag is z = sum_k a_k h_k, equation (7).
    """

    def __init__(self, dim: int, attention_dim: int, *, gated: bool) -> None:
        """Make the pool with w = 0: training starts at the mean and departs from it where that pays."""
        super().__init__()
        self.V = nn.Linear(dim, attention_dim, bias=False)
        self.U = nn.Linear(dim, attention_dim, bias=False) if gated else None
        self.w = nn.Linear(attention_dim, 1, bias=False)
        nn.init.zeros_(self.w.weight)

    def forward(self, h_BNH: Tensor, mask_BN: Tensor) -> tuple[Tensor, Tensor]:
        """Return the pooled z (B, H) and the attention (B, N)."""
        e_BNA = torch.tanh(self.V(h_BNH))
        if self.U is not None:
            e_BNA = e_BNA * torch.sigmoid(self.U(h_BNH))
        score_BN = self.w(e_BNA).squeeze(-1)
        a_BN = score_BN.masked_fill(~mask_BN, -torch.inf).softmax(dim=1)
        return torch.einsum("bn,bnh->bh", a_BN, h_BNH), a_BN


class MeanPool(nn.Module):
    """The mean over the patches: every patch has the same attention."""

    def forward(self, h_BNH: Tensor, mask_BN: Tensor) -> tuple[Tensor, Tensor]:
        """Return the pooled z (B, H) and the attention (B, N)."""
        a_BN = mask_BN.to(h_BNH.dtype)
        a_BN = a_BN / a_BN.sum(dim=1, keepdim=True)
        return torch.einsum("bn,bnh->bh", a_BN, h_BNH), a_BN


class MaxPool(nn.Module):
    """The maximum of each hidden dimension over the patches (embedding level).

    The attention of a patch is the share of the dimensions whose maximum it holds; patches that tie share it.
    """

    def forward(self, h_BNH: Tensor, mask_BN: Tensor) -> tuple[Tensor, Tensor]:
        """Return the pooled z (B, H) and the attention (B, N)."""
        z_BH = h_BNH.masked_fill(~mask_BN[..., None], -torch.inf).amax(dim=1)
        holds_BNH = (h_BNH == z_BH[:, None]) & mask_BN[..., None]
        share_BNH = holds_BNH / holds_BNH.sum(dim=1, keepdim=True)
        return z_BH, share_BNH.mean(dim=2)


def _pool(model: str, hidden_dim: int, attention_dim: int) -> nn.Module:
    if model in ("gated-attention", "attention"):
        return AttentionPool(hidden_dim, attention_dim, gated=model == "gated-attention")
    if model == "mean":
        return MeanPool()
    if model == "max":
        return MaxPool()
    raise FormatError(f"model {model!r}: unknown; wanted gated-attention, attention, mean or max.")


class Member(nn.Module):
    """One network: standardised features -> hidden layer (ReLU, dropout) -> pooling -> linear classifier."""

    def __init__(
        self, *, model: str, dim: int, hidden_dim: int, attention_dim: int, dropout: float, classes: int
    ) -> None:
        """Make the network with random weights, drawn from torch's global generator."""
        super().__init__()
        self.hidden = nn.Linear(dim, hidden_dim)
        self.dropout = nn.Dropout(dropout)
        self.pool = _pool(model, hidden_dim, attention_dim)
        self.classify = nn.Linear(hidden_dim, classes)

    def forward(self, x_BND: Tensor, mask_BN: Tensor) -> Prediction:
        """Return the prediction for bags of standardised features."""
        h_BNH = self.dropout(functional.relu(self.hidden(x_BND)))
        z_BH, a_BN = self.pool(h_BNH, mask_BN)
        return Prediction(self.classify(z_BH), a_BN)


class MilModel(nn.Module):
    """A committee of equal networks and the standardisation that they share.

    The prediction is the mean of the members': of their probabilities (the logits are its logarithm) and of
    their attention.
    """

    mean_D: Tensor
    std_D: Tensor

    def __init__(
        self,
        *,
        model: str,
        dim: int,
        hidden_dim: int,
        attention_dim: int,
        dropout: float,
        classes: int,
        members: int,
    ) -> None:
        """Make the committee with random weights, drawn from torch's global generator."""
        super().__init__()
        self.classes = classes
        self.register_buffer("mean_D", torch.zeros(dim))
        self.register_buffer("std_D", torch.ones(dim))
        self.members = nn.ModuleList(
            Member(
                model=model,
                dim=dim,
                hidden_dim=hidden_dim,
                attention_dim=attention_dim,
                dropout=dropout,
                classes=classes,
            )
            for _ in range(members)
        )

    def set_standardisation(self, mean_D: NDArray[Any], std_D: NDArray[Any]) -> None:
        """Set the mean and standard deviation of the features over the training bags."""
        self.mean_D.copy_(torch.from_numpy(np.asarray(mean_D, np.float32)))
        self.std_D.copy_(torch.from_numpy(np.where(std_D < _CONSTANT, 1, std_D).astype(np.float32)))

    def standardise(self, x_BND: Tensor) -> Tensor:
        """Return the features with the training bags' mean removed and divided by their deviation."""
        return (x_BND.to(self.mean_D.dtype) - self.mean_D) / self.std_D

    def forward(self, x_BND: Tensor, mask_BN: Tensor) -> Prediction:
        """Return the prediction for bags of raw features; ``mask_BN`` is True at real patches.

        Raises:
            ValueError: a bag without patches: there is nothing to attend to.
        """
        if not bool(mask_BN.any(dim=1).all()):
            raise ValueError("a bag without patches cannot be predicted")
        x_BND = self.standardise(x_BND)
        each = [member(x_BND, mask_BN) for member in self.members]
        log_probability_MBC = torch.stack([one.logits_BC for one in each]).log_softmax(dim=-1)
        logits_BC = log_probability_MBC.logsumexp(dim=0) - float(np.log(len(each)))
        return Prediction(logits_BC, torch.stack([one.attention_BN for one in each]).mean(dim=0))


def build(head: Mapping[str, Any]) -> MilModel:
    """Return the untrained model that ``head`` describes, in training mode.

    Read from the head: model, identity.dim, hidden_dim, attention_dim, dropout, classes and members.

    Raises:
        FormatError: the head lacks one of them, or names an unknown model.
    """
    try:
        return MilModel(
            model=head["model"],
            dim=int(head["identity"]["dim"]),
            hidden_dim=int(head["hidden_dim"]),
            attention_dim=int(head["attention_dim"]),
            dropout=float(head["dropout"]),
            classes=len(head["classes"]),
            members=int(head["members"]),
        )
    except KeyError as error:
        raise FormatError(f"the model's head lacks {error}; train the model again.") from error


def tensors(model: MilModel) -> dict[str, NDArray[np.float32]]:
    """Return copies of the model's tensors by name, as ``restore`` takes them."""
    return {name: value.detach().cpu().numpy().copy() for name, value in model.state_dict().items()}


def restore(tensors: Mapping[str, NDArray[np.float32]], head: Mapping[str, Any]) -> MilModel:
    """Return the trained model of ``tensors`` and ``head`` (``store.read_fold``), in evaluation mode.

    Raises:
        FormatError: the head is not a model's, or the tensors are not those of the model it describes.
    """
    # Building draws random weights, soon replaced; the caller's random numbers must not notice.
    with torch.random.fork_rng(devices=[]):
        model = build(head)
    try:
        model.load_state_dict({name: torch.from_numpy(value) for name, value in tensors.items()})
    except RuntimeError as error:
        reason = " ".join(str(error).split())  # torch says it over several lines
        raise FormatError(f"the tensors do not fit the model {head['model']!r}: {reason}") from error
    return model.eval()


def check_identity(head: Mapping[str, Any], identity: Mapping[str, Any], where: object) -> None:
    """Refuse features that are not of the kind the model was trained on (``Features.identity``).

    Raises:
        FormatError: names ``where`` and the first field that differs.
    """
    trained: Mapping[str, Any] = head["identity"]
    for field in [*trained, *(name for name in identity if name not in trained)]:
        if trained.get(field) != identity.get(field):
            raise FormatError(
                f"{where}: the model was trained on features of {field} {trained.get(field)!r}, these are of "
                f"{field} {identity.get(field)!r}. Use the model's own features, or train a model on these."
            )

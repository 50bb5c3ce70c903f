"""The model that is trained, stored and used: a committee of equal networks and their standardisation.

Comes in: bags of raw features, padded (B, N, D) with a mask, or one by one and of any size. Goes out: logits
and attention. A model is rebuilt from its tensors and its head, a JSON dict that says what it is. It knows no
file.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from wsi_mil.errors import FormatError
from wsi_mil.models.arrays import as_tensor
from wsi_mil.models.foreign import PREFIX, SUPPORTED, ForeignNetwork
from wsi_mil.models.network import EmbeddingNetwork, Front, InstanceNetwork, Network
from wsi_mil.models.tasks import Task, task_of

_CONSTANT = 1e-6
"""A feature whose standard deviation is below this is constant: it is centred, and not scaled up."""

CHUNK = 16_384
"""Patches that are in memory as float32 at a time; a bag of more is streamed."""

_HELD = 4
"""A bag of so many chunks or fewer is standardised once for all members, and not once for each."""

EMBEDDING = ("gated-attention", "attention", "mean", "max")
INSTANCE = "instance-"


class Prediction(NamedTuple):
    """Logits (B, C), whose meaning is the task's, and attention (B, C, N): where each output looked.

    The attention of a bag sums to 1 over its patches; where one attention is shared by all outputs its rows
    are the same. Of instance-based models it holds the patches' scores instead, which do not sum to 1. It is
    0 where the mask is False.
    """

    logits_BC: Tensor
    attention_BCN: Tensor


class MilModel(nn.Module):
    """A committee of equal networks and the standardisation that they share.

    The prediction is the mean of the members': of their probabilities or values (``Task.mean``), and of their
    attention.
    """

    mean_D: Tensor
    std_D: Tensor

    def __init__(self, task: Task, members: list[Network], dim: int | None) -> None:
        """Put the committee together; ``dim`` is None where patches are not features to be standardised."""
        super().__init__()
        self.task = task
        self.register_buffer("mean_D", torch.zeros(dim or 1))
        self.register_buffer("std_D", torch.ones(dim or 1))
        self.members = nn.ModuleList(members)

    def set_standardisation(self, mean_D: NDArray[Any], std_D: NDArray[Any]) -> None:
        """Set the mean and standard deviation of the features over the training bags."""
        self.mean_D.copy_(torch.from_numpy(np.asarray(mean_D, np.float32)))
        self.std_D.copy_(torch.from_numpy(safe_std(std_D).astype(np.float32)))

    def standardise(self, x_TD: Tensor) -> Tensor:
        """Return the features with the training bags' mean removed and divided by their deviation."""
        return (x_TD.to(self.mean_D.dtype) - self.mean_D).div_(self.std_D)

    def forward(self, x_BND: Tensor, mask_BN: Tensor) -> Prediction:
        """Return the prediction for bags of raw features; ``mask_BN`` is True at real patches.

        Raises:
            ValueError: a bag without patches: there is nothing to attend to.
        """
        each = [self.bag(x_ND[mask_N]) for x_ND, mask_N in zip(x_BND, mask_BN, strict=True)]
        logits_BC = torch.cat([one.logits_BC for one in each])
        attention_BCN = logits_BC.new_zeros((*logits_BC.shape, x_BND.shape[1]))
        for one, mask_N, row_CN in zip(each, mask_BN, attention_BCN, strict=True):
            row_CN[:, mask_N] = one.attention_BCN[0]
        return Prediction(logits_BC, attention_BCN)

    @torch.no_grad()
    def centre(self, bags: Iterable[Tensor]) -> None:
        """Give Cox's risks a zero: the mean over ``bags``, those of the training part.

        The likelihood knows differences only, so that without it the risks of two models (of two folds, or of
        two members of a committee) have nothing to do with each other.
        """
        if self.task.kind != "cox":
            return
        risk_NK = torch.stack([self._each(x_ND, CHUNK)[0][:, 0, 0] for x_ND in bags])
        for member, mean in zip(self.members, risk_NK.mean(dim=0).tolist(), strict=True):
            cast(Network, member).shift(-mean)

    def bag(self, x_ND: Tensor | NDArray[Any], chunk: int = CHUNK) -> Prediction:
        """Return the prediction (B = 1) for one bag of raw features (N, D) of any size and dtype.

        Only ``chunk`` patches at a time (four times as many, where that is all) are on the model's device, as
        float32: exact attention over millions of patches takes no more memory than the features themselves.

        Raises:
            ValueError: the bag has no patches.
        """
        if not len(x_ND):
            raise ValueError("a bag without patches cannot be predicted")
        logits_KBC, attention_KNA = self._each(x_ND, chunk)
        logits_BC = self.task.mean(logits_KBC)
        rows_CN = attention_KNA.mean(dim=0).transpose(0, 1).expand(logits_BC.shape[1], -1)
        return Prediction(logits_BC, rows_CN[None])

    def _each(self, x_ND: Tensor | NDArray[Any], chunk: int) -> tuple[Tensor, Tensor]:
        """Return the logits (K, 1, C) and the attention (K, N, A) of every member."""
        device = self.mean_D.device

        def chunks() -> Iterator[Tensor]:
            for start in range(0, len(x_ND), chunk):
                part = x_ND[start : start + chunk]
                yield self.standardise(as_tensor(part).to(device))

        members = [cast(Network, member) for member in self.members]
        held = list(chunks()) if len(x_ND) <= _HELD * chunk else None
        logits, attention = zip(
            *(member.whole(chunks if held is None else lambda: held) for member in members), strict=True
        )
        return torch.stack(logits), torch.stack(attention)


def safe_std(std_D: NDArray[Any]) -> NDArray[Any]:
    """Return deviations to divide by: 1 for a feature that is constant."""
    return np.where(std_D < _CONSTANT, 1, std_D)


def build(head: Mapping[str, Any], front: Front | None = None) -> MilModel:
    """Return the untrained model that ``head`` describes, in training mode.

    Read from the head: task, model, identity.dim, hidden_dim, attention_dim, branches, dropout and members.
    ``front`` makes the encoder that stands in front of each network, where it is trained from pixels.

    Raises:
        FormatError: the head lacks one of them, or names an unknown model.
    """
    try:
        members = [network(head, front) for _ in range(int(head["members"]))]
        return MilModel(task_of(head), members, None if front else int(head["identity"]["dim"]))
    except KeyError as error:
        raise FormatError(f"the model's head lacks {error}; train the model again.") from error


def network(head: Mapping[str, Any], front: Front | None = None) -> Network:
    """Return one untrained network of the head's kind; weights come from torch's global generator.

    The head's ``initial_weights`` are "mean" (the default: ``Network.start_as_mean``), "glorot"
    (``Network.draw_glorot``), or "uniform": every layer in torch's own way.
    """
    made = _network(head, front)
    start = head.get("initial_weights", "mean")
    if start == "glorot":
        made.draw_glorot()
    elif start == "mean":
        made.start_as_mean()
    return made


def _network(head: Mapping[str, Any], front: Front | None) -> Network:
    task, model = task_of(head), str(head["model"])
    hidden = {
        "dim": int(head["identity"]["dim"]),
        "hidden_dim": int(head["hidden_dim"]),
        "dropout": float(head["dropout"]),
        "front": front,
    }
    if model in EMBEDDING:
        return EmbeddingNetwork(
            task, model=model, attention_dim=int(head["attention_dim"]), branches=head["branches"], **hidden
        )
    if model.startswith(PREFIX):
        return ForeignNetwork(
            task, name=model.removeprefix(PREFIX), attention_dim=int(head["attention_dim"]), **hidden
        )
    rule = model.removeprefix(INSTANCE)
    if model.startswith(INSTANCE) and rule in ("max", "mean", "noisy-or", "lse"):
        return InstanceNetwork(task, rule=rule, **hidden)
    raise FormatError(
        f"model {model!r}: unknown; wanted {', '.join(EMBEDDING)}, "
        f"instance- max, mean, noisy-or or lse, or {PREFIX} {', '.join(SUPPORTED)}."
    )


def tensors(model: MilModel) -> dict[str, NDArray[np.float32]]:
    """Return copies of the model's tensors by name, as ``restore`` takes them."""
    return {name: value.detach().cpu().numpy().copy() for name, value in model.state_dict().items()}


def restore(
    tensors: Mapping[str, NDArray[np.float32]], head: Mapping[str, Any], front: Front | None = None
) -> MilModel:
    """Return the trained model of ``tensors`` and ``head`` (``store.read_fold``), in evaluation mode.

    Raises:
        FormatError: the head is not a model's, or the tensors are not those of the model it describes.
    """
    # Building draws random weights, soon replaced; the caller's random numbers must not notice.
    with torch.random.fork_rng(devices=[]):
        model = build(head, front)
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

"""Models of torchmil's, as networks of ours: ``--model torchmil:NAME``.

Comes in: the name of one of torchmil's classes and a model's head. Goes out: a ``Network``. torchmil
(Castro-Macias et al., arXiv:2509.08129) is an optional extra and is imported when it is needed; nothing of
it is rewritten here. Its models take padded bags and a mask, which some of them ignore (TransMIL) or apply
in part (DSMIL's critical patch, CLAM's clustering, DTFD's second tier): bags go through one at a time, so
that there is no padding.
"""

import importlib
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from wsi_mil.errors import ConfigError
from wsi_mil.models.network import Network
from wsi_mil.models.tasks import Task

PREFIX = "torchmil:"

SUPPORTED = ("ABMIL", "CLAM_SB", "DSMIL", "DTFDMIL", "TransMIL", "TransformerABMIL")
"""They work on features alone, and are trained by a loss of each bag."""

OWN_LOSS = ("CLAM_SB", "DSMIL", "DTFDMIL")
"""Trained by their own loss (clustering, critical patch, pseudo-bags), which knows two classes only."""

_NEIGHBOURS = "it needs the adjacency of the patches, and a bag has features only"
UNSUPPORTED = {
    "CAMIL": _NEIGHBOURS,
    "DeepGraphSurv": _NEIGHBOURS,
    "GTP": _NEIGHBOURS,
    "IIBMIL": "its prototypes must be updated by the training loop, between the steps",
    "PatchGCN": _NEIGHBOURS,
    "ProbSmoothABMIL": _NEIGHBOURS,
    "SETMIL": "it needs the coordinates of the patches, and a bag has features only",
    "SmABMIL": _NEIGHBOURS,
    "SmTransformerABMIL": _NEIGHBOURS,
    "SmoothABMIL": _NEIGHBOURS,
    "TransformerProbSmoothABMIL": _NEIGHBOURS,
    "VAEABMIL": "it predicts at random, from samples of a variational autoencoder that must be given to it",
}
"""What torchmil has besides, and why it cannot be trained here."""

_HEADS = {"TransMIL": 4, "TransformerABMIL": 8}
"""Heads of self-attention, of which --hidden-dim must be a multiple."""


class ForeignNetwork(Network):
    """One of torchmil's models behind our hidden layer; sizes from the head, the rest as torchmil has it.

    Two classes: torchmil's one logit z is (0, z). One output (a number, Cox's risk): it is z. The attention
    (T, 1) sums to 1 over a bag for ABMIL, CLAM_SB, TransformerABMIL and DSMIL; TransMIL's is what torchmil
    returns, the class token's row of its last layer, mean over heads, which sums to about 1 with the
    token's own part and can be negative; DTFDMIL has its patches' scores instead (Grad-CAM).
    """

    def __init__(self, task: Task, *, name: str, attention_dim: int, **hidden: Any) -> None:
        """Make the network with random weights, drawn from torch's global generator.

        Raises:
            ConfigError: torchmil is not installed; it has no such model, or one that cannot be trained on
                features alone; or the model does not fit the task or ``--hidden-dim``.
        """
        super().__init__(**hidden)
        self.name = name
        self.binary = task.activation == "softmax" and task.outputs == 2
        dim = hidden["hidden_dim"] or hidden["dim"]
        self.model: Any = _make(name, task, dim, attention_dim)

    def forward(self, x_TD: Tensor, bag_T: Tensor, bags: int) -> tuple[Tensor, Tensor]:
        """Return logits (B, C) and attention (T, 1)."""
        h_TH = self.embed(x_TD)
        logits, attention_T1 = [], h_TH.new_zeros((len(h_TH), 1), dtype=torch.float32)
        for b in range(bags):
            at_T = bag_T == b
            z_1, attention_N = self._bag(h_TH[at_T])
            logits.append(z_1)
            attention_T1[at_T, 0] = attention_N.detach()
        return self._outputs(torch.cat(logits)), attention_T1

    def whole(self, chunks: Callable[[], Iterable[Tensor]]) -> tuple[Tensor, Tensor]:
        """Return logits (1, C) and attention (N, 1) of one bag: its hidden vectors are in memory at once."""
        z_1, attention_N = self._bag(torch.cat([self.embed(x_TD) for x_TD in chunks()]))
        return self._outputs(z_1), attention_N[:, None]

    def losses(self, x_TD: Tensor, bag_T: Tensor, bags: int, target_B: Tensor) -> Tensor | None:
        """Return the model's own loss (B,) of bags of classes ``target_B``, None where it has none."""
        if self.name not in OWN_LOSS:
            return None
        h_TH = self.embed(x_TD)
        losses = []
        for b in range(bags):
            h_1NH = h_TH[bag_T == b][None]
            with _numpy_seeded(self.training):
                parts = self.model.compute_loss(target_B[b : b + 1].float(), h_1NH, **self._mask(h_1NH))[1]
            losses.append(torch.stack([part.float() for part in parts.values()]).sum())
        return torch.stack(losses)

    def _bag(self, h_NH: Tensor) -> tuple[Tensor, Tensor]:
        """Return z (1,) and the attention (N,) float32 of one bag."""
        h_1NH = h_NH[None]
        if self.name == "TransMIL":
            return _transmil(self.model, h_1NH)
        if self.name == "DSMIL":
            z_1, attention, score_1N = self.model(h_1NH, return_att=True, return_inst_pred=True)
            # As its predict does: the mean of its two streams.
            return (z_1 + score_1N.amax(dim=1)) / 2, attention.float().flatten()
        with _numpy_seeded(self.training):
            z_1, score_1N = self.model.predict(h_1NH, **self._mask(h_1NH))
        if self.name == "DTFDMIL":
            return z_1, score_1N[0].float()
        return z_1, score_1N[0].float().softmax(dim=0)

    def _mask(self, h_1NH: Tensor) -> dict[str, Tensor]:
        """Return the mask argument where the model does not work without one."""
        if self.name != "DTFDMIL":
            return {}
        return {"mask": torch.ones(h_1NH.shape[:2], dtype=torch.bool, device=h_1NH.device)}

    def _outputs(self, z_B: Tensor) -> Tensor:
        z_B1 = z_B.float()[:, None]
        return torch.cat((torch.zeros_like(z_B1), z_B1), dim=1) if self.binary else z_B1


def _make(name: str, task: Task, dim: int, attention_dim: int) -> nn.Module:
    """Return torchmil's model, or say why not."""
    flag = f"--model {PREFIX}{name}"
    if name in UNSUPPORTED:
        raise ConfigError(f"{flag}: not supported: {UNSUPPORTED[name]}. Wanted one of {_names()}.")
    if name not in SUPPORTED:
        raise ConfigError(f"{flag}: no model of torchmil's that is known here; wanted one of {_names()}.")
    made = _torchmil(flag)
    two = task.activation == "softmax" and task.outputs == 2
    if not two and (task.outputs != 1 or name in OWN_LOSS):
        raise ConfigError(
            f"{flag}: torchmil's models have one output, "
            + (
                "and the loss of this one is for two classes"
                if name in OWN_LOSS
                else "two classes or one number"
            )
            + f"; this task ({task.kind}) has {task.outputs} ({', '.join(task.names)})."
        )
    if dim % _HEADS.get(name, 1):
        raise ConfigError(
            f"--hidden-dim {dim}: {flag} has {_HEADS[name]} heads, and wants a multiple of that."
        )
    sizes: dict[str, Any] = {"att_dim": attention_dim}
    if name == "TransMIL":
        sizes = {"att_dim": dim}
    elif name == "TransformerABMIL":
        sizes = {"pool_att_dim": attention_dim, "transf_att_dim": dim}
    model: nn.Module = getattr(made, name)(in_shape=(dim,), **sizes)
    if name == "CLAM_SB":
        model.inst_loss_fn = _ClusteringLoss()
    return model


class _ClusteringLoss(nn.Module):
    """Cross-entropy, the default of CLAM itself, in place of torchmil's smooth SVM.

    That gives every patch the classes of all (1.0.2: targets (n, 1) spread to (n, n)), and fails when some
    patches, and not all, are told apart well.
    """

    def forward(self, logits_N2: Tensor, target_N1: Tensor) -> Tensor:
        """Return the mean loss of patches with pseudo-labels."""
        return functional.cross_entropy(logits_N2, target_N1[:, 0].long())


def _names() -> str:
    return ", ".join(PREFIX + name for name in SUPPORTED)


def _torchmil(flag: str) -> ModuleType:
    try:
        return importlib.import_module("torchmil.models")
    except ImportError as error:
        raise ConfigError(
            f"{flag}: torchmil cannot be imported ({error}); install it with: "
            "pip install 'wsi-mil[torchmil]'."
        ) from error


def _transmil(model: Any, h_1NH: Tensor) -> tuple[Tensor, Tensor]:
    """Return z (1,) and attention (N,) of TransMIL, which itself makes (N, N) for that one row."""
    seen: list[Tensor] = []
    last = model.layers[-1].att_module
    hook = last.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0].detach()))
    try:
        z_1: Tensor = model(h_1NH)
    finally:
        hook.remove()
    with torch.no_grad():
        return z_1, _class_row(last, seen[0])[1 : h_1NH.shape[1] + 1]


def _class_row(attention: Any, x_1ND: Tensor) -> Tensor:
    """Return the attention (N,) that the first of N tokens pays to each, mean over heads.

    Equation (15) of Xiong et al., AAAI 2021 (Nystromformer), of one row, with the module's own weights,
    landmarks (means of neighbours, after zeros in front) and inverse.
    """
    inverse = importlib.import_module(type(attention).__module__).moore_penrose_iter_pinv
    count, landmarks = x_1ND.shape[1], attention.n_landmarks
    size = math.ceil(count / landmarks)
    front = -count % landmarks
    padded = functional.pad(x_1ND, (0, 0, front, 0))
    q, k, _ = (
        each.unflatten(-1, (attention.n_heads, -1)).transpose(1, 2)
        for each in attention.qkv_nn(padded).float().chunk(3, dim=-1)
    )
    q = q * attention.scale_factor
    q_mean, k_mean = (each.unflatten(2, (landmarks, size)).mean(dim=3) for each in (q, k))
    to = (q[:, :, front : front + 1] @ k_mean.transpose(2, 3)).softmax(dim=-1)
    among = (q_mean @ k_mean.transpose(2, 3)).softmax(dim=-1)
    back = (q_mean @ k.transpose(2, 3)).softmax(dim=-1)
    row: Tensor = to @ inverse(among, attention.pinv_iterations) @ back
    return row.mean(dim=1)[0, 0, front:]


@contextmanager
def _numpy_seeded(training: bool) -> Iterator[None]:
    """Seed numpy's global generator, which DTFDMIL draws its groups from, and give it back as it was.

    While training the groups follow torch's generator; predicting always has the same.
    """
    before = np.random.get_state()  # noqa: NPY002 - the generator that torchmil draws from
    np.random.seed(int(torch.randint(2**31, ())) if training else 0)  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(before)  # noqa: NPY002

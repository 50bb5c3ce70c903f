"""What each patch of a bag had to do with the prediction: attention, signed evidence, its own probability.

Comes in: a model and a bag. Goes out: a row of values per output. It knows no file and no picture.

**Evidence.** Where the bag's logit is a sum over patches, l_c = b_c + sum_k e_ck, the evidence of patch k for
output c is e_ck: a_ck (w_c . h_k) of embedding-based models with attention or the mean; with the maximum,
sum_j w_cj z_j over the dimensions j whose maximum the patch holds (shared where patches tie); of
instance-based models the score's w_c . h_k of the patch that is the maximum, or a share of it in a mean of
values. Where scores are pooled as probabilities (mean, noisy-or, log-sum-exp) the logit is no such sum.

Logits of a softmax are only known but for a constant that all classes share, so they are taken as the
difference from the mean of the other classes' logits: of two classes that is the log-odds. The prediction of
a committee is the mean of its members' probabilities, whose logit is no sum; the evidence is the mean of the
members' evidence, and sums with the mean bias to the mean of their logits.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wsi_mil.models.arrays import as_tensor
from wsi_mil.models.committee import MilModel
from wsi_mil.models.foreign import ForeignNetwork
from wsi_mil.models.network import EmbeddingNetwork, InstanceNetwork
from wsi_mil.models.pooling import AttentionPool, MaxPool
from wsi_mil.models.tasks import Task

_CHUNK = 1024
"""Patches at a time: what is made of them on the way stays in the processor's cache."""


@dataclass(frozen=True)
class Explanation:
    """What a model says of the patches of one bag; ``bag_C`` are the logits of its prediction.

    ``values`` has a tensor (C, N) for each quantity that the model has, ``missing`` says for each other one
    why not. ``bias_C`` and the evidence sum to ``logit_C``; both are None where there is no evidence.
    """

    bag_C: Tensor
    values: dict[str, Tensor]
    missing: dict[str, str]
    bias_C: Tensor | None = None
    logit_C: Tensor | None = None


@dataclass(frozen=True)
class _Member:
    """Of one network: raw logits of the bag, attention (N, C or 1), evidence, its bias, logits of patches."""

    logit_C: Tensor
    attention_NA: Tensor
    evidence_NC: Tensor | None
    bias_C: Tensor | None
    patch_NC: Tensor


def missing(model: MilModel) -> dict[str, str]:
    """Return the quantities that a model does not have, each with the reason."""
    network, reasons = model.members[0], {}
    if isinstance(network, ForeignNetwork):
        reasons["evidence"] = "how torchmil's models sum over patches is not known here"
        reasons["probability"] = "torchmil's models are not made for bags of one patch"
    elif isinstance(network, InstanceNetwork) and not _is_sum(network):
        reasons["evidence"] = (
            f"the patches' scores are pooled as probabilities ({network.pool.rule}), whose logit is no sum "
            "over patches"
        )
    if model.task.activation == "identity":
        reasons["probability"] = f"a model of task {model.task.kind} predicts a value and no probability"
    return reasons


@torch.inference_mode()
def explain(
    model: MilModel, x_ND: Tensor | NDArray[Any], more_MD: NDArray[Any] | None = None, chunk: int = _CHUNK
) -> Explanation:
    """Return what the model says of each patch of a bag (N, D) of any size.

    ``more_MD`` are patches outside of the bag: they change nothing and follow the bag's in the values, with
    the attention that they would have if the others' stayed as it is.

    Raises:
        ValueError: the bag has no patches; or ``more_MD`` is given to a model where being in the bag or not
            is all there is (the maximum), or that is torchmil's.
    """
    if not len(x_ND):
        raise ValueError("a bag without patches cannot be predicted")
    reasons = missing(model)
    if isinstance(model.members[0], ForeignNetwork):
        if more_MD is not None:
            raise ValueError("patches outside of the bag have no attention in torchmil's models")
        whole = model.bag(x_ND, chunk)
        return Explanation(whole.logits_BC[0], {"attention": whole.attention_BCN[0]}, reasons)
    members = [each.finish() for each in _collect(model, x_ND, more_MD, chunk)]
    bag_C = model.task.mean(torch.stack([each.logit_C for each in members])[:, None])[0]
    attention_NA = torch.stack([each.attention_NA for each in members]).mean(dim=0)
    values = {"attention": attention_NA.T.expand(len(bag_C), -1)}
    bias_C = logit_C = None
    if "evidence" not in reasons:
        values["evidence"] = _mean(model.task, [each.evidence_NC for each in members]).T
        bias_C = _mean(model.task, [each.bias_C for each in members])
        logit_C = _mean(model.task, [each.logit_C for each in members])
    if "probability" not in reasons:
        patch_KNC = torch.stack([each.patch_NC for each in members])
        p_KNC = patch_KNC.softmax(dim=2) if model.task.activation == "softmax" else patch_KNC.sigmoid()
        values["probability"] = p_KNC.mean(dim=0).T
    return Explanation(bag_C, values, reasons, bias_C, logit_C)


@torch.inference_mode()
def of_parts(
    model: MilModel, x_ND: Tensor | NDArray[Any], orders_RN: NDArray[np.int64], counts_S: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return the predictions (R, S, P) for the first ``counts_S`` patches of a bag in each of R orders.

    Of attention and mean the sums over the first patches are kept as they grow, so that all counts of an
    order cost as much as one bag; any other model predicts each part of the bag anew.
    """
    network = model.members[0]
    if isinstance(network, EmbeddingNetwork) and not isinstance(network.pool, MaxPool):
        members = _collect(model, x_ND, None, _CHUNK)
        logits_KRSC = torch.stack([cast(_Attention, each).grown(orders_RN, counts_S) for each in members])
        bags = model.task.mean(logits_KRSC.flatten(1, 2))
    else:
        x_TD = as_tensor(x_ND)
        orders = [as_tensor(order) for order in orders_RN]
        bags = torch.cat([model.bag(x_TD[order[:n]]).logits_BC for order in orders for n in counts_S])
    return model.task.predict(bags).reshape(len(orders_RN), len(counts_S), -1)


def _collect(
    model: MilModel, x_ND: Tensor | NDArray[Any], more_MD: NDArray[Any] | None, chunk: int
) -> "list[_Attention] | list[_Maximum] | list[_Instances]":
    collectors: Any = [_collector(member, len(x_ND), more_MD) for member in model.members]
    with _one_thread():
        for turn in range(collectors[0].turns):
            for x_TD in _chunks(model, x_ND, more_MD, chunk):
                for each in collectors:
                    each.take(x_TD, turn)
    found: list[_Attention] | list[_Maximum] | list[_Instances] = collectors
    return found


@contextmanager
def _one_thread() -> Iterator[None]:
    """Compute on one processor core: threads that share so little at a time mostly wait for each other.

    They wait by spinning, which costs more than all of the work where something else runs on a core, as the
    slide's picture is read meanwhile.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def against_others(task: Task, logits: Tensor) -> Tensor:
    """Return logits (..., C) without what they share: each less the mean of the other classes' logits."""
    count = logits.shape[-1]
    if task.activation != "softmax" or count == 1:
        return logits
    return (logits - logits.mean(dim=-1, keepdim=True)) * (count / (count - 1))


def _mean(task: Task, each: Sequence[Tensor | None]) -> Tensor:
    return against_others(task, torch.stack([cast(Tensor, one).double() for one in each])).mean(dim=0)


def _is_sum(network: InstanceNetwork) -> bool:
    return network.pool.rule == "max" or (
        network.pool.rule == "mean" and network.pool.activation == "identity"
    )


def _chunks(
    model: MilModel, x_ND: Tensor | NDArray[Any], more_MD: NDArray[Any] | None, chunk: int
) -> Iterator[Tensor]:
    for rows in (x_ND, more_MD):
        for start in range(0, 0 if rows is None else len(rows), chunk):
            part = as_tensor(cast(Any, rows)[start : start + chunk])
            yield model.standardise(part.to(model.mean_D.device))


class _Attention:
    """Attention or mean of hidden vectors: scores and w . h of each patch are all that is kept."""

    turns = 1

    def __init__(self, network: EmbeddingNetwork, count: int) -> None:
        self.network, self.count = network, count
        self.scores: list[Tensor] = []
        self.parts: list[Tensor] = []

    def take(self, x_TD: Tensor, turn: int) -> None:
        del turn
        h_TH, pool = self.network.embed(x_TD), self.network.pool
        equal = h_TH.new_zeros((len(h_TH), 1), dtype=torch.float32)
        self.scores.append(pool.scores(h_TH) if isinstance(pool, AttentionPool) else equal)
        self.parts.append((h_TH @ self.network.classify.weight.T).float())

    def finish(self) -> _Member:
        score_NA, part_NO = torch.cat(self.scores).double(), torch.cat(self.parts)
        total_A = score_NA[: self.count].logsumexp(dim=0)
        attention_NA = (score_NA - total_A).exp()
        evidence_NO = attention_NA * part_NO
        return _embedding(self.network, self.count, attention_NA.float(), evidence_NO, part_NO)

    def grown(self, orders_RN: NDArray[np.int64], counts_S: NDArray[np.int64]) -> Tensor:
        """Return the logits (R, S, C) of bags of the first ``counts_S`` patches in each order."""
        weight_NA = torch.cat(self.scores).double()
        # Of this bag's highest score: a part whose scores all lie 700 below it would be lost.
        weight_NA = (weight_NA - weight_NA.amax(dim=0)).clamp(min=-690).exp()
        sums_NO = weight_NA * torch.cat(self.parts)
        at_S = torch.as_tensor(counts_S - 1)
        orders = [as_tensor(order) for order in orders_RN]
        rows = [sums_NO[order].cumsum(dim=0)[at_S] / weight_NA[order].cumsum(dim=0)[at_S] for order in orders]
        return self.network.shifted((torch.stack(rows) + self.network.classify.bias).float())


class _Maximum:
    """The maximum of each hidden dimension: found in a first turn, shared out in a second and a third."""

    turns = 3

    def __init__(self, network: EmbeddingNetwork, count: int) -> None:
        self.network, self.count = network, count
        self.z_H = self.ties_H = torch.zeros(())
        self.first = True
        self.attention: list[Tensor] = []
        self.evidence: list[Tensor] = []
        self.parts: list[Tensor] = []

    def take(self, x_TD: Tensor, turn: int) -> None:
        h_TH, weight_OH = self.network.embed(x_TD), self.network.classify.weight
        if turn == 0:
            top_H = h_TH.amax(dim=0)
            self.z_H = top_H if self.first else torch.maximum(self.z_H, top_H)
            self.first = False
        elif turn == 1:
            self.ties_H = self.ties_H + (h_TH == self.z_H).sum(dim=0)
        else:
            share_TH = (h_TH == self.z_H) / self.ties_H
            self.attention.append(share_TH.mean(dim=1, keepdim=True))
            self.evidence.append((share_TH * self.z_H).double() @ weight_OH.T.double())
            self.parts.append((h_TH @ weight_OH.T).float())

    def finish(self) -> _Member:
        return _embedding(
            self.network,
            self.count,
            torch.cat(self.attention),
            torch.cat(self.evidence),
            torch.cat(self.parts),
        )


class _Instances:
    """Scores of patches, pooled."""

    turns = 1

    def __init__(self, network: InstanceNetwork, count: int) -> None:
        self.network, self.count = network, count
        self.logits: list[Tensor] = []

    def take(self, x_TD: Tensor, turn: int) -> None:
        del turn
        self.logits.append(self.network.score(self.network.embed(x_TD)).float())

    def finish(self) -> _Member:
        network = self.network
        logits_NO = torch.cat(self.logits)
        bag_NO = logits_NO[: self.count]
        logit_BC, _ = network.outputs(bag_NO, bag_NO.new_ones((1, self.count), dtype=torch.bool))
        score_NC = network.scores(logits_NO)
        evidence_NC = bias_C = None
        if _is_sum(network):
            holds_NO = (logits_NO == bag_NO.amax(dim=0)).double()
            share_NO = holds_NO / holds_NO.sum(dim=0)
            if network.pool.rule == "mean":
                share_NO = torch.full_like(logits_NO, 1 / self.count, dtype=torch.float64)
            bias_O = network.score.bias.double()
            bias_C = network.shifted(bias_O[None])[0]
            evidence_NC = share_NO * (logits_NO - bias_O)
            if network.binary:  # the logits are (0, z)
                evidence_NC = torch.cat((torch.zeros_like(evidence_NC), evidence_NC), dim=1)
            evidence_NC = evidence_NC.expand(-1, len(bias_C))
        return _Member(logit_BC[0], score_NC, evidence_NC, bias_C, network.shifted(logits_NO))


def _collector(
    network: Any, count: int, more_MD: NDArray[Any] | None
) -> "_Attention | _Maximum | _Instances":
    maximum = isinstance(network, EmbeddingNetwork) and isinstance(network.pool, MaxPool)
    if more_MD is not None and (maximum or isinstance(network, InstanceNetwork)):
        raise ValueError("patches outside of the bag have no part in a maximum, or in scores that are pooled")
    if isinstance(network, InstanceNetwork):
        return _Instances(network, count)
    return _Maximum(network, count) if maximum else _Attention(network, count)


def _embedding(
    network: EmbeddingNetwork, count: int, attention_NA: Tensor, evidence_NO: Tensor, part_NO: Tensor
) -> _Member:
    """Return the member of evidence and w . h (N, O) of its patches, of which ``count`` are the bag."""
    bias_O = network.classify.bias.double()
    outputs = network.shifted(bias_O[None])
    logit_C = outputs[0] + evidence_NO[:count].sum(dim=0)
    return _Member(
        logit_C.float(),
        attention_NA.float(),
        evidence_NO.expand(-1, outputs.shape[1]),
        outputs[0],
        network.shifted(part_NO + network.classify.bias),
    )


def as_array(values: Tensor) -> NDArray[np.float32]:
    """Return values as they are stored."""
    plain: NDArray[np.float32] = values.float().cpu().numpy()
    return np.ascontiguousarray(plain)

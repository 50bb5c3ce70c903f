"""Several networks that are computed as one.

Comes in: networks of one shape. Goes out: their logits on a batch each, from one call. Small networks are
bound by the number of calls and not by arithmetic: 25 of them together take little longer than one. It knows
no training.
"""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.func import functional_call, stack_module_state, vmap

from wsi_mil.models import Network


class Lanes:
    """M networks; ``parameters`` have a leading dimension M where there are several."""

    def __init__(self, networks: Sequence[Network], device: torch.device) -> None:
        """Stack the networks' parameters; a single network stays as it is."""
        self.count = len(networks)
        for each in networks:
            each.to(device).train()
        self._network = networks[0] if self.count == 1 else copy.deepcopy(networks[0])
        if self.count == 1:
            self.parameters: dict[str, Tensor] = dict(self._network.named_parameters())
            self._buffers: dict[str, Tensor] = dict(self._network.named_buffers())
        else:
            self.parameters, self._buffers = stack_module_state(list(networks))

    def train(self, mode: bool) -> None:
        """Switch dropout on or off."""
        self._network.train(mode)

    def __call__(self, x_MTD: Tensor, bag_MT: Tensor, bags: int) -> Tensor:
        """Return the logits (M, B, C) of every network on its own bags."""
        if self.count == 1:
            return self._network(x_MTD[0], bag_MT[0], bags)[0][None]  # type: ignore[no-any-return]

        def one(
            parameters: dict[str, Tensor], buffers: dict[str, Tensor], x_TD: Tensor, bag_T: Tensor
        ) -> Tensor:
            logits, _ = functional_call(self._network, (parameters, buffers), (x_TD, bag_T, bags))
            return logits  # type: ignore[no-any-return]

        logits_MBC: Tensor = vmap(one, randomness="different")(self.parameters, self._buffers, x_MTD, bag_MT)
        return logits_MBC

    @property
    def network(self) -> Network:
        """Return the network, or the pattern of all, whose tensors are then not in use."""
        return self._network

    def state(self) -> dict[str, Tensor]:
        """Return copies of all tensors, each with a leading dimension M."""
        return {name: self._lead(each).detach().clone() for name, each in self._tensors().items()}

    @torch.no_grad()
    def load(self, state: dict[str, Tensor]) -> None:
        """Take the tensors of ``state``."""
        for name, each in self._tensors().items():
            self._lead(each).copy_(state[name])

    @torch.no_grad()
    def keep(self, kept: dict[str, Tensor], which_M: Sequence[bool]) -> None:
        """Copy the tensors of some networks into ``kept``."""
        for name, each in self._tensors().items():
            for m, wanted in enumerate(which_M):
                if wanted:
                    kept[name][m].copy_(self._lead(each)[m])

    def _tensors(self) -> dict[str, Tensor]:
        return self.parameters | self._buffers

    def _lead(self, each: Tensor) -> Tensor:
        return each[None] if self.count == 1 else each

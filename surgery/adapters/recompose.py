"""Recomposition: weak pairs are fused into the base and re-born along unused directions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, final

import torch
from torch import Tensor, nn

from surgery.adapters.importance import Importance, Observed, observe
from surgery.adapters.ledger import Ledger
from surgery.adapters.singular import SingularStart
from surgery.errors import PlanError, StateError


class Recomposed(SingularStart):
    """Mixed in before an adapter with a singular start: its weakest pairs move on to new directions.

    At a recomposition the r' = gamma r pairs of lowest importance are fused (added in the ledger)
    and re-born on the next r' unused singular directions (subtracted in the ledger): the function does not
    change, the subspace does (SRLoRA, arXiv 2505.12433).

    Args:
        target_rank: Directions that switches may reach, rank <= target_rank <= min(in, out); None means 4 * rank,
            or as many as there are. The last switch would fall on the last step and is left out: training
            visits r' fewer. Equal to ``rank`` nothing ever switches.
        gamma: Share of the pairs that are swapped at a recomposition, in (0, 1].
        beta1, beta2: Decays of the importance scores, see :class:`Importance`.
        **options: Those of the adapter that it is mixed into.

    Raises:
        PlanError: If target_rank, gamma or a decay do not fit, or target_rank leaves no room for a switch.
    """

    cursor: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        target_rank: int | None = None,
        gamma: float = 0.5,
        beta1: float = 0.85,
        beta2: float = 0.85,
        **options: Any,
    ) -> None:
        super().__init__(in_features, out_features, **options)
        limit = min(in_features, out_features)
        self.target_rank = min(4 * self.rank, limit) if target_rank is None else target_rank
        _check(self.rank, self.target_rank, limit, gamma, beta1, beta2)
        self.swap = max(1, round(gamma * self.rank))
        if target_rank is not None:
            _check_room(self.rank, target_rank, self.swap)
        spare, device = self.target_rank - self.rank, self.ledger.B.device
        self.ledger = Ledger(in_features, out_features, self.rank + 2 * spare, device=device)
        self.importance = nn.ModuleDict()
        for name, (parameter, dim) in self.pairs().items():
            shape = [spare if i == dim else size for i, size in enumerate(parameter.shape)]
            self.register_buffer(f"next_{name}", parameter.new_zeros(shape))
            self.importance[name] = Importance(parameter.shape, beta1, beta2, device)
        self.register_buffer("cursor", torch.zeros((), device=device, dtype=torch.long))

    @property
    def switches(self) -> int:
        """Recompositions that target_rank allows from the start, (target_rank - r) / r'."""
        return (self.target_rank - self.rank) // self.swap

    @property
    def switches_left(self) -> int:
        """Recompositions for which directions remain."""
        return (self.target_rank - self.rank - int(self.cursor)) // self.swap

    @torch.no_grad()
    def start(self, weight: Tensor, generator: torch.Generator | None = None) -> None:
        """Take target_rank leading directions of the weight; the first r of them train."""
        first: dict[str, Tensor] = {}
        values = self.directions(weight.float(), self.target_rank)
        for name, (_, dim) in self.pairs().items():
            first[name] = values[name].narrow(dim, 0, self.rank)
            spare = values[name].narrow(dim, self.rank, self.target_rank - self.rank)
            self.get_buffer(f"next_{name}").copy_(spare)
        self.cursor.zero_()
        self.take(first)
        self._forget_scores()

    @final
    def observe(self) -> None:
        """Take the present gradients into the importance scores; without gradients nothing happens.

        A recomposer takes in those of all adapters at once, by :meth:`observed`: override that.
        """
        observe(self.observed())

    def observed(self) -> Iterator[Observed]:
        """The scores of each trained tensor that has a gradient, with both."""
        for name, (parameter, _) in self.pairs().items():
            if parameter.grad is not None:
                yield self._importance(name), parameter, parameter.grad

    def scores(self) -> Tensor:
        """Importance of each pair, (r,): the mean over its entries, summed over the trained tensors.

        For B and A that is ``S_k = mean_i s(B_ik) + mean_j s(A_kj)``.
        """
        means = [
            self._importance(name).score().movedim(dim, 0).reshape(self.rank, -1).mean(1)
            for name, (_, dim) in self.pairs().items()
        ]
        return torch.stack(means).sum(0)

    @torch.no_grad()
    def recompose(self) -> Tensor:
        """Fuse the weakest pairs and let them be born on the next unused directions.

        Returns:
            Indices of the swapped pairs, (r',); empty if too few directions remain. The owner of
            the weight then has to recompute it from :meth:`correction`, and the optimizer to
            forget its state of these pairs.
        """
        if self.switches_left < 1:
            return torch.empty(0, dtype=torch.long, device=self.ledger.B.device)
        weakest = self.scores().argsort(stable=True)[: self.swap]
        self.switch(weakest)
        return weakest

    @torch.no_grad()
    def switch(self, places: Tensor) -> None:
        """Fuse the pairs at ``places``, (k,), and let them be born on the next unused directions.

        Raises:
            StateError: If fewer than k directions are left; nothing is changed then.
        """
        cursor, spare = int(self.cursor), self.target_rank - self.rank
        if cursor + len(places) > spare:
            raise StateError(
                f"{len(places)} pairs cannot move on",
                why=f"{spare - cursor} of {spare} further directions are left",
                remedy="switch fewer pairs, or choose a larger target_rank when applying",
            )
        self.enter(1, places)
        for name, (parameter, dim) in self.pairs().items():
            born = self.get_buffer(f"next_{name}").narrow(dim, cursor, len(places))
            parameter.index_copy_(dim, places, born.to(parameter))
        self.enter(-1, places)
        self.cursor += len(places)
        self._forget_scores()

    def _importance(self, name: str) -> Importance:
        importance = self.importance[name]
        assert isinstance(importance, Importance)
        return importance

    def _forget_scores(self) -> None:
        for name in self.pairs():
            self._importance(name).reset()


def _check_room(rank: int, target_rank: int, swap: int) -> None:
    if rank < target_rank < rank + swap:
        raise PlanError(
            f"target_rank {target_rank} leaves no room for a switch",
            why=f"{swap} of {rank} pairs move on at a time, to directions that were not used",
            remedy=f"choose at least {rank + swap}, a smaller gamma, or {rank}, which never switches",
        )


def _check(
    rank: int, target_rank: int, limit: int, gamma: float, beta1: float, beta2: float
) -> None:
    if not rank <= target_rank <= limit:
        raise PlanError(
            f"target_rank {target_rank} does not fit",
            why=f"recomposition needs rank <= target_rank <= min(in, out), here {rank} <= ... <= {limit}",
            remedy=f"choose a target_rank between {rank} and {limit}, or leave it out",
        )
    if not 0 < gamma <= 1:
        raise PlanError(
            f"gamma {gamma} is no share of the pairs", remedy="choose gamma in (0, 1], usually 0.5"
        )
    if not (0 <= beta1 < 1 and 0 <= beta2 < 1):
        raise PlanError(
            f"decays {beta1} and {beta2} of the importance do not fit",
            remedy="choose beta1 and beta2 in [0, 1), usually 0.85",
        )

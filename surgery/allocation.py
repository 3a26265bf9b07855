"""Ranks by measurement: a budget is shared out among projections by what the loss says about them."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import policies
from policies import Policy, PolicyLike
from policies import budget as budgets
from surgery.adapters import registry
from surgery.anatomy.read import read
from surgery.anatomy.types import Anatomy
from surgery.errors import PlanError
from surgery.operations import planner
from surgery.operations.budget import largest_rank
from surgery.operations.plan import Operation, Plan
from surgery.operations.sensitivity import Loss, default_loss, gradients, rows_of
from surgery.operations.spelling import spell_out
from surgery.operations.state import plain_model


@dataclass(frozen=True)
class Candidate:
    """A projection that may get pairs.

    Attributes:
        operation: What the policy would put there.
        gains: First-order gain of its best pair, the next best, ...
        cost: Numbers that one more pair trains.
    """

    operation: Operation
    gains: tuple[float, ...]
    cost: int


def allocate(
    model: nn.Module,
    batches: Iterable[Any],
    policy: PolicyLike,
    *,
    budget: str | int | None = None,
    loss: Loss = default_loss,
    max_rank: int | None = None,
    anatomy: Anatomy | None = None,
    example_inputs: Any = None,
    **overrides: Any,
) -> Policy:
    r"""Measure which projections of a policy deserve how much rank. The model is left as it was.

    Let :math:`G = \partial L / \partial W`, (out, in), be the gradient of the mean loss over the batches with
    respect to the frozen rows of a projection. A small update changes the loss by
    :math:`\langle G, \Delta W \rangle`, and among all updates of rank r with :math:`\|\Delta W\|_2 \le \epsilon`
    the best one gains

    .. math:: \max_{\operatorname{rank} \Delta W \le r,\, \|\Delta W\|_2 \le \epsilon}
              -\langle G, \Delta W \rangle = \epsilon \sum_{k \le r} \sigma_k(G),

    reached at :math:`-\epsilon \sum_{k \le r} u_k v_k^T`. So the k-th pair of a projection is worth
    :math:`\sigma_k(G)` (for SymLoRA, whose updates are symmetric, :math:`|\lambda_k|` of G's symmetric part,
    for its polar form of that of :math:`R^T G`), and costs what it trains. Pairs are taken by worth per trained
    number until the budget is spent; a projection that gets none is left out of the policy. This allocation is
    ours. It knows the first step, not the last: where pretrained features must move far it can be wrong.

    Args:
        model: A plain model with its weights, the task's head included.
        batches: A few, each a mapping with labels or a pair (inputs, targets), on the model's device.
        policy: Name, path, mapping or ``Policy``: the projections to choose from, and the adapter.
        budget: ``0.3%`` or ``300k``, as in a policy. None: the policy's budget, or what its ranks spend.
        loss: From model and batch to one number, for any other batch or objective.
        max_rank: The most that one projection may get; None: its smaller side.
        anatomy: What ``surgery.read`` gave, if it was read before.
        example_inputs: For the reading, if the model does not tell its inputs itself.
        **overrides: As for ``surgery.plan``.

    Returns:
        A policy with a rank for each role and depth. ``print`` shows it as the YAML to keep.

    Raises:
        PolicyError, AnatomyError, PlanError, CaptureError: As ``surgery.plan``.
        PlanError: The budget is below one pair, so is max_rank, or the loss depends on none of the projections.
        StateError: No batch, no loss, or a loss that is not finite.
    """
    model = plain_model(model)
    if max_rank is not None and max_rank < 1:
        remedy = "pass 1 or more, or leave it out"
        raise PlanError(f"max_rank {max_rank} leaves no pair", remedy=remedy)
    wanted = policies.get(policy, **overrides, budget=budget)
    anatomy = read(model, example_inputs) if anatomy is None else anatomy
    smallest = planner.plan(model, policies.get(wanted, rank=1), anatomy=anatomy)
    limit = _limit(model, wanted, smallest, anatomy)
    projections = [operation.projection for operation in smallest.operations]
    found = gradients(model, projections, batches, loss)
    candidates = [
        _candidate(operation, gradient, rows_of(model, operation.projection), limit, max_rank)
        for operation, gradient in zip(smallest.operations, found, strict=True)
    ]
    ranks = share_out(candidates, limit)
    _check(ranks, candidates, limit)
    spent = sum(rank * c.cost for rank, c in zip(ranks, candidates, strict=True))
    about = f"ranks measured for {type(model).__name__}: {spent:,} of {limit:,} weights"
    placed = [(c.operation, rank) for c, rank in zip(candidates, ranks, strict=True) if rank]
    return spell_out(wanted, placed, anatomy).model_copy(update={"description": about})


def share_out(candidates: Sequence[Candidate], limit: int) -> list[int]:
    """Pairs for each candidate, by gain per trained number, while they fit; the earlier one wins a draw."""
    ranks = [0] * len(candidates)
    heap = [(-c.gains[0] / c.cost, index) for index, c in enumerate(candidates) if c.gains]
    heapq.heapify(heap)
    while heap:
        _, index = heapq.heappop(heap)
        candidate = candidates[index]
        if candidate.cost > limit:
            continue
        limit -= candidate.cost
        ranks[index] += 1
        if ranks[index] < len(candidate.gains):
            heapq.heappush(heap, (-candidate.gains[ranks[index]] / candidate.cost, index))
    return ranks


def _limit(model: nn.Module, wanted: Policy, smallest: Plan, anatomy: Anatomy) -> int:
    if wanted.budget is not None:
        return budgets.parse(wanted.budget)(smallest.base_parameters)
    return planner.plan(model, wanted, anatomy=anatomy).adapter_parameters


def _candidate(
    operation: Operation,
    gradient: Tensor,
    weight: Tensor,
    limit: int,
    max_rank: int | None,
) -> Candidate:
    p, spec = operation.projection, operation.adapter
    cost = operation.parameters
    most = min(largest_rank(p, spec), limit // cost, limit if max_rank is None else max_rank)
    if most < 1:
        return Candidate(operation, (), cost)
    gains = registry.get(spec.kind).first_order_gains(gradient, weight, most)
    # Below the rounding of the largest one a singular value says nothing.
    real = gains > gains.amax() * max(gradient.shape) * torch.finfo(gradient.dtype).eps
    return Candidate(operation, tuple(gains[real].tolist()), cost)


def _check(ranks: Sequence[int], candidates: Sequence[Candidate], limit: int) -> None:
    if any(ranks):
        return
    cheapest = min(candidate.cost for candidate in candidates)
    small = cheapest > limit
    raise PlanError(
        "no projection got any rank",
        why=f"the budget is {limit:,} weights, and one pair trains {cheapest:,}"
        if small
        else "the loss has no gradient at any projection that the policy selects",
        remedy="raise the budget" if small else "check the loss, the labels, and the policy",
    )

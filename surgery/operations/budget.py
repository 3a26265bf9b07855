"""A parameter budget: the largest rank, the same for all projections, that stays within it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from policies import AdapterSpec, Policy
from policies import budget as budgets
from surgery.anatomy.types import Access, Projection
from surgery.errors import PlanError
from surgery.operations.choose import Chosen
from surgery.operations.make import make_adapter, trained_numbers
from surgery.operations.plan import Operation


def uniform_rank(policy: Policy, chosen: Chosen, base: int, notes: list[str]) -> int:
    """The rank that a policy's budget sets.

    What ``train`` names is not counted: a head must train whatever the adapters cost.

    Args:
        policy: It has a budget.
        chosen: The projections that it selects.
        base: Numbers in the plain model.
        notes: Receives the rank, the count and the share.

    Raises:
        PlanError: If even rank 1 is over the budget.
    """
    text = policy.budget or ""
    limit = budgets.parse(text)(base)
    widest = min((min(p.in_features, p.out_features) for p in chosen), default=1)
    cost = _cost_of(chosen)
    smallest = cost(1)
    assert smallest is not None
    if smallest > limit:
        raise PlanError(
            f"the budget {text} is too small for policy {policy.name!r}",
            why=f"it is {limit:,} weights, and rank 1 on {len(chosen)} projections trains {smallest:,}",
            remedy="raise the budget, or select less: roles=, depth=, part=",
        )
    rank = _largest(cost, limit, widest)
    spent = cost(rank)
    narrow = ", as much as the narrowest of them carries" if rank == widest else ""
    notes.append(
        f"budget {text} ({limit:,} weights): rank {rank} on {len(chosen)} projections{narrow}, "
        f"{spent:,} weights, {(spent or 0) / max(base, 1):.3%} of the model's"
    )
    return rank


def parameters_of(projection: Projection, spec: AdapterSpec) -> int:
    """How many numbers an adapter trains on a projection.

    Raises:
        PolicyError, PlanError: As :func:`surgery.operations.make.make_adapter`.
    """
    draft = Operation(projection, projection.role.short, Access.MODULE, spec, parameters=0)
    return trained_numbers(make_adapter(draft, device="meta"))


def largest_rank(projection: Projection, spec: AdapterSpec) -> int:
    """The largest rank that an adapter's options allow on a projection, at least 1."""
    sides = projection.in_features, projection.out_features
    cost = _cost_of({projection: spec})
    return _largest(cost, sides[0] * sides[1] * 2, min(sides))


def _largest(cost: Callable[[int], int | None], limit: int, widest: int) -> int:
    """Bisection: a larger rank never costs less."""
    fits, above = 1, widest + 1
    while above - fits > 1:
        middle = (fits + above) // 2
        spent = cost(middle)
        if spent is not None and spent <= limit:
            fits = middle
        else:
            above = middle
    return fits


def _cost_of(chosen: Chosen) -> Callable[[int], int | None]:
    """What all projections cost at a rank; None where an option (target_rank) forbids it."""
    specs = {spec.model_dump_json(): spec for spec in chosen.values()}
    shapes = {(p.in_features, p.out_features): p for p in chosen}
    counts = Counter(
        (p.in_features, p.out_features, spec.model_dump_json()) for p, spec in chosen.items()
    )

    def cost(rank: int) -> int | None:
        total = 0
        for (wide, high, key), number in counts.items():
            spec = specs[key].model_copy(update={"rank": rank})
            try:
                total += number * parameters_of(shapes[wide, high], spec)
            except PlanError:
                if rank == 1:
                    raise
                return None
        return total

    return cost

"""What makes an operation impossible, each with its reason: asked before anything is touched."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from itertools import combinations

import torch
from torch import nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from surgery.anatomy.types import Access, Layout, Projection, indices
from surgery.errors import PlanError
from surgery.operations.adapted import CHILD
from surgery.operations.plan import Operation
from surgery.operations.rows import has_matrix

_ANEW = "make the plan for this model: surgery.plan(model, policy)"
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d)
_PLAIN_FORWARDS = (nn.Linear.forward, *(kind.forward for kind in _CONVOLUTIONS))


def located(model: nn.Module, projection: Projection) -> tuple[nn.Module, nn.Parameter]:
    """The module that owns the projection's weight, and its base weight; on an adapted model reading it gives more.

    Raises:
        PlanError: If the model has no such module or weight: the anatomy is another model's.
    """
    try:
        owner = model.get_submodule(projection.module)
    except AttributeError:
        owner = None
    weight = None if owner is None else owner._parameters.get(projection.parameter)
    if owner is None or weight is None:
        raise PlanError(
            f"{type(model).__name__} has no parameter {projection.weight_name}",
            where=projection.weight_name,
            why="the anatomy or the plan was made for another model, or the weight is parametrised",
            remedy="call surgery.plan(model, policy) anew; remove parametrisations first "
            "(torch.nn.utils.parametrize.remove_parametrizations)",
        )
    return owner, weight


def owner_of(model: nn.Module, projection: Projection) -> nn.Module:
    """The first of :func:`located`.

    Raises:
        PlanError: As there.
    """
    return located(model, projection)[0]


def weight_of(model: nn.Module, projection: Projection) -> nn.Parameter:
    """The second of :func:`located`.

    Raises:
        PlanError: As there.
    """
    return located(model, projection)[1]


def check_projection(model: nn.Module, projection: Projection, rank: int) -> nn.Parameter:
    """Refuse a projection that no adapter of this rank can sit on.

    Returns:
        Its base weight.

    Raises:
        PlanError: Ties, dead ends, shapes, dtypes or the rank forbid it; it says which.
    """
    owner, weight = located(model, projection)
    _check_weight(weight, projection)
    limit = min(projection.in_features, projection.out_features)
    _check_rows(projection)
    if projection.tied_to:
        _refuse(
            projection,
            f"its tensor is also {', '.join(projection.tied_to)}: an adapter would change both",
            "leave it out of the policy, or untie the weights (tie_word_embeddings=False)",
        )
    if not projection.reaches_output:
        _refuse(
            projection,
            "no gradient comes to it: no path leads from it to an output of the model, or torch.no_grad "
            "or detach cuts every one",
            "leave it out (modules:, depth:), pass example_inputs= that use this part, or let gradients through",
        )
    if rank > limit:
        _refuse(
            projection,
            f"rank {rank} is above {limit}, the smaller side of {projection.out_features} x "
            f"{projection.in_features}",
            f"ask for rank={limit} or less, or give this selection an adapter with its own rank",
        )
    if hasattr(owner, CHILD):
        _refuse(
            projection,
            f"{type(owner).__name__} already has an attribute {CHILD!r}",
            "leave this module out of the policy",
        )
    if hasattr(nn.ModuleDict, projection.parameter):
        _refuse(
            projection,
            f"adapters are kept by the weight's name, and {projection.parameter!r} is taken",
            "rename the parameter, or leave it out of the policy",
        )
    return weight


def check_operations(model: nn.Module, operations: Iterable[Operation]) -> None:
    """Refuse operations that cannot all be carried out on this model; a plan may come from a file.

    Raises:
        PlanError: One of them is impossible, ties have changed, or two are in each other's way.
    """
    owners: dict[int, set[int]] = defaultdict(set)
    for module in model.modules():
        for parameter in module._parameters.values():
            owners[id(parameter)].add(id(module))
    by_weight: dict[str, dict[str, Operation]] = defaultdict(dict)
    for operation in operations:
        p = operation.projection
        weight = check_projection(model, p, operation.adapter.rank)
        if len(owners[id(weight)]) > 1:
            _refuse(p, "its tensor has another owner too", "untie the weights, or leave it out")
        slots = by_weight[p.weight_name]
        same = all(other.access is operation.access for other in slots.values())
        if operation.slot in slots or not same or not _is_slot(operation):
            _refuse(p, f"its slot {operation.slot!r} or access does not fit", _ANEW)
        slots[operation.slot] = operation
    for slots in by_weight.values():
        check_disjoint(operation.projection for operation in slots.values())


def check_disjoint(chosen: Iterable[Projection]) -> None:
    """Refuse two roles that share some rows of one weight, but not all.

    Raises:
        PlanError: It names both.
    """
    for one, other in combinations(chosen, 2):
        if _apart(one, other):
            continue
        shared = set(indices(one.rows)) & set(indices(other.rows))
        if shared:
            _refuse(
                one,
                f"{one.role} and {other.role} share {len(shared)} of its output channels",
                "ask for one of the two roles",
            )


def _apart(one: Projection, other: Projection) -> bool:
    """Whether one ends before the other begins: most do, and need not be counted row by row."""
    ends = [(min(run[0] for run in p.rows), max(run[1] for run in p.rows)) for p in (one, other)]
    (a, b), (c, d) = ends
    return b <= c or d <= a


def access_of(model: nn.Module, sharing: Iterable[Projection]) -> Access:
    """How the adapters on one weight must act, given all projections that share it.

    Through the module only if every reader calls the module, and its forward is the plain product.
    In all other cases the weight itself is composed, which is right for every reader.
    """
    group = list(sharing)
    owner = owner_of(model, group[0])
    called = all(projection.access is Access.MODULE for projection in group)
    direct = called and _forward_is_plain(owner, group[0].layout)
    # torch's encoder layer has a fused inference path that reads its children's weights.
    parent = model.get_submodule(group[0].module.rpartition(".")[0])
    fused = isinstance(parent, nn.TransformerEncoderLayer)
    return Access.MODULE if direct and not fused else Access.PARAMETER


def _forward_is_plain(owner: nn.Module, layout: Layout) -> bool:
    if "forward" in vars(owner):  # patched on the instance, by accelerate for one
        return False
    forward = type(owner).forward
    if layout is Layout.IN_OUT:
        return forward.__qualname__ == "Conv1D.forward"
    if isinstance(owner, _CONVOLUTIONS) and any(owner._reversed_padding_repeated_twice):
        return False  # its forward pads by reflection first
    return forward in _PLAIN_FORWARDS


def _check_weight(weight: torch.Tensor, projection: Projection) -> None:
    if not weight.is_floating_point() or weight.element_size() < 2:
        _refuse(
            projection,
            f"its dtype is {weight.dtype}: adapters need a base that can be read and folded",
            "load the model unquantised (float32, bfloat16 or float16)",
        )
    if is_traceable_wrapper_subclass(weight):
        _refuse(
            projection,
            f"its weight is a {type(weight.data).__name__}, not a plain tensor",
            "apply before quantising or sharding the model",
        )
    sides = (projection.weight_out_features, projection.in_features)
    expected = sides[::-1] if projection.layout is Layout.IN_OUT else sides
    if weight.ndim < 2 or tuple(weight.flatten(1).shape) != expected:
        _refuse(
            projection,
            f"its shape is {tuple(weight.shape)}, the plan expects {expected}",
            _ANEW,
        )
    if not has_matrix(weight):
        _refuse(
            projection,
            f"it lies in memory with strides {weight.stride()}, so that no matrix is a view of it",
            f"lay it out first: owner.{projection.parameter} = nn.Parameter("
            f"owner.{projection.parameter}.contiguous())",
        )


def _is_slot(operation: Operation) -> bool:
    role = operation.projection.role.short
    return re.fullmatch(rf"{role}(_[0-9]+)?", operation.slot, re.ASCII) is not None


def _check_rows(projection: Projection) -> None:
    runs, total = projection.rows, projection.weight_out_features
    inside = all(step > 0 and 0 <= start < stop <= total for start, stop, step in runs)
    count = sum(len(range(*run)) for run in runs) if inside else 0
    if count != projection.out_features or len(set(indices(runs))) != count:
        _refuse(projection, f"its rows are not {projection.out_features} of {total}", _ANEW)


def _refuse(projection: Projection, why: str, remedy: str) -> None:
    raise PlanError(
        f"{projection.weight_name} ({projection.role}) cannot carry an adapter",
        where=f"{projection.weight_name}, {projection.module_type}",
        why=why,
        remedy=remedy,
    )

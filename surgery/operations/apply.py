"""Doing exactly what a plan says, or nothing at all."""

from __future__ import annotations

import warnings
from itertools import chain
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from policies import PolicyLike
from surgery.adapters.base import Adapter
from surgery.anatomy.types import Anatomy
from surgery.anatomy.wrappers import own_name, parameters_of
from surgery.errors import PlanError, StateError, SurgeryError
from surgery.operations import planner
from surgery.operations.adapted import dress
from surgery.operations.checks import check_operations, located
from surgery.operations.graft import Graft
from surgery.operations.make import Start, make_adapter, named
from surgery.operations.plan import Operation, Plan
from surgery.operations.rows import as_matrix, take
from surgery.operations.state import Record, plain_model, remember, restore

Grafts = dict[nn.Module, dict[str, Graft]]
Model = TypeVar("Model", bound=nn.Module)


def apply(
    model: Model,
    policy: PolicyLike | Plan | None = None,
    *,
    plan: Plan | None = None,
    anatomy: Anatomy | None = None,
    example_inputs: Any = None,
    seed: int | None = None,
    **overrides: Any,
) -> Model:
    """Put adapters on a model in place; afterwards only they, and what the policy adds, train.

    Adapters are fp32 and live on the device of their weight. If anything fails, the model is as it
    was.

    Args:
        model: A plain model.
        policy: A name, a path to a YAML file, a mapping or a ``Policy``; or what ``surgery.plan`` made.
        plan: What ``surgery.plan`` made, instead of a policy.
        anatomy: What ``surgery.read`` gave, if it was read before.
        example_inputs: For the reading, if the model does not tell its inputs itself.
        seed: Makes the factors reproducible and leaves torch's global random state alone.
        **overrides: ``rank=``, ``adapter=``, ``alpha=``, ``roles=``, ``depth=``, ``part=``, ``budget=``,
            ``train=``, adapter options.

    Returns:
        The same model.

    Raises:
        PolicyError, AnatomyError, PlanError, CaptureError: As ``surgery.plan``.
        StateError: The model is wrapped, adapted already, or has no values yet (meta device), or a weight whose
            directions an adapter starts on is not finite.
    """
    base = plain_model(model)
    wanted = _wanted(policy, plan, overrides)
    if not isinstance(wanted, Plan):
        wanted = planner.plan(
            base, wanted, anatomy=anatomy, example_inputs=example_inputs, **overrides
        )
    generator = None if seed is None else torch.Generator().manual_seed(seed)

    def start(operation: Operation, adapter: Adapter, rows: Tensor) -> None:
        try:
            adapter.start(rows, generator)
        except SurgeryError as error:
            raise named(error, operation) from None

    graft(base, wanted, start)
    _warn_of_half_precision(base)
    return model


def _wanted(
    policy: PolicyLike | Plan | None, plan: Plan | None, overrides: dict[str, Any]
) -> PolicyLike | Plan:
    """The one thing that was given.

    Raises:
        PlanError: If it was none, or a plan with something beside it.
    """
    given = policy if plan is None else plan
    if given is None:
        raise PlanError(
            "apply needs a policy or a plan", remedy="surgery.apply(model, 'vit-attn-qv')"
        )
    if plan is not None and not isinstance(plan, Plan):
        raise PlanError(
            f"a {type(plan).__name__} is no plan",
            remedy="pass what surgery.plan(model, policy) made, or the policy itself",
        )
    if isinstance(given, Plan) and (overrides or (plan and policy)):
        raise PlanError(
            "apply was given a plan and a policy",
            remedy="override when planning: surgery.plan(...)",
        )
    return given


def graft(model: nn.Module, plan: Plan, start: Start) -> None:
    """Carry out a plan on a plain model; ``start`` sets the factors of each adapter.

    Everything that can fail for a known reason happens before the model is touched; anything else
    (memory, an interrupt) is rolled back.
    """
    _check(model, plan)
    grafts = _build(model, plan, start)
    record = Record.of(model, plan)
    try:
        _commit(model, grafts, record)
    except BaseException:
        restore(model, record)
        raise


def _warn_of_half_precision(model: nn.Module) -> None:
    """Adapters are float32; what a policy trains besides them has the dtype of the model."""
    trained = {name: p for name, p in parameters_of(model).items() if p.requires_grad}
    halves = [name for name, parameter in trained.items() if parameter.dtype is torch.float16]
    if halves:
        warnings.warn(
            f"{halves[0]} and {len(halves) - 1} others would train in float16, where Adam's epsilon is 0 and a "
            "GradScaler refuses their gradients: load the model in bfloat16, or in float32 and train under "
            "autocast, or leave them frozen (train=[])",
            stacklevel=3,
        )


def _check(model: nn.Module, plan: Plan) -> None:
    check_operations(model, plan.operations)
    tensors = chain(parameters_of(model).items(), model.named_buffers())
    empty = next((name for name, tensor in tensors if tensor.is_meta), None)
    if empty is not None:
        raise StateError(
            f"{type(model).__name__} has no values yet",
            where=empty,
            why="it is on the meta device",
            remedy="load its weights first; surgery.read and surgery.plan work without",
        )
    missing = plan.absent_from(model)
    if missing is not None:
        raise PlanError(
            f"{type(model).__name__} has no parameter {missing}, which the plan would train",
            remedy="make the plan for this model: surgery.plan(model, policy)",
        )


@torch.no_grad()
def _build(model: nn.Module, plan: Plan, start: Start) -> Grafts:
    grafts: Grafts = {}
    for operation in plan.operations:
        p = operation.projection
        owner, weight = located(model, p)
        adapter = make_adapter(operation, weight.device)
        start(operation, adapter, take(as_matrix(weight.detach(), p.layout), p.rows).float())
        empty = Graft(p.layout, operation.access, p.weight_out_features)
        seat = grafts.setdefault(owner, {}).setdefault(p.parameter, empty)
        seat.place(operation.slot, adapter, p.rows)
        if seat.original is None and adapter.correction() is not None:
            seat.original = weight.detach().to("cpu", copy=True)
    return grafts


def _commit(model: nn.Module, grafts: Grafts, record: Record) -> None:
    trained = set(map(own_name, record.plan.trained_names))
    for name, parameter in parameters_of(model).items():
        parameter.requires_grad_(name in trained)
    for owner, by_parameter in grafts.items():
        dress(owner, by_parameter).refresh_base()
    remember(model, record)

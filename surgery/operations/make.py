"""Making an adapter for an operation, and setting its factors."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from surgery.adapters import registry
from surgery.adapters.base import Adapter
from surgery.errors import PolicyError, SurgeryError
from surgery.operations.plan import Operation


class Start(Protocol):
    """Sets the factors of a new adapter."""

    def __call__(self, operation: Operation, adapter: Adapter, rows: Tensor) -> None:
        """``rows`` is the projection's share of the original weight, ``(out, in)`` in fp32."""


def make_adapter(operation: Operation, device: torch.device | str) -> Adapter:
    """The adapter of an operation, fp32 on ``device``, its factors not yet set.

    Raises:
        PolicyError: The kind or an option is unknown, or an option has no sense.
        PlanError: The adapter refuses its shape, rank or options; it names the projection.
    """
    projection, spec = operation.projection, operation.adapter
    kind = registry.get(spec.kind)
    registry.check_options(spec.kind, spec.options)
    try:
        return kind(
            projection.in_features,
            projection.out_features,
            rank=spec.rank,
            alpha=spec.alpha,
            device=device,
            dtype=torch.float32,
            **spec.options,
        )
    except SurgeryError as error:
        raise named(error, operation) from None
    except (TypeError, ValueError, ArithmeticError) as error:  # an option that makes no sense
        raise PolicyError(
            f"an adapter {spec.kind!r} cannot be made",
            where=operation.name,
            why=f"{type(error).__name__}: {error}",
            remedy=f"check its options in the policy: {', '.join(spec.options) or 'there are none'}",
        ) from error


def named(error: SurgeryError, operation: Operation) -> SurgeryError:
    """The same error of an adapter, which knows no names, with the projection that it sits on."""
    where = error.where or operation.name
    return type(error)(error.what, where=where, why=error.why, remedy=error.remedy)


def trained_numbers(module: nn.Module) -> int:
    """How many numbers of a module train."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)

"""What is on a model right now."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rich.console import Group
from torch import nn

from surgery.anatomy.render import as_text
from surgery.operations import render
from surgery.operations.plan import Plan
from surgery.operations.state import adapted_model


@dataclass(frozen=True)
class Summary:
    """The adapters of a model and what trains.

    Attributes:
        plan: What was applied.
        trainable: Numbers whose ``requires_grad`` is set now; the user may have changed flags
            since.
        total: Numbers in the adapted model.
    """

    plan: Plan
    trainable: int
    total: int

    @property
    def share(self) -> float:
        """Trainable numbers over all."""
        return self.trainable / max(self.total, 1)

    def to_dict(self) -> dict[str, Any]:
        """``{"plan": {...}, "trainable", "total", "share"}``."""
        counts = {"trainable": self.trainable, "total": self.total, "share": self.share}
        return {"plan": self.plan.to_dict(), **counts}

    def __rich__(self) -> Group:
        return render.summary_table(self)

    def __str__(self) -> str:
        return as_text(self)


def summary(model: nn.Module) -> Summary:
    """Summarise an adapted model.

    Raises:
        StateError: If nothing is applied to it.
    """
    base, record = adapted_model(model, "summary")
    sizes = [(p.numel(), p.requires_grad) for p in base.parameters()]
    trainable = sum(size for size, trains in sizes if trains)
    return Summary(record.plan, trainable, sum(size for size, _ in sizes))

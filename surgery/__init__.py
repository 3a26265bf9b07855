"""Name-free model surgery: read what a model is, adapt exactly what a policy asks for, fold it away.

surgery.read(model)                          what the model is, from its torch.export graph
surgery.plan(model, policy)                  what would be done, before anything is touched
surgery.apply(model, policy="vit-attn-qv")   in place; only adapters and the policy's extras train
surgery.fold(model)                          the plain model again, weights folded
surgery.undo(model)                          the model as it was, bit for bit
surgery.save(model, path), surgery.load(model, path)
surgery.save_picture(path, anatomy, plan)    the anatomy as one HTML page
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from surgery.anatomy.read import read
    from surgery.anatomy.types import (
        Access,
        Anatomy,
        AttentionSite,
        FeedForward,
        Layout,
        Projection,
    )
    from surgery.anatomy.verify import Verification, verify
    from surgery.checkpoint import load, save
    from surgery.errors import (
        AnatomyError,
        CaptureError,
        CheckpointError,
        PlanError,
        PolicyError,
        StateError,
        SurgeryError,
    )
    from surgery.operations.apply import apply
    from surgery.operations.fold import FoldReport, fold
    from surgery.operations.plan import Operation, Plan
    from surgery.operations.planner import plan
    from surgery.operations.summary import Summary, summary
    from surgery.operations.undo import undo
    from surgery.picture import save_picture
    from surgery.training import Recomposer, parameter_groups

__all__ = [
    "Access",
    "Anatomy",
    "AnatomyError",
    "AttentionSite",
    "CaptureError",
    "CheckpointError",
    "FeedForward",
    "FoldReport",
    "Layout",
    "Operation",
    "Plan",
    "PlanError",
    "PolicyError",
    "Projection",
    "Recomposer",
    "StateError",
    "Summary",
    "SurgeryError",
    "Verification",
    "apply",
    "fold",
    "load",
    "parameter_groups",
    "plan",
    "read",
    "save",
    "save_picture",
    "summary",
    "undo",
    "verify",
]

_HOMES = {
    "surgery.anatomy.read": "read",
    "surgery.anatomy.types": "Access Anatomy AttentionSite FeedForward Layout Projection",
    "surgery.anatomy.verify": "Verification verify",
    "surgery.checkpoint": "load save",
    "surgery.errors": "AnatomyError CaptureError CheckpointError PlanError PolicyError StateError SurgeryError",
    "surgery.operations.apply": "apply",
    "surgery.operations.fold": "FoldReport fold",
    "surgery.operations.plan": "Operation Plan",
    "surgery.operations.planner": "plan",
    "surgery.operations.summary": "Summary summary",
    "surgery.operations.undo": "undo",
    "surgery.picture": "save_picture",
    "surgery.training": "Recomposer parameter_groups",
}
_HOME = {name: module for module, names in _HOMES.items() for name in names.split()}
_PARTS = (
    "adapter_file",
    "adapters",
    "anatomy",
    "checkpoint",
    "errors",
    "groups",
    "integrations",
    "operations",
    "picture",
    "training",
)

if not TYPE_CHECKING:  # for the type checker the imports above are all there is

    def __getattr__(name: str) -> object:
        """Import what is asked for when it is asked for: ``surgery --help`` needs no torch."""
        if name in _HOME:
            found = getattr(import_module(_HOME[name]), name)
        elif name in _PARTS:
            found = import_module(f"{__name__}.{name}")
        else:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = found
        return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_PARTS})

"""Name-free model surgery: read what a model is, adapt exactly what a policy asks for, fold it away.

surgery.read(model)                          what the model is, from its torch.export graph
surgery.plan(model, policy)                  what would be done, before anything is touched
surgery.apply(model, policy="vit-attn-qv")   in place; only adapters and the policy's extras train
surgery.fold(model)                          the plain model again, weights folded
surgery.undo(model)                          the model as it was, bit for bit
surgery.save(model, path), surgery.load(model, path)
"""

from __future__ import annotations

from surgery.anatomy.read import read
from surgery.anatomy.types import Access, Anatomy, AttentionSite, FeedForward, Layout, Projection
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
    "summary",
    "undo",
    "verify",
]

"""Errors of the engine; the family root lives with the policies, on the ground floor."""

from __future__ import annotations

from policies.errors import PolicyError, SurgeryError, told_at_length, told_by


class CaptureError(SurgeryError):
    """The model's graph could not be captured, or example inputs could not be made."""


class AnatomyError(SurgeryError):
    """The graph was captured, but what was asked for is not in it."""


class PlanError(SurgeryError):
    """A policy cannot be laid on this model: ranks, shapes, ties, or adapters that would be dead."""


class StateError(SurgeryError):
    """The model is not in the state that the operation needs (already adapted, not adapted, ...)."""


class CheckpointError(SurgeryError):
    """An adapter file is missing, broken, or was made for another base model."""


class RunError(SurgeryError):
    """A training file, its data or a run folder is missing, malformed, or does not fit the model."""


__all__ = [
    "AnatomyError",
    "CaptureError",
    "CheckpointError",
    "PlanError",
    "PolicyError",
    "RunError",
    "StateError",
    "SurgeryError",
    "told_at_length",
    "told_by",
]

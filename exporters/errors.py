"""Errors of the way out; the family root lives with the policies, on the ground floor."""

from __future__ import annotations

from surgery.errors import SurgeryError


class ExportError(SurgeryError):
    """A model cannot be exported as asked: its state, the inputs, the path, the installation."""


class VerificationError(ExportError):
    """A file was written and did not stand up to verification; it is kept beside as ``*.rejected.onnx``."""


__all__ = ["ExportError", "SurgeryError", "VerificationError"]

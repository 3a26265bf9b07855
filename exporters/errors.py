"""Errors of the way out; the family root lives with the policies, on the ground floor."""

from __future__ import annotations

from typing import TYPE_CHECKING

from surgery.errors import SurgeryError

if TYPE_CHECKING:
    from exporters.report import ExportReport


class ExportError(SurgeryError):
    """A model cannot be exported as asked: its state, the inputs, the path, the installation."""


class VerificationError(ExportError):
    """A file was written and did not stand up to verification; it is kept as ``*.rejected.onnx``.

    Attributes:
        report: What was found.
    """

    report: ExportReport | None = None


__all__ = ["ExportError", "SurgeryError", "VerificationError"]

"""The way out: a plain or adapted model becomes one fused, verified ONNX file."""

from __future__ import annotations

from exporters.errors import ExportError, VerificationError
from exporters.export import to_onnx
from exporters.latency import LatencyReport, benchmark
from exporters.report import ExportReport, FileReport
from exporters.runtime import SessionOptions, open_session

__all__ = [
    "ExportError",
    "ExportReport",
    "FileReport",
    "LatencyReport",
    "SessionOptions",
    "VerificationError",
    "benchmark",
    "open_session",
    "to_onnx",
]

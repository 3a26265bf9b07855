"""The way out: a plain or adapted model becomes one fused, verified ONNX file."""

from __future__ import annotations

from exporters.adapter_session import AdapterSession
from exporters.errors import ExportError, VerificationError
from exporters.export import to_onnx
from exporters.latency import LatencyReport, benchmark
from exporters.learned import write_adapter
from exporters.metadata import facts
from exporters.peft_bridge import to_peft
from exporters.peft_match import PeftMatch, match_peft
from exporters.peft_reader import from_peft
from exporters.report import ExportReport, FileReport
from exporters.runtime import SessionOptions, open_session
from exporters.triton import triton_repository

__all__ = [
    "AdapterSession",
    "ExportError",
    "ExportReport",
    "FileReport",
    "LatencyReport",
    "PeftMatch",
    "SessionOptions",
    "VerificationError",
    "benchmark",
    "facts",
    "from_peft",
    "match_peft",
    "open_session",
    "to_onnx",
    "to_peft",
    "triton_repository",
    "write_adapter",
]

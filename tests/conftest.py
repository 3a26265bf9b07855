"""What holds for every test."""

from __future__ import annotations

import functools
import gc
import os

import hypothesis
import onnxscript

# Two workers share two cores, so a deadline would measure the other worker.
hypothesis.settings.register_profile("house", deadline=None, print_blob=True)
hypothesis.settings.load_profile("house")

# Tests leave nothing in the user's cache folder; those of the cache name one of their own.
os.environ["MODEL_SURGERY_CACHE"] = "off"

# onnxscript parses the sources of its translations again for each export, 0.6 s; here once a worker.
_parsed = functools.cached_property(onnxscript.TracedOnnxFunction.function_ir.fget)
_parsed.__set_name__(onnxscript.TracedOnnxFunction, "function_ir")
onnxscript.TracedOnnxFunction.function_ir = _parsed


def pytest_collection_finish() -> None:
    """Libraries and collected tests live to the end: the collector need not walk through them."""
    gc.collect()
    gc.freeze()

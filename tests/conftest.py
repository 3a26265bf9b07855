"""What holds for every test."""

from __future__ import annotations

import functools
import gc
import os

import hypothesis
import onnxscript
from torch.onnx._internal.exporter import _schemas

# Two workers share two cores, so a deadline would measure the other worker.
hypothesis.settings.register_profile("house", deadline=None, print_blob=True)
hypothesis.settings.load_profile("house")

# Tests leave nothing in the user's cache folder; those of the cache name one of their own.
os.environ["MODEL_SURGERY_CACHE"] = "off"

# Each export parses the sources of all translations again, 0.6 s, and reads their signatures, twice
# 0.1 s; here once a worker.
_parsed = functools.cached_property(onnxscript.TracedOnnxFunction.function_ir.fget)
_parsed.__set_name__(onnxscript.TracedOnnxFunction, "function_ir")
onnxscript.TracedOnnxFunction.function_ir = _parsed
_schemas.op_signature_from_function = functools.cache(_schemas.op_signature_from_function)


def pytest_collection_finish() -> None:
    """Libraries and collected tests live to the end: the collector need not walk through them.

    Nor need it look as often as it does: graphs are made of many small objects, of which most stay.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 50, 100)

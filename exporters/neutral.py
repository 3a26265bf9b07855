"""``x + 1e-8`` is not ``x``: what onnxscript's optimiser would take for a neutral number."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np
import onnx_ir as ir
from onnxscript.rewriter._matcher import SimplePatternMatcher

_NEUTRAL = (0, 1)


@contextmanager
def only_neutral_is_dropped() -> Iterator[None]:
    """Inside, what is compared with 0 or 1 must equal it; one thread at a time.

    onnxscript drops ``+ 0`` and ``* 1`` with a tolerance, and so 1e-8 and 1.000005 as well, wherever they stand
    as a tensor of no dimension: ``x * rsqrt(mean(x^2) + 1e-8)`` would make NaN of a row of zeros. Only there
    can all spellings be seen: numbers, buffers, promoted dtypes, norms that are decomposed late.
    """
    matches = SimplePatternMatcher._match_constant

    def exactly(matcher: Any, wanted: Any, value: ir.Value) -> bool:
        if not matches(matcher, wanted, value):
            return False
        found = ir.convenience.get_const_tensor(value)
        same = found is not None and np.array_equal(found.numpy(), wanted.value)
        if same or wanted.value not in _NEUTRAL:
            return True
        return bool(matcher.fail(f"{value.name} is not {wanted.value}"))

    with mock.patch.object(SimplePatternMatcher, "_match_constant", exactly):
        yield

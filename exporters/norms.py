"""RMS norms in the form that ONNX Runtime recognises."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
from onnxscript.rewriter import pattern, rewrite


def divide_by_roots(model: ir.Model) -> None:
    """Write ``x * (1 / s)`` as ``x / s`` wherever nothing else reads the reciprocal, in place.

    torch's exporter writes the reciprocal square root of an RMS norm as Sqrt, Reciprocal and Mul. ONNX
    Runtime fuses the whole norm to ``SimplifiedLayerNormalization`` only where it divides by the root.
    """
    rewrite(model, pattern_rewrite_rules=_RULES)


def _times_reciprocal(op: Any, x: ir.Value, s: ir.Value) -> ir.Value:
    return op.Mul(x, op.Reciprocal(s))


def _quotient(op: Any, x: ir.Value, s: ir.Value) -> ir.Value:
    return op.Div(x, s)


_RULES = pattern.RewriteRuleSet([pattern.RewriteRule(_times_reciprocal, _quotient)], commute=True)

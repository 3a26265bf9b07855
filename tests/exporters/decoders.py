"""What the tests of decoders share: what their files hold."""

from __future__ import annotations

from pathlib import Path

import onnx

Operator = tuple[list[str], dict[str, object]]
"""Inputs and attributes."""


def group_query(path: Path) -> list[Operator]:
    """Each ``GroupQueryAttention`` of a file."""
    nodes = [n for n in onnx.load(path).graph.node if n.op_type == "GroupQueryAttention"]
    value = onnx.helper.get_attribute_value
    return [(list(n.input), {a.name: value(a) for a in n.attribute}) for n in nodes]

"""Attention computed by ``aten.scaled_dot_product_attention``."""

from __future__ import annotations

import math
from typing import Any, ClassVar

from torch import fx

from exporters.patterns.base import Refusal
from exporters.patterns.scores import Scores, misscaled
from surgery.anatomy.attention import Core
from surgery.anatomy.graph import Graph, shape_of

_NAMES = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")


class ScaledDotProduct:
    """One call; only its arguments can be in the way."""

    kind: ClassVar[str] = "sdpa"

    def match(self, core: Core, graph: Graph) -> Scores | Refusal:
        """Return the scores, or the argument that no fused operator takes."""
        given = _arguments(core.node)
        if given.get("dropout_p"):
            return Refusal(f"dropout with p = {given['dropout_p']} is active")
        scale = given.get("scale")
        if not isinstance(scale, int | float | None):
            return Refusal("the factor of the scores is computed")
        found = Scores(
            core.query,
            core.key,
            core.value,
            key_transposed=False,
            scale=1 / math.sqrt(shape_of(core.query)[-1]) if scale is None else float(scale),
            mask=mask_of(core.node),
            causal=bool(given.get("is_causal")),
            product=core.node,
            result=core.result,
        )
        return misscaled(found) or found


def mask_of(node: fx.Node) -> fx.Node | None:
    """The mask that the call is given, if any."""
    mask = _arguments(node).get("attn_mask")
    return mask if isinstance(mask, fx.Node) else None


def _arguments(node: fx.Node) -> dict[str, Any]:
    return {**dict(zip(_NAMES, node.args, strict=False)), **node.kwargs}

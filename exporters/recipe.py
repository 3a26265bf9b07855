"""What is done to the graph for whom: each engine is fast at something else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from torch import nn

from exporters.causal import DecoderStep, positions_of
from exporters.errors import ExportError
from exporters.inputs import Inputs
from exporters.patterns.attention import AttentionPattern
from exporters.patterns.base import Refusal
from exporters.patterns.group_query import GroupQueryPattern
from exporters.patterns.multihead import MultiHeadPattern
from exporters.precision import Precision
from exporters.providers import CPU, CUDA, TENSORRT
from exporters.rewrite import Rewriter
from surgery.anatomy.attention import Core
from surgery.anatomy.graph import Graph

Target = Literal["portable", "cpu", "cuda", "tensorrt"]
PORTABLE: Target = "portable"
PROVIDERS: dict[Target, tuple[str, ...]] = {
    PORTABLE: (CPU,),
    "cpu": (CPU,),
    "cuda": (CUDA, CPU),
    "tensorrt": (TENSORRT, CUDA, CPU),
}


class Match(Protocol):
    """A site that one operator computes."""

    @property
    def operator(self) -> tuple[str, str]:
        """Domain and type of the operator."""

    @property
    def products(self) -> int:
        """How many matrix products of the graph became one; 0 if they stay as they are."""

    def write(self, rewriter: Rewriter, module: str) -> None:
        """Put the operator in the site's place; new weights are named after ``module``."""


class SitePattern(Protocol):
    """Recognises the sites that one operator computes."""

    def match(self, core: Core, graph: Graph, inputs: Inputs) -> Match | Refusal:
        """Return the match, or what is in the way."""


def _whole(positions: int | None = None) -> tuple[SitePattern, ...]:
    """The one that takes most into its operator first, the one that takes most sites last."""
    return AttentionPattern(), GroupQueryPattern(positions), MultiHeadPattern()


@dataclass(frozen=True)
class Recipe:
    """How a graph is rewritten; batch norms and layer scales always go into weights.

    Attributes:
        sites: What to fuse an attention site to, the first that matches; none leaves attention in
            standard operators.
        joins: Whether products of one input that make query, key and value, and that no operator
            took, become one product and a split.
    """

    sites: tuple[SitePattern, ...] = _whole()
    joins: bool = False


def recipe_for(target: Target, precision: Precision, model: nn.Module) -> Recipe:
    """What is done for a target.

    On CPUs the copies that a split makes cost more than fewer products save, so that only operators
    that take the packed product themselves get one; and there alone rotary embeddings go into the
    operator without a cache, for its CUDA kernel takes 16 bits only. TensorRT knows no operators of
    ONNX Runtime, and fuses attention and products of one input by itself.
    """
    if target == "tensorrt":
        return Recipe(())
    joins = target == "cuda"
    if isinstance(model, DecoderStep):
        # Elsewhere positions follow from the padding, of which the operator then knows nothing.
        rotated = positions_of(model.model) if model.counted else None
        return Recipe((GroupQueryPattern(rotated, model.counted), MultiHeadPattern()), joins)
    sites = _whole(positions_of(model) if target == "cpu" else None)
    # A projection inside the operator would stay fp32.
    return Recipe(sites[1:] if precision == "int8" else sites, joins)


def check_target(
    target: Target, precision: Precision, *, runtime: bool, cached: bool, profile: bool
) -> None:
    """Refuse int8 beyond CPUs, what an engine of TensorRT cannot hold, and a profile that nothing else reads.

    Raises:
        ExportError: With the reason.
    """
    if target == "cuda" and precision == "int8":
        why = "ONNX Runtime has products that are quantised dynamically for CPUs alone, and copies there and back"
        raise _does_not_go("int8 and CUDA", why, "pass precision='fp16', or target='cpu'")
    if target != "tensorrt":
        if profile:
            why = "only engines of TensorRT are built for sizes"
            raise _does_not_go(f"profile= and target={target!r}", why, "leave profile= out")
        return
    if precision == "int8":
        why = "TensorRT has no products that are quantised dynamically"
        raise _does_not_go("int8 and TensorRT", why, "pass precision='fp16'")
    if runtime:
        why = "an engine holds its weights"
        raise _does_not_go("adapters for run time and TensorRT", why, "pass adapters='fold'")
    if cached:
        why = (
            "an engine is built for each length by itself, and the lengths of a step hang together"
        )
        raise _does_not_go("a cache and TensorRT", why, "pass target='cuda'")


def _does_not_go(what: str, why: str, remedy: str) -> ExportError:
    return ExportError(f"{what} do not go together", why=why, remedy=remedy)

"""The escape hatch for models whose graph cannot be captured: projections by module type."""

from __future__ import annotations

from torch import Tensor, nn

from policies import Policy
from policies.roles import Role
from surgery.anatomy.types import Access, Anatomy, Layout, Projection

NOTE = "the graph could not be captured: nothing proves that these adapters reach the output"


def needs_graph(policy: Policy) -> bool:
    """Whether the policy asks for roles, parts or depths, which only a graph can tell."""
    return any(
        s.roles or s.part or s.depth != "all" or set(s.rank or ()) - {"all"} for s in policy.select
    )


def anatomy_by_name(model: nn.Module) -> Anatomy:
    """Every linear layer and 1x1 convolution with role ``other``.

    Access is ``parameter``: without a graph nobody knows who reads a weight, and that one is right
    for every reader.
    """
    owners: dict[int, dict[int, str]] = {}
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(path, recurse=False):
            owners.setdefault(id(parameter), {})[id(module)] = name
    found = tuple(
        _projection(path, module, layout, owners)
        for path, module in model.named_modules()
        if (layout := layout_of(module)) is not None
    )
    kind = type(model)
    return Anatomy(
        f"{kind.__module__}.{kind.__qualname__}", sites=(), feed_forward=(), others=found
    )


def layout_of(module: nn.Module) -> Layout | None:
    """Where a linear layer keeps its output channels; None for any other module."""
    if isinstance(module, nn.Linear):
        return Layout.OUT_IN
    if isinstance(module, nn.Conv1d | nn.Conv2d):
        kernel, padding = module.kernel_size, module.padding
        plain = (
            all(k == 1 for k in kernel)
            and module.groups == 1
            and (isinstance(padding, str) or not any(padding))
        )
        return Layout.CONV if plain else None
    if type(module).__name__ == "Conv1D" and isinstance(getattr(module, "weight", None), Tensor):
        return Layout.IN_OUT
    return None


def _projection(
    path: str, module: nn.Module, layout: Layout, owners: dict[int, dict[int, str]]
) -> Projection:
    weight = module.weight
    assert isinstance(weight, Tensor)
    first, second = weight.shape[:2]
    out, into = (second, first) if layout is Layout.IN_OUT else (first, second)
    return Projection(
        role=Role.OTHER,
        module=path,
        parameter="weight",
        rows=((0, out, 1),),
        in_features=into,
        out_features=out,
        weight_out_features=out,
        layout=layout,
        access=Access.PARAMETER,
        tied_to=tuple(n for owner, n in owners.get(id(weight), {}).items() if owner != id(module)),
        bias=getattr(module, "bias", None) is not None,
        module_type=f"{type(module).__module__}.{type(module).__qualname__}",
    )

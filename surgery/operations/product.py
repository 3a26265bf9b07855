"""The product of an adapted linear layer: forward and backward in the cheapest order of contraction."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional as F

from surgery.errors import PlanError, StateError
from surgery.operations.pairs import Order, Span

Contraction = Literal["auto", "merged", "low-rank", "plain"]

_MERGE_FROM = 1.75
"""Tokens a channel from which merging pays, measured on CPUs: at 1 both orders cost as many products, but
a merged weight is also written and read."""
_TILE = 64
"""Ranks that a GPU multiplies by in one tile: as many pairs as fit cost no more time than one."""
_contraction: Contraction = "auto"


def set_contraction(order: Contraction) -> Contraction:
    """Choose the order in which adapted linear layers compute, for every model of the process.

    ``"auto"`` (the default) merges where tokens are many and the product is computed in 32 bits or
    more, and keeps the low-rank order elsewhere: rounding W + B A to 16 bits would swallow a small
    update. ``"merged"`` and ``"low-rank"`` are those two orders everywhere. ``"plain"`` calls the
    adapter's own forward and leaves the backward to autograd.

    Returns:
        The order that held before.

    Raises:
        PlanError: If there is no such order.
    """
    global _contraction
    if order not in get_args(Contraction):
        raise PlanError(
            f"unknown contraction {order!r}", remedy=f"choose one of {get_args(Contraction)}"
        )
    before, _contraction = _contraction, order
    return before


def is_plain() -> bool:
    """Whether autograd has to see the parts: on request, under a tracer, or under a transform."""
    return (
        _contraction == "plain"
        or torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
        or torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
    )


def product(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    factors: Sequence[tuple[Tensor, Tensor]],
    spans: Sequence[Span],
) -> Tensor:
    """``x (W + B A)^T + bias``, differentiable in all but ``weight``.

    Args:
        x: (..., in).
        weight: (out, in), frozen; a view is fine.
        bias: (out,) or None.
        factors: Pairs (B, A) of (length, r) and (r, in), of one dtype unless autocast gives them one.
        spans: Where the rows of each B lie among the output channels; disjoint.

    Returns:
        (..., out), in the dtype that ``F.linear`` would give.
    """
    device, dtype = x.device.type, factors[0][0].dtype
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        x = x.to(dtype)
    out, width = weight.shape
    tokens = x.numel() // max(width, 1)
    order = Order(
        tuple(spans),
        dtype,
        as_one=len(spans) > 1 and _as_one(x, sum(len(a) for _, a in factors)),
        forward=_merges(tokens, width, x.dtype),
        backward=_merges(tokens, out, x.dtype),
    )
    result: Tensor = _Product.apply(order, x, weight, bias, *(f for p in factors for f in p))
    return result


def _as_one(x: Tensor, ranks: int) -> bool:
    """Whether pairs on several spans are laid into one: launches are dear on a GPU, zeros in a tile are not."""
    return x.is_cuda and ranks <= _TILE


def _merges(tokens: int, channels: int, dtype: torch.dtype) -> bool:
    """Whether to merge, where the channels are those that a merged weight is multiplied along."""
    if _contraction != "auto":
        return _contraction == "merged"
    return torch.finfo(dtype).bits >= 32 and tokens > _MERGE_FROM * channels


class _Product(torch.autograd.Function):
    r"""One node of the graph for a frozen weight and all pairs of factors on it.

    .. math::
        y = x (W + B A)^T = x W^T + (x A^T) B^T

    With N tokens and rank r the merged order costs r·out·in products more than the frozen layer, the
    low-rank order r·N·out: of its two products, ``u = x A^T`` is needed for ∂B in any case. Backward,
    with ``g`` the gradient of y and ``v = g B``, (N, r) as u is:

    .. math::
        \partial B = g^T u, \qquad \partial A = v^T x, \qquad \partial x = g (W + B A) = g W + v A

    of which ∂x again has two orders, r·out·in against r·N·in. Nothing of the size of a weight outlives
    a pass: W + B A is computed again; u is kept where the forward made it; x is kept, once for
    all pairs, and only if an A trains. A span of channels is a view of y and of g, never a copy.

    With few tokens, and on a GPU with many, launches cost more than products do. So the factors come in as
    they are stored and are cast here, not by nodes of their own, and gradients leave as their leaves hold
    them: contiguous, in the factor's dtype.
    """

    @staticmethod
    def forward(
        ctx: Any, order: Order, x: Tensor, weight: Tensor, bias: Tensor | None, *factors: Tensor
    ) -> Tensor:
        """(..., in) -> (..., out)."""
        matrix = weight.to(x.dtype)
        bias = None if bias is None else bias.to(x.dtype)
        a_trains = any(ctx.needs_input_grad[5::2])
        a = u = None
        bs: list[Tensor] = []
        if not (order.forward and a_trains):
            a = order.a(factors)
            u = _down(x, a)
        if order.forward:
            y = F.linear(x, order.merged(matrix, factors), bias)
        else:
            assert u is not None
            bs = order.bs(factors, weight.shape[0])
            y = F.linear(x, matrix, bias).contiguous()
            for rows, part, b in _pairs(order.rows(_flat(y), 1), u, bs):
                _add_product(rows, part, b.t())
        ctx.order, ctx.shape, ctx.kind, ctx.pairs = order, x.shape, x.dtype, len(factors)
        if a is not factors[1] and not x.is_cuda:
            a = None  # laid out again in less time than its memory is worth; a GPU minds the launch
        ctx.save_for_backward(x if a_trains else None, weight, u, *factors, a, *bs)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x, bias and the factors that need one."""
        device = grad.device.type
        if not torch.is_autocast_enabled(device):
            return _backward(ctx, _flat(grad))
        with torch.autocast(device, enabled=False):
            return _backward(ctx, _flat(grad))


def _backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, u, *rest = ctx.saved_tensors
    factors, (a, *bs) = rest[: ctx.pairs], rest[ctx.pairs :]
    _, x_needs, _, bias_needs, *factors_need = ctx.needs_input_grad
    order: Order = ctx.order
    again = torch.is_grad_enabled()  # what forward made has no graph
    a = order.a(factors) if a is None or again else a
    bs = order.bs(factors, len(weight)) if not bs or again else bs
    parts = list(order.rows(g.to(order.dtype), 1))
    v: Tensor | None = None
    if any(factors_need[1::2]) or (x_needs and not order.backward):
        vs = [part @ _upright(b) for part, b in zip(parts, bs, strict=True)]
        v = vs[0] if len(vs) == 1 else torch.cat(vs, 1)
    grads: list[Tensor | None] = [None] * len(factors)
    if any(factors_need[::2]):
        u = _down(x, a) if u is None or again else u
        grads[::2] = order.apart(
            [_outer(part, own) for part, own, _ in _pairs(parts, u, bs)], factors
        )
    if any(factors_need[1::2]):
        assert v is not None
        grad_a = (v.t() @ _flat(x).to(order.dtype)).to(factors[1].dtype)
        grads[1::2] = grad_a.split_with_sizes([len(a) for a in factors[1::2]])
    grad_x = _grad_x(ctx, g, weight.to(ctx.kind), v, a, factors) if x_needs else None
    return (None, grad_x, None, g.sum(0) if bias_needs else None, *grads)


def _grad_x(
    ctx: Any, g: Tensor, weight: Tensor, v: Tensor | None, a: Tensor, factors: list[Tensor]
) -> Tensor:
    if ctx.order.backward:
        grad = g @ ctx.order.merged(weight, factors)
    else:
        assert v is not None
        grad = g @ weight
        _add_product(grad, v, a)
    return grad.view(ctx.shape)  # type: ignore[no-any-return]


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """``total += left @ right`` in place; the product is rounded to the dtype of ``total``."""
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    else:
        total += (left @ right).to(total.dtype)


def _down(x: Tensor | None, a: Tensor) -> Tensor:
    """u = x A^T, (N, r), in the dtype of the factors."""
    if x is None:
        raise StateError(
            "the gradient of a gradient needs the input of a layer whose A is frozen",
            remedy="call surgery.set_contraction('plain') before the forward",
        )
    return _flat(x).to(a.dtype) @ a.t()


def _flat(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])


def _outer(g: Tensor, u: Tensor) -> Tensor:
    """g^T u. On a CPU the transpose of u^T g is faster at small ranks, on a GPU it is one copy more."""
    return g.t() @ u if g.is_cuda else (u.t() @ g).t()


def _upright(b: Tensor) -> Tensor:
    """B with its columns contiguous where it matters: at rank 8, a CPU multiplies by it five times faster."""
    return b if b.is_cuda else b.t().contiguous().t()


def _pairs(
    rows: Iterable[Tensor], u: Tensor, bs: Sequence[Tensor]
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Each span with its share of u and its B."""
    parts = (u,) if len(bs) == 1 else u.split_with_sizes([b.shape[1] for b in bs], 1)
    return zip(rows, parts, bs, strict=True)

"""Row provenance against what each hand-written layer says of itself."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, fx, nn
from torch.nn import functional as F

from surgery.anatomy.capture import Values, capture
from surgery.anatomy.flow import Flow
from surgery.anatomy.graph import Graph
from surgery.anatomy.linears import LinearReader
from surgery.anatomy.provenance import count, rows_reaching, to_runs
from surgery.anatomy.regions import inline

WIDTH = 12
Cut = Callable[[Tensor], tuple[Tensor, ...]]


class Split(nn.Module):
    """One linear layer whose output is cut into operands."""

    def __init__(self, cut: Cut, out: int = WIDTH, half: bool = False) -> None:
        super().__init__()
        self.proj, self.cut = nn.Linear(6, out), cut
        self.register_buffer("order", torch.tensor([3, 1, 7]))
        self.register_buffer("keep", torch.tensor([True, False] * (out // 2)))
        self.norm = nn.LayerNorm(out)
        if half:
            self.half()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        y = self.proj(x)
        return self.cut(self, y) if self.cut.__code__.co_argcount == 2 else self.cut(y)


def found(
    model: nn.Module, *given: Tensor, values: Values = "any"
) -> list[tuple[tuple[int, int, int], ...]]:
    """The rows of the layer that reach each output of the model."""
    program = capture(model, given, {}, values=values)
    graph = Graph(inline(program))
    flow = Flow(graph, LinearReader(graph, model))
    (read,) = flow.reader.reads
    output = next(node for node in program.graph.nodes if node.op == "output")
    operands = [node for node in output.args[0] if isinstance(node, fx.Node)]
    return rows_reaching(read, operands, flow)


def expected(*operands: list[int]) -> list[tuple[tuple[int, int, int], ...]]:
    return [to_runs(rows) for rows in operands]


ALL = list(range(WIDTH))
CASES: dict[str, tuple[Cut, list[list[int]]]] = {
    "whole, only moved": (lambda y: (y.unflatten(-1, (3, 4)).transpose(1, 2).mul(2),), [ALL]),
    "whole, nothing between": (lambda y: (y,), [ALL]),
    "thirds": (lambda y: y.chunk(3, -1), [ALL[:4], ALL[4:8], ALL[8:]]),
    "unequal": (lambda y: y.split([6, 2, 4], -1), [ALL[:6], ALL[6:8], ALL[8:]]),
    "one operand, a part": (lambda y: (y[..., 2:5] * 3,), [ALL[2:5]]),
    "interleaved": (lambda y: y.unflatten(-1, (6, 2)).unbind(-1), [ALL[0::2], ALL[1::2]]),
    "gated": (lambda y: (F.silu(y[..., :6]) * y[..., 6:], y[..., :6]), [ALL, ALL[:6]]),
    "mixed by a sum": (lambda y: (y.sum(-1, keepdim=True), y[..., :1]), [ALL, [0]]),
    "rotated halves": (lambda y: (torch.cat([-y[..., 3:6], y[..., :3]], -1),), [ALL[:6]]),
    "reached by nothing": (lambda y: (torch.zeros_like(y), y), [[], ALL]),
    "by integers, not at all": (lambda y: (y.argmax(-1), y), [[], ALL]),
    "indexed by a buffer": (lambda m, y: (y.index_select(-1, m.order), y), [[1, 3, 7], ALL]),
    "kept by a mask": (lambda m, y: (y.masked_fill(m.keep, 0.0), y), [ALL[1::2], ALL]),
    "by indices that are made": (
        lambda y: (y.index_select(-1, torch.arange(5, device=y.device) + 2), y),
        [ALL[2:7], ALL],
    ),
    "complex": (
        lambda y: (torch.view_as_complex(y[..., :4].unflatten(-1, (2, 2)).contiguous()), y),
        [ALL[:4], ALL],
    ),
    "normed": (lambda m, y: (m.norm(y)[..., :2], y[..., :2]), [ALL, [0, 1]]),
    "through float16": (lambda y: (y.half().float()[..., :3], y), [ALL[:3], ALL]),
    "through relu": (lambda y: (F.relu(y - 0.25)[..., 4:], y), [ALL[4:], ALL]),
}


@pytest.mark.parametrize(("cut", "rows"), CASES.values(), ids=CASES)
def test_rows_are_those_that_the_layer_uses(cut: Cut, rows: list[list[int]]) -> None:
    assert found(Split(cut), torch.randn(2, 5, 6)) == expected(*rows)


def test_weights_are_not_touched_and_none_are_needed() -> None:
    cut, rows = CASES["thirds"]
    for model in (Split(cut).to("meta"), Split(cut, half=True)):
        x = torch.zeros(2, 5, 6, device=model.proj.weight.device, dtype=model.proj.weight.dtype)
        assert found(model, x) == expected(*rows)
    broken = Split(cut)
    nn.init.constant_(broken.proj.weight, float("nan"))
    assert found(broken, torch.randn(2, 5, 6)) == expected(*rows)


def test_an_index_without_values_is_made_up_and_ends_nothing() -> None:
    """A buffer on the meta device cannot say which channels it picks; the others are still read."""
    cut, _ = CASES["indexed by a buffer"]
    picked, whole = found(Split(cut).to("meta"), torch.zeros(2, 5, 6, device="meta"))
    assert (count(picked), whole) == (1, to_runs(ALL))


class Outside(nn.Module):
    """What meets the projection comes from the user's other inputs: its values are unknown."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(6, WIDTH)

    def forward(
        self, x: Tensor, keep: Tensor, ids: Tensor, turn: Tensor, gate: Tensor
    ) -> tuple[Tensor, ...]:
        y = self.proj(x)
        pairs = torch.view_as_complex(y[..., :4].unflatten(-1, (2, 2)).contiguous())
        return (
            torch.where(keep, y[..., :6], 0.0),
            y[..., 8:].gather(-1, ids),
            torch.view_as_real(pairs * turn),
            y[..., 6:8] * gate,
        )


class Masked(nn.Module):
    """Parts of the projection are hidden by the user's masks, of either sense, by both, or by numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(6, WIDTH)

    def forward(self, x: Tensor, mask: Tensor, keep: Tensor) -> tuple[Tensor, ...]:
        y = self.proj(x)
        return (
            y[..., :4].masked_fill(mask, 0),
            y[..., 4:8].masked_fill(~mask, 0),
            torch.where(mask, y[..., :2], y[..., 2:4]),
            y[..., 6:9].masked_fill(mask, 0).masked_fill(~mask.roll(1, 1), 0).detach(),
            y[..., 5:7] * keep,
        )


def test_a_mask_of_the_user_hides_no_channel() -> None:
    given = torch.randn(2, 5, 6), torch.ones(2, 5, 1, dtype=torch.bool), torch.ones(2, 5, 1).long()
    rows = [ALL[:4], ALL[4:8], ALL[:4], ALL[6:9], ALL[5:7]]
    assert found(Masked(), *given) == expected(*rows)


class Picked(nn.Module):
    """Rows are picked by the user's mask, all of them in this call."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(6, WIDTH)

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        y = self.proj(x)
        return y[mask].view(2, 5, WIDTH)[..., :3], y


def test_a_mask_that_picks_too_few_ends_nothing() -> None:
    given = torch.randn(2, 5, 6), torch.ones(2, 5, dtype=torch.bool)
    assert found(Picked(), *given, values="all") == expected(ALL[:3], ALL)


def test_a_value_that_is_rounded_and_put_back_straight_through_is_reached() -> None:
    cut: Cut = lambda y: (y[..., :5] + (y[..., :5].round() - y[..., :5]).detach(), y)  # noqa: E731
    assert found(Split(cut), torch.randn(2, 5, 6)) == expected(ALL[:5], ALL)


def test_the_callers_mode_does_not_matter() -> None:
    cut, rows = CASES["thirds"]
    model, x = Split(cut), torch.randn(2, 5, 6)
    with torch.inference_mode():
        assert found(model, x) == expected(*rows)


def test_what_comes_from_other_inputs_is_made_up_kindly() -> None:
    """Masks let through, indices are zero, rotations and gates are neither."""
    given = (
        torch.randn(2, 5, 6),
        torch.zeros(2, 5, 6, dtype=torch.bool),
        torch.full((2, 5, 3), 2),
        torch.zeros(2, 5, 2, dtype=torch.complex64),
        torch.zeros(2, 5, 2),
    )
    assert found(Outside(), *given) == expected(ALL[:6], [8], ALL[:4], ALL[6:8])


class Packed(nn.Module):
    """A read of the later rows of a packed weight counts from the first row of the whole."""

    def __init__(self) -> None:
        super().__init__()
        self.packed = nn.Parameter(torch.randn(18, 6))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = F.linear(x, self.packed[6:])
        return y[..., :4], y[..., 4:]


def test_a_part_of_a_packed_weight_counts_from_the_first_row() -> None:
    model, x = Packed(), torch.randn(2, 5, 6)
    assert found(model, x) == [((6, 10, 1),), ((10, 18, 1),)]
    whole = Packed()
    whole.forward = lambda x: (F.linear(x, whole.packed[6:]) * 2,)  # type: ignore[method-assign]
    assert found(whole, x) == [((6, 18, 1),)]


class Channels(nn.Module):
    """Output channels in dimension 1."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(6, 9, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.conv(x).chunk(3, 1)


def test_channels_of_a_convolution() -> None:
    rows = found(Channels(), torch.randn(2, 6, 3, 4))
    assert rows == [((0, 3, 1),), ((3, 6, 1),), ((6, 9, 1),)]


def test_reading_does_not_depend_on_the_global_random_state() -> None:
    cut, rows = CASES["gated"]
    state = torch.get_rng_state()
    assert found(Split(cut), torch.zeros(2, 5, 6)) == expected(*rows)
    torch.set_rng_state(state)


@given(st.lists(st.integers(0, 40)))
def test_runs_hold_each_channel_once_in_order(channels: list[int]) -> None:
    runs = to_runs(channels)
    assert [c for run in runs for c in range(*run)] == sorted(set(channels))
    assert all(step == 1 for *_, step in runs)
    assert all(one[1] < two[0] for one, two in itertools.pairwise(runs))
    assert count(runs) == len(set(channels))


def test_the_random_state_is_nobody_elses() -> None:
    cut, rows = CASES["thirds"]
    model, x = Split(cut), torch.randn(2, 5, 6)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    assert found(model, x) == expected(*rows)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    "cut",
    [
        lambda y: (y.view(2, 5, 3, 4), y.mul(3)),
        lambda m, y: (m.norm(y) * y, m.norm(y).view(2, 5, 4, 3)),
        lambda y: (lambda product: (product + 1, product.view(2, 5, 12)))(y.exp() * y),
    ],
    ids=["moved twice", "normed twice", "one product, twice"],
)
def test_two_operands_may_come_the_same_way(cut: Cut) -> None:
    assert found(Split(cut), torch.randn(2, 5, 6)) == expected(ALL, ALL)


def test_a_single_operand_may_be_less_than_all_of_it() -> None:
    assert found(Split(lambda y: (y[..., 4:8],)), torch.randn(2, 5, 6)) == expected(ALL[4:8])


def test_values_are_all_positive() -> None:
    """Negative ones would be cut off by a relu, and their channels with them."""
    assert found(Split(lambda y: (F.relu(y), y)), torch.randn(1, 1, 6)) == expected(ALL, ALL)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_what_is_made_on_a_device_is_made_here(device: str) -> None:
    def cut(y: Tensor) -> tuple[Tensor, ...]:
        order = torch.arange(3, device=y.device).add(4)
        return y.index_select(-1, order), torch.zeros_like(y, device=y.device) + y

    x = torch.zeros(2, 5, 6, device=device)
    assert found(Split(cut).to(device), x) == expected(ALL[4:7], ALL)


@pytest.mark.parametrize(
    "narrow",
    [lambda y: y.to(torch.int32).to(y.dtype), lambda y: y.to(torch.float16), lambda y: y.int().float()],
    ids=["to", "half", "int"],
)  # fmt: skip
def test_types_that_cut_the_gradient_are_passed_over(narrow: Callable[[Tensor], Tensor]) -> None:
    assert found(Split(lambda y: (narrow(y)[..., :3], y)), torch.randn(2, 5, 6)) == expected(
        ALL[:3], ALL
    )


class Copied(nn.Module):
    """Written into a buffer of another shape first, as caches are."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(6, WIDTH)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        y = self.proj(x)
        held = torch.zeros(3, *y.shape[:-1], 4)
        held.copy_(y[..., 2:6])
        return held[0], y


def test_what_is_copied_is_reached() -> None:
    assert found(Copied(), torch.randn(2, 5, 6)) == expected(ALL[2:6], ALL)


def test_options_of_an_operation_count() -> None:
    cut: Cut = lambda y: (torch.add(y[..., :6], y[..., 6:], alpha=0), y)  # noqa: E731
    assert found(Split(cut), torch.randn(2, 5, 6)) == expected(ALL[:6], ALL)

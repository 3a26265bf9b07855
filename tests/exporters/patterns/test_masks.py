"""A mask is called padding or causal only if it is so at every length; else it is handed on as it is."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from exporters.patterns.attention import AttentionMatch
from exporters.patterns.masks import read_mask
from exporters.patterns.scores import Replay
from tests.exporters.patterns.sites import Site, Spelled, fused, match

LENGTH = 6
AXES = {"x": {0: "batch", 1: "sequence"}, "attention_mask": {0: "batch", 1: "sequence"}}


def tokens(batch: int = 2, length: int = LENGTH) -> torch.Tensor:
    lengths = torch.tensor([length, length - 2])[:batch]
    return (torch.arange(length)[None] < lengths[:, None]).long()


class Masked(Site):
    """SDPA with whatever ``mask`` makes of the padding mask."""

    def mask(self, length: int, attention_mask: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def attend(self, q, k, v, attention_mask=None):
        return F.scaled_dot_product_attention(q, k, v, self.mask(q.shape[2], attention_mask))


class Padding(Masked):
    def mask(self, length, attention_mask):
        return attention_mask[:, None, None, :].bool()


class Additive(Masked):
    """As BERT did it for years."""

    def mask(self, length, attention_mask):
        return (1.0 - attention_mask[:, None, None, :].float()) * torch.finfo(torch.float32).min


class Causal(Masked):
    def mask(self, length, attention_mask):
        positions = torch.arange(length)
        return (positions[None, :] <= positions[:, None])[None, None]


class CausalPadding(Masked):
    def mask(self, length, attention_mask):
        return Causal.mask(self, length, attention_mask) & attention_mask[:, None, None, :].bool()


class Everything(Masked):
    """As transformers' vision models make it: all true."""

    def mask(self, length, attention_mask):
        return (torch.arange(length) >= 0)[None, None, :, None].expand(2, 1, length, length)


class Window(Masked):
    """Causal as far as anybody sees at a short length."""

    def mask(self, length, attention_mask):
        i, j = torch.arange(length)[:, None], torch.arange(length)[None, :]
        return ((j <= i) & (j > i - 100))[None, None]


def places(length):
    return torch.arange(length)[:, None], torch.arange(length)[None, :]


class Band(Masked):
    def mask(self, length, attention_mask):
        return torch.ones(length, length, dtype=torch.bool).tril(40).triu(-40)[None, None]


class Behind(Masked):
    def mask(self, length, attention_mask):
        return torch.ones(length, length, dtype=torch.bool).tril().triu(-40)[None, None]


class Held(Masked):
    """The window is a buffer, of no dimension or of one."""

    window = torch.tensor(40)

    def __init__(self, *args) -> None:
        super().__init__(*args)
        self.register_buffer("held", self.window)

    def mask(self, length, attention_mask):
        i, j = places(length)
        return ((j <= i) & (i - j < self.held))[None, None]


class HeldFraction(Held):
    window = torch.tensor([40.5])


class Filled(Masked):
    def mask(self, length, attention_mask):
        i, j = places(length)
        return ((j <= i) & (i - j < torch.full_like(i - j, 40)))[None, None]


class Literal(Masked):
    def mask(self, length, attention_mask):
        i, j = (torch.minimum(each, torch.tensor(40)) for each in places(length))
        return (j <= i)[None, None]


class Shifted(Masked):
    def mask(self, length, attention_mask):
        i, j = places(length)
        return ((j <= i) & (i >> 5 == j >> 5))[None, None]


class Blocks(Masked):
    """Hides what lies four blocks of 32 back: beyond the product of its numbers, not beyond their sum."""

    def mask(self, length, attention_mask):
        i, j = places(length)
        return ((j <= i) & (i // 32 - j // 32 < 4))[None, None]


class Wrapping(Masked):
    def mask(self, length, attention_mask):
        i, j = (each.to(torch.int8) for each in places(length))
        return (j <= i)[None, None]


class Row(Masked):
    """A table of one dimension, by distance."""

    def __init__(self, *args) -> None:
        super().__init__(*args)
        self.register_buffer("row", (torch.arange(64) >= 40) * -torch.inf)
        self.row.nan_to_num_(0.0, neginf=-torch.inf)

    def mask(self, length, attention_mask):
        i, j = places(length)
        return self.row[(i - j).abs()][None, None]


class Cut(Masked):
    def mask(self, length, attention_mask):
        mask = torch.zeros(length, length)
        mask[:, 40:] = -torch.inf
        return mask[None, None]


HIDING = [
    Band,
    Behind,
    Held,
    HeldFraction,
    Filled,
    Literal,
    Shifted,
    Blocks,
    Wrapping,
    Row,
    Cut,
]
"""What hides nothing more than padding or what comes later, or nothing at all, at the example's length."""


class Stored(Masked):
    """A causal table; nothing says that it goes on like this."""

    def __init__(self, *args) -> None:
        super().__init__(*args)
        self.register_buffer("table", torch.ones(64, 64, dtype=torch.bool).tril()[None, None])

    def mask(self, length, attention_mask):
        return self.table[:, :, :length, :length]


class Strange(Masked):
    def mask(self, length, attention_mask):
        return attention_mask[:, None, :, None].float() * 0.5 - torch.zeros(length)


class Twice(Masked):
    """Later padding is hidden twice over: a query that sees nothing attends to what is hidden once."""

    def mask(self, length, attention_mask):
        later = torch.full((length, length), -1e31).triu(1)
        return later + Additive.mask(self, length, attention_mask) * 1e-4


class Weak(Masked):
    """Large scores show through."""

    def mask(self, length, attention_mask):
        return (1.0 - attention_mask[:, None, None, :].float()) * -1e4


class Pooled(Masked):
    """As CANINE: a key is seen if it or its neighbour is a token."""

    def mask(self, length, attention_mask):
        pooled = F.max_pool1d(attention_mask[:, None].float(), 2, 2)
        return pooled.repeat_interleave(2, -1)[:, :, None].bool()


def read(site, dynamic):
    inputs = {"x": torch.randn(2, LENGTH, 6), "attention_mask": tokens()}
    found, captured, graph = match(site, inputs, dynamic)
    assert isinstance(found, AttentionMatch), found.why
    return found, captured, graph


@pytest.mark.parametrize("dynamic", [False, AXES], ids=["fixed", "dynamic"])
@pytest.mark.parametrize(
    ("kind", "causal", "padded"),
    [
        (Padding, False, True),
        (Additive, False, True),
        (Causal, True, False),
        (CausalPadding, True, True),
        (Everything, False, False),
    ],
)
def test_a_mask_is_read(kind, causal, padded, dynamic):
    if kind is Everything and dynamic:
        dynamic = {"x": {1: "sequence"}, "attention_mask": {1: "sequence"}}
    found, _, _ = read(kind(2, 3), dynamic)
    assert found.mask.bias is None
    assert found.mask.causal is causal
    assert (found.mask.padding is not None) is padded


@pytest.mark.parametrize("kind", [Padding, Additive, Causal, CausalPadding])
def test_the_reading_computes_the_same(kind):
    site = kind(2, 3).eval()
    found, _, _ = read(site, AXES)
    x = torch.randn(2, 9, 6)
    mask = tokens(length=9)
    torch.testing.assert_close(fused(found, site.norm(x), mask), site(x, mask))


@pytest.mark.parametrize("kind", [Window, Stored, *HIDING])
def test_what_only_looks_causal_is_handed_on_where_the_length_is_dynamic(kind):
    found, _, _ = read(kind(2, 3), AXES)
    assert found.mask.bias is not None
    assert not found.mask.causal


def test_an_axis_of_any_name_is_tried_at_another_length():
    site = Window(2, 3)
    found, _, _ = match(site, torch.randn(2, LENGTH, 6), {"x": {0: "batch", 1: "tokens"}})
    assert found.mask.bias is not None


@pytest.mark.parametrize(
    ("kind", "window"), [(Window, 100), (Behind, 41), (Held, 40), (Causal, None), (Stored, 0)]
)
def test_a_window_is_told_from_a_causal_mask_beyond_its_size(kind, window):
    site = kind(2, 3).eval()
    given = {"x": torch.randn(2, LENGTH, 6), "attention_mask": tokens()}
    found, captured, graph = match(site, given, AXES)
    mask = found.mask.bias
    if mask is None:
        assert found.mask.causal
        assert window is None
        return
    reading = read_mask(mask, graph, captured.inputs, decoder=True)
    assert (reading.window or 0) == window
    assert reading.causal is bool(window)


@pytest.mark.parametrize("kind", [Window, Stored])
def test_at_a_fixed_length_the_proof_is_complete(kind):
    found, _, _ = read(kind(2, 3), False)
    assert found.mask.bias is None
    assert found.mask.causal


@pytest.mark.parametrize("kind", [Strange, Pooled, Twice, Weak])
def test_any_other_mask_is_handed_on(kind):
    found, _, _ = read(kind(2, 3), AXES if kind is Strange else False)
    assert found.mask.bias is not None
    assert found.mask.padding is None


def test_an_all_ones_example_does_not_hide_the_padding():
    inputs = {"x": torch.randn(1, LENGTH, 6), "attention_mask": tokens(1)}
    found, _, _ = match(Padding(2, 3), inputs, False)
    assert isinstance(found, AttentionMatch)
    assert found.mask.padding is not None


def test_causal_by_argument():
    class Argument(Site):
        def attend(self, q, k, v, **_):
            return F.scaled_dot_product_attention(q, k, v, is_causal=True)

    found, _, _ = match(Argument(2, 3), torch.randn(2, 4, 6))
    assert found.mask.causal


@pytest.mark.parametrize("first", ["scale", "mask"])
def test_a_scale_after_the_mask_scales_the_mask_too(first):
    class Ordered(Spelled):
        def attend(self, q, k, v, attention_mask=None):
            bias = (1.0 - attention_mask[:, None, None, :].float()) * -1e5
            scores = q @ k.mT
            scores = scores * 0.3 + bias if first == "scale" else (scores + bias + bias.mT) * 0.3
            return scores.softmax(-1) @ v

    found, _, _ = read(Ordered(2, 3), AXES)
    assert isinstance(found.mask.bias, Replay) is (first == "mask")


def test_a_mask_that_is_added_in_another_shape_is_replayed():
    class Windows(Spelled):
        """Swin's shifted windows: each window of the batch has a mask of its own."""

        def __init__(self, *args) -> None:
            super().__init__(*args)
            self.register_buffer("windows", torch.randn(2, 4, 4))

        def attend(self, q, k, v, **_):
            batch, heads, length, _ = q.shape
            scores = self.scores(q, k).view(-1, 2, heads, length, length)
            scores = (scores + self.windows[None, :, None]).view(batch, heads, length, length)
            return scores.softmax(-1) @ v

    site, x = Windows(2, 3).eval(), torch.randn(4, 4, 6)
    found, _, _ = match(site, x)
    assert isinstance(found, AttentionMatch)
    assert isinstance(found.mask.bias, Replay)
    bias = site.windows.repeat(2, 1, 1)[:, None]
    torch.testing.assert_close(fused(found, site.norm(x), bias=bias), site(x))

"""Sites that a fused operator cannot stand for, and sites that nobody needs."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import exporters

WIDTH, HEADS = 8, 2


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4).unbind()
        seen = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return x + seen.transpose(1, 2).flatten(2)


class Penultimate(nn.Module):
    """Takes the states before the last layer, as LLaVA takes those of its vision tower."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer() for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        states = [x]
        for layer in self.layers:
            states.append(layer(states[-1]))
        return states[-2]


def test_attention_that_nobody_reads_is_no_site(tmp_path: Path) -> None:
    report = exporters.to_onnx(
        Penultimate().eval(), tmp_path / "m.onnx", example_inputs=torch.randn(2, 5, WIDTH)
    )
    assert (report.fused, len(report.sites)) == (2, 2)


class Streams(nn.Module):
    """Every token attends its own states of several layers: tokens lie where heads do."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.kv = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 2 * WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        states = torch.stack([x, x.relu(), x.sigmoid()], 2)
        keys, values = self.kv(states).chunk(2, -1)
        return F.scaled_dot_product_attention(self.q(x)[:, :, None], keys, values)[:, :, 0]


def test_a_dynamic_number_of_heads_is_no_attribute(tmp_path: Path) -> None:
    axes = {"x": {0: "batch", 1: "sequence"}}
    report = exporters.to_onnx(
        Streams().eval(), tmp_path / "m.onnx", example_inputs=torch.randn(2, 5, WIDTH), dynamic=axes
    )
    assert report.unfused == {"the number of its heads is a dynamic size": 1}
    fixed = exporters.to_onnx(
        Streams().eval(),
        tmp_path / "f.onnx",
        example_inputs=torch.randn(2, 5, WIDTH),
        dynamic=False,
    )
    assert fixed.fused == 1


class Mapped(nn.Module):
    """Makes its mask by vmap, as transformers does where a mask has parts of one's own."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = Layer()

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        def sees(length: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return (key <= query) & (key < length)

        places = torch.arange(x.shape[1])
        for dims in ((None, None, 0), (None, 0, None), (0, None, None)):
            sees = torch.vmap(sees, dims)
        return self.layer(x, sees(lengths, places, places)[:, None])


def test_a_mask_made_by_vmap_is_handed_on(tmp_path: Path) -> None:
    given = {"x": torch.randn(2, 5, WIDTH), "lengths": torch.tensor([5, 3])}
    report = exporters.to_onnx(Mapped().eval(), tmp_path / "m.onnx", example_inputs=given)
    assert (report.fused, report.passed) == (1, True)


class OneBias(Streams):
    """A bias of one number for all channels, which is no bias of one product with others."""

    def __init__(self) -> None:
        super().__init__()
        self.k, self.v = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        key = F.linear(x, self.k.weight, self.k.bias[:1])
        heads = (
            part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in (self.q(x), key, self.v(x))
        )
        return F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)


def test_products_whose_bias_is_no_vector_are_not_joined(tmp_path: Path) -> None:
    x = torch.randn(2, 5, WIDTH)
    report = exporters.to_onnx(
        OneBias().eval(), tmp_path / "m.onnx", example_inputs=x, target="cuda"
    )
    assert [site.operator for site in report.sites] == ["MultiHeadAttention"]
    assert not any("one matrix product" in note for note in report.notes)

"""The anatomy of hand-written modules and of small real architectures, checked against what they are."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F

import surgery
from policies.roles import Role
from surgery.anatomy.types import Access, Layout, Projection
from surgery.errors import CaptureError, StateError

TEXT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "vocab_size": 99,
}
GQA = TEXT | {"num_key_value_heads": 2}
NO_TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def rows_of(projection: Projection) -> list[int]:
    return [channel for run in projection.rows for channel in range(*run)]


def only(model: nn.Module, role: Role, site: int = 0, inputs: object = None) -> Projection:
    (found,) = surgery.read(model, inputs).sites[site].role(role)
    return found


class Interleaved(nn.Module):
    """Attention whose fused weight is laid out per head, written in one of several ways."""

    def __init__(self, layout: str, way: str, width: int = 16, heads: int = 2) -> None:
        super().__init__()
        self.layout, self.way, self.heads = layout, way, heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        if self.way == "bare":
            y = F.linear(x, self.qkv.weight, self.qkv.bias)
        elif self.way == "matmul":
            y = x @ self.qkv.weight.T + self.qkv.bias
        else:
            y = self.qkv(x)
        if self.layout == "thirds":
            q, k, v = y.view(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        else:
            q, k, v = y.view(batch, tokens, self.heads, 3, -1).permute(3, 0, 2, 1, 4)
        if self.way == "einsum":
            scores = torch.einsum("bhid,bhjd->bhij", q, k).softmax(-1)
            z = torch.einsum("bhij,bhjd->bhid", scores, v)
        elif self.way == "transposed":
            scores = (k @ q.transpose(-1, -2)).softmax(-2)
            z = (v.transpose(-1, -2) @ scores).transpose(-1, -2)
        else:
            z = F.scaled_dot_product_attention(q, k, v)
        return self.out(z.transpose(1, 2).reshape(batch, tokens, width))


@pytest.mark.parametrize("way", ["module", "bare", "matmul", "einsum", "transposed"])
@pytest.mark.parametrize("layout", ["thirds", "per_head"])
def test_rows_are_the_truth_however_the_attention_is_written(layout: str, way: str) -> None:
    model, inputs = Interleaved(layout, way), torch.randn(2, 5, 16)
    (site,) = surgery.read(model, inputs).sites
    numbers = torch.arange(48)
    per_head = numbers.view(2, 3, 8).transpose(0, 1).reshape(3, 16)
    truth = numbers.view(3, 16) if layout == "thirds" else per_head
    for role, expected in zip((Role.QUERY, Role.KEY, Role.VALUE), truth, strict=True):
        (found,) = site.role(role)
        assert rows_of(found) == sorted(expected.tolist())
    access = Access.PARAMETER if way in {"bare", "matmul"} else Access.MODULE
    assert only(model, Role.QUERY, inputs=inputs).access is access
    (output,) = site.role(Role.ATTENTION_OUTPUT)
    assert output.weight_name == "out.weight" and output.whole


def roles_by_leaf(anatomy: surgery.Anatomy) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for projection in anatomy.projections:
        leaf = projection.weight_name.removesuffix(".weight").rpartition(".")[2]
        found.setdefault(leaf, set()).add(projection.role.value)
    return found


def test_llama_roles() -> None:
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**GQA))
    anatomy = surgery.read(model)
    assert roles_by_leaf(anatomy) == {
        "q_proj": {"attention.query"},
        "k_proj": {"attention.key"},
        "v_proj": {"attention.value"},
        "o_proj": {"attention.output"},
        "up_proj": {"mlp.up"},
        "gate_proj": {"mlp.gate"},
        "down_proj": {"mlp.down"},
        "lm_head": {"head"},
    }
    assert [site.layer for site in anatomy.sites] == [0, 1] and anatomy.depth == 2
    assert anatomy.embeddings == (99,) and not anatomy.unplaced


def test_phi3_fuses_unequal_blocks_and_gate_with_up() -> None:
    config = transformers.Phi3Config(**GQA, **NO_TOKENS)
    anatomy = surgery.read(transformers.Phi3ForCausalLM(config))
    query, key, value, _ = anatomy.sites[0].projections
    assert (query.rows, key.rows, value.rows) == (((0, 32, 1),), ((32, 48, 1),), ((48, 64, 1),))
    up, gate, _ = anatomy.feed_forward[0].projections
    assert (gate.role, gate.rows) == (Role.GATE, ((0, 64, 1),))
    assert (up.role, up.rows) == (Role.UP, ((64, 128, 1),))


def test_gpt2_conv1d_keeps_its_output_channels_last_and_its_head_is_tied() -> None:
    config = transformers.GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=99)
    anatomy = surgery.read(transformers.GPT2LMHeadModel(config))
    value = anatomy.sites[1].role(Role.VALUE)[0]
    assert value.layout is Layout.IN_OUT and value.rows == ((64, 96, 1),)
    (head,) = [p for p in anatomy.others if p.role is Role.HEAD]
    assert head.tied_to == ("transformer.wte.weight",)


def test_t5_cross_attention_has_its_own_sites_in_the_same_layers() -> None:
    config = transformers.T5Config(
        d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, vocab_size=99,
        decoder_start_token_id=0,
    )  # fmt: skip
    anatomy = surgery.read(transformers.T5ForConditionalGeneration(config))
    assert [site.layer for site in anatomy.sites] == [0, 1, 2, 2, 3, 3]
    cross = anatomy.sites[3]
    assert {p.module.rpartition(".")[2] for p in cross.projections} == {"q", "k", "v", "o"}
    assert "EncDecAttention" in cross.module


def test_albert_shared_layer_is_one_projection_applied_often() -> None:
    config = transformers.AlbertConfig(**TEXT | {"num_hidden_layers": 5}, embedding_size=16)
    (site,) = surgery.read(transformers.AlbertModel(config)).sites
    assert site.calls == 5 and {p.calls for p in site.projections} == {5}


def test_bert_pooler_is_no_head_and_classifier_is() -> None:
    model = transformers.BertForSequenceClassification(transformers.BertConfig(**TEXT))
    others = {p.weight_name: p.role for p in surgery.read(model).others}
    assert others == {"classifier.weight": Role.HEAD, "bert.pooler.dense.weight": Role.OTHER}


def test_soft_capped_scores_and_logits_are_seen_through() -> None:
    config = transformers.Gemma2Config(**GQA, head_dim=8, attn_implementation="eager")
    anatomy = surgery.read(transformers.Gemma2ForCausalLM(config))
    assert [site.kind for site in anatomy.sites] == ["softmax", "softmax"]
    assert [p.weight_name for p in anatomy.others if p.role is Role.HEAD] == ["lm_head.weight"]


def test_beit_reads_its_weight_without_the_module() -> None:
    model = timm.create_model("beit_base_patch16_224", depth=2, embed_dim=32, num_heads=2)
    assert only(model, Role.QUERY).access is Access.PARAMETER
    assert only(model, Role.ATTENTION_OUTPUT).access is Access.MODULE


def test_talking_heads_are_noted() -> None:
    model = timm.create_model("cait_xxs24_224", depth=2, embed_dim=32, num_heads=2)
    anatomy = surgery.read(model)
    assert "talking heads" in anatomy.sites[0].notes[0]
    assert {p.role for p in anatomy.sites[0].projections} >= {Role.QUERY, Role.KEY, Role.VALUE}


def test_a_learned_query_has_a_projection_too() -> None:
    model = timm.create_model(
        "vit_base_patch16_siglip_224", depth=1, embed_dim=32, num_heads=2, num_classes=0
    )
    pool = surgery.read(model).sites[-1]
    assert [p.module for p in pool.role(Role.QUERY)] == ["attn_pool.q"]


@pytest.mark.parametrize("name", ["resnet10t", "mixer_s32_224"])
def test_no_site_is_invented(name: str) -> None:
    assert surgery.read(timm.create_model(name)).sites == ()


def test_multihead_attention_is_read_by_its_packed_parameter() -> None:
    model = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).requires_grad_(False)
    query = only(model, Role.QUERY, inputs=torch.randn(2, 5, 16))
    assert query.weight_name == "self_attn.in_proj_weight" and query.access is Access.PARAMETER
    assert query.rows == ((0, 16, 1),)


class Unprojected(nn.Module):
    """The key is the residual stream itself: nothing may be called its projection."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.query, self.value = (nn.Linear(8, 8) for _ in range(3))
        self.out, self.last = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        y = F.scaled_dot_product_attention(self.query(x), x, self.value(x))
        return self.last(F.gelu(x + self.out(y)))


def test_a_residual_stream_is_not_a_key_projection() -> None:
    anatomy = surgery.read(Unprojected(), torch.randn(2, 3, 8))
    assert anatomy.sites[0].role(Role.KEY) == ()
    (missing,) = anatomy.unplaced
    assert missing.why.startswith("key: not projected") and "first.weight" in missing.why


class Hidden(Unprojected):
    """The value is hidden by a constant mask, every element of it."""

    def forward(self, x: Tensor) -> Tensor:
        key, value = self.first(x), self.value(x)
        value = value.masked_fill(torch.ones(8, dtype=torch.bool), 0)
        return self.out(F.scaled_dot_product_attention(self.query(x), key, value))


def test_a_role_that_no_row_plays_is_said() -> None:
    anatomy = surgery.read(Hidden(), torch.randn(2, 3, 8))
    assert anatomy.sites[0].role(Role.VALUE) == ()
    (missing,) = anatomy.unplaced
    assert missing.why.startswith("value: no row of value.weight")
    assert anatomy.sites[0].notes == (missing.why,)


def test_inference_mode_is_left_and_weights_made_in_it_are_refused() -> None:
    model = Interleaved("thirds", "module")
    with torch.inference_mode():
        x = torch.randn(2, 5, 16)
        anatomy, made = surgery.read(model, x), Interleaved("thirds", "module")
        assert surgery.verify(model, anatomy, x).proved
        with pytest.raises(StateError, match="inference tensors"):
            surgery.read(made, x)
    assert len(anatomy.sites[0].projections) == 4
    for refused in (surgery.read, lambda model, x: surgery.verify(model, anatomy, x)):
        with pytest.raises(StateError, match="inference tensors"):
            refused(made, x)


def test_reading_changes_nothing() -> None:
    model = timm.create_model("levit_128s").train()
    model.head.eval()
    model.stem.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    modes = [m.training for m in model.modules()]
    flags = [p.requires_grad for p in model.parameters()]
    state = torch.get_rng_state()
    surgery.read(model)
    assert torch.equal(state, torch.get_rng_state())
    assert modes == [m.training for m in model.modules()]
    assert flags == [p.requires_grad for p in model.parameters()]
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_meta_and_half_precision_models_read_alike(dtype: torch.dtype) -> None:
    config = transformers.LlamaConfig(**GQA)
    reference = surgery.read(transformers.LlamaForCausalLM(config))
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config).to(dtype)
    assert surgery.read(model).projections == reference.projections


def test_a_compiled_model_is_unwrapped_and_a_parallel_one_refused() -> None:
    model, inputs = Interleaved("thirds", "module"), torch.randn(2, 5, 16)
    assert len(surgery.read(torch.compile(model), inputs).sites) == 1
    with pytest.raises(StateError, match="DataParallel") as caught:
        surgery.read(nn.DataParallel(model), inputs)
    assert caught.value.remedy


class Leaving(nn.Module):
    """Computes outside torch, where no graph can follow."""

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.from_numpy(x.detach().numpy().cumsum())


def test_a_model_that_cannot_be_captured_says_where() -> None:
    with pytest.raises(CaptureError, match="Leaving") as caught:
        surgery.read(Leaving(), torch.randn(2, 3))
    assert "forward" in str(caught.value.where)


def test_missing_inputs_are_asked_for() -> None:
    with pytest.raises(CaptureError, match="does not tell") as caught:
        surgery.read(nn.Linear(3, 3))
    assert "example_inputs" in str(caught.value.remedy)


def test_printing_and_dictionary() -> None:
    anatomy = surgery.read(timm.create_model("vit_tiny_patch16_224", depth=3))
    text = str(anatomy)
    assert "blocks.*.attn.qkv.weight" in text and "192:384" in text and "0-2" in text
    (query, *_) = anatomy.to_dict()["sites"][0]["projections"]
    assert query["rows"] == [[0, 192, 1]] and query["role"] == "attention.query"

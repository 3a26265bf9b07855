"""A sample of the zoo, read and verified in full; ``python -m benchmarks.zoo`` examines all of it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
import timm
import torch
import transformers

import surgery
from benchmarks.zoo.examine import enliven
from benchmarks.zoo.shorten import shorten
from benchmarks.zoo.transformers_zoo import Transformers
from policies import Role

SMALL = {"depth": 2, "embed_dim": 32, "num_heads": 2}
TIMM: dict[str, dict[str, Any]] = {
    "vit_tiny_patch16_224": SMALL | {"img_size": 64},
    "vit_small_patch14_reg4_dinov2": SMALL | {"img_size": 56},
    "vit_small_patch16_dinov3": SMALL | {"img_size": 64},
    "vit_base_patch16_siglip_224": SMALL | {"img_size": 64},
    "vit_relpos_small_patch16_224": SMALL | {"img_size": 64},
    "beit_base_patch16_224": SMALL | {"img_size": 64},
    "eva02_base_patch14_224": SMALL | {"img_size": 56},
    "deit3_small_patch16_224": SMALL | {"img_size": 64},
    "cait_xxs24_224": SMALL | {"img_size": 64},
    "vit_dwee_patch16_reg1_gap_256": SMALL | {"img_size": 64},
    "vit_pwee_patch16_reg1_gap_256": SMALL | {"img_size": 64},
    "convit_tiny": SMALL,
    "xcit_nano_12_p16_224": SMALL,
    "botnet26t_256": {},
    "coat_lite_tiny": {},
    "efficientvit_b0": {},
    "efficientformerv2_s0": {},
    "hiera_tiny_224": {"stages": (1, 1, 1, 1)},
    "lowformer_b0": {},
    "pvt_v2_b0": {},
    "swin_tiny_patch4_window7_224": {"embed_dim": 24, "depths": (2, 2), "num_heads": (1, 2)},
    "swinv2_tiny_window8_256": {"embed_dim": 24, "depths": (2, 2), "num_heads": (1, 2)},
}
SIZES = {"efficientvit_b0": 192, "pvt_v2_b0": 64}
TYPES = """
    albert bart bert bigbird_pegasus blip bloom bridgetower clip clip_vision_model cohere2
    convbert deberta-v2 deepseek_v3 deit detr diffllama distilbert falcon gemma2 gpt2 gpt_neox gpt_oss
    gptj llama llava mistral mixtral modernbert mpnet opt phi3 qwen2 qwen3_moe siglip t5 vit
    whisper xlm-roberta
""".split()  # noqa: SIM905
LONG = {
    "bigbird_pegasus",
    "botnet26t_256",
    "bridgetower",
    "coat_lite_tiny",
    "deepseek_v3",
    "detr",
    "efficientformerv2_s0",
    "efficientvit_b0",
    "hiera_tiny_224",
    "lowformer_b0",
}


def sample(names: Iterable[str]) -> list[Any]:
    """Those that take long are slow tests."""
    return [pytest.param(n, marks=[pytest.mark.slow] * (n in LONG)) for n in names]


def check(model: torch.nn.Module, inputs: Any = None) -> None:
    """Every attention that runs is read, every claim is seen to hold, no role is left open."""
    anatomy = surgery.read(model, inputs)
    outcome = surgery.verify(model, anatomy, inputs)
    unplaced = [u for u in anatomy.unplaced if u.what != "stacked weights"]
    assert outcome.run > 0 and not unplaced, unplaced
    assert outcome.proved, outcome.to_dict()


@pytest.mark.parametrize("name", sample(sorted(TIMM)))
def test_timm(name: str) -> None:
    if not timm.is_model(name):
        pytest.skip(f"timm {timm.__version__} does not have it yet")
    torch.manual_seed(0)
    model = timm.create_model(name, **TIMM[name])
    shorten(model)
    enliven(model)
    size = SIZES.get(name)
    check(model, torch.rand(2, 3, size, size) if size else None)


@pytest.mark.parametrize("kind", sample(TYPES))
def test_transformers(kind: str) -> None:
    torch.manual_seed(0)
    specimen = next(Transformers().specimens(kind))
    enliven(specimen.model)
    check(specimen.model, specimen.inputs)


def test_a_state_space_layer_beside_attention_is_no_attention() -> None:
    torch.manual_seed(0)
    config = transformers.JambaConfig(
        vocab_size=99,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        attn_layer_period=2,
        attn_layer_offset=1,
        num_experts=1,
        mamba_dt_rank=4,
        use_mamba_kernels=False,
    )
    model = transformers.JambaModel(config).eval()
    anatomy = surgery.read(model)
    assert [site.module for site in anatomy.sites] == ["layers.1.self_attn"]
    mixers = {p.role for p in anatomy.others if ".mamba." in p.module}
    assert mixers == {Role.OTHER}
    check(model)

"""To PEFT and back, judged by PEFT itself: equal outputs, or an error that says why not."""

from __future__ import annotations

import copy
import json

import peft
import pytest
import safetensors.torch
import torch
from torch import nn

import surgery
from exporters.errors import ExportError
from exporters.inputs import collect
from exporters.peft_bridge import to_peft
from exporters.peft_reader import from_peft
from surgery.operations.adapted import adapted_modules

QUERY_VALUE = {"name": "qv", "select": [{"roles": ["query", "value"]}], "train": ["head"]}
ALL_LINEAR = {
    "name": "all",
    "select": [{"roles": ["query", "key", "value", "output"]}, {"roles": ["up", "down"]}],
}


def outputs(model: nn.Module, like: nn.Module) -> torch.Tensor:
    inputs = collect(like)
    with torch.no_grad():
        found = model.eval()(**inputs.kwargs)
    return found if isinstance(found, torch.Tensor) else next(iter(found.values()))


def disturb(model: nn.Module) -> None:
    """As training would: everything that trains has moved."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))


@pytest.mark.parametrize(
    ("name", "policy", "options"),
    [
        *(("vit", QUERY_VALUE, {"adapter": kind}) for kind in surgery.adapters.names()),
        ("vit", ALL_LINEAR, {"adapter": "srlora"}),
        ("vit", ALL_LINEAR, {"adapter": "pissa"}),
        ("vit", ALL_LINEAR, {"adapter": "lora", "alpha": 16.0, "scaling": "rslora"}),
        ("bert", QUERY_VALUE, {"adapter": "symlora"}),
        ("bert", ALL_LINEAR, {"adapter": "srlora"}),
        ("gpt2", ALL_LINEAR, {"adapter": "lora"}),
    ],
    ids=lambda value: value if isinstance(value, str) else value.get("adapter", value.get("name")),
)
def test_peft_computes_what_the_adapted_model_computes(name, policy, options, build, tmp_path):
    model = build(name)
    plain = copy.deepcopy(model)
    surgery.apply(model, policy, rank=2, seed=0, **options)
    disturb(model)
    expected = outputs(model, plain)
    assert not torch.allclose(expected, outputs(plain, plain), atol=1e-3)
    to_peft(model, tmp_path / "peft")
    loaded = peft.PeftModel.from_pretrained(plain, tmp_path / "peft")
    torch.testing.assert_close(outputs(loaded, model), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["srlora", "sym-srlora"])
def test_what_recomposition_moved_into_the_base_is_part_of_the_factors(kind, build, tmp_path):
    model = build("vit")
    plain = copy.deepcopy(model)
    surgery.apply(model, QUERY_VALUE, adapter=kind, rank=2, target_rank=8, seed=0)
    for _ in range(2):
        disturb(model)
        for module in model.modules():
            if isinstance(module, surgery.adapters.Recomposed):
                assert len(module.recompose())
        for _, owner in adapted_modules(model):
            owner.refresh_base()
    to_peft(model, tmp_path / "peft")
    loaded = peft.PeftModel.from_pretrained(plain, tmp_path / "peft")
    expected = outputs(model, build("vit"))
    torch.testing.assert_close(outputs(loaded, build("vit")), expected, atol=1e-4, rtol=1e-3)


def test_ranks_may_differ_and_one_name_may_end_another(tmp_path):
    class Twins(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.proj = nn.Linear(6, 6)
            self.inner = nn.ModuleDict({"proj": nn.Linear(6, 6)})

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner["proj"](self.proj(x).tanh())

    torch.manual_seed(0)
    model, x = Twins(), torch.randn(3, 6)
    plain = copy.deepcopy(model)
    select = [{"modules": "proj", "adapter": {"rank": 2}}]
    surgery.apply(model, {"name": "one", "select": select}, example_inputs=x)
    disturb(model)
    to_peft(model, tmp_path / "peft")
    loaded = peft.PeftModel.from_pretrained(plain, tmp_path / "peft")
    torch.testing.assert_close(loaded(x), model(x))
    assert not any("inner" in name for name, _ in loaded.named_parameters() if "lora" in name)


@pytest.mark.parametrize("options", [{}, {"use_rslora": True}, {"alpha_pattern": {"proj": 3}}])
def test_a_peft_checkpoint_is_read(options, build, tmp_path):
    model = build("vit")
    plain = copy.deepcopy(model)
    config = peft.LoraConfig(
        r=3,
        lora_alpha=7,
        target_modules=["qkv", "attn.proj", "fc1"],
        modules_to_save=["head"],
        rank_pattern={"fc1": 2},
        init_lora_weights=False,
        **options,
    )
    theirs = peft.get_peft_model(copy.deepcopy(plain), config)
    disturb(theirs)
    theirs.save_pretrained(tmp_path / "peft")
    from_peft(model, tmp_path / "peft")
    expected = outputs(theirs, plain)
    torch.testing.assert_close(outputs(model, plain), expected, atol=1e-5, rtol=1e-4)
    assert {n.partition(".")[0] for n, p in model.named_parameters() if p.requires_grad} == {
        "blocks",
        "head",
    }
    again = surgery.load(plain, surgery.save(model, tmp_path / "ours.safetensors"))
    torch.testing.assert_close(outputs(again, build("vit")), expected, atol=1e-5, rtol=1e-4)
    surgery.fold(model)
    torch.testing.assert_close(outputs(model, build("vit")), expected, atol=1e-5, rtol=1e-4)


def test_what_was_written_is_read_again(build, tmp_path):
    model = build("bert")
    plain = copy.deepcopy(model)
    surgery.apply(model, QUERY_VALUE, rank=2)
    disturb(model)
    from_peft(plain, to_peft(model, tmp_path / "peft"))
    torch.testing.assert_close(outputs(plain, build("bert")), outputs(model, build("bert")))


def test_a_weight_that_is_read_past_its_module_is_refused(build, tmp_path):
    model = build("beit")
    surgery.apply(model, QUERY_VALUE, rank=2)
    with pytest.raises(ExportError, match="past its module's forward") as caught:
        to_peft(model, tmp_path / "peft")
    assert caught.value.where == "blocks.0.attn.qkv.weight:query"
    assert not (tmp_path / "peft").exists()


def test_a_bare_parameter_that_trained_is_refused(build, tmp_path):
    model = build("vit")
    surgery.apply(model, {**QUERY_VALUE, "train": ["cls_token"]}, rank=2)
    with pytest.raises(ExportError, match="all that trained"):
        to_peft(model, tmp_path / "peft")


def test_a_model_without_adapters_is_refused(build, tmp_path):
    model = surgery.apply(build("vit"), "head-only")
    with pytest.raises(ExportError, match="no checkpoint without an adapter"):
        to_peft(model, tmp_path / "adapter")
    assert list(tmp_path.iterdir()) == []


def test_an_existing_checkpoint_is_kept(build, tmp_path):
    model = build("vit")
    surgery.apply(model, QUERY_VALUE, rank=2)
    to_peft(model, tmp_path)
    before = (tmp_path / "adapter_config.json").read_text()
    surgery.undo(model)
    surgery.apply(model, QUERY_VALUE, rank=3)
    with pytest.raises(ExportError, match="exists already"):
        to_peft(model, tmp_path)
    assert (tmp_path / "adapter_config.json").read_text() == before
    to_peft(model, tmp_path, overwrite=True)
    modes = {path.stat().st_mode for path in tmp_path.iterdir()}
    assert len(modes) == 1, "whoever may read the configuration may read the weights"
    assert json.loads((tmp_path / "adapter_config.json").read_text())["r"] == 6


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"kasa_config": {"beta": 0.1}}, "it uses kasa_config"),
        ({"monteclora_config": {"num_samples": 2}}, "it uses monteclora_config"),
        ({"velora_config": {"num_groups": 2}}, "it uses velora_config"),
        ({"use_bdlora": {"nblocks": 2}}, "it uses use_bdlora"),
        ({"arrow_config": {"top_k": 2}}, "it uses arrow_config"),
        ({"peft_type": "IA3"}, "IA3"),
        ({"bias": "all"}, "bias=all"),
        ({"init_lora_weights": "pissa_niter_4"}, "changed the base weights"),
    ],
)
def test_what_is_more_than_a_plain_lora_is_refused(change, reason, build, tmp_path):
    model = build("vit")
    surgery.apply(model, QUERY_VALUE, rank=2)
    to_peft(model, tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    plain = build("vit")
    with pytest.raises(ExportError, match=reason):
        from_peft(plain, tmp_path)
    assert "_surgery" not in plain.__dict__


@pytest.mark.parametrize(
    ("key", "shape", "reason"),
    [
        (
            "base_model.model.blocks.0.attn.kqv.lora_A.weight",
            (2, 32),
            "read as projection of block 0, 32 -> 96: the model has none",
        ),
        ("base_model.model.blocks.0.attn.proj.lora_A.weight", (2, 16), "the layer is"),
        ("base_model.model.blocks.0.strange", (3,), "0 heads with tensors"),
    ],
)
def test_what_does_not_fit_the_model_is_refused(key, shape, reason, build, tmp_path):
    model = build("vit")
    surgery.apply(model, QUERY_VALUE, rank=2)
    to_peft(model, tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    tensors = safetensors.torch.load_file(path)
    tensors[key] = torch.zeros(shape)
    if "lora_A" in key:
        tensors[key.replace("lora_A", "lora_B")] = torch.zeros(96, 2)
    safetensors.torch.save_file(tensors, path)
    with pytest.raises(ExportError, match=reason):
        from_peft(build("vit"), tmp_path)


def test_a_folder_without_a_checkpoint(build, tmp_path):
    with pytest.raises(ExportError, match="no PEFT checkpoint"):
        from_peft(build("vit"), tmp_path)


def test_running_statistics_that_moved_travel(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(6, 6))
    plain, x = copy.deepcopy(model), torch.randn(9, 6)
    policy = {"name": "all", "select": [{"roles": ["other", "head"]}]}
    surgery.apply(model, policy, rank=2, example_inputs=x)
    disturb(model)
    model.train()(3 * x + 1)
    to_peft(model.eval(), tmp_path)
    loaded = peft.PeftModel.from_pretrained(plain, tmp_path).eval()
    torch.testing.assert_close(loaded(x), model(x))


class Tied(nn.Module):
    """A head that shares its weight, and a layer whose name ends as the head's does."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.subhead, self.head = nn.Embedding(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)
        self.head.weight = self.words.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.subhead(self.words(tokens)))


@pytest.mark.parametrize(
    ("train", "reason"),
    [("words.weight", "reads this weight elsewhere"), ("head.bias", "with subhead among them")],
)
def test_what_peft_would_train_apart_or_too_much_of_is_refused(train, reason, tmp_path):
    model = Tied()
    policy = {"name": "one", "select": [{"modules": ["subhead"]}], "train": [train]}
    surgery.apply(model, policy, rank=2, example_inputs=torch.arange(3))
    with pytest.raises(ExportError, match=reason):
        to_peft(model, tmp_path)
    assert not any(tmp_path.iterdir())


def test_an_adapted_embedding_is_refused(tmp_path):
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.head = nn.Embedding(6, 4), nn.Linear(4, 6)

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            return self.head(self.words(tokens))

    config = peft.LoraConfig(r=2, target_modules=["words", "head"])
    peft.get_peft_model(Words(), config).save_pretrained(tmp_path)
    with pytest.raises(ExportError, match="adapts an embedding"):
        from_peft(Words(), tmp_path)


def test_a_saved_weight_that_the_model_shares_is_refused_under_either_name(tmp_path):
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.inner = nn.Embedding(6, 6), nn.Linear(6, 6)
            self.head = nn.Linear(6, 6, bias=False)
            self.head.weight = self.words.weight

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            return self.head(self.inner(self.words(tokens)))

    for name in ("words", "head"):
        config = peft.LoraConfig(r=2, target_modules=["inner"], modules_to_save=[name])
        peft.get_peft_model(Shared(), config).save_pretrained(tmp_path / name)
        model = Shared()
        with pytest.raises(ExportError, match=r"shares with another|has 0 heads"):
            from_peft(model, tmp_path / name)
        assert "_surgery" not in model.__dict__

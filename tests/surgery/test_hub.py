"""Folders for the Hub: they load back, their card is true, and what fold leaves is a plain model."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import timm
import torch
import yaml
from huggingface_hub import ModelCard
from packaging.version import Version
from timm.models import save_for_hf
from torch import Tensor, nn
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
)

import policies
import surgery
from surgery import Anatomy, CheckpointError, StateError
from surgery.hub import ADAPTER, CARD, POLICY, base_of

TOKENS = torch.arange(14).view(2, 7)
IMAGES = torch.linspace(-1, 1, 2 * 3 * 32 * 32).view(2, 3, 32, 32)


def bert() -> BertForSequenceClassification:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=40,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
    )
    return BertForSequenceClassification(config).eval()


def vit(**changes: object) -> nn.Module:
    torch.manual_seed(0)
    settings = {"img_size": 32, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 5}
    return timm.create_model("vit_tiny_patch16_224", **settings | changes).eval()


@pytest.fixture(scope="module")
def anatomy() -> Anatomy:
    return surgery.read(bert())


def trained(model: nn.Module, **known: object) -> nn.Module:
    surgery.apply(model, "text-attn-qv", rank=2, seed=0, **known)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.02 * torch.randn(parameter.shape))
    return model


def logits(model: nn.Module) -> Tensor:
    return model(TOKENS).logits.detach()


def test_a_folder_loads_back(tmp_path: Path, anatomy: Anatomy) -> None:
    model = trained(bert(), anatomy=anatomy)
    folder = surgery.save_pretrained(model, tmp_path / "new" / "folder")
    assert sorted(file.name for file in folder.iterdir()) == sorted([ADAPTER, CARD, POLICY])
    again = surgery.load_pretrained(bert(), str(folder))
    assert torch.equal(logits(again), logits(model)) and not torch.equal(
        logits(bert()), logits(model)
    )
    assert policies.get(folder / POLICY) == surgery.summary(model).plan.policy


def test_the_card_says_what_it_is(tmp_path: Path, anatomy: Anatomy) -> None:
    model = trained(bert(), anatomy=anatomy)
    surgery.save_pretrained(model, tmp_path, base="google/some-bert")
    card, made = ModelCard.load(tmp_path / CARD), surgery.summary(model)
    assert card.data.base_model == "google/some-bert" and "symlora" in card.data.tags
    for said in (
        f"{made.trainable:,} of {made.total:,} parameters train ({made.share:.2%})",
        "| attention.query | symlora | 2 | 2 | 0-1 |",
        "Policy `text-attn-qv`",
        "arXiv 2504.03719",
        "head: `classifier.weight`, `classifier.bias`",
        "surgery.load_pretrained(model",
    ):
        assert said in card.text, said


def test_no_path_of_this_machine_is_in_the_card(tmp_path: Path, anatomy: Anatomy) -> None:
    bert().save_pretrained(tmp_path / "base")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base")
    surgery.save_pretrained(trained(model, anatomy=anatomy), tmp_path / "out")
    assert str(tmp_path) not in (tmp_path / "out" / CARD).read_text()
    model.config.name_or_path = "someone/model"
    assert base_of(model) == "someone/model"
    assert (
        base_of(timm.create_model("vit_tiny_patch16_224"))
        == "timm/" + "vit_tiny_patch16_224.augreg_in21k_ft_in1k"
    )


def test_a_card_that_somebody_wrote_stays_and_ours_is_renewed(
    tmp_path: Path, anatomy: Anatomy
) -> None:
    model = trained(bert(), anatomy=anatomy)
    surgery.save_pretrained(model, tmp_path, base="one/one")
    surgery.save_pretrained(model, tmp_path, base="two/two")
    assert "two/two" in (tmp_path / CARD).read_text()
    (tmp_path / CARD).write_text("my own words")
    surgery.save_pretrained(model, tmp_path, base="three/three")
    assert (tmp_path / CARD).read_text() == "my own words"


class FakeHub:
    """The part of HfApi that is used, on a folder of this disk."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> SimpleNamespace:
        (self.root / repo_id).mkdir(parents=True, exist_ok=exist_ok)
        return SimpleNamespace(repo_id=repo_id)

    def file_exists(self, repo_id: str, name: str, *, revision: str | None) -> bool:
        return (self.root / repo_id / name).is_file()

    def hf_hub_download(self, repo_id: str, name: str, *, revision: str | None = None) -> str:
        return str(self.root / repo_id / name)

    def upload_folder(
        self, *, repo_id: str, folder_path: str, ignore_patterns: list[str] | None, **rest: object
    ) -> SimpleNamespace:
        ignore = shutil.ignore_patterns(*ignore_patterns or [])
        shutil.copytree(folder_path, self.root / repo_id, ignore=ignore, dirs_exist_ok=True)
        return SimpleNamespace(commit_url=f"hub/{repo_id}/commit/1")


def test_what_is_pushed_can_be_loaded_by_its_name(
    tmp_path: Path, anatomy: Anatomy, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub, model = FakeHub(tmp_path), trained(bert(), anatomy=anatomy)
    assert surgery.push_to_hub(model, "me/mine", api=hub).startswith("hub/me/mine")  # type: ignore[arg-type]
    (tmp_path / "me/mine" / CARD).write_text("edited by hand")
    surgery.push_to_hub(model, "me/mine", api=hub)  # type: ignore[arg-type]
    assert (tmp_path / "me/mine" / CARD).read_text() == "edited by hand"

    def download(repo_id: str, name: str, *, revision: str | None, token: object) -> str:
        return hub.hf_hub_download(repo_id, name)

    monkeypatch.setattr("surgery.hub.hf_hub_download", download)
    again = surgery.load_pretrained(bert(), "me/mine")
    assert torch.equal(logits(again), logits(model))


def test_refusals_touch_nothing(
    tmp_path: Path, anatomy: Anatomy, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(StateError):
        surgery.save_pretrained(bert(), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    model = trained(bert(), anatomy=anatomy)
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="folder cannot be written"):
        surgery.save_pretrained(model, tmp_path / "file")
    with pytest.raises(CheckpointError, match="cannot be read"):
        surgery.load_pretrained(bert(), tmp_path / "missing")

    def offline(*args: object, **kwargs: object) -> str:
        raise ConnectionError("no route")

    monkeypatch.setattr("surgery.hub.hf_hub_download", offline)
    with pytest.raises(CheckpointError, match=r"no route") as caught:
        surgery.load_pretrained(bert(), "nobody/nothing")
    assert "connection" in str(caught.value.remedy)


def test_a_folded_model_is_one_that_transformers_loads(tmp_path: Path, anatomy: Anatomy) -> None:
    model = trained(bert(), anatomy=anatomy)
    surgery.fold(model)
    model.save_pretrained(tmp_path)
    plain, report = AutoModelForSequenceClassification.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert type(plain) is BertForSequenceClassification
    assert torch.equal(logits(plain.eval()), logits(model))


@pytest.mark.skipif(
    Version(timm.__version__) <= Version("1.0.20"), reason="timm cannot read its own folders yet"
)
def test_a_folded_model_is_one_that_timm_loads(tmp_path: Path) -> None:
    model = vit()
    surgery.apply(model, "vit-attn-qv", rank=2, seed=0)
    with torch.no_grad():
        model.head.bias.add_(1.0)
        for adapter in model.modules():
            if isinstance(adapter, surgery.adapters.base.Adapter):
                adapter.l.add_(0.1)
    surgery.fold(model)
    arguments = {"img_size": 32, "embed_dim": 16, "depth": 2, "num_heads": 2}
    save_for_hf(model, str(tmp_path), model_args=arguments, safe_serialization=True)
    plain = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert type(plain) is type(vit())
    assert torch.equal(plain(IMAGES), model(IMAGES)) and not torch.equal(
        plain(IMAGES), vit()(IMAGES)
    )
    assert yaml.safe_load((tmp_path / "config.json").read_text())["num_classes"] == 5

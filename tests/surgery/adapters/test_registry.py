"""Kinds, options, and errors that name the near word."""

from __future__ import annotations

from importlib.metadata import EntryPoint

import pytest

from surgery.adapters import LoRA, check_options, get, names, options_of, register, registry
from surgery.errors import PolicyError

OURS = {"frozen-a", "lora", "pissa", "polar", "srlora", "sym-srlora", "symlora"}


@pytest.fixture(autouse=True)
def _restored(monkeypatch):
    monkeypatch.setattr(registry, "_KINDS", dict(registry._KINDS))
    registry._load_entry_points.cache_clear()
    yield
    registry._load_entry_points.cache_clear()


def test_every_kind_is_known_by_its_name():
    assert set(names()) >= OURS
    for kind in OURS:
        assert get(kind).kind == kind


@pytest.mark.parametrize(
    ("typo", "meant"), [("symlra", "symlora"), ("Lora", "lora"), ("pisa", "pissa")]
)
def test_unknown_kind_names_the_near_one(typo, meant):
    with pytest.raises(PolicyError, match=rf"unknown adapter '{typo}'") as error:
        get(typo)
    assert error.value.remedy == f"did you mean {meant!r}?"


@pytest.mark.parametrize(
    ("kind", "own"),
    [
        ("lora", {"init", "dropout"}),
        ("frozen-a", {"dropout"}),
        ("symlora", {"rectangular", "start", "dropout"}),
        ("polar", {"start", "dropout"}),
        ("pissa", set()),
        ("srlora", {"target_rank", "gamma", "beta1", "beta2"}),
        ("sym-srlora", {"target_rank", "gamma", "beta1", "beta2"}),
    ],
)
def test_options_are_what_the_class_takes(kind, own):
    assert set(options_of(kind)) == {"rank", "alpha", "scaling"} | own


@pytest.mark.parametrize("kind", sorted(OURS))
def test_every_listed_option_is_accepted(kind):
    values = {
        "rank": 2,
        "alpha": 4.0,
        "scaling": "rslora",
        "dropout": 0.1,
        "init": "gaussian",
        "rectangular": "truncate",
        "start": "zero",
        "target_rank": 4,
        "gamma": 0.5,
        "beta1": 0.9,
        "beta2": 0.9,
    }
    options = {name: values[name] for name in options_of(kind)}
    check_options(kind, options)
    get(kind)(6, 8, **options)


def test_unknown_option_names_the_near_one():
    with pytest.raises(PolicyError, match="'srlora' has no option 'gama'") as error:
        check_options("srlora", {"gama": 0.5})
    assert error.value.remedy == "did you mean 'gamma'?"


@pytest.mark.parametrize("option", ["target_rank", "gamma", "dropout"])
def test_pissa_takes_no_options_of_srlora(option):
    with pytest.raises(PolicyError, match="its options are rank, alpha, scaling"):
        check_options("pissa", {option: 1})


def test_a_registered_class_is_found_with_inherited_options():
    @register("mine")
    class Mine(LoRA):
        def __init__(self, in_features, out_features, *, depth=1, **options):
            super().__init__(in_features, out_features, **options)

    assert get("mine") is Mine
    assert set(options_of("mine")) == {"depth", *options_of("lora")}


def test_entry_points_of_other_packages_are_loaded_and_never_replace_ours(monkeypatch):
    def found(group):
        assert group == "model_surgery.adapters"
        return [
            EntryPoint("theirs", f"{__name__}:Theirs", group),
            EntryPoint("lora", f"{__name__}:Theirs", group),
        ]

    monkeypatch.setattr(registry, "entry_points", found)
    monkeypatch.setattr(EntryPoint, "load", lambda point: Theirs)
    assert "theirs" in names()
    assert get("theirs") is Theirs
    assert get("lora") is LoRA


def test_a_package_that_cannot_be_loaded_is_named(monkeypatch):
    point = EntryPoint("broken", "no_such_package:Adapter", "model_surgery.adapters")
    monkeypatch.setattr(registry, "entry_points", lambda group: [point])
    with pytest.raises(PolicyError, match=r"broken(.|\n)*no_such_package"):
        get("unheard-of")


class Theirs(LoRA):
    pass

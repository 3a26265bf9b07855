"""Any architecture, any policy, any adapter, any dtype: the promises hold from reading to undoing."""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given
from torch import nn

import exporters
import surgery
from surgery import adapters
from surgery.adapter_file import read_file
from surgery.anatomy.types import Anatomy
from surgery.operations.adapted import adapters_of
from surgery.operations.state import find_record
from tests.trust.architectures import architectures, build, inputs, truth
from tests.trust.cases import Case, cases, train
from tests.trust.conftest import Tally
from tests.trust.promises import as_rows, bits, exact_weights, photograph, wrongly_rounded
from tests.trust.settings import examples


def _roles(anatomy: Anatomy) -> dict[object, set[tuple[str, tuple[int, ...]]]]:
    found: dict[object, set[tuple[str, tuple[int, ...]]]] = {}
    for p in anatomy.projections:
        rows = sorted(channel for run in p.rows for channel in range(*run))
        found.setdefault(p.role, set()).add((p.weight_name, tuple(rows)))
    return found


def test_the_roles_are_those_it_was_built_with(tally: Tally) -> None:
    @examples(10)
    @given(architectures())
    def holds(architecture) -> None:
        found = _roles(surgery.read(build(architecture), inputs(architecture)))
        for role, weights in truth(architecture).items():
            assert found.get(role) == set(weights)
        tally["cases"] += 1

    holds()


def test_the_whole_life(tally: Tally) -> None:
    @examples(16)
    @given(cases())
    def holds(case: Case) -> None:
        model = case.model()
        before, plain = photograph(model), copy.deepcopy(model)
        y = model(case.inputs())
        surgery.apply(model, case.policy, example_inputs=case.inputs(), seed=0)
        if all(adapter.correction() is None for _, adapter in adapters_of(model)):
            assert torch.equal(model(case.inputs()), y)
        _trains(model, case)
        _is_saved_and_loaded(model, plain, case)
        _folds(copy.deepcopy(model), case, tally)
        surgery.undo(model)
        after = photograph(model)
        assert {**after, "grads": None} == {**before, "grads": None}
        tally["cases"] += 1

    holds()


def _trains(model: nn.Module, case: Case) -> None:
    """No adapter is dead: some steps move each of them."""
    started = {name: _bits(adapter) for name, adapter in adapters_of(model)}
    assert len(started) == len(find_record(model).plan.operations)
    train(model, case)
    assert [name for name, adapter in adapters_of(model) if _bits(adapter) == started[name]] == []


def _bits(adapter: nn.Module) -> list[bytes]:
    return [bits(parameter) for parameter in adapter.parameters()]


def _is_saved_and_loaded(model: nn.Module, plain: nn.Module, case: Case) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = surgery.save(model, Path(folder) / "a.safetensors")
        tensors = read_file(path).tensors
        assert all(bits(tensor) == bits(model.state_dict()[k]) for k, tensor in tensors.items())
        other = surgery.load(copy.deepcopy(plain), path)
        ours, theirs = photograph(model), photograph(other)
        for same in ("bits", "keys", "flags", "attributes", "hooks"):
            assert ours[same] == theirs[same], same
        assert torch.equal(other(case.inputs()), model(case.inputs()))
        again = surgery.save(other, Path(folder) / "b.safetensors")
        assert again.read_bytes() == path.read_bytes()
        surgery.undo(other)
        assert photograph(other)["bits"] == photograph(plain)["bits"]


def _folds(model: nn.Module, case: Case, tally: Tally) -> None:
    layouts = {
        o.projection.weight_name: str(o.projection.layout)
        for o in find_record(model).plan.operations
    }
    exact = list(exact_weights(model))
    adapted = model(case.inputs())
    surgery.fold(model)
    assert list(adapters_of(model)) == []
    for name, total, _ in exact:
        weight = as_rows(model.get_parameter(name), layouts[name])
        assert wrongly_rounded(weight, total) == 0
        tally["weights folded"] += total.size
    if case.dtype is torch.float32:
        torch.testing.assert_close(model(case.inputs()), adapted, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_it_leaves_as_verified_onnx(tally: Tally) -> None:
    """An adapted model is exported and stays as it is; what does not verify is not delivered."""

    @examples(2)
    @given(cases())
    def holds(case: Case) -> None:
        model, x = case.model().float(), inputs(case.architecture)
        surgery.apply(model, case.policy, example_inputs=x, seed=0)
        before = photograph(model)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "m.onnx"
            report = _exported(model, path, x)
            assert path.exists() is (report is not None)
            tally["exports" if report else "exports refused"] += 1
        assert photograph(model) == before
        tally["cases"] += 1

    holds()


def _exported(model: nn.Module, path: Path, x: torch.Tensor) -> exporters.ExportReport | None:
    try:
        return exporters.to_onnx(model, path, example_inputs=x)
    except exporters.VerificationError:
        return None


def test_every_kind_is_among_the_cases() -> None:
    """The strategy would quietly lose an adapter that is registered under another name."""
    kinds = set()

    @examples(150)
    @given(cases())
    def look(case: Case) -> None:
        kinds.add(case.policy["adapter"]["kind"])

    look()
    assert kinds == set(adapters.names())

"""Capturing: the process as it was, no time spent on stack traces, and errors that say where."""

from __future__ import annotations

import threading

import pytest
import torch
import torch.fx.config
from torch import Tensor, nn

import surgery
from surgery.anatomy.capture import alone, capture, unchanged
from surgery.errors import CaptureError


class Positive(nn.Module):
    """Keeps rows by their values: how many is not known."""

    def forward(self, x: Tensor) -> Tensor:
        return x[x.sum(-1) > 0]


class Picks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.pick, self.last = nn.Linear(4, 4), Positive(), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.pick(self.first(x)))


SWITCH = "do_not_emit_stack_traces"  # not yet in torch 2.11


def traces_are_wanted() -> bool:
    return not getattr(torch.fx.config, SWITCH, False)


def test_no_node_has_a_stack_trace_and_others_get_theirs_again() -> None:
    program = capture(nn.Linear(3, 3), (torch.randn(2, 3),))
    nodes = [node for node in program.graph.nodes if node.op == "call_function"]
    if hasattr(torch.fx.config, SWITCH):
        assert nodes and not any(node.meta.get("stack_trace") for node in nodes)
    with pytest.raises(CaptureError):
        capture(nn.Linear(3, 3), (torch.randn(2, 4),))
    assert traces_are_wanted()


def test_a_second_thread_waits() -> None:
    entered = threading.Event()

    def enter() -> None:
        with alone():
            entered.set()

    thread = threading.Thread(target=enter)
    with alone():
        thread.start()
        assert not entered.wait(0.05)
        with alone():  # but not for itself
            pass
        assert not (hasattr(torch.fx.config, SWITCH) and traces_are_wanted())
    thread.join(10)
    assert entered.is_set() and traces_are_wanted()


def test_a_size_that_follows_from_values_is_refused_with_the_module_it_comes_from() -> None:
    with torch.device("meta"):
        model, x = Picks(), torch.randn(3, 4)
    with pytest.raises(CaptureError, match="size depends on values") as caught:
        surgery.read(model, x)
    assert caught.value.where == "pick"


class MergesOnEval(nn.Linear):
    """As loralib's: the low-rank factors are written into the weight while the layer is in eval mode."""

    def __init__(self) -> None:
        super().__init__(4, 4)
        self.factor = nn.Parameter(torch.ones(4))

    def train(self, mode: bool = True) -> MergesOnEval:
        if mode is not self.training:
            self.weight.data += (-1 if mode else 1) * torch.outer(self.factor, self.factor)
        super().train(mode)
        return self


def test_a_model_that_changes_its_weights_with_its_mode_keeps_them() -> None:
    model = nn.Sequential(MergesOnEval(), nn.Dropout())
    before = model[0].weight.clone()
    with unchanged(model):
        assert not any(module.training for module in model.modules())
        assert torch.equal(model[0].weight, before)
    assert all(module.training for module in model.modules())
    assert torch.equal(model[0].weight, before)


def test_an_exported_model_is_captured_although_it_has_no_eval() -> None:
    x = torch.randn(2, 3)
    exported = torch.export.export(nn.Linear(3, 3), (x,)).module()
    assert [p.weight_name for p in surgery.read(exported, x).projections] == ["weight"]


def test_torchscript_is_refused() -> None:
    x = torch.randn(2, 3)
    with pytest.raises(CaptureError, match="TorchScript"):
        surgery.read(torch.jit.trace(nn.Linear(3, 3), x), x)

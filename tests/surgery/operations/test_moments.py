"""What an optimizer remembers of swapped pairs: moments go, copies of the values follow, the rest stays."""

from __future__ import annotations

import pytest
import timm.optim
import torch
from torch import nn
from transformers.optimization import Adafactor

from surgery.operations.moments import remembered

SHAPE, PAIRS = (6, 4), torch.tensor([1, 3])


def trained(make, steps=5, along=1):
    """A parameter with the scale of a pretrained one, after some steps; along ``along`` lie four pairs."""
    torch.manual_seed(0)
    shape = SHAPE if along == 1 else SHAPE[::-1]
    parameter = nn.Parameter(torch.randn(shape))
    optimizer = make([parameter])
    for step in range(steps):
        parameter.grad = torch.randn(shape, generator=torch.Generator().manual_seed(step))
        optimizer.step()
    return parameter, optimizer


def renewed(parameter, optimizer, along=1):
    """Let two pairs be born anew; returns what is remembered of all of them, by its name."""
    held = list(remembered(optimizer, parameter, along))
    with torch.no_grad():
        parameter.index_fill_(along, PAIRS, 7.0)
    for one in held:
        one.renew(PAIRS)
    return {one.key: one for one in held}


def test_slow_weights_take_the_new_values():
    def lookahead(parameters):
        return timm.optim.Lookahead(torch.optim.AdamW(parameters, lr=1e-3), k=3)

    parameter, optimizer = trained(lookahead)
    kept = parameter.detach().clone()
    found = renewed(parameter, optimizer)
    slow = found["lookahead_slow_buff"].value
    assert (slow[:, PAIRS] == 7).all()
    torch.testing.assert_close(slow[:, [0, 2]], kept[:, [0, 2]], atol=1e-2, rtol=0)
    assert not found["exp_avg"].value[:, PAIRS].any()


def test_a_point_that_steps_are_counted_from_takes_the_new_values():
    parameter, optimizer = trained(lambda p: timm.optim.MADGRAD(p, lr=1e-3))
    found = renewed(parameter, optimizer)
    assert (found["x0"].value[:, PAIRS] == 7).all()
    assert not found["grad_sum_sq"].value[:, PAIRS].any()


@pytest.mark.parametrize("along", [0, 1])
def test_a_factored_moment_without_the_other_dimension(along):
    def adafactor(parameters):
        return Adafactor(parameters, lr=1e-3, scale_parameter=False, relative_step=False)

    parameter, optimizer = trained(adafactor, along=along)
    before = {k: v.clone() for k, v in optimizer.state[parameter].items() if torch.is_tensor(v)}
    renewed(parameter, optimizer, along)
    own, shared = ("exp_avg_sq_row", "exp_avg_sq_col")[:: 1 if along == 0 else -1]
    now = optimizer.state[parameter]
    assert not now[own][PAIRS].any()
    assert torch.equal(now[own][[0, 2]], before[own][[0, 2]])
    assert torch.equal(now[shared], before[shared])


def test_a_momentum_that_happens_to_point_along_the_weight_is_no_copy():
    """SGD's weight decay makes the momentum of a weight at rest a multiple of it."""
    parameter, optimizer = trained(lambda p: torch.optim.SGD(p, 1e-3, momentum=0.9), steps=1)
    optimizer.state[parameter]["momentum_buffer"] = parameter.detach().clone()
    found = renewed(parameter, optimizer)
    assert not found["momentum_buffer"].value[:, PAIRS].any()


def test_state_of_an_optimizer_inside_is_found():
    """As ZeroRedundancyOptimizer keeps it."""

    class Sharded(torch.optim.Optimizer):
        def __init__(self, parameters):
            self.optim = torch.optim.AdamW(parameters, lr=1e-3)
            super().__init__(parameters, {})

        def step(self):
            self.optim.step()

    parameter, optimizer = trained(Sharded)
    assert not renewed(parameter, optimizer)["exp_avg"].value[:, PAIRS].any()

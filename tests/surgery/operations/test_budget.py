"""A budget sets the largest rank within it, and an adapter file does not need it again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import surgery
from surgery import Anatomy, AnatomyError, Plan, PlanError

from .conftest import WIDTH, Net

KINDS = ("lora", "symlora", "srlora", "frozen-a", "pissa")
ROLES = ["attention.query", "mlp.down"]


def laid(kind: str, anatomy: Anatomy, **change: object) -> Plan:
    adapter = {"kind": kind, **({"rectangular": "truncate"} if kind == "symlora" else {})}
    return surgery.plan(
        Net(), {"select": [{"roles": ROLES}], "adapter": adapter}, anatomy=anatomy, **change
    )


@settings(max_examples=25, deadline=None)
@given(kind=st.sampled_from(KINDS), budget=st.integers(400, 4000))
def test_one_rank_more_would_be_over_the_budget(
    kind: str, budget: int, anatomies: dict[bool, Anatomy]
) -> None:
    plan = laid(kind, anatomies[False], budget=budget)
    (rank,) = {operation.adapter.rank for operation in plan.operations}
    assert plan.adapter_parameters <= budget
    if rank < WIDTH:
        assert laid(kind, anatomies[False], rank=rank + 1).adapter_parameters > budget


def test_a_share_is_one_of_the_plain_model_and_the_plan_says_what_it_came_to(
    anatomies: dict[bool, Anatomy],
) -> None:
    base = sum(p.numel() for p in Net().parameters())
    plan = laid("lora", anatomies[False], budget="20%", train=["head"])
    assert plan.adapter_parameters <= base // 5 and plan.extra_parameters
    (note,) = [note for note in plan.notes if note.startswith("budget 20%")]
    rank, spent = plan.operations[0].adapter.rank, plan.adapter_parameters
    assert f"rank {rank} on 4 projections" in note and f"{spent:,} weights" in note
    assert f"{spent / base:.3%}" in note and note in str(plan).replace("\n", " ")


def test_the_narrowest_projection_ends_it(anatomies: dict[bool, Anatomy]) -> None:
    plan = laid("lora", anatomies[False], budget="1M")
    assert {operation.adapter.rank for operation in plan.operations} == {WIDTH}
    assert any("narrowest" in note for note in plan.notes)


def test_an_option_can_end_it(anatomies: dict[bool, Anatomy]) -> None:
    plan = laid("srlora", anatomies[False], budget="1M", target_rank=5)
    assert {operation.adapter.rank for operation in plan.operations} == {5}


def test_too_small_a_budget_is_an_error_with_both_numbers(anatomies: dict[bool, Anatomy]) -> None:
    smallest = laid("lora", anatomies[False], rank=1).adapter_parameters
    with pytest.raises(PlanError, match=f"it is {smallest - 1} weights.*trains {smallest}"):
        laid("lora", anatomies[False], budget=smallest - 1)
    exact = laid("lora", anatomies[False], budget=smallest)
    assert exact.adapter_parameters == smallest


def test_an_adapter_file_holds_the_rank_and_not_the_budget(
    make_net: Callable[..., nn.Module], anatomies: dict[bool, Anatomy], tmp_path: Path
) -> None:
    wanted = {"select": [{"roles": "query"}], "adapter": "lora", "budget": "10%"}
    model = surgery.apply(make_net(), wanted, anatomy=anatomies[False], seed=0)
    policy = surgery.summary(model).plan.policy
    assert policy.budget is None and policy.adapter.rank > 1
    path = surgery.save(model, tmp_path / "adapter.safetensors")
    again = surgery.load(make_net(), path)
    assert surgery.summary(again).plan == surgery.summary(model).plan


def test_ranks_by_depth_that_leave_a_layer_out_are_refused(anatomies: dict[bool, Anatomy]) -> None:
    ranks = {"first 1": 3, "last 1": 5}
    plan = laid("lora", anatomies[False], rank=ranks)
    assert {(o.projection.layer, o.adapter.rank) for o in plan.operations} == {(0, 3), (1, 5)}
    with pytest.raises(AnatomyError, match=r"no rank for attention\.query of layer 1"):
        laid("lora", anatomies[False], rank={"first 1": 3})

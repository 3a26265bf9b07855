"""The policy schema: a declaration of which projections get which adapter, and what else trains."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)

from policies import budget as budgets
from policies import depth as depths
from policies.forms import Budget, Depth, OneRank, Ranks, Roles, Words, refusal
from policies.parts import Part

TRAIN_WORDS = ("head", "norms", "biases", "embeddings")
_SHARED = ("rank", "alpha")


class Strict(BaseModel):
    """Immutable, and without room for a misspelt key."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class AdapterSpec(Strict):
    """Which adapter, how large. Further keys are the adapter's own hyper-parameters.

    In YAML ``adapter: {kind: srlora, rank: 8, target_rank: 32}``; the options are checked against
    the adapter when a plan is made, because adapters can come from other packages.
    """

    model_config = ConfigDict(json_schema_extra={"additionalProperties": True})

    kind: str = Field("symlora", description="symlora, srlora, lora, pissa, ... or your own")
    rank: OneRank = Field(8, description="number of pairs r")
    alpha: float | None = Field(
        None,
        gt=0,
        strict=True,
        allow_inf_nan=False,
        description="scaling numerator; none means rank",
    )
    options: dict[str, Any] = Field(default_factory=dict, description="the adapter's own options")

    @model_validator(mode="before")
    @classmethod
    def _gather_options(cls, data: Any) -> Any:
        """``symlora`` alone is a kind; unknown keys of a mapping are options."""
        data = _spec(data)
        if not isinstance(data, Mapping) or not isinstance(data.get("options", {}), Mapping):
            return data
        known = {name: value for name, value in data.items() if name in cls.model_fields}
        extra = {str(name): value for name, value in data.items() if name not in cls.model_fields}
        return {**known, "options": {**known.get("options", {}), **extra}}

    @model_serializer
    def _in_full(self) -> dict[str, Any]:
        """Never abridged: a stored policy must not change with our defaults."""
        return {name: getattr(self, name) for name in type(self).model_fields}


def lay(change: Any, over: Any) -> Any:
    """Lay a partial adapter over a whole one; both are still to be validated.

    Another kind keeps only rank and alpha of what lies below; a change that spells out its ``options`` has
    all of them.
    """
    change, base = _spec(change), _spec(over)
    if not isinstance(change, Mapping) or not isinstance(base, Mapping):
        return change
    default = AdapterSpec.model_fields["kind"].default
    below = base.get("kind", default)
    same = change.get("kind", below) == below
    kept = {k: v for k, v in base.items() if k in _SHARED or (same and "options" not in change)}
    return {"kind": below, **kept, **change}


def _spec(data: Any) -> Any:
    """The short form ``lora`` as a mapping, an adapter as plain data, anything else as it is."""
    if isinstance(data, AdapterSpec):
        return data.model_dump()
    return {"kind": data} if isinstance(data, str) else data


class Selection(Strict):
    """Some projections: those of these roles, in this part, at these depths, below these modules."""

    roles: Roles = Field((), description="attention.query, mlp.up, ...; empty means any role")
    depth: Depth = Field(
        "all",
        description=f"layers: {depths.EXAMPLES}",
        json_schema_extra={"type": ["string", "integer"]},
    )
    part: Part | None = Field(
        None,
        description="one tower, or one side of cross-attention; depth then counts the layers of the part",
    )
    modules: Words = Field((), description="globs on module paths; empty means any module")
    rank: Ranks | None = Field(
        None,
        description="laid over the adapter's rank; by depth {0-5: 4, last 2: 16}, later depths win",
    )
    adapter: AdapterSpec | None = Field(
        None, description="laid over the policy's adapter, {rank: 16} is enough"
    )

    @model_validator(mode="after")
    def _selects_something(self) -> Selection:
        if not self.roles and not self.modules:
            raise ValueError("a selection needs roles, modules (globs), or both")
        return self

    def layers(self, depth: int) -> frozenset[int] | None:
        """The selected layers of a model with ``depth`` layers; None means all, and what lies outside them."""
        select = depths.parse(self.depth)
        return None if select is None else select(depth)

    def rank_at(self, layer: int | None, depth: int) -> int | None:
        """The rank that :attr:`rank` has for a layer of ``depth`` layers; None if no depth of it covers it."""
        found = None
        for text, rank in (self.rank or {}).items():
            select = depths.parse(text)
            if select is None or layer in select(depth):
                found = rank
        return found


class Policy(Strict):
    """A declaration: which roles, at which depths, get which adapter; what else stays trainable."""

    name: str = Field(min_length=1, description="how users ask for it")
    description: str = Field("", description="what it does, in a line")
    when: str = Field("", description="when to use it, in a line")
    source: str = Field("", description="where the recipe comes from")
    select: tuple[Selection, ...] = Field((), description="later selections win over earlier ones")
    adapter: AdapterSpec = AdapterSpec()
    budget: Budget | None = Field(
        None,
        description="instead of ranks: the largest rank, the same for all, within a share of the model's "
        f"parameters or a count: {budgets.EXAMPLES}",
        json_schema_extra={"type": ["string", "integer"]},
    )
    train: Words = Field((), description="head, norms, biases, embeddings, or globs on parameters")

    @model_validator(mode="before")
    @classmethod
    def _complete_adapters(cls, data: Any) -> Any:
        """What a selection's adapter leaves open comes from the policy's adapter."""
        if not isinstance(data, Mapping) or not isinstance(data.get("select"), list | tuple):
            return data
        base = data.get("adapter", {})
        return {**data, "select": [_complete(selection, base) for selection in data["select"]]}

    @field_validator("budget")
    @classmethod
    def _sets_every_rank(cls, budget: str | None, info: ValidationInfo) -> str | None:
        selections = info.data.get("select", ())
        if budget is not None and any(selection.rank for selection in selections):
            remedy = "take out the budget, or the rank of the selections"
            raise refusal("a budget sets one rank for all selections, and one has its own", remedy)
        return budget

    @model_validator(mode="after")
    def _does_something(self) -> Policy:
        if not self.select and not self.train:
            raise ValueError("a policy selects projections, or trains something, or both")
        return self

    def adapter_of(self, selection: Selection) -> AdapterSpec:
        """The adapter that the projections of a selection get."""
        return selection.adapter or self.adapter

    def __str__(self) -> str:
        """The policy as the YAML file that it could be."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True, width=110)

    def to_dict(self) -> dict[str, Any]:
        """Plain data that :func:`policies.get` takes back; adapters are spelt out in full."""
        plain = self.model_dump(mode="json", exclude_defaults=True)
        return plain | ({"adapter": self.adapter.model_dump(mode="json")} if self.select else {})


def _complete(selection: Any, base: Any) -> Any:
    if not isinstance(selection, Mapping) or selection.get("adapter") is None:
        return selection
    return {**selection, "adapter": lay(selection["adapter"], over=base)}

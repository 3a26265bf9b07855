"""The policy schema: a declaration of which projections get which adapter, and what else trains."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from policies import depth as depths
from policies.errors import PolicyError
from policies.roles import Role

TRAIN_WORDS = ("head", "norms", "biases", "embeddings")


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Words = Annotated[tuple[str, ...], BeforeValidator(_as_list)]
Roles = Annotated[tuple[Role, ...], BeforeValidator(_as_list)]


class Strict(BaseModel):
    """Immutable, and without room for a misspelt key."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class AdapterSpec(Strict):
    """Which adapter, how large. Further keys are the adapter's own hyper-parameters.

    In YAML ``adapter: {kind: srlora, rank: 8, target_rank: 32}``; the options are checked against
    the adapter when a plan is made, because adapters can come from other packages.
    """

    kind: str = Field("symlora", description="symlora, srlora, lora, pissa, ... or your own")
    rank: int = Field(8, ge=1, description="number of pairs r")
    alpha: float | None = Field(None, gt=0, description="scaling numerator; none means rank")
    options: dict[str, Any] = Field(default_factory=dict, description="the adapter's own options")

    @model_validator(mode="before")
    @classmethod
    def _gather_options(cls, data: Any) -> Any:
        """``symlora`` alone is a kind; unknown keys of a mapping are options."""
        if isinstance(data, str):
            return {"kind": data}
        if not isinstance(data, Mapping):
            return data
        known = {name: value for name, value in data.items() if name in cls.model_fields}
        extra = {str(name): value for name, value in data.items() if name not in cls.model_fields}
        return {**known, "options": {**known.get("options", {}), **extra}}

    def override(self, kind: str | None = None, **changes: Any) -> AdapterSpec:
        """This adapter with some values changed. Another kind keeps rank and alpha, not the options."""
        keep = self.options if kind in (None, self.kind) else {}
        own = {name: changes.pop(name) for name in ("rank", "alpha") if name in changes}
        base = {"rank": self.rank, "alpha": self.alpha, **own}
        return AdapterSpec(kind=kind or self.kind, options={**keep, **changes}, **base)


class Selection(Strict):
    """Some projections: those of these roles, at these depths, below these modules."""

    roles: Roles = Field((), description="attention.query, mlp.up, ...; empty means any role")
    depth: str | int = Field("all", description=f"layers: {depths.EXAMPLES}")
    modules: Words = Field((), description="globs on module paths; empty means any module")
    adapter: AdapterSpec | None = Field(None, description="instead of the policy's adapter")

    @field_validator("depth")
    @classmethod
    def _readable(cls, value: str | int) -> str | int:
        try:
            depths.parse(value)
        except PolicyError as error:
            raise ValueError(f"{error.what}; {error.remedy}") from error
        return value

    @model_validator(mode="after")
    def _selects_something(self) -> Selection:
        if not self.roles and not self.modules:
            raise ValueError("a selection needs roles, modules (globs), or both")
        return self

    def layers(self, depth: int) -> frozenset[int] | None:
        """The selected layers of a model with ``depth`` layers; None means all, and what lies outside them."""
        select = depths.parse(self.depth)
        return None if select is None else select(depth)


class Policy(Strict):
    """A declaration: which roles, at which depths, get which adapter; what else stays trainable."""

    name: str = Field(description="how users ask for it")
    description: str = Field("", description="what it does, in a line")
    when: str = Field("", description="when to use it, in a line")
    source: str = Field("", description="where the recipe comes from")
    select: tuple[Selection, ...] = Field((), description="later selections win over earlier ones")
    adapter: AdapterSpec = AdapterSpec()
    train: Words = Field((), description="head, norms, biases, embeddings, or globs on parameters")

    @model_validator(mode="after")
    def _does_something(self) -> Policy:
        if not self.select and not self.train:
            raise ValueError("a policy selects projections, or trains something, or both")
        return self

    def adapter_of(self, selection: Selection) -> AdapterSpec:
        """The adapter that the projections of a selection get."""
        return selection.adapter or self.adapter

    def to_dict(self) -> dict[str, Any]:
        """Plain data that :func:`policies.get` takes back."""
        return self.model_dump(mode="json", exclude_defaults=True)

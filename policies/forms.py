"""The forms in which a value of a policy may be written, each brought to one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from policies import budget as budgets
from policies import depth as depths
from policies.errors import PolicyError
from policies.roles import Role

LARGEST_RANK = 2**20
"""Beyond any weight; a number of a thousand digits could not even be printed in an error."""
_SHORT = {role.short: role for role in Role}


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _full_role(value: Any) -> Any:
    return _SHORT.get(value, value) if isinstance(value, str) else value


def _readable(parse: Callable[[str], object]) -> Callable[[Any], Any]:
    """Numbers become text; a text that makes no sense is refused with its remedy."""

    def read(value: Any) -> Any:
        if isinstance(value, int) and not isinstance(value, bool):
            value = str(value)
        if isinstance(value, str):
            try:
                parse(value)
            except PolicyError as error:
                raise refusal(error.what, error.remedy) from error
        return value

    return read


def refusal(what: str, remedy: str | None) -> PydanticCustomError:
    """A finding of the schema that says what to do."""
    return PydanticCustomError("policy", "{what}", {"what": what, "remedy": remedy})


def _one_rank(value: Any) -> Any:
    """A rank that depends on the depth belongs into a selection, one that depends on data into no file."""
    if isinstance(value, Mapping):
        remedy = "write ranks by depth in a selection: select: [{roles: ..., rank: {0-5: 4, last 2: 16}}]"
        raise refusal("an adapter has one rank", remedy)
    if value == "auto":
        remedy = "let surgery.allocate(model, batches, policy, budget=...) measure the ranks"
        raise refusal("rank 'auto' needs data, which a policy does not hold", remedy)
    return value


def _ranks(value: Any) -> Any:
    """``16`` is ``{all: 16}``; the keys of a mapping are depths, and YAML reads ``3`` as a number."""
    if isinstance(value, Mapping):
        return {str(depth): rank for depth, rank in value.items()}
    return value if value is None else {"all": _one_rank(value)}


Words = Annotated[tuple[str, ...], BeforeValidator(_as_list)]
Roles = Annotated[
    tuple[Annotated[Role, BeforeValidator(_full_role)], ...], BeforeValidator(_as_list)
]
Depth = Annotated[str, BeforeValidator(_readable(depths.parse))]
Budget = Annotated[str, BeforeValidator(_readable(budgets.parse))]
Rank = Annotated[int, Field(ge=1, le=LARGEST_RANK, strict=True)]
Ranks = Annotated[dict[Depth, Rank], Field(min_length=1), BeforeValidator(_ranks)]
OneRank = Annotated[Rank, BeforeValidator(_one_rank)]

"""What ``to_onnx`` is asked for, looked at before any work: types, choices, numbers."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, SupportsFloat

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from exporters.causal import Cache
from exporters.errors import ExportError
from exporters.precision import Precision
from exporters.recipe import Target

Adapters = Literal["fold", "runtime"]


def _number(value: Any) -> Any:
    """A number of any library as Python's; anything else as it is, to be refused."""
    try:
        return float(value) if isinstance(value, SupportsFloat) else value
    except (TypeError, ValueError, RuntimeError):  # an array of several
        return value


Number = Annotated[float, BeforeValidator(_number)]


class Options(BaseModel):
    """The options that are plain data; each description is an example. See :func:`exporters.to_onnx`."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    target: Target = Field(description="target='cpu', 'cuda', 'tensorrt' or 'portable'")
    precision: Precision = Field(description="precision='fp32', 'fp16' or 'int8'")
    adapters: Adapters = Field(description="adapters='fold' or 'runtime'")
    cache: Cache = Field(description="cache=False, True or 'right'")
    dynamic: bool | Mapping[str, Mapping[int, str]] = Field(
        description="dynamic=True, False, or each open dimension by its input: {'x': {0: 'batch'}}"
    )
    profile: Mapping[str, Sequence[Any]] | None = Field(description="profile={'batch': (1, 8, 32)}")
    portable: bool = Field(description="portable=True or False")
    overwrite: bool = Field(description="overwrite=True or False")
    verify: bool = Field(description="verify=True or False")
    labels: Sequence[str] | None = Field(description="labels=['cat', 'dog'], one name a class")
    accuracy: Mapping[str, Number] | None = Field(description="accuracy={'top-1': 0.81}")
    metadata: Mapping[str, Any] | None = Field(description="metadata={'license': 'apache-2.0'}")


def check_options(**given: Any) -> None:
    """Refuse what an option cannot be.

    Args:
        given: Every field of :class:`Options` by name.

    Raises:
        ExportError: With the first option at fault, what is wrong with it, and an example.
    """
    try:
        Options(**given)
    except ValidationError as error:
        findings = error.errors()
        name = str(findings[0]["loc"][0])
        reasons = dict.fromkeys(each["msg"] for each in findings if each["loc"][0] == name)
        raise ExportError(
            f"to_onnx does not take {name}={reprlib.repr(given[name])}",
            where=name,
            why="; ".join(reasons),
            remedy=f"pass {Options.model_fields[name].description}",
        ) from error

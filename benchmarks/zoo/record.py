"""What the sweep keeps about one model."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any

PROVED = "proved"
"""Every attention that ran was read, no role was left open, and every claim was seen to hold."""
PARTIAL = "partial"
"""Nothing false was said, but something was left out; ``cause`` says what."""
WRONG = "wrong"
"""A claim was refuted by disturbance."""
UNREAD = "unread"
"""Inputs could not be made for the reader or the graph could not be captured."""
UNBUILT = "unbuilt"
"""The sweep could not make a small instance that runs: nothing was asked of the reader."""
NONE = "no attention"
"""No attention ran and none was read."""


@dataclass
class Record:
    """One model of the zoo.

    Attributes:
        model: Its timm name or transformers type.
        family: timm module or transformers type.
        status: One of the words above.
        run: Attention computations counted at run time.
        read: Attention computations that the anatomy claims.
        idle: Those of them that no output depends on.
        claims: Projections disturbed.
        held: Claims seen to hold.
        mislabelled: The claims that did not, as text.
        unplaced: What the anatomy says it could not place.
        cause: Why the model is not proved.
        small: How the instance was made smaller than the published model.
        inputs: Shapes of the example inputs.
        seconds: Of building, reading and verifying.
    """

    model: str
    family: str = ""
    status: str = UNBUILT
    run: int = 0
    read: int = 0
    idle: int = 0
    claims: int = 0
    held: int = 0
    mislabelled: list[str] = field(default_factory=list)
    unplaced: list[str] = field(default_factory=list)
    cause: str = ""
    small: str = ""
    inputs: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def attends(self) -> bool:
        """Whether the model has attention, as far as the run shows."""
        return self.run > 0

    def to_dict(self) -> dict[str, Any]:
        """Plain data without what is empty."""
        kept = {key: value for key, value in asdict(self).items() if value not in ("", [], {})}
        return {key: value for key, value in kept.items() if key != "idle" or value}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Record:
        """The inverse of :meth:`to_dict`."""
        known = {f.name for f in fields(cls)}
        return cls(**{key: value for key, value in data.items() if key in known})

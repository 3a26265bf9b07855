"""The roles a projection can play. The words are those of the field; see docs/architecture.md."""

from __future__ import annotations

from enum import StrEnum


class Role(StrEnum):
    """What a projection does in its model."""

    QUERY = "attention.query"
    KEY = "attention.key"
    VALUE = "attention.value"
    ATTENTION_OUTPUT = "attention.output"
    UP = "mlp.up"
    GATE = "mlp.gate"
    DOWN = "mlp.down"
    HEAD = "head"
    OTHER = "other"

    @property
    def short(self) -> str:
        """The last word: ``query`` for ``attention.query``."""
        return self.value.rpartition(".")[2]

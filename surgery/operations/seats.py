"""Where recomposing adapters sit, in a model and in averages of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from surgery.adapters.recompose import Recomposed
from surgery.errors import StateError
from surgery.operations.adapted import CHILD, Adapted, adapted_modules
from surgery.operations.averaging import attach
from surgery.operations.sharding import gathered


def seats(model: nn.Module) -> Iterator[tuple[str, Recomposed, Adapted]]:
    """Each recomposing adapter with its name, and the adapted module whose weight it corrects."""
    for path, owner in adapted_modules(model):
        prefix = f"{path}.{CHILD}" if path else CHILD
        for name, adapter in owner.adapters.named_modules(prefix=prefix):
            if isinstance(adapter, Recomposed):
                yield name, adapter, owner


@dataclass(frozen=True)
class Average:
    """A copy of a model, averaged over its training, that goes along with its recompositions.

    When pairs of the model are fused and born anew, so are those of the average: each fuses its own, and both
    begin the new ones alike. After that an average of the factors and of the ledgers, entry by entry, is what it
    is between two switches.

    Attributes:
        adapters: By the names that they have in the model.
        owners: Likewise, the modules whose weights they correct.
    """

    adapters: dict[str, Recomposed]
    owners: dict[str, Adapted]

    @classmethod
    def of(cls, average: nn.Module, model: Mapping[str, Recomposed]) -> Average:
        """Pair the adapters of an average, or of what is in its ``module``, with those of the model.

        Raises:
            StateError: If it is no copy of the adapted model.
        """
        found = list(seats(average))
        same = len(found) == len(model) and all(
            ours.ledger.B.shape == its.ledger.B.shape and ours is not its
            for ours, (_, its, _) in zip(model.values(), found, strict=True)
        )
        if not same:
            raise StateError(
                f"this {type(average).__name__} is no average of the model",
                why=f"it has {len(found)} adapters that recompose, the model has {len(model)}; they must be "
                "copies of the same shapes",
                remedy="copy the model for it after surgery.apply: ModelEmaV3(model)",
            )
        inner = getattr(average, "module", None)
        attach(inner if isinstance(inner, nn.Module) else average)
        return cls(
            {name: adapter for name, (_, adapter, _) in zip(model, found, strict=True)},
            {name: owner for name, (_, _, owner) in zip(model, found, strict=True)},
        )

    def check(self, name: str, model: Recomposed) -> None:
        """Refuse an average that missed a recomposition.

        Raises:
            StateError: If it stands at other directions than the model.
        """
        if int(self.adapters[name].cursor) != int(model.cursor):
            raise StateError(
                "the average did not follow an earlier recomposition",
                where=name,
                why=f"its adapter stands at direction {int(self.adapters[name].cursor)}, the model's at "
                f"{int(model.cursor)}",
                remedy="load the average's state, too, when a training goes on",
            )

    def follow(self, name: str, places: torch.Tensor) -> None:
        """Recompose the same pairs."""
        adapter = self.adapters[name]
        with gathered(adapter):
            adapter.switch(places.to(adapter.ledger.B.device))

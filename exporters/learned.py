"""An adapted model in two parts: the base, to be served once, and what was learned, many times over."""

from __future__ import annotations

import copy
import hashlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from exporters.errors import ExportError
from exporters.lineage import Lineage
from exporters.low_rank import Factors, by_weight, joined
from exporters.plain import Plain
from exporters.preflight import check_destinations, check_model
from exporters.providers import require_runtime
from exporters.staging import stage
from surgery.operations.fold import fold
from surgery.operations.state import adapted_model
from surgery.operations.undo import undo

SUFFIX = ".onnx_adapter"
A_NAME, B_NAME = "{}_lora_A", "{}_lora_B"


@dataclass(frozen=True)
class Learned:
    """What training changed.

    Attributes:
        factors: Change of each adapted weight, by the weight's name.
        values: What else trained, by its name: a head, norms.
        untrained: The same, as it was in the base.
        base: Identifies the base weights under the adapters.
        adapted: A copy with everything folded in: what file and adapter must compute together.
    """

    factors: dict[str, Factors]
    values: dict[str, Tensor]
    untrained: dict[str, Tensor]
    base: int
    adapted: nn.Module

    def tensors(self) -> dict[str, Tensor]:
        """Everything by the name of the graph input that takes it."""
        found = dict(self.values)
        for name, (b, a) in self.factors.items():
            found |= {A_NAME.format(name): a.T, B_NAME.format(name): b.T}
        return {name: value.detach().float().cpu().contiguous() for name, value in found.items()}

    def write(self, path: Path) -> None:
        """Write ONNX Runtime's adapter format."""
        import onnxruntime as ort

        adapter = ort.AdapterFormat()
        adapter.set_adapter_version(1)
        adapter.set_model_version(self.base)
        values = {n: ort.OrtValue.ortvalue_from_numpy(t.numpy()) for n, t in self.tensors().items()}
        adapter.set_parameters(values)
        adapter.export_adapter(os.fspath(path))


def split(model: nn.Module) -> tuple[Plain, Learned]:
    """Copy an adapted model twice: its base as it was, and everything folded. In fp32 on the CPU.

    Raises:
        StateError: If nothing is applied to it.
        ExportError: If it is in train mode or diverged.
    """
    check_model(model)
    adapted, record = adapted_model(model, "export")
    plan = record.plan
    _check_unmoved(record.moved(adapted))
    factors = {name: joined(adapted, ops) for name, ops in by_weight(plan).items()}
    parameters = dict(adapted.named_parameters())
    values = {name: parameters[name].detach().clone() for name in plan.trained_names}
    lineage = Lineage.of(adapted, plan)
    base = undo(copy.deepcopy(adapted)).cpu().float().eval()
    folded = copy.deepcopy(adapted).cpu().float()
    fold(folded)
    note = f"the adapters of policy {plan.policy.name} are in a file of their own"
    originals = dict(base.named_parameters())
    untrained = {name: originals[name].detach() for name in values}
    identity = _identity(originals, factors)
    learned = Learned(factors, values, untrained, identity, folded.eval())
    return Plain(base, [lineage], (note,)), learned


def write_adapter(
    model: nn.Module, path: str | os.PathLike[str], *, overwrite: bool = False
) -> Path:
    """Write what an adapted model learned, for a base file that ``to_onnx(adapters="runtime")`` made.

    Kinds and ranks may differ from those that the base file was made with; the adapted weights, what
    else trained, and the base weights may not. :class:`exporters.AdapterSession` checks it.

    Args:
        model: An adapted model in eval mode.
        path: The ``.onnx_adapter`` file.
        overwrite: Whether an existing file may be replaced.

    Raises:
        StateError, ExportError: As :func:`exporters.to_onnx`.
    """
    require_runtime()
    target = Path(path).absolute()
    check_destinations([target], overwrite)
    _, learned = split(model)
    with stage(target.parent) as aside:
        learned.write(aside.folder / target.name)
        aside.publish()
    return target


def _check_unmoved(buffers: Iterable[str]) -> None:
    """One base file serves many adapters, and holds the buffers of none."""
    for name in buffers:
        raise ExportError(
            "what training moved here cannot be fed at run time",
            where=name,
            why="it is a buffer (running statistics), of which the base file has one for all adapters",
            remedy="export with adapters='fold', or keep such layers in eval mode while training",
        )


def _identity(parameters: Mapping[str, Tensor], names: Mapping[str, object]) -> int:
    """31 bits of a hash over the base weights under the adapters: the format keeps an integer."""
    digest = hashlib.sha256()
    for name in sorted(names):
        digest.update(name.encode() + parameters[name].detach().contiguous().numpy().tobytes())
    return int.from_bytes(digest.digest()[:4], "big") >> 1


def unhookable(name: str, why: str) -> ExportError:
    """The error for an adapter that has no place in the graph."""
    return ExportError(
        "this adapter cannot be fed at run time",
        where=name,
        why=why,
        remedy="export with adapters='fold', or leave this weight out of the policy",
    )

"""The class swap: an adapted module keeps its identity, weight and keys, and gains adapters.

``module.__class__`` becomes a subclass of what it was, so ``isinstance(module, nn.Linear)`` stays
true, the weight stays in ``module._parameters`` under its name, and the adapters are children of
the module.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from surgery.adapters.base import Adapter
from surgery.anatomy.types import Access, Layout
from surgery.errors import StateError
from surgery.operations.graft import Graft
from surgery.operations.sharding import is_sharded, laid_out_as, whole, write

CHILD = "adapters"
"""Name of the child that holds the adapters."""


class Adapted(nn.Module):
    """Mixed into the class of a module whose weights carry adapters.

    Attributes:
        plain_class: What the module was, and is again after ``fold`` or ``undo``.
        composed: Names of the weights that anybody may read; reading gives base + delta.
        adapters: One ``Graft`` per weight, by parameter name.
    """

    plain_class: ClassVar[type[nn.Module]]
    composed: ClassVar[frozenset[str]]
    adapters: nn.ModuleDict

    def grafts(self) -> Iterator[tuple[str, Graft]]:
        """The grafts with the name of the weight they sit on."""
        for name, graft in self.adapters.items():
            assert isinstance(graft, Graft)
            yield name, graft

    def base(self, name: str) -> nn.Parameter:
        """The base weight itself, also where reading it gives base + delta.

        A replica that ``nn.DataParallel`` makes of the module has it as an attribute and no parameters.

        Raises:
            StateError: If the module has lost it.
        """
        weight = self._parameters.get(name, self.__dict__.get(name))
        if weight is None:
            raise StateError(
                f"an adapted {self.plain_class.__name__} has lost its {name}",
                why="it was parametrised, pruned or replaced after surgery.apply",
                remedy="take that back, or do it before surgery.apply",
            )
        return cast(nn.Parameter, weight)

    def original(self, name: str) -> Tensor:
        """The weight as it was before the operation; on the CPU if an adapter corrects it."""
        kept = dict(self.grafts())[name].original
        return self.base(name).detach() if kept is None else kept

    @torch.no_grad()
    def refresh_base(self) -> None:
        """Recompute corrected weights as round(original + corrections), so no error builds up."""
        for name, graft in self.grafts():
            weight = self.base(name)
            corrected = graft.corrected(weight.dtype, weight.device)
            if corrected is not None:
                write(weight, corrected)

    @torch.no_grad()
    def rounding(self) -> float:
        """|weight - (original + corrections)| / |weight|, Frobenius, of the worst weight: what its dtype took."""
        worst = 0.0
        for name, graft in self.grafts():
            weight = self.base(name)
            wide = torch.float32 if weight.device.type == "mps" else torch.float64
            exact = graft.corrected(wide, weight.device)
            if exact is not None and (size := float(exact.norm())):
                sharded = is_sharded(weight)  # then it need not be gathered to know what it holds
                live = graft.corrected(weight.dtype, weight.device) if sharded else weight
                assert live is not None
                rounded = live.to(weight.dtype).to(exact)
                worst = max(worst, float((rounded - exact).norm()) / size)
        return worst

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        """Write the original weight under the original key: what the base checkpoint holds, in the dtype it had.

        With ``keep_vars`` the caller wants the live parameters themselves.
        """
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name, graft in self.grafts():
            if graft.original is not None and not keep_vars:
                live = destination[prefix + name]
                destination[prefix + name] = laid_out_as(live, graft.original)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *rest: Any, **named: Any
    ) -> None:
        """Take an incoming weight as the new original; ``_after_load`` corrects the live one."""
        incoming = {name: state_dict.get(prefix + name) for name, _ in self.grafts()}
        before = {name: self._known(name, new) for name, new in incoming.items()}
        super()._load_from_state_dict(state_dict, prefix, *rest, **named)
        for name, graft in self.grafts():
            new = incoming[name]
            if new is None or not _alike(new, self.base(name)):
                continue  # torch has said so
            if graft.original is not None:
                self._take_original(name, graft, new)
            if not _same(before[name], self.original(name)):
                graft.read_base(whole(self.original(name)))

    def _known(self, name: str, incoming: Tensor | None) -> Tensor | None:
        """The weight before a load; None if no values come, or they were written into it already."""
        original = self.original(name)
        if incoming is None or _memory(incoming) == _memory(original):
            return None
        return original.clone()

    def _take_original(self, name: str, graft: Graft, incoming: Tensor) -> None:
        assert graft.original is not None
        graft.original = whole(incoming.detach()).to("cpu", graft.original.dtype, copy=True)
        if _memory(self.base(name)) == _memory(incoming):  # assigned, it is the caller's own
            self.base(name).data = incoming.detach().clone()

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickle and deepcopy rebuild the subclass, which no import can find."""
        reduced = super().__reduce_ex__(protocol)
        key = (self.plain_class, self.composed, isinstance(self, AdaptedForward))
        return (_rebuild, key, *reduced[2:])


class AdaptedForward(Adapted):
    """An adapted module whose forward applies its weight: its adapters add to the output."""

    def forward(self, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The plain module's output plus the adapters' deltas, in the output's dtype.

        Who wrapped this forward meanwhile (accelerate's hooks) still calls it when the adapters are gone.
        """
        if not isinstance(self, Adapted):
            return type(self).forward(self, input, *args, **kwargs)
        product = self._product(input) if not (args or kwargs) else None
        if product is not None:
            return product
        output: Tensor = self.plain_class.forward(self, input, *args, **kwargs)
        for name, graft in self.grafts():
            if name not in self.composed:
                output = output + graft.output_delta(input, self).to(output.dtype)
        return output

    def _product(self, input: Tensor) -> Tensor | None:
        """The output in one product, where the module is linear and its adapters are.

        Not for ``Conv1D``: its own kernel differs from this one in the last bit, and adapters that start
        at zero change no bit.
        """
        if len(self.adapters) != 1 or self.composed:
            return None
        ((name, graft),) = self.grafts()
        if graft.layout is not Layout.OUT_IN:
            return None
        return graft.product(input, self.base(name), self._parameters.get("bias"))


def dress(module: nn.Module, grafts: dict[str, Graft]) -> Adapted:
    """Turn a plain module into an adapted one, in place; ``grafts`` by parameter name."""
    composed = frozenset(name for name, graft in grafts.items() if graft.access is Access.PARAMETER)
    children = nn.ModuleDict(grafts)
    children.train(module.training)
    module.__class__ = adapted_class(type(module), composed, len(composed) < len(grafts))
    module.add_module(CHILD, children)
    assert isinstance(module, Adapted)
    hooks: Any = module
    hooks.register_load_state_dict_post_hook(_after_load)
    return module


def strip(module: Adapted) -> None:
    """Give the module its plain class back and take the adapters out; weights are left alone."""
    hooks = module._load_state_dict_post_hooks
    for key in [key for key, hook in hooks.items() if hook is _after_load]:
        del hooks[key]
    module._modules.pop(CHILD, None)
    module.__class__ = module.plain_class  # type: ignore[assignment]


def adapted_modules(model: nn.Module) -> Iterator[tuple[str, Adapted]]:
    """Every adapted module of ``model`` with its path."""
    for path, module in model.named_modules():
        if isinstance(module, Adapted):
            yield path, module


def adapters_of(model: nn.Module) -> Iterator[tuple[str, Adapter]]:
    """Every adapter of ``model`` with its path, ``blocks.0.attn.qkv.adapters.weight.query``."""
    for path, module in adapted_modules(model):
        for name, graft in module.grafts():
            for slot, adapter in graft.adapters():
                yield ".".join(filter(None, (path, CHILD, name, slot))), adapter


_CLASSES: dict[tuple[type[nn.Module], frozenset[str], bool], type[Adapted]] = {}


def adapted_class(
    plain: type[nn.Module], composed: frozenset[str], through_forward: bool
) -> type[Adapted]:
    """The subclass of ``plain`` that carries adapters; one class for each combination."""
    key = plain, composed, through_forward
    if key not in _CLASSES:
        names: dict[str, Any] = {name: _composed_property(name) for name in composed}
        names |= {"plain_class": plain, "composed": composed, "__module__": plain.__module__}
        mixin = AdaptedForward if through_forward else Adapted
        metaclass: Any = type(plain)
        _CLASSES[key] = metaclass(f"Adapted{plain.__name__}", (mixin, plain), names)
    return _CLASSES[key]


def _composed_property(name: str) -> property:
    def read(self: Adapted) -> Tensor:
        base = self.base(name)
        # FSDP2 looks for its own part here; where the model reads the weight, it is whole.
        if is_sharded(base):
            return base
        try:
            return dict(self.grafts())[name].composed(base)
        except AttributeError as error:
            # nn.Module would answer an AttributeError with the bare weight, and nobody would know.
            raise RuntimeError(f"the adapters of {name} cannot be read: {error}") from error

    def store(self: Adapted, weight: Tensor) -> None:
        self.__dict__[name] = weight

    return property(read, store, doc=f"The base {name} plus the adapters' deltas.")


def _rebuild(plain: type[nn.Module], composed: frozenset[str], through_forward: bool) -> Adapted:
    kind = adapted_class(plain, composed, through_forward)
    return kind.__new__(kind)


def _alike(incoming: Tensor, live: Tensor) -> bool:
    """Whether one can be loaded into the other."""
    return incoming.shape == live.shape and is_sharded(incoming) is is_sharded(live)


def _same(before: Tensor | None, now: Tensor) -> bool:
    """Whether a load left the values as they were; without values there is nothing to read."""
    if now.is_meta or (before is not None and before.is_meta):
        return True
    return before is not None and torch.equal(before, now)


def _memory(tensor: Tensor) -> int:
    return (tensor.to_local() if is_sharded(tensor) else tensor).data_ptr()


def _after_load(module: nn.Module, incompatible_keys: Any) -> None:
    if isinstance(module, Adapted):
        module.refresh_base()

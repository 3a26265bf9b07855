"""Finding by role, layer and shape what a checkpoint names otherwise than the model."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace

from torch import nn

from exporters.errors import ExportError
from exporters.peft_checkpoint import PeftCheckpoint
from exporters.peft_names import FUSED, Word, blocks, role_word, tower
from policies.roles import Role
from surgery.anatomy.types import Anatomy, Projection

_REMEDY = "say which it is: names={checkpoint module: model module}"
_THREE = frozenset({Role.QUERY, Role.KEY, Role.VALUE})


class Structure:
    """The projections of one model by tower, block and role.

    A tower is a stack of blocks: what stands before the block number of a module path.

    Args:
        anatomy: What was read from the model's graph.
        known: Its linear layers as wholes, by module path.
    """

    def __init__(self, anatomy: Anatomy, known: Mapping[str, Projection]) -> None:
        self.towers: dict[str, list[Projection]] = defaultdict(list)
        self.loose = [p for p in anatomy.projections if p.layer is None]
        for p in anatomy.projections:
            if p.layer is not None:
                self.towers[tower(p.module)].append(p)
        self.layers = {
            name: sorted({p.layer for p in members if p.layer is not None})
            for name, members in self.towers.items()
        }
        self.known = known

    def find(self, checkpoint: PeftCheckpoint, modules: list[str]) -> dict[str, Projection]:
        """The projection of each module.

        Raises:
            ExportError: If one is nowhere, or could be several; it names them.
        """
        towers = self._pair_towers(checkpoint, modules)
        depths = {theirs: len(self.layers[ours]) for theirs, ours in towers.items()}
        numbers = blocks(modules, depths)
        return {m: self._one(checkpoint, m, towers.get(tower(m)), numbers[m]) for m in modules}

    def find_rest(
        self, model: nn.Module, checkpoint: PeftCheckpoint, names: list[str]
    ) -> dict[str, str | None]:
        """The parameters of a head that has another name: the one head of the same shapes."""
        found: dict[str, str | None] = {}
        for owner, group in _by_owner(names).items():
            wanted = {n.rpartition(".")[2]: tuple(checkpoint.rest[n].shape) for n in group}
            heads = dict.fromkeys(p.module for p in self.loose if p.role is Role.HEAD)
            fit = [h for h in heads if _shapes(model.get_submodule(h)) == wanted]
            if len(fit) != 1:
                why = f"the model has {len(fit)} heads with tensors of the shapes {wanted}"
                remedy = "build the model with the same head (num_labels=..., num_classes=...)"
                raise checkpoint.misfit(f"{owner}.{next(iter(wanted))}", why, remedy)
            found |= {f"{owner}.{leaf}": f"{fit[0]}.{leaf}" for leaf in wanted}
        return found

    def _one(
        self, checkpoint: PeftCheckpoint, module: str, ours: str | None, block: int | None
    ) -> Projection:
        word, shape = role_word(module), checkpoint.shape(module)
        numbered = any(part.isdigit() for part in module.split("."))
        if numbered and (ours is None or block is None):
            why = "nothing tells which of the model's blocks it belongs to"
            raise checkpoint.misfit(module, why, _REMEDY)
        place = self._block(ours, block) if ours is not None and numbered else self.loose
        candidates = self._playing(word, place)
        fit = _of_shape(shape, candidates)
        if word is None and fit:  # a fused weight may be meant as well
            fit += _of_shape(shape, _wholes(place))
        if len(fit) != 1:
            raise self._not_one(checkpoint, module, word, block, fit, candidates)
        return fit[0]

    def _block(self, ours: str, block: int | None) -> list[Projection]:
        layers = self.layers[ours]
        if block is None or block >= len(layers):
            return []
        return [p for p in self.towers[ours] if p.layer == layers[block]]

    def _playing(self, word: Word | None, place: Iterable[Projection]) -> list[Projection]:
        """Of the projections of a block those with the role, all where the name says none."""
        if word != FUSED:
            return [p for p in place if word is None or p.role is word]
        roles: dict[str, set[Role]] = defaultdict(set)
        for p in place:
            roles[p.module].add(p.role)
        return [
            self.known[m] for m, played in roles.items() if played >= _THREE and m in self.known
        ]

    def _pair_towers(self, checkpoint: PeftCheckpoint, modules: list[str]) -> dict[str, str]:
        """The model's tower for each of the checkpoint's: the only one, or the one that shares most words."""
        theirs = dict.fromkeys(tower(m) for m in modules if any(map(str.isdigit, m.split("."))))
        if len(theirs) <= 1 and len(self.towers) == 1:
            return dict.fromkeys(theirs, next(iter(self.towers)))
        found: dict[str, str] = {}
        for name in theirs:
            shared = {ours: len(_words(name) & _words(ours)) for ours in self.towers}
            best = [o for o, count in shared.items() if count and count == max(shared.values())]
            if len(best) != 1 or best[0] in found.values():
                why = f"the model has the towers {', '.join(self.towers) or 'none'}"
                raise checkpoint.misfit(name, why, _REMEDY)
            found[name] = best[0]
        return found

    def _not_one(
        self,
        checkpoint: PeftCheckpoint,
        module: str,
        word: Word | None,
        block: int | None,
        fit: list[Projection],
        candidates: list[Projection],
    ) -> ExportError:
        what = f"{word or 'projection'}" + ("" if block is None else f" of block {block}")
        out, into = checkpoint.shape(module)
        names = ", ".join(
            f"{p.weight_name} {p.in_features} -> {p.out_features}" for p in fit or candidates
        )
        found = f"{len(fit)} of them fit" if fit else "none of that shape"
        why = f"it was read as {what}, {into} -> {out}: the model has {found} ({names or 'no such role'})"
        return checkpoint.misfit(module, why, _REMEDY)


def _of_shape(shape: tuple[int, int], candidates: Iterable[Projection]) -> list[Projection]:
    return [p for p in candidates if (p.out_features, p.in_features) == shape]


def _wholes(place: Iterable[Projection]) -> Iterable[Projection]:
    """Each weight that several projections share, as one."""
    fused = {p.weight_name: p for p in place if not p.whole}
    return [replace(p, out_features=p.weight_out_features) for p in fused.values()]


def _words(path: str) -> set[str]:
    return set(path.replace("_", ".").split("."))


def _by_owner(names: Iterable[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    for name in names:
        found[name.rpartition(".")[0]].append(name)
    return found


def _shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    own = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return {name: tuple(value.shape) for name, value in own.items()}

"""What trains besides the adapters: the words of a policy's ``train`` list as parameter names."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from fnmatch import fnmatchcase

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from policies.errors import nearest
from policies.roles import Role
from surgery.anatomy.types import Anatomy, Projection
from surgery.anatomy.wrappers import tied_names
from surgery.errors import PlanError

_NORMS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, _NormBase)


def resolve_train(
    words: Iterable[str], model: nn.Module, anatomy: Anatomy
) -> tuple[dict[str, tuple[str, ...]], tuple[str, ...]]:
    """Resolve ``head``, ``norms``, ``biases``, ``embeddings`` and globs on parameter names.

    Returns:
        Parameter names by word, in the model's order, and notes on what was left out.

    Raises:
        PlanError: If a glob matches no parameter of the model.
    """
    names = [name for name, p in model.named_parameters() if p.is_floating_point()]
    found: dict[str, tuple[str, ...]] = {}
    notes: list[str] = []
    for word in words:
        finder = _WORDS.get(word)
        chosen = finder(model, anatomy) if finder else _matching(word, names)
        found[word] = tuple(name for name in names if name in chosen)
        reasons = _vocabulary_notes(anatomy) if word == "head" else []
        if not found[word]:
            reasons = reasons or [f"train: {word}: this model has none"]
        notes += reasons
    return found, (*notes, *_tie_notes(model, {name for own in found.values() for name in own}))


def is_norm(module: nn.Module) -> bool:
    """Whether a module normalises: torch's own, or a leaf named so that owns only vectors."""
    if isinstance(module, _NORMS):
        return True
    own = list(module.parameters(recurse=False))
    vectors = bool(own) and all(p.ndim <= 1 for p in own)
    return vectors and "norm" in type(module).__name__.lower() and not list(module.children())


def predicts_vocabulary(head: Projection, anatomy: Anatomy) -> bool:
    """Whether a head maps back to the token table: tied to it, or as many outputs as rows."""
    rows = max(anatomy.embeddings, default=0)
    return bool(head.tied_to) or head.out_features == rows


def _head(model: nn.Module, anatomy: Anatomy) -> set[str]:
    heads = [p for p in anatomy.others if p.role is Role.HEAD]
    paths = [_head_path(model, p, anatomy) for p in heads if not predicts_vocabulary(p, anatomy)]
    return {name for path in paths for name in _names_under(model, path)}


def _head_path(model: nn.Module, head: Projection, anatomy: Anatomy) -> str:
    """The largest part around the head that holds only linears outside the layers, and norms.

    ``classifier`` for RoBERTa's ``classifier.dense`` and ``classifier.out_proj``.
    """
    loose = {p.weight_name.rpartition(".")[0] for p in anatomy.others if p.layer is None}
    path = head.module
    while (parent := path.rpartition(".")[0]) and _only(model.get_submodule(parent), parent, loose):
        path = parent
    return path


def _only(part: nn.Module, path: str, allowed: set[str]) -> bool:
    owners = ((f"{path}.{name}" if name else path, m) for name, m in part.named_modules())
    return all(
        name in allowed or is_norm(module)
        for name, module in owners
        if list(module.parameters(recurse=False))
    )


def _norms(model: nn.Module, anatomy: Anatomy) -> set[str]:
    return _owned(model, is_norm)


def _embeddings(model: nn.Module, anatomy: Anatomy) -> set[str]:
    return _owned(model, lambda module: isinstance(module, nn.Embedding))


def _biases(model: nn.Module, anatomy: Anatomy) -> set[str]:
    vectors = (name for name, p in model.named_parameters() if p.ndim == 1)
    return {name for name in vectors if name.endswith("bias")}


_WORDS: dict[str, Callable[[nn.Module, Anatomy], set[str]]] = {
    "head": _head,
    "norms": _norms,
    "biases": _biases,
    "embeddings": _embeddings,
}


def _owned(model: nn.Module, wanted: Callable[[nn.Module], bool]) -> set[str]:
    return {
        f"{path}.{name}" if path else name
        for path, module in model.named_modules()
        if wanted(module)
        for name, _ in module.named_parameters(recurse=False)
    }


def _names_under(model: nn.Module, path: str) -> Iterator[str]:
    for name, _ in model.get_submodule(path).named_parameters():
        yield f"{path}.{name}" if path else name


def _matching(glob: str, names: list[str]) -> set[str]:
    matched = {name for name in names if fnmatchcase(name, glob)}
    if not matched:
        near = nearest(glob, (*_WORDS, *names))
        raise PlanError(
            f"train: {glob!r} matches no parameter",
            why=f"it is none of {', '.join(_WORDS)}, and as a glob it fits no parameter name",
            remedy=f"did you mean {near!r}?" if near else "look at model.named_parameters()",
        )
    return matched


def _vocabulary_notes(anatomy: Anatomy) -> list[str]:
    heads = [p for p in anatomy.others if p.role is Role.HEAD and predicts_vocabulary(p, anatomy)]
    return [
        f"{p.weight_name} predicts the vocabulary ({p.out_features} words): left frozen"
        for p in heads
    ]


def _tie_notes(model: nn.Module, trained: set[str]) -> list[str]:
    if not trained:
        return []
    tied = [group for group in tied_names(model) if group[0] in trained]
    return [f"{group[0]} trains, and is also {', '.join(group[1:])}" for group in tied]

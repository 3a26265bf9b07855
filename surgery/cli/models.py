"""From ``timm:NAME``, ``hf:FOLDER-or-ID`` or ``module.path:factory`` to a model in eval mode."""

from __future__ import annotations

import importlib
import pickle
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from policies.errors import nearest
from surgery.cli.options import pairs
from surgery.cli.output import note, working
from surgery.errors import SurgeryError, told_at_length, told_by

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Source:
    """Where a model comes from.

    Attributes:
        kind: ``timm``, ``hf``, or the module of a factory.
        name: The model, folder, ID or factory.
        changes: Arguments for whoever builds it.
        pretrained: Whether published weights are wanted; None: those that are on this disk.
        checkpoint: A state dict to load.
        auto: The transformers class to build, whatever the configuration names; its head may be new.
    """

    kind: str
    name: str
    changes: dict[str, Any]
    pretrained: bool | None = None
    checkpoint: Path | None = None
    auto: str | None = None

    @classmethod
    def parse(
        cls,
        text: str,
        settings: Iterable[str] | None,
        pretrained: bool | None,
        checkpoint: Path | None,
    ) -> Source:
        """Take the words of the command line apart.

        Raises:
            typer.BadParameter: If they make no sense.
        """
        kind, colon, name = text.partition(":")
        if not (kind and colon and name):
            raise typer.BadParameter(
                f"{text!r} is none of timm:NAME, hf:FOLDER-or-ID, module.path:factory"
            )
        if pretrained and kind not in ("timm", "hf"):
            raise typer.BadParameter("--pretrained is for timm: and hf:, a factory decides itself")
        if pretrained and checkpoint:
            raise typer.BadParameter("--pretrained and --checkpoint exclude each other")
        return cls(kind, name, pairs(settings), pretrained, checkpoint)

    def build(self, *, meta: bool = False, weights_matter: bool = False) -> nn.Module:
        """The model, in eval mode; random weights are the same in every run.

        Args:
            meta: Build it on the meta device, without weights.
            weights_matter: Say so on stderr if the weights are random.

        Raises:
            SurgeryError: If it cannot be built, or the checkpoint does not fit.
        """
        if meta and (self.checkpoint or self.pretrained):
            raise typer.BadParameter(
                "--meta holds no weights; leave out --pretrained, --checkpoint"
            )
        with working(f"building {self.kind}:{self.name}"):
            import torch

            torch.manual_seed(0)
            with torch.device("meta" if meta else "cpu"):
                model = _guarded(self, meta)
            if self.checkpoint:
                _load_state(model, self.checkpoint)
        if weights_matter and self.random:
            note("the weights are random; --pretrained or --checkpoint FILE brings real ones")
        return model.eval()

    @property
    def random(self) -> bool:
        """Whether nobody gave the model weights (a factory may have)."""
        if self.kind not in ("timm", "hf") or self.checkpoint or self.pretrained:
            return False
        return self.kind == "timm" or self.pretrained is False or not has_weights(Path(self.name))


def has_weights(folder: Path) -> bool:
    """Whether a transformers folder holds more than its configuration."""
    return any(any(folder.glob(glob)) for glob in ("*.safetensors", "pytorch_model*.bin"))


def _guarded(source: Source, meta: bool) -> nn.Module:
    builders = {"timm": _from_timm, "hf": _from_transformers}
    build = builders.get(source.kind, _from_factory)
    try:
        return build(source, meta)
    except (SurgeryError, typer.BadParameter):
        raise
    except Exception as error:  # whatever a library or a user's factory raises
        raise SurgeryError(
            "the model cannot be built",
            where=f"{source.kind}:{source.name}",
            why=told_by(error),
            remedy="leave out --meta" if meta else _remedy(error),
        ) from error


def _remedy(error: Exception) -> str:
    if type(error).__name__ == "SafetensorError":
        return "copy or download the weights again: the file is cut short or damaged"
    return "check the name, --set, and the connection"


def _from_timm(source: Source, meta: bool) -> nn.Module:
    import timm

    bare = source.name.partition(".")[0]
    if "/" not in source.name and not timm.is_model(bare):
        names = timm.list_models()
        longer = next((name for name in names if name.startswith(f"{bare}_")), None)
        raise _unknown(source, longer or nearest(bare, names), "timm.list_models() has them all")
    pretrained = bool(source.pretrained)
    model: nn.Module = timm.create_model(source.name, pretrained=pretrained, **source.changes)
    return model


def _from_transformers(source: Source, meta: bool) -> nn.Module:
    import transformers

    folder = Path(source.name).expanduser()
    if source.name[0] in "./~" and not folder.is_dir():
        raise _unknown(source, None, "there is no such folder")
    place = str(folder) if folder.is_dir() else source.name
    config, unused = transformers.AutoConfig.from_pretrained(
        place, return_unused_kwargs=True, **source.changes
    )
    if unused:
        raise typer.BadParameter(f"the configuration has no {', '.join(unused)}")
    name = source.auto or (config.architectures or ["AutoModel"])[0]
    kind = getattr(transformers, name, None)
    if kind is None:
        raise _unknown(source, None, f"transformers has no class {name!r}")
    if meta or not (source.pretrained or (source.pretrained is None and has_weights(folder))):
        make = kind.from_config if name.startswith("AutoModel") else kind
        return make(config)  # type: ignore[no-any-return]
    new_head = {"ignore_mismatched_sizes": True} if source.auto else {}
    return kind.from_pretrained(place, config=config, **new_head)  # type: ignore[no-any-return]


def _from_factory(source: Source, meta: bool) -> nn.Module:
    from torch import nn

    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        module = importlib.import_module(source.kind)
    except ModuleNotFoundError as error:
        raise _unknown(source, None, f"there is no module {error.name!r} here") from error
    factory = getattr(module, source.name, None)
    if factory is None:
        near = nearest(source.name, vars(module))
        raise _unknown(source, near, f"{source.kind} has no {source.name!r}")
    model = factory(**source.changes)
    if not isinstance(model, nn.Module):
        raise _unknown(source, None, f"it returned {type(model).__name__}, not a torch module")
    return model


def _unknown(source: Source, near: str | None, why: str) -> SurgeryError:
    return SurgeryError(
        "there is no such model",
        where=f"{source.kind}:{source.name}",
        why=why,
        remedy=f"did you mean {near!r}?" if near else "check the spelling and the folder",
    )


def _load_state(model: nn.Module, path: Path) -> None:
    import safetensors.torch
    import torch

    try:
        state: dict[str, Any]
        if path.suffix == ".safetensors":
            state = dict(safetensors.torch.load_file(path))
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
        for key in ("state_dict", "model"):
            state = state[key] if isinstance(state.get(key), dict) else state
        model.load_state_dict(state)
    except OSError as error:
        raise _unloaded(
            path, f"{type(error).__name__}: {error.strerror}", "check the path"
        ) from error
    except pickle.UnpicklingError as error:  # torch's text advises to unpickle all the same
        why = "it is no state dict, or holds more than tensors"
        raise _unloaded(
            path, why, "save a plain state dict: torch.save(model.state_dict(), path)"
        ) from error
    except Exception as error:  # truncated, another model's: each library has its own
        why = told_at_length(error)
        remedy = "give the state dict of this very model; --set num_classes=N fits the head"
        raise _unloaded(path, why, remedy) from error


def _unloaded(path: Path, why: str, remedy: str) -> SurgeryError:
    return SurgeryError("the checkpoint cannot be loaded", where=str(path), why=why, remedy=remedy)

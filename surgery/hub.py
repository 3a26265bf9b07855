"""Folders as the Hugging Face Hub keeps them: an adapter file, its policy, and a model card that is filled in."""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any, Literal, TypeVar

import jinja2
from huggingface_hub import HfApi, ModelCard, ModelCardData, hf_hub_download
from torch import nn

from surgery.anatomy.render import ranges
from surgery.anatomy.types import Anatomy
from surgery.atomic import replace_file
from surgery.checkpoint import load, save
from surgery.errors import CheckpointError, told_at_length
from surgery.operations.plan import Plan
from surgery.operations.state import adapted_model
from surgery.operations.summary import summary

ADAPTER, POLICY, CARD = "adapter.safetensors", "policy.yaml", "README.md"
_MARK = "<!-- written by model-surgery; take this line out to keep the card as you edit it -->"
_TEMPLATE = Path(__file__).with_name("card.md.jinja")

Model = TypeVar("Model", bound=nn.Module)


def save_pretrained(
    model: nn.Module, folder: str | os.PathLike[str], *, base: str | None = None
) -> Path:
    """Write an adapted model's adapters to a folder that the Hub understands.

    ``adapter.safetensors`` (what :func:`surgery.save` writes), ``policy.yaml`` and ``README.md``, the
    model card: base, policy, adapters, trained share, how to load. Each file is there whole or not at all. A
    ``README.md`` that somebody wrote or edited stays.

    Args:
        model: An adapted model.
        folder: Made if it is not there.
        base: What the card calls the base model. None: what timm or transformers call it, whatever its weights are,
            unless that is a path of this machine.

    Returns:
        The folder.

    Raises:
        StateError: If nothing is applied to the model.
        CheckpointError: If the folder cannot be written.
    """
    plain, record = adapted_model(model, "save_pretrained")
    target = Path(folder)
    content = {POLICY: str(record.plan.policy)}
    if _ours(target / CARD):
        content[CARD] = str(model_card(model, base=base or base_of(plain)))
    try:
        target.mkdir(parents=True, exist_ok=True)
        save(model, target / ADAPTER)
        for name, text in content.items():
            replace_file(target / name, text.encode())
    except OSError as error:
        raise CheckpointError(
            "the folder cannot be written",
            where=str(target),
            why=f"{type(error).__name__}: {error.strerror or error}",
            remedy="name a folder that you may write to",
        ) from error
    return target


def load_pretrained(
    model: Model,
    source: str | os.PathLike[str],
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    anatomy: Anatomy | None = None,
    example_inputs: Any = None,
    base: Literal["refuse", "warn"] = "refuse",
) -> Model:
    """Put the adapters of a folder, or of a repository of the Hub, onto their base model.

    Args:
        model: The plain base model, built as for training.
        source: A folder that :func:`save_pretrained` wrote, or a repository (``user/name``).
        revision: Branch, tag or commit of the repository.
        token: For private repositories; None uses the one that is stored.
        anatomy, example_inputs, base: As for :func:`surgery.load`.

    Returns:
        The same model.

    Raises:
        CheckpointError: There is no such folder or repository, or its adapters do not fit the model.
        PolicyError, StateError: As for :func:`surgery.load`.
    """
    file = _local(source) or _downloaded(os.fspath(source), revision, token)
    return load(model, file, anatomy=anatomy, example_inputs=example_inputs, base=base)


def push_to_hub(
    model: nn.Module,
    repo_id: str,
    *,
    base: str | None = None,
    private: bool = False,
    revision: str | None = None,
    commit_message: str = "Add adapters",
    api: HfApi | None = None,
) -> str:
    """Upload what :func:`save_pretrained` writes; a card that the repository has stays, unless it is ours.

    Args:
        model: An adapted model.
        repo_id: ``user/name``; made if it is not there.
        base: As for :func:`save_pretrained`.
        private: Whether a new repository is private.
        revision: Branch to commit to.
        commit_message: First line of the commit.
        api: With a token or an endpoint of its own; None uses what is stored.

    Returns:
        The address of the commit.

    Raises:
        StateError: If nothing is applied to the model.
        huggingface_hub.errors.HfHubHTTPError: What the Hub refuses.
    """
    api = api or HfApi(library_name="model-surgery")
    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(model, folder, base=base)
        repo = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        kept = [CARD] if _has_own_card(api, repo, revision) else None
        done = api.upload_folder(
            repo_id=repo,
            folder_path=folder,
            revision=revision,
            commit_message=commit_message,
            ignore_patterns=kept,
        )
    return str(done.commit_url)


def model_card(model: nn.Module, *, base: str | None = None) -> ModelCard:
    """The card of an adapted model.

    Raises:
        StateError: If nothing is applied to the model.
    """
    made = summary(model)
    tags = ["model-surgery", *dict.fromkeys(o.adapter.kind for o in made.plan.operations)]
    data = ModelCardData(base_model=base, library_name="model-surgery", tags=tags)
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    text = environment.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(
        mark=_MARK, base=base, plan=made.plan, summary=made, rows=_rows(made.plan), file=ADAPTER
    )
    return ModelCard(f"---\n{data.to_yaml()}\n---\n{text}")


def base_of(model: nn.Module) -> str | None:
    """What a model was loaded from, as the Hub names it; None if it does not tell, or tells a path."""
    name = getattr(getattr(model, "config", None), "name_or_path", None)
    source = getattr(model, "pretrained_cfg", None)
    if not name and isinstance(source, dict):
        name = source.get("hf_hub_id")
    is_path = not isinstance(name, str) or os.path.isabs(name) or Path(name).exists()
    return None if is_path or not name or name[0] in ".~" else str(name)


def _rows(plan: Plan) -> list[dict[str, object]]:
    """One line of the card for each role and adapter."""
    counts = Counter((o.projection.role, o.adapter.kind, o.adapter.rank) for o in plan.operations)
    return [
        {
            "role": role.value,
            "adapter": kind,
            "rank": rank,
            "count": count,
            "layers": ranges(
                [
                    o.projection.layer
                    for o in plan.operations
                    if (o.projection.role, o.adapter.kind, o.adapter.rank) == (role, kind, rank)
                ]
            ),
        }
        for (role, kind, rank), count in counts.items()
    ]


def _ours(card: Path) -> bool:
    """Whether a card may be written: there is none, or it is one of ours that nobody claimed."""
    return not card.exists() or _MARK in card.read_text(encoding="utf-8", errors="replace")


def _local(source: str | os.PathLike[str]) -> Path | None:
    folder = Path(source)
    if folder.is_dir() or isinstance(source, os.PathLike) or os.fspath(source)[:1] in "./~":
        return folder.expanduser() / ADAPTER
    return None


def _downloaded(repo_id: str, revision: str | None, token: str | bool | None) -> Path:
    try:
        return Path(hf_hub_download(repo_id, ADAPTER, revision=revision, token=token))
    except Exception as error:  # the Hub, the connection and the cache fail in many ways
        raise CheckpointError(
            "the adapters cannot be downloaded",
            where=f"{repo_id}: {ADAPTER}",
            why=told_at_length(error),
            remedy="check the name, the connection and the token; a folder must exist",
        ) from error


def _has_own_card(api: HfApi, repo_id: str, revision: str | None) -> bool:
    if not api.file_exists(repo_id, CARD, revision=revision):
        return False
    return not _ours(Path(api.hf_hub_download(repo_id, CARD, revision=revision)))

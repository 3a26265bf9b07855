"""One base file in memory, many adapters, one of them or none for each call."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from exporters.errors import ExportError
from exporters.runtime import SessionOptions, base_of, open_session

if TYPE_CHECKING:
    import onnxruntime


class AdapterSession:
    """Runs a file that ``to_onnx(adapters="runtime")`` made.

    ONNX Runtime takes adapters too, but stays silent where it should not: with two active adapters it
    uses the first, a partial one leaves the other weights at their defaults, IO binding ignores
    them, and nothing notices an adapter of another base. Here an adapter fits wholly or is refused, a
    call has one or none, and there is no IO binding.

    Args:
        path: The base file.
        adapters: ``.onnx_adapter`` files by name.
        options: Instead of those that the file recommends.
        threads: Intra-op threads; None leaves the choice to ONNX Runtime.

    Raises:
        ExportError: If the file takes no adapters, or an adapter does not fit it.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        adapters: Mapping[str, str | os.PathLike[str]] | None = None,
        *,
        options: SessionOptions | None = None,
        threads: int | None = None,
    ) -> None:
        self._session = open_session(path, options=options, threads=threads)
        self._base = base_of(path)
        self._taken = {v.name: v.shape for v in self._session.get_overridable_initializers()}
        if self._base is None or not self._taken:
            raise ExportError(
                "this file takes no adapters",
                where=os.fspath(path),
                remedy="export an adapted model with to_onnx(model, path, adapters='runtime')",
            )
        self._adapters: dict[str, onnxruntime.LoraAdapter] = {}
        for name, file in (adapters or {}).items():
            self.add(name, file)

    @property
    def names(self) -> tuple[str, ...]:
        """The adapters that can be asked for."""
        return tuple(self._adapters)

    def add(self, name: str, path: str | os.PathLike[str]) -> None:
        """Load one more adapter; a name that is taken is given the new one.

        Raises:
            ExportError: If the file is missing or broken, or was made for another base.
        """
        import onnxruntime as ort

        try:
            content = ort.AdapterFormat.read_adapter(os.fspath(path))
            found = {n: tuple(v.shape()) for n, v in content.get_parameters().items()}
            adapter = ort.LoraAdapter()
            adapter.Load(os.fspath(path))
        except Exception as error:  # the runtime raises plain RuntimeErrors and worse
            raise _unfit(path, f"it cannot be read: {error}", "write it again") from error
        if problem := self._problem(found, content.get_model_version()):
            raise _unfit(path, problem, "write it from a model with the same base and policy")
        self._adapters[name] = adapter

    def run(self, feeds: Mapping[str, Any], adapter: str | None = None) -> list[Any]:
        """Run the base with one adapter, or without.

        Args:
            feeds: Arrays by input name.
            adapter: One of :attr:`names`; None is the base alone.

        Returns:
            The outputs, in the order of the graph.

        Raises:
            ExportError: If there is no adapter of that name.
        """
        import onnxruntime as ort

        options = ort.RunOptions()
        # The options point at the adapter without holding it, and another thread may add its successor meanwhile.
        active = None if adapter is None else self._loaded(adapter)
        if active is not None:
            options.add_active_adapter(active)
        outputs: list[Any] = self._session.run(None, dict(feeds), options)
        del active
        return outputs

    def _loaded(self, adapter: str) -> Any:
        if adapter in self._adapters:
            return self._adapters[adapter]
        known = ", ".join(self._adapters) or "none"
        raise ExportError(f"no adapter {adapter!r} is loaded", remedy=f"loaded: {known}")

    def _problem(self, found: Mapping[str, tuple[int, ...]], base: int) -> str | None:
        """What keeps an adapter from fitting, if anything does."""
        if odd := sorted(self._taken.keys() ^ found.keys()):
            side = "does not fill" if odd[0] in self._taken else "brings a value for"
            return f"it {side} {odd[0]}" + (f" and {len(odd) - 1} more" if odd[1:] else "")
        for name, shape in found.items():
            wanted = self._taken[name]
            fits = len(wanted) == len(shape) and all(
                w == s for w, s in zip(wanted, shape, strict=False) if isinstance(w, int)
            )
            if not fits:
                return f"{name} has shape {shape}, the file takes {tuple(wanted)}"
        return None if base == self._base else "it was trained on other base weights"


def _unfit(path: str | os.PathLike[str], why: str, remedy: str) -> ExportError:
    what = "this adapter does not fit the file"
    return ExportError(what, where=os.fspath(path), why=why, remedy=remedy)

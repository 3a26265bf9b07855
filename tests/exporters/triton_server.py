"""The tritonserver binary that a PyPI package carries: fetched once, started on a loopback port."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import onnxruntime

from examples.assets import cache_folder, pin

_SECONDS = 60


@dataclass(frozen=True)
class Server:
    """A server that has read its repository."""

    url: str

    def get(self, path: str, body: bytes | None = None) -> str:
        with urllib.request.urlopen(f"{self.url}/{path}", body, timeout=10) as answer:
            return answer.read().decode()

    def ready(self, model: str) -> bool:
        return any(m["name"] == model and m.get("state") == "READY" for m in self.index())

    def reason(self, model: str) -> str:
        """Why a model could not be loaded; nothing for one whose configuration could not be read."""
        return next((m.get("reason", "") for m in self.index() if m["name"] == model), "")

    def index(self) -> list[dict[str, str]]:
        return json.loads(self.get("v2/repository/index", b"{}"))


@contextlib.contextmanager
def running(repository: Path) -> Iterator[Server]:
    """Start the server on a free loopback port, and stop it at the end."""
    root = _unpacked()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    binary = root / "pytriton/tritonserver/bin/tritonserver"
    command = [
        str(binary), f"--model-repository={repository}", "--http-address=127.0.0.1",
        f"--http-port={port}", "--allow-grpc=false", "--allow-metrics=false",
        "--exit-on-error=false", f"--backend-directory={root}/pytriton/tritonserver/backends",
    ]  # fmt: skip
    libraries = str(Path(onnxruntime.__file__).parents[1])
    here = {
        "LD_LIBRARY_PATH": f"{root}/nvidia_pytriton.libs",
        "PYTHONPATH": libraries,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, env={**os.environ, **here}, stdout=log, stderr=log)
        try:
            server = Server(f"http://127.0.0.1:{port}")
            _wait(server, process)
            yield server
        finally:
            process.terminate()
            process.wait(_SECONDS)


def _wait(server: Server, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + _SECONDS
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(urllib.error.URLError, ConnectionError):
            server.get("v2/health/live")
            return
        time.sleep(0.2)
    raise AssertionError(f"tritonserver did not start: exit code {process.poll()}")


def _unpacked() -> Path:
    """The package, downloaded by hash and unpacked into the cache of the examples."""
    requirement, digest = pin("nvidia-pytriton")
    root = cache_folder() / requirement.replace("==", "-")
    if root.exists():
        return root
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root.parent) as folder:
        pins = Path(folder) / "pins.txt"
        pins.write_text(f"{requirement} --hash=sha256:{digest}\n")
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"]
        subprocess.run([*pip, "-r", str(pins), "-d", folder], check=True)
        unpacked = Path(folder) / "unpacked"
        with zipfile.ZipFile(next(Path(folder).glob("*.whl"))) as wheel:
            wheel.extractall(unpacked)
        _prepare(unpacked / "pytriton/tritonserver")
        os.replace(unpacked, root)
    return root


def _prepare(home: Path) -> None:
    """The Python backend looks for the stub of this Python beside itself; wheels lose the mode bits."""
    stub = "triton_python_backend_stub"
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    shutil.copyfile(home / "python_backend_stubs" / version / stub, home / "backends/python" / stub)
    for file in (home / "bin/tritonserver", home / "backends/python" / stub):
        file.chmod(file.stat().st_mode | stat.S_IXUSR)

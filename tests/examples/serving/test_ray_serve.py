"""Both deployments in a real Ray on this machine. Slow, and only where Ray is installed."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

pytest.importorskip("ray")
pytestmark = pytest.mark.slow


def test_both_deployments_answer_under_load(tmp_path):
    from benchmarks.serving import deployed, exported, post

    files = exported(tmp_path, small=True)
    x = np.random.default_rng(0).standard_normal((12, 3, 32, 32)).astype(np.float32)
    with deployed(files) as urls, ThreadPoolExecutor(6) as pool:
        calls = [{"inputs": {"x": row[None].tolist()}} for row in x]
        plain = list(pool.map(lambda body: post(urls["file"], body), calls))
        named = [{**body, "adapter": ("cats", "dogs", None)[i % 3]} for i, body in enumerate(calls)]
        adapted = list(pool.map(lambda body: post(urls["adapters"], body), named))
    for i, (row, answer) in enumerate(zip(x, adapted, strict=True)):
        expected = files.reference.run({"x": row[None]}, ("cats", "dogs", None)[i % 3])[0]
        np.testing.assert_allclose(answer["outputs"][0], expected, atol=1e-4)
    expected = files.plain({"x": x})[0]
    np.testing.assert_allclose([a["outputs"][0][0] for a in plain], expected, atol=1e-4)

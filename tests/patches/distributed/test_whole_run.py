"""Upstream's own launch, actors and loops, patched, on a real Ray, with a stand-in of vLLM."""

from __future__ import annotations

import json
import os
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import torch

from coati_ext.testing import has_distributed
from helpers.interpreters import free_port

pytestmark = [
    pytest.mark.generations("G4"),
    pytest.mark.once("coati.distributed is of HEAD, which needs the newest stack"),
    pytest.mark.slow,
]
HERE = Path(__file__).parent / "whole_run"


@pytest.fixture
def verifier():
    """A code verifier for which a program is right that begins with an "a"; what it was asked."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            given = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append(given["generation"])
            right = asked[-1].split()[1:2] and asked[-1].split()[1].startswith("a")
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps({"result": [int(bool(right))], "metadata": [{}]}).encode())

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/check", asked
    server.shutdown()
    server.server_close()


def test_a_whole_run_trains_the_policy_that_sampled(upstream, python, tmp_path, verifier):
    pytest.importorskip("ray", reason="Ray is not installed")
    if not has_distributed() or not (upstream.package / "distributed" / "comm.py").exists():
        pytest.skip("coati.distributed is not here, or is the stand-in, which launches nothing")
    address, asked = verifier
    paths = [python.environment()["PYTHONPATH"], str(HERE), os.environ.get("PYTHONPATH", "")]
    given = {"PYTHONPATH": os.pathsep.join(paths), "RAY_AUTH_MODE": "disabled"}
    python(str(HERE / "script.py"), address, PORT=free_port(), **given)
    assert len(asked) == 6 * 4
    lines = [line.split() for line in (tmp_path / "gaps").read_text().splitlines()]
    gaps, advantages = zip(*((float(gap), float(advantage)) for gap, advantage in lines))
    assert len(gaps) == 6 * 4 / 2
    # Each update's answers were sampled by the policy as it was, the last update's too.
    assert max(gaps) < 1e-5
    assert max(advantages) > 0.1
    (saved,) = (tmp_path / "saved").glob("*/modeling/*.bin")
    before = load(tmp_path / "model" / "model.safetensors")
    after = torch.load(saved)
    assert not after["lm_head.weight"].equal(before["lm_head.weight"])


def load(file):
    from safetensors.torch import load_file

    return load_file(str(file))

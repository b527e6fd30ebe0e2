from __future__ import annotations

from typing import Any, Optional

import requests


def check_correctness_code_api(
    in_outs: Optional[dict],
    generation: Any,
    timeout: int = 10,
    debug: bool = True,
    url: str = "http://localhost:8000/check_correctness",
):
    payload = {"in_outs": in_outs, "generation": generation, "timeout": timeout, "debug": debug}
    response = requests.post(url, json=payload)
    if response.status_code == 200:
        found = response.json()
        return found["result"], found["metadata"]
    return [-1] * len(in_outs["inputs"]), {}

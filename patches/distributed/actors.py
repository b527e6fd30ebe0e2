"""The constructors that every actor runs: both sides patched, and what the user said handed on."""

from __future__ import annotations

import inspect
from functools import partial
from typing import Any, Callable

from coati_ext.errors import RefusedError

_UPSTREAMS = ("coati.distributed.grpo_consumer", "coati.distributed.zero_bubble.grpo_consumer")


def construct_consumer(original: Callable[..., None], self: Any, *args: Any, **kwargs: Any) -> None:
    """Construct a consumer, whose class Ray has brought here from the driver.

    Raises:
        RefusedError: the driver is not patched, so that half of this process would be.
    """
    if inspect.unwrap(type(self).step).__module__ in _UPSTREAMS:
        raise RefusedError(
            f"distributed: the actor {type(self).__name__} came unpatched from the driver, while "
            "this worker is patched: enable coati-ext in the driver too, as `coati-ext run` does, "
            "or set COATI_EXT=0 here"
        )
    original(self, *args, **kwargs)


def construct_producer(original: Callable[..., None], self: Any, *args: Any, **kwargs: Any) -> None:
    """Construct a producer, whose rewards ask the code verifier at the user's address.

    Upstream's reward function has another name for it, and is not given it at all in an evaluation
    or in ``zero_bubble``.
    """
    original(self, *args, **kwargs)
    address = self.grpo_config.get("code_verifier_api_url")
    if address and self.grpo_config["reward_fn_type"] == "code":
        self.reward_model.kwargs["url"] = address
        self.evaluation_function = partial(self.evaluation_function, url=address)

"""``VLLMInferenceBackend.generate``. Letters: B prompts, P prompt columns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Callable, Dict, List

from coati_ext.rollout.models import attributes

if TYPE_CHECKING:
    from torch import Tensor


def generate(
    original: Callable[..., Dict[str, Tensor]],
    self: Any,
    input_ids: Tensor,
    attention_mask: Tensor,
    **kwargs: Any,
) -> Dict[str, Tensor]:
    """Sample answers to left-padded prompts (B, P), of which vLLM is given every real token.

    Upstream leaves out the first tokens that look like pads, such as a BOS where ``bos == pad``.
    """
    lengths = attention_mask.sum(dim=1).tolist()
    rows = input_ids.tolist()
    prompts = [row[len(row) - length :] for row, length in zip(rows, lengths)]
    with attributes(self, llm=_Prompted(self.llm, prompts)):
        return original(self, input_ids, attention_mask, **kwargs)


class _Prompted:
    """A vLLM that answers these prompts, whatever it is given."""

    def __init__(self, llm: Any, prompts: List[List[int]]) -> None:
        self.llm = llm
        self.prompts = prompts

    def generate(self, prompt_token_ids: Any, **kwargs: Any) -> Any:
        """What vLLM returns for the prompts."""
        return self.llm.generate(prompt_token_ids=self.prompts, **kwargs)

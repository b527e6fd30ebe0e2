from __future__ import annotations

from typing import Any, Optional

import torch
import torch.nn as nn
from transformers import AutoModel, PretrainedConfig


class BaseModel(nn.Module):
    """A transformers backbone without a language-model head, as `.model`."""

    def __init__(
        self,
        pretrained: Optional[str] = None,
        config: Optional[PretrainedConfig] = None,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        if pretrained is not None:
            given = {} if config is None else {"config": config}
            self.model = AutoModel.from_pretrained(pretrained, **given, **kwargs)
        elif config is not None:
            self.model = AutoModel.from_config(config, **kwargs)
        else:
            raise ValueError("give `pretrained` or `config`")
        self.config = self.model.config
        # A dry run tells the width for any family.
        token = torch.zeros((1, 1), dtype=torch.long, device=self.model.device)
        self.last_hidden_state_size = self.model(token).last_hidden_state.size(-1)

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> Any:
        return self.model.resize_token_embeddings(*args, **kwargs)

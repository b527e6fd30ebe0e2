from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from typing import Any, Dict, List, Optional

from transformers import PreTrainedTokenizer

from .utils import is_rank_0


@dataclass
class Conversation:
    """Turns of a chat, and the tokenizer whose template renders them."""

    tokenizer: PreTrainedTokenizer
    system_message: Optional[str]
    chat_template: str
    stop_ids: List[int]
    end_of_assistant: str
    messages: List[Dict[str, str]] = field(default_factory=list, init=False)

    roles = ("user", "assistant")

    @classmethod
    def from_config(cls, tokenizer: PreTrainedTokenizer, config: Dict[str, Any]) -> Conversation:
        tokenizer.chat_template = config["chat_template"]
        names = ("system_message", "chat_template", "stop_ids", "end_of_assistant")
        return cls(tokenizer, *(config[name] for name in names))

    def clear(self) -> None:
        self.messages = []

    def append_message(self, role: str, message: str) -> None:
        assert role in self.roles, role
        self.messages.append({"role": role, "content": message})

    def get_prompt(self, length: Optional[int] = None, add_generation_prompt: bool = False) -> Any:
        turns = self.messages if length is None else self.messages[:length]
        if self.system_message is not None:
            turns = [{"role": "system", "content": self.system_message}, *turns]
        return self.tokenizer.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=add_generation_prompt
        )


def setup_conversation_template(
    tokenizer: PreTrainedTokenizer,
    chat_template_config: Optional[Dict[str, Any]] = None,
    save_path: Optional[str] = None,
) -> Conversation:
    """The conversation that a configuration describes, which is saved with its template."""
    if "chat_template" not in chat_template_config:
        if "end_of_assistant" not in chat_template_config:
            raise ValueError("the end_of_assistant is missing")
        if tokenizer.chat_template is None:
            raise ValueError("the chat_template is missing, and the tokenizer has none")
        chat_template_config["chat_template"] = tokenizer.chat_template
    if save_path is not None and is_rank_0():
        os.makedirs(os.path.dirname(save_path), exist_ok=True)
        with open(save_path, "w", encoding="utf8") as stream:
            json.dump(chat_template_config, stream, indent=4, ensure_ascii=False)
    return Conversation.from_config(tokenizer, chat_template_config)

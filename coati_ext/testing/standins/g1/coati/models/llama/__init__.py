from .llama_actor import LlamaActor
from .llama_critic import LlamaCritic
from .llama_rm import LlamaRM

__all__ = ["LlamaActor", "LlamaCritic", "LlamaRM"]

"""The models that are measured, in the classes of the coati that can be imported."""

from __future__ import annotations

from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Dict, Iterator, Optional

import torch
import torch.distributed as dist
import transformers
from torch import nn

from coati_ext.bench.lengths import Vocabulary
from coati_ext.errors import InputError
from coati_ext.results import hidden_width
from coati_ext.rollout.models import layers_of, without_dropout
from coati_ext.testing import cpu_only
from coati_ext.testing.training import has_strategies


class Source:
    """A configuration, and weights if there are any; models of it never drop anything.

    Args:
        path: a Hugging Face folder or a configuration file; by default a small LLaMA.
        device: where the models are.

    Raises:
        InputError: the path holds no configuration.
    """

    def __init__(self, path: Optional[Path], device: torch.device) -> None:
        self.device = device
        self.config = _small_llama() if path is None else _config(path)
        folder = path if path is not None and path.is_dir() else None
        weights = folder is not None and any(
            it.suffix in (".safetensors", ".bin") for it in folder.iterdir()
        )
        self._weights = folder if weights else None
        self._dtype = getattr(self.config, "torch_dtype", None) or torch.float32
        self._folder = folder

    @property
    def words(self) -> Vocabulary:
        """The tokens that rows are made of."""
        eos = self.config.eos_token_id
        eos = eos[0] if isinstance(eos, (list, tuple)) else eos
        eos = 2 if eos is None else eos
        pad = self.config.pad_token_id
        return Vocabulary(self.config.vocab_size, int(eos == 0) if pad is None else pad, eos)

    @property
    def tokenizer(self) -> Any:
        """The tokenizer of the folder, or none."""
        try:
            return self._folder and transformers.AutoTokenizer.from_pretrained(str(self._folder))
        except (OSError, ValueError):
            return None

    @property
    def facts(self) -> Dict[str, Any]:
        """What is measured, as plain data."""
        return {
            "family": self.config.model_type,
            "hidden_size": self.config.hidden_size,
            "layers": self.config.num_hidden_layers,
            "vocabulary": self.config.vocab_size,
            "dtype": str(self._dtype).replace("torch.", ""),
            "weights": str(self._weights) if self._weights else "random",
        }

    def valued(self, kind: str) -> Any:
        """A ``RewardModel`` or a ``Critic``."""
        made: Any
        if has_strategies():
            head = nn.Linear(hidden_width(self.config), 1)
            base = import_module("coati.models.base")
            made = getattr(base, kind)(self._model(transformers.AutoModel), head)
        else:
            given: Dict[str, Any] = {"config": self.config}
            if self._weights:
                given["pretrained"] = str(self._weights)
            made = getattr(import_module("coati.models"), kind)(**given)
        return self._placed(made)

    def actor(self) -> Any:
        """An actor, as the trainers take it."""
        made = self._model(transformers.AutoModelForCausalLM)
        if has_strategies():
            made = import_module("coati.models.base").Actor(made)
        return self._placed(made)

    def _model(self, kind: Any) -> Any:
        if self._weights:
            return kind.from_pretrained(str(self._weights))
        return kind.from_config(self.config)

    def _placed(self, model: Any) -> Any:
        without_dropout(model)
        return model.to(self.device, self._dtype)


def language_model(actor: Any) -> Any:
    """The transformers model of an actor, with a backbone and an output embedding."""
    return next(item for item in layers_of(actor) if hasattr(item, "get_output_embeddings"))


@contextmanager
def place(device: torch.device) -> Iterator[None]:
    """Let coati's trainers run in this process, on this device."""
    if device.type != "cuda":
        with cpu_only():
            yield
        return
    with TemporaryDirectory() as folder:
        meeting = (Path(folder) / "group").as_uri()
        dist.init_process_group("nccl", init_method=meeting, rank=0, world_size=1)
        try:
            yield
        finally:
            dist.destroy_process_group()


def _small_llama() -> Any:
    return transformers.LlamaConfig(
        vocab_size=32000,
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=32768,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )


def _config(path: Path) -> Any:
    if not path.exists():  # or transformers would ask the hub for a model of that name
        raise InputError(f"no configuration of a model at {path}: there is no such file")
    try:
        return transformers.AutoConfig.from_pretrained(str(path))
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"no configuration of a model at {path}: {reason}") from None

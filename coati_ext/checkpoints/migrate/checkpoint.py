"""Load a G1 reward model from its checkpoint, without coati."""

from __future__ import annotations

import copy
import os
from collections import OrderedDict
from pathlib import Path
from typing import Any, Dict, List, Tuple

import torch
from torch import Tensor

from coati_ext import tensors
from coati_ext._json import parse_json
from coati_ext.checkpoints.migrate.head import Head
from coati_ext.errors import InputError, in_a_line
from coati_ext.rollout.models import frame_inputs

Weights = Dict[str, Tensor]


def read_weights(checkpoint: Path) -> Weights:
    """The state dict of a checkpoint: one file, or a folder of shards with its index.

    Raises:
        InputError: it does not exist, is not a checkpoint or has numbers that are none.
    """
    weights: Weights = OrderedDict()
    files = files_of(checkpoint)
    for file in files:
        if not file.name.endswith(".index.json"):
            try:
                found = _load(file)
            except Exception as error:  # of many kinds, and torch 1.13 gives but a number
                raise InputError(f"{file} is not a checkpoint: {in_a_line(error)}") from error
            _check(found, file)
            if len(files) == 1 and isinstance(found, OrderedDict):
                return found  # unchanged, to keep its _metadata
            weights.update(found)
    return weights


def _check(found: Any, file: Path) -> None:
    if not isinstance(found, dict) or not all(map(torch.is_tensor, found.values())):
        raise InputError(f"{file} holds no state dict, but {type(found).__name__}")
    names = [key for key in found if not isinstance(key, str)]
    if names:
        raise InputError(f"{file} holds no state dict: a key is {names[0]!r}")
    broken = [key for key, value in found.items() if _counts(key) and not value.isfinite().all()]
    if broken:
        raise InputError(
            f"{file} has numbers that are nan or infinite in {', '.join(broken[:5])}"
            + (f" and {len(broken) - 5} more" if len(broken) > 5 else "")
            + ": its training diverged, or the file is damaged"
        )


def files_of(checkpoint: Path) -> List[Path]:
    """The files of a checkpoint, its index first."""
    if not checkpoint.exists():
        raise InputError(f"there is no checkpoint {checkpoint}")
    if not checkpoint.is_dir():
        return [checkpoint]
    indices = sorted(checkpoint.glob("*.index.json"))
    if len(indices) != 1:
        raise InputError(
            f"{checkpoint} has {len(indices)} files *.index.json, expected one that names the "
            "shards: give a file of weights, or the folder that ColossalAI wrote the shards to"
        )
    try:
        places = parse_json(indices[0].read_text(encoding="utf-8"))["weight_map"]
        shards = sorted({os.fspath(name) for name in places.values()})
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise InputError(f"{indices[0]} is no index of shards: {error!r}") from error
    missing = [name for name in shards if not (checkpoint / name).is_file()]
    if missing:
        raise InputError(f"{checkpoint} lacks {', '.join(missing)}, which {indices[0].name} names")
    return [indices[0], *(checkpoint / name for name in shards)]


def _load(file: Path) -> Any:
    if file.suffix == ".safetensors":
        from safetensors.torch import load_file

        return OrderedDict(load_file(str(file)))
    return torch.load(str(file), map_location="cpu", weights_only=True)


class RewardModel:
    """A checkpoint's backbone and value head, without coati."""

    def __init__(
        self, weights: Weights, config: Any, pretrained: str, device: torch.device, source: str
    ) -> None:
        heads = [key for key in weights if key.endswith("value_head.weight")]
        if len(heads) != 1:
            raise InputError(
                f"{source} has {len(heads)} keys value_head.weight, expected one: it is no reward "
                f"model of coati (its first keys: {', '.join(list(weights)[:3]) or 'none'})"
            )
        self.prefix = heads[0][: -len("value_head.weight")]
        try:
            self.head = Head(weights[heads[0]], weights[self.prefix + "value_head.bias"])
        except KeyError as error:
            raise InputError(f"{source} has no {error}, which a value head needs") from error
        weight, bias = self.head.weight, self.head.bias
        scores_one = weight.dim() == 2 and len(weight) == 1 and bias.shape == (1,)
        if not scores_one or not weight.is_floating_point():
            raise InputError(
                f"the value head in {source} has a weight of {tuple(weight.shape)} and a bias of "
                f"{tuple(bias.shape)}, expected real numbers of (1, hidden size) and (1,)"
            )
        inner = self.prefix + "model."
        own = {key[len(inner) :]: weights[key] for key in weights if key.startswith(inner)}
        # On a CPU half precision is slow or not implemented.
        dtype = self.head.weight.dtype if device.type != "cpu" else torch.float32
        self.device = device
        try:
            own = folded(own)
        except (KeyError, RuntimeError) as error:
            raise InputError(f"the LoRA weights in {source} do not fit: {error}") from error
        self.backbone = _backbone(own, config, pretrained, source).to(device, dtype).eval()

    def with_head(self, weights: Weights, head: Head) -> Weights:
        """The weights with another head; keys and dtypes are unchanged."""
        changed = copy.copy(weights)  # keeps _metadata
        changed[self.prefix + "value_head.weight"] = head.weight
        changed[self.prefix + "value_head.bias"] = head.bias
        return changed

    def hidden(self, rows: Dict[str, Tensor]) -> Tensor:
        """The hidden state (B, H) at the last real token of tokenized rows."""
        ids, mask = self._inputs(rows)
        ids, mask = tensors.left_frame(ids, tensors.token_mask(ids, mask))
        output = self.backbone(ids, **frame_inputs(self.backbone, mask))
        last: Tensor = output["last_hidden_state"][:, -1]
        if last.size(1) != self.head.weight.size(1):
            raise InputError(
                f"the value head takes {self.head.weight.size(1)} components, but the backbone of "
                f"--pretrained gives {last.size(1)}"
            )
        return last.float().cpu()

    def mean_pooled(self, rows: Dict[str, Tensor]) -> Tensor:
        """The scores (B,) as in G1: the mean over every column but the last, pads included."""
        ids, mask = self._inputs(rows)
        hidden = self.backbone(ids, attention_mask=mask)["last_hidden_state"]
        return self.head(hidden[:, :-1].float().mean(dim=1).cpu()).float()

    def _inputs(self, rows: Dict[str, Tensor]) -> Tuple[Tensor, Tensor]:
        """Ids and mask (B, S) on the backbone's device."""
        ids, known = rows["input_ids"], self.backbone.get_input_embeddings().num_embeddings
        if int(ids.max()) >= known:
            raise InputError(
                f"the tokenizer gives the id {int(ids.max())}, but the checkpoint knows {known} "
                "tokens: give the --tokenizer that it was trained with"
            )
        return ids.to(self.device), rows["attention_mask"].to(self.device)


def folded(weights: Weights) -> Weights:
    """Merge LoRA weights as in G1's ``LoraLinear``: W + B A / r.

    Args:
        weights: of a backbone; where present, ``lora_A`` (r, in) and ``lora_B`` (out, r) are merged
            into ``weight`` (out, in).
    """
    merged = {key: value for key, value in weights.items() if ".lora_" not in key}
    for key in weights:
        layer, end = key[: -len("lora_A")], key[-len("lora_A") :]
        if end == "lora_A":
            low, high = weights[key].float(), weights[f"{layer}lora_B"].float()
            whole = merged[f"{layer}weight"]
            merged[f"{layer}weight"] = (whole.float() + high @ low / low.size(0)).to(whole.dtype)
    return merged


def load_config(pretrained: str) -> Any:
    """The configuration of the backbone.

    Raises:
        InputError: there is none.
    """
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(pretrained)
    except Exception as error:  # of many kinds
        told = in_a_line(error)
        raise InputError(f"--pretrained {pretrained} has no configuration: {told}") from error
    config.use_cache = False
    config.torch_dtype = torch.float32  # the configuration may name the dtype of its own weights
    return config


def _backbone(weights: Weights, config: Any, pretrained: str, source: str) -> Any:
    """Build the backbone from its configuration, and load the weights with a strict check."""
    from transformers import AutoModel

    model = AutoModel.from_config(config)
    embedding = model.get_input_embeddings()
    name = next(n for n, value in model.named_parameters() if value is embedding.weight)
    if name in weights and len(weights[name]) != len(embedding.weight):
        model.resize_token_embeddings(len(weights[name]))  # as v0.3.0's LLaMA scripts did
    expected = model.state_dict()
    parameters = {name for name, _ in model.named_parameters()}
    shapes = [
        f"{key} is {tuple(weights[key].shape)}, not {tuple(expected[key].shape)}"
        for key in expected
        if key in weights and weights[key].shape != expected[key].shape
    ]
    missing = [f"{key} is missing" for key in sorted(parameters - set(weights))]
    strangers = [f"{key} is unknown" for key in weights if key not in expected and _counts(key)]
    problems = shapes + missing + strangers
    if problems:
        raise InputError(
            f"the backbone in {source} is not that of --pretrained {pretrained} "
            f"({type(model).__name__}): {', '.join(problems[:5])}"
            + (f" and {len(problems) - 5} more" if len(problems) > 5 else "")
        )
    model.load_state_dict({k: v for k, v in weights.items() if k in expected}, strict=False)
    return model


def _counts(key: str) -> bool:
    """Whether a key is a weight, not a constant buffer saved by some releases of transformers."""
    constants = (".attn.bias", ".masked_bias", ".attention.bias", ".inv_freq", "position_ids")
    return not key.endswith(constants)

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Dict, Iterator, List, Optional, Sequence, Union

import torch
import torch.nn.functional as F
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import ConcatDataset, Dataset, DistributedSampler
from transformers import PreTrainedTokenizer

from coati.dataset.utils import chuncate_sequence, pad_to_max_len


def load_tokenized_dataset(
    dataset_paths: Union[str, List[str]], mode: str = "train", **kwargs: Any
) -> Optional[Dataset]:
    """What Hugging Face's datasets saved in these folders; of a `DatasetDict`, one split."""
    from datasets import Dataset as HFDataset
    from datasets import load_from_disk

    if not dataset_paths:
        return None
    splits = kwargs.get("mode_map", {"train": "train", "dev": "validation", "test": "test"})
    assert mode in splits, f"mode {mode} is none of {tuple(splits)}"
    loaded = []
    for path in [dataset_paths] if isinstance(dataset_paths, str) else dataset_paths:
        found = load_from_disk(dataset_path=path)
        if isinstance(found, HFDataset):
            loaded.append(found)
        elif splits[mode] in found:
            loaded.append(found[splits[mode]])
    if len(loaded) > 1:
        return ConcatDataset(loaded)
    return loaded[0] if loaded else None


def _pad_id(tokenizer: PreTrainedTokenizer) -> int:
    pad = tokenizer.pad_token_id
    assert isinstance(pad, int), f"the tokenizer's pad_token_id is {pad}"
    assert pad >= 0, f"the tokenizer's pad_token_id is {pad}"
    return pad


@dataclass
class DataCollatorForSupervisedDataset:
    tokenizer: PreTrainedTokenizer
    max_length: int = 4096
    ignore_index: int = -100

    def _stack(self, rows: List[torch.Tensor], value: int) -> torch.Tensor:
        side = self.tokenizer.padding_side
        if side not in ("left", "right"):
            raise RuntimeError(f"`padding_side` must be `left` or `right`, not `{side}`")
        # On the left, rows are padded to the longest of the batch only.
        width = self.max_length if side == "right" else max(len(row) for row in rows)
        return pad_to_max_len(rows, width, value, padding_side=side)

    def __call__(self, instances: Sequence[Dict[str, List[int]]]) -> Dict[str, torch.Tensor]:
        """input_ids, attention_mask (from `ids != pad`, D5) and labels, each (B, S)."""
        pad = _pad_id(self.tokenizer)
        ids, labels = (
            [torch.LongTensor(row[name][: self.max_length]) for row in instances]
            for name in ("input_ids", "labels")
        )
        input_ids = self._stack(ids, pad)
        return {
            "input_ids": input_ids,
            "attention_mask": input_ids.ne(pad),
            "labels": self._stack(labels, self.ignore_index),
        }


@dataclass
class DataCollatorForPromptDataset(DataCollatorForSupervisedDataset):
    def __call__(self, instances: Sequence[Dict[str, List[int]]]) -> Dict[str, torch.Tensor]:
        """Prompts (B, max_length): what the tokenizer's side left short is filled on the left."""
        rows = [{"input_ids": row["input_ids"], "labels": row["input_ids"]} for row in instances]
        batch: Dict[str, Any] = super().__call__(instances=rows)
        fill = (self.max_length - batch["input_ids"].size(1), 0)
        return {
            "input_ids": F.pad(batch["input_ids"], fill, value=self.tokenizer.pad_token_id),
            "attention_mask": F.pad(batch["attention_mask"], fill, value=False),
            "gt_answer": [row.get("gt_answer") for row in instances],
        }


@dataclass
class DataCollatorForPreferenceDataset:
    tokenizer: PreTrainedTokenizer
    max_length: int = 4096

    def __call__(self, instances: Sequence[Dict[str, List[int]]]) -> Dict[str, torch.Tensor]:
        """Ids, attention mask and loss mask of both answers, each (B, max_length), cut right."""
        pad = _pad_id(self.tokenizer)
        batch = {}
        for source, target in (("chosen", "chosen"), ("rejected", "reject")):
            ids, loss_mask = (
                chuncate_sequence(
                    [row[f"{source}_{name}"] for row in instances], self.max_length, to
                )
                for name, to in (("input_ids", torch.int64), ("loss_mask", torch.bool))
            )
            attended = [torch.ones_like(row, dtype=torch.bool) for row in ids]
            for name, rows, value in (
                ("input_ids", ids, pad),
                ("attention_mask", attended, False),
                ("loss_mask", loss_mask, False),
            ):
                batch[f"{target}_{name}"] = pad_to_max_len(
                    rows, self.max_length, value, padding_side=self.tokenizer.padding_side
                )
        return batch


@dataclass
class DataCollatorForKTODataset:
    tokenizer: PreTrainedTokenizer
    max_length: int = 4096
    ignore_index: int = -100

    def _join(self, prompts: List[Any], answers: List[Any], pad: int) -> List[torch.Tensor]:
        def stack(rows: List[torch.Tensor], value: int) -> torch.Tensor:
            padded = pad_sequence(rows, batch_first=True, padding_value=value)
            return F.pad(padded, (0, self.max_length - padded.size(1)), value=value)

        pairs = list(zip(prompts, answers))
        ids = stack([torch.cat(pair) for pair in pairs], pad)
        mask = stack([torch.cat([torch.zeros_like(q), torch.ones_like(a)]) for q, a in pairs], 0)
        return [ids, ids.ne(pad), mask]

    def __call__(self, instances: Sequence[Dict[str, List[int]]]) -> Dict[str, torch.Tensor]:
        """Right-padded rows, and the same prompts with the answers in reverse order as kl rows."""
        pad = _pad_id(self.tokenizer)
        prompts = [torch.LongTensor(row["prompt"]) for row in instances]
        answers = [torch.LongTensor(row["completion"]) for row in instances]
        names = ("input_ids", "attention_mask", "loss_mask")
        own = self._join(prompts, answers, pad)
        other = self._join(prompts, answers[::-1], pad)
        return {
            **dict(zip(names, own)),
            "label": torch.tensor([row["label"] for row in instances], dtype=torch.bool),
            **{f"kl_{name}": rows for name, rows in zip(names, other)},
        }


def apply_chat_template_and_mask(
    tokenizer: PreTrainedTokenizer,
    chat: List[Dict[str, str]],
    max_length: Optional[int] = None,
    system_prompt: Optional[str] = None,
    padding: bool = True,
    truncation: bool = True,
    ignore_idx: int = -100,
) -> Dict[str, torch.Tensor]:
    """A prompt with its assistant header, left-padded (S,); a long one loses its end (D49)."""
    system = {"role": "system", "content": system_prompt or "You are a helpful assistant."}
    if "messages" in chat:
        gt_answer, test_cases = chat.get("gt_answer", None), chat.get("test_cases", None)
        chat = [chat["messages"]]  # else gt_answer is unbound below (D34)
    ids: List[int] = []
    masked: List[bool] = []
    for i, message in enumerate(chat):
        tokens = tokenizer.apply_chat_template(
            [system, message], tokenize=True, add_generation_prompt=True
        )
        tokens = tokens[1:] if i > 0 and tokens[0] == tokenizer.bos_token_id else tokens
        ids += tokens
        masked += [message["role"] != "assistant"] * len(tokens)
    pads = max(0, max_length - len(ids)) if padding and max_length is not None else 0
    width = max_length if truncation and max_length is not None else pads + len(ids)
    input_ids = torch.tensor([tokenizer.pad_token_id] * pads + ids)[:width]
    labels = input_ids.masked_fill(torch.tensor([True] * pads + masked)[:width], ignore_idx)
    row = {
        "input_ids": input_ids,
        "attention_mask": torch.tensor([0] * pads + [1] * len(ids))[:width],
        "labels": labels,
    }
    extra = {"gt_answer": gt_answer, "test_cases": test_cases}
    return {**row, **{name: item for name, item in extra.items() if item is not None}}


class StatefulDistributedSampler(DistributedSampler):
    def __init__(
        self,
        dataset: Dataset,
        num_replicas: Optional[int] = None,
        rank: Optional[int] = None,
        shuffle: bool = True,
        seed: int = 0,
        drop_last: bool = False,
    ) -> None:
        super().__init__(dataset, num_replicas, rank, shuffle, seed, drop_last)
        self.start_index = 0

    def __iter__(self) -> Iterator[int]:
        return iter(list(super().__iter__())[self.start_index :])

    def __len__(self) -> int:
        return self.num_samples - self.start_index

    def set_start_index(self, start_index: int) -> None:
        self.start_index = start_index

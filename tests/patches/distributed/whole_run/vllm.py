"""What ``coati.distributed`` uses of vLLM's interface, by a model of transformers on the CPU."""

from __future__ import annotations

from types import SimpleNamespace

import torch


class SamplingParams:
    def __init__(self, n, temperature, max_tokens, logprobs, top_p=1.0):
        assert (top_p, logprobs) == (1.0, 0)
        self.n, self.temperature, self.max_tokens = n, temperature, max_tokens


class LLM:
    def __init__(self, model, tokenizer, trust_remote_code, enable_sleep_mode):
        import transformers

        self.model = transformers.AutoModelForCausalLM.from_pretrained(model).eval()
        weights = SimpleNamespace(
            load_weights=lambda items: self.model.load_state_dict(dict(items))
        )
        worker = SimpleNamespace(model_runner=SimpleNamespace(model=weights))
        executor = SimpleNamespace(driver_worker=worker)
        self.llm_engine = SimpleNamespace(model_executor=executor)

    @torch.no_grad()
    def generate(self, prompt_token_ids, sampling_params, use_tqdm):
        answers = [
            [self._answer(ids, sampling_params) for _ in range(sampling_params.n)]
            for ids in prompt_token_ids
        ]
        return [SimpleNamespace(outputs=outputs) for outputs in answers]

    def _answer(self, prompt, params):
        ids, said = list(prompt), []
        while len(said) < params.max_tokens and 2 not in ids[len(prompt) :]:
            logits = self.model(input_ids=torch.tensor([ids])).logits[0, -1]
            log_probs = (logits / params.temperature).log_softmax(dim=-1)
            ids.append(int(torch.multinomial(log_probs.exp(), 1)))
            said.append({ids[-1]: SimpleNamespace(logprob=float(log_probs[ids[-1]]))})
        return SimpleNamespace(token_ids=ids[len(prompt) :], logprobs=said)

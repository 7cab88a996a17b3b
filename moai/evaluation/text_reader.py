"""Text-only baseline: a language model that reads the whole verbalization in its prompt, without the image.

Compressor and mixers hand on a verbalization in a fixed number of latents. How far MoAI is from a reader of equal
training tells what that costs.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from moai.models.moai.chat_templates import SYSTEM_PROMPT
from moai.models.moai.modeling_moai import MoAIForConditionalGeneration
from moai.models.moai.tokenization_internlm2 import InternLM2Tokenizer

__all__ = ["TextReader"]


def _decoder_of(folder: Path) -> PreTrainedModel:
    whole = MoAIForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    if whole.config.plora_rank:
        raise ValueError(f"expected a decoder without partial LoRA in {folder}, got rank {whole.config.plora_rank}.")
    decoder = AutoModelForCausalLM.from_config(whole.config.text_config, dtype=torch.float32)
    decoder.model.load_state_dict(whole.model.language_model.state_dict())
    decoder.get_output_embeddings().load_state_dict(whole.get_output_embeddings().state_dict())
    return decoder


class TextReader:
    """A decoder as the stage ``text`` of `python -m recipes.nano` exports it.

    Args:
        model: Causal language model in evaluation mode.
        tokenizer: Its tokenizer.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: InternLM2Tokenizer) -> None:
        self.model, self.tokenizer = model, tokenizer

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> TextReader:
        """Load both from a folder, in float32.

        Args:
            folder: A text reader; or a whole MoAI, whose decoder alone is taken.

        Raises:
            ValueError: It lacks a config or a tokenizer.
        """
        folder = Path(folder)
        for name in ("config.json", "tokenizer.model"):
            if not (folder / name).is_file():
                raise ValueError(
                    f"expected a text reader with {name} in {folder}, got none. "
                    "Export one: python -m recipes.nano --config configs/nano.yaml --out RUN --stage export"
                )
        is_whole = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type") == "moai"
        model = _decoder_of(folder) if is_whole else AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        return cls(model.eval(), InternLM2Tokenizer.from_pretrained(folder))

    def prompt_ids(self, verbalization: str, question: str, earlier: Sequence[tuple[str, str]] = ()) -> list[int]:
        """Ids of a prompt, piece by piece as in training; `earlier`: questions and answers of the turns before."""
        encode, end = self.tokenizer.sp_model.encode, self.tokenizer.eos_token_id
        ids = [self.tokenizer.bos_token_id, *encode(f"{SYSTEM_PROMPT} "), *encode(verbalization)]
        for asked, answer in earlier:
            ids += [*encode(" USER:"), *encode(f" {asked}"), *encode(" ASSISTANT:"), *encode(f" {answer}"), end]
        return [*ids, *encode(" USER:"), *encode(f" {question}"), *encode(" ASSISTANT:")]

    @torch.inference_mode()
    def answer(
        self,
        verbalizations: Sequence[str],
        questions: Sequence[str],
        max_new_tokens: int,
        earlier: Sequence[Sequence[tuple[str, str]]] | None = None,
    ) -> list[str]:
        """Answers of one batch, greedy.

        Args:
            verbalizations: What was found, one text per question.
            questions: What is asked.
            max_new_tokens: Bound on each answer.
            earlier: Questions and answers of the turns before each; None = there are none.
        """
        turns = [()] * len(questions) if earlier is None else earlier
        prompts = [self.prompt_ids(*asked) for asked in zip(verbalizations, questions, turns, strict=True)]
        longest, end = max(map(len, prompts)), self.tokenizer.eos_token_id
        lengths = torch.tensor([len(prompt) for prompt in prompts])
        input_ids = torch.tensor([[end] * (longest - len(prompt)) + prompt for prompt in prompts])
        attention_mask = (torch.arange(longest) >= (longest - lengths)[:, None]).long()
        generated = self.model.generate(
            input_ids=input_ids,
            attention_mask=attention_mask,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            eos_token_id=end,
            pad_token_id=end,
        )
        texts = self.tokenizer.batch_decode(generated[:, longest:], skip_special_tokens=True)
        return [text.strip() for text in texts]

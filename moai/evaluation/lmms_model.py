"""MoAI, and every other model of a pipeline, for lmms-eval: ``python -m lmms_eval --model moai``.

    python -m lmms_eval --model moai --model_args pretrained=moai-nano --tasks pope --batch_size 8

lmms-eval finds it by the entry point ``lmms_eval.models``, and imports this module when it is asked for. It needs an
environment of its own (``make test-lmms-eval``).
"""

from __future__ import annotations

from typing import Any

import torch
from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms
from lmms_eval.api.registry import register_model
from tqdm import tqdm

from moai.pipeline.pipeline import Pipeline

from .lmms_requests import ChatRequest, RequestAnswerer, parse_batch_size

__all__ = ["MoAI"]


@register_model("moai")
class MoAI(lmms):
    """A pipeline that answers lmms-eval's requests.

    Args:
        pretrained: Folder, bundled name or hub name.
        verbalizers: Names separated by "+"; None = the checkpoint's; "none".
        batch_size: A number, or "auto".
        max_batch_size: For "auto".
        device: None = CUDA where there is one.
        dtype: None = float32 on CPU, else the checkpoint's own.
        **options: The model's own, as ``routing=uniform``.
    """

    is_simple = False

    def __init__(
        self,
        pretrained: str = "moai-nano",
        verbalizers: str | None = None,
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        device: str | None = None,
        dtype: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        names = None if verbalizers is None else [name for name in verbalizers.split("+") if name != "none"]
        if device is not None and device.startswith("cuda") and not torch.cuda.is_available():
            device = None  # lmms-eval's own default
        self.pipeline = Pipeline.from_pretrained(pretrained, names, device=device, dtype=dtype)
        self.pipeline.answering.parse_options(options)
        self.answerer = RequestAnswerer(self.pipeline, parse_batch_size(batch_size, max_batch_size), options)

    @property
    def batch_size(self) -> int:
        """Requests per batch."""
        return self.answerer.batch_size

    @property
    def device(self) -> torch.device:
        """Of the model."""
        return self.pipeline.model.device

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Answers of all tasks' requests, which come in one call."""
        asked = []
        for request in requests:
            _, to_messages, settings, doc_id, task, split = request.args
            messages = to_messages(self.task_dict[task][split][doc_id])
            asked.append(ChatRequest.from_messages(messages, settings=settings))
        with tqdm(total=len(asked), desc="moai", disable=self._rank != 0) as bar:
            return self.answerer.generate(asked, lambda num: bar.update(num - bar.n))

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Log-probability of each answer, and whether it is what the model says by itself."""
        groups: dict[Any, list[int]] = {}
        for index, request in enumerate(requests):
            context, _, _, doc_id, task, split = request.args
            groups.setdefault((context, doc_id, task, split), []).append(index)
        asked, answers = [], {}
        for (context, doc_id, task, split), indices in groups.items():
            document, visuals = self.task_dict[task][split][doc_id], requests[indices[0]].args[2]
            for index in indices:
                answer = requests[index].args[1]
                answers[index] = (answer(document) if callable(answer) else answer).strip()
            parts = [{"type": "image", "image": image} for image in visuals(document) or ()]
            messages = [{"role": "user", "content": [*parts, {"type": "text", "text": context}]}]
            choices = tuple(dict.fromkeys(answers[index] for index in indices))
            if len(choices) == 1:  # a second one to choose between
                choices += (f"{choices[0]} -",)
            asked.append(ChatRequest.from_messages(messages, choices=choices))
        ranked = self.answerer.rank(asked)
        said = self.answerer.generate([ChatRequest(r.images, r.messages) for r in asked])
        found: list[tuple[float, bool]] = [(float("-inf"), False)] * len(requests)
        for indices, scores, text in zip(groups.values(), ranked, said, strict=True):
            for index in indices:
                found[index] = scores.get(answers[index], float("-inf")), text == answers[index]
        return found

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        """Not for a model of single turns.

        Raises:
            ValueError: Always.
        """
        raise ValueError("expected tasks of one round, got one of several. Leave it out.")

"""MoAI behind a pipeline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import BatchFeature

from ...checkpoints.io.verbalizer_settings import VerbalizerSettings
from ..answering import Answering, GeneratedAnswer
from .encoded_scenes import EncodedScenes
from .generation import VISION_OPTIONS
from .modeling_moai import MoAIForConditionalGeneration
from .processing_moai import MoAIProcessor
from .quantization import ALWAYS_COMPUTE_DTYPE_MODULES, COMPUTE_DTYPE_MODULES
from .rerouting import References, embed_prompts
from .routing_report import DRAWN_ROUTINGS, PromptRouting, draw_routing, parse_routing, select_routing
from .scenes_moai import encode_scenes
from .text_reader import TextReaderAnswering, extract_decoder

__all__ = ["MoAIAnswering"]


class MoAIAnswering(Answering):
    """A MoAI with its processor.

    Args:
        model: The model.
        processor: Its processor.

    Attributes:
        encoded: The last scenes that were asked about, encoded.

    Raises:
        ValueError: They do not belong together.
    """

    option_names = ("routing", "choices", "reroute")
    served_options = ("routing", "choices")
    text_input = "auxiliary_text"
    scene_encoder = encode_scenes
    model_class = MoAIForConditionalGeneration
    processor_class = MoAIProcessor
    can_quantize = True
    whole_modules = COMPUTE_DTYPE_MODULES
    always_whole_modules = ALWAYS_COMPUTE_DTYPE_MODULES
    loads_adapters = True

    def __init__(self, model: MoAIForConditionalGeneration, processor: MoAIProcessor) -> None:
        super().__init__(model, processor)
        self.encoded = EncodedScenes()
        wanted = (model.config.image_token_id, model.config.num_image_tokens)
        got = (processor.image_token_id, processor.num_image_tokens)
        if wanted != got:
            raise ValueError(
                f"expected a processor with image token id {wanted[0]} and {wanted[1]} tokens per image, as the "
                f"model has, got {got[0]} and {got[1]}. Load both from one folder."
            )

    @property
    def num_latents(self) -> int:
        """See :attr:`.Answering.num_latents`."""
        return self.model.config.compressor_config.num_latents

    @property
    def shortest_prompt(self) -> int:
        """See :attr:`.Answering.shortest_prompt`."""
        return self.processor.num_image_tokens

    def prepare(
        self, image: Image.Image, question: str, max_new_tokens: int, earlier: Sequence[tuple[str, str]] = ()
    ) -> Any:
        """See :meth:`.Answering.prepare`: the rendered prompt, which no verbalization lengthens."""
        turns = [turn for pair in earlier for turn in zip(("user", "assistant"), pair, strict=True)]
        messages = [
            {"role": role, "content": [{"type": "text", "text": text}]} for role, text in (*turns, ("user", question))
        ]
        messages[0]["content"].insert(0, {"type": "image"})
        (prompt,) = self.processor.apply_chat_template([messages], add_generation_prompt=True)
        return self._check_prompt(prompt, len(question.split()), max_new_tokens)

    def prepare_conversation(
        self, images: Sequence[Image.Image], messages: Sequence[Mapping[str, Any]], max_new_tokens: int
    ) -> Any:
        """See :meth:`.Answering.prepare_conversation`."""
        prompt = self.processor.apply_chat_template([list(messages)], add_generation_prompt=True)[0]
        if (got := prompt.count(self.processor.image_token)) != len(images):
            raise ValueError(
                f"expected a conversation whose {len(images)} images all stand in its prompt, got {got} of them there. "
                "Put images into a user's turns."
            )
        texts = [part["text"] for message in messages for part in message["content"] if part["type"] == "text"]
        return self._check_prompt(prompt, sum(len(text.split()) for text in texts), max_new_tokens)

    def _check_prompt(self, prompt: str, num_words: int, max_new_tokens: int) -> str:
        """The prompt as it is.

        Raises:
            ValueError: It is too long.
        """
        length = len(self.processor.encoder.encode_sample(prompt)["input_ids"])
        longest = self.model.config.max_positions
        known = [bound for bound in (self.processor.max_length, longest and longest - max_new_tokens) if bound]
        if known and length > min(known):
            raise ValueError(
                f"expected a prompt of at most {min(known)} tokens (images included, {max_new_tokens} kept for the "
                f"answer), got {length} for a question of {num_words} words. Shorten the question."
            )
        return prompt

    def _run_generate(self, inputs: BatchFeature, **kwargs: Any) -> Any:
        # An adapter may be switched on and off, which no weight shows.
        is_plain = isinstance(self.model, MoAIForConditionalGeneration) and not self.model._hf_peft_config_loaded
        images = inputs.get("pixel_values")
        if (
            is_plain
            and images is not None
            and not images.is_meta
            and not any(name in kwargs for name in VISION_OPTIONS)
        ):
            inputs = self.encoded.encode(self.model, inputs)
        return super()._run_generate(inputs, **kwargs)

    def scene_settings(self, settings: VerbalizerSettings, options: Mapping[str, Any]) -> dict[str, Any]:
        """See :meth:`.Answering.scene_settings`."""
        return {"compat": settings.compat, "map_mode": settings.map}

    def build_batch(
        self, images: Sequence[Any], prompts: Sequence[Any], found: Mapping[str, Any], options: Mapping[str, Any]
    ) -> BatchFeature:
        """See :meth:`.Answering.build_batch`."""
        return self.processor(images=list(images), text=list(prompts), padding=True, return_tensors="pt", **found)

    @classmethod
    def parse_options(cls, options: Mapping[str, Any]) -> dict[str, Any]:
        """See :meth:`.Answering.parse_options`.

        ``routing``: :func:`mixer.resolve_routing`, or ``"0.5,0.3,0.2"``; ``choices``: the answers to choose from;
        ``reroute``: a file of references, which choose the routing (:mod:`.rerouting`).
        """
        if {"routing", "reroute"} <= set(options):
            raise ValueError("expected `routing` or `reroute`, got both: references choose the routing. Leave one out.")
        chosen = super().parse_options(options)
        if "routing" in chosen:
            chosen["routing"] = parse_routing(chosen["routing"])
        if isinstance(chosen.get("reroute"), (str, Path)):
            chosen["reroute"] = References.load(chosen["reroute"])
        return chosen

    @classmethod
    def check_drawn_options(cls, wanted: Mapping[str, Any]) -> None:
        """See :meth:`.Answering.check_drawn_options`: ``routing``, a mode, and ``top_k``."""
        routing, top_k = (wanted.get(name, default) for name, default in (("routing", "gated"), ("top_k", 3)))
        is_number = type(top_k) is int and 1 <= top_k <= 3  # True is no number, and 1.0 would be another test
        if set(wanted) - {"routing", "top_k"} or routing not in DRAWN_ROUTINGS or not is_number:
            raise ValueError(
                f"expected the options routing ({', '.join(DRAWN_ROUTINGS)}) and top_k (1 to 3), got {dict(wanted)}."
            )

    def draw_options(self, wanted: Mapping[str, Any], seed: tuple[int, ...]) -> dict[str, Any]:
        """See :meth:`.Answering.draw_options` and :func:`.draw_routing`."""
        self.check_drawn_options(wanted)
        if not wanted:
            return {}
        mixer = self.model.config.mixer_config
        chosen = {"routing": mixer.routing, "top_k": mixer.top_k} | wanted
        num_layers = len(self.model.model.mixers.layer_indices)
        return {"routing": draw_routing(chosen["routing"], chosen["top_k"], seed, num_layers)}

    def select_options(self, options: Mapping[str, Any], indices: Sequence[int], num_queries: int) -> dict[str, Any]:
        """See :meth:`.Answering.select_options`; of weights per query the batch's rows."""
        chosen = self.parse_options(options)
        if "routing" in chosen:
            chosen["routing"] = select_routing(chosen["routing"], indices, num_queries)
        return chosen

    def words_in_prompt(self) -> TextReaderAnswering:
        """See :meth:`.Answering.words_in_prompt`: the decoder, without compressor, mixers and image."""
        return TextReaderAnswering(extract_decoder(self.model), self.processor)

    def encode_choice(self, choice: str, inputs: BatchFeature) -> list[int]:
        """See :meth:`.Answering.encode_choice`: as answers stand in training."""
        encoder, last = self.processor.encoder, int(inputs["input_ids"][0, -1])
        ends_header = last in encoder.guard.forbidden_ids or self.tokenizer.decode([last]).endswith("\n")
        return encoder.encode_answer(choice, is_mid_line=not ends_header)

    def generate(
        self, inputs: BatchFeature, options: Mapping[str, Any], is_reporting: bool, **generate_kwargs: Any
    ) -> list[GeneratedAnswer]:
        """See :meth:`.Answering.generate`. Reports hold ``routing``, a :class:`.PromptRouting` per mixer layer; not
        with a learned prompt.
        """
        if "reroute" in options:
            return self._generate_rerouted(inputs, dict(options), is_reporting, generate_kwargs)
        if "choices" in options:
            return super().generate(inputs, options, is_reporting, **generate_kwargs)
        # PEFT puts its own preparation of inputs before a learned prompt, which hands no routing out.
        has_routing = is_reporting and not getattr(
            getattr(self.model, "active_peft_config", None), "is_prompt_learning", False
        )
        answers, result = self._generate_texts(
            inputs, options, is_reporting, output_routing=has_routing, **options, **generate_kwargs
        )
        if not has_routing or result.routing is None:
            return answers
        # With beams the prompt stands there once per beam, a sample's beams side by side.
        repeats = result.routing[0].image.shape[0] // len(answers) if result.routing else 1
        return [
            replace(
                answer, report={**answer.report, "routing": PromptRouting.from_batch(result.routing, row * repeats)}
            )
            for row, answer in enumerate(answers)
        ]

    def _generate_rerouted(
        self, inputs: BatchFeature, options: dict[str, Any], is_reporting: bool, generate_kwargs: Mapping[str, Any]
    ) -> list[GeneratedAnswer]:
        """Each row by the gates or by a fixed routing, as its neighbours among the references were best served."""
        references: References = options.pop("reroute")
        references.check(self.model)
        picked = references.pick(embed_prompts(self.model, inputs).embeddings)
        answers: dict[int, GeneratedAnswer] = {}
        for is_fixed in (False, True):
            rows = [row for row, number in enumerate(picked.tolist()) if (number > 0) == is_fixed]
            if rows:
                routing = {"routing": references.routings[picked[rows] - 1]} if is_fixed else {}
                part = self._take_rows(inputs, rows)
                found = self.generate(part, options | routing, is_reporting, **generate_kwargs)
                answers |= zip(rows, found, strict=True)
        return [answers[row] for row in sorted(answers)]

    def _take_rows(self, inputs: BatchFeature, rows: Sequence[int]) -> BatchFeature:
        """Some prompts of a batch, with their images."""
        counts = (inputs["input_ids"] == self.model.config.image_token_id).sum(dim=1) // self.processor.num_image_tokens
        ends = counts.cumsum(dim=0).tolist()
        images = [place for row in rows for place in range(ends[row] - int(counts[row]), ends[row])]
        taken = {
            name: value[images if name == "pixel_values" else list(rows)]
            for name, value in inputs.items()
            if isinstance(value, torch.Tensor)
        }
        return BatchFeature({**inputs, **taken})

    def explain(
        self,
        image: Image.Image,
        question: str,
        scene: Any,
        settings: VerbalizerSettings,
        answer: str,
        options: Mapping[str, Any] | None = None,
    ) -> tuple[list[str], list[tuple[str, float]]]:
        """See :meth:`.Answering.explain`; shares are gradient times embedding of each auxiliary token."""
        found = self.encode_scenes([scene], settings)
        batch = self.processor(
            images=[image], text=[self.prepare(image, question, 1)], answers=[answer or "-"], return_tensors="pt",
            **found,
        ).to(self.model.device, dtype=self.model.dtype)  # fmt: skip
        labels, ids = batch.pop("labels"), batch["input_ids"][0]
        words = self._show_tokens(ids[batch["mm_token_type_ids"][0] == 2])
        said = batch.get("auxiliary_input_ids")
        if said is None or not said.shape[1]:
            return words, []
        embedded: list[torch.Tensor] = []
        chosen = self.parse_options(options or {})
        routing = chosen.get("routing")
        if "reroute" in chosen:
            inputs = self.encode([image], [self.prepare(image, question, 1)], found, 1)
            (number,) = chosen["reroute"].pick(embed_prompts(self.model, inputs).embeddings).tolist()
            routing = chosen["reroute"].routings[number - 1] if number else None

        def keep(_: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor | None:
            if inputs[0].shape != said.shape or not torch.equal(inputs[0], said):
                return None
            embedded.append(output.detach().requires_grad_())
            return embedded[-1]

        hook = self.model.get_input_embeddings().register_forward_hook(keep)
        try:
            with torch.enable_grad():
                logits = self.model(**batch, routing=routing).logits[:, :-1].float().log_softmax(-1)
                kept = labels[:, 1:] >= 0
                total = logits[kept].gather(1, labels[:, 1:][kept][:, None]).sum()
                if not embedded or not total.requires_grad:
                    return words, []
                (gradient,) = torch.autograd.grad(total, embedded[-1])
        finally:
            hook.remove()
        weights = (gradient * embedded[-1]).sum(-1).abs()[0].detach()
        shares = (weights / weights.sum().clamp_min(1e-12)).tolist()
        return words, list(zip(self._show_tokens(said[0]), shares, strict=True))

    def _show_tokens(self, ids: torch.Tensor) -> list[str]:
        """Tokens as a reader sees them, each with the space before it."""
        pieces = [piece.replace("\u2581", " ") for piece in self.tokenizer.convert_ids_to_tokens(ids.tolist())]
        return [chr(int(p[3:5], 16)) if len(p) == 6 and p[:3] == "<0x" and p[3] < "8" else p for p in pieces]

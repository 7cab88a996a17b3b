"""What a pipeline asks of a model that answers: prepare a question, encode a batch, generate, report.

One implementation per model, named by its :class:`~moai.models.registry.ModelSpec`. A new model is usable by every
command once it has one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from PIL import Image
from transformers import BatchFeature, LogitsProcessorList, StoppingCriteriaList, StopStringCriteria
from transformers.utils import PROCESSOR_NAME, cached_file

from ..checkpoints.io.adapter_files import AdapterBase, find_adapter_base, has_tuner, save_adapter
from ..checkpoints.io.verbalizer_settings import VerbalizerSettings
from ..import_utils import require
from ..processing.several_images import join_maps, join_texts
from .confidence import DEFAULT_CONFIDENCE_THRESHOLD, TokenRecorder, confidence_of, confidence_of_choice
from .quantization_choice import list_wanted_bits

__all__ = ["Answering", "GeneratedAnswer", "TooLongError", "join_turns", "load_whole", "parse_choices", "tell_streamer"]


class TooLongError(ValueError):
    """Some prompts of a batch are longer than the model reads.

    Attributes:
        rows: Place in the batch -> what is wrong.
    """

    def __init__(self, rows: Mapping[int, str]) -> None:
        super().__init__("; ".join(rows.values()))
        self.rows = dict(rows)


@dataclass(frozen=True, eq=False)
class GeneratedAnswer:
    """One answer of a batch.

    Attributes:
        parts: Text, and images of a model that draws, in reading order.
        report: What the model tells about how it answered, by name; only where it was asked for.
        confidence: See :func:`.confidence.confidence_of`; of a choice its share of all choices' probability. None =
            nothing was said, or the answer holds images.
    """

    parts: tuple[str | Image.Image, ...]
    report: Mapping[str, Any] = field(default_factory=dict)
    confidence: float | None = None


class Answering(ABC):
    """A model with its processor.

    Attributes:
        model: In evaluation mode on its device.
        processor: Its processor.
        option_names: Options of an answer that this model has beside those of ``generate``.
        served_options: Those of them that a stranger may set over a network: none that names files. What has much
            computed is bounded by the server.
        text_input: Name of the verbalizations among what :meth:`encode_scenes` returns.
        scene_encoder: The model's ``encode_scenes``, of scenes, what is worth saying and kinds, see ``scenes_X.py``.
        bounded_by: What stands in a prompt beside the question, and perhaps what helps where a prompt is too long, for
            :meth:`check_lengths`; None = :meth:`prepare` knows a prompt's length.
        model_class: What loads the model.
        processor_class: What loads the processor.
        can_quantize: Whether the model loads in 4 and 8 bits.
        whole_modules: Beginnings of the names of modules that stay in their own precision then.
        always_whole_modules: Those that stay even where all is shrunk that can be (``quantize_all``); None = the model
            knows no such choice.
        reads_words_alone: Whether :meth:`words_in_prompt` is the model itself, which reads prompts without an image.
        shows_image: False = its prompts hold no image.
        loads_adapters: Whether the model's own class loads adapters of weights.
    """

    option_names: tuple[str, ...] = ()
    served_options: tuple[str, ...] = ()
    text_input: str
    scene_encoder: Callable[..., dict[str, list[Any]]]
    bounded_by: tuple[str, ...] | None = None
    model_class: type
    processor_class: type
    can_quantize: bool = False
    whole_modules: tuple[str, ...] = ("lm_head",)
    always_whole_modules: tuple[str, ...] | None = None
    reads_words_alone: bool = False
    shows_image: bool = True
    loads_adapters: bool = False

    def __init__(self, model: Any, processor: Any) -> None:
        self.model, self.processor = model, processor

    @classmethod
    def load(cls, name_or_path: str, *, revision: str | None = None, **model_kwargs: Any) -> Self:
        """Load model and processor.

        Args:
            name_or_path: Folder or hub name.
            revision: Of a hub name.
            **model_kwargs: To the model's ``from_pretrained``.

        Raises:
            ValueError: The checkpoint is not whole, or asked for in bits that the model does not load in.
        """
        model = cls.load_model(name_or_path, revision=revision, **model_kwargs)
        return cls(model, cls.load_processor(name_or_path, revision))

    @classmethod
    def load_processor(cls, name_or_path: str, revision: str | None = None) -> Any:
        """Load the processor, of an adapter that brings none its base's; see :meth:`load`."""
        silent = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
        base = find_adapter_base(name_or_path, revision)
        if base is not None and cached_file(name_or_path, PROCESSOR_NAME, revision=revision, **silent) is None:
            name_or_path, revision = base.name, base.revision
        return cls.processor_class.from_pretrained(name_or_path, revision=revision or "main")

    @classmethod
    def load_model(cls, name_or_path: str, *, revision: str | None = None, **model_kwargs: Any) -> Any:
        """Load the model, with its adapter where the checkpoint is one; see :meth:`load`."""
        base = find_adapter_base(name_or_path, revision)
        if base is not None:
            require("peft", purpose="An adapter")
        if base is not None and not (cls.loads_adapters and has_tuner(name_or_path, revision)):
            from peft import PeftModel

            model = cls.load_model(base.name, revision=base.revision, **model_kwargs)
            adapted = PeftModel.from_pretrained(model, name_or_path, revision=revision or "main")
            config = adapted.active_peft_config
            config.base_model_name_or_path, config.revision = base.name, base.revision
            return adapted.eval()
        if (bits := list_wanted_bits(model_kwargs)) and not cls.can_quantize:
            raise ValueError(
                f"expected {name_or_path} in its own precision, got load_in_{bits[0]}bit (--load-in-{bits[0]}bit), "
                "which such a model does not know. Leave it out; --dtype bfloat16 halves the memory."
            )
        options = {"revision": revision or "main", "use_safetensors": True, "output_loading_info": True}
        model, report = cls.model_class.from_pretrained(name_or_path, **options, **model_kwargs)
        if report["missing_keys"]:
            lacking = sorted(report["missing_keys"])
            raise ValueError(
                f"expected all weights in {name_or_path}, got none for {len(lacking)} ({', '.join(lacking[:3])}, ...)."
                " Download or convert the checkpoint again."
            )
        return model

    def save(self, folder: Path) -> None:
        """Write model and processor for :meth:`load`; of a model with an adapter around it the adapter."""
        if hasattr(self.model, "get_base_model"):
            config = self.model.active_peft_config
            save_adapter(self.model, folder, AdapterBase(config.base_model_name_or_path, config.revision))
        else:
            self.model.save_pretrained(folder)
        self.processor.save_pretrained(folder)

    @classmethod
    def list_bits(cls) -> tuple[int, ...]:
        """Bits of a weight that the model loads in."""
        return (16, 8, 4) if cls.can_quantize else (16,)

    @property
    def domain(self) -> str | None:
        """The images that the model knows, where it does not know photographs in general."""
        return getattr(self.model.config, "domain", None)

    @property
    def max_image_pixels(self) -> int:
        """Largest image that is decoded, in pixels."""
        return self.processor.max_image_pixels

    @property
    def num_latents(self) -> int:
        """Vectors per image that the model's layers look up beside the sequence that they read; 0 = none."""
        return 0

    @property
    def tokenizer(self) -> Any:
        """The processor's tokenizer."""
        return self.processor.tokenizer

    @property
    def shortest_prompt(self) -> int:
        """Tokens that an image takes in a prompt: no prompt is shorter."""
        return 0

    def check_answer_length(self, max_new_tokens: int) -> None:
        """Check that an answer of this length leaves room for an image and a question.

        Raises:
            ValueError: It does not.
        """
        longest, image = self.longest_sequence, self.shortest_prompt
        if longest is not None and max_new_tokens + image >= longest:
            raise ValueError(
                f"expected `max_new_tokens` (--max-new-tokens) below {longest - image}, got {max_new_tokens}: the "
                f"model reads {longest} tokens, image and question included. Lower it."
            )

    def check_lengths(self, lengths: Sequence[int], kept: int, included: str, advice: str = "") -> None:
        """Check that prompts leave room for their answers.

        Args:
            lengths: Tokens of each prompt.
            kept: Tokens kept for an answer.
            included: What stands in a prompt beside the question.
            advice: What helps, ", " behind it.

        Raises:
            TooLongError: Some do not.
        """
        limit = None if self.longest_sequence is None else self.longest_sequence - kept
        too_long = {
            row: f"expected a prompt of at most {limit} tokens ({included} included, {kept} kept for the answer), got "
            f"{length}. Shorten the question, {advice}or let fewer verbalizers speak."
            for row, length in enumerate(lengths)
            if limit is not None and length > limit
        }
        if too_long:
            raise TooLongError(too_long)

    @abstractmethod
    def prepare(
        self, image: Image.Image, question: str, max_new_tokens: int, earlier: Sequence[tuple[str, str]] = ()
    ) -> Any:
        """The prompt of a question, before anybody has looked at the image.

        Args:
            image: The image.
            question: Not empty; data, no control tokens.
            max_new_tokens: Tokens of the context that are kept for the answer.
            earlier: Questions and answers of the turns before; data.

        Returns:
            What :meth:`encode` takes.

        Raises:
            ValueError: The question is too long.
        """

    def prepare_conversation(
        self, images: Sequence[Image.Image], messages: Sequence[Mapping[str, Any]], max_new_tokens: int
    ) -> Any:
        """The prompt of a conversation; this way of a model that reads turns about one image.

        Args:
            images: In reading order.
            messages: As transformers writes them, the last one a user's; their parts are texts, which are data, and
                ``{"type": "image"}``, one per image.
            max_new_tokens: As in :meth:`prepare`.

        Returns:
            What :meth:`encode` takes.

        Raises:
            ValueError: The model reads no such conversation, or it is too long.
        """
        roles = ["user", "assistant"] * (len(messages) // 2) + ["user"]
        parts = [part for message in messages for part in message["content"]]
        if len(images) != 1 or parts[0]["type"] != "image" or [message["role"] for message in messages] != roles:
            raise ValueError(
                "expected questions and answers in turn about one image, in front of the first question: that is all "
                f"this model reads, got {len(images)} images in {len(messages)} messages. Ask anew, with the image."
            )
        texts = [
            "\n".join(part["text"] for part in message["content"] if part["type"] == "text") for message in messages
        ]
        earlier = list(zip(texts[:-1:2], texts[1::2], strict=True))
        return self.prepare(images[0], texts[-1], max_new_tokens, earlier)

    def encode_scenes(
        self,
        scenes: Sequence[Any],
        settings: VerbalizerSettings,
        kinds: Sequence[str] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> dict[str, list[Any]]:
        """What the processor takes of scenes, by name: one entry per scene.

        Args:
            scenes: :class:`verbalizers.Scene` or None = nobody looked.
            settings: What is worth saying.
            kinds: Which kinds are said; None = all.
            options: From :meth:`parse_options`; those that decide how scenes are written count.
        """
        chosen = self.scene_settings(settings, options or {})
        return type(self).scene_encoder(scenes, settings.words, kinds, **chosen)

    def scene_settings(self, settings: VerbalizerSettings, options: Mapping[str, Any]) -> dict[str, Any]:
        """What :attr:`scene_encoder` takes beside scenes, words and kinds; see :meth:`encode_scenes`."""
        return {}

    @staticmethod
    def join_scene_inputs(found: Mapping[str, Sequence[Any]], counts: Sequence[int]) -> dict[str, list[Any]]:
        """What :meth:`encode` takes of prompts with any number of images.

        Args:
            found: From :meth:`encode_scenes`, one entry per image.
            counts: Images per prompt.

        Returns:
            One entry per prompt: None without an image; texts and maps of several joined as in training.
        """
        ends = np.cumsum(counts)
        return {
            name: [_join_found(list(rows[end - count : end])) for end, count in zip(ends, counts, strict=True)]
            for name, rows in found.items()
        }

    def encode(
        self,
        images: Sequence[Image.Image],
        prompts: Sequence[Any],
        scene_inputs: Mapping[str, Any],
        max_new_tokens: int,
        options: Mapping[str, Any] | None = None,
    ) -> BatchFeature:
        """Model inputs of a batch, padded on the left, on the model's device.

        Args:
            images: Per prompt one, or a list of those of a conversation.
            prompts: From :meth:`prepare` or :meth:`prepare_conversation`.
            scene_inputs: What the model's ``encode_scenes`` made of what verbalizers found; one entry per prompt.
            max_new_tokens: As in :meth:`prepare`.
            options: From :meth:`parse_options`; those that decide how a prompt is written count.

        Raises:
            TooLongError: Prompts are too long together with what was found.
        """
        chosen = options or {}
        batch = self.build_batch(images, prompts, scene_inputs, chosen)
        if self.bounded_by is not None:
            kept = max_new_tokens + chosen.get("images", 0) * self.shortest_prompt
            self.check_lengths(batch["attention_mask"].sum(dim=1).tolist(), kept, *self.bounded_by)
        return batch.to(self.model.device, dtype=self.model.dtype)

    @abstractmethod
    def build_batch(
        self, images: Sequence[Any], prompts: Sequence[Any], found: Mapping[str, Any], options: Mapping[str, Any]
    ) -> BatchFeature:
        """The batch of :meth:`encode`, where it is made; ``found`` are its ``scene_inputs``."""

    @classmethod
    def parse_options(cls, options: Mapping[str, Any]) -> dict[str, Any]:
        """Options of an answer by name, from the form of the command line to that of Python.

        Raises:
            ValueError: The model has no such option, or the value is wrong.
        """
        unknown = sorted(set(options) - set(cls.option_names))
        if unknown:
            known = ", ".join(cls.option_names) or "none"
            raise ValueError(f"expected options that this model has ({known}), got {', '.join(unknown)}.")
        chosen = dict(options)
        if "choices" in chosen:
            chosen["choices"] = parse_choices(chosen["choices"])
        return chosen

    @classmethod
    def check_drawn_options(cls, wanted: Mapping[str, Any]) -> None:
        """Check what :meth:`draw_options` is to take, before a model is there.

        Raises:
            ValueError: The model has no such option, or the value is wrong.
        """
        cls.parse_options(wanted)

    def draw_options(self, wanted: Mapping[str, Any], seed: tuple[int, ...]) -> dict[str, Any]:
        """Options of an answer for a batch of a sweep's test; see :class:`moai.evaluation.sweep_settings.SweepTest`.

        Args:
            wanted: Options by name; empty = the model's own ways.
            seed: Numbers that decide what is random.

        Raises:
            ValueError: See :meth:`check_drawn_options`.
        """
        return self.parse_options(wanted)

    def select_options(self, options: Mapping[str, Any], indices: Sequence[int], num_queries: int) -> dict[str, Any]:
        """Arguments of :meth:`generate` for some of the queries of a call.

        Args:
            options: See :meth:`parse_options`.
            indices: Places of the batch's queries in the call.
            num_queries: Of the call.

        Raises:
            ValueError: The model has no such option, or the value is wrong.
        """
        return self.parse_options(options)

    def generate(
        self, inputs: BatchFeature, options: Mapping[str, Any], is_reporting: bool, **generate_kwargs: Any
    ) -> list[GeneratedAnswer]:
        """Generate one answer per row; with the option ``choices`` the likeliest of them is the answer.

        Reports of a choice hold the log-probabilities of all under ``choices``.

        Args:
            inputs: From :meth:`encode`.
            options: From :meth:`select_options`.
            is_reporting: Whether answers carry reports.
            **generate_kwargs: To ``generate``; and ``on_tokens``, called at the end with the new tokens ``(B, T)`` and
                each row's log-probabilities.
        """
        if "choices" not in options:
            return self._generate_texts(inputs, options, is_reporting, **generate_kwargs)[0]
        choices, answers = options["choices"], []
        for scores in self.score_choices(inputs, options):  # (choices,)
            report = {"choices": dict(zip(choices, scores.tolist(), strict=True))} if is_reporting else {}
            confidence = confidence_of_choice(scores.tolist())
            answers.append(GeneratedAnswer((choices[int(scores.argmax())],), report, confidence))
        tell_streamer(generate_kwargs.get("streamer"), answers[0])
        return answers

    def finish_text(self, text: str, options: Mapping[str, Any]) -> str:
        """The answer in a generated text, white space at its ends removed.

        Args:
            text: Without special tokens.
            options: From :meth:`select_options`.
        """
        return text.strip()

    def list_stops(self, options: Mapping[str, Any]) -> tuple[str, ...]:
        """Strings at which :meth:`finish_text` ends an answer: nothing behind them need be generated."""
        return ()

    def can_stream(self, options: Mapping[str, Any]) -> bool:
        """Whether :meth:`finish_text` leaves what it keeps as it is, so that an answer shows before its end."""
        return True

    @property
    def end_ids(self) -> frozenset[int]:
        """Tokens that end an answer."""
        ids = self.model.generation_config.eos_token_id
        return frozenset(() if ids is None else [ids] if isinstance(ids, int) else ids)

    @property
    def longest_sequence(self) -> int | None:
        """Tokens that the model reads, prompt and answer together; None = no bound is known."""
        return getattr(self.model.config, "max_positions", None)

    def draw(self, parts: Sequence[str | Image.Image], options: Mapping[str, Any]) -> Image.Image:
        """Draw an image.

        Args:
            parts: The prompt, texts and images in reading order; texts are data.
            options: From :meth:`parse_options`; those of drawing.

        Raises:
            ValueError: The model draws nothing, or not this.
        """
        raise ValueError(
            f"expected a model that draws (an Emu with its visual decoder), got a {type(self.model).__name__}, which "
            "answers in text. Leave --image-out out, or choose another --model."
        )

    @property
    def confidence_threshold(self) -> float:
        """Confidence below which an answer is told to be unsure: the config's ``confidence_threshold``, 0 = never.

        It is a field of ``config.json``: transformers drops what it does not know from some ``generation_config.json``.

        Raises:
            ValueError: It is no probability.
        """
        value = getattr(self.model.config, "confidence_threshold", DEFAULT_CONFIDENCE_THRESHOLD)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
            raise ValueError(
                f"expected a `confidence_threshold` from 0 to 1 in config.json, got {value!r}. Correct it."
            )
        return value

    def _generate_texts(
        self, inputs: BatchFeature, options: Mapping[str, Any], is_reporting: bool, **generate_kwargs: Any
    ) -> tuple[list[GeneratedAnswer], Any]:
        """Answers in text, and what ``generate`` returned.

        Args:
            inputs: From :meth:`encode`.
            options: For :meth:`finish_text`.
            is_reporting: Whether answers carry reports.
            **generate_kwargs: To ``generate``.
        """
        follow = generate_kwargs.pop("on_tokens", None)
        criteria = list(generate_kwargs.pop("stopping_criteria", None) or ())
        if stops := generate_kwargs.pop("stop_strings", None):
            criteria.append(StopStringCriteria(generate_kwargs.pop("tokenizer", self.tokenizer), stops))
        recorder = TokenRecorder(*inputs["input_ids"].shape, self._list_ends(generate_kwargs), criteria)
        processors = [recorder.processor, *(generate_kwargs.pop("logits_processor", None) or ())]
        result = self._run_generate(
            inputs,
            logits_processor=LogitsProcessorList(processors),
            stopping_criteria=StoppingCriteriaList([recorder.criterion]),
            **generate_kwargs,
        )
        found = recorder.read(result.sequences)
        if follow is not None:
            follow(result.sequences[:, inputs["input_ids"].shape[1] :], found)
        rows = zip(self._decode(result, inputs), self._report_tokens(result, is_reporting), found, strict=True)
        answers = [
            GeneratedAnswer((self.finish_text(text, options),), report, confidence_of(chosen))
            for text, report, chosen in rows
        ]
        return answers, result

    def _list_ends(self, generate_kwargs: Mapping[str, Any]) -> frozenset[int]:
        ids = generate_kwargs.get("eos_token_id")
        return self.end_ids if ids is None else frozenset([ids] if isinstance(ids, int) else ids)

    @torch.inference_mode()
    def _run_generate(self, inputs: BatchFeature, **kwargs: Any) -> Any:
        return self.model.generate(**inputs, **{"do_sample": False, "return_dict_in_generate": True} | kwargs)

    def _report_tokens(self, result: Any, is_reporting: bool) -> list[dict[str, Any]]:
        """Per row ``tokens``, the answer's tokens with their probabilities, where ``output_scores`` asked for scores.

        With greedy decoding each also has ``others``, the likeliest tokens in its place.
        """
        if not is_reporting or getattr(result, "scores", None) is None:
            return [{}] * len(result.sequences)
        beams = getattr(result, "beam_indices", None)
        scores = self.model.compute_transition_scores(
            result.sequences, result.scores, beams, normalize_logits=beams is None
        )
        reports = []
        for row, ids in enumerate(result.sequences[:, -scores.shape[1] :].tolist()):
            tokens = []
            for place, token in enumerate(ids):
                told = {"token": self.tokenizer.decode([token]), "probability": scores[row, place].exp().item()}
                if beams is None:
                    likeliest = result.scores[place][row].float().softmax(-1).topk(3)
                    rows = zip(likeliest.indices.tolist(), likeliest.values.tolist(), strict=True)
                    told["others"] = [
                        (self.tokenizer.decode([other]), share) for other, share in rows if other != token
                    ]
                tokens.append(told)
                if token in self.end_ids:
                    break
            reports.append({"tokens": tokens})
        return reports

    def explain(
        self,
        image: Image.Image,
        question: str,
        scene: Any,
        settings: VerbalizerSettings,
        answer: str,
        options: Mapping[str, Any] | None = None,
    ) -> tuple[list[str], list[tuple[str, float]]]:
        """What else is known about an answer: nothing, for most models.

        Args:
            image: What was asked about.
            question: What was asked.
            scene: What was found.
            settings: How it is said.
            answer: What was answered.
            options: The model's own, by name, under which it was.

        Returns:
            The prompt's words, one per row of a report's language routing; and the tokens of the verbalization, each
            with its share of what the answer rests on.
        """
        return [], []

    def words_in_prompt(self) -> Answering:
        """The same model without an image, reading the verbalization as words of its prompt.

        Raises:
            ValueError: It has no decoder that reads words alone.
        """
        if self.reads_words_alone:
            other = copy(self)
            other.shows_image = False
            return other
        raise ValueError(
            f"expected a model whose decoder reads words without an image, got {type(self.model).__name__}. Leave the "
            "baseline words-in-prompt out, or name a decoder that reads them."
        )

    def encode_choice(self, choice: str, inputs: BatchFeature) -> list[int]:
        """Ids of an answer behind the prompts of a batch, its end included."""
        tokenizer = self.tokenizer
        last = tokenizer.decode(inputs["input_ids"][0, -1:])
        is_mid_line = last.strip() and int(inputs["input_ids"][0, -1]) not in tokenizer.all_special_ids
        ids = tokenizer(" " * bool(is_mid_line) + choice, add_special_tokens=False)["input_ids"]
        end = self.model.generation_config.eos_token_id
        end = end[0] if isinstance(end, list) else end
        return ids if end is None else [*ids, end]

    @torch.inference_mode()
    def score_choices(self, inputs: BatchFeature, options: Mapping[str, Any]) -> torch.Tensor:
        """Log-probabilities ``(B, choices)`` of given answers behind each row's prompt.

        Args:
            inputs: From :meth:`encode`.
            options: ``choices``, the answers, as data; the others are the model's arguments.
        """
        prompt, columns = inputs["input_ids"], []
        forward_kwargs = {name: value for name, value in options.items() if name != "choices"}
        for choice in options["choices"]:
            ids = torch.tensor(self.encode_choice(choice, inputs), device=prompt.device).expand(len(prompt), -1)
            following = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
            rows = {
                name: torch.cat([value, following.get(name, torch.zeros_like(ids)).to(value.dtype)], dim=1)
                for name, value in inputs.items()
                if isinstance(value, torch.Tensor) and value.shape == prompt.shape
            }
            logits = self.model(**{**inputs, **rows}, **forward_kwargs).logits[:, -ids.shape[1] - 1 : -1]
            columns.append(logits.float().log_softmax(dim=-1).gather(-1, ids[..., None]).sum(dim=(1, 2)))
        return torch.stack(columns, dim=1)

    def _decode(self, result: Any, inputs: BatchFeature) -> list[str]:
        new_tokens = result.sequences[:, inputs["input_ids"].shape[1] :]
        return self.processor.batch_decode(new_tokens, skip_special_tokens=True)


def tell_streamer(streamer: Any, answer: GeneratedAnswer) -> None:
    """Give the whole text of an answer to a streamer, if there is one."""
    if streamer is not None:
        texts = [part for part in answer.parts if isinstance(part, str)]
        streamer.on_finalized_text("".join(texts), stream_end=True)


def _join_found(items: list[Any]) -> Any:
    """What was found in the images of one prompt; None where that is nothing."""
    if len(items) == 1:
        return items[0]
    if any(isinstance(item, str) for item in items):
        return join_texts([item or "" for item in items])
    maps = [item for item in items if item is not None]
    return join_maps(maps) if maps and len(maps) == len(items) else None


def join_turns(question: str, earlier: Sequence[tuple[str, str]]) -> str:
    """A question with the turns before it in front, for models that know no turns."""
    return " ".join([*(f"{asked} {answer.rstrip(' .')}." for asked, answer in earlier), question])


def parse_choices(value: Any) -> list[str]:
    """Answers to choose from: a list, or ``"yes,no"``.

    Raises:
        ValueError: They are not two or more different texts.
    """
    given = [choice.strip() for choice in value.split(",")] if isinstance(value, str) else value
    is_well = isinstance(given, (list, tuple)) and all(isinstance(c, str) and c.strip() for c in given)
    if not is_well or len(set(given)) < max(2, len(given)):
        raise ValueError(f"`choices` must be two or more different answers (yes,no), got {given!r}.")
    return list(given)


def load_whole(model_class: type, path: str | Path, dtype: torch.dtype | str) -> Any:
    """Load a model whose weights are plain numbers, also where it was saved quantised.

    Args:
        model_class: What loads it.
        path: Checkpoint.
        dtype: Of its weights; "auto" = as they are stored.
    """
    model = model_class.from_pretrained(path, dtype=dtype)
    if not getattr(model, "is_quantized", False):
        return model
    stored = model.dtype
    return model.dequantize().to(stored)

"""MoAIProcessor: images, text, auxiliary text and map -> model inputs. It knows no verbalizer.

The work is in its neighbours: `image_loading` and `image_processing_moai` (pixels), `chat_templates` and
`control_tokens` (prompts), `sample_encoding` and `sample_batching` (rows of integers).
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Unpack

from PIL import Image
from transformers import BatchFeature
from transformers.processing_utils import MultiModalData, ProcessorMixin

from verbalizers.core.valid_text import make_valid

from ...processing.control_tokens import ControlTokenGuard
from ...processing.image_loading import DEFAULT_MAX_PIXELS, ImageSource, view_image
from ...processing.pixel_values import compute_pixel_values
from ...processing.sample_batching import (
    as_list,
    group_images_by_placeholders,
    group_images_by_question,
    one_per_sample,
    pad_rows,
    unique_objects,
)
from .answer_turns import TurnMarks, find_turn_marks
from .chat_templates import TURN_HEADERS, default_chat_templates
from .image_processing_moai import compute_map_pixel_values
from .processor_arguments import MoAIProcessorKwargs, refuse_unknown, tokenizer_defaults
from .remote_code import MODULE, InstalledCode, write_remote_code
from .sample_encoding import SampleEncoder
from .token_offsets import can_locate_tokens, locate_replacements
from .tokenization_internlm2 import IMAGE_TOKEN


class MoAIProcessor(InstalledCode, ProcessorMixin):
    """Turns images, prompts, auxiliary text and maps into a batch for `MoAIForConditionalGeneration`.

    Args:
        image_processor: Makes `pixel_values`; `MoAIImageProcessor` reproduces the release.
        tokenizer: Any Hugging Face tokenizer that knows `image_token`.
        chat_template: Jinja template, or {"default": ..., "demo": ...}. `None` takes the released prompts, or ChatML
            where the tokenizer speaks it (`moai.models.moai.chat_templates`).
        image_token: Placeholder of one image.
        num_image_tokens: Patch tokens per image (1225 for 490x490 px and patches of 14 px).
        auxiliary_map_scale: Factor on the panoptic map's 0..255 colours before normalisation. 1 is right; 1/255
            reproduces the release, whose map is 0..1 but normalised as 0..255 (after one pass through float16), and
            is needed for its weights.
        auxiliary_map_side: Height and width of the map in pixels, a multiple of the tower's patch size; None = as the
            images. A coarser map costs less: half the side a quarter of its patches.
        max_length: Longest sequence in tokens, image tokens and answer included; `None` sets no bound.
        max_auxiliary_length: Longest auxiliary text in tokens. Longer ones lose their end, with a warning.
        max_image_pixels: Largest image that is decoded, in pixels.

    Raises:
        ValueError: `num_image_tokens` is missing, or the tokenizer does not know `image_token`.
    """

    valid_processor_kwargs = MoAIProcessorKwargs
    text_kwargs = {
        "padding": True,
        "padding_side": "left",
        "truncation": False,
        "return_tensors": "pt",
    }

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        chat_template: str | dict[str, str] | None = None,
        image_token: str = IMAGE_TOKEN,
        num_image_tokens: int | None = None,
        auxiliary_map_scale: float = 1.0,
        auxiliary_map_side: int | None = None,
        max_length: int | None = None,
        max_auxiliary_length: int | None = None,
        max_image_pixels: int = DEFAULT_MAX_PIXELS,
    ) -> None:
        if not isinstance(num_image_tokens, int) or num_image_tokens < 1:
            raise ValueError(
                f"`num_image_tokens` must be the number of patch tokens per image, got {num_image_tokens!r}. "
                "Pass (height // patch_size) * (width // patch_size), or the model's config.num_image_tokens."
            )
        self.image_token = image_token
        self.num_image_tokens = num_image_tokens
        self.auxiliary_map_scale = auxiliary_map_scale
        self.auxiliary_map_side = auxiliary_map_side
        self.max_length = max_length
        self.max_auxiliary_length = max_auxiliary_length
        self.max_image_pixels = max_image_pixels
        guard = ControlTokenGuard(tokenizer, [image_token, *TURN_HEADERS])
        if chat_template is None:
            chat_template = default_chat_templates(guard.literals)
        super().__init__(image_processor, tokenizer, chat_template=chat_template)
        if guard.encode(image_token) != [self.image_token_id]:
            raise ValueError(
                f"the tokenizer must read {image_token!r} as one token, got {guard.encode(image_token)}. Add it: "
                f"tokenizer.add_special_tokens({{'extra_special_tokens': [{image_token!r}]}}, "
                "replace_extra_special_tokens=False), and resize the model's embeddings."
            )

    @property
    def image_token_id(self) -> int:
        """Id of `image_token`; `MoAIConfig.image_token_id` must equal it."""
        return self.tokenizer.convert_tokens_to_ids(self.image_token)

    @property
    def encoder(self) -> SampleEncoder:
        """Encoding and escaping for the present tokenizer (rebuilt when tokens were added to it)."""
        key = (id(self.tokenizer), len(self.tokenizer), self.image_token, self.num_image_tokens, self.chat_template)
        cached = self.__dict__.get("_encoder")
        if cached is None or cached[0] != key:
            guard = ControlTokenGuard(self.tokenizer, [self.image_token, *TURN_HEADERS])
            cached = (key, SampleEncoder(guard, self.image_token, self.num_image_tokens, self._turn_marks()))
            self.__dict__["_encoder"] = cached
        return cached[1]

    def _turn_marks(self) -> tuple[TurnMarks, ...]:
        """How assistant turns look in the processor's own chat templates."""
        own = self.chat_template
        templates = own.values() if isinstance(own, dict) else [own]
        variables = {**self.tokenizer.special_tokens_map, "image_token": self.image_token}
        found = [find_turn_marks(template, **variables) for template in templates]
        return tuple(marks for marks in found if marks is not None)

    @property
    def model_input_names(self) -> list[str]:
        """Keys of a batch of prompts and images; `auxiliary_input_names` are those of what may stand beside them."""
        return ["input_ids", "attention_mask", "mm_token_type_ids", "pixel_values"]

    @property
    def auxiliary_input_names(self) -> list[str]:
        """Keys that auxiliary texts and maps add to a batch."""
        return [
            "auxiliary_input_ids",
            "auxiliary_attention_mask",
            "auxiliary_pixel_values",
            "auxiliary_source_mask",
        ]

    def to_dict(self) -> dict[str, Any]:
        """Settings for ``processor_config.json``."""
        self.__dict__.pop("_encoder", None)  # the parent deep-copies every attribute; this one holds the tokenizer
        return super().to_dict() | {"auto_map": {"AutoProcessor": f"{MODULE}.{type(self).__name__}"}}

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> list[str]:
        """Write the processor's files, and what lets transformers load it with ``trust_remote_code=True``.

        Args:
            save_directory: Folder.
            *args: See :meth:`transformers.ProcessorMixin.save_pretrained`.
            **kwargs: Likewise.

        Returns:
            The files written.
        """
        files = super().save_pretrained(save_directory, *args, **kwargs)
        write_remote_code(save_directory)
        return files

    def _get_num_multimodal_tokens(
        self, image_sizes: Sequence[Sequence[int]] | None = None, **kwargs: Any
    ) -> MultiModalData:
        """Count tokens without images (transformers' hook for servers that plan ahead).

        Args:
            image_sizes: Height and width of each image, in pixels; every size gives as many tokens.
            **kwargs: Settings of a call, without influence on the count.

        Returns:
            `num_image_tokens` and `num_image_patches` per image; both None without `image_sizes`.
        """
        if image_sizes is None:
            return MultiModalData()
        return MultiModalData(
            num_image_tokens=[self.num_image_tokens] * len(image_sizes), num_image_patches=[1] * len(image_sizes)
        )

    def replace_image_token(self, image_inputs: dict, image_idx: int, **kwargs: Any) -> str:
        """Text that stands for one image (transformers' hook for tools that expand prompts themselves)."""
        return self.image_token * self.num_image_tokens

    def apply_chat_template(
        self,
        conversation: Sequence[Any],
        chat_template: str | None = None,
        *,
        sanitize_control_tokens: bool = True,
        **kwargs: Any,
    ) -> Any:
        """Render conversations; every text in them is data.

        Args:
            conversation: Messages as in transformers: {"role": ..., "content": text or list of parts}, one
                conversation or a list of them. An image is a part {"type": "image", "image": ...}; the literal
                `image_token` inside a text makes no image.
            chat_template: Template or name of one; `None` takes "default".
            sanitize_control_tokens: Whether control tokens inside texts are kept from steering. On by default.
            **kwargs: As in transformers (`add_generation_prompt`, `tokenize`, `return_dict`, `processor_kwargs`).

        Returns:
            The prompt (a literal that was defused carries an invisible break mark, which `processor(text=...)`
            removes), or the batch with `tokenize=True, return_dict=True`.

        Raises:
            ValueError: `chat_template` is neither a template nor the name of one.
        """
        template = self._resolve_chat_template(chat_template)
        if "{" not in template:  # otherwise a misspelt name would be rendered as the prompt itself
            names = sorted(self.chat_template) if isinstance(self.chat_template, dict) else ["default"]
            raise ValueError(f"`chat_template` must be a Jinja template or one of {names}, got {template!r}.")
        if sanitize_control_tokens:
            conversation = self._escape_conversation(conversation)
        if "image_token" in template:
            kwargs.setdefault("image_token", self.image_token)
        if kwargs.get(
            "return_assistant_tokens_mask"
        ):  # transformers makes the mask a list: so is the rest, unless asked
            kwargs.setdefault("return_tensors", (kwargs.get("processor_kwargs") or {}).get("return_tensors"))
        return super().apply_chat_template(conversation, chat_template=template, **kwargs)

    def _prepare_processor_kwargs(
        self,
        chat_template: str,
        processor_kwargs: dict,
        kwargs: dict,
        add_generation_prompt: bool,
        continue_final_message: bool,
        return_assistant_tokens_mask: bool,
    ) -> dict:
        # transformers takes it that only tokenizers of the tokenizers library know their offsets.
        knows = return_assistant_tokens_mask and not self.tokenizer.is_fast and can_locate_tokens(self.tokenizer)
        is_asking = return_assistant_tokens_mask and not (knows and not continue_final_message)
        modes = (add_generation_prompt, continue_final_message, is_asking)
        settings = super()._prepare_processor_kwargs(chat_template, processor_kwargs, kwargs, *modes)
        if knows:
            settings |= {"return_offsets_mapping": True, "return_text_replacement_offsets": True}
        return settings

    def _resolve_chat_template(self, chat_template: str | None) -> str:
        if chat_template == "default" and isinstance(self.chat_template, str):
            return self.chat_template
        return super()._resolve_chat_template(chat_template)

    def _escape_conversation(self, conversation: Any) -> Any:
        if isinstance(conversation, (list, tuple)):
            return [self._escape_conversation(item) for item in conversation]
        if not isinstance(conversation, Mapping):
            return conversation
        escape = self.encoder.guard.escape
        message = dict(conversation)
        if message.get("type") == "image" and isinstance(message.get("base64"), str):
            message["image"] = "data:image;base64," + message.pop("base64")
        for key in ("content", "text", "role"):
            value = message.get(key)
            if isinstance(value, str):
                message[key] = escape(value)
            elif isinstance(value, (list, tuple)):
                message[key] = [self._escape_conversation(part) for part in value]
        return message

    def build_prompts(
        self,
        questions: str | Sequence[str],
        num_images: int | Sequence[int] = 1,
        chat_template: str | None = None,
    ) -> list[str]:
        """Prompts for questions about images; question text is data.

        Args:
            questions: One question or several.
            num_images: Images per question: one number for all or one each.
            chat_template: Template or name of one ("demo" for the release's demo prompt).

        Returns:
            One prompt per question, ending where the answer begins.

        Raises:
            ValueError: A question is empty.
        """
        asked = as_list(questions)
        counts = [num_images] * len(asked) if isinstance(num_images, int) else list(num_images)
        conversations = []
        for index, (question, count) in enumerate(zip(asked, counts, strict=True)):
            if not isinstance(question, str) or not question.strip():
                raise ValueError(
                    f"question {index} must be text, got {question!r}. Ask something, for example 'What is this?'."
                )
            content = [{"type": "image"}] * count + [{"type": "text", "text": question}]
            conversations.append([{"role": "user", "content": content}])
        if not conversations:
            raise ValueError("expected at least one question, got an empty list.")
        return self.apply_chat_template(conversations, chat_template, add_generation_prompt=True)

    def __call__(
        self,
        images: ImageSource | Sequence[Any] | None = None,
        text: str | Sequence[str] | None = None,
        auxiliary_text: str | Sequence[str | None] | None = None,
        auxiliary_images: Any = None,
        *,
        questions: str | Sequence[str] | None = None,
        answers: str | Sequence[str] | None = None,
        chat_template: str | None = None,
        allow_urls: bool | None = None,
        **kwargs: Unpack[MoAIProcessorKwargs],
    ) -> BatchFeature:
        """Build model inputs.

        Args:
            images: Images (anything `load_image` reads): one, a flat list, or one list per prompt.
            text: Prompts whose control tokens and placeholders COUNT (from `apply_chat_template`). Never put user
                text in here by hand: use `questions`. Where one goes on behind the place where the assistant is to
                speak (in the processor's own chat templates), the rest is answer: role 0. A conversation that ends
                with a finished answer is answer from its first one on; see `moai.models.moai.answer_turns`.
            auxiliary_text: What the verbalizers said, one string per prompt. Data. "" = they found nothing; `None` =
                nobody looked: the prompt is read as without auxiliary text, whatever stands beside it.
            auxiliary_images: Panoptic colour maps (H, W, 3) uint8, one per prompt; `None` = there is none.
            questions: Instead of `text`: plain questions, as data, put into the chat template.
            answers: Training targets, as data; adds `labels`, and EOS behind each answer.
            chat_template: Template (name) for `questions`.
            allow_urls: Whether http(s) addresses among `images` are followed; None = no.
            **kwargs: Settings as for every transformers processor: those of text (`MoAITextKwargs`: `padding`,
                `padding_side`, `truncation`, `max_length`, `return_tensors`, ...) and of the image processor
                (`do_rescale`, `size`, ...), alone or in `text_kwargs`, `images_kwargs` and `common_kwargs`;
                `return_text_replacement_offsets` tells what each placeholder became.

        Returns:
            `input_ids`, `attention_mask`, `mm_token_type_ids` (0 padding or answer, 1 image, 2 prompt language), each
            (B, L) int64; `pixel_values` (images, 3, H, W) float32; where auxiliary inputs are given
            `auxiliary_input_ids`, `auxiliary_attention_mask` (B, A) int64, `auxiliary_pixel_values` (B, 3, H, W)
            float32, and where only some prompts have them `auxiliary_source_mask` (B, 2) int64, 1 = has a text, has
            a map; with `answers` also `labels` (B, L), -100 where no loss is taken.

        Raises:
            ValueError: Counts do not match, a text is empty or too long, or an image cannot be read.
        """
        refuse_unknown(kwargs, self.image_processor)
        given = {name: value for name, value in kwargs.items() if value is not None or name == "return_tensors"}
        defaults = tokenizer_defaults(self.tokenizer, given)
        merged = self._merge_kwargs(MoAIProcessorKwargs, tokenizer_init_kwargs=defaults, **given)
        settings, images_kwargs = merged["text_kwargs"], merged["images_kwargs"]
        return_tensors = settings.get("return_tensors")
        images_kwargs.pop("return_tensors", None)
        limit, truncation = settings.get("max_length") or self.max_length, settings["truncation"]
        add_special_tokens, multiple_of = settings.get("add_special_tokens", True), settings.get("pad_to_multiple_of")
        questions = None if questions is None else as_list(questions)  # a generator can be read but once
        prompts, groups = self._prompts_and_images(images, text, questions, chat_template)
        given, image_index = unique_objects([image for group in groups for image in group])
        access = {"allow_urls": bool(allow_urls), "allow_data_urls": True}
        loaded = [view_image(image, self.max_image_pixels, **access) for image in given]
        data: dict[str, Any] = {}
        if prompts is not None:
            samples = []
            for index, target in enumerate(one_per_sample(answers, len(prompts), "answers")):
                sample = self.encoder.encode_sample(prompts[index], target, add_special_tokens)
                if limit is not None and len(sample["input_ids"]) > limit:
                    if questions is None or not truncation:
                        raise self.encoder.too_long(index, sample, limit, can_cut=questions is not None)
                    asked, count = questions[index], len(groups[index])
                    sample = self._cut_question(asked, count, chat_template, target, add_special_tokens, limit)
                samples.append(sample)
            if settings.get("return_offsets_mapping"):
                for prompt, sample in zip(prompts, samples, strict=True):
                    self.encoder.add_offsets(sample, prompt)
            data |= self.encoder.pad_samples(samples, settings["padding"], settings["padding_side"], limit, multiple_of)
            if merged["return_text_replacement_offsets"]:
                kind = (self.image_token, self.num_image_tokens)
                data["text_replacement_offsets"] = [locate_replacements(prompt, *kind) for prompt in prompts]
        if loaded:
            data["pixel_values"] = compute_pixel_values(self.image_processor, loaded, **images_kwargs)[image_index]
        num_samples = None if prompts is None else len(prompts)
        data |= self._auxiliary_inputs(auxiliary_text, auxiliary_images, num_samples, multiple_of)
        if not data:
            raise ValueError("expected images, text or questions, got none of them. Pass at least one.")
        return BatchFeature(data, return_tensors, skip_tensor_conversion=self.skip_tensor_conversion)

    def _prompts_and_images(
        self, images: Any, text: Any, questions: Any, chat_template: str | None
    ) -> tuple[list[str] | None, list[list[Any]]]:
        """Prompts and, for each of them, its images."""
        if text is not None and questions is not None:
            raise ValueError("expected `text` or `questions`, got both. `text` is a whole prompt, a question is data.")
        if questions is not None:
            asked = as_list(questions)
            groups = group_images_by_question(images, len(asked))
            prompts = self.build_prompts(asked, [len(group) for group in groups], chat_template)
            counts = [prompt.count(self.image_token) for prompt in prompts]  # a custom template may write none
            return prompts, group_images_by_placeholders(groups, counts, self.image_token)
        if text is None:
            flat = [] if images is None else as_list(images)
            return None, [as_list(item) for item in flat]
        prompts = [make_valid(prompt) for prompt in as_list(text)]
        for index, prompt in enumerate(prompts):
            if not isinstance(prompt, str) or not prompt:
                raise ValueError(f"prompt {index} must be a non-empty string, got {prompt!r}.")
        counts = [prompt.count(self.image_token) for prompt in prompts]
        return prompts, group_images_by_placeholders(images, counts, self.image_token)

    def _cut_question(
        self, question: str, num_images: int, chat_template: str | None, answer: str | None, bos: bool, limit: int
    ) -> dict[str, list[int]]:
        """Drop as much of a question's end as does not fit; warn with both numbers."""
        guard = self.encoder.guard
        ids = guard.encode_data(question)
        kept = len(ids)
        while kept > 0:
            shortened = self.tokenizer.decode(ids[:kept]).rstrip("\ufffd")  # a character cut between its bytes
            if not shortened.strip():
                break
            prompt = self.build_prompts(shortened, num_images, chat_template)[0]
            sample = self.encoder.encode_sample(prompt, answer, bos)
            excess = len(sample["input_ids"]) - limit
            if excess <= 0:
                warnings.warn(
                    f"a question of {len(ids)} tokens was cut to its first {kept} to fit `max_length` {limit}."
                )
                return sample
            kept -= excess
        raise ValueError(
            f"`max_length` is {limit} tokens, which leaves no room for a question beside {num_images} images of "
            f"{self.num_image_tokens} tokens and the answer. Raise `max_length`."
        )

    def _auxiliary_inputs(
        self, texts: Any, maps: Any, num_samples: int | None, multiple_of: int | None
    ) -> dict[str, Any]:
        """Auxiliary ids, mask and map pixels; absent where nothing was given for any sample."""
        data: dict[str, Any] = {}
        texts = one_per_sample(texts, num_samples, "auxiliary texts")
        if any(item is not None for item in texts):
            limit = self.max_auxiliary_length
            encode = self.encoder.encode_auxiliary
            rows = [[] if item is None else encode(index, item, limit) for index, item in enumerate(texts)]
            data["auxiliary_input_ids"] = pad_rows(rows, self.encoder.pad_id, multiple_of=multiple_of)
            data["auxiliary_attention_mask"] = pad_rows([[1] * len(r) for r in rows], 0, multiple_of=multiple_of)
        maps = one_per_sample(maps, num_samples, "auxiliary images")
        if any(item is not None for item in maps):
            black = Image.new("RGB", (1, 1))
            given, map_index = unique_objects(maps)
            loaded = [black if item is None else view_image(item, self.max_image_pixels) for item in given]
            values = compute_map_pixel_values(
                self.image_processor, loaded, self.auxiliary_map_scale, self.auxiliary_map_side
            )
            data["auxiliary_pixel_values"] = values[map_index]
        num_rows = max(len(texts), len(maps))
        columns = [[int(item is not None) for item in items] or [0] * num_rows for items in (texts, maps)]
        if any(0 < sum(column) < num_rows for column in columns):  # some samples have what others lack
            data["auxiliary_source_mask"] = list(zip(*columns, strict=True))
        return data

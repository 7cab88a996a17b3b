"""MoAIPipeline: image + question -> answer. The only file that joins the verbalizers and the model.

Image -> scene (verbalizers) -> text and map -> ``MoAIProcessor`` -> ``generate`` -> text. A verbalizer that fails or
is not there costs its findings, never the answer; ``MoAIOutput.missing`` says which and why.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from verbalizers import Scene, Verbalizer, render_segmentation_map, verbalize_scene

from ..checkpoints.io.lookup import check_model_type, find_checkpoint
from ..checkpoints.io.saving import replacing_files
from ..checkpoints.io.verbalizer_settings import (
    VerbalizerSettings,
    build_named_verbalizers,
    complete_scenes,
    find_missing_kinds,
)
from ..models.moai.modeling_moai import MoAIForConditionalGeneration
from ..models.moai.quantization import is_stored_quantized
from ..processing.image_loading import ImageSource
from ..processing.processing_moai import MoAIProcessor
from .outputs import MoAIOutput, PipelineError, PromptRouting
from .queries import Query, pair_queries, select_routing
from .streaming import AnswerStream, CallbackStreamer

__all__ = ["DEFAULT_TIMEOUT_S", "MoAIOutput", "MoAIPipeline", "PipelineError"]

#: Seconds per image after which a verbalizer is given up.
DEFAULT_TIMEOUT_S = 60.0
DEFAULT_MAX_NEW_TOKENS = 128


class MoAIPipeline:
    """Answers questions about images.

    Args:
        model: The model, in evaluation mode on its device.
        processor: Its processor.
        verbalizers: Ready verbalizers, at most one per kind; empty = answers rest on the image alone.
        settings: What the model was taught to read and how it is said.
        absent: Kinds whose verbalizer could not be built, and why.

    Raises:
        ValueError: Model and processor do not belong together.
    """

    def __init__(
        self,
        model: MoAIForConditionalGeneration,
        processor: MoAIProcessor,
        verbalizers: Iterable[Verbalizer] = (),
        settings: VerbalizerSettings | None = None,
        absent: Mapping[str, str] | None = None,
    ) -> None:
        self.model, self.processor = model, processor
        self.verbalizers = list(verbalizers)
        self.settings = settings or VerbalizerSettings()
        self.absent = dict(absent or {})
        wanted = (model.config.image_token_id, model.config.image_seq_length)
        got = (processor.image_token_id, processor.num_image_tokens)
        if wanted != got:
            raise ValueError(
                f"expected a processor with image token id {wanted[0]} and {wanted[1]} tokens per image, as the "
                f"model has, got {got[0]} and {got[1]}. Load both from one folder."
            )

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        verbalizers: Iterable[Verbalizer | str] | str | None = None,
        *,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        load_in_4bit: bool = False,
        load_in_8bit: bool = False,
        revision: str | None = None,
        **model_kwargs: Any,
    ) -> MoAIPipeline:
        """Load model, processor and the verbalizers that the checkpoint names.

        Args:
            name_or_path: Folder, bundled name (``"moai-nano"``) or hub name.
            verbalizers: None = those of the checkpoint's ``verbalizers.json``; else verbalizers or names such as
                ``"ocr"``, ``"ocr/rapidocr"``; an empty list switches all off.
            device: None = CUDA where there is one, else CPU.
            dtype: None = float32 on CPU, else the checkpoint's own.
            load_in_4bit: Quantise the decoder to nf4 (bitsandbytes).
            load_in_8bit: Quantise the decoder to 8 bits (bitsandbytes).
            revision: Branch, tag or commit of a hub name; None = the main branch.
            **model_kwargs: To ``MoAIForConditionalGeneration.from_pretrained``, for example ``attn_implementation``.

        Returns:
            The pipeline. No verbalizer has loaded its model yet: each does so at its first image.

        Raises:
            ValueError: No such checkpoint, weights missing from it, or an unknown verbalizer.
            ImportError: A package that was asked for by name is not installed.
        """
        folder = find_checkpoint(name_or_path)
        check_model_type(folder, revision)
        settings = VerbalizerSettings.load_pretrained(folder, revision)
        if verbalizers is None:
            built, absent = settings.build()
        else:
            built, absent = build_named_verbalizers(verbalizers), {}
        device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        if load_in_4bit or load_in_8bit or model_kwargs.get("quantization_config") is not None:
            model_kwargs |= {"load_in_4bit": load_in_4bit, "load_in_8bit": load_in_8bit}
            model_kwargs.setdefault("device_map", {"": device})
        elif is_stored_quantized(folder, revision):
            model_kwargs.setdefault("device_map", {"": device})
        if dtype is None:
            dtype = torch.float32 if device.type == "cpu" else "auto"
        processor = MoAIProcessor.from_pretrained(folder, revision=revision or "main")
        model, report = MoAIForConditionalGeneration.from_pretrained(
            folder, dtype=dtype, revision=revision or "main", output_loading_info=True, **model_kwargs
        )
        if report["missing_keys"]:
            lacking = sorted(report["missing_keys"])
            raise ValueError(
                f"expected all weights in {folder}, got none for {len(lacking)} ({', '.join(lacking[:3])}, ...)."
                " Download or convert the checkpoint again."
            )
        if "device_map" not in model_kwargs:
            model = model.to(device)
        return cls(model.eval(), processor, built, settings, absent)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write model, processor and the names and settings of the verbalizers, for :meth:`from_pretrained`.

        An adapter stays an adapter, which names its base model relative to the folder. Files appear when all have
        been written.

        Args:
            folder: Made where it lacks; other files in it stay.
        """
        with replacing_files(folder) as temporary:
            self.model.save_pretrained(temporary)
            self.processor.save_pretrained(temporary)
            self.settings.with_verbalizers(self.verbalizers).save(temporary)

    # ------------------------------------------------------------------ seeing

    def verbalize(
        self,
        images: ImageSource | Sequence[ImageSource],
        scenes: Scene | Sequence[Scene | None] | None = None,
        timeout_s: float | None = DEFAULT_TIMEOUT_S,
    ) -> Scene | list[Scene]:
        """Run the verbalizers; the scenes can be passed to many calls as ``scenes=``.

        Args:
            images: One image or a list of them.
            scenes: Findings brought along, one per image (None = nothing): only kinds that they lack are looked for.
            timeout_s: Seconds per image after which a verbalizer is given up; None = no limit.

        Returns:
            One scene per image.

        Raises:
            ValueError: An image cannot be read, or a scene belongs to an image of another size.
        """
        queries = pair_queries(images, "", scenes)
        for query in queries:
            query.load(self.processor.max_image_pixels)
        found = complete_scenes([(q.image, q.scene) for q in queries], self.verbalizers, timeout_s)
        return found if isinstance(images, (list, tuple)) else found[0]

    def describe(self, scene: Scene) -> str:
        """Verbalization of a scene, as the model reads it."""
        return verbalize_scene(scene, compat=self.settings.compat, settings=self.settings.words)

    # ------------------------------------------------------------------ answering

    def __call__(
        self,
        images: ImageSource | Sequence[ImageSource],
        questions: str | Sequence[str],
        scenes: Scene | Sequence[Scene | None] | None = None,
        **settings: Any,
    ) -> MoAIOutput | list[MoAIOutput]:
        """Answer one question about one image, or a list.

        Args:
            images: One image (path, bytes, PIL, array) or a list; one image goes with every question.
            questions: One question or a list; one question goes with every image.
            scenes: Findings already at hand, one per image (or one for the only image): used as they are.
            **settings: As for :meth:`answer_each`.

        Returns:
            One output where both are single, else a list in the order of the longer one.

        Raises:
            PipelineError: An image or question cannot be used (``on_error="raise"``); it names which one and holds
                the answers given before it.
            ValueError: Counts do not match, or a setting is wrong.
        """
        outputs: list[MoAIOutput] = []
        try:
            for output in self.answer_each(images, questions, scenes, **settings):
                outputs.append(output)
        except PipelineError as error:
            error.outputs = outputs
            raise
        is_single = isinstance(questions, str) and not isinstance(images, (list, tuple))
        return outputs[0] if is_single else outputs

    def answer_each(
        self,
        images: ImageSource | Sequence[ImageSource],
        questions: str | Sequence[str],
        scenes: Scene | Sequence[Scene | None] | None = None,
        *,
        routing: Any = None,
        output_routing: bool = False,
        timeout_s: float | None = DEFAULT_TIMEOUT_S,
        max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS,
        stream: Callable[[str], None] | None = None,
        batch_size: int = 8,
        on_error: str = "raise",
        is_completing_scenes: bool = False,
        **generate_kwargs: Any,
    ) -> Iterator[MoAIOutput]:
        """Like calling the pipeline, but every answer is yielded as soon as its batch is done.

        Args:
            images: See :meth:`__call__`.
            questions: Likewise.
            scenes: Likewise.
            routing: Mode, mapping or weights for the mixtures; see :func:`mixer.resolve_routing`.
            output_routing: Hand back the gate weights of the prompt.
            timeout_s: Seconds per image after which a verbalizer is given up; None = no limit.
            max_new_tokens: Longest answer in tokens.
            stream: Called with each piece of the answer as it comes; the batch size is 1 then.
            batch_size: Images per pass.
            on_error: "raise", or "skip": the output of what cannot be answered has ``error`` set, in its place.
            is_completing_scenes: Also run the verbalizers whose findings a given scene lacks.
            **generate_kwargs: To ``generate``: ``num_beams``, ``do_sample``, ``temperature``, ...

        Yields:
            One output per question, in order.
        """
        if on_error not in ("raise", "skip"):
            raise ValueError(f"`on_error` must be 'raise' or 'skip', got {on_error!r}.")
        if batch_size < 1 or max_new_tokens < 1:
            raise ValueError(
                f"`batch_size` and `max_new_tokens` must be at least 1, got {batch_size} and {max_new_tokens}."
            )
        if generate_kwargs.get("num_return_sequences", 1) != 1:
            raise ValueError("the pipeline gives one answer per question; call `pipeline.model.generate` for several.")
        queries = pair_queries(images, questions, scenes)
        batch_size = 1 if stream is not None else batch_size
        generate_kwargs |= {"max_new_tokens": max_new_tokens, "output_routing": output_routing}
        seen: dict[Any, Scene] = {}
        for start in range(0, len(queries), batch_size):
            batch = queries[start : start + batch_size]
            self.prepare_queries(batch, max_new_tokens)
            usable = [query for query in batch if query.error is None]
            if on_error == "raise" and len(usable) < len(batch):
                # What stands before the bad one is still answered: nobody waits for it twice.
                first_bad = next(query.index for query in batch if query.error is not None)
                usable = [query for query in usable if query.index < first_bad]
            self.verbalize_queries(usable, seen, timeout_s, is_completing_scenes)
            answers = self.generate_answers(usable, routing, stream, **generate_kwargs)
            still_to_come = {query.key for query in queries[start + batch_size :]}
            seen = {key: scene for key, scene in seen.items() if key in still_to_come}
            for query in batch:
                query.release()
                if query.index in answers:
                    yield answers[query.index]
                elif on_error == "skip":
                    yield MoAIOutput(None, error=query.error)
                else:
                    raise PipelineError(query.error, query.index) from query.cause

    def stream(
        self,
        image: ImageSource,
        question: str,
        scene: Scene | None = None,
        **settings: Any,
    ) -> AnswerStream:
        """Answer piece by piece: ``for piece in pipeline.stream(image, question): print(piece, end="")``.

        Args:
            image: One image.
            question: One question.
            scene: Findings already at hand.
            **settings: As for :meth:`answer_each`.

        Returns:
            An iterator over pieces of text; its ``output`` is the whole :class:`MoAIOutput` at the end. Leaving the
            loop early stops the generation.
        """
        if isinstance(image, (list, tuple)) or not isinstance(question, str):
            raise ValueError("expected one image and one question to stream, got a list. Call the pipeline for lists.")
        return AnswerStream(lambda **hooks: self(image, question, scene, **settings, **hooks), self.processor.tokenizer)

    # ------------------------------------------------------------------ the stages of an answer

    def prepare_queries(self, queries: Sequence[Query], max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS) -> None:
        """First stage: read the images and render the prompts; what is wrong is noted in ``query.error``, not raised.

        Args:
            queries: From :func:`moai.pipeline.queries.pair_queries`; ``image`` and ``prompt`` are filled in.
            max_new_tokens: Tokens of the model's context that are kept for the answer.
        """
        for query in queries:
            try:
                query.load(self.processor.max_image_pixels)
                query.build_prompt(self.processor, self.model.config, max_new_tokens)
            except ValueError as error:
                query.fail(error)

    def verbalize_queries(
        self,
        queries: Sequence[Query],
        seen: dict[Any, Scene] | None = None,
        timeout_s: float | None = DEFAULT_TIMEOUT_S,
        is_completing_scenes: bool = False,
    ) -> None:
        """Second stage: give every query its scene; an image that several queries ask about is looked at once.

        Args:
            queries: Prepared queries; ``scene`` is filled in.
            seen: Scenes by ``query.key``, of earlier queries too; new ones are added.
            timeout_s: Seconds per image after which a verbalizer is given up; None = no limit.
            is_completing_scenes: Also run the verbalizers whose findings a given scene lacks.
        """
        seen = {} if seen is None else seen
        wanting = [query for query in queries if query.scene is None or is_completing_scenes]
        new = {query.key: (query.image, query.scene) for query in wanting if query.key not in seen}
        if new:
            seen |= zip(new, complete_scenes(list(new.values()), self.verbalizers, timeout_s), strict=True)
        for query in queries:
            query.scene = seen.get(query.key, query.scene)

    def generate_answers(
        self,
        queries: Sequence[Query],
        routing: Any = None,
        stream: Callable[[str], None] | None = None,
        output_routing: bool = False,
        **generate_kwargs: Any,
    ) -> dict[int, MoAIOutput]:
        """Third stage: generate the answers of one batch.

        Args:
            queries: Prepared and verbalized queries.
            routing: See :meth:`answer_each`.
            stream: Called with each piece of the only query's answer.
            output_routing: Hand back the gate weights of the prompt.
            **generate_kwargs: To ``generate``.

        Returns:
            Outputs by ``query.index``.
        """
        if not queries:
            return {}
        texts = [self.describe(query.scene) for query in queries]
        inputs = self.processor(
            images=[query.image for query in queries],
            text=[query.prompt for query in queries],
            auxiliary_text=texts,
            auxiliary_images=[_paint_map(query.scene) if self._has_map(query.scene) else None for query in queries],
            padding=True,
            return_tensors="pt",
        ).to(self.model.device, dtype=self.model.dtype)
        chosen = select_routing(routing, [query.index for query in queries], queries[0].num_queries)
        answers, layers = self._generate(inputs, chosen, stream, output_routing, **generate_kwargs)
        outputs = {}
        for row, query in enumerate(queries):
            missing = find_missing_kinds(query.scene, self.settings.kinds, self.absent)
            outputs[query.index] = MoAIOutput(answers[row], query.scene, texts[row], layers[row], missing)
        return outputs

    def _has_map(self, scene: Scene) -> bool:
        mode = self.settings.map
        return mode == "always" or (mode == "found" and scene.segments is not None)

    @torch.inference_mode()
    def _generate(
        self,
        inputs: Mapping[str, torch.Tensor],
        routing: Any,
        stream: Callable[[str], None] | None,
        output_routing: bool,
        **generate_kwargs: Any,
    ) -> tuple[list[str], list[tuple[PromptRouting, ...] | None]]:
        """Generated text and, when asked for, routing of every row."""
        if stream is not None:
            generate_kwargs["streamer"] = CallbackStreamer(self.processor.tokenizer, stream)
        generate_kwargs = {"do_sample": False} | generate_kwargs
        result = self.model.generate(
            **inputs, routing=routing, output_routing=output_routing, return_dict_in_generate=True, **generate_kwargs
        )
        num_rows, length = inputs["input_ids"].shape
        answers = self.processor.batch_decode(result.sequences[:, length:], skip_special_tokens=True)
        layers: list[tuple[PromptRouting, ...] | None] = [None] * num_rows
        if output_routing and result.routing is not None:
            # With beams the prompt stands there once per beam, a sample's beams side by side.
            repeats = result.routing[0].image.shape[0] // num_rows if result.routing else 1
            layers = [PromptRouting.from_batch(result.routing, row * repeats) for row in range(num_rows)]
        return [answer.strip() for answer in answers], layers


def _paint_map(scene: Scene) -> np.ndarray:
    """The painted panoptic map ``(H, W, 3)`` uint8; black where there are no segments, as in the release."""
    return render_segmentation_map(scene.segments, scene.image_size_hw)

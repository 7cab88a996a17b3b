"""Pipeline: image + question -> answer. The only file that joins verbalizers and a model.

Image -> scene (verbalizers) -> the model's inputs -> ``generate`` -> answer. A verbalizer that fails or is not there
costs its finding, never the answer; ``Answer.missing`` says which and why.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import copy
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import LogitsProcessorList, StoppingCriteriaList

from verbalizers import Scene, Verbalizer

from ..checkpoints.io.adapter_files import read_config
from ..checkpoints.io.lookup import find_checkpoint
from ..checkpoints.io.saving import replacing_files
from ..checkpoints.io.verbalizer_settings import VerbalizerSettings, build_named_verbalizers
from ..models.answering import Answering, TooLongError
from ..models.registry import find_answering
from ..models.shots import Demonstrations, Shot
from ..processing.image_loading import ImageSource, load_image
from ..processing.sample_batching import as_list, holds_samples
from .answers import Answer, PipelineError, cut_parts
from .looking import complete_scenes, find_missing_kinds
from .queries import Query, pair_queries
from .rows import AnswerRow, BeamStop, RowSampler, RowStop, RowTokens, follow_sequences
from .streaming import AnswerStream, CallbackStreamer

__all__ = ["DEFAULT_TIMEOUT_S", "Answer", "Pipeline", "PipelineError"]

#: Seconds per image after which a verbalizer is given up.
DEFAULT_TIMEOUT_S = 60.0
DEFAULT_MAX_NEW_TOKENS = 128


class Pipeline:
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
        model: Any,
        processor: Any,
        verbalizers: Iterable[Verbalizer] = (),
        settings: VerbalizerSettings | None = None,
        absent: Mapping[str, str] | None = None,
    ) -> None:
        self.answering: Answering = find_answering(type(model).__name__, model.config.model_type)(model, processor)
        self.verbalizers = list(verbalizers)
        self.settings = settings or VerbalizerSettings()
        self.absent = dict(absent or {})

    @property
    def model(self) -> Any:
        """The model."""
        return self.answering.model

    @property
    def processor(self) -> Any:
        """Its processor."""
        return self.answering.processor

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
    ) -> Pipeline:
        """Load model, processor and the verbalizers that the checkpoint names.

        Args:
            name_or_path: Folder, bundled name (``"moai-nano"``) or hub name.
            verbalizers: None = those of the checkpoint's ``verbalizers.json``; else verbalizers or names such as
                ``"ocr"`` (the checkpoint's own, else the default), ``"ocr/rapidocr"``; an empty list switches all off.
            device: None = CUDA where there is one, else CPU.
            dtype: None = float32 on CPU, else the checkpoint's own.
            load_in_4bit: Quantise the decoder to nf4 (bitsandbytes).
            load_in_8bit: Quantise the decoder to 8 bits (bitsandbytes).
            revision: Branch, tag or commit of a hub name; None = the main branch.
            **model_kwargs: To the model's ``from_pretrained``, for example ``attn_implementation``.

        Returns:
            The pipeline. No verbalizer has loaded its model yet: each does so at its first image.

        Raises:
            ValueError: No such checkpoint, weights missing from it, or an unknown verbalizer.
            ImportError: A package that was asked for by name is not installed.
        """
        folder = find_checkpoint(name_or_path)
        config = read_config(folder, revision)
        answering_class = find_answering(folder, config.get("model_type"))
        settings = VerbalizerSettings.load_pretrained(folder, revision)
        if verbalizers is None:
            built, absent = settings.build()
        else:
            built, absent = build_named_verbalizers(verbalizers, settings), {}
        device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        if load_in_4bit or load_in_8bit or model_kwargs.get("quantization_config") is not None:
            model_kwargs |= {"load_in_4bit": load_in_4bit, "load_in_8bit": load_in_8bit}
            model_kwargs.setdefault("device_map", {"": device})
        elif config.get("quantization_config") is not None:
            model_kwargs.setdefault("device_map", {"": device})
        if dtype is None:
            dtype = torch.float32 if device.type == "cpu" else "auto"
        answering = answering_class.load(folder, revision=revision, dtype=dtype, **model_kwargs)
        model = answering.model if "device_map" in model_kwargs else answering.model.to(device)
        pipeline = cls(model.eval(), answering.processor, built, settings, absent)
        return pipeline.with_answering(answering)  # which may know more of the checkpoint: what draws

    def with_answering(self, answering: Answering) -> Pipeline:
        """A pipeline of the same verbalizers and settings around another model."""
        other = copy(self)
        other.answering = answering
        return other

    def save_pretrained(self, folder: str | Path) -> None:
        """Write model, processor and the names and settings of the verbalizers, for :meth:`from_pretrained`.

        An adapter stays an adapter, which names its base model relative to the folder. Files appear when all have
        been written.

        Args:
            folder: Made where it lacks; other files in it stay.
        """
        with replacing_files(folder) as temporary:
            self.answering.save(temporary)
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
            images: One image or several (a list, a generator).
            scenes: Findings brought along, one per image (None = nothing): only kinds that they lack are looked for.
            timeout_s: Seconds per image after which a verbalizer is given up; None = no limit.

        Returns:
            One scene per image.

        Raises:
            ValueError: An image cannot be read, or a scene belongs to an image of another size.
        """
        queries = pair_queries(images, "", scenes)
        for query in queries:
            query.load(self.answering.max_image_pixels)
        found = complete_scenes([(q.images[0], q.scenes[0]) for q in queries], self.verbalizers, timeout_s)
        return found if holds_samples(images) else found[0]

    def describe(self, scene: Scene) -> str:
        """Verbalization of a scene, as the model reads it."""
        (text,) = self.answering.encode_scenes([scene], self.settings)[self.answering.text_input]
        return text

    def describe_shot(self, image: Image.Image | None, seen: Any) -> str | None:
        """What a demonstration's prompt says about its image; None = nothing.

        Args:
            image: The image; None = text alone.
            seen: What was found in it: a scene, ``Scene.to_dict()``, or its text; None = the verbalizers look.

        Raises:
            ValueError: It is no scene.
        """
        if isinstance(seen, str):
            return seen
        if seen is None and image is not None and self.verbalizers:
            seen = self.verbalize(image)
        if seen is None:
            return None
        return self.describe(seen if isinstance(seen, Scene) else Scene.from_dict(seen))

    def _show_shots(self, options: dict[str, Any]) -> dict[str, Any]:
        """Options whose demonstrations say what was found in their images."""
        shots = options.get("shots")
        if isinstance(shots, Demonstrations):
            shots.describe = self.describe_shot
        elif shots:
            options["shots"] = [self._show_shot(index, *shot) for index, shot in enumerate(shots)]
        return options

    def _show_shot(self, index: int, image: Image.Image | None, question: str, answer: str, seen: Any = None) -> Shot:
        try:
            said = self.describe_shot(image, seen)
        except ValueError as error:
            raise ValueError(f"shot {index}: {error}") from error
        return (image, question, answer, said) if said else (image, question, answer)

    # ------------------------------------------------------------------ answering

    def __call__(
        self,
        images: ImageSource | Sequence[ImageSource],
        questions: str | Sequence[str],
        scenes: Scene | Sequence[Scene | None] | None = None,
        **settings: Any,
    ) -> Answer | list[Answer]:
        """Answer one question about one image, or a list.

        Args:
            images: One image (path, bytes, file object, PIL, array) or several (a list, a generator); one image goes
                with every question.
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
        outputs: list[Answer] = []
        try:
            for output in self.answer_each(images, questions, scenes, **settings):
                outputs.append(output)
        except PipelineError as error:
            error.outputs = outputs
            raise
        is_single = isinstance(questions, str) and not holds_samples(images)
        return outputs[0] if is_single else outputs

    def answer_each(
        self,
        images: ImageSource | Sequence[ImageSource],
        questions: str | Sequence[str],
        scenes: Scene | Sequence[Scene | None] | None = None,
        *,
        options: Mapping[str, Any] | None = None,
        shots: Any = None,
        is_reporting: bool = False,
        timeout_s: float | None = DEFAULT_TIMEOUT_S,
        max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS,
        stream: Callable[[str], None] | None = None,
        batch_size: int = 8,
        on_error: str = "raise",
        is_completing_scenes: bool = False,
        earlier: Sequence[Sequence[tuple[str, str]]] | None = None,
        **generate_kwargs: Any,
    ) -> Iterator[Answer]:
        """Like calling the pipeline, but every answer is yielded as soon as its batch is done.

        Args:
            images: See :meth:`__call__`.
            questions: Likewise.
            scenes: Likewise.
            options: The model's own, by name: those of its ``answering_X.py``.
            shots: Demonstrations in front of each question, ``[(image, question, answer), ...]``, for models that read
                them: the option of that name. Their images are looked at as the questions' are, but for those that
                bring a scene, or its text, as a fourth entry.
            is_reporting: Hand back what the model tells about how it answered.
            timeout_s: Seconds per image after which a verbalizer is given up; None = no limit.
            max_new_tokens: Longest answer in tokens.
            stream: Called with each piece of the answer as it comes; the batch size is 1 then.
            batch_size: Images per pass.
            on_error: "raise", or "skip": the output of what cannot be answered has ``error`` set, in its place.
            is_completing_scenes: Also run the verbalizers whose findings a given scene lacks.
            earlier: Questions and answers of the turns before, one list per question; None = there are none.
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
        self.answering.check_answer_length(max_new_tokens)
        options = dict(options or {}) | ({} if shots is None else {"shots": shots})
        options = self._show_shots(self.answering.parse_options(options))  # a wrong one is told before anybody looks
        queries = pair_queries(images, questions, scenes, earlier)
        batch_size = 1 if stream is not None else batch_size
        generate_kwargs["max_new_tokens"] = max_new_tokens
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
            answers = self.generate_answers(usable, options, stream, is_reporting, **generate_kwargs)
            still_to_come = {key for query in queries[start + batch_size :] for key in query.source_keys}
            seen = {key: scene for key, scene in seen.items() if key[:2] in still_to_come}
            for query in batch:
                query.release()
                if query.index in answers:
                    yield answers[query.index]
                elif on_error == "skip":
                    yield Answer((), error=query.error)
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
            An iterator over pieces of text; its ``output`` is the whole :class:`Answer` at the end. Leaving the
            loop early stops the generation.
        """
        if holds_samples(image) or not isinstance(question, str):
            raise ValueError("expected one image and one question to stream, got a list. Call the pipeline for lists.")
        return AnswerStream(lambda **hooks: self(image, question, scene, **settings, **hooks), self.answering.tokenizer)

    def draw(
        self, parts: str | ImageSource | Sequence[str | ImageSource], options: Mapping[str, Any] | None = None
    ) -> Answer:
        """Draw an image: ``pipeline.draw("a red car")``; of two images alone one that blends them.

        Nobody looks at the prompt's images but the model.

        Args:
            parts: The prompt: strings are texts, all else are images (paths as :class:`pathlib.Path`), in reading
                order.
            options: The model's own, by name: those of its ``answering_X.py`` that decide a drawing.

        Returns:
            An answer whose only part is the image.

        Raises:
            ValueError: The model draws nothing, an image cannot be read, or an option is wrong.
        """
        chosen = self.answering.parse_options(options or {})
        limit = self.answering.max_image_pixels
        prompt = [part if isinstance(part, str) else load_image(part, limit) for part in as_list(parts)]
        return Answer((self.answering.draw(prompt, chosen),))

    # ------------------------------------------------------------------ the stages of an answer

    def prepare_queries(self, queries: Sequence[Query], max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS) -> None:
        """First stage: read the images and render the prompts; what is wrong is noted in ``query.error``, not raised.

        Args:
            queries: From :func:`moai.pipeline.queries.pair_queries`; ``image`` and ``prompt`` are filled in.
            max_new_tokens: Tokens of the model's context that are kept for the answer.
        """
        loaded: dict[Any, Image.Image] = {}
        for query in queries:
            try:
                query.load(self.answering.max_image_pixels, loaded)
                loaded |= zip(query.source_keys, query.images, strict=True)
                query.prepare(self.answering, max_new_tokens)
            except ValueError as error:
                query.fail(error)

    def verbalize_queries(
        self,
        queries: Sequence[Query],
        seen: dict[Any, Scene] | None = None,
        timeout_s: float | None = DEFAULT_TIMEOUT_S,
        is_completing_scenes: bool = False,
    ) -> None:
        """Second stage: give every image its scene; one that several queries ask about is looked at once.

        Args:
            queries: Prepared queries; ``scenes`` are filled in.
            seen: Scenes by ``query.keys``, of earlier queries too; new ones are added.
            timeout_s: Seconds per image after which a verbalizer is given up; None = no limit.
            is_completing_scenes: Also run the verbalizers whose findings a given scene lacks.
        """
        seen = {} if seen is None else seen
        wanting = [
            (key, query, place)
            for query in queries
            if is_completing_scenes or any(scene is None for scene in query.scenes)
            for place, key in enumerate(query.keys)
            if is_completing_scenes or query.scenes[place] is None
        ]
        new = {key: (query.images[place], query.scenes[place]) for key, query, place in wanting if key not in seen}
        if new:
            seen |= zip(new, complete_scenes(list(new.values()), self.verbalizers, timeout_s), strict=True)
        for key, query, place in wanting:
            query.scenes[place] = seen[key]

    def generate_answers(
        self,
        queries: Sequence[Query],
        options: Mapping[str, Any] | None = None,
        stream: Callable[[str], None] | None = None,
        is_reporting: bool = False,
        max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS,
        rows: Mapping[int, AnswerRow] | None = None,
        **generate_kwargs: Any,
    ) -> dict[int, Answer]:
        """Third stage: generate the answers of one batch.

        Args:
            queries: Prepared and verbalized queries; what is too long with its verbalization is noted in
                ``query.error``.
            options: See :meth:`answer_each`.
            stream: Called with each piece of the only query's answer.
            is_reporting: See :meth:`answer_each`.
            max_new_tokens: Longest answer in tokens.
            rows: By ``query.index``, how each answer is generated, whose lengths count then; it streams and ends by
                itself. An answer has as many tokens as the model's context leaves it, one at least.
            **generate_kwargs: To ``generate``.

        Returns:
            Answers by ``query.index``.
        """
        options = self.answering.parse_options(options or {})
        queries, inputs, texts = self.encode_queries(list(queries), 1 if rows else max_new_tokens, options)
        if not queries:
            return {}
        chosen = self.answering.select_options(options, [query.index for query in queries], queries[0].num_queries)
        if stream is not None:
            generate_kwargs["streamer"] = CallbackStreamer(self.answering.tokenizer, stream)
        if rows is not None:
            max_new_tokens, hooks = self._follow_rows([rows[query.index] for query in queries], inputs, chosen)
            generate_kwargs |= hooks
        generated = self.answering.generate(
            inputs, chosen, is_reporting, max_new_tokens=max_new_tokens, **generate_kwargs
        )
        answers = {}
        for query, text, answer in zip(queries, texts, generated, strict=True):
            missing: dict[str, str] = {}
            for scene in reversed(query.scenes):
                missing |= find_missing_kinds(scene, self.settings.kinds, self.absent)
            row = None if rows is None else rows[query.index]
            is_followed = row is not None and row.finish_reason is not None
            parts = cut_parts(answer.parts, row.text) if is_followed else answer.parts
            confidence = row.confidence if is_followed else answer.confidence
            is_unsure = confidence is not None and confidence < self.answering.confidence_threshold
            scenes = tuple(query.scenes)
            answers[query.index] = Answer(parts, scenes, text or "", missing, answer.report, confidence, is_unsure)
        return answers

    def _follow_rows(
        self, rows: Sequence[AnswerRow], inputs: Mapping[str, Any], options: Mapping[str, Any]
    ) -> tuple[int, dict[str, Any]]:
        """The longest answer of a batch whose rows end by themselves, and arguments of ``generate`` that see to it."""
        longest, end_ids = self.answering.longest_sequence, self.answering.end_ids
        for row, length in zip(rows, inputs["attention_mask"].sum(dim=1).tolist(), strict=True):
            row.num_prompt_tokens = length
            if longest is not None:
                row.max_new_tokens = max(1, min(row.max_new_tokens, longest - length))
        tokenizer, stops = self.answering.tokenizer, self.answering.list_stops(options)
        finish, is_streaming = partial(self.answering.finish_text, options=options), self.answering.can_stream(options)
        tokens = [RowTokens(row, tokenizer, (*row.stops, *stops), finish, is_streaming) for row in rows]
        if (num_beams := rows[0].num_beams) > 1:  # beams have no text before they end
            hooks = {
                "stopping_criteria": StoppingCriteriaList([BeamStop(rows)]),
                "on_tokens": partial(follow_sequences, tokens, end_ids),
            }
        else:
            hooks = {
                "logits_processor": LogitsProcessorList([RowSampler(rows, tokenizer, end_ids)]),
                "stopping_criteria": StoppingCriteriaList([RowStop(tokens, end_ids)]),
            }
        hooks["num_beams"] = num_beams
        return max(row.max_new_tokens for row in rows), hooks

    def encode_queries(
        self, queries: list[Query], max_new_tokens: int, options: Mapping[str, Any]
    ) -> tuple[list[Query], Any, list[str]]:
        """Inputs of the model, as :meth:`generate_answers` makes them.

        Args:
            queries: Prepared and verbalized.
            max_new_tokens: Tokens kept for the answer.
            options: Parsed.

        Returns:
            The queries that fit (``query.error`` tells of the others), their inputs and verbalizations.
        """
        while queries:
            scenes = [scene for query in queries for scene in query.scenes]
            found = self.answering.join_scene_inputs(
                self.answering.encode_scenes(scenes, self.settings, options=options),
                [len(query.images) for query in queries],
            )
            images: list[Any] = [query.images for query in queries]
            if all(len(group) == 1 for group in images):
                images = [image for (image,) in images]
            prompts = [query.prompt for query in queries]
            try:
                inputs = self.answering.encode(images, prompts, found, max_new_tokens, options)
            except TooLongError as error:
                for row, reason in error.rows.items():
                    queries[row].fail(ValueError(reason))
                queries = [query for query in queries if query.error is None]
            else:
                return queries, inputs, found[self.answering.text_input]
        return [], None, []

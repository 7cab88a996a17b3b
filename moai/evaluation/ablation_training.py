"""Training and testing of one variant with one seed, from the common start.

The start is what `moai.training.nano` leaves after its stage `phrases` or a later one: a tokenizer, a decoder that can
read verbalizations, a compressor that keeps phrases together. Mixers, gates and all that sees pictures are new. Or it
is a finished checkpoint; then mixers and gates alone are new.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import signal
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file

from moai.models.moai.modeling_moai import MoAIForConditionalGeneration
from moai.processing.tokenization_internlm2 import InternLM2Tokenizer
from moai.training.checkpointing import latest_checkpoint
from moai.training.compressor_pretraining import CompressorTask
from moai.training.expert_initialisation import start_with_reading_order, start_with_word_matching
from moai.training.loop import run_loop
from moai.training.multimodal_training import MultimodalTask
from moai.training.nano_config import MultimodalSettings, NanoConfig
from moai.training.nano_models import build_moai, prompt_ids
from moai.training.phrase_recall import PhraseRecall, PhraseVocabulary
from moai.training.scene_shards import ShardSettings, build_missing_shards

from .ablation_config import FINISHED, AblationConfig, Variant
from .ablation_questions import AblationQuestion, answer_test
from .answer_metrics import is_right

__all__ = [
    "AblationTask",
    "check_start",
    "draw_routing",
    "examine_variant",
    "hash_start",
    "load_start",
    "tokenizer_folder",
    "train_variant",
]

#: Parts whose weights come from the start; everything else is new.
TAKEN = ("model.compressor.", "model.language_model.", "lm_head.", "recall.")
#: What is new where the start is a finished model.
NEW_IN_FINISHED = ("model.mixers.", "recall.")
LATENTS = "model.compressor.latents.weight"
_OBSERVED_STEPS = range(4)

#: Called with (steps done, steps in all).
Progress = Callable[[int, int], None]


def check_start(start: Path, stage: str) -> Path:
    """The starting checkpoint of a folder.

    Args:
        start: Output folder of :mod:`moai.training.nano`, or a finished checkpoint.
        stage: ``phrases``, ``questions``, ``multimodal`` or ``finished``.

    Returns:
        The folder with `model.safetensors`.

    Raises:
        ValueError: Something is missing; the message says how to make it.
    """
    if stage == FINISHED:
        if missing := [name for name in ("model.safetensors", "tokenizer.model") if not (start / name).is_file()]:
            raise ValueError(
                f"expected a finished checkpoint in {start}, got a folder without {' and '.join(missing)}. Name one "
                "such as checkpoints/moai-nano, or set `start_stage` to the stage that the folder holds."
            )
        return start
    found = latest_checkpoint(start / stage / "checkpoints")
    if found is None or not (start / "tokenizer" / "tokenizer.model").is_file():
        raise ValueError(
            f"expected a tokenizer and a checkpoint of the stage {stage!r} in {start}, got an incomplete folder. "
            "Make them with --prepare, or name the folder that python -m moai.training.nano wrote."
        )
    return found


def hash_start(start: Path, stage: str) -> str:
    """Hash of the starting weights and of the tokenizer."""
    digest = hashlib.sha256((check_start(start, stage) / "model.safetensors").read_bytes())
    digest.update((tokenizer_folder(start) / "tokenizer.model").read_bytes())
    return digest.hexdigest()


def tokenizer_folder(start: Path) -> Path:
    """Where a start keeps its tokenizer: a finished checkpoint beside the weights, a run in a folder of its own."""
    return start / "tokenizer" if (start / "tokenizer").is_dir() else start


def draw_routing(variant: Variant, stage: str, seed: int, num_layers: int, top_k: int) -> object:
    """What a forward pass gets as ``routing``.

    Args:
        variant: Whose.
        stage: ``first``, ``second`` or ``test``.
        seed: Of this pass's draws.
        num_layers: Number M of mixer layers.
        top_k: Experts kept where gates decide.
    """
    gates = variant.gates
    if stage == "test" and variant.stages == "first" and gates == "trained":
        gates = "uniform"  # these gates never learned anything
    if stage == "first" or gates == "random_expert":
        return {"mode": "random_expert", "seed": seed}
    if gates == "uniform":
        return {"mode": "uniform"}
    if gates == "random":
        generator = torch.Generator().manual_seed(seed)
        drawn = -torch.rand(num_layers, 2, 3, generator=generator).clamp_min(1e-6).log()  # normalised: flat Dirichlet
        return drawn / drawn.sum(-1, keepdim=True)
    return {"mode": "gated", "top_k": top_k}


class AblationTask(MultimodalTask):
    """The recipe's training under a variant's routing.

    Args:
        model: The whole model.
        settings: The variant's training.
        tokenizer: Of the start.
        shards: Folder of shards.
        variant: Whose routing.
        seed: Of the draws.
        progress: Told after each step.
    """

    def __init__(
        self,
        model: MoAIForConditionalGeneration,
        settings: MultimodalSettings,
        tokenizer: InternLM2Tokenizer,
        shards: Path,
        variant: Variant,
        seed: int,
        progress: Progress,
    ) -> None:
        super().__init__(model, settings, prompt_ids(tokenizer), shards, PhraseVocabulary.from_tokenizer(tokenizer))
        self.variant, self.seed, self.progress = variant, seed, progress
        self._is_observing = False

    def routing(self, step: int) -> object:
        """Stage 1: one expert at random. Stage 2: as the variant says."""
        if self._is_observing:  # every expert must be seen
            return {"mode": "gated"}
        stage = "first" if step < self.settings.first_stage_steps else "second"
        num_layers = len(self.model.model.mixers.layers)
        return draw_routing(self.variant, stage, 1_000_003 * self.seed + step, num_layers, self.variant.top_k)

    def observed(self, steps: Iterable[int]) -> list[torch.Tensor]:
        """See :meth:`MultimodalTask.observed`; all experts take part, whatever the variant."""
        self._is_observing = True
        try:
            return super().observed(steps)
        finally:
            self._is_observing = False

    def __call__(self, step: int, rank: int, num_ranks: int) -> tuple[torch.Tensor, dict[str, float]]:
        """See :data:`moai.training.loop.StepFunction`."""
        if not self._is_observing:
            self.progress(step, self.settings.loop.num_steps)
        return super().__call__(step, rank, num_ranks)


@contextlib.contextmanager
def _quiet_loop() -> Iterator[None]:
    """Silence the loop's lines (its log file keeps them) and give signals back afterwards."""
    names = (signal.SIGINT, signal.SIGTERM)
    before = {name: signal.getsignal(name) for name in names}
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)


def _is_taken(name: str) -> bool:
    return name.startswith(TAKEN)


def _build_model(
    recipe: NanoConfig,
    variant: Variant,
    tokenizer: InternLM2Tokenizer,
    start: Path,
    seed: int,
    is_taken: Callable[[str], bool] = _is_taken,
) -> tuple[MoAIForConditionalGeneration, bool]:
    """A model with some parts of the start, all else new; and whether its number of latents is another."""
    compressor = dict(recipe.multimodal.compressor)
    if variant.num_latents is not None:
        compressor["num_latents"] = variant.num_latents
    settings = replace(recipe.multimodal, compressor=compressor)
    model = build_moai(replace(recipe, seed=recipe.seed + 1000 * seed), settings, tokenizer, None)
    model.recall = PhraseRecall(model.config.text_config.hidden_size)
    weights = load_file(start / "model.safetensors")
    taken = {name: value for name, value in weights.items() if is_taken(name)}
    own = model.state_dict()
    wanted = own[LATENTS].shape[0] if LATENTS in own else 0
    has_other_latents = LATENTS in taken and taken[LATENTS].shape[0] != wanted
    if has_other_latents:  # evenly chosen ones: each keeps reading about the stretch that it read
        places = ((torch.arange(wanted) + 0.5) / wanted * taken[LATENTS].shape[0]).long()
        taken[LATENTS] = taken[LATENTS][places]
    differing = [name for name, value in taken.items() if name not in own or own[name].shape != value.shape]
    if differing or not taken:
        raise ValueError(
            f"expected the weights of the recipe's model in {start}, got others (first difference: "
            f"{(differing or ['no weights'])[0]!r}). Name the recipe that the start was trained with."
        )
    model.load_state_dict(taken, strict=False)
    model.tie_weights()
    return model, has_other_latents


def load_start(config: AblationConfig, start: Path) -> MoAIForConditionalGeneration:
    """The whole model of the start, mixers and gates included, in evaluation mode."""
    weights = check_start(start, config.start_stage)
    tokenizer = InternLM2Tokenizer.from_pretrained(tokenizer_folder(start))
    return _build_model(config.recipe, config.reference, tokenizer, weights, 0, lambda name: True)[0].eval()


def _shards_of(settings: ShardSettings, needed: int, folder: Path, tokenizer: Path) -> Path:
    """Make a variant's shards where they are missing; variants with equal settings share them."""
    chosen = folder / hashlib.sha256(repr(settings).encode()).hexdigest()[:12]
    build_missing_shards(settings, chosen, range(-(-needed // settings.num_scenes)), tokenizer)
    return chosen


def _learn_phrases(
    model: MoAIForConditionalGeneration,
    config: AblationConfig,
    tokenizer: InternLM2Tokenizer,
    shards: Path,
    folder: Path,
    progress: Progress,
) -> bool:
    """Let a compressor with another number of latents learn phrases again; False when stopped by a signal."""
    phrases, num_scenes = config.recipe.phrases, config.recipe.questions.shards.num_scenes
    vocabulary = PhraseVocabulary.from_tokenizer(tokenizer)
    task = CompressorTask(model, vocabulary, shards, num_scenes, min(phrases.batch_size, num_scenes))
    loop = replace(phrases.loop, num_steps=config.phrase_steps, log_every=config.phrase_steps)
    model.requires_grad_(False)
    model.model.compressor.requires_grad_(True)
    model.recall.requires_grad_(True)

    def step_function(step: int, rank: int, num_ranks: int) -> tuple[torch.Tensor, dict[str, float]]:
        progress(step, config.phrase_steps)
        return task(step, rank, num_ranks)

    is_done = run_loop(model.train(), step_function, task.count_names, loop, folder)
    model.requires_grad_(True)
    return is_done


def train_variant(
    config: AblationConfig, variant: Variant, seed: int, start: Path, work: Path, folder: Path, progress: Progress
) -> MoAIForConditionalGeneration:
    """Train a variant, or go on where it was stopped.

    Args:
        config: All settings.
        variant: One without ``weights_of``.
        seed: Decides new weights, scenes and draws.
        start: Folder of the start.
        work: Folder of the shards.
        folder: Receives this run's checkpoints and log.
        progress: Told how far it is.

    Returns:
        The trained model.

    Raises:
        KeyboardInterrupt: Stopped by Ctrl-C or SIGTERM; a checkpoint is kept.
    """
    tokenizer = InternLM2Tokenizer.from_pretrained(tokenizer_folder(start))
    settings, checkpoint = config.settings(variant, seed), check_start(start, config.start_stage)
    taken = (lambda name: not name.startswith(NEW_IN_FINISHED)) if config.start_stage == FINISHED else _is_taken
    model, has_other_latents = _build_model(config.recipe, variant, tokenizer, checkpoint, seed, taken)
    phrase_scenes = config.phrase_steps * config.recipe.phrases.batch_size if has_other_latents else 0
    needed = max(settings.loop.num_steps * settings.batch_size, phrase_scenes, settings.batch_size * 4)
    shards = _shards_of(settings.shards, needed, work / "shards", tokenizer_folder(start))
    task = AblationTask(model, settings, tokenizer, shards, variant, seed, progress)
    with _quiet_loop():
        if latest_checkpoint(folder / "checkpoints") is None:
            if has_other_latents and not _learn_phrases(model, config, tokenizer, shards, folder / "phrases", progress):
                raise KeyboardInterrupt
            model.eval()
            torch.manual_seed(config.recipe.seed + 1000 * seed)
            start_with_word_matching(model, lambda: task.observed(_OBSERVED_STEPS))
            if settings.shards.with_pictures:
                start_with_reading_order(model, lambda: task.observed(_OBSERVED_STEPS))
        if not run_loop(model.train(), task, task.count_names, settings.loop, folder):
            raise KeyboardInterrupt
    return model.eval()


def examine_variant(
    model: MoAIForConditionalGeneration,
    config: AblationConfig,
    variant: Variant,
    seed: int,
    start: Path,
    asked: list[AblationQuestion],
    progress: Progress,
) -> list[bool]:
    """Which of the questions a model answers right.

    Args:
        model: Trained, in evaluation mode.
        config: All settings.
        variant: Whose verbalizers and routing are used.
        seed: Of random routing.
        start: Folder of the start, for the tokenizer.
        asked: The test.
        progress: Told how far it is.
    """
    tokenizer = InternLM2Tokenizer.from_pretrained(tokenizer_folder(start))
    prompt, size, num_layers = prompt_ids(tokenizer), config.test.batch_size, len(model.model.mixers.layers)
    right: list[bool] = []
    for first in range(0, len(asked), size):
        progress(first, len(asked))
        part = asked[first : first + size]
        routing = draw_routing(variant, "test", 1_000_003 * (seed + 1) + first, num_layers, variant.top_k)
        limit = config.test.max_new_tokens
        given = answer_test(model, tokenizer, prompt, part, variant.verbalizers, routing, limit)
        right += [is_right(one.answer, text) for one, text in zip(part, given, strict=True)]
    return right

"""Training of moai-nano: tokenizer, text pretraining, then the whole model in the paper's two stages.

    python -m recipes.nano --config configs/nano.yaml --out runs/nano

Each stage is skipped when it is done, resumed when it was killed.
"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import replace
from pathlib import Path

import torch
from transformers import GenerationConfig, LlamaForCausalLM

from moai.checkpoints.io.verbalizer_settings import VERBALIZERS_FILE, VerbalizerSettings
from moai.cli.train import launch_processes
from moai.models.moai.modeling_moai import MoAIForConditionalGeneration
from moai.models.moai.new_model import renew
from moai.models.moai.processing_moai import MoAIProcessor
from moai.models.moai.tokenization_internlm2 import InternLM2Tokenizer
from moai.settings import to_plain
from moai.training.checkpoints import find_newest_checkpoint, read_checkpoint
from recipes.stages import CountingTask, has_checkpoint, is_made, load_trained, note_made, run_stage
from verbalizers.core.durable_files import atomic_folder, hold_folder

from .compressor_task import CompressorTask
from .config import MultimodalSettings, NanoConfig, PatchSettings, PhraseSettings, TextSettings, load_nano_config
from .expert_initialisation import start_with_reading_order, start_with_word_matching
from .models import NANO_CHAT_TEMPLATE, build_decoder, build_moai, build_processor, replace_tower
from .multimodal_task import MultimodalTask
from .patch_recall import PieceVocabulary
from .patch_task import PatchTask
from .phrase_recall import PhraseRecall, PhraseVocabulary
from .prompt import prompt_ids
from .scenes import SHARD_FORM, ShardBatches
from .text_task import TextTask
from .tokenizer import train_nano_tokenizer

__all__ = ["LATE_STAGES", "STAGES", "build_task", "export_nano", "export_text_reader", "main", "train_nano"]

STAGES = ("tokenizer", "text", "phrases", "questions", "patches", "multimodal", "practice", "export")
#: Those that can start from a finished model.
LATE_STAGES = ("phrases", "patches", "practice", "export")

#: Stages that train parts of the whole model or all of it; each starts from what those before it have trained.
_MODEL_STAGES = ("phrases", "questions", "patches", "multimodal", "practice")
#: Batches that new experts' first attention is fitted to.
OBSERVED_STEPS = 6


def build_task(name: str, config: NanoConfig, out: Path) -> CountingTask:
    """Build a stage's task, as it is before the first step.

    Args:
        name: A stage that trains.
        config: The recipe.
        out: Folder of the run, with the results of the stages before.
    """
    tokenizer = InternLM2Tokenizer.from_pretrained(out / "tokenizer")
    settings: TextSettings | PhraseSettings | PatchSettings | MultimodalSettings = getattr(config, name)
    shards = ShardBatches.from_settings(settings.shards, settings.optimization.batch_size, tokenizer)
    if isinstance(settings, TextSettings):
        decoder, prompt = build_decoder(config, tokenizer), prompt_ids(tokenizer)
        return TextTask(decoder, prompt, shards, settings.optimization, settings.text_weight, settings.shards)
    model, vocabulary = _model_with_recall(config, out, tokenizer), PhraseVocabulary.from_tokenizer(tokenizer)
    _load_stages(model, out, _MODEL_STAGES[: _MODEL_STAGES.index(name)])
    if isinstance(settings, PhraseSettings):
        model.requires_grad_(False)
        model.model.compressor.requires_grad_(True)
        model.recall.requires_grad_(True)
        return CompressorTask(model, vocabulary, shards, settings)
    if isinstance(settings, PatchSettings):
        model.requires_grad_(False)
        model.model.vision_tower.requires_grad_(True)
        model.model.multi_modal_projector.requires_grad_(True)
        return PatchTask(model, PieceVocabulary.from_tokenizer(tokenizer), shards, settings)
    task = MultimodalTask(model, settings, prompt_ids(tokenizer), shards, vocabulary)
    if name != "practice" and not has_checkpoint(out / name):
        _initialise_experts(name, model, task)
    return task


def _pretrained_decoder(config: NanoConfig, out: Path) -> LlamaForCausalLM:
    """The decoder as the stage `text` left it."""
    decoder = build_decoder(config, InternLM2Tokenizer.from_pretrained(out / "tokenizer"))
    load_trained(decoder, out / "text")
    return decoder


def _model_with_recall(config: NanoConfig, out: Path, tokenizer: InternLM2Tokenizer) -> MoAIForConditionalGeneration:
    """The whole model before the stages that train it, with the heads that only training needs."""
    if config.start is not None:
        sizes = {"mixer": config.practice.mixer if config.practice else {}}
        sizes["compressor"] = {} if config.num_latents is None else {"num_latents": config.num_latents}
        model = renew(config.start, sizes, keeps_fitting=True, seed=config.seed + 1).float()
        if config.patches is not None and config.patches.vision:
            replace_tower(model, config.patches.vision)
    else:
        model = build_moai(config, config.multimodal, tokenizer, _pretrained_decoder(config, out))
    model.recall = PhraseRecall(model.config.text_config.hidden_size)
    if config.heads is not None:
        found, _ = find_newest_checkpoint(Path(config.heads) / "checkpoints")
        weights, _, _ = read_checkpoint(found)
        model.load_state_dict({name: value for name, value in weights.items() if "recall." in name}, strict=False)
    return model


def _load_stages(model: MoAIForConditionalGeneration, out: Path, stages: tuple[str, ...]) -> None:
    """Load what some stages trained, one after the other, where they have run."""
    for stage in stages:
        if has_checkpoint(out / stage):
            load_trained(model, out / stage)


@torch.no_grad()
def _initialise_experts(name: str, model: MoAIForConditionalGeneration, task: MultimodalTask) -> None:
    """Initialise experts before the first step; a function of weights and shards alone, so that all ranks agree."""
    model.eval()
    steps = range(min(OBSERVED_STEPS, task.settings.optimization.num_steps))
    if name == "questions":
        start_with_word_matching(model, lambda: task.observed(steps))
    elif task.questions(0).pixel_values is not None:
        start_with_reading_order(model, lambda: task.observed(steps))


def _train_stage(name: str, config: NanoConfig, out: Path) -> None:
    """Train a stage in as many processes as the recipe says."""
    if config.num_ranks == 1:
        run_stage(build_task(name, config, out), getattr(config, name), out / name, config.seed)
    else:
        _launch_stage(name, config, out)


def _launch_stage(name: str, config: NanoConfig, out: Path) -> None:
    """Train a stage in processes of one thread each, which find the recipe beside the stage's checkpoints."""
    recipe = out / name / "recipe.json"
    recipe.parent.mkdir(parents=True, exist_ok=True)
    recipe.write_text(json.dumps(to_plain(config), indent=1), encoding="utf-8")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    words = ["--config", str(recipe), "--out", str(out), "--stage", name]
    if code := launch_processes(config.num_ranks, words, module="recipes.nano"):
        raise SystemExit(code)


def export_nano(config: NanoConfig, out: Path, target: Path) -> None:
    """Write the trained model in float16 with its processor, as a folder for ``from_pretrained``.

    Args:
        config: The recipe.
        out: The run's folder.
        target: Folder that receives the checkpoint.
    """
    tokenizer = InternLM2Tokenizer.from_pretrained(out / "tokenizer")
    if config.start is None and not has_checkpoint(out / "multimodal"):
        raise ValueError(f"expected a trained model in {out / 'multimodal'}, got none. Run stage 'multimodal' first.")
    if config.patches is not None and not has_checkpoint(out / "patches"):
        raise ValueError(f"expected a trained vision tower in {out / 'patches'}, got none. Run stage 'patches' first.")
    model = _model_with_recall(config, out, tokenizer)
    _load_stages(model, out, _MODEL_STAGES)
    del model.recall
    model.config.domain = model.config.domain or config.domain  # a start from before this was noted lacks it
    model.generation_config = GenerationConfig(
        max_new_tokens=160,
        do_sample=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
    )
    with atomic_folder(target, force=True) as folder:
        model.half().save_pretrained(folder)
        if config.start is not None:
            processor = MoAIProcessor.from_pretrained(config.start)
            processor.chat_template = NANO_CHAT_TEMPLATE  # questions as in the shards, likewise
            processor.save_pretrained(folder)
            told = VerbalizerSettings.load(Path(config.start).resolve())
            # Words have the shards' form, whatever the start had read before.
            replace(told, words=replace(told.words, **SHARD_FORM)).save(folder)
        else:
            build_processor(out / "tokenizer", config.multimodal.vision).save_pretrained(folder)
            text = json.dumps(config.verbalizer_settings, indent=2) + "\n"
            (folder / VERBALIZERS_FILE).write_text(text, encoding="utf-8")


def export_text_reader(config: NanoConfig, out: Path, target: Path) -> None:
    """Write the decoder as the stage ``text`` left it: the baseline that reads whole verbalizations.

    Args:
        config: The recipe.
        out: The run's folder.
        target: Folder for :meth:`moai.models.moai.text_reader.TextReaderAnswering.from_folder`.
    """
    decoder = _pretrained_decoder(config, out)
    with atomic_folder(target, force=True) as folder:
        decoder.half().save_pretrained(folder)
        InternLM2Tokenizer.from_pretrained(out / "tokenizer").save_pretrained(folder)


def train_nano(config: NanoConfig, out: Path, stages: tuple[str, ...] = STAGES) -> None:
    """Run the stages, each from where it stopped.

    Args:
        config: The recipe.
        out: Folder of everything that arises.
        stages: Which to run, of :data:`STAGES`.

    Raises:
        ValueError: ``config.start`` is given and ``stages`` holds more than :data:`LATE_STAGES`, or is not and
            ``config.patches`` has a tower of its own, or ``config.num_latents`` is given; something there was made with
            other settings, or is missing; or another process writes there.
        SystemExit: A stage was stopped by Ctrl-C or SIGTERM; a checkpoint is written.
    """
    if config.start is not None and not set(stages) <= set(LATE_STAGES):
        raise ValueError(
            f"from a finished model only the stages {LATE_STAGES} can start, got {stages}. Leave the others out."
        )
    if config.start is None and config.patches is not None and config.patches.vision:
        raise ValueError(
            "expected no `patches.vision` without a start, whose tower it replaces. Set `multimodal.vision`."
        )
    if config.start is None and config.num_latents is not None:
        raise ValueError(
            "expected no `num_latents` without a start, whose number it replaces. Set `multimodal.compressor`."
        )
    with hold_folder(out):
        _train_stages(config, out, stages)


def _train_stages(config: NanoConfig, out: Path, stages: tuple[str, ...]) -> None:
    if config.start is not None:
        InternLM2Tokenizer.from_pretrained(config.start).save_pretrained(out / "tokenizer")
    elif "tokenizer" in stages and not is_made(out / "tokenizer", config.tokenizer):
        train_nano_tokenizer(out / "tokenizer", **config.tokenizer)
        note_made(out / "tokenizer", config.tokenizer)
    for stage in ("text", *_MODEL_STAGES):
        if getattr(config, stage) is not None and stage in stages:
            _train_stage(stage, config, out)
    if (config.multimodal or config.start) is not None and "export" in stages:
        export_nano(config, out, out / "moai-nano")
    if "export" in stages and config.start is None:
        export_text_reader(config, out, out / "text-reader")


def main(arguments: list[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description="Train moai-nano; resumes what it finds in --out.")
    parser.add_argument("--config", required=True, type=Path, help="recipe, configs/nano.yaml for example")
    parser.add_argument("--out", required=True, type=Path, help="folder for checkpoints and logs")
    parser.add_argument("--ranks", type=int, help="processes of one thread each; the recipe's number by default")
    parser.add_argument("--stage", choices=STAGES, action="append", help="run only this one; may be repeated")
    parser.add_argument(
        "--start", type=Path, help="finished moai-nano to go on from: phrases, patches, practice, export"
    )
    chosen = parser.parse_args(arguments)
    config = load_nano_config(chosen.config)
    if chosen.start is not None:
        config = replace(config, start=str(chosen.start))
    if chosen.ranks is not None:
        config = replace(config, num_ranks=chosen.ranks)
    if "RANK" in os.environ:  # one of the processes of a stage
        (stage,) = chosen.stage
        return run_stage(build_task(stage, config, chosen.out), getattr(config, stage), chosen.out / stage, config.seed)
    try:
        train_nano(config, chosen.out, tuple(chosen.stage or (STAGES if config.start is None else LATE_STAGES)))
    except ValueError as error:
        parser.error(str(error))

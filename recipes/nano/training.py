"""Train moai-nano from nothing: tokenizer, text reading, then the whole model in the paper's two stages.

    python -m moai.training.nano --config configs/nano.yaml --out runs/nano

Each step is skipped when it is done, resumed when it was killed. With several ranks, scenes become tokens in
a process of their own.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from transformers import GenerationConfig, LlamaForCausalLM

from moai.checkpoints.io.verbalizer_settings import VERBALIZERS_FILE
from moai.models.moai.modeling_moai import MoAIForConditionalGeneration
from moai.processing.processing_moai import MoAIProcessor
from moai.processing.tokenization_internlm2 import InternLM2Tokenizer

from .checkpointing import latest_checkpoint, load_checkpoint
from .compressor_pretraining import CompressorTask
from .expert_initialisation import start_with_reading_order, start_with_word_matching
from .loop import run_loop, start_ranks
from .model_building import copy_verbalizer_settings
from .multimodal_training import MultimodalTask
from .nano_config import MultimodalSettings, NanoConfig, PhraseSettings, TextSettings, load_nano_config
from .nano_models import build_decoder, build_moai, build_processor, prompt_ids
from .nano_tokenizer import train_nano_tokenizer
from .phrase_recall import PhraseRecall, PhraseVocabulary
from .scene_shards import ShardSettings, build_missing_shards, shard_path
from .text_pretraining import TextTask

__all__ = ["LATE_STAGES", "STAGES", "export_nano", "export_text_reader", "main", "train_nano"]

STAGES = ("tokenizer", "text", "copying", "phrases", "questions", "multimodal", "practice", "export")
#: Those that can start from a finished model.
LATE_STAGES = ("practice", "export")

#: Stages that train compressor, mixers or both; each starts from the last of those before it that ran.
_WHOLE_STAGES = ("phrases", "questions", "multimodal", "practice")
#: So many scenes are made on the spot; more in a process of their own, ahead of the trainer.
SMALL = 4096
#: Batches that new experts' first attention is fitted to.
OBSERVED_STEPS = 6


def _start_builder(settings: ShardSettings, folder: Path, num_shards: int, tokenizer: Path) -> multiprocessing.Process:
    """Make shards in a process of its own, at low priority: the trainer must not starve."""
    builder = multiprocessing.get_context("spawn").Process(
        target=_build_politely, args=(settings, folder, num_shards, tokenizer), daemon=True
    )
    builder.start()
    return builder


def _build_politely(settings: ShardSettings, folder: Path, num_shards: int, tokenizer: Path) -> None:
    os.nice(5)
    torch.set_num_threads(1)
    build_missing_shards(settings, folder, range(num_shards), tokenizer)


def _train_text(rank: int, num_ranks: int, config: NanoConfig, out: Path) -> None:
    model = build_decoder(config, InternLM2Tokenizer.from_pretrained(out / "tokenizer"))
    _read_texts("text", config.text, model, out, rank, num_ranks)


def _train_copying(rank: int, num_ranks: int, config: NanoConfig, out: Path) -> None:
    model = _pretrained_decoder(config, out, ("text",))
    _read_texts("copying", config.copying, model, out, rank, num_ranks)


def _read_texts(
    name: str, settings: TextSettings, model: LlamaForCausalLM, out: Path, rank: int, num_ranks: int
) -> None:
    prompt = prompt_ids(InternLM2Tokenizer.from_pretrained(out / "tokenizer"))
    shards = out / f"{name}-shards"
    task = TextTask(model, prompt, shards, settings.batch_size, settings.text_weight, settings.shards.num_scenes)
    run_loop(model.train(), task, task.count_names, settings.loop, out / name, rank, num_ranks)


def _pretrained_decoder(config: NanoConfig, out: Path, stages: tuple[str, ...]) -> LlamaForCausalLM:
    """The decoder as the last of some stages left it."""
    decoder = build_decoder(config, InternLM2Tokenizer.from_pretrained(out / "tokenizer"))
    found = [path for stage in stages if (path := latest_checkpoint(out / stage / "checkpoints")) is not None]
    if not found:
        raise ValueError(f"expected a pretrained decoder in {out / 'text'}, got none. Run the stage 'text' first.")
    load_checkpoint(found[-1], decoder)
    return decoder


def _model_with_recall(config: NanoConfig, out: Path, tokenizer: InternLM2Tokenizer) -> MoAIForConditionalGeneration:
    """The whole model before the stages that train it, with the heads that only training needs."""
    if config.start is not None:
        model = MoAIForConditionalGeneration.from_pretrained(config.start, dtype=torch.float32)
        torch.manual_seed(config.seed + 1)
    else:
        model = build_moai(config, config.multimodal, tokenizer, _pretrained_decoder(config, out, ("text", "copying")))
    model.recall = PhraseRecall(model.config.text_config.hidden_size)
    return model


def _load_last(model: MoAIForConditionalGeneration, out: Path, stages: tuple[str, ...]) -> None:
    found = [path for stage in stages if (path := latest_checkpoint(out / stage / "checkpoints")) is not None]
    if found:
        load_checkpoint(found[-1], model)


def _train_phrases(rank: int, num_ranks: int, config: NanoConfig, out: Path) -> None:
    tokenizer = InternLM2Tokenizer.from_pretrained(out / "tokenizer")
    settings, model = config.phrases, _model_with_recall(config, out, tokenizer)
    model.requires_grad_(False)
    model.model.compressor.requires_grad_(True)
    model.recall.requires_grad_(True)
    shards, vocabulary = out / "phrases-shards", PhraseVocabulary.from_tokenizer(tokenizer)
    task = CompressorTask(model, vocabulary, shards, settings.shards.num_scenes, settings.batch_size)
    run_loop(model.train(), task, task.count_names, settings.loop, out / "phrases", rank, num_ranks)


def _train_questions(rank: int, num_ranks: int, config: NanoConfig, out: Path) -> None:
    _train_whole("questions", config.questions, rank, num_ranks, config, out)


def _train_multimodal(rank: int, num_ranks: int, config: NanoConfig, out: Path) -> None:
    _train_whole("multimodal", config.multimodal, rank, num_ranks, config, out)


def _train_practice(rank: int, num_ranks: int, config: NanoConfig, out: Path) -> None:
    _train_whole("practice", config.practice, rank, num_ranks, config, out)


def _train_whole(
    name: str, settings: MultimodalSettings, rank: int, num_ranks: int, config: NanoConfig, out: Path
) -> None:
    tokenizer = InternLM2Tokenizer.from_pretrained(out / "tokenizer")
    model = _model_with_recall(config, out, tokenizer)
    _load_last(model, out, _WHOLE_STAGES[: _WHOLE_STAGES.index(name)])
    vocabulary = PhraseVocabulary.from_tokenizer(tokenizer)
    task = MultimodalTask(model, settings, prompt_ids(tokenizer), out / f"{name}-shards", vocabulary)
    if name != "practice" and latest_checkpoint(out / name / "checkpoints") is None:
        _initialise_experts(name, model, task)
    run_loop(model.train(), task, task.count_names, settings.loop, out / name, rank, num_ranks)


@torch.no_grad()
def _initialise_experts(name: str, model: MoAIForConditionalGeneration, task: MultimodalTask) -> None:
    """Before a stage's first step; a function of weights and shards alone, so that all ranks agree."""
    model.eval()
    # No further than training goes: the shards of later steps are never made.
    steps = range(min(OBSERVED_STEPS, task.settings.loop.num_steps))
    if name == "questions":
        start_with_word_matching(model, lambda: task.observed(steps))
    elif task.batch(0, 0, 1).pixel_values is not None:
        start_with_reading_order(model, lambda: task.observed(steps))


def _num_shards(num_steps: int, batch_size: int, settings: ShardSettings) -> int:
    return -(-num_steps // (settings.num_scenes // batch_size))


def _run_ranks(
    work: Callable[..., None],
    name: str,
    settings: TextSettings | PhraseSettings | MultimodalSettings,
    config: NanoConfig,
    out: Path,
) -> None:
    count = _num_shards(settings.loop.num_steps, settings.batch_size, settings.shards)
    shards, tokenizer = out / f"{name}-shards", out / "tokenizer"
    is_complete = all(shard_path(shards, shard).is_file() for shard in range(count))
    if count * settings.shards.num_scenes < SMALL and not is_complete:
        build_missing_shards(settings.shards, shards, range(count), tokenizer)
        is_complete = True
    builder = None if is_complete else _start_builder(settings.shards, shards, count, tokenizer)
    try:
        start_ranks(work, config.num_ranks, out / name / "rendezvous", config, out)
    finally:
        if builder is not None:
            builder.terminate()


def export_nano(config: NanoConfig, out: Path, target: Path) -> None:
    """Write the trained model in float16 with its processor, as a folder for ``from_pretrained``.

    Args:
        config: The recipe.
        out: The run's folder.
        target: Folder that receives the checkpoint.
    """
    tokenizer = InternLM2Tokenizer.from_pretrained(out / "tokenizer")
    if config.start is None and latest_checkpoint(out / "multimodal" / "checkpoints") is None:
        raise ValueError(f"expected a trained model in {out / 'multimodal'}, got none. Run stage 'multimodal' first.")
    model = _model_with_recall(config, out, tokenizer)
    _load_last(model, out, ("multimodal", "practice"))
    del model.recall
    model.config.domain = model.config.domain or config.domain  # a start from before this was noted lacks it
    model.generation_config = GenerationConfig(
        max_new_tokens=160,
        do_sample=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
    )
    target.mkdir(parents=True, exist_ok=True)
    model.half().save_pretrained(target)
    if config.start is not None:
        MoAIProcessor.from_pretrained(config.start).save_pretrained(target)
        copy_verbalizer_settings(config.start, target)
    else:
        build_processor(out / "tokenizer", config.multimodal.vision).save_pretrained(target)
        text = json.dumps(config.verbalizer_settings, indent=2) + "\n"
        (target / VERBALIZERS_FILE).write_text(text, encoding="utf-8")


def export_text_reader(config: NanoConfig, out: Path, target: Path) -> None:
    """Write the decoder as the stage ``text`` left it: the baseline that reads whole verbalizations.

    Args:
        config: The recipe.
        out: The run's folder.
        target: Folder for :meth:`moai.evaluation.text_reader.TextReader.from_pretrained`.
    """
    decoder = _pretrained_decoder(config, out, ("text", "copying"))
    target.mkdir(parents=True, exist_ok=True)
    decoder.half().save_pretrained(target)
    InternLM2Tokenizer.from_pretrained(out / "tokenizer").save_pretrained(target)


def train_nano(config: NanoConfig, out: Path, stages: tuple[str, ...] = STAGES) -> None:
    """Run the stages, each from where it stopped.

    Args:
        config: The recipe.
        out: Folder of everything that arises.
        stages: Which to run, of :data:`STAGES`.

    Raises:
        ValueError: ``config.start`` is given and ``stages`` holds more than :data:`LATE_STAGES`.
    """
    if config.start is not None and not set(stages) <= set(LATE_STAGES):
        raise ValueError(
            f"from a finished model only the stages {LATE_STAGES} can start, got {stages}. Leave the others out."
        )
    out.mkdir(parents=True, exist_ok=True)
    if config.start is not None:
        InternLM2Tokenizer.from_pretrained(config.start).save_pretrained(out / "tokenizer")
    elif "tokenizer" in stages and not (out / "tokenizer" / "tokenizer.model").is_file():
        train_nano_tokenizer(out / "tokenizer", **config.tokenizer)
    if config.text is not None and "text" in stages:
        _run_ranks(_train_text, "text", config.text, config, out)
    if config.copying is not None and "copying" in stages:
        _run_ranks(_train_copying, "copying", config.copying, config, out)
    if config.phrases is not None and "phrases" in stages:
        _run_ranks(_train_phrases, "phrases", config.phrases, config, out)
    if config.questions is not None and "questions" in stages:
        _run_ranks(_train_questions, "questions", config.questions, config, out)
    if config.multimodal is not None and "multimodal" in stages:
        _run_ranks(_train_multimodal, "multimodal", config.multimodal, config, out)
    if config.practice is not None and "practice" in stages:
        _run_ranks(_train_practice, "practice", config.practice, config, out)
    if (config.multimodal or config.start) is not None and "export" in stages:
        export_nano(config, out, out / "moai-nano")
    if "export" in stages and config.start is None:
        export_text_reader(config, out, out / "text-reader")


def main(arguments: list[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description="Train moai-nano; resumes what it finds in --out.")
    parser.add_argument("--config", required=True, type=Path, help="recipe, configs/nano.yaml for example")
    parser.add_argument("--out", required=True, type=Path, help="folder for shards, checkpoints and logs")
    parser.add_argument("--ranks", type=int, help="processes of one thread each; the recipe's number by default")
    parser.add_argument("--stage", choices=STAGES, action="append", help="run only this one; may be repeated")
    parser.add_argument("--start", type=Path, help="finished moai-nano to go on from: practice and export only")
    chosen = parser.parse_args(arguments)
    config = load_nano_config(chosen.config)
    if chosen.start is not None:
        config = replace(config, start=str(chosen.start))
    if chosen.ranks is not None:
        config = replace(config, num_ranks=chosen.ranks)
    try:
        train_nano(config, chosen.out, tuple(chosen.stage or (STAGES if config.start is None else LATE_STAGES)))
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()

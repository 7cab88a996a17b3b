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
from pathlib import Path

import torch
from transformers import GenerationConfig, LlamaForCausalLM

from moai.tokenization_internlm2 import InternLM2Tokenizer

from .checkpointing import latest_checkpoint, load_checkpoint
from .loop import run_loop, start_ranks
from .multimodal_training import MultimodalTask, Recall
from .nano_config import MultimodalSettings, NanoConfig, TextSettings, load_nano_config
from .nano_models import build_decoder, build_moai, build_processor, prompt_ids
from .nano_tokenizer import train_nano_tokenizer
from .scene_shards import ShardSettings, build_missing_shards, shard_path
from .text_pretraining import TextTask

__all__ = ["STAGES", "export_nano", "main", "train_nano"]

STAGES = ("tokenizer", "text", "copying", "multimodal", "export")


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
    task = TextTask(model, prompt, shards, settings.shards.num_scenes, settings.batch_size, settings.text_weight)
    run_loop(model.train(), task, task.count_names, settings.loop, out / name, rank, num_ranks)


def _pretrained_decoder(config: NanoConfig, out: Path, stages: tuple[str, ...]) -> LlamaForCausalLM:
    """The decoder as the last of some stages left it."""
    decoder = build_decoder(config, InternLM2Tokenizer.from_pretrained(out / "tokenizer"))
    found = [path for stage in stages if (path := latest_checkpoint(out / stage / "checkpoints")) is not None]
    if not found:
        raise ValueError(f"expected a pretrained decoder in {out / 'text'}, got none. Run the stage 'text' first.")
    load_checkpoint(found[-1], decoder)
    return decoder


def _train_multimodal(rank: int, num_ranks: int, config: NanoConfig, out: Path) -> None:
    tokenizer = InternLM2Tokenizer.from_pretrained(out / "tokenizer")
    settings, decoder = config.multimodal, _pretrained_decoder(config, out, ("text", "copying"))
    model = build_moai(config, settings, tokenizer, decoder)
    model.recall = Recall(model.config.text_config.hidden_size)  # shed again by export
    task = MultimodalTask(model, settings, prompt_ids(tokenizer), out / "multimodal-shards")
    run_loop(model.train(), task, task.count_names, settings.loop, out / "multimodal", rank, num_ranks)


def _num_shards(num_steps: int, batch_size: int, settings: ShardSettings) -> int:
    return -(-num_steps // (settings.num_scenes // batch_size))


def _run_ranks(
    work: Callable[..., None], name: str, settings: TextSettings | MultimodalSettings, config: NanoConfig, out: Path
) -> None:
    count = _num_shards(settings.loop.num_steps, settings.batch_size, settings.shards)
    shards, tokenizer = out / f"{name}-shards", out / "tokenizer"
    is_complete = all(shard_path(shards, shard).is_file() for shard in range(count))
    if config.num_ranks == 1 and not is_complete:
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
    model = build_moai(config, config.multimodal, tokenizer, None)
    found = latest_checkpoint(out / "multimodal" / "checkpoints")
    if found is None:
        raise ValueError(f"expected a trained model in {out / 'multimodal'}, got none. Run stage 'multimodal' first.")
    model.recall = Recall(model.config.text_config.hidden_size)
    load_checkpoint(found, model)
    del model.recall
    model.generation_config = GenerationConfig(
        max_new_tokens=160,
        do_sample=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
    )
    target.mkdir(parents=True, exist_ok=True)
    model.half().save_pretrained(target)
    build_processor(out / "tokenizer", config.multimodal.vision).save_pretrained(target)
    # The OCR is what runs from a wheel, offline; a black map where there are no segments, as in training.
    settings = {"verbalizers": [{"kind": "ocr", "backend": "rapidocr"}], "map": "always"}
    (target / "verbalizers.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def train_nano(config: NanoConfig, out: Path, stages: tuple[str, ...] = STAGES) -> None:
    """Run the stages, each from where it stopped.

    Args:
        config: The recipe.
        out: Folder of everything that arises.
        stages: Which to run, of :data:`STAGES`.
    """
    out.mkdir(parents=True, exist_ok=True)
    if "tokenizer" in stages and not (out / "tokenizer" / "tokenizer.model").is_file():
        train_nano_tokenizer(out / "tokenizer", **config.tokenizer)
    if "text" in stages:
        _run_ranks(_train_text, "text", config.text, config, out)
    if config.copying is not None and "copying" in stages:
        _run_ranks(_train_copying, "copying", config.copying, config, out)
    if config.multimodal is not None and "multimodal" in stages:
        _run_ranks(_train_multimodal, "multimodal", config.multimodal, config, out)
    if config.multimodal is not None and "export" in stages:
        export_nano(config, out, out / "moai-nano")


def main(arguments: list[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description="Train moai-nano; resumes what it finds in --out.")
    parser.add_argument("--config", required=True, type=Path, help="recipe, configs/nano.yaml for example")
    parser.add_argument("--out", required=True, type=Path, help="folder for shards, checkpoints and logs")
    parser.add_argument("--stage", choices=STAGES, action="append", help="run only this one; may be repeated")
    chosen = parser.parse_args(arguments)
    train_nano(load_nano_config(chosen.config), chosen.out, tuple(chosen.stage or STAGES))


if __name__ == "__main__":
    main()

"""Recipe of the text reader on real verbalizations: the baseline of equal training beside moai-nano.

    python -m recipes.reader --reader checkpoints/moai-nano --questions runs/scenes/train.jsonl \
        --cache runs/scenes/verbalizations --out runs/reader

A decoder (moai-nano's own, or as the stage ``text`` of `python -m recipes.nano` left it) reads whole verbalizations in
its prompt and answers the questions that :mod:`moai.scenes.export` wrote. Killed, the same command goes on.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from moai.checkpoints.io.contents import hash_checkpoint
from moai.data.conversation_files import read_rows
from moai.data.findings import FindingsReader, MissingFindingsError
from moai.data.sample_identity import fold_digests, hash_value
from moai.models.moai.text_reader import TextReaderAnswering
from moai.models.moai.tokenization_internlm2 import InternLM2Tokenizer
from moai.scenes.scenes import QUESTION_KINDS
from moai.training.train_settings import OptimizationSettings, SavingSettings
from recipes.stages import StageSettings, run_stage
from verbalizers import VerbalizationCache
from verbalizers.core.durable_files import atomic_folder, hold_folder

from .nano.prompt import prompt_ids
from .nano.scenes import SceneSettings, ShardBatches, TokenQuestion, TokenScene, build_shard
from .nano.text_task import TextTask

__all__ = ["main", "read_questions", "train_reader"]

#: Of noisy scenes, as in configs/nano_stage2.yaml; descriptions come from a file.
KINDS = (*(kind for kind in QUESTION_KINDS if kind != "description"), *("recognition", "counting", "reading") * 2)


def read_questions(files: Sequence[Path], cache: Path, tokenizer: InternLM2Tokenizer) -> list[TokenScene]:
    """Verbalizations from a cache with all questions about their images, as tokens.

    Args:
        files: JSONL of :mod:`moai.scenes.export`; images lie beside it.
        cache: What `moai verbalize` wrote about them.
        tokenizer: Of the reader.

    Raises:
        ValueError: A file is not there, holds no question or a malformed line, or the cache does not hold an image.
    """
    encode, end, prompt = tokenizer.sp_model.encode, tokenizer.eos_token_id, prompt_ids(tokenizer)
    findings = FindingsReader(VerbalizationCache(cache))
    asked: dict[str, list[tuple[list[str], str, str]]] = {}
    for row in (row for file in files for row in read_rows(file)):
        try:
            *turns, answer = (turn["value"] for turn in row.value["conversations"])
            (image,) = row.images
            asked.setdefault(image.location, []).append((turns, answer, row.value["kind"]))
        except (KeyError, TypeError, ValueError) as error:
            wanted = "expected `image`, `kind` and a question with its answer"
            hint = "Write it anew: python -m moai.scenes.export"
            raise ValueError(f"{row.place}: {wanted}, got {row.problem or repr(error)}. {hint}") from error
    if not asked:
        raise ValueError(f"expected questions in {[str(file) for file in files]}, got none.")
    scenes = []
    for image, rows in asked.items():
        content = Path(image).read_bytes()
        try:
            said = findings.read(content, Image.new("RGB", (1, 1))).text
        except MissingFindingsError as error:
            raise ValueError(f"{image}: {error}. Run `moai verbalize` on the file of questions.") from error
        questions = []
        for turns, answer, kind in rows:
            ids: list[int] = []
            for number, text in enumerate(turns):
                if number:
                    ids += prompt.after_question if number % 2 else [end, *prompt.before_question]
                ids += encode(f" {text.removeprefix('<image>').strip()}")
            questions.append(TokenQuestion(ids, [*encode(f" {answer}"), end], QUESTION_KINDS.index(kind)))
        scenes.append(TokenScene(encode(said), questions))
    return scenes


def train_reader(
    reader: Path,
    files: Sequence[Path],
    cache: Path,
    out: Path,
    settings: StageSettings,
    noisy_scenes: int = 1400,
) -> None:
    """Train, or go on; the result is ``out/text-reader``.

    Args:
        reader: What training starts from, see :meth:`.TextReaderAnswering.from_folder`.
        files: See :func:`read_questions`.
        cache: See :func:`read_questions`.
        out: Folder of the run.
        settings: How to optimise; a batch's scenes come with all their questions.
        noisy_scenes: So many scenes with noisy truth are read along in every pass over the files; 0 = none.

    Raises:
        SystemExit: Ctrl-C or SIGTERM came; a checkpoint is written.
    """
    start = TextReaderAnswering.from_folder(reader)
    shards = [read_questions(files, cache, start.tokenizer)]
    if noisy_scenes:
        noisy = SceneSettings(
            num_scenes=noisy_scenes, num_questions=12, seed=7, truth_share=0.0, listing_share=0.0, kinds=KINDS,
            sign_probability=1.0, made_up_share=0.6,
        )  # fmt: skip
        shards.append(build_shard(noisy, 0, start.tokenizer))
    batches = ShardBatches(shards, settings.optimization.batch_size)
    data = [fold_digests([hash_value(scene) for scene in shard]) for shard in shards]
    data = {"reader": hash_checkpoint(reader), "questions": dict(enumerate(data))}
    task = TextTask(start.model, prompt_ids(start.tokenizer), batches, settings.optimization, 0.1, data)
    with hold_folder(out):
        run_stage(task, settings, out)
        with atomic_folder(out / "text-reader", force=True) as folder:
            start.model.half().save_pretrained(folder)
            start.tokenizer.save_pretrained(folder)


def main(arguments: list[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description="Train a text reader on real findings; resumes what it finds in --out."
    )
    parser.add_argument("--reader", required=True, type=Path, help="text reader, or MoAI whose decoder is taken")
    parser.add_argument("--questions", required=True, type=Path, nargs="+", help="JSONL files of moai.scenes.export")
    parser.add_argument("--cache", required=True, type=Path, help="folder of moai verbalize --out")
    parser.add_argument("--out", required=True, type=Path, help="folder for checkpoints, log and result")
    parser.add_argument("--num-steps", type=int, default=900)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--batch-size", type=int, default=16, help="scenes per step (default 16)")
    parser.add_argument("--noisy-scenes", type=int, default=1400, help="scenes with noisy truth beside them")
    chosen = parser.parse_args(arguments)
    optimization = OptimizationSettings(
        num_steps=chosen.num_steps,
        batch_size=chosen.batch_size,
        micro_batch_size=chosen.batch_size,
        learning_rate=chosen.learning_rate,
        warmup_share=min(30 / chosen.num_steps, 1.0),
        final_share=0.05,
        betas=(0.9, 0.98),
        precision="bf16",
    )
    settings = StageSettings(optimization=optimization, saving=SavingSettings(every_steps=50))
    try:
        train_reader(chosen.reader, chosen.questions, chosen.cache, chosen.out, settings, chosen.noisy_scenes)
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()

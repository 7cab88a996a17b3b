"""Runs that go on: what must be the same, and how what is otherwise is named."""

import json
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from cache_verbalizers import MeanColour, TwoHalves
from PIL import Image
from safetensors.torch import load_file, save_file
from training_builders import build_recipe, write_tiny_checkpoint

pytest.importorskip("accelerate", reason='needs accelerate: pip install "moai-vlm[train]"')
pytest.importorskip("peft", reason='needs peft: pip install "moai-vlm[train]"')

from moai.data.sample_identity import describe_rows, fold_digests, hash_value  # noqa: E402
from moai.processing.image_loading import load_image  # noqa: E402
from moai.training.checkpoints import CheckpointError  # noqa: E402
from moai.training.trainer import run_training  # noqa: E402
from verbalizers.store.building import build_cache  # noqa: E402
from verbalizers.store.recipe import Recipe  # noqa: E402
from verbalizers.store.sources import read_sources  # noqa: E402

NUM_ROWS = 6
SHORT = {"optimization__num_steps": 1, "optimization__batch_size": 2}


def write_rows(file: Path, answers: list[str]) -> None:
    rows = [
        {
            "image": f"{number}.png",
            "conversations": [{"from": "human", "value": "<image>\nwho?"}, {"from": "gpt", "value": answer}],
        }
        for number, answer in enumerate(answers)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def paint(folder: Path, number: int, level: int) -> None:
    Image.fromarray(np.full((28, 28, 3), level, np.uint8)).save(folder / f"{number}.png")


def fill_cache(folder: Path, verbalizers: list) -> None:
    shutil.rmtree(folder / "cache", ignore_errors=True)
    build_cache(
        read_sources(folder / "rows.jsonl"), Recipe.from_verbalizers(verbalizers), folder / "cache", load_image,
        num_workers=0,
    )  # fmt: skip


ANSWERS = ["one dog", "two dogs", "red cat", "old cat", "the man", "the cow"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a checkpoint, six rows, their cache, rows for validation, and a run that is done."""
    folder = tmp_path_factory.mktemp("place")
    write_tiny_checkpoint(folder / "base")
    for number in range(NUM_ROWS):
        paint(folder, number, 40 * number)
    write_rows(folder / "rows.jsonl", ANSWERS)
    write_rows(folder / "held.jsonl", ANSWERS[:2])
    fill_cache(folder, [TwoHalves(), MeanColour()])
    run_training(recipe_in(folder))
    return folder


def recipe_in(folder: Path, **changes) -> dict:
    recipe = build_recipe(folder / "base", folder / "run", **SHORT | changes)
    recipe["data"] = {"sources": str(folder / "rows.jsonl"), "cache": str(folder / "cache")}
    recipe["validation"] = {"sources": str(folder / "held.jsonl"), "cache": str(folder / "cache")}
    return recipe


def swap_answers(folder: Path) -> None:
    write_rows(folder / "rows.jsonl", [*ANSWERS[:2], *ANSWERS[:1:-1]])


def repaint_same_file(folder: Path) -> None:
    paint(folder, 4, 7)
    fill_cache(folder, [TwoHalves(), MeanColour()])


def say_otherwise(folder: Path) -> None:
    """Another text of the third image in a cache of the same verbalizers."""
    import pyarrow.parquet as pq

    (file,) = folder.glob("cache/*/scenes-*.parquet")
    table = pq.read_table(file)
    third = zlib.crc32((folder / "2.png").read_bytes())
    rows = table.to_pylist()
    for row in rows:
        if zlib.crc32((folder / row["path"]).read_bytes()) == third:
            row["text"] = "Something else."
    pq.write_table(type(table).from_pylist(rows, schema=table.schema), file)


def change_weight(folder: Path) -> None:
    file = folder / "base" / "model.safetensors"
    weights = {name: value.clone() for name, value in load_file(file).items()}
    weights[sorted(weights)[0]].flatten()[0] += 1
    save_file(weights, file, metadata={"format": "pt"})


def change_template(folder: Path) -> None:
    file = folder / "base" / "chat_template.jinja"
    file.write_text(file.read_text(encoding="utf-8") + "{# other #}", encoding="utf-8")


CHANGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "answers": (swap_answers, r"`data.sources.rows.jsonl.texts`: row 3 is the first that differs\."),
    "a row less": (
        lambda folder: write_rows(folder / "rows.jsonl", ANSWERS[:5]),
        r"texts`: 5 rows in place of 6; row 6 is the first that differs\.",
    ),
    "an image": (repaint_same_file, r"`data.sources.rows.jsonl.images`: row 5 is the first that differs\."),
    "a verbalization": (say_otherwise, r"rows.jsonl.verbalizations`: row 3 is the first that differs\."),
    "the verbalizers": (lambda folder: fill_cache(folder, [MeanColour()]), r"`data.sources.*verbalizations`: row 1 is"),
    "validation": (
        lambda folder: write_rows(folder / "held.jsonl", ["two dogs", "one dog"]),
        r"`validation.sources.held.jsonl.texts`: row 1 is the first that differs\.",
    ),
    "weights": (change_weight, r"the model that .*step-00000001 was trained from.*`start.model.safetensors`: has ano"),
    "the template": (change_template, r"`start.chat_template.jinja`: has another content"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_finished_run_names_what_changed_when_it_is_not_the_same(finished: Path, tmp_path: Path, name: str) -> None:
    change, message = CHANGES[name]
    folder = Path(shutil.copytree(finished, tmp_path / "copy"))
    for file in folder.glob("run/checkpoints/*/state.json"):  # settings name the copy
        file.write_text(file.read_text(encoding="utf-8").replace(str(finished), str(folder)), encoding="utf-8")
    before = (folder / "run" / "final" / "adapter_model.safetensors").read_bytes()
    change(folder)
    with pytest.raises(CheckpointError, match=message):
        run_training(recipe_in(folder))
    assert (folder / "run" / "final" / "adapter_model.safetensors").read_bytes() == before


def test_run_goes_on_when_only_places_times_or_free_settings_changed(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    folder = Path(shutil.copytree(finished, tmp_path / "copy"))
    for file in folder.glob("run/checkpoints/*/state.json"):
        file.write_text(file.read_text(encoding="utf-8").replace(str(finished), str(folder)), encoding="utf-8")
    for file in folder.glob("*.png"):
        file.touch()
    rows = folder / "rows.jsonl"
    rows.write_text(rows.read_text(encoding="utf-8").replace('{"image"', '{"id": "x", "image"'), encoding="utf-8")
    (folder / "base" / "README.md").write_text("A card.", encoding="utf-8")
    recipe = recipe_in(folder, data__check_images="path")
    recipe["validation"] = {"sources": str(folder / "rows.jsonl"), "cache": str(folder / "cache")}
    with pytest.raises(CheckpointError, match="data.check_images"):
        run_training({**recipe, "data": {**recipe["data"], "check_images": "path"}})
    assert run_training(recipe).is_finished
    assert "validation data are others than before" in capsys.readouterr().out


class Samples(torch.utils.data.Dataset):
    """A dataset of a user's own."""

    lengths = [5] * NUM_ROWS

    def __init__(self, processor, answers: list[str]) -> None:
        self.processor, self.answers = processor, answers

    def __len__(self) -> int:
        return len(self.answers)

    def __getitem__(self, index: int):
        from moai.data.samples import Sample

        texts = ("user", "who?"), ("assistant", self.answers[index])
        messages = tuple({"role": role, "content": [{"type": "text", "text": text}]} for role, text in texts)
        return Sample("", messages)


def test_own_dataset_is_compared_by_its_samples_when_it_tells_no_identity(finished: Path, tmp_path: Path) -> None:
    recipe = build_recipe(finished / "base", tmp_path / "run", **SHORT)
    run_training(recipe, dataset=lambda processor: Samples(processor, ANSWERS))
    assert run_training(recipe, dataset=lambda processor: Samples(processor, ANSWERS)).is_finished
    with pytest.raises(CheckpointError, match=r"`data.samples`: row 2 is the first that differs\."):
        run_training(recipe, dataset=lambda processor: Samples(processor, [ANSWERS[0], "no dogs", *ANSWERS[2:]]))


def test_base_is_made_anew_until_something_was_trained_from_it(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    recipe = build_recipe(finished / "base", tmp_path / "run", **SHORT, model__compressor={"num_latents": 3})
    with pytest.raises(ValueError, match="does not exist"):
        run_training(recipe, ["data.sources=missing.jsonl"])
    wider = ["model.compressor.num_latents=5"]
    run_training(recipe, wider)
    assert "`model.compressor.num_latents` was 3 and is 5" in capsys.readouterr().out
    for place, name in (("base", "model"), ("final", "adapter_model")):
        weights = load_file(tmp_path / "run" / place / f"{name}.safetensors")
        (latents,) = (value for key, value in weights.items() if "compressor.latents" in key)
        assert len(latents) == 5, place
    with pytest.raises(ValueError, match="num_latents` was 5 and is 3, and checkpoints beside it"):
        run_training(recipe)
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    with pytest.raises(ValueError, match=r"expected checkpoints beside the result .*final, got none"):
        run_training(recipe, wider)


def test_next_stage_is_told_how_the_first_goes_on_when_that_has_not_finished(finished: Path, tmp_path: Path) -> None:
    import yaml

    file = tmp_path / "one.yaml"
    file.write_text(yaml.safe_dump(build_recipe(finished / "base", tmp_path / "first", **SHORT)), encoding="utf-8")
    with pytest.raises(ValueError, match="does not exist"):
        run_training(str(file), ["data.sources=missing.jsonl"])
    for place in ("first", "first/final"):
        message = rf"that run has not finished. It goes on with: moai train --config {file} data.sources=missing.jsonl"
        with pytest.raises(ValueError, match=message):
            run_training(build_recipe(tmp_path / place, tmp_path / "second", stage=2, **SHORT))


def test_first_difference_is_found_when_rows_are_many() -> None:
    rows = [bytes([number % 251, number // 251]) for number in range(5000)]
    old, other = fold_digests(rows), fold_digests([*rows[:3001], b"", *rows[3002:]])
    assert len(old["digests"]) == 8 * 1000
    assert describe_rows(old, other) == "the first that differs is among rows 3001 to 3005"
    assert describe_rows(old, fold_digests(rows[:-1])).startswith("4999 rows in place of 5000; ")
    assert describe_rows(fold_digests([]), fold_digests(rows)) == "5000 rows in place of 0"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (["ab", "c"], ["a", "bc"]),
        ({"a": 1}, {"a": "1"}),
        (torch.zeros(2, 3), torch.zeros(3, 2)),
        (torch.zeros(2), torch.zeros(2, dtype=torch.bfloat16)),
        (np.zeros(4, np.uint8), np.zeros(1, np.uint32)),
        (Image.new("RGB", (2, 3)), Image.new("RGB", (3, 2))),
        (None, ""),
    ],
)
def test_values_that_differ_have_other_hashes(one, other) -> None:
    assert hash_value(one) != hash_value(other)
    assert hash_value(one) == hash_value(one)


def test_identity_is_of_contents_when_images_are_read_late_or_lie_elsewhere(finished: Path, tmp_path: Path) -> None:
    from moai import MoAIProcessor
    from moai.data.training_data import DataSettings, build_training_dataset
    from moai.models.moai.collator_moai import MoAICollator

    processor = MoAIProcessor.from_pretrained(finished / "base")
    elsewhere = Path(shutil.copytree(finished, tmp_path / "elsewhere", copy_function=shutil.copyfile))

    def identify(folder: Path, **fields) -> dict:
        fields = {"sources": [str(folder / "rows.jsonl")] * 2, "cache": str(folder / "cache")} | fields
        return build_training_dataset(DataSettings.from_dict(fields), MoAICollator(processor)).identity()

    found = identify(finished)
    assert json.loads(json.dumps(found)) == found and list(found["sources"]) == ["rows.jsonl", "rows.jsonl (2)"]
    assert identify(elsewhere) == identify(finished, check_images="path") == identify(finished, max_images=3) == found
    said = {one["cache"] for one in found["verbalizers"].values()}
    assert len(said) == 1 and said.pop() in {folder.name for folder in (finished / "cache").iterdir()}
    without = identify(finished, cache=None, verbalizations="none")
    assert without["verbalizers"] == {} and "verbalizations" not in without["sources"]["rows.jsonl"]
    scenes = {"scenes": {"length": 3, "num_questions": 1, "image_size": 32}}
    quiet, loud = (identify(finished, cache=None, sources=[scenes], kinds=kinds) for kinds in (None, ["ocr"]))
    assert quiet == loud and quiet["verbalizers"]["scenes"]["words"]["detection_threshold"] == 0.5

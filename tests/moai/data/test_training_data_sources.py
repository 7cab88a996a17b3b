"""Tables, scenes and the cache of verbalizations as sources of training samples."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from cache_verbalizers import MeanColour, TwoHalves
from datasets import Dataset, DatasetDict, Image, List, concatenate_datasets
from pipeline_builders import draw_image, write_tiny_checkpoint
from torch.utils.data import DataLoader

from moai import MoAIProcessor
from moai.checkpoints.io.verbalizer_settings import VerbalizerSettings
from moai.data.collator import WEIGHTS, CollatedBatches
from moai.data.findings import FindingsReader
from moai.data.training_data import DataSettings, TrainingDataset, build_training_dataset
from moai.models.moai.collator_moai import MoAICollator
from moai.processing.image_loading import load_image
from verbalizers import VerbalizationCache, parse_scene, render_segmentation_map, verbalize_scene
from verbalizers.store.building import build_cache
from verbalizers.store.recipe import Recipe
from verbalizers.store.sources import read_sources

LOOKING = [TwoHalves(), MeanColour()]


def build(settings: DataSettings, processor: MoAIProcessor, *arguments: object) -> TrainingDataset:
    return build_training_dataset(settings, MoAICollator(processor), *arguments)


def said(dataset: TrainingDataset, index: int) -> str:
    return dataset.collator.describe(dataset[index])


def painted(dataset: TrainingDataset, index: int) -> np.ndarray:
    return dataset.collator.paint(dataset[index])


@pytest.fixture(scope="module")
def processor(tmp_path_factory: pytest.TempPathFactory) -> MoAIProcessor:
    return MoAIProcessor.from_pretrained(write_tiny_checkpoint(tmp_path_factory.mktemp("checkpoint")))


def messages(answer: str, num_images: int = 1) -> list[dict]:
    words = [{"type": "image", "text": None}] * num_images + [{"type": "text", "text": "What is this?"}]
    return [{"role": "user", "content": words}, {"role": "assistant", "content": [{"type": "text", "text": answer}]}]


def build_table() -> Dataset:
    """TRL's shape; row 1 shows two images, row 2 none."""
    images = [[draw_image(0)], [draw_image(1), draw_image(2, 30, 90)], []]
    rows = {"images": images, "messages": [messages(f"answer {len(each)}", len(each)) for each in images]}
    return Dataset.from_dict(rows).cast_column("images", List(Image()))


def write_table(folder: Path, form: str) -> Path:
    """The same rows in each form in which users have them."""
    table = build_table()
    if form == "folder":
        table.save_to_disk(folder / "table")
        return folder / "table"
    if form == "splits":
        DatasetDict({"train": table, "test": table.select([0])}).save_to_disk(folder / "table")
        return folder / "table"
    if form == "parquet":
        table.to_parquet(folder / "table.parquet")
        return folder / "table.parquet"
    if form == "parquet folder":
        (folder / "table").mkdir()
        table.to_parquet(folder / "table" / "part-0.parquet")
        return folder / "table"
    for index, image in enumerate([draw_image(0), draw_image(1), draw_image(2, 30, 90)]):
        image.save(folder / f"{index}.png")
    paths = [["0.png"], ["1.png", "2.png"], []]
    lines = [{"images": each, "messages": row["messages"]} for each, row in zip(paths, build_table(), strict=True)]
    (folder / "table.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder / "table.jsonl"


def verbalize(path: Path, out: Path) -> Path:
    build_cache(read_sources(path), Recipe.from_verbalizers(LOOKING), out, load_image, num_workers=0)
    return out


@pytest.mark.parametrize("form", ["folder", "splits", "parquet", "parquet folder", "jsonl"])
def test_table_gives_samples_with_cached_words_when_rows_hold_images_and_messages(
    tmp_path: Path, processor: MoAIProcessor, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "arrow")
    path = write_table(tmp_path, form)
    cache = verbalize(path, tmp_path / "cache")
    sources = [{"path": path, "split": "train" if form == "splits" else None}]
    dataset = build(DataSettings(sources=sources, cache=cache), processor)
    assert [sample.answer for sample in dataset] == ["answer 1", "answer 2", "answer 0"]
    assert [len(sample.images) for sample in dataset] == [1, 2, 0]
    assert np.array_equal(np.asarray(dataset[1].images[1]), np.asarray(draw_image(2, 30, 90)))
    scene = parse_scene([draw_image(0)], LOOKING)[0]
    assert said(dataset, 0) == verbalize_scene(scene)
    assert np.array_equal(painted(dataset, 0), render_segmentation_map(scene.segments))
    assert said(dataset, 1).startswith("Picture 1: The image") and "Picture 2: " in said(dataset, 1)
    assert said(dataset, 2) == "" and not painted(dataset, 2).any()
    batch = dataset.collator(list(dataset))
    assert batch["pixel_values"].shape[0] == 3 and batch["auxiliary_pixel_values"].shape[0] == 3
    assert (batch["mm_token_type_ids"] == 1).sum(1).tolist() == [processor.num_image_tokens * n for n in (1, 2, 0)]


@pytest.mark.parametrize("column", ["picture", "img", "jpg", "imgs"])
def test_table_gives_its_images_when_their_column_has_any_name(
    tmp_path: Path, processor: MoAIProcessor, column: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "arrow")
    build_table().rename_column("images", column).to_parquet(tmp_path / "table.parquet")
    dataset = build(DataSettings(tmp_path / "table.parquet", verbalizations="none"), processor)
    assert [len(sample.images) for sample in dataset] == [1, 2, 0]


def test_table_names_its_columns_when_several_hold_images(
    tmp_path: Path, processor: MoAIProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "arrow")
    table = build_table()
    both = concatenate_datasets([table, table.select_columns("images").rename_column("images", "mask")], axis=1)
    both.save_to_disk(tmp_path / "table")
    settings = {"path": tmp_path / "table"}
    with pytest.raises(ValueError, match=r"one column of images .* got \['images', 'mask'\].*`column`"):
        build(DataSettings([settings], verbalizations="none"), processor)
    chosen = DataSettings([settings | {"column": "mask"}], verbalizations="none")
    assert build(chosen, processor).report.num_images == 3
    for wrong in ("messages", "absent"):
        with pytest.raises(ValueError, match=f"but not '{wrong}'"):
            build(DataSettings([settings | {"column": wrong}], verbalizations="none"), processor)


def test_row_is_refused_when_it_has_more_images_than_allowed(tmp_path: Path, processor: MoAIProcessor) -> None:
    path = write_table(tmp_path, "jsonl")
    settings = DataSettings(sources=str(path), verbalizations="none", max_images=1, max_bad_rows=1)
    report = build(settings, processor).report
    assert [str(problem) for problem in report.problems] == [
        "table.jsonl:2: expected at most 1 images (`max_images`), got 2"
    ]


@pytest.fixture
def half_cached(tmp_path: Path) -> tuple[Path, Path]:
    """Three rows of one image each, two of them verbalized."""
    rows = []
    for index in range(3):
        draw_image(index).save(tmp_path / f"{index}.png")
        rows.append({"images": [f"{index}.png"], "messages": messages(f"answer {index}")})
    (tmp_path / "all.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "two.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[::2]))
    return tmp_path / "all.jsonl", verbalize(tmp_path / "two.jsonl", tmp_path / "cache")


def test_missing_verbalizations_are_listed_when_they_are_an_error(
    half_cached: tuple[Path, Path], processor: MoAIProcessor
) -> None:
    path, cache = half_cached
    with pytest.raises(ValueError, match=r"1 images are not in the cache(.|\n)*all\.jsonl:2: 1\.png(.|\n)*moai verb"):
        build(DataSettings(sources=str(path), cache=cache), processor)
    late = build(DataSettings(sources=str(path), cache=cache, check_images="path"), processor)
    assert late[0].answer == "answer 0"
    with pytest.raises(ValueError, match=r"all\.jsonl:2 turn 2: the cache"):
        late[1]


@pytest.mark.parametrize(
    ("action", "answers", "has_words"),
    [("skip", [0, 2], True), ("empty", [0, 1, 2], False), ("live", [0, 1, 2], True)],
)
def test_missing_verbalization_is_treated_as_told_when_it_is_no_error(
    half_cached: tuple[Path, Path], processor: MoAIProcessor, action: str, answers: list[int], has_words: bool
) -> None:
    path, cache = half_cached
    settings = DataSettings(sources=str(path), cache=cache, on_missing=action)
    dataset = build(settings, processor)
    assert [sample.answer for sample in dataset] == [f"answer {index}" for index in answers]
    assert [problem.place for problem in dataset.report.missing] == ["all.jsonl:2"]
    assert bool(said(dataset, 1)) is has_words
    if action == "live":
        assert said(dataset, 1) == verbalize_scene(parse_scene([draw_image(1)], LOOKING)[0])
    late = DataSettings(sources=str(path), cache=cache, on_missing=action, check_images="path")
    stand_in = "answer 2" if action == "skip" else "answer 1"
    assert build(late, processor)[1].answer == stand_in


def test_settings_name_the_cache_s_verbalizers_when_a_model_is_to_be_saved(
    half_cached: tuple[Path, Path], processor: MoAIProcessor
) -> None:
    path, cache = half_cached
    settings = DataSettings(sources=str(path), cache=cache, on_missing="skip")
    saved = build(settings, processor).verbalizer_settings
    assert [(entry["kind"], entry["backend"]) for entry in saved.verbalizers] == [
        ("segmentation", "two_halves"),
        ("detection", "mean_colour"),
    ]
    assert saved.map == "always"
    rebuilt, absent = VerbalizerSettings.from_dict(json.loads(json.dumps(saved.to_dict()))).build()
    assert not absent and [v.fingerprint() for v in rebuilt] == [v.fingerprint() for v in LOOKING]


def test_chosen_kinds_alone_are_said_when_some_are_left_out(
    half_cached: tuple[Path, Path], processor: MoAIProcessor
) -> None:
    path, cache = half_cached
    for kinds in (("detection",), ("ocr",), ()):
        settings = DataSettings(sources=str(path), cache=cache, on_missing="skip", kinds=kinds)
        dataset = build(settings, processor)
        assert dataset.collator.settings.map == "never" and "auxiliary_pixel_values" not in dataset.collator(
            [dataset[0]]
        )
        assert said(dataset, 0) == ("" if kinds != ("detection",) else said(dataset, 0))
        assert ("left" in said(dataset, 0)) is False
        assert ("thing" in said(dataset, 0)) is (kinds == ("detection",))


def test_findings_are_read_by_content_when_evaluation_asks(half_cached: tuple[Path, Path]) -> None:
    path, cache = half_cached
    reader = FindingsReader(VerbalizationCache(cache))
    content = (path.parent / "2.png").read_bytes()
    assert reader.knows(content) and not reader.knows((path.parent / "1.png").read_bytes())
    found = reader.read(content, draw_image(2))
    assert found.text == verbalize_scene(parse_scene([draw_image(2)], LOOKING)[0])


def test_live_reader_refuses_a_cache_when_other_verbalizers_filled_it(half_cached: tuple[Path, Path]) -> None:
    path, cache = half_cached
    unknown = (path.parent / "1.png").read_bytes()
    stored = VerbalizationCache(cache)
    assert FindingsReader(stored, is_looking=True).read(unknown, draw_image(1)).scene is not None
    stored.manifest["verbalizers"][1]["fingerprint"] = "0" * 16
    with pytest.raises(ValueError, match="detection/mean_colour is not the one that filled the cache"):
        FindingsReader(stored, is_looking=True).read(unknown, draw_image(1))


def test_live_words_equal_cached_words_when_the_same_verbalizers_look(tmp_path: Path, processor: MoAIProcessor) -> None:
    path = write_table(tmp_path, "jsonl")
    cached = build(DataSettings(sources=str(path), cache=verbalize(path, tmp_path / "c")), processor)
    settings = DataSettings(sources=str(path), verbalizations="live")
    live = build(settings, processor, VerbalizerSettings().with_verbalizers(LOOKING))
    assert [said(live, index) for index in range(len(live))] == [said(cached, index) for index in range(len(live))]
    for mine, other in zip(live, cached, strict=True):
        assert np.array_equal(live.collator.paint(mine), cached.collator.paint(other))


SCENES = {"length": 3, "num_questions": 2, "image_size": 64}


def test_scenes_give_the_same_samples_when_worker_processes_read_them(processor: MoAIProcessor) -> None:
    dataset = build(DataSettings(sources=[{"scenes": SCENES}]), processor)
    assert len(dataset) == 6 and dataset.collator.settings.map == "always"
    collate = dataset.collator
    here = [collate([dataset[index] for index in pair]) for pair in ((0, 1), (2, 3), (4, 5))]
    loader = DataLoader(dataset, batch_size=2, collate_fn=collate, num_workers=1)
    for mine, other in zip(here, loader, strict=True):
        assert mine.keys() == other.keys()
        assert all(torch.equal(mine[key], other[key]) for key in mine)
    longest = max(int(batch["attention_mask"].sum(1).max()) for batch in here)
    assert max(dataset.lengths) >= longest


def test_scenes_truth_is_said_without_errors_when_noise_is_zero(processor: MoAIProcessor) -> None:
    from moai.scenes.scenes import Scenes

    dataset = build(DataSettings(sources=[{"scenes": SCENES | {"noise": 0}}]), processor)
    noisy = build(DataSettings(sources=[{"scenes": SCENES | {"noise": 3}}]), processor)
    for index in range(3):
        truth = verbalize_scene(Scenes(image_size=64)[index].truth)
        assert said(dataset, 2 * index) == truth != said(noisy, 2 * index)


def test_words_say_other_names_than_the_image_shows_when_it_is_unrelated(processor: MoAIProcessor) -> None:
    from moai.scenes.scenes import Scenes
    from moai.scenes.vocabulary import OBJECT_CLASSES

    scenes = {"image_size": 64, "length": 60, "num_questions": 3, "closeup_share": 0.5, "noise": 0}
    kinds = ("existence", "localisation", "colour", "description")
    plain, other = (
        build(DataSettings(sources=[{"scenes": {**scenes, "kinds": kinds, "unrelated_share": share}}]), processor)
        for share in (0.0, 1.0)
    )
    stream = Scenes(image_size=64, closeup_share=0.5)
    renamed, images, empty, own, coloured = [0] * 5
    for index in range(60):
        sample = stream[index]
        if not sample.truth.detections.class_names:
            continue
        words, asked = said(other, 3 * index), other[3 * index]
        keeps_image = np.array_equal(np.asarray(asked.images[0]), sample.image)
        own += keeps_image
        shown = stream[(1 << 40) + index]
        nothing = replace(shown, layout=shown.layout.emptied(), closeup=None)
        images += np.array_equal(np.asarray(asked.images[0]), shown.image)
        empty += np.array_equal(np.asarray(asked.images[0]), nothing.image)
        assert np.array_equal(np.asarray(plain[3 * index].images[0]), sample.image)
        said_names = {name for name in OBJECT_CLASSES if f"] {name}" in words}
        renamed += not {*sample.truth.segments.class_names, *sample.truth.detections.class_names} <= said_names
        prompts = str([other[3 * index + k].prompt for k in range(3)]).lower()
        asks_colour = "colour" in prompts or "color" in prompts
        assert keeps_image or not asks_colour
        coloured += asks_colour
    assert renamed > 20 and images > 8 and empty > 3 and 5 < own < 25 and coloured > 5


def test_another_scene_is_asked_about_when_one_has_no_questions(processor: MoAIProcessor) -> None:
    """Few scenes have relations between things; a run must not end at the first that has none."""
    from moai.scenes.scenes import Scenes

    scenes = {"image_size": 64, "length": 30, "num_questions": 1, "kinds": ["object_relation"], "noise": 0}
    dataset = build(DataSettings(sources=[{"scenes": scenes}]), processor)
    stream = Scenes(image_size=64, num_questions=1, kinds=("object_relation",), length=30)
    has_some = [bool(sample.questions) for sample in stream]
    assert 0 < sum(has_some) < 30
    for index, has in enumerate(has_some):
        shown = np.asarray(dataset[index].images[0])
        assert np.array_equal(shown, stream[index].image) == has


def test_sources_are_joined_when_several_are_named(half_cached: tuple[Path, Path], processor: MoAIProcessor) -> None:
    path, cache = half_cached
    sources = [{"path": str(path), "limit": 1}, {"scenes": SCENES}]
    dataset = build(DataSettings(sources=sources, cache=cache), processor)
    assert len(dataset) == len(dataset.lengths) == 7
    assert "all.jsonl" in dataset[0].place and "question 2" in dataset[6].place
    with pytest.raises(IndexError):
        dataset[7]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "expected the setting `data.sources`"),
        ({"sources": []}, "at least one source"),
        (
            {"sources": "a.json", "verbalisations": "none"},
            "unknown setting `data.verbalisations`. Did you mean 'verbalizations'",
        ),
        ({"sources": [{"pfad": "a"}]}, r"sources\[0\]"),
        ({"sources": [{"path": "a", "scenes": {}}]}, "exactly one of"),
        ({"sources": "a.json", "on_missing": "ignore"}, "on_missing"),
        ({"sources": "a.json", "max_bad_rows": -1}, "max_bad_rows"),
        ({"sources": "a.json", "verbalizations": "cache"}, "names no folder"),
        ({"sources": "a.json", "verbalizations": "truth"}, "only scenes"),
        ({"sources": [{"scenes": {"split": "dev"}}]}, "split"),
        ({"sources": [{"scenes": {"form": "captions", "unrelated_share": 0.5}}]}, "for questions"),
        ({"sources": [{"scenes": {"form": "captions", "blank_share": 0.5}}]}, "for questions"),
        ({"sources": [{"scenes": {"unrelated_share": 1.5}}]}, "unrelated_share"),
        ({"sources": [{"scenes": {"closeup_share": -0.5}}]}, "closeup_share"),
        ({"sources": [{"scenes": {"unrelated_share": 0.5}, "verbalizations": "live"}]}, "verbalizations: truth"),
        ({"sources": [{"scenes": {"unrelated_share": 0.5}}], "verbalizations": "none"}, "verbalizations: truth"),
    ],
)
def test_settings_are_refused_when_a_field_is_wrong(values: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DataSettings.from_dict(values)


@pytest.mark.parametrize(("name", "message"), [("none.jsonl", "does not exist"), ("image.txt", "'.txt'")])
def test_path_is_refused_when_it_holds_no_conversations(
    tmp_path: Path, processor: MoAIProcessor, name: str, message: str
) -> None:
    (tmp_path / "image.txt").write_text("x")
    settings = DataSettings(sources=str(tmp_path / name), verbalizations="none")
    with pytest.raises(ValueError, match=message):
        build(settings, processor)


def test_exported_scenes_train_like_a_user_s_data_when_they_are_verbalized(
    tmp_path: Path, processor: MoAIProcessor
) -> None:
    from moai.scenes.export import main

    main(["--out", str(tmp_path), "--length", "2", "--image-size", "64", "--num-questions", "2"])
    path = tmp_path / "questions.jsonl"
    dataset = build(DataSettings(sources=str(path), cache=verbalize(path, tmp_path / "cache")), processor)
    turns = [len(row["conversations"]) // 2 for row in map(json.loads, path.read_text("utf-8").splitlines())]
    assert len(turns) == 4 and len(dataset) == sum(turns) and not dataset.report.problems
    asked = [dataset[sum(turns[: k + 1]) - 1] for k in range(4)]  # each row's last turn is its question
    stream = build(DataSettings(sources=[{"scenes": SCENES}], verbalizations="none"), processor)
    for mine, other in zip(asked, stream, strict=False):
        assert (mine.prompt, mine.answer) == (other.prompt, other.answer)
        assert np.array_equal(np.asarray(mine.images[0]), np.asarray(other.images[0]))


def test_scenes_are_looked_at_when_real_verbalizers_are_asked(processor: MoAIProcessor) -> None:
    settings = DataSettings(sources=[{"scenes": SCENES, "verbalizations": "live"}])
    dataset = build(settings, processor, VerbalizerSettings().with_verbalizers(LOOKING))
    sample = dataset[2]
    assert dataset.collator.describe(sample) == verbalize_scene(parse_scene([np.asarray(sample.images[0])], LOOKING)[0])
    with pytest.raises(ValueError, match="there is no verbalizer"):
        build(settings, processor, VerbalizerSettings(verbalizers=()))[0]


def test_export_asks_other_questions_about_kept_images_when_another_file_is_named(tmp_path: Path) -> None:
    from moai.scenes.export import main

    usual = ["--out", str(tmp_path), "--length", "3", "--image-size", "64"]
    main(usual)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "images").iterdir()}
    main([*usual, "--num-questions", "6", "--kinds", "existence,description,existence", "--file", "more.jsonl"])
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "images").iterdir()} == before and len(before) == 3
    rows = [json.loads(line) for line in (tmp_path / "more.jsonl").read_text("utf-8").splitlines()]
    assert {row["kind"] for row in rows} == {"existence", "description"}
    assert {tmp_path / row["image"] for row in rows} == set(before)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "images",
        "more.jsonl",
        "questions.jsonl",
        "writer.lock",
    ]
    with pytest.raises(SystemExit):
        main([*usual, "--kinds", "singing"])


def test_samples_are_about_the_same_image_when_rows_call_it_differently(
    tmp_path: Path, processor: MoAIProcessor
) -> None:
    from moai.scenes.export import main

    main(["--out", str(tmp_path), "--length", "2", "--image-size", "64", "--num-questions", "3"])
    sources = [{"path": str(tmp_path / "questions.jsonl")}, {"scenes": SCENES}]
    dataset = build(DataSettings(sources=sources, verbalizations="none"), processor)
    rows = [json.loads(line) for line in (tmp_path / "questions.jsonl").read_text("utf-8").splitlines()]
    written = [row["image"] for row in rows for _ in range(len(row["conversations"]) // 2)]
    of_file = dataset.image_indices[: len(written)].tolist()
    assert of_file == [sorted(set(written)).index(name) for name in written]
    assert len(dataset.image_indices) == len(dataset) and not set(of_file) & set(
        dataset.image_indices[len(written) :].tolist()
    )
    assert dataset[0].images[0] is dataset[1].images[0] is not dataset[len(written)].images[0]


def test_sources_come_as_often_and_count_as_much_as_settings_say(processor):
    scenes = {"image_size": 32, "num_questions": 2}
    often = {"scenes": {**scenes, "length": 3}, "repeats": 2, "weight": 0.5}
    settings = DataSettings.from_dict({"sources": [often, {"scenes": {**scenes, "length": 4, "seed": 1}}]})
    dataset = build(settings, processor)
    assert len(dataset) == 2 * 6 + 8
    assert dataset.image_indices[:6].tolist() == dataset.image_indices[6:12].tolist() == [0, 0, 1, 1, 2, 2]
    assert dataset.image_indices[12:].min() == 3
    assert [dataset[index].weight for index in (0, 6, 12)] == [0.5, 0.5, 1.0]
    assert dataset[1].messages == dataset[7].messages != dataset[13].messages
    assert len(dataset.identity()["sources"]) == 2
    assert CollatedBatches(dataset, dataset.collator)[[0, 12]][WEIGHTS].tolist() == [0.5, 1.0]
    assert WEIGHTS not in CollatedBatches(dataset, dataset.collator)[[12, 13]]
    for wrong in ({"weight": 0}, {"repeats": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            DataSettings.from_dict({"sources": [often | wrong]})

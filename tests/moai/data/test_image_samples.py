"""Images to learn from: rows with captions, folders, conversations, scenes, bad rows."""

import json
from random import Random

import numpy as np
import pytest
from PIL import Image

from moai.data.image_samples import ImageDataset, caption_scene
from moai.data.image_settings import ImageDataSettings
from moai.scenes.scenes import Scenes
from moai.training.tasks.augmentation import AugmentationSettings, draw_view


@pytest.fixture
def folder(tmp_path):
    for number in range(3):
        Image.new("RGB", (20 + number, 16), (80 * number, 0, 0)).save(tmp_path / f"{number}.png")
    return tmp_path


def read(folder, rows, has_captions=True, **settings):
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    sources = [{"path": str(folder / "rows.jsonl"), **settings.pop("source", {})}]
    return ImageDataset(ImageDataSettings(sources=sources, **settings), has_captions)


def test_captions_are_a_text_several_or_a_first_answer(folder):
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A cat."}]
    rows = [
        {"image": "0.png", "caption": "A dog."},
        {"image": "1.png", "caption": ["A car.", "Red."]},
        {"image": "2.png", "conversations": turns},
    ]
    dataset = read(folder, rows)
    assert [dataset[index].captions for index in range(3)] == [("A dog.",), ("A car.", "Red."), ("A cat.",)]
    assert dataset[1].image.size == (21, 16)
    renamed = read(folder, [{"image": "0.png", "text": "A dog."}], source={"caption": "text"})
    assert renamed[0].captions == ("A dog.",)
    assert len(read(folder, rows, source={"limit": 2})) == 2


def test_bad_rows_are_named_and_left_out_where_allowed(folder):
    (folder / "broken.png").write_bytes(b"no image")
    rows = [
        {"image": "0.png", "caption": ""},
        {"image": "broken.png", "caption": "x"},
        {"image": "1.png", "caption": "y"},
    ]
    with pytest.raises(ValueError, match=r"2 bad rows.*rows.jsonl:1"):
        read(folder, rows)
    dataset = read(folder, rows, max_bad_rows=2)
    assert len(dataset) == 1
    assert "rows.jsonl:2" in dataset.problems[1]
    with pytest.raises(ValueError, match="got none"):
        read(folder, rows[:1], max_bad_rows=1)


def test_folder_needs_no_captions_and_its_content_is_its_identity(folder):
    def load():
        return ImageDataset(ImageDataSettings(sources=[{"path": str(folder)}]), has_captions=False)

    dataset = load()
    assert len(dataset) == 3
    assert dataset[2].captions == ()
    assert dataset.identity() == load().identity()
    Image.new("RGB", (9, 9)).save(folder / "1.png")
    assert dataset.identity() != load().identity()


def test_scenes_have_what_is_there_as_caption():
    fields = {"length": 2, "image_size": 48, "num_objects": [1, 2], "start": 5}
    dataset = ImageDataset(ImageDataSettings(sources=[{"scenes": fields}]), has_captions=True)
    scene = Scenes("train", 0, 48, (1, 2), 1)[6]
    assert np.array_equal(np.asarray(dataset[1].image), scene.image)
    assert dataset[1].captions == (caption_scene(scene.truth),)
    names = {name for part in (scene.truth.segments, scene.truth.detections) if part for name in part.class_names}
    assert all(name in dataset[1].captions[0] for name in names)
    with pytest.raises(IndexError):
        dataset[2]


def test_views_are_a_function_of_their_generator_and_settings():
    pixels = np.random.default_rng(0).integers(0, 255, (30, 50, 3), dtype=np.uint8)
    image, chosen = Image.fromarray(pixels), AugmentationSettings()
    one, same, other = (np.asarray(draw_view(image, 32, chosen, Random(seed))) for seed in (1, 1, 2))
    assert one.shape == (32, 32, 3)
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)
    plain = AugmentationSettings(min_crop=1, flip=0, colour=0, grey=0, blur=0, num_operations=0)
    whole = np.asarray(image.resize((32, 32), Image.Resampling.BICUBIC))
    assert np.array_equal(np.asarray(draw_view(image, 32, plain, Random(0))), whole)
    for seed in range(40):  # every operation runs
        bent = AugmentationSettings(num_operations=3, magnitude=10)
        assert draw_view(image, 16, bent, Random(seed)).mode == "RGB"

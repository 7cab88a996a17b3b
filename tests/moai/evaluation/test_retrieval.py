"""Recall of images and texts, by similarity and by the matching head."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from tcl_builders import build_tcl_model, build_tcl_processor
from typer.testing import CliRunner

from moai.cli import app
from moai.data.image_samples import ImageDataset
from moai.data.image_settings import ImageDataSettings
from moai.evaluation.retrieval import RetrievalScores, measure_retrieval, recall_at, score_pairs


def test_recall_counts_the_best_own_text_and_image():
    # image 0 has texts 0 and 1, image 1 has text 2
    alike = torch.tensor([[0.1, 0.9, 0.5], [0.8, 0.95, 0.2]])
    scores = RetrievalScores(alike, alike, torch.tensor([0, 0, 1]))
    found = recall_at(scores, (1, 2, 3))
    assert found["image_to_text"] == {"recall@1": 0.5, "recall@2": 0.5, "recall@3": 1.0}
    assert found["text_to_image"] == {"recall@1": 0.0, "recall@2": 1.0, "recall@3": 1.0}


@pytest.fixture
def dataset(tmp_path):
    rng, rows = np.random.default_rng(0), []
    for number, captions in enumerate((["a red dog", "a dog"], "a blue car on the grass", "a tree")):
        Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(tmp_path / f"{number}.png")
        rows.append(json.dumps({"image": f"{number}.png", "caption": captions}))
    (tmp_path / "rows.jsonl").write_text("\n".join(rows), encoding="utf-8")
    settings = ImageDataSettings(sources=[{"path": str(tmp_path / "rows.jsonl")}])
    return ImageDataset(settings, has_captions=True)


def test_scores_are_those_of_the_model_whatever_the_batch(tmp_path, dataset):
    model, processor = build_tcl_model(), build_tcl_processor(tmp_path / "words")
    scores = score_pairs(model, processor, dataset, batch_size=2)
    assert scores.owners.tolist() == [0, 0, 1, 2]
    samples = [dataset[index] for index in range(3)]
    batch = processor([sample.image for sample in samples], [text for sample in samples for text in sample.captions])
    expected = model(**batch).logits_per_image * model.temperature
    torch.testing.assert_close(scores.image_to_text, expected.detach(), atol=1e-5, rtol=1e-5)
    matched = score_pairs(model, processor, dataset, batch_size=3, num_matched=2)
    assert (matched.image_to_text.isfinite().sum(1) == 2).all()
    assert (matched.text_to_image.isfinite().sum(0) == 2).all()
    image, text = matched.image_to_text.isfinite().nonzero()[0].tolist()
    states = model.text_model.encode(batch["input_ids"], batch["attention_mask"])[text : text + 1]
    pixels = model.encode_images(batch["pixel_values"])[image : image + 1]
    logit = model.match(states, batch["attention_mask"][text : text + 1], pixels)[0, 1]
    torch.testing.assert_close(matched.image_to_text[image, text], logit.detach(), atol=1e-5, rtol=1e-5)
    report = measure_retrieval(model, processor, dataset)
    assert report["num_texts"] == 4
    assert report["text_to_image"]["recall@5"] == 1.0


def test_evaluate_searches_with_a_tcl(tmp_path, dataset):
    build_tcl_model().save_pretrained(tmp_path / "tcl")
    build_tcl_processor(tmp_path / "words").save_pretrained(tmp_path / "tcl")
    words = ["evaluate", str(tmp_path / "tcl"), str(tmp_path / "rows.jsonl"), "num_matched=2", "--out"]
    result = CliRunner().invoke(app, [*words, str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    assert "3 images, 4 texts" in result.output
    assert "recall@10" in result.output
    written = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))
    assert written["text_to_image"]["recall@5"] <= 1.0
    assert written["test"]["num_matched"] == 2
    result = CliRunner().invoke(app, [*words, str(tmp_path / "out"), "--mask-each"])
    assert result.exit_code == 1
    assert "expected no --mask-each" in result.output

"""The small verbalizers' training: real models of the real classes, a few steps, killed and resumed."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from training_builders import learned
from transformers import CLIPTokenizer, Owlv2ForObjectDetection

from moai.scenes.scenes import Scenes
from moai.scenes.vocabulary import PREDICATES
from moai.training.metrics_logging import read_log
from recipes.verbalizers.backbone import backbone_config, fold_frozen_norms, freeze_early_stages
from recipes.verbalizers.config import load_verbalizers_config
from recipes.verbalizers.owlv2 import fit_positions, patch_targets, train_tokenizer
from recipes.verbalizers.predcls import pair_scene
from recipes.verbalizers.scenes import (
    SCENE_NAMES,
    SceneBatches,
    SceneSettings,
    paint_scene,
    sample_scene,
    training_scene,
)
from recipes.verbalizers.training import export_verbalizers, train_verbalizers
from verbalizers.core.registry import build_verbalizer


def stage(num_steps: int = 12, **optimization) -> dict:
    chosen = {"num_steps": num_steps, "batch_size": 2, "micro_batch_size": 2, "learning_rate": 3e-3, **optimization}
    return {"optimization": chosen, "saving": {"every_steps": 1}, "watching": {"every_steps": 1}}


TINY = {
    "shards": {"num_shards": 1, "num_scenes": 4, "image_size": 64, "painted_sizes": [64, 96]},
    "mask2former": {
        **stage(),
        "model": {
            "feature_size": 32,
            "mask_feature_size": 32,
            "hidden_dim": 32,
            "encoder_feedforward_dim": 32,
            "dim_feedforward": 32,
            "encoder_layers": 1,
            "decoder_layers": 2,
            "num_queries": 12,
            "num_attention_heads": 4,
            "train_num_points": 32,
        },
    },
    "psgtr": {
        "triplets": stage(optimizer="muon"),
        "masks": stage(),
        "model": {
            "num_queries": 6,
            "d_model": 64,
            "encoder_layers": 1,
            "decoder_layers": 2,
            "encoder_ffn_dim": 64,
            "decoder_ffn_dim": 64,
            "encoder_attention_heads": 8,
            "decoder_attention_heads": 8,
        },
    },
    "owlv2": {
        **stage(optimizer="muon", precision="bf16"),
        "num_merges": 60,
        "vision": {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "patch_size": 16,
        },
        "text": {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2},
    },
    "predcls": {**stage(learning_rate=1e-2), "model": {"embedding_size": 4, "hidden_size": 16}},
}


def skip_imagenet(patch):
    """The package with ImageNet weights is not needed for tests."""
    patch.setattr("recipes.verbalizers.mask2former.load_imagenet_weights", lambda network: None)


@pytest.fixture
def without_imagenet(monkeypatch):
    skip_imagenet(monkeypatch)


def write_config(folder, **changes):
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump({**TINY, **changes}))
    return load_verbalizers_config(path)


def test_training_scene_agrees_with_the_truth_when_painted_at_another_size():
    sample = Scenes("validation", seed=3, image_size=192, num_objects=(3, 6), num_questions=1)[4]
    scene = training_scene(sample, 96)
    assert scene.image.shape == (96, 96, 3) and scene.entity_map.shape == (96, 96)
    assert [SCENE_NAMES[name] for name in scene.names] == list(sample.truth.relations.object_names)
    for entity, box in enumerate(scene.boxes):
        rows, columns = np.nonzero(scene.entity_map == entity + 1)
        seen = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]) / 96
        assert np.abs(seen - box).max() <= 2 / 96
    twice = scene.flipped().flipped()
    assert np.array_equal(twice.image, scene.image) and np.allclose(twice.boxes, scene.boxes)


def test_scene_batches_depend_on_the_step_alone_when_read_in_any_order():
    batches = SceneBatches(SceneSettings(num_shards=2, num_scenes=4, image_size=48, painted_sizes=(48,)), 2)
    there = [batches(step) for step in range(6)]
    back = [batches(step) for step in reversed(range(6))][::-1]
    for a, b in zip(there, back, strict=True):
        assert all(np.array_equal(x.image, y.image) for x, y in zip(a, b, strict=True))
    assert not np.array_equal(there[0][0].image, there[4][0].image)  # a second visit has another order or mirrors


def test_folded_norms_change_no_output_and_no_gradient():
    from transformers import TimmBackbone

    torch.manual_seed(0)
    plain, folded = TimmBackbone(backbone_config([1, 3])), TimmBackbone(backbone_config([1, 3]))
    for norm in (m for m in plain.modules() if hasattr(m, "running_var")):
        norm.running_var.uniform_(0.5, 2)
        norm.running_mean.normal_()
    folded.load_state_dict(plain.state_dict())
    fold_frozen_norms(folded._backbone)
    freeze_early_stages(folded._backbone, 1)
    images = torch.randn(2, 3, 64, 64)
    first, second = plain(images).feature_maps, folded(images).feature_maps
    for a, b in zip(first, second, strict=True):
        assert torch.allclose(a, b, rtol=1e-3, atol=1e-4 * float(a.abs().max()))
    sum(a.square().mean() for a in first).backward()
    sum(b.square().mean() for b in second).backward()
    weight = "_backbone.blocks.3.0.conv_pw.weight"
    a, b = plain.get_parameter(weight).grad, folded.get_parameter(weight).grad
    assert torch.allclose(a, b, rtol=1e-2, atol=1e-3 * float(a.abs().max()))
    assert folded.get_parameter("_backbone.conv_stem.weight").grad is None


def test_scene_is_that_with_most_relations_between_things_when_several_are_drawn():
    plain = SceneSettings(1, 4, 64, painted_sizes=(64,), curriculum=((0, 4, 8),))
    chosen = replace(plain, num_candidates=3)

    def relations(settings, index):
        sample = sample_scene(settings, index)
        first_thing = len(sample.layout.stuff)
        return sum(min(subject, target) >= first_thing for subject, _, target in sample.layout.relations)

    for index in range(4):
        assert relations(chosen, index) == max(relations(plain, 3 * index + k) for k in range(3))


def test_pairs_say_what_the_truth_says_when_nothing_is_missing():
    for sample in Scenes("validation", seed=5, image_size=96, num_objects=(3, 7), num_questions=0, length=10):
        scene, truth = pair_scene(sample), sample.truth.relations
        told = {
            (SCENE_NAMES[scene.labels[s]], PREDICATES[scene.predicates[s, o] - 1], SCENE_NAMES[scene.labels[o]])
            for s, o in zip(*scene.predicates.nonzero(), strict=True)
        }
        rows = zip(truth.subject_indices, truth.predicates, truth.object_indices, strict=True)
        assert told == {(truth.object_names[s], predicate, truth.object_names[o]) for s, predicate, o in rows}
        assert (scene.predicates > 0).sum() == len(truth.predicates)


def test_patch_targets_give_every_object_a_patch():
    # Few objects, for a patch holds one of them only.
    settings = SceneSettings(4, 4, 96, painted_sizes=(96,), curriculum=((0, 1, 4),), image_noise=0.0)
    scenes = [paint_scene(settings, index) for index in range(4)]
    targets = patch_targets(scenes, 6)
    for index, scene in enumerate(scenes):
        objects = {int(name) for name in scene.names if name < 135}
        assert objects == set(targets.names[index][targets.names[index] >= 0].tolist())
        assert torch.equal(targets.weights[index] > 0, targets.names[index] >= 0)


def test_tokenizer_ends_every_text_with_its_highest_id():
    tokenizer = train_tokenizer(SCENE_NAMES, 50)
    for text in ("tennis racket", "Zebra", "naïve übung 7", "猫"):
        ids = tokenizer(text).input_ids
        assert ids.index(max(ids)) == len(ids) - 1 and tokenizer.unk_token_id not in ids[:-1]


TRAINED = ("mask2former", "psgtr-triplets", "psgtr-masks", "owlv2", "predcls")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished tiny run: (recipe, output folder)."""
    folder = tmp_path_factory.mktemp("verbalizers")
    with pytest.MonkeyPatch.context() as patch:
        skip_imagenet(patch)
        config = write_config(folder)
        train_verbalizers(config, folder / "run")
    return config, folder / "run"


@pytest.mark.parametrize("stage", TRAINED)
def test_loss_falls_and_a_killed_stage_goes_on_bit_by_bit(trained, tmp_path, without_imagenet, stage):
    config, run = trained
    shutil.copytree(run, tmp_path / "run")
    last, before = sorted((tmp_path / "run" / stage / "checkpoints").glob("step-*"), reverse=True)
    lines = read_log(run / stage / "log.jsonl")
    assert len(lines) == 12
    assert sum(line["loss"] for line in lines[-4:]) < sum(line["loss"] for line in lines[:4])
    shutil.rmtree(last)  # as after a kill in the last step
    train_verbalizers(config, tmp_path / "run", (stage,))
    for name in ("model.safetensors", "optimizer.safetensors"):
        whole = run / stage / "checkpoints" / last.name / name
        assert (last / name).read_bytes() == whole.read_bytes(), name
    assert [learned(line) for line in read_log(tmp_path / "run" / stage / "log.jsonl")] == list(map(learned, lines))


def test_verbalizers_serve_when_exported(trained, tmp_path, without_imagenet):
    config, out = trained
    folders = {folder.name: folder for folder in export_verbalizers(config, out, tmp_path / "exported")}
    assert set(folders) == {"mask2former-nano", "psgtr-nano", "owlv2-nano", "predcls-nano"}
    sample = Scenes("test", image_size=96, num_questions=1)[0]
    image = sample.image
    pairs = build_verbalizer("scene_graph", "predcls", checkpoint=str(folders["predcls-nano"]), threshold=0.0)
    (related,) = pairs.predict_with([image], [replace(sample.truth, relations=None)])
    there = {*sample.truth.segments.class_names, *sample.truth.detections.class_names}
    assert related.object_names and set(related.object_names) <= there
    segmenter = build_verbalizer("segmentation", "transformers", checkpoint=str(folders["mask2former-nano"]))
    assert segmenter.predict([image])[0].image_size_hw == (96, 96)
    loose = dict.fromkeys(("subject_threshold", "object_threshold", "relation_threshold", "mask_threshold"), 0.0)
    graphs = build_verbalizer("scene_graph", "psgtr", checkpoint=str(folders["psgtr-nano"]), **loose)
    graph = graphs.predict([image])[0]
    assert len(graph) > 0 and set(graph.object_names) <= set(SCENE_NAMES)
    detector = build_verbalizer(
        "detection", "owlv2", checkpoint=str(folders["owlv2-nano"]), vocabulary=("dog", "zzz"), threshold=0.0
    )
    assert set(detector.predict([image])[0].class_names) in ({"dog"}, {"zzz"}, {"dog", "zzz"})
    # What training read is what is shipped: a tokenizer trained again orders equally frequent pieces anew.
    shipped, trained = (
        CLIPTokenizer.from_pretrained(at) for at in (folders["owlv2-nano"], out / "owlv2" / "tokenizer")
    )
    assert shipped(SCENE_NAMES) == trained(SCENE_NAMES)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [({"owlv2": {**TINY["owlv2"], "hue": 1}}, r"owlv2\.hue"), ({"psgtr": {"model": {}}}, r"psgtr\.")],
)
def test_verbalizers_config_names_the_field_when_wrong_or_missing(tmp_path, wrong, named):
    with pytest.raises(ValueError, match=named):
        write_config(tmp_path, **wrong)


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    """The finished run's folders."""
    with pytest.MonkeyPatch.context() as patch:
        skip_imagenet(patch)
        folder = tmp_path_factory.mktemp("exported")
        export_verbalizers(*trained, folder)
    return folder


def test_relations_go_on_from_finished_verbalizers_and_some_of_the_shards(trained, exported, tmp_path):
    config, _ = trained
    changes = {"shards": {**TINY["shards"], "num_shards": 2}, "psgtr": {**TINY["psgtr"], "num_shards": 1}}
    config = replace(write_config(tmp_path, **changes), start=str(exported))
    train_verbalizers(config, tmp_path / "run", ("mask2former", "psgtr-features", "psgtr-triplets", "psgtr-masks"))
    assert [file.name for file in (tmp_path / "run" / "psgtr-features").glob("*.safetensors")] == [
        "features-00000.safetensors"
    ]
    for stage in ("psgtr-triplets", "psgtr-masks"):
        assert len(read_log(tmp_path / "run" / stage / "log.jsonl")) == 12
    with pytest.raises(ValueError, match="`psgtr.num_shards` must be 1 at most"):
        write_config(tmp_path, psgtr={**TINY["psgtr"], "num_shards": 2})
    with pytest.raises(ValueError, match=r"psgtr\.num_shards"):
        write_config(tmp_path, psgtr={**TINY["psgtr"], "num_shards": 0})


@pytest.mark.parametrize("stage", ["mask2former", "owlv2"])
def test_stage_goes_on_from_finished_verbalizers_when_they_are_named(trained, exported, tmp_path, stage):
    config, run = trained  # ImageNet's weights are not asked for: without them this needs no package
    train_verbalizers(replace(config, start=str(exported)), tmp_path / "run", (stage,))
    before, after = (read_log(folder / stage / "log.jsonl") for folder in (run, tmp_path / "run"))
    assert abs(after[0]["loss"] - before[-1]["loss"]) < abs(after[0]["loss"] - before[0]["loss"])
    (written,) = export_verbalizers(replace(config, start=str(exported)), tmp_path / "run", tmp_path / "again")
    if stage == "owlv2":
        first, second = (CLIPTokenizer.from_pretrained(at / written.name) for at in (exported, tmp_path / "again"))
        assert first(SCENE_NAMES) == second(SCENE_NAMES)
    with pytest.raises(ValueError, match="as it was made, but `start"):
        train_verbalizers(config, tmp_path / "run", (stage,))
    with pytest.raises(ValueError, match="as it was made, but `start"):
        export_verbalizers(config, tmp_path / "run", tmp_path / "again")


def test_detector_goes_on_with_larger_images_when_the_shards_have_them(trained, exported, tmp_path):
    config = write_config(tmp_path, shards={**TINY["shards"], "image_size": 96})
    config = replace(config, start=str(exported))
    train_verbalizers(config, tmp_path / "run", ("owlv2",))
    first, larger = (read_log(folder / "owlv2" / "log.jsonl") for folder in (trained[1], tmp_path / "run"))
    assert larger[0]["loss"] < first[0]["loss"]  # not begun anew
    (written,) = export_verbalizers(config, tmp_path / "run", tmp_path / "larger")
    image = Scenes("test", image_size=96, num_questions=1)[0].image
    detector = build_verbalizer("detection", "owlv2", checkpoint=str(written), vocabulary=("dog",), threshold=0.0)
    assert detector.predict([image])[0].class_names
    assert detector.load().model.config.vision_config.image_size == 96


def test_positions_are_those_of_transformers_when_images_are_larger(exported):
    model = Owlv2ForObjectDetection.from_pretrained(exported / "owlv2-nano", dtype=torch.float32)
    embeddings = model.owlv2.vision_model.embeddings
    for size in (64, 96, 128):
        side = size // 16
        patches = torch.zeros(1, 1 + side**2, 32)
        wanted = embeddings.interpolate_pos_encoding(patches, size, size).reshape(1 + side**2, 32)
        name = "owlv2.vision_model.embeddings.position_embedding.weight"
        found = fit_positions(model.state_dict(), side)
        assert torch.allclose(found[name], wanted, atol=1e-6) and len(found) == len(model.state_dict())


@pytest.mark.parametrize("stage", ["mask2former", "owlv2", "psgtr-triplets"])
def test_start_is_refused_when_it_is_missing(trained, tmp_path, stage):
    with pytest.raises(ValueError, match="expected a finished model to start from in .*nowhere"):
        train_verbalizers(replace(trained[0], start="nowhere"), tmp_path / "run", (stage,))


def test_start_is_refused_when_it_is_broken_or_of_another_size(trained, exported, tmp_path):
    config, _ = trained
    shutil.copytree(exported / "mask2former-nano", tmp_path / "cut" / "mask2former-nano")
    weights = tmp_path / "cut" / "mask2former-nano" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ValueError, match="got none that can be read"):
        train_verbalizers(replace(config, start=str(tmp_path / "cut")), tmp_path / "run", ("mask2former",))
    smaller = {**TINY["mask2former"], "model": {**TINY["mask2former"]["model"], "dim_feedforward": 16}}
    with pytest.raises(ValueError, match="expected the weights of this model"):
        train_verbalizers(
            replace(write_config(tmp_path, mask2former=smaller), start=str(exported)), tmp_path, ("mask2former",)
        )

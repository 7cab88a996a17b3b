"""The trainer of moai-nano at a thousandth of its size: same code, few scenes."""

import json
import re
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from forked_processes import ForkedProcess, run_ranks
from safetensors.torch import load_file

from moai import MoAIProcessor
from moai.checkpoints.io.verbalizer_settings import VerbalizerSettings
from moai.models.moai.text_reader import TextReaderAnswering
from moai.models.moai.tokenization_internlm2 import InternLM2Tokenizer
from moai.scenes.scenes import QUESTION_KINDS, Scenes
from moai.scenes.vocabulary import STUFF_NAMES
from moai.training.checkpoints import find_newest_checkpoint
from recipes.nano import multimodal_task
from recipes.nano.config import SCENES_DOMAIN, load_nano_config
from recipes.nano.models import build_moai, build_processor
from recipes.nano.multimodal_task import normalize_images
from recipes.nano.prompt import prompt_ids
from recipes.nano.scenes import SHARD_FORM, SceneSettings, ShardBatches, TokenQuestion, TokenScene, build_shard
from recipes.nano.text_task import pack_texts
from recipes.nano.training import build_task, export_nano, main
from recipes.stages import has_checkpoint, load_trained
from verbalizers.core.scene import verbalize_scene

ROOT = Path(__file__).resolve().parents[2]
TRAINED = ("text", "phrases", "questions", "patches", "multimodal", "practice")


def tiny_recipe(text_steps: int = 6, multimodal_steps: int = 6) -> dict:
    shards = {"num_scenes": 16, "num_questions": 4, "image_size": 32, "curriculum": [[0, 1], [1, 3]]}

    def stage(num_steps: int, batch_size: int = 4, **settings) -> dict:
        optimization = {"num_steps": num_steps, "batch_size": batch_size, "micro_batch_size": batch_size // 2}
        optimization |= {"learning_rate": 3e-3, "warmup_share": 0.3}
        return {
            "optimization": optimization,
            "saving": {"every_steps": 1},
            "watching": {"every_steps": 1},
            "shards": {**shards, **settings.pop("shards", {})},
            **settings,
        }

    return {
        "tokenizer": {"vocab_size": 640, "num_scenes": 60},
        "decoder": {
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
        },
        "text": stage(text_steps),
        "phrases": stage(4, shards={"seed": 2}),
        "questions": stage(
            4,
            questions_per_scene=2,
            without_auxiliary_share=0.0,
            recall_weight=0.1,
            shards={"seed": 3},
        ),
        "patches": stage(
            4, shards={"with_images": True, "patch_size": 16, "num_questions": 0, "listing_share": 0.0, "seed": 5}
        ),
        "practice": stage(
            4,
            questions_per_scene=2,
            without_auxiliary_share=0.0,
            shards={"seed": 4, "sign_probability": 1.0, "made_up_share": 1.0, "renamed_share": 0.5, "num_passes": 2},
        ),
        "multimodal": stage(
            multimodal_steps,
            questions_per_scene=2,
            without_auxiliary_share=0.2,
            recall_weight=0.1,
            shards={"with_images": True, "seed": 1},
            vision={
                "hidden_size": 32,
                "intermediate_size": 32,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "image_size": 32,
                "patch_size": 16,
            },
            compressor={"num_latents": 4, "num_layers": 1, "num_heads": 2, "head_dim": 16},
            mixer={"layers": [1], "num_heads": 2, "rank": 8},
        ),
    }


def write_recipe(path: Path, recipe: dict) -> Path:
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return path


def losses(folder: Path) -> dict[int, float]:
    lines = (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return {line["step"]: line["loss"] for line in map(json.loads, lines)}


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, Path]:
    """A finished tiny run: (recipe, output folder)."""
    folder = tmp_path_factory.mktemp("nano")
    recipe = write_recipe(folder / "recipe.yaml", tiny_recipe())
    main(["--config", str(recipe), "--out", str(folder / "run")])
    return recipe, folder / "run"


def test_recipe_of_the_repository_is_valid_when_read():
    config = load_nano_config(ROOT / "configs" / "nano.yaml")
    assert config.multimodal.shards.with_images
    assert config.multimodal.vision["image_size"] == config.multimodal.shards.image_size
    for stage in set(TRAINED) - {"patches"}:
        kinds = set(getattr(config, stage).shards.kinds)
        assert kinds <= set(QUESTION_KINDS) and {"absence", "forged", "counting", "object_relation"} <= kinds
    assert "colour" in config.multimodal.shards.kinds and config.multimodal.shards.image_noise > 0


def test_shard_asks_about_colours_only_when_it_has_images(trained):
    tokenizer = InternLM2Tokenizer.from_pretrained(trained[1] / "tokenizer")
    colour = QUESTION_KINDS.index("colour")
    for has_images in (False, True):
        settings = SceneSettings(num_scenes=20, image_size=32, with_images=has_images, num_questions=13)
        asked = {question.kind for scene in build_shard(settings, 0, tokenizer) for question in scene.questions}
        assert (colour in asked) == has_images


def test_shard_asks_more_about_relations_when_other_questions_are_thinned(trained):
    tokenizer = InternLM2Tokenizer.from_pretrained(trained[1] / "tokenizer")
    plain = SceneSettings(num_scenes=40, num_questions=14, image_size=64, curriculum=((0, 8),), listing_share=0.0)
    thinned = replace(plain, kind_shares={"existence": 0.3, "description": 0.0}, unrelated_share=0.2)
    relations = {QUESTION_KINDS.index(kind) for kind in ("ground_relation", "object_relation")}
    share = {}
    for settings in (plain, thinned):
        shard, following = (build_shard(settings, number, tokenizer) for number in (0, 1))
        assert len(shard) == 40 and all(scene.questions for scene in shard)
        assert not {str(scene.auxiliary_ids) for scene in shard} & {str(scene.auxiliary_ids) for scene in following}
        kinds = [question.kind for scene in shard for question in scene.questions]
        share[settings is thinned] = sum(kind in relations for kind in kinds) / len(kinds)
    assert QUESTION_KINDS.index("description") not in kinds
    assert share[True] > 2 * share[False]


def test_detector_tells_the_things_and_the_map_stays_when_it_is_to(trained):
    tokenizer = InternLM2Tokenizer.from_pretrained(trained[1] / "tokenizer")
    settings = SceneSettings(num_scenes=15, image_size=64, truth_share=1.0, with_images=True, curriculum=((0, 6),))
    plain, detected = (build_shard(replace(settings, detected_share=share), 0, tokenizer) for share in (0.0, 1.0))
    differing = told_apart = 0
    for before, after in zip(plain, detected, strict=True):
        texts = [tokenizer.decode(scene.auxiliary_ids) for scene in (before, after)]
        boxes = [sorted(re.findall(r"\[[^]]*\] [a-z ]+?(?=,|\.)", text)) for text in texts]
        assert boxes[0] == boxes[1] and np.array_equal(before.map, after.map)
        if len(told := texts[1].split("their objects: ")[1:]) == 2:
            assert set(re.findall(r"\] ([a-z ]+?)(?=,|\.)", told[0])) <= set(STUFF_NAMES)
            told_apart += 1
        differing += texts[0] != texts[1]
    assert differing > 5 and told_apart > 5


@pytest.mark.parametrize("name", ["nano_continue.yaml", "nano_images.yaml", "nano_answers.yaml"])
def test_recipe_that_goes_on_asks_about_other_scenes_when_read(name):
    whole, alone = (load_nano_config(ROOT / "configs" / file) for file in ("nano.yaml", name))
    assert alone.text is None and alone.multimodal is None
    assert alone.practice.mixer == ({"mixes_answers": True} if name == "nano_answers.yaml" else {})
    assert alone.practice.shards.seed not in {stage.shards.seed for stage in (whole.practice, whole.multimodal)}


def test_tower_of_the_repository_sees_the_patches_that_it_is_asked_about():
    config = load_nano_config(ROOT / "configs" / "nano_patches.yaml")
    tower, shards = config.patches.vision, config.patches.shards
    assert (tower["image_size"], tower["patch_size"]) == (shards.image_size, shards.patch_size)
    assert config.practice.mixer == {"qk_norm": True, "mixes_answers": True}
    with pytest.raises(ValueError, match="`patch_size` in the shards of `patches`"):
        replace(config.patches, shards=replace(shards, patch_size=0))


@torch.no_grad()
def test_questions_of_like_length_are_read_as_all_at_once(trained):
    recipe, out = trained
    task = build_task("practice", load_nano_config(recipe), out)
    batch, model = task.batch(0, 0).inputs["questions"], task.model.eval().model
    states = model.get_auxiliary_states(batch.auxiliary_input_ids, batch.auxiliary_attention_mask, None)
    groups = multimodal_task.group_by_length(batch)
    logits, _, owners = task.read(torch.arange(len(batch.kinds)), None, states, batch)
    parts = [task.read(group, None, states, batch) for group in groups]
    order = torch.cat([part[2] for part in parts]).argsort(stable=True)
    assert torch.equal(torch.cat([part[2] for part in parts])[order], owners)
    assert torch.allclose(torch.cat([part[0] for part in parts])[order], logits, atol=1e-5)
    assert int(batch.lengths[groups[0]].max()) < batch.input_ids.shape[1]


def test_recipe_names_the_known_fields_when_one_is_misspelt(tmp_path):
    recipe = tiny_recipe()
    recipe["text"]["batchsize"] = 3
    with pytest.raises(ValueError, match="unknown setting `text.batchsize`"):
        load_nano_config(write_recipe(tmp_path / "r.yaml", recipe))


@pytest.mark.parametrize("stage", TRAINED)
def test_stage_goes_on_bit_by_bit_when_its_last_step_is_lost(trained, tmp_path, stage):
    recipe, unbroken = trained
    for name in ("tokenizer", *TRAINED):
        shutil.copytree(unbroken / name, tmp_path / name)
    last = max((tmp_path / stage / "checkpoints").glob("step-*"))
    shutil.rmtree(last)  # as after a kill in that step
    main(["--config", str(recipe), "--out", str(tmp_path), "--stage", stage])
    for name in ("model.safetensors", "optimizer.safetensors"):
        assert (last / name).read_bytes() == (unbroken / stage / "checkpoints" / last.name / name).read_bytes(), name


@pytest.mark.slow
def test_training_resumes_with_equal_losses_when_killed(trained, tmp_path):
    recipe, unbroken = trained
    out = tmp_path / "run"
    for name in ("tokenizer", "text", "phrases", "questions", "patches"):
        shutil.copytree(unbroken / name, out / name)
    words = ["--config", str(recipe), "--out", str(out)]
    running = ForkedProcess(lambda: main(words))
    log = out / "multimodal" / "log.jsonl"
    while not log.exists() or len(losses(out / "multimodal")) < 3:  # kill -9 in the middle of the multimodal stage
        assert running.poll() is None, running.communicate()[0]
        time.sleep(0.01)
    running.kill()
    running.communicate()
    assert running.returncode == -signal.SIGKILL
    assert has_checkpoint(out / "multimodal")
    main(words)
    for stage in TRAINED:
        assert losses(out / stage) == losses(unbroken / stage)


def test_practice_goes_on_from_the_model_with_images_and_is_what_is_exported(trained):
    _, out = trained
    weights = {
        stage: load_file(find_newest_checkpoint(out / stage / "checkpoints")[0] / "model.safetensors")
        for stage in ("multimodal", "practice")
    }
    name = "model.vision_tower.embeddings.patch_embedding.weight"  # nothing is shown while it practises
    exported = load_file(out / "moai-nano" / "model.safetensors")
    assert torch.equal(weights["multimodal"][name], weights["practice"][name])
    assert torch.equal(exported[name], weights["practice"][name].half())
    name = "model.compressor.latents.weight"
    assert not torch.equal(weights["multimodal"][name], weights["practice"][name])
    assert torch.equal(exported[name], weights["practice"][name].half())


def test_finished_model_practises_on_when_named_as_start(trained, tmp_path, capsys):
    _, run = trained
    start, out = tmp_path / "start", tmp_path / "run"
    shutil.copytree(run / "moai-nano", start)
    (tmp_path / "tower").mkdir()
    entry = {"kind": "segmentation", "backend": "transformers", "settings": {"checkpoint": "../tower"}}
    told = json.loads((start / "config.json").read_text(encoding="utf-8"))
    assert told.pop("domain") == SCENES_DOMAIN
    (start / "config.json").write_text(json.dumps(told), encoding="utf-8")  # as before domains were told
    (start / "verbalizers.json").write_text(json.dumps({"verbalizers": [entry], "words": {"quote_text": False}}))
    practice = tiny_recipe()["practice"] | {"mixer": {"mixes_answers": True}}
    phrases = tiny_recipe()["phrases"]
    again = {"phrases": phrases, "practice": practice, "heads": str(run / "phrases")}
    recipe = write_recipe(tmp_path / "practice.yaml", again)
    words = ["--config", str(recipe), "--out", str(out), "--start", str(start)]
    main(words)
    assert json.loads((out / "moai-nano" / "config.json").read_text(encoding="utf-8"))["domain"] == SCENES_DOMAIN
    before, after = (load_file(folder / "model.safetensors") for folder in (start, out / "moai-nano"))
    assert before.keys() == after.keys()
    assert not torch.equal(before["model.compressor.latents.weight"], after["model.compressor.latents.weight"])
    name = "model.vision_tower.embeddings.patch_embedding.weight"
    assert torch.equal(before[name], after[name])
    assert json.loads((out / "moai-nano" / "config.json").read_text())["mixer"]["mixes_answers"]
    told = VerbalizerSettings.load(out / "moai-nano")
    (copied,) = told.verbalizers
    assert {name: getattr(told.words, name) for name in SHARD_FORM} == SHARD_FORM
    processor = MoAIProcessor.from_pretrained(out / "moai-nano")
    assert processor.build_prompts("IS IT?") == processor.build_prompts("is it?")
    assert copied["settings"] == {"checkpoint": str(tmp_path / "tower")}
    with pytest.raises(SystemExit, match="2"):
        main([*words, "--stage", "text"])
    assert "Leave the others out" in capsys.readouterr().err


def test_finished_model_gets_a_new_tower_when_patches_name_one(trained, tmp_path, capsys):
    _, run = trained
    start, tower = run / "moai-nano", tiny_recipe()["multimodal"]["vision"] | {"hidden_size": 48}
    recipe = tiny_recipe()["patches"] | {"vision": tower}
    words = ["--start", str(start), "--config"]
    main([*words, str(write_recipe(tmp_path / "patches.yaml", {"patches": recipe})), "--out", str(tmp_path / "run")])
    before, after = (load_file(folder / "model.safetensors") for folder in (start, tmp_path / "run" / "moai-nano"))
    is_seen = re.compile(r"vision_tower|multi_modal_projector|language_experts.1")
    assert before.keys() == after.keys()
    changed = {
        name for name in before if before[name].shape != after[name].shape or (before[name] != after[name]).any()
    }
    assert changed and all(is_seen.search(name) for name in changed)
    assert len(after["model.vision_tower.embeddings.class_embedding"]) == 48
    recipe["vision"] = tower | {"patch_size": 8}
    other = write_recipe(tmp_path / "other.yaml", {"patches": recipe})
    with pytest.raises(SystemExit, match="2"):
        main([*words, str(other), "--out", str(tmp_path / "other")])
    assert "expected a tower of 4 patches" in capsys.readouterr().err
    recipe["vision"] = tower
    same = write_recipe(tmp_path / "same.yaml", {"patches": recipe})
    with pytest.raises(SystemExit, match="2"):  # a tower that has learned nothing is not written
        main([*words, str(same), "--out", str(tmp_path / "untrained"), "--stage", "export"])
    assert "Run stage 'patches' first" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main(["--config", str(same), "--out", str(tmp_path / "fresh")])
    assert "`patches.vision` without a start" in capsys.readouterr().err


def test_finished_model_reads_in_more_stretches_when_given_more_latents(trained, tmp_path, capsys):
    _, run = trained
    before = load_file(run / "moai-nano" / "model.safetensors")["model.compressor.latents.weight"]
    recipe = write_recipe(tmp_path / "more.yaml", {"num_latents": 2 * len(before), "phrases": tiny_recipe()["phrases"]})
    words = ["--config", str(recipe), "--out", str(tmp_path / "run")]
    main([*words, "--start", str(run / "moai-nano"), "--stage", "export"])  # as it starts: nothing has trained
    after = load_file(tmp_path / "run" / "moai-nano" / "model.safetensors")["model.compressor.latents.weight"]
    assert len(after) == 2 * len(before) and {tuple(row) for row in after.tolist()} == {
        tuple(row) for row in before.tolist()
    }
    told = json.loads((tmp_path / "run" / "moai-nano" / "config.json").read_text(encoding="utf-8"))
    assert told["compressor"]["num_latents"] == len(after)
    with pytest.raises(SystemExit, match="2"):
        main(words)
    assert "`num_latents` without a start" in capsys.readouterr().err


def test_exported_checkpoint_answers_when_loaded_back(trained):
    recipe, out = trained
    from transformers import AutoModelForImageTextToText, AutoProcessor

    export_nano(load_nano_config(recipe), out, out / "again")
    model = AutoModelForImageTextToText.from_pretrained(out / "again", dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(out / "again")
    image = np.zeros((40, 50, 3), np.uint8)
    batch = processor(images=[image], questions=["What is there?"], auxiliary_text=["nothing"])
    generated = model.generate(**batch, max_new_tokens=3)
    assert generated.shape[1] > batch["input_ids"].shape[1]
    assert all(path.suffix != ".bin" and path.suffix != ".pt" for path in (out / "again").iterdir())


def read_words(reader: TextReaderAnswering, words: list[str], questions: list[str]) -> list[str]:
    """Answers of a text reader."""
    inputs = reader.encode([], [(question, ()) for question in questions], {"auxiliary_text": words}, 4)
    return [answer.parts[0] for answer in reader.generate(inputs, {}, False, max_new_tokens=4)]


def test_text_reader_continues_the_prompts_it_was_trained_on_when_exported(trained):
    _, out = trained
    reader = TextReaderAnswering.from_folder(out / "text-reader")
    scene = next(iter(Scenes("train", image_size=32)))
    said, asked = verbalize_scene(scene.truth), scene.questions[0]
    encode = reader.tokenizer.sp_model.encode
    end = reader.tokenizer.eos_token_id
    question = TokenQuestion(encode(f" {asked.question}"), [*encode(f" {asked.answer}"), end], 0)
    scene = TokenScene(encode(said), [question])
    packed = pack_texts([scene], prompt_ids(reader.tokenizer)).input_ids[0].tolist()
    assert packed == reader.prompt_ids(said, asked.question) + question.answer_ids
    together = read_words(reader, [said, "nothing"], [asked.question, "What is there?"])
    alone = [read_words(reader, [a], [b])[0] for a, b in ((said, asked.question), ("nothing", "What is there?"))]
    assert together == alone


def test_training_prompts_equal_the_processors_when_the_same_question_is_asked(trained):
    recipe, out = trained
    config = load_nano_config(recipe)
    tokenizer = InternLM2Tokenizer.from_pretrained(out / "tokenizer")
    processor = build_processor(out / "tokenizer", config.multimodal.vision)
    model = build_moai(config, config.multimodal, tokenizer, None)
    batch = build_task("multimodal", config, out).questions(0)
    scenes = build_shard(config.multimodal.shards, 0, tokenizer)
    image_tokens = model.config.num_image_tokens
    for row, roles, owner in zip(batch.input_ids, batch.roles, batch.scene_of_question, strict=True):
        ids = row[roles > 0].tolist()
        start = len(prompt_ids(tokenizer).opening) + image_tokens + 1
        question = tokenizer.decode(ids[start:-1]).strip()
        words = tokenizer.decode(batch.auxiliary_input_ids[owner][batch.auxiliary_attention_mask[owner] > 0][1:])
        expected = processor(
            images=[np.zeros((32, 32, 3), np.uint8)], questions=[question], auxiliary_text=[words.strip()]
        )
        assert expected["input_ids"][0].tolist() == ids
        assert expected["mm_token_type_ids"][0].tolist() == roles[roles > 0].tolist()
        kept = batch.auxiliary_attention_mask[owner] > 0
        assert expected["auxiliary_input_ids"][0].tolist() == batch.auxiliary_input_ids[owner][kept].tolist()
    expected = processor(images=[scenes[0].image], questions=["?"])["pixel_values"]
    torch.testing.assert_close(normalize_images(scenes[0].image[None]), expected, atol=1e-5, rtol=0)


def test_answers_never_enter_the_mixture_when_packed(trained):
    recipe, out = trained
    config = load_nano_config(recipe)
    batch = build_task("multimodal", config, out).questions(1)
    assert (batch.roles[batch.is_answer] == 0).all()
    assert batch.is_answer.any(dim=1).all()


def test_packed_questions_equal_single_ones_when_read_by_the_decoder(trained):
    recipe, out = trained
    from recipes.nano.models import build_decoder

    config = load_nano_config(recipe)
    tokenizer = InternLM2Tokenizer.from_pretrained(out / "tokenizer")
    decoder = build_decoder(config, tokenizer).eval()
    scenes = build_shard(config.text.shards, 0, tokenizer)
    packed = pack_texts(scenes[2:3], prompt_ids(tokenizer))
    with torch.no_grad():
        together = decoder(
            input_ids=packed.input_ids, attention_mask=packed.attention_mask(), position_ids=packed.position_ids
        ).logits[0]
        for number in packed.segments.unique().tolist():
            if number > 0:
                kept = (packed.segments[0] == 0) | (packed.segments[0] == number)
                alone = decoder(input_ids=packed.input_ids[:, kept]).logits[0]
                torch.testing.assert_close(together[kept], alone, atol=1e-4, rtol=1e-4)


def test_shard_repeats_itself_when_built_again(trained):
    tokenizer = InternLM2Tokenizer.from_pretrained(trained[1] / "tokenizer")
    settings = SceneSettings(num_scenes=5, num_questions=4, image_size=32, with_images=True)
    first, second = build_shard(settings, 3, tokenizer), build_shard(settings, 3, tokenizer)
    assert len(first) == 5
    for one, again in zip(first, second, strict=True):
        assert (one.auxiliary_ids, one.questions) == (again.auxiliary_ids, again.questions)
        assert np.array_equal(one.image, again.image) and np.array_equal(one.map, again.map)


def test_settings_are_refused_when_images_would_show_other_things_than_words():
    with pytest.raises(ValueError, match="renamed_share"):
        SceneSettings(with_images=True, renamed_share=0.1)
    with pytest.raises(ValueError, match="num_passes"):
        SceneSettings(num_passes=0)


def test_shard_is_read_again_in_another_order_when_it_has_passes():
    made = []

    def make(number: int) -> list[TokenScene]:
        made.append(number)
        return [TokenScene([10 * number + k] * (k + 1), []) for k in range(8)]

    batches = ShardBatches(make, 2, num_scenes=8, num_passes=2)
    steps = [tuple(scene.auxiliary_ids[0] for scene in batches(step)) for step in range(16)]
    passes = [steps[start : start + 4] for start in range(0, 16, 4)]
    assert made == [0, 1]
    assert [sorted(sum(each, ())) for each in passes] == [list(range(8))] * 2 + [list(range(10, 18))] * 2
    assert passes[0] != passes[1]
    resumed = ShardBatches(make, 2, num_scenes=8, num_passes=2)
    assert tuple(scene.auxiliary_ids[0] for scene in resumed(6)) == steps[6]


def test_checkpoint_is_refused_when_the_model_differs(trained):
    with pytest.raises(ValueError, match="expected the weights of this model"):
        load_trained(torch.nn.Linear(3, 2), trained[1] / "text")
    with pytest.raises(ValueError, match="expected a trained model"):
        load_trained(torch.nn.Linear(3, 2), trained[1] / "absent")


def test_losses_fall_in_every_stage_when_trained_on(trained, tmp_path):
    """A few steps at a high rate: every stage's loss must fall."""
    recipe, run = trained
    out = tmp_path / "run"
    shutil.copytree(run / "tokenizer", out / "tokenizer")
    longer = tiny_recipe()
    for stage in TRAINED:
        longer[stage]["optimization"] |= {"num_steps": 16, "learning_rate": 1e-2}
        longer[stage]["watching"]["every_steps"] = 5
        longer[stage]["saving"]["every_steps"] = 0
    longer["practice"]["optimization"]["num_steps"] = 40  # it begins where there is less to gain
    longer["practice"]["watching"]["every_steps"] = 13
    path = write_recipe(tmp_path / "longer.yaml", longer)
    main(["--config", str(path), "--out", str(out)])
    for stage in TRAINED:
        first, *_, last = losses(out / stage).values()
        assert last < first, stage


@pytest.mark.slow
def test_two_ranks_learn_what_one_does_when_the_batch_is_the_same(trained, tmp_path, monkeypatch):
    recipe, run = trained
    out = tmp_path / "run"
    for name in ("tokenizer", "phrases", "questions", "patches"):
        shutil.copytree(run / name, out / name)
    words = ["--config", str(recipe), "--out", str(out)]
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    main([*words, "--ranks", "2", "--stage", "text"])  # by the launcher
    run_ranks(
        lambda: main([*words, "--ranks", "2", "--stage", "multimodal"]), 2, ACCELERATE_USE_CPU="1"
    )  # as it starts them
    for stage in ("text", "multimodal"):  # of both kinds of task one
        assert list(losses(out / stage).values()) == pytest.approx(list(losses(run / stage).values()), rel=0.02), stage

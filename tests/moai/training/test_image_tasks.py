"""Runs of TCL and data2vec: kills, resumes, processes, refusals, results."""

import json
from itertools import product
from pathlib import Path

import pytest
import torch
from pretask_builders import build_pretask_recipe, write_captioned_images
from safetensors.torch import load_file
from smol_builders import write_small_decoder
from tcl_builders import build_tcl_model
from training_builders import break_at, files_of, learned, run_in_turn

pytest.importorskip("accelerate", reason='needs accelerate: pip install "moai-vlm[train]"')

from transformers import AutoModel, AutoProcessor

from moai.models.moai.new_model import from_backbones
from moai.models.tcl.modeling_tcl import TCLModel
from moai.training.checkpoints import CheckpointError
from moai.training.metrics_logging import read_log
from moai.training.tasks.tcl.run import train_word_pieces
from moai.training.trainer import run_training

TASKS = ("tcl", "data2vec")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_captioned_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory, data) -> dict[str, Path]:
    folders = {}
    for task in TASKS:
        folders[task] = tmp_path_factory.mktemp(task) / "whole"
        assert run_training(build_pretask_recipe(task, data, folders[task])).is_finished
    return folders


@pytest.mark.parametrize("task", TASKS)
def test_run_equals_an_unbroken_one_when_it_died_after_any_step(tmp_path, data, whole, task):
    expected = files_of(whole[task] / "checkpoints" / "step-00000004")
    assert set(expected) == {"model.safetensors", "optimizer.safetensors", "extra.safetensors"}
    lines = [learned(line) for line in read_log(whole[task] / "log.jsonl")]
    for step in (1, 2, 3):
        broken = break_at(whole[task], tmp_path / f"broken{step}", step, 4)
        assert run_training(build_pretask_recipe(task, data, broken)).is_finished
        assert files_of(broken / "checkpoints" / "step-00000004") == expected
        assert files_of(broken / "final") == files_of(whole[task] / "final")
        assert [learned(line) for line in read_log(broken / "log.jsonl")] == lines


def test_extra_state_holds_queues_momentum_copy_and_teacher(whole):
    tcl = load_file(whole["tcl"] / "checkpoints" / "step-00000003" / "extra.safetensors")
    assert tcl["queue_place"].item() == 3 * 4 % 8
    assert tcl["image_queue"].shape == tcl["text_queue"].shape == (8, 8)
    torch.testing.assert_close(tcl["image_queue"].norm(dim=0), torch.ones(8))
    model = load_file(whole["tcl"] / "checkpoints" / "step-00000003" / "model.safetensors")
    names = {name.removeprefix("momentum.") for name in tcl if name.startswith("momentum.")}
    assert set(model) - names == {"matching_head.weight", "matching_head.bias", "temperature"}
    first = load_file(whole["data2vec"] / "base" / "model.safetensors")
    teacher, student = {}, {}
    for step in range(1, 4):
        folder = whole["data2vec"] / "checkpoints" / f"step-{step:08d}"
        teacher[step], student[step] = (load_file(folder / f"{name}.safetensors") for name in ("extra", "model"))
    expected = first["post_layernorm.weight"]
    for step, decay in ((1, 0.8 + 0.1 / 3), (2, 0.8 + 0.2 / 3), (3, 0.9)):
        expected = decay * expected + (1 - decay) * student[step]["encoder.model.post_layernorm.weight"]
        torch.testing.assert_close(teacher[step]["teacher.post_layernorm.weight"], expected, atol=1e-6, rtol=1e-6)


def test_log_tells_the_parts_of_the_loss(whole):
    line = read_log(whole["tcl"] / "log.jsonl")[0]
    parts = line["parts"]
    contrast = sum(value for name, value in parts.items() if name not in ("matching", "words")) / 6
    assert contrast + parts["matching"] + parts["words"] == pytest.approx(line["loss"], rel=1e-5)
    assert read_log(whole["data2vec"] / "log.jsonl")[0]["spread"]["targets"] > 0


def test_changed_micro_batch_is_refused_where_the_loss_depends_on_it(tmp_path, data, whole):
    for task in TASKS:
        folder = tmp_path / task
        break_at(whole[task], folder, 3, 4)
        recipe = build_pretask_recipe(task, data, folder, optimization__micro_batch_size=4)
        if task == "tcl":
            with pytest.raises(CheckpointError, match="optimization.micro_batch_size"):
                run_training(recipe)
            continue
        assert run_training(recipe).is_finished  # sums over masked patches are the same in any cut
        got, expected = (load_file(path / "final" / "model.safetensors") for path in (folder, whole[task]))
        for name, value in expected.items():
            torch.testing.assert_close(got[name], value, atol=2e-3, rtol=1e-3)


def test_changed_images_are_refused_when_a_run_goes_on(tmp_path, whole):
    data = write_captioned_images(tmp_path / "images")
    rows = [json.loads(line) for line in data.read_text(encoding="utf-8").splitlines()]
    rows[4]["caption"] = "Something else."
    data.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    folder = tmp_path / "run"
    break_at(whole["tcl"], folder, 4, 4)
    recipe = build_pretask_recipe("tcl", data, folder)
    recipe["data"]["sources"][0]["path"] = str(data)
    with pytest.raises(CheckpointError):
        run_training(recipe)


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path, data, whole):
    run_in_turn([build_pretask_recipe(task, data, tmp_path / task) for task in TASKS], 2)
    for task, name in product(TASKS, ("model", "extra")):
        file = f"checkpoints/step-00000004/{name}.safetensors"
        got, expected = load_file(tmp_path / task / file), load_file(whole[task] / file)
        assert got.keys() == expected.keys()
        for key, value in expected.items():
            torch.testing.assert_close(got[key], value, atol=1e-4, rtol=1e-4, msg=key)


def test_tower_of_a_result_is_a_backbone(tmp_path, whole):
    text = write_small_decoder(tmp_path / "text")
    for task in TASKS:
        model, _ = from_backbones(str(whole[task] / "final"), str(text))
        got = model.model.vision_tower.state_dict()
        kept = load_file(whole[task] / "final" / "model.safetensors")
        prefix = "vision_model." if task == "tcl" else ""
        assert all(torch.equal(value, kept[prefix + name]) for name, value in got.items())
    build_tcl_model("vit").save_pretrained(tmp_path / "vit")
    model, _ = from_backbones(str(tmp_path / "vit"), str(text))  # with a pooler that TCL has not
    assert model.config.num_image_tokens == 16


def test_result_loads_and_a_next_run_starts_from_it(tmp_path, data, whole):
    final = whole["tcl"] / "final"
    model, processor = AutoModel.from_pretrained(final), AutoProcessor.from_pretrained(final)
    assert type(model) is TCLModel
    assert processor.encode_caption("a red dog")[0] == processor.tokenizer.cls_token_id
    steps = {"optimization__num_steps": 1}
    recipe = build_pretask_recipe("tcl", data, tmp_path / "next", model={"path": str(whole["tcl"])}, **steps)
    assert run_training(recipe).is_finished
    base = load_file(tmp_path / "next" / "base" / "model.safetensors")
    assert all(torch.equal(value, base[name]) for name, value in load_file(final / "model.safetensors").items())
    recipe = build_pretask_recipe("data2vec", data, tmp_path / "tower", model={"path": str(final)}, **steps)
    assert run_training(recipe).is_finished


def test_wrong_recipes_say_what_to_do(tmp_path, data):
    def run(task="tcl", **changes):
        run_training(build_pretask_recipe(task, data, tmp_path / "run", **changes))

    with pytest.raises(ValueError, match="`task` must be one of"):
        run(task="clip", model={})
    with pytest.raises(ValueError, match="queue_size"):
        run(queue_size=6)
    with pytest.raises(ValueError, match="at least 2"):
        run(optimization__micro_batch_size=1)
    with pytest.raises(ValueError, match="model.path"):
        run(model={"vision": "x"})
    with pytest.raises(ValueError, match="min_block"):
        run("data2vec", mask__min_block=16)
    with pytest.raises(ValueError, match="num_layers"):
        run("data2vec", targets={"num_layers": 3})
    assert not (tmp_path / "run" / "final").exists()


def test_learned_word_pieces_are_the_same_every_time():
    texts = ["a red dog", "a green tree here", "reddish greenery", "dogs and trees"] * 3
    tokenizers = [train_word_pieces(texts, 60) for _ in range(5)]
    vocabularies = [tokenizer.get_vocab() for tokenizer in tokenizers]
    assert all(vocabulary == vocabularies[0] for vocabulary in vocabularies)
    assert [tokenizers[0].convert_tokens_to_ids(name) for name in ("[PAD]", "[UNK]", "[CLS]")] == [0, 1, 2]
    words = tokenizers[0].encode("A red dog ##a", add_special_tokens=False)
    assert tokenizers[0].decode(words) == "a red dog [UNK] [UNK] a"
    assert len(tokenizers[0]) <= 60

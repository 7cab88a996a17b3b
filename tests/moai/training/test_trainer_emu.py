"""Emu's trainings: sequences of both directions, instructions by an adapter, the visual decoder."""

import shutil
from pathlib import Path

import pytest
import torch
from emu_builders import build_emu, build_processor, build_visual_decoder, make_image, save_emu
from pretask_builders import write_captioned_images
from safetensors.torch import load_file
from training_builders import REPO_ROOT, break_at, files_of, learned

pytest.importorskip("accelerate", reason='needs accelerate: pip install "moai-vlm[train]"')
pytest.importorskip("peft", reason='needs peft: pip install "moai-vlm[train]"')
pytest.importorskip("diffusers", reason='needs diffusers: pip install "moai-vlm[generate]"')

from PIL import Image  # noqa: E402

from moai import Pipeline  # noqa: E402
from moai.data.conversations import parse_conversation  # noqa: E402
from moai.data.samples import Sample  # noqa: E402
from moai.data.training_data import DataSettings, build_training_dataset  # noqa: E402
from moai.models.emu.collator_emu import EmuCollator  # noqa: E402
from moai.models.emu.losses import label_text  # noqa: E402
from moai.models.emu.modeling_emu import EmuForConditionalGeneration  # noqa: E402
from moai.training.checkpoints import CheckpointError  # noqa: E402
from moai.training.metrics_logging import read_log  # noqa: E402
from moai.training.trained_parts import part_of  # noqa: E402
from moai.training.trainer import run_training  # noqa: E402

SHORT = [
    *("optimization.num_steps=3", "optimization.batch_size=4", "optimization.micro_batch_size=2", "seed=2"),
    *("optimization.learning_rate=0.01", "optimization.warmup_share=0", "saving={every_steps: 1, keep: 9}"),
    *("watching.every_steps=1", "watching.has_plots=false", "model.vision=null", "model.text=null", "model.fields={}"),
]
SCENES = "data.sources=[{scenes: {form: %s, length: 8, num_questions: 1, image_size: 32}}]"


def train(start: Path, output: Path, *overrides: str, form: str = "captions"):
    paths = [f"model.path={start}", f"output_folder={output}", SCENES % form]
    return run_training(REPO_ROOT / "configs" / "emu.yaml", [*SHORT, *paths, *overrides])


def train_decoder(start: Path, data: Path, output: Path, **changes):
    recipe = {
        "task": "emu_decoder",
        "output_folder": str(output),
        "seed": 3,
        "model": {"path": str(start)},
        "data": {"sources": [{"path": str(data)}]},
        "optimization": {"num_steps": 3, "batch_size": 4, "micro_batch_size": 2, "learning_rate": 1e-2},
        "saving": {"every_steps": 1, "keep": 9},
        "watching": {"every_steps": 1, "has_plots": False},
        "drop_share": 0.3,
    }
    return run_training(recipe | changes)


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> Path:
    return save_emu(tmp_path_factory.mktemp("start"), draws=True)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_captioned_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def sequences(tmp_path_factory, start) -> Path:
    return train(start, tmp_path_factory.mktemp("sequences") / "whole").output_folder


@pytest.fixture(scope="module")
def drawing(tmp_path_factory, start, data) -> Path:
    return train_decoder(start, data, tmp_path_factory.mktemp("drawing") / "whole").output_folder


def test_documents_are_learned_whole_and_of_questions_the_answer(tmp_path: Path) -> None:
    model, processor = build_emu(tmp_path), build_processor(tmp_path)
    collator = EmuCollator(processor)
    images = make_image(1), make_image(2)
    words = [{"type": "text", "text": text} for text in ("front", "middle", "end")]
    page = {
        "messages": [{"role": "assistant", "content": [words[0], {"type": "image"}, *words[1:2], {"type": "image"}]}]
    }
    page = Sample("", tuple(parse_conversation(page, 2, allows_documents=True)), images)
    ask = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Who?"}]}
    question = Sample("", (ask, {"role": "assistant", "content": words[2:]}), images[:1])
    batch = collator([page, question])
    assert batch["learns_images"].tolist() == [True, False]
    decode = processor.tokenizer.decode
    assert decode(batch["labels"][0][batch["labels"][0] != -100]) == "frontmiddle" + processor.tokenizer.eos_token
    assert decode(batch["labels"][1][batch["labels"][1] != -100]) == "end" + processor.tokenizer.eos_token
    assert collator.measure(page.messages) == int(batch["attention_mask"][0].sum())
    alone = collator([page])
    expected = label_text(alone["input_ids"], model.config, None)
    assert torch.equal(alone["labels"][:, 1:], expected[:, 1:])
    with torch.no_grad():
        found = model(**batch)
        lone = model(**alone)
        asked = model(**collator([question]))
    torch.testing.assert_close(found.regression_loss, lone.regression_loss)
    assert asked.regression_loss == 0 and lone.regression_loss > 0
    assert torch.equal(lone.loss, lone.text_loss + lone.regression_loss)


def test_scenes_are_documents_with_the_image_before_or_after_the_caption(tmp_path: Path) -> None:
    build_emu(tmp_path)
    settings = DataSettings.from_dict(
        {"sources": [{"scenes": {"form": "captions", "length": 12, "image_size": 32}}], "verbalizations": "none"}
    )
    dataset = build_training_dataset(settings, EmuCollator(build_processor(tmp_path)))
    kinds = [[part["type"] for part in dataset[index].messages[0]["content"]] for index in range(len(dataset))]
    assert len(dataset) == 12 and ["image", "text"] in kinds and ["text", "image"] in kinds


def test_sequences_go_on_bit_by_bit_and_refuse_another_micro_batch(
    tmp_path: Path, start: Path, sequences: Path
) -> None:
    expected = files_of(sequences / "checkpoints" / "step-00000003")
    for step in (1, 2):
        broken = break_at(sequences, tmp_path / f"broken{step}", step, 3)
        train(start, broken)
        assert files_of(broken / "checkpoints" / "step-00000003") == expected
        assert files_of(broken / "final") == files_of(sequences / "final")
        lines = [[learned(line) for line in read_log(folder / "log.jsonl")] for folder in (sequences, broken)]
        assert lines[0] == lines[1]
    line = read_log(sequences / "log.jsonl")[0]
    assert sum(line["parts"].values()) == pytest.approx(line["loss"], rel=1e-5) and line["parts"]["image"] > 0
    with pytest.raises(CheckpointError, match="optimization.micro_batch_size"):
        train(start, break_at(sequences, tmp_path / "changed", 2, 3), "optimization.micro_batch_size=4")
    weighted = "data.sources=[{weight: 2.0, scenes: {form: captions, length: 8, image_size: 32}}]"
    with pytest.raises(ValueError, match="`weight` of 1"):
        train(start, tmp_path / "weighted", weighted)
    moved = load_file(sequences / "final" / "model.safetensors")
    before = load_file(start / "model.safetensors")
    patterns = EmuForConditionalGeneration.trainable_parts
    assert {part_of(name, patterns) for name, value in moved.items() if not torch.equal(value, before[name])} == {
        *patterns
    }


def test_instructions_by_lora_are_an_adapter_that_answers_and_draws(tmp_path: Path, start: Path) -> None:
    adapter = "train.adapter={peft_type: LORA, r: 4, lora_alpha: 4, lora_dropout: 0.05}"
    chosen = ("optimization.learning_rates={}", "data.chat_template=chat", adapter)
    whole = train(start, tmp_path / "whole", *chosen, form="questions")
    broken = break_at(tmp_path / "whole", tmp_path / "broken", 1, 3)
    again = train(start, broken, *chosen, form="questions")
    assert files_of(whole.folder) == files_of(again.folder)
    found = load_file(whole.folder / "adapter_model.safetensors")
    assert found and all(".language_model." in name and ".lora_" in name for name in found)
    pipeline = Pipeline.from_pretrained(whole.folder, [])
    assert isinstance(pipeline(make_image(1), "Who?", max_new_tokens=3, options={"prompt": "chat"}).answer, str)
    (image,) = pipeline.draw("a dog", {"steps": 1, "guidance": 1}).parts
    (plain,) = Pipeline.from_pretrained(start, []).draw("a dog", {"steps": 1, "guidance": 1}).parts
    assert isinstance(image, Image.Image) and image.tobytes() != plain.tobytes()
    with pytest.raises(ValueError, match="learned prompt"):
        train(start, tmp_path / "prompt", "train.adapter={peft_type: P_TUNING, num_virtual_tokens: 3}")


def test_visual_decoder_goes_on_bit_by_bit_and_draws(tmp_path, start, data, drawing) -> None:
    expected = files_of(drawing / "checkpoints" / "step-00000003")
    for step in (1, 2):
        broken = break_at(drawing, tmp_path / f"broken{step}", step, 3)
        train_decoder(start, data, broken)
        assert files_of(broken / "checkpoints" / "step-00000003") == expected
        assert files_of(broken / "final") == files_of(drawing / "final")
    before, after = files_of(start), files_of(drawing / "final")
    changed = {name for name, content in after.items() if content != before[name]}
    assert changed == {"visual_decoder/unet/diffusion_pytorch_model.safetensors"} and before.keys() == after.keys()
    (image,) = Pipeline.from_pretrained(drawing / "final", []).draw("a red dog", {"steps": 1}).parts
    assert image.size == (16, 16)


def test_visual_decoder_does_not_depend_on_the_micro_batch(
    tmp_path: Path, start: Path, data: Path, drawing: Path
) -> None:
    optimization = {"num_steps": 1, "batch_size": 4, "learning_rate": 1e-2}
    results = []
    for size in (1, 4):
        folder = tmp_path / str(size)
        train_decoder(start, data, folder, optimization=optimization | {"micro_batch_size": size})
        results.append(read_log(folder / "log.jsonl")[0]["loss"])
    assert results[0] == pytest.approx(results[1], rel=1e-5)


def test_visual_decoder_refuses_another_emu_and_what_is_no_whole_one(
    tmp_path: Path, start: Path, data: Path, drawing
) -> None:
    other = save_emu(tmp_path, draws=True, seed=5)
    broken = break_at(drawing, tmp_path / "broken", 1, 3)
    shutil.copytree(start, tmp_path / "copy")
    shutil.copyfile(other / "model.safetensors", tmp_path / "copy" / "model.safetensors")
    with pytest.raises(CheckpointError):
        train_decoder(tmp_path / "copy", data, broken)
    with pytest.raises(ValueError, match="`model.decoder`"):
        train_decoder(save_emu(tmp_path / "plain"), data, tmp_path / "none")
    sizes = {"sample_size": 8, "in_channels": 3, "out_channels": 3, "block_out_channels": [8], "norm_num_groups": 4}
    blocks = {"down_block_types": ["DownBlock2D"], "up_block_types": ["UpBlock2D"], "attention_head_dim": 2}
    with pytest.raises(ValueError, match="4 channels"):
        train_decoder(start, data, tmp_path / "channels", model={"path": str(start), "unet": sizes | blocks})


def test_cross_attention_of_another_width_starts_anew(tmp_path: Path, data: Path) -> None:
    start = save_emu(tmp_path)
    decoder = build_visual_decoder()
    decoder.save_pretrained(tmp_path / "diffusion")
    config = dict(decoder.unet.config) | {"cross_attention_dim": 7}
    type(decoder.unet).from_config(config).save_pretrained(tmp_path / "diffusion" / "unet")
    model = {"path": str(start), "decoder": str(tmp_path / "diffusion")}
    result = train_decoder(start, data, tmp_path / "run", model=model, condition="image")
    base = load_file(tmp_path / "run" / "base" / "unet" / "diffusion_pytorch_model.safetensors")
    old = load_file(tmp_path / "diffusion" / "unet" / "diffusion_pytorch_model.safetensors")
    new = {name for name, value in base.items() if value.shape != old[name].shape}
    assert new and all(name.endswith(("attn2.to_k.weight", "attn2.to_v.weight")) for name in new)
    assert all(torch.equal(value, old[name]) for name, value in base.items() if name not in new)
    (image,) = Pipeline.from_pretrained(result.folder, []).draw("a dog", {"steps": 1}).parts
    assert image.size == (16, 16)

"""Every model of the registry trains by the same command: what learns, how a broken run ends, what it answers."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from emu_builders import save_emu
from flamingo_builders import build_processor, make_image, save_flamingo
from PIL import Image
from prismer_builders import build_prismer, save_prismer
from prompted_builders import save_prompted
from safetensors.torch import load_file
from training_builders import REPO_ROOT, build_recipe, write_tiny_checkpoint

pytest.importorskip("accelerate", reason='needs accelerate: pip install "moai-vlm[train]"')
pytest.importorskip("peft", reason='needs peft: pip install "moai-vlm[train]"')

from moai import Pipeline  # noqa: E402
from moai.data.collator import collate  # noqa: E402
from moai.data.conversations import parse_conversation  # noqa: E402
from moai.data.samples import BadSampleError, Sample  # noqa: E402
from moai.data.training_data import DataSettings, build_training_dataset  # noqa: E402
from moai.models.flamingo.collator_flamingo import FlamingoCollator  # noqa: E402
from moai.models.prismer.collator_prismer import PrismerCollator  # noqa: E402
from moai.training.model_building import build_model, find_task  # noqa: E402
from moai.training.train_settings import load_settings  # noqa: E402
from moai.training.trainer import run_training  # noqa: E402

#: Laid over the recipe of each model, so that it ends soon.
SHORT = [
    "optimization.num_steps=2",
    "optimization.batch_size=2",
    "optimization.micro_batch_size=1",
    "optimization.learning_rate=0.01",
    "optimization.warmup_share=0",
    "saving.every_steps=1",
    "watching.has_plots=false",
    "data.kinds=[ocr]",
    "data.sources=[{scenes: {length: 4, num_questions: 1, image_size: 32}}]",
]
#: Checkpoint, recipe, and what of it stays as it was.
MODELS: dict[str, tuple[Callable[[Path], object], str, Callable[[str], bool]]] = {
    "llava": (lambda folder: save_prompted(folder, "llava"), "prompted_lora", lambda name: True),
    "qwen2_vl": (lambda folder: save_prompted(folder, "qwen2_vl"), "prompted_lora", lambda name: True),
    "flamingo": (
        save_flamingo,
        "flamingo",
        lambda name: not name.startswith(("model.resampler.", "model.gated_blocks.")) and "embed_tokens" not in name,
    ),
    "emu": (save_emu, "emu", lambda name: False),
    "prismer": (
        save_prismer,
        "prismer",
        lambda name: name.startswith("model.vision_encoder.layers.") and "adaptor" not in name,
    ),
}


def train(family: str, start: Path, output: Path, *overrides: str):
    path = [f"model.path={start}", f"model.type={family}", f"output_folder={output}"]
    backbones = ["model.vision=null", "model.text=null", "model.fields={}"] if family in ("emu", "flamingo") else []
    return run_training(REPO_ROOT / "configs" / f"{MODELS[family][1]}.yaml", [*SHORT, *path, *backbones, *overrides])


@pytest.mark.parametrize("family", MODELS)
def test_model_learns_what_it_says_goes_on_alike_and_answers(family: str, tmp_path: Path) -> None:
    save, _, rests = MODELS[family]
    start = Path(str(save(tmp_path / "start")))
    result = train(family, start, tmp_path / "whole")
    (tmp_path / "broken" / "checkpoints").mkdir(parents=True)
    shutil.copytree(tmp_path / "whole" / "checkpoints" / "step-00000001", tmp_path / "broken/checkpoints/step-00000001")
    again = train(family, start, tmp_path / "broken")
    (file,) = result.folder.glob("*model.safetensors")
    assert file.read_bytes() == (again.folder / file.name).read_bytes()

    found = load_file(file)
    if family in ("llava", "qwen2_vl"):
        assert found and all(".lora_" in name for name in found)
        assert json.loads((result.folder / "adapter_config.json").read_text())["base_model_name_or_path"]
    else:
        before = load_file(start / "model.safetensors")
        moved = {name for name, value in found.items() if not torch.equal(value, before[name])}
        assert moved and not any(map(rests, moved)), sorted(filter(rests, moved))
    if family == "flamingo":  # of the word embedding two rows
        (name,) = (name for name in moved if "embed_tokens" in name)
        config = json.loads((result.folder / "config.json").read_text())
        changed = (found[name] != before[name]).any(dim=1).nonzero().flatten().tolist()
        assert changed and set(changed) <= {config["image_token_id"], config["end_of_chunk_token_id"]}
    pipeline = Pipeline.from_pretrained(result.folder, [])
    answer = pipeline(Image.new("RGB", (40, 30)), "How many?", max_new_tokens=3).answer
    assert isinstance(answer, str)


@pytest.mark.parametrize("family", ["llava", "flamingo", "prismer"])
def test_learned_prompt_is_an_adapter_that_answers_and_goes_into_no_weights(family: str, tmp_path: Path) -> None:
    start = Path(str(MODELS[family][0](tmp_path / "start")))
    adapter = "train={adapter: {peft_type: P_TUNING, num_virtual_tokens: 3, encoder_hidden_size: 16}}"
    result = train(family, start, tmp_path / "run", adapter)
    assert set(load_file(result.folder / "adapter_model.safetensors")) == {"prompt_embeddings"}
    pipeline = Pipeline.from_pretrained(result.folder, [])
    assert isinstance(pipeline(Image.new("RGB", (40, 30)), "How many?", max_new_tokens=3).answer, str)
    with pytest.raises(ValueError, match="learned prompt"):
        train(family, start, tmp_path / "merged", adapter, "saving.output=merged")
    with pytest.raises(ValueError, match="Start from its base model"):
        train(family, result.folder, tmp_path / "second", "train={adapter: {peft_type: LORA, r: 2}}")


@pytest.mark.parametrize(
    ("family", "override", "reason"),
    [
        ("llava", "train.adapter={peft_type: NOTHING}", "peft_type. must be one of"),
        ("llava", "train.adapter={r: 3}", "with a `peft_type`"),
        ("llava", "train.parts=[wheels]", "parts of this model"),
        ("llava", "optimization.learning_rates={wheels: 1.0}", "may name"),
        ("llava", "stage=1", "unknown setting `stage`"),
        ("llava", "data.map=always", "no painted map"),
        ("llava", "model.type=flamingo", "which is a 'llava'"),
        ("prismer", "train={mode: none, parts: [adaptors]}", "says all that is trained"),
        ("emu", "data.sources=[{scenes: {length: 4}, weight: 2.0}]", "`repeats` says how often"),
    ],
)
def test_settings_that_do_not_fit_the_model_are_named(family: str, override: str, reason: str, tmp_path: Path) -> None:
    start = Path(str(MODELS[family][0](tmp_path / "start")))
    with pytest.raises(ValueError, match=reason):
        train(family, start, tmp_path / "run", override)


def test_settings_in_the_repository_are_those_of_their_model() -> None:
    names = {"prompted_lora": "Prompted", "emu": "Emu", "flamingo": "Flamingo", "prismer": "Prismer"}
    for recipe, name in names.items():
        settings = load_settings(REPO_ROOT / "configs" / f"{recipe}.yaml")
        assert type(settings).__name__ == f"{name}TrainSettings"


@pytest.mark.parametrize("family", ["moai", "llava", "flamingo", "prismer"])
def test_loss_is_a_weighted_mean_when_sources_have_weights(family: str, tmp_path: Path) -> None:
    if family == "moai":
        settings = load_settings(build_recipe(write_tiny_checkpoint(tmp_path / "start"), tmp_path / "run", stage=2))
    else:
        path = f"model.path={MODELS[family][0](tmp_path / 'start')}"
        if family == "flamingo":
            path = f"model={{path: {path.removeprefix('model.path=')}, type: flamingo}}"
        settings = load_settings(
            REPO_ROOT / "configs" / f"{MODELS[family][1]}.yaml", [*SHORT, path, f"model.type={family}"]
        )
    built, task_class = build_model(settings, torch.device("cpu")), find_task(settings)
    reader = task_class.collator_class(built.processor)
    dataset = build_training_dataset(DataSettings.from_dict(settings.data), reader)
    task = task_class(settings, built.model, dataset, dataset.collator).eval()

    @torch.no_grad()
    def measure(*samples: Sample) -> tuple[float, float]:
        batch = task.make_batch(collate(task.collator, list(samples)), task.options(0))
        return task(batch.inputs)[0].item(), batch.num_targets

    (first, num_first), (second, num_second) = measure(dataset[0]), measure(dataset[1])
    loss, num_targets = measure(replace(dataset[0], weight=3.0), replace(dataset[1], weight=0.5))
    assert num_targets == 3 * num_first + 0.5 * num_second
    assert loss == pytest.approx(3 * first + 0.5 * second, rel=1e-4)


def document(*parts: str) -> tuple[dict, ...]:
    content = [{"type": "image"} if part == "#" else {"type": "text", "text": part} for part in parts]
    row = {"messages": [{"role": "assistant", "content": content}]}
    return tuple(parse_conversation(row, parts.count("#"), allows_documents=True))


def test_interleaved_images_keep_their_places_and_text_of_an_image_alone_is_learned(tmp_path: Path) -> None:
    save_flamingo(tmp_path)
    processor = build_processor(tmp_path)
    collator = FlamingoCollator(processor)
    images = make_image(1), make_image(2)
    ask = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Who?"}]}
    question = Sample("", (ask, {"role": "assistant", "content": [{"type": "text", "text": "Ann"}]}), images[1:])
    page = Sample("", document("front", "#", "one", "#", "two"), images)
    batch = collator([page, question])
    image, end = processor.image_token_id, processor.end_of_chunk_token_id
    decode = processor.tokenizer.decode
    row = batch["attention_mask"][0].bool()
    assert decode(batch["input_ids"][0][row]) == "front<image>one<|endofchunk|><image>two<|endofchunk|>"
    learned = batch["labels"][0][batch["labels"][0] != -100]
    assert decode(learned) == "one<|endofchunk|>two<|endofchunk|>" and image not in learned
    assert decode(batch["labels"][1][batch["labels"][1] != -100]).strip() == "Ann<|endofchunk|>"
    assert batch["labels"][1, -1] == end and batch["media_mask"].tolist() == [[1, 1], [1, 0]]
    pixels = processor(images=[list(images)], text=["<image><image>"])["pixel_values"]
    assert torch.equal(batch["pixel_values"][0], pixels[0]) and torch.equal(batch["pixel_values"][1, 0], pixels[0, 1])
    assert collator.measure(page.messages) == int(row.sum())
    turned = collator([Sample("", document("#", "one", "#", "two"), images[::-1])])
    assert torch.equal(turned["pixel_values"][0], pixels[0].flip(0))


def test_pages_of_mmc4_are_documents_when_read(tmp_path: Path) -> None:
    save_flamingo(tmp_path)
    for name in ("a", "b"):
        make_image(ord(name)).save(tmp_path / f"{name}.png")
    found = [{"image_name": "b.png", "matched_text_index": 2}, {"image_name": "a.png", "matched_text_index": 1}]
    pages = [{"text_list": ["Front.", "One.", "Two.", "More."], "image_info": found, "url": "x"}]
    pages.append({"text_list": ["Front."], "image_info": [{"image_name": "a.png", "matched_text_index": 7}]})
    (tmp_path / "pages.jsonl").write_text("\n".join(map(json.dumps, pages)))
    data = {"sources": [str(tmp_path / "pages.jsonl")], "verbalizations": "none", "max_bad_rows": 1}
    collator = FlamingoCollator(build_processor(tmp_path))
    dataset = build_training_dataset(DataSettings.from_dict(data), collator)
    batch = dataset.collator([dataset[0]])
    written = collator.processor.tokenizer.decode(batch["input_ids"][0])
    assert written == "Front.<image>One.<|endofchunk|><image>Two. More.<|endofchunk|>"
    pixels = collator.processor(images=[[make_image(97), make_image(98)]], text=["<image><image>"])["pixel_values"]
    assert torch.equal(batch["pixel_values"], pixels) and len(dataset) == 1
    (problem,) = dataset.report.problems
    assert "matched_text_index" in str(problem)


def test_prismer_sums_a_samples_tokens_and_refuses_what_it_cannot_look_at() -> None:
    model, processor = build_prismer()
    collator = PrismerCollator(processor)
    messages = tuple(
        parse_conversation(
            {"conversations": [{"from": "human", "value": "<image>Who?"}, {"from": "gpt", "value": "Ann"}]}, 1
        )
    )
    batch = collator([Sample("", messages, (Image.new("RGB", (32, 32)),))] * 2)
    with torch.no_grad():
        outputs = model(**batch)
    assert outputs.sample_losses.shape == (2,) and collator.measure(messages) == batch["input_ids"].shape[1]
    with pytest.raises(BadSampleError, match="expected one image"):
        collator.measure([{"role": "user", "content": [{"type": "text", "text": "Who?"}]}, messages[1]])

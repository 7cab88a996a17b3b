"""The processor against the released inputs; the layout of its batches; images and placeholders; saving."""

import copy
import json
import pathlib
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from processing_builders import PATCHES, RED, question_ids
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer

from moai import InternLM2Tokenizer, MoAIProcessor
from moai.models.moai.image_processing_moai import MoAIImageProcessor
from moai.models.moai.tokenization_internlm2 import IMAGE_TOKEN
from moai.processing.image_loading import ImageLoadError


class Golden:
    """The released inputs and what they were made of; sizes come from the fixture's own config."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.config = json.loads((folder / "config.json").read_text())
        self.fixtures = json.loads((folder / "fixtures.json").read_text())
        self.strings = json.loads((folder / "verbalization.json").read_text())
        self.tensors = load_file(folder / "full_model.safetensors")
        vision = self.config["vision"]
        self.num_patches = (vision["image_size"] // vision["patch_size"]) ** 2
        size = {"height": vision["image_size"], "width": vision["image_size"]}
        mean, std = ([v / 255 for v in self.config[f"image_{name}_255"]] for name in ("mean", "std"))
        tokenizer = InternLM2Tokenizer(folder / self.config["tokenizer"]["file"])
        self.processor = MoAIProcessor(
            MoAIImageProcessor(size=size, image_mean=mean, image_std=std),
            tokenizer,
            num_image_tokens=self.num_patches,
            auxiliary_map_scale=1 / 255,
        )

    def runs(self) -> list[tuple[str, dict]]:
        """(key prefix, texts) of every released run whose inputs were kept; equal texts are looked at once."""
        named = []
        for run in self.fixtures["report"]["eval_process_texts"]:
            name = "".join("AB"[row] for row in run["rows"]) + ("_demo" if run["demo"] else "")
            if f"{name}.in.input_ids" in self.tensors and name not in dict(named):
                named.append((name, run))
        assert named
        return named

    def build(self, run: dict) -> dict[str, torch.Tensor]:
        rows = run["rows"]
        colours = self.tensors["cmap_times255_uint8"].numpy()
        return self.processor(
            images=[self.tensors["images_uint8"][row] for row in rows],
            questions=[self.fixtures["external_results_for_A_B"][row]["prompt"] for row in rows],
            auxiliary_text=run["verb_prompts"],
            auxiliary_images=[colours[self.tensors["panoptic_index_uint8"][row].numpy()] for row in rows],
            chat_template="demo" if run["demo"] else None,
        )


@pytest.fixture(scope="module")
def golden(golden_dir: pathlib.Path) -> Golden:
    return Golden(golden_dir / "moai")


# ---------------------------------------------------------------- golden


def test_prompts_equal_released_texts_when_questions_are_golden(golden: Golden) -> None:
    for case in golden.strings["prompt"]:
        assert golden.processor.build_prompts(case["question"]) == [case["eval"]["text"]]
        assert golden.processor.build_prompts(case["question"], chat_template="demo") == [case["demo"]["text"]]
        for kind in ("eval", "demo"):
            ids = golden.processor.encoder.guard.encode(case[kind]["text"])
            assert golden.processor.encoder.guard.prefix_ids + ids == case[kind]["ids"]
    for _, run in golden.runs():
        questions = [golden.fixtures["external_results_for_A_B"][row]["prompt"] for row in run["rows"]]
        name = "demo" if run["demo"] else None
        assert golden.processor.build_prompts(questions, chat_template=name) == run["moai_prompts"]


def test_batch_equals_released_inputs_when_samples_are_golden(golden: Golden) -> None:
    image_id = golden.config["image_token_index"]
    for name, run in golden.runs():
        batch, released = golden.build(run), golden.tensors
        rows = released[f"{name}.in.input_ids"].tolist()
        expanded = [
            [i for token in row for i in [token] * (golden.num_patches if token == image_id else 1)] for row in rows
        ]
        assert batch["input_ids"].tolist() == expanded
        kept = released[f"{name}.in.attention_mask"]
        assert batch["attention_mask"].sum(-1).tolist() == (kept.sum(-1) + golden.num_patches - 1).tolist()
        assert torch.equal(batch["mm_token_type_ids"] == 1, released[f"{name}.in.im_mask"])
        assert torch.equal(batch["mm_token_type_ids"] == 2, released[f"{name}.in.lang_mask"])
        if f"{name}.in.verb_input_ids" in released:
            assert batch["auxiliary_input_ids"].tolist() == released[f"{name}.in.verb_input_ids"].tolist()
        for ours, theirs in (("pixel_values", "pixel_values"), ("auxiliary_pixel_values", "map_pixel_values")):
            if f"{name}.in.{theirs}" in released:
                torch.testing.assert_close(batch[ours], released[f"{name}.in.{theirs}"], rtol=0, atol=1e-6)


def test_text_gives_same_batch_as_questions_when_prompts_are_released(golden: Golden) -> None:
    for _, run in golden.runs():
        images = [golden.tensors["images_uint8"][row] for row in run["rows"]]
        batch = golden.processor(images=images, text=run["moai_prompts"])
        assert torch.equal(batch["input_ids"], golden.build(run)["input_ids"])


def test_training_sample_equals_released_layout_when_answer_is_given(golden: Golden) -> None:
    """The fixture's training sample: prompt A, then an answer whose positions alone carry labels."""
    released, tokenizer = golden.tensors, golden.processor.tokenizer
    question, answer = (entry["prompt"] for entry in golden.fixtures["external_results_for_A_B"][:2])
    batch = golden.processor(images=released["images_uint8"][0], questions=question, answers=answer)
    prompt_length = released["A.in.im_mask"].shape[1]
    labels = batch["labels"][0]
    assert (labels[:prompt_length] == -100).all() and (released["train.in.labels"][0, :prompt_length] == -100).all()
    assert torch.equal(labels[prompt_length:], batch["input_ids"][0, prompt_length:])
    target = [*tokenizer.encode(answer, add_special_tokens=False), golden.config["eos_token_id"]]
    assert labels[prompt_length:].tolist() == target
    assert torch.equal(batch["mm_token_type_ids"][0, :prompt_length] == 1, released["A.in.im_mask"][0])
    assert (batch["mm_token_type_ids"][0, prompt_length:] == 0).all()


# ---------------------------------------------------------------- layout


def test_batch_has_contract_keys_and_dtypes_when_everything_is_given(processor: MoAIProcessor) -> None:
    batch = processor(images=[RED, RED], questions=["How many?", "Two dogs, yes?"], auxiliary_text=["dogs", None],
                      auxiliary_images=[RED, None], answers=["yes", "Two dogs"])  # fmt: skip
    integers = {
        "input_ids",
        "attention_mask",
        "mm_token_type_ids",
        "labels",
        "auxiliary_input_ids",
        "auxiliary_attention_mask",
        "auxiliary_source_mask",
    }
    floats = {"pixel_values", "auxiliary_pixel_values"}
    assert set(batch) == integers | floats == {*processor.model_input_names, *processor.auxiliary_input_names, "labels"}
    assert all(batch[key].dtype == torch.int64 for key in integers)
    assert all(batch[key].dtype == torch.float32 and batch[key].shape == (2, 3, 28, 42) for key in floats)
    assert len({batch[key].shape for key in ("input_ids", "attention_mask", "mm_token_type_ids", "labels")}) == 1
    assert batch["auxiliary_input_ids"].shape == batch["auxiliary_attention_mask"].shape


def test_batch_leaves_out_keys_when_inputs_are_absent(processor: MoAIProcessor) -> None:
    assert set(processor(text="dogs")) == {"input_ids", "attention_mask", "mm_token_type_ids"}
    assert set(processor(questions="dogs?")) == {"input_ids", "attention_mask", "mm_token_type_ids"}
    assert set(processor(images=RED)) == {"pixel_values"}
    assert set(processor(images=RED, questions="dogs?", auxiliary_text=[None])) == {
        "input_ids", "attention_mask", "mm_token_type_ids", "pixel_values",
    }  # fmt: skip


def test_roles_tell_image_prompt_answer_and_padding_when_batch_is_padded(processor: MoAIProcessor) -> None:
    batch = processor(images=[RED, RED], questions=["How many dogs?" * 3, "dogs?"], answers=["yes", "Two"])
    roles, mask, labels = (batch[key] for key in ("mm_token_type_ids", "attention_mask", "labels"))
    is_answer = labels != -100
    assert torch.equal(roles == 1, batch["input_ids"] == processor.image_token_id)
    assert (roles == 1).sum(-1).tolist() == [PATCHES, PATCHES]
    assert torch.equal(roles == 0, (mask == 0) | is_answer)
    assert torch.equal(labels[is_answer], batch["input_ids"][is_answer])
    assert (mask[1] == 0).any() and (mask[0] == 1).all()


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing_else_when_batch_is_compared_to_singles(processor: MoAIProcessor, side: str) -> None:
    questions, answers = ["How many dogs?" * 3, "dogs?"], ["yes", "Two dogs"]
    texts = ["Two dogs", "a"]
    batch = processor(images=[RED, RED], questions=questions, answers=answers, auxiliary_text=texts, padding_side=side)
    for row in range(2):
        single = processor(images=RED, questions=questions[row], answers=answers[row], auxiliary_text=texts[row])
        kept = batch["attention_mask"][row].bool()
        for key in ("input_ids", "mm_token_type_ids", "labels"):
            assert torch.equal(batch[key][row][kept], single[key][0])
        kept = batch["auxiliary_attention_mask"][row].bool()
        assert torch.equal(batch["auxiliary_input_ids"][row][kept], single["auxiliary_input_ids"][0])
    assert batch["attention_mask"][1, -1 if side == "right" else 0] == 0
    assert batch["auxiliary_attention_mask"][1, 0] == 0  # the compressor's input is always padded on the left


def test_padding_follows_request_when_length_is_asked_for(processor: MoAIProcessor) -> None:
    assert processor(questions=["a"], padding="max_length", max_length=70)["input_ids"].shape == (1, 70)
    assert processor(questions=["a", "bb"], pad_to_multiple_of=64)["input_ids"].shape[1] % 64 == 0
    ragged = processor(questions=["a", "How many dogs?"], padding=False, return_tensors=None)
    assert len(ragged["input_ids"][0]) < len(ragged["input_ids"][1])
    assert isinstance(processor(images=RED, return_tensors="np")["pixel_values"], np.ndarray)
    for bad in ({"padding": "longer"}, {"padding_side": "top"}, {"padding": "max_length"}):
        with pytest.raises(ValueError, match="`padding"):
            processor(questions=["a"], **bad)


def test_auxiliary_text_is_one_bos_when_nothing_was_said(processor: MoAIProcessor) -> None:
    batch = processor(questions=["a", "b"], auxiliary_text=["", "dogs"])
    assert batch["auxiliary_input_ids"][0, -1] == processor.tokenizer.bos_token_id
    assert batch["auxiliary_attention_mask"][0].tolist() == [0] * (batch["auxiliary_input_ids"].shape[1] - 1) + [1]


def test_auxiliary_map_keeps_colours_when_resized(processor: MoAIProcessor) -> None:
    colour_map = np.zeros((9, 7, 3), np.uint8)
    colour_map[:, 3:] = (128, 0, 64)
    values = processor(questions="a", auxiliary_images=colour_map)["auxiliary_pixel_values"][0]
    plain = processor(images=[colour_map[:1, :1], colour_map[:1, 6:]])["pixel_values"]
    columns = torch.unique(values.flatten(1), dim=1).T
    assert columns.shape == (2, 3)
    assert {tuple(c.tolist()) for c in columns} == {tuple(plain[i, :, 0, 0].tolist()) for i in range(2)}


def test_auxiliary_map_is_nearly_black_when_released_scale_is_set(processor: MoAIProcessor) -> None:
    white = np.full((4, 4, 3), 255, np.uint8)
    right = processor(questions="a", auxiliary_images=white)["auxiliary_pixel_values"]
    processor.auxiliary_map_scale = 1 / 255
    dark = processor(questions="a", auxiliary_images=white)["auxiliary_pixel_values"]
    black = processor(images=np.zeros((4, 4, 3), np.uint8))["pixel_values"]
    torch.testing.assert_close(dark - black, (right - black) / 255, rtol=1e-3, atol=1e-6)


def test_images_are_resized_with_pillow_when_size_differs(processor: MoAIProcessor) -> None:
    """As the released evaluation: bilinear, to the square (here a rectangle), aspect ratio not kept."""
    image = np.random.default_rng(0).integers(0, 255, (50, 31, 3), dtype=np.uint8)
    expected = np.asarray(Image.fromarray(image).resize((42, 28), Image.Resampling.BILINEAR), np.float32) / 255
    mean, std = (np.array(v) for v in (processor.image_processor.image_mean, processor.image_processor.image_std))
    values = processor(images=image)["pixel_values"][0].permute(1, 2, 0).numpy()
    np.testing.assert_allclose(values, (expected - mean) / std, atol=1e-5)


@pytest.mark.parametrize("mode", ["RGBA", "CMYK", "L"])
def test_images_of_any_mode_are_accepted_when_given(processor: MoAIProcessor, mode: str) -> None:
    assert processor(images=Image.new(mode, (5, 4)), questions="dogs?")["pixel_values"].shape == (1, 3, 28, 42)


# ---------------------------------------------------------------- images and placeholders


@pytest.mark.parametrize(
    ("images", "text", "numbers"),
    [
        ([RED], "no placeholder", ("0", "1")),
        ([RED, RED], f"{IMAGE_TOKEN} one", ("1", "2")),
        (None, f"{IMAGE_TOKEN} one", ("1", "0")),
        ([RED], [f"{IMAGE_TOKEN} one", f"{IMAGE_TOKEN} two"], ("2", "1")),
        ([[RED, RED], [RED]], [f"{IMAGE_TOKEN} one", f"{IMAGE_TOKEN} two"], ("1", "2")),
        ([[RED]], [f"{IMAGE_TOKEN} one", "two"], ("2", "1")),
    ],
)
def test_processor_names_both_numbers_when_images_and_placeholders_differ(
    processor: MoAIProcessor, images: object, text: object, numbers: tuple[str, str]
) -> None:
    with pytest.raises(ValueError, match="placeholder|lists") as error:
        processor(images=images, text=text)
    assert all(number in str(error.value) for number in numbers)


@pytest.mark.parametrize("questions", [["a"] * 2, ["a"] * 4])
def test_processor_names_both_numbers_when_images_and_questions_differ(
    processor: MoAIProcessor, questions: list[str]
) -> None:
    with pytest.raises(ValueError, match=f"3 images.*{len(questions)} questions"):
        processor(images=[RED] * 3, questions=questions)


@pytest.mark.parametrize(
    "images", [[[RED, RED], [RED]], np.stack([RED] * 3), torch.zeros(3, 3, 8, 8)], ids=["nested", "array", "tensor"]
)
def test_images_reach_their_prompts_when_grouped(processor: MoAIProcessor, images: object) -> None:
    batch = processor(images=images, text=[f"{IMAGE_TOKEN} and {IMAGE_TOKEN}", f"{IMAGE_TOKEN} alone"])
    assert batch["pixel_values"].shape[0] == 3
    assert (batch["mm_token_type_ids"] == 1).sum(-1).tolist() == [2 * PATCHES, PATCHES]


def test_processor_names_both_numbers_when_custom_template_writes_no_placeholder(processor: MoAIProcessor) -> None:
    template = "{% for m in messages %}{% for p in m['content'] %}{{ p['text'] }}{% endfor %}{% endfor %}"
    with pytest.raises(ValueError, match="prompt 0 has 0 <image> placeholders but 1 images"):
        processor(images=RED, questions="dogs?", chat_template=template)


def test_single_question_gets_all_images_when_several_are_given(processor: MoAIProcessor) -> None:
    batch = processor(images=[RED, RED], questions="What changed?")
    assert (batch["mm_token_type_ids"] == 1).sum() == 2 * PATCHES


def test_processor_counts_per_prompt_inputs_when_numbers_differ(processor: MoAIProcessor) -> None:
    for name in ("auxiliary_text", "auxiliary_images", "answers"):
        value = {"auxiliary_images": [RED]}.get(name, ["a"])
        with pytest.raises(ValueError, match="2 prompts, got 1"):
            processor(questions=["a", "b"], **{name: value})


def test_address_is_refused_when_not_allowed(processor: MoAIProcessor) -> None:
    with pytest.raises(ImageLoadError, match="allow_urls=True"):
        processor(images="https://example.org/a.png", questions="a")


def test_bound_on_pixels_holds_when_image_is_large(processor: MoAIProcessor) -> None:
    processor.max_image_pixels = 100
    with pytest.raises(ImageLoadError, match="at most 100 pixels"):
        processor(images=RED, questions="a")
    with pytest.raises(ImageLoadError, match="at most 100 pixels"):
        processor(questions="a", auxiliary_images=RED)


# ---------------------------------------------------------------- saving


def full_batch(processor: MoAIProcessor) -> dict[str, torch.Tensor]:
    return processor(images=[RED, np.zeros_like(RED)], questions=["How many?", f"a {IMAGE_TOKEN} b"],
                     auxiliary_text=["dogs", None], auxiliary_images=[RED, None], answers=["yes", "Two"])  # fmt: skip


def test_processor_is_equal_when_saved_and_loaded(processor: MoAIProcessor, tmp_path: pathlib.Path) -> None:
    processor.auxiliary_map_scale, processor.max_length, processor.max_auxiliary_length = 1 / 255, 300, 90
    processor.max_image_pixels = 5_000
    expected = full_batch(processor)
    processor.save_pretrained(tmp_path / "once")
    once = MoAIProcessor.from_pretrained(tmp_path / "once")
    once.save_pretrained(tmp_path / "twice")
    for loaded in (once, AutoProcessor.from_pretrained(tmp_path / "twice")):
        assert type(loaded) is MoAIProcessor
        assert type(loaded.image_processor) is MoAIImageProcessor and type(loaded.tokenizer) is InternLM2Tokenizer
        assert loaded.to_dict() == processor.to_dict()
        assert loaded.chat_template == processor.chat_template
        batch = full_batch(loaded)
        assert set(batch) == set(expected)
        assert all(torch.equal(batch[key], expected[key]) for key in expected)
    files = [{f.name: f.read_bytes() for f in (tmp_path / n).iterdir() if f.is_file()} for n in ("once", "twice")]
    assert files[0]["processor_config.json"] == files[1]["processor_config.json"]


def test_custom_template_survives_when_saved(
    tokenizer: InternLM2Tokenizer, image_processor: MoAIImageProcessor, tmp_path: pathlib.Path
) -> None:
    template = (
        "{% for m in messages %}{% for p in m['content'] %}"
        "{{ '<image>' if p['type'] == 'image' else p['text'] }}{% endfor %}{% endfor %}"
    )
    MoAIProcessor(image_processor, tokenizer, template, num_image_tokens=PATCHES).save_pretrained(tmp_path)
    loaded = AutoProcessor.from_pretrained(tmp_path)
    assert loaded.chat_template == template
    assert loaded.build_prompts("dogs?") == ["<image>dogs?"]


def test_parts_load_alone_when_saved_with_the_processor(
    chatml_processor: MoAIProcessor, tmp_path: pathlib.Path
) -> None:
    chatml_processor.save_pretrained(tmp_path)
    assert type(AutoImageProcessor.from_pretrained(tmp_path)) is MoAIImageProcessor
    assert len(AutoTokenizer.from_pretrained(tmp_path)) == len(chatml_processor.tokenizer)
    loaded = AutoProcessor.from_pretrained(tmp_path)
    assert question_ids(loaded, questions="dogs?") == question_ids(chatml_processor, questions="dogs?")


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda p: pickle.loads(pickle.dumps(p))])
def test_processor_works_alike_when_copied_to_a_worker(processor: MoAIProcessor, duplicate) -> None:
    expected = full_batch(processor)
    batch = full_batch(duplicate(processor))
    assert all(torch.equal(batch[key], expected[key]) for key in expected)


def test_encoder_notices_when_tokens_are_added_to_the_tokenizer(processor: MoAIProcessor) -> None:
    processor.tokenizer = copy.deepcopy(processor.tokenizer)
    question_ids(processor, questions="a <new> b")
    processor.tokenizer.add_special_tokens({"extra_special_tokens": ["<new>"]}, replace_extra_special_tokens=False)
    new = processor.tokenizer.convert_tokens_to_ids("<new>")
    assert new not in question_ids(processor, questions="a <new> b")
    assert new in processor(text="a <new> b")["input_ids"][0]


def test_placeholder_expands_to_patches_when_transformers_asks(processor: MoAIProcessor) -> None:
    assert processor.replace_image_token({}, 0) == IMAGE_TOKEN * PATCHES

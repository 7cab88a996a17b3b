"""transformers' PP-OCR classes with few random weights; where text stands is told by a probability map made by hand."""

from types import SimpleNamespace

import numpy as np
import pytest
from ocr_builders import bundled_onnx, draw_page, draw_sign

from verbalizers import TextLines, build_verbalizer, parse_scene
from verbalizers.backends.ocr_transformers import WIDTH_STEP, cut_out_line

torch = pytest.importorskip("torch")
pytest.importorskip("cv2")
pytest.importorskip("torchvision")

ALPHABET = ["blank", *"abcdefghijklmnopqrstuvwxyz", " "]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    from transformers import (
        PPOCRV5ServerDetImageProcessor,
        PPOCRV6SmallDetConfig,
        PPOCRV6SmallDetForObjectDetection,
        PPOCRV6SmallRecConfig,
        PPOCRV6SmallRecForTextRecognition,
        PPOCRV6SmallRecImageProcessor,
    )

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("ppocr")
    stages = {"out_features": ["stage1", "stage2", "stage3", "stage4"], "out_indices": [1, 2, 3, 4]}
    backbone = {"model_type": "pp_lcnet_v4", "stem_type": "large", "stem_channels": [3, 8, 16], **stages}
    steps = [[3, 16, 16, 1, True]], [[3, 16, 24, 2, False]], [[3, 24, 32, 2, False]], [[3, 32, 48, 2, False]]
    detector = PPOCRV6SmallDetConfig(
        backbone_config={**backbone, "block_configs": list(steps)},
        layer_list_out_channels=[16, 24, 32, 48],
        neck_out_channels=16,
    )
    PPOCRV6SmallDetForObjectDetection(detector).save_pretrained(folder / "detection")
    PPOCRV5ServerDetImageProcessor().save_pretrained(folder / "detection")
    steps = (
        [[3, 16, 16, 1, True]], [[3, 16, 16, 1, False]], [[3, 16, 24, [2, 1], False]], [[3, 24, 32, [2, 1], False]],
    )  # fmt: skip
    recogniser = PPOCRV6SmallRecConfig(
        backbone_config={**backbone, "block_configs": list(steps)},
        hidden_size=32,
        num_attention_heads=4,
        depth=1,
        head_out_channels=len(ALPHABET),
    )
    model = PPOCRV6SmallRecForTextRecognition(recogniser)
    (bias,) = [parameter for parameter in model.parameters() if parameter.shape == (len(ALPHABET),)]
    bias.data[0] -= 10  # random weights alone would read a blank everywhere
    model.save_pretrained(folder / "recognition")
    PPOCRV6SmallRecImageProcessor(character_list=ALPHABET).save_pretrained(folder / "recognition")
    return {"checkpoint": folder / "detection", "recognition_checkpoint": folder / "recognition"}


class InkDetector(torch.nn.Module):
    """A detector that knows: the probability of text is how dark a pixel is. Its input is the real processor's."""

    device, dtype = torch.device("cpu"), torch.float32

    def forward(self, pixel_values):
        grey = (pixel_values * 0.226 + 0.449).mean(dim=1, keepdim=True)
        return SimpleNamespace(last_hidden_state=(1 - grey).clamp(0, 1))


@pytest.fixture(scope="module")
def reader(folders):
    """The real classes and processors, with the one detector whose answers are known."""
    reader = build_verbalizer("ocr", "transformers", device="cpu", threshold=0.0, **folders)
    reader.load().model = InkDetector()
    return reader


def bars(*boxes, shape=(200, 320)):
    """Black bars on white, uint8 `shape + (3,)`; boxes are x0, y0, x1, y1."""
    image = np.full((*shape, 3), 255, np.uint8)
    for x0, y0, x1, y1 in boxes:
        image[y0:y1, x0:x1] = 0
    return image


def test_detector_finds_the_bars_widened_when_probability_is_theirs(reader):
    wanted = [(20, 30, 120, 50), (150, 100, 300, 130)]
    quads = reader._predict_batch(reader.load(), [bars(*wanted)])[0]
    assert quads.dtype == np.float32 and quads.shape == (2, 4, 2)
    for (x0, y0, x1, y1), quad in zip(wanted, sorted(quads.tolist(), key=lambda q: q[0][1]), strict=True):
        width, height = x1 - x0, y1 - y0
        margin = width * height * 1.5 / (2 * (width + height))  # DB's offset: area x ratio / outline
        left, top, right, bottom = x0 - margin, y0 - margin, x1 + margin, y1 + margin
        expected = [[left, top], [right, top], [right, bottom], [left, bottom]]
        np.testing.assert_allclose(quad, expected, atol=3)


def test_detector_finds_where_text_stands_when_image_is_resized(reader):
    large = np.kron(bars((20, 30, 120, 50)), np.ones((8, 8, 1), np.uint8))  # 1600 x 2560: seen at 960 pixels
    quad = reader._predict_batch(reader.load(), [large])[0][0]
    small = reader._predict_batch(reader.load(), [bars((20, 30, 120, 50))])[0][0]
    np.testing.assert_allclose(quad / 8, small, atol=4)


def test_reader_answers_alike_when_alone_and_in_a_batch(reader):
    pages = [
        bars((20, 30, 120, 50), (150, 100, 300, 130)),
        bars(shape=(50, 50)),
        bars((10, 10, 60, 150), shape=(200, 320)),
        bars((5, 5, 300, 15), shape=(40, 400)),
    ]
    together = reader.predict(pages)
    assert [len(page) for page in together] == [len(reader.predict([page])[0]) for page in pages]
    assert len(together[1]) == 0 and sum(len(page) for page in together) >= 3
    for page, found in zip(pages, together, strict=True):
        alone = reader.predict([page])[0]
        assert alone.texts == found.texts
        np.testing.assert_array_equal(alone.quads, found.quads)
        np.testing.assert_allclose(alone.confidence, found.confidence, atol=1e-5)
    for found in together:
        assert set("".join(found.texts)) <= set(ALPHABET[1:])


def test_reader_shares_batches_among_images_when_lines_are_of_one_width(reader):
    seen = []
    handle = reader.load().recogniser.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].shape))
    try:
        reader.predict([bars((20, 30, 120, 50)), bars((60, 90, 160, 110)), bars((5, 5, 300, 15), shape=(40, 400))])
    finally:
        handle.remove()
    assert sorted(shape[0] for shape in seen) == [1, 2]
    assert all(shape[3] % WIDTH_STEP == 0 and shape[2] == 48 for shape in seen)


def test_reader_runs_with_its_own_detector_when_weights_are_random(folders):
    reader = build_verbalizer("ocr", "transformers", device="cpu", threshold=0.0, box_threshold=0.0, **folders)
    scene = parse_scene([draw_sign(), np.zeros((3, 900, 3), np.uint8)], [reader])
    assert all(isinstance(found.text_lines, TextLines) and not found.failures for found in scene)
    assert len(reader.predict([])) == 0


class OnnxModel(torch.nn.Module):
    """One of rapidocr's models, which know letters, in the place of a transformers model with random weights."""

    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self, step):
        super().__init__()
        self.session = pytest.importorskip("onnxruntime").InferenceSession(str(bundled_onnx(step)))

    def forward(self, pixel_values):
        (entry,) = self.session.get_inputs()
        return SimpleNamespace(
            last_hidden_state=torch.from_numpy(self.session.run(None, {entry.name: pixel_values.numpy()})[0])
        )


@pytest.fixture(scope="module")
def knowing_reader(folders):
    from transformers import PPOCRV6SmallRecImageProcessor

    reader = build_verbalizer("ocr", "transformers", device="cpu", **folders)
    loaded = reader.load()
    loaded.model, loaded.recogniser = OnnxModel("det"), OnnxModel("rec")
    letters = loaded.recogniser.session.get_modelmeta().custom_metadata_map["character"].split("\n")
    loaded.recognition_processor = PPOCRV6SmallRecImageProcessor(character_list=["blank", *letters, " "])
    return reader


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
@pytest.mark.parametrize("num_columns", [1, 2])
def test_reader_reads_in_order_when_page_is_turned(knowing_reader, num_columns, degrees):
    page, lines = draw_page(num_columns, degrees)
    blank, found = knowing_reader.predict([np.full((50, 50, 3), 255, np.uint8), page])
    assert len(blank) == 0
    assert [text.replace(" ", "") for text in found.texts] == [text.replace(" ", "") for text in lines]


def test_cut_out_line_is_straight_when_quad_is_turned():
    rng = np.random.default_rng(0)
    strip = np.kron(rng.integers(0, 255, (2, 8, 3)), np.ones((12, 12, 1))).astype(np.uint8)  # (24, 96, 3)
    page = np.zeros((200, 200, 3), np.uint8)
    page[50:74, 40:136] = strip
    upright = cut_out_line(page, np.array([[40, 50], [136, 50], [136, 74], [40, 74]]))
    np.testing.assert_allclose(upright.astype(int), strip, atol=1)
    turned = np.ascontiguousarray(np.rot90(page, -1))  # the strip now runs from top to bottom
    x0, x1 = 200 - 74, 200 - 50
    fallen = cut_out_line(turned, np.array([[x0, 40], [x1, 40], [x1, 136], [x0, 136]]))
    np.testing.assert_allclose(fallen.astype(int), strip, atol=1)
    assert cut_out_line(page, np.zeros((4, 2))).shape == (1, 1, 3)


def test_reader_says_what_is_wrong_when_folders_do_not_fit(folders, tmp_path):
    from transformers import PPOCRV6SmallRecImageProcessor

    sign = draw_sign()
    swapped = {"checkpoint": folders["recognition_checkpoint"], "recognition_checkpoint": folders["checkpoint"]}
    with pytest.raises(ValueError, match="PPOCRV6SmallRec"):
        build_verbalizer("ocr", "transformers", **swapped).predict([sign])
    recognition = tmp_path / "recognition"
    recognition.mkdir()
    for path in folders["recognition_checkpoint"].iterdir():
        (recognition / path.name).write_bytes(path.read_bytes())
    PPOCRV6SmallRecImageProcessor(character_list=ALPHABET[:-1]).save_pretrained(recognition)
    reader = build_verbalizer(
        "ocr", "transformers", checkpoint=folders["checkpoint"], recognition_checkpoint=recognition
    )
    with pytest.raises(ValueError, match=r"28 letters.*27"):
        reader.predict([sign])
    with pytest.raises(ValueError, match="nowhere"):
        build_verbalizer("ocr", "transformers", checkpoint="nowhere", recognition_checkpoint="x").predict([sign])


def test_fingerprint_counts_both_checkpoints_when_one_changes(folders):
    same = {"device": "cuda", "recognition_batch_size": 2, **folders}
    reader = build_verbalizer("ocr", "transformers", **folders)
    assert reader.fingerprint() == build_verbalizer("ocr", "transformers", **same).fingerprint()
    other = {"checkpoint": folders["checkpoint"], "recognition_checkpoint": folders["checkpoint"]}
    assert reader.fingerprint() != build_verbalizer("ocr", "transformers", **other).fingerprint()

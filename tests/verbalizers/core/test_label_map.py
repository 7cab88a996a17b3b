"""Label maps: one finding class, one packing, every door."""

import base64
import io
import json
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image

from verbalizers import LabelMap, Scene, Segments, Verbalizer, draw_scene, parse_scene, verbalize_scene
from verbalizers.core.map_packing import pack_map, unpack_map

RNG = np.random.default_rng(0)
SIZE = (5, 7)
MAPS = {
    "8 bits": RNG.integers(0, 256, SIZE, dtype=np.uint8),
    "16 bits": RNG.integers(0, 65536, SIZE, dtype=np.uint16),
    "small 16 bits": RNG.integers(0, 9, SIZE, dtype=np.uint16),
    "few ids": RNG.integers(0, 9, SIZE, dtype=np.int32),
    "ids of 16 bits": RNG.integers(0, 65536, SIZE, dtype=np.int32),
    "ids": RNG.integers(-(2**31), 2**31, SIZE, dtype=np.int32),
    "measures": RNG.normal(0, 1e9, SIZE).astype(np.float32),
    "tiny measures": np.full(SIZE, np.float32(-1e-44)),
    "colours": RNG.integers(0, 256, (*SIZE, 3), dtype=np.uint8),
    "normals of 16 bits": RNG.integers(0, 65536, (*SIZE, 3), dtype=np.uint16),
    "vectors": RNG.normal(size=(*SIZE, 2)).astype(np.float32),
    "one pixel": np.zeros((1, 1, 1), np.int32),
}


@pytest.mark.parametrize("name", MAPS)
def test_map_is_the_same_bit_by_bit_when_packed_and_unpacked(name):
    values = MAPS[name]
    unpacked = unpack_map(pack_map(values), values.shape, values.dtype.name)
    assert unpacked.dtype == values.dtype and unpacked.tobytes() == values.tobytes()


@pytest.mark.parametrize("name", MAPS)
def test_map_is_the_same_when_its_scene_goes_through_json(name):
    found = LabelMap(MAPS[name], {3: "dog"} if name == "ids" else {})
    scene = Scene(SIZE, findings={"thing": found})
    again = Scene.from_dict(json.loads(json.dumps(scene.to_dict())))
    assert again == scene and again.findings["thing"].names == found.names
    assert again.findings["thing"].values.dtype == found.values.dtype
    assert not again.findings["thing"].values.flags.writeable
    assert verbalize_scene(scene) == ""  # a map without words of its kind is not said


def test_maps_differ_when_their_dtypes_do():
    assert LabelMap(np.ones(SIZE, np.uint8)) != LabelMap(np.ones(SIZE, np.uint16))
    assert LabelMap(np.ones(SIZE, np.int32)) != LabelMap(np.ones(SIZE, np.int32), {1: "dog"})


@pytest.mark.parametrize(
    ("values", "names", "message"),
    [
        (np.zeros(SIZE), {}, r"uint8, uint16, int32, float32 of \(h, w\).*got float64 \(5, 7\)"),
        (np.zeros(SIZE, bool), {}, "got bool"),
        (np.zeros(5, np.uint8), {}, r"got uint8 \(5,\)"),
        (np.zeros((0, 7), np.uint8), {}, r"got uint8 \(0, 7\)"),
        (np.zeros((1, 2, 3, 4), np.uint8), {}, r"\(1, 2, 3, 4\)"),
        (np.array([[np.nan]], np.float32), {}, "finite"),
        ([["a"]], {}, "<U1"),
        (np.zeros(SIZE, np.uint8), {1: "dog"}, r"`names` must come with an int32 \(h, w\) map"),
        (np.zeros((*SIZE, 2), np.int32), {1: "dog"}, r"`names` must come with an int32 \(h, w\) map"),
        (np.zeros(SIZE, np.int32), {"1": "dog"}, "`names` must hold integers"),
        (np.zeros(SIZE, np.int32), {2**40: "dog"}, "`names` must lie in"),
        (np.zeros(SIZE, np.int32), {1: 2}, "`names` must hold strings"),
        (np.zeros(SIZE, np.int32), ["dog"], "`names` must be a mapping"),
    ],
)
def test_map_is_refused_by_name_when_values_are_no_map(values, names, message):
    with pytest.raises(ValueError, match=message):
        LabelMap(values, names)


def test_scene_refuses_by_kind_when_a_map_is_larger_than_its_image_or_bare():
    assert Scene(SIZE, findings={"edge": LabelMap(np.zeros((5, 1), np.uint8))})
    for shape in ((6, 7), (5, 8), (7, 5)):
        with pytest.raises(ValueError, match=r"findings\['edge'\].*\(5, 7\)"):
            Scene(SIZE, findings={"edge": LabelMap(np.zeros(shape, np.uint8))})
    with pytest.raises(ValueError, match=r"findings\['edge'\].*LabelMap\(array\)"):
        Scene(SIZE, findings={"edge": np.zeros(SIZE)})


@pytest.mark.parametrize(
    "change",
    [
        {"png": None},
        {"png": "AAAA"},
        {"png": "not base64!"},
        {"png": base64.b64encode(pack_map(MAPS["16 bits"])).decode()},
        {"shape": [7, 5]},
        {"shape": [5, 7, 2]},
        {"shape": [5]},
        {"shape": [0, 7]},
        {"shape": [-5, -7]},
        {"shape": [5.0, 7]},
        {"shape": [True, 7]},
        {"shape": "57"},
        {"dtype": "float64"},
        {"dtype": "object"},
        {"dtype": ["uint8"]},
        {"dtype": "float32"},
        {"names": ["dog"]},
        {"names": {"one": "dog"}},
        {"names": {"1": "dog"}},  # of a map that holds no numbers
        {"colour": 1},
    ],
)
def test_map_is_refused_by_kind_when_json_is_not_as_it_was_written(change):
    data = LabelMap(MAPS["8 bits"]).to_dict()
    scene = {"image_size_hw": list(SIZE), "findings": {"edge": data | change}}
    with pytest.raises(ValueError, match=r"findings\['edge'\]"):
        Scene.from_dict(json.loads(json.dumps(scene)))
    with pytest.raises(ValueError, match="label map"):
        LabelMap.from_dict({name: value for name, value in data.items() if name != "shape"})


def claim(height, width, mode="L"):
    """A short PNG whose header claims any size."""
    stream = io.BytesIO()
    Image.new(mode, (1, 1)).save(stream, format="PNG")
    data = bytearray(stream.getvalue())
    data[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    data[29:33] = zlib.crc32(bytes(data[12:29])).to_bytes(4, "big")
    return bytes(data)


@pytest.mark.parametrize(
    ("side", "dtype", "mode"), [(13_000, "uint8", "L"), (13_000, "float32", "RGBA"), (10**5, "uint8", "L")]
)
def test_map_of_a_huge_claimed_size_is_refused_before_memory_is_taken(side, dtype, mode):
    png = base64.b64encode(claim(side, side, mode)).decode()
    data = {"structure": "label_map", "dtype": dtype, "shape": [side, side], "png": png}
    scene = {"image_size_hw": [side, side], "findings": {"edge": data}}
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"findings\['edge'\]"):
            Scene.from_dict(scene)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("side", "lengths"),
    [(10**5, [10**10]), (100, [2**63 - 1, 2**63 - 1, 2 + 10_000]), (100, [5_000, 4_999]), (100, [10_001, -1])],
)
def test_segments_of_a_huge_claimed_size_are_refused_before_memory_is_taken(side, lengths):
    runs = {"image_size_hw": [side, side], "run_ids": [1] * len(lengths), "run_lengths": lengths}
    data = {"panoptic_map": runs, "segment_ids": [1], "class_names": ["sky"], "confidence": [1.0]}
    with pytest.raises(ValueError, match="map"):
        Segments.from_dict(data)


def test_shares_are_of_the_range_when_values_are_unsigned():
    assert LabelMap(np.array([[0, 255]], np.uint8)).read_shares().tolist() == [[0, 1]]
    assert LabelMap(np.array([[0, 65535]], np.uint16)).read_shares().tolist() == [[0, 1]]
    assert LabelMap(np.array([[0, 0.5]], np.float32)).read_shares().tolist() == [[0, 0.5]]
    assert LabelMap(np.zeros((2, 3, 3), np.uint8)).read_shares(3).shape == (2, 3, 3)
    for values in (np.array([[2.5]], np.float32), np.zeros(SIZE, np.int32), np.zeros((2, 2, 3), np.uint8)):
        with pytest.raises(ValueError, match=r"map \(h, w\) of shares"):
            LabelMap(values).read_shares()


def test_maps_are_drawn_side_by_side_when_no_kind_draws_them_itself():
    values = np.zeros((40, 80), np.uint8)
    values[:, 40:] = 255
    findings = {
        "a": LabelMap(values),
        "b": LabelMap(np.where(values > 0, 2, 1).astype(np.int32)),
        "c": LabelMap(np.stack([values, 0 * values, 255 - values], axis=2)),
        "d": LabelMap(values / np.float32(7)),
        "e": LabelMap(np.zeros((1, 1, 5), np.float32)),
    }
    image = Image.new("RGB", (80, 40), (10, 200, 10))
    drawn = np.asarray(draw_scene(Scene((40, 80), findings=findings), image)).astype(int)
    is_changed = (drawn != np.array([10, 200, 10])).any(axis=2)
    assert is_changed[30:].all() and not is_changed[:20].any()
    assert is_changed[20:30, 60:].all() and not is_changed[20:30, :60].any()  # the fifth stands above the first
    middle = drawn[34]
    assert middle[76].sum() > middle[62].sum()  # bright where the value is high
    assert len(np.unique(middle[42:58], axis=0)) == 2  # two things
    assert tuple(middle[36]) == (255, 0, 0) and tuple(middle[23]) == (0, 0, 255)


class Bad(Verbalizer):
    """Answers with a map of another size."""

    kind, backend = "edge", "bad"

    def predict(self, images):
        return [LabelMap(np.zeros((99, 99), np.uint8)) for _ in images]


def test_map_of_another_size_is_a_failure_when_a_verbalizer_gives_it():
    scene = parse_scene([np.zeros((5, 7, 3), np.uint8)], [Bad()])[0]
    assert "99, 99" in scene.failures["edge"] and not scene.findings

"""Where models live: loading once, visits to a small device, half precision of the parts that place boxes."""

import threading

import numpy as np
import pytest
import torch
from verbalizer_builders import save_mask2former, save_owlv2

from verbalizers import build_verbalizer, parse_scene

IMAGE = np.random.default_rng(0).integers(0, 256, (48, 60, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def mask2former(tmp_path_factory):
    return save_mask2former(tmp_path_factory.mktemp("mask2former"))


@pytest.fixture(scope="module")
def owlv2(tmp_path_factory):
    return save_owlv2(tmp_path_factory.mktemp("owlv2"))


def build_segmenter(folder, **settings):
    loose = {"threshold": 0.0, "mask_threshold": 0.0, "overlap_mask_area_threshold": 0.0, "device": "cpu"}
    return build_verbalizer("segmentation", checkpoint=folder, **{**loose, **settings})


def build_detector(folder, **settings):
    settings = {"vocabulary": ("cat", "dog"), "threshold": 0.0, "device": "cpu", **settings}
    return build_verbalizer("detection", "owlv2", checkpoint=folder, **settings)


def record_journey(verbalizer, events):
    """Note every move and every look of the real model; both still happen."""
    model = verbalizer.load().model
    move = model.to

    def moving(*args, **kwargs):
        events.append(f"to {args[0]}")
        return move(*args, **kwargs)

    model.to = moving
    model.register_forward_pre_hook(lambda *_: events.append("look"))
    return model


def test_offload_visits_the_device_only_to_look_when_asked(mask2former):
    visitor, resident = build_segmenter(mask2former, offload=True), build_segmenter(mask2former)
    events = []
    record_journey(visitor, events)
    assert visitor.predict([IMAGE]) == resident.predict([IMAGE])
    assert events == ["to cpu", "look", "to cpu"]
    visitor.predict([IMAGE])
    assert events == ["to cpu", "look", "to cpu"] * 2

    stays = []
    record_journey(resident, stays)
    resident.predict([IMAGE])
    assert stays == ["look"]


def test_offload_brings_the_model_home_when_the_look_fails(mask2former):
    visitor = build_segmenter(mask2former, offload=True)
    events = []
    model = record_journey(visitor, events)

    def fail(*args):
        raise RuntimeError("out of memory")

    handle = model.register_forward_pre_hook(fail)
    scene = parse_scene([IMAGE], [visitor])[0]
    assert "out of memory" in scene.failures["segmentation"]
    assert events[0] == events[-1] == "to cpu"
    handle.remove()
    assert parse_scene([IMAGE], [visitor], timeout_s=60)[0].failures == {}  # the device is free again


def test_offload_lets_one_model_at_a_time_on_a_device_when_run_side_by_side(mask2former, owlv2):
    segmenter, detector = build_segmenter(mask2former, offload=True), build_detector(owlv2, offload=True)
    detector.embed_vocabulary()
    present, most = [0], [0]
    counting = threading.Lock()

    def arrive(*_):
        with counting:
            present[0] += 1
            most[0] = max(most[0], present[0])

    def leave(*_):
        with counting:
            present[0] -= 1

    for module in (segmenter.load().model, detector.load().model.box_head):
        module.register_forward_pre_hook(arrive)
        module.register_forward_hook(leave)
    for scene in parse_scene([IMAGE] * 6, [segmenter, detector]):
        assert scene.failures == {}
    assert most == [1] and present == [0]


def test_load_happens_once_when_threads_arrive_together(mask2former):
    segmenter = build_segmenter(mask2former)
    models = []
    threads = [threading.Thread(target=lambda: models.append(segmenter.load().model)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(model) for model in models}) == 1
    segmenter.unload()
    assert segmenter.load().model is not models[0]


def test_fingerprint_ignores_where_the_model_lives_when_offloaded(mask2former, owlv2):
    for build, folder in ((build_segmenter, mask2former), (build_detector, owlv2)):
        plain = build(folder).fingerprint()
        assert build(folder, offload=True, device="cuda:1", batch_size=2).fingerprint() == plain
        assert build(folder, dtype="bfloat16").fingerprint() != plain


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_detector_places_boxes_in_float32_when_the_rest_is_half(owlv2, dtype):
    """bfloat16 knows 128 places between the middle and the border of an image; boxes must not lie on those alone."""
    wide = np.repeat(np.repeat(IMAGE, 5, axis=0), 5, axis=1)  # 240 x 300
    detector = build_detector(owlv2, dtype=dtype, nms_threshold=None, max_detections=1000)
    boxes = detector.predict([wide])[0].boxes_xyxy
    assert str(next(detector.load().model.owlv2.parameters()).dtype) == f"torch.{dtype}"
    centres = torch.from_numpy((boxes[:, 0] + boxes[:, 2]) / 2 / 300)  # the longer side is the unit of both
    on_grid = (centres - centres.to(getattr(torch, dtype)).float()).abs() < 1e-6
    assert on_grid.float().mean() < 0.5
    assert detector.load().model.box_bias.dtype == torch.float32


@pytest.mark.gpu
def test_offload_leaves_the_gpu_empty_when_on_cuda(mask2former):
    segmenter = build_segmenter(mask2former, device="cuda", dtype="float32", offload=True)
    resident = build_segmenter(mask2former, device="cuda", dtype="float32")
    expected = resident.predict([IMAGE])[0]
    resident.unload()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    assert segmenter.predict([IMAGE])[0].class_names == expected.class_names
    assert next(segmenter.load().model.parameters()).device.type == "cpu"
    assert torch.cuda.memory_allocated() == before


@pytest.mark.gpu
def test_verbalizers_share_a_stream_when_on_one_gpu(mask2former):
    from verbalizers.core.checkpoints import on_device_stream, resolve_device

    seen = []
    segmenter = build_segmenter(mask2former, device="cuda")
    segmenter.load().model.register_forward_pre_hook(lambda *_: seen.append(torch.cuda.current_stream()))
    segmenter.predict([IMAGE])
    with on_device_stream(resolve_device("cuda")):
        assert seen == [torch.cuda.current_stream()]
    assert seen[0] != torch.cuda.default_stream()

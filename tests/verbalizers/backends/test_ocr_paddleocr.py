"""paddleocr 3.x on real models; what needs the package is skipped where it is not installed."""

import threading
from pathlib import Path

import numpy as np
import pytest
from ocr_builders import SIGN_TEXTS, draw_sign, write_paddle_folders

from verbalizers import build_verbalizer, parse_scene
from verbalizers.backends.ocr_paddleocr import read_model_name


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    pytest.importorskip("paddleocr", reason='paddleocr is not installed: pip install "moai-vlm[paddleocr]"')
    return write_paddle_folders(tmp_path_factory.mktemp("paddle"))


@pytest.fixture(scope="module")
def reader(folders):
    return build_verbalizer("ocr", "paddleocr", engine="onnxruntime", **folders)


def test_paddleocr_reads_in_order_when_images_come_in_a_batch(reader):
    sign = draw_sign()
    blank = np.full((40, 40, 3), 127, np.uint8)
    slim = np.full((3, 900, 3), 127, np.uint8)
    found = reader.predict([sign, blank, np.ascontiguousarray(sign[:100]), slim])
    assert [lines.texts for lines in found] == [SIGN_TEXTS, (), SIGN_TEXTS[:1], ()]
    assert (found[0].confidence >= 0.85).all()
    left, top = found[0].quads[0].min(axis=0)
    assert abs(left - 20) < 12 and abs(top - 35) < 15
    assert reader.predict([sign]) == found[:1]


def test_paddleocr_answers_alike_when_called_from_threads(reader):
    sign, answers = draw_sign(), []
    threads = [threading.Thread(target=lambda: answers.append(reader.predict([sign])[0].texts)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [SIGN_TEXTS] * 3


def test_paddleocr_loads_again_when_unloaded(folders):
    reader = build_verbalizer("ocr", "paddleocr", engine="onnxruntime", threshold=1.0, **folders)
    assert len(reader.predict([draw_sign()])[0]) == 0  # nothing is that sure
    reader.unload()
    assert len(reader.predict([draw_sign()])[0]) == 0


def test_paddleocr_says_what_to_pass_when_no_folder_is_given(tmp_path):
    sign = draw_sign()
    with pytest.raises(ValueError, match="text_detection_model_dir.*fetch its own models.*text_recognition_model_dir="):
        build_verbalizer("ocr", "paddleocr").predict([sign])
    missing = build_verbalizer("ocr", "paddleocr", text_detection_model_dir=str(tmp_path / "nowhere"))
    scene = parse_scene([sign], [missing])[0]
    assert "nowhere" in scene.failures["ocr"]


def test_paddleocr_names_the_package_when_it_is_missing(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "paddleocr", None)
    names = {"text_detection_model_name": "a", "text_recognition_model_name": "b"}
    folders = {"text_detection_model_dir": str(tmp_path), "text_recognition_model_dir": str(tmp_path)}
    with pytest.raises(ImportError, match=r'pip install "moai-vlm\[paddleocr\]"'):
        build_verbalizer("ocr", "paddleocr", **names, **folders).predict([draw_sign()])


def test_model_name_is_read_when_the_folder_tells_it(tmp_path):
    pytest.importorskip("yaml")
    (tmp_path / "inference.yml").write_text("Global:\n  model_name: PP-OCRv5_mobile_det\n")
    assert read_model_name(tmp_path) == "PP-OCRv5_mobile_det"
    (tmp_path / "inference.yml").write_text("!!python/object/apply:os.system ['true']\n")
    with pytest.raises(ValueError, match="model_name"):
        read_model_name(tmp_path)
    with pytest.raises(ValueError, match="exported inference model"):
        read_model_name(tmp_path / "nowhere")


def test_fingerprint_follows_the_models_when_folders_move(tmp_path):
    prints = []
    for name, weights in (("a", b"1"), ("b", b"1"), ("c", b"2")):
        (tmp_path / name).mkdir()
        Path(tmp_path, name, "inference.pdiparams").write_bytes(weights)
        reader = build_verbalizer(
            "ocr", "paddleocr", text_detection_model_dir=str(tmp_path / name), cpu_threads=len(prints) + 1
        )
        prints.append(reader.fingerprint())
    assert prints[0] == prints[1] != prints[2]


@pytest.mark.parametrize("settings", [{"threshold": 2}, {"batch_size": 0}, {"cpu_threads": 0}])
def test_paddleocr_refuses_settings_when_they_make_no_sense(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        build_verbalizer("ocr", "paddleocr", **settings)

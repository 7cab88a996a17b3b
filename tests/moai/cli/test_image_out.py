"""Where drawn images may be saved."""

import pytest
from PIL import Image

from moai.cli.overlays import check_image_out


def test_inputs_are_not_replaced_by_further_images_of_an_answer(tmp_path):
    for name in ("b-2.png", "b-x.png", "c-2.png"):
        Image.new("RGB", (2, 2)).save(tmp_path / name)
    with pytest.raises(ValueError, match=r"b\.png.* might replace the input .*b-2\.png"):
        check_image_out(tmp_path / "b.png", [tmp_path / "c-2.png", str(tmp_path / "b-2.png")])
    check_image_out(tmp_path / "b.png", [tmp_path / "b-x.png", tmp_path / "c-2.png"])
    check_image_out(tmp_path / "new" / "b.png", [tmp_path / "b-2.png"])

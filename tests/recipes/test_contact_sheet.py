"""The documentation's sheet of example scenes."""

import sys

import numpy as np
from PIL import Image

from recipes.contact_sheet import main


def test_contact_sheet_is_written_when_asked(tmp_path, monkeypatch):
    path = tmp_path / "sheet.png"
    monkeypatch.setattr(sys, "argv", ["contact_sheet", str(path), "--images", "4"])
    main()
    with Image.open(path) as sheet:
        assert sheet.width > 1200
        assert np.asarray(sheet.convert("RGB")).std() > 30

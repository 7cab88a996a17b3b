"""Modules under the names they had."""

import importlib
import subprocess
import sys

import pytest

from moai.moved_modules import MOVED_MODULES


@pytest.mark.filterwarnings("ignore:.*is now:DeprecationWarning")
@pytest.mark.parametrize("old", MOVED_MODULES)
def test_module_is_the_same_object_when_imported_under_its_old_name(old: str) -> None:
    present = MOVED_MODULES[old]
    module = importlib.import_module(present)
    assert importlib.import_module(old) is module
    assert module.__name__ == module.__spec__.name == present
    assert module.__package__ == module.__spec__.parent


def test_old_name_says_the_new_one_when_imported() -> None:
    script = "from moai.data.scenes import Scenes; from moai.scenes.scenes import Scenes as same; assert Scenes is same"
    result = subprocess.run(
        [sys.executable, "-W", "default", "-c", script], capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode == 0, result.stderr
    assert "`moai.data.scenes` is now `moai.scenes.scenes`" in result.stderr


def test_unknown_module_is_still_missing_when_imported() -> None:
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("moai.data.scene_of_nobody")

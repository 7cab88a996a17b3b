"""Modules of verbalizers under the names they had."""

import importlib
import subprocess
import sys

import pytest

import verbalizers
from verbalizers.moved_modules import MOVED_MODULES


@pytest.mark.filterwarnings("ignore:.*is now:DeprecationWarning")
@pytest.mark.parametrize("old", MOVED_MODULES)
def test_module_is_the_same_object_when_imported_under_its_old_name(old: str) -> None:
    present = MOVED_MODULES[old]
    module = importlib.import_module(present)
    assert importlib.import_module(old) is module
    assert module.__name__ == module.__spec__.name == present
    assert module.__package__ == module.__spec__.parent
    assert getattr(verbalizers, old.partition(".")[2]) is module


@pytest.mark.parametrize(
    "script",
    [
        "from verbalizers.base import Verbalizer; import verbalizers; assert Verbalizer is verbalizers.Verbalizer",
        "import verbalizers; assert verbalizers.base.Verbalizer is verbalizers.Verbalizer",
    ],
)
def test_old_name_says_the_new_one_when_used(script: str) -> None:
    command = [sys.executable, "-W", "default", "-c", script]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
    assert "`verbalizers.base` is now `verbalizers.core.base`" in result.stderr


def test_unknown_names_are_still_missing_when_asked_for() -> None:
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("verbalizers.nobody")
    with pytest.raises(AttributeError, match="module 'verbalizers' has no attribute 'nobody'"):
        _ = verbalizers.nobody

"""Auto classes know MoAI after `import moai`, in a fresh interpreter too."""

import json
import subprocess
import sys

import pytest
from builders import build_tiny_model
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

from moai import MoAIConfig, MoAIForConditionalGeneration, MoAIModel, MoAIProcessor
from moai.registration import register_auto_classes


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory):
    path = tmp_path_factory.mktemp("model")
    build_tiny_model().save_pretrained(path)
    return path


@pytest.mark.parametrize(
    ("auto", "expected"),
    [
        (AutoConfig, MoAIConfig),
        (AutoModel, MoAIModel),
        (AutoModelForImageTextToText, MoAIForConditionalGeneration),
    ],
)
def test_auto_class_returns_ours_when_moai_is_imported(folder, auto: type, expected: type) -> None:
    assert type(auto.from_pretrained(folder)) is expected


def test_base_model_holds_the_same_weights_when_loaded_through_auto_model(folder) -> None:
    whole, base = MoAIForConditionalGeneration.from_pretrained(folder), AutoModel.from_pretrained(folder)
    expected = whole.model.state_dict()
    assert base.state_dict().keys() == expected.keys()
    assert all((tensor == expected[name]).all() for name, tensor in base.state_dict().items())


def test_model_is_built_from_its_configuration_when_no_weights_are_given(folder) -> None:
    config = AutoConfig.from_pretrained(folder)
    assert type(AutoModelForImageTextToText.from_config(config)) is MoAIForConditionalGeneration
    assert type(AutoModel.from_config(config)) is MoAIModel


def test_registration_is_harmless_when_repeated() -> None:
    register_auto_classes()
    register_auto_classes()
    assert PROCESSOR_MAPPING[MoAIConfig] is MoAIProcessor
    assert AutoProcessor is not None


def test_import_is_all_it_takes_when_the_interpreter_is_fresh(folder, repo_root) -> None:
    script = (
        "import json, sys, moai\n"
        "from transformers import AutoModelForImageTextToText\n"
        f"model = AutoModelForImageTextToText.from_pretrained({str(folder)!r})\n"
        "print(json.dumps([type(model).__name__, model.config.model_type]))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], cwd=repo_root, capture_output=True, text=True, timeout=300, check=False
    )
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout.strip().splitlines()[-1]) == ["MoAIForConditionalGeneration", "moai"]

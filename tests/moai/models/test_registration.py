"""Auto classes know MoAI after `import moai`, in a fresh interpreter too."""

import pickle
import sys
from pathlib import Path

import pytest
from builders import build_tiny_model
from fresh_processes import run_fresh
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

from moai import MoAIConfig, MoAIProcessor
from moai.models.registry import register_auto_classes


def test_registration_is_harmless_when_repeated() -> None:
    finders = len(sys.meta_path)
    register_auto_classes()
    register_auto_classes()
    assert PROCESSOR_MAPPING[MoAIConfig] is MoAIProcessor
    assert len(sys.meta_path) == finders


AUTO_CLASSES = {
    "AutoConfig": "MoAIConfig",
    "AutoTokenizer": "InternLM2Tokenizer",
    "AutoImageProcessor": "MoAIImageProcessor",
    "AutoProcessor": "MoAIProcessor",
    "AutoModel": "MoAIModel",
    "AutoModelForImageTextToText": "MoAIForConditionalGeneration",
}
CHECK_ALL = f"""
import transformers
loaded = {{name: type(getattr(transformers, name).from_pretrained(folder)).__name__ for name in {list(AUTO_CLASSES)}}}
assert loaded == {AUTO_CLASSES}, loaded
"""


def _run(script: str, repo_root: Path) -> None:
    """Run a script in a fresh interpreter, in which ``folder`` names the bundled checkpoint."""
    run_fresh("folder = 'checkpoints/moai-nano'\n" + script, repo_root)


ORDERS = [
    "import moai, transformers",
    "import transformers; transformers.AutoProcessor; transformers.AutoModel; import moai",
    "import moai.models.moai.modeling_moai, transformers",
    "import moai.models.moai.processing_moai, transformers",
    "import moai.models.emu.processing_emu, transformers",
    "import moai, transformers; transformers.AutoProcessor.from_pretrained(folder)",
    # These take or import Auto classes before they have come to their own end.
    "import moai, transformers.modeling_layers",
    "import moai; from transformers import CLIPImageProcessorPil",
    "import moai, transformers.pipelines",
]


@pytest.mark.slow
def test_auto_classes_know_moai_when_imports_come_in_any_order(repo_root: Path) -> None:
    for first in ORDERS:
        _run(first + CHECK_ALL, repo_root)


def test_configuration_is_known_without_the_model_when_only_it_is_asked_for(repo_root: Path) -> None:
    _run(
        "import sys, moai\n"
        "from transformers import AutoConfig\n"
        "config = AutoConfig.from_pretrained(folder)\n"
        "assert type(config).__name__ == 'MoAIConfig' and isinstance(config, moai.MoAIConfig)\n"
        "assert 'moai.models.moai.modeling_moai' not in sys.modules\n"
        "assert 'moai.models.moai.processing_moai' not in sys.modules\n",
        repo_root,
    )


@pytest.mark.slow
def test_pickled_configuration_builds_its_model_when_nothing_else_was_imported(tmp_path: Path, repo_root: Path) -> None:
    (tmp_path / "config.pickle").write_bytes(pickle.dumps(build_tiny_model().config))
    _run(
        f"import pickle\nconfig = pickle.load(open({str(tmp_path / 'config.pickle')!r}, 'rb'))\n"
        "from transformers import AutoModel\n"
        "assert type(AutoModel.from_config(config)).__module__ == 'moai.models.moai.modeling_moai'\n",
        repo_root,
    )


def test_module_of_auto_class_is_an_ordinary_one_when_its_class_was_taken(repo_root: Path) -> None:
    _run(
        "import inspect, sys, types, moai, transformers.models.auto.configuration_auto as module\n"
        "assert 'class AutoConfig' in inspect.getsource(module)\n"
        "assert type(module.__loader__).__module__ == '_frozen_importlib_external'\n"
        "assert module.__loader__ is module.__spec__.loader\n"
        "assert 'moai.models.moai.configuration_moai' not in sys.modules\n"
        "assert 'moai' in module.CONFIG_MAPPING and type(module) is types.ModuleType\n",
        repo_root,
    )


@pytest.mark.slow
def test_image_text_to_text_pipeline_finds_the_model_when_only_moai_was_imported(repo_root: Path) -> None:
    _run(
        "import moai\n"
        "from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as names\n"
        "from transformers import pipeline\n"
        "assert names['moai'] == 'MoAIForConditionalGeneration'\n"
        "assert type(pipeline('image-text-to-text', folder).model).__name__ == names['moai']\n",
        repo_root,
    )

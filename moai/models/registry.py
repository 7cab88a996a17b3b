"""Registration with transformers' AutoConfig, AutoModel, AutoModelForImageTextToText, AutoTokenizer and AutoProcessor.

Our modules register their classes with the Auto classes at their end. `import moai` does not import them, and not
transformers either: it sees to it that each is imported as soon as somebody takes an Auto class that it registers with
out of its module. An Auto class that one has at hand knows MoAI; to have read a configuration imports no model.
"""

from __future__ import annotations

import importlib
import importlib.abc
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .answering import Answering

__all__ = [
    "MODEL_SPECS",
    "PROMPTED",
    "TEXT_READER",
    "ModelSpec",
    "find_answering",
    "find_spec",
    "load_named",
    "register_auto_classes",
]


@dataclass(frozen=True)
class ModelSpec:
    """Where a model's parts are; nothing is imported before it is asked for.

    Attributes:
        model_type: Of its ``config.json``.
        answering: Class that answers questions in a pipeline, see :class:`moai.models.answering.Answering`; None = it
            answers none.
        converter: :class:`moai.checkpoints.convert.driver.ConversionKind` of its published weights.
        purpose: What a model that answers nothing is for, in a sentence.
        compares_texts: Whether it finds images by texts and texts by images, see :mod:`moai.evaluation.retrieval`.
        published: Names of models whose weights need not be here -> functions that return configuration and processor
            of each, for ``moai plan``.
        backbones: Function of a vision tower's and a decoder's name that returns the same for a new model around them.
        task: Class that trains it, see :class:`moai.training.tasks.answers.AnswersTask`; None = nobody trains it here.
        settings: Class of its training's settings, see :class:`moai.training.train_settings.TrainSettings`.
    """

    model_type: str
    answering: str | None = None
    task: str | None = None
    settings: str | None = None
    converter: str | None = None
    purpose: str = ""
    compares_texts: bool = False
    published: Mapping[str, str] = field(default_factory=dict)
    backbones: str | None = None


#: By model type.
MODEL_SPECS = {
    spec.model_type: spec
    for spec in (
        ModelSpec(
            "moai",
            answering="moai.models.moai.answering_moai.MoAIAnswering",
            task="moai.models.moai.task_moai.MoAITask",
            settings="moai.models.moai.settings_moai.MoAITrainSettings",
            converter="moai.checkpoints.convert.official.KIND",
            published={"MoAI-7B": "moai.models.moai.planned_moai.plan_moai_7b"},
            backbones="moai.models.moai.planned_moai.plan_backbones",
        ),
        ModelSpec(
            "flamingo",
            answering="moai.models.flamingo.answering_flamingo.FlamingoAnswering",
            task="moai.models.flamingo.task_flamingo.FlamingoTask",
            settings="moai.models.flamingo.settings_flamingo.FlamingoTrainSettings",
            converter="moai.checkpoints.convert.flamingo.KIND",
        ),
        ModelSpec(
            "prismer",
            answering="moai.models.prismer.answering_prismer.PrismerAnswering",
            task="moai.models.prismer.task_prismer.PrismerTask",
            settings="moai.models.prismer.settings_prismer.PrismerTrainSettings",
            converter="moai.checkpoints.convert.prismer.KIND",
        ),
        ModelSpec(
            "emu",
            answering="moai.models.emu.answering_emu.EmuAnswering",
            task="moai.models.emu.task_emu.EmuTask",
            settings="moai.models.emu.settings_emu.EmuTrainSettings",
            converter="moai.checkpoints.convert.emu.KIND",
        ),
        ModelSpec(
            "tcl",
            converter="moai.checkpoints.convert.tcl.KIND",
            compares_texts=True,
            purpose="It finds images by sentences and sentences by images (`moai evaluate FOLDER captions.jsonl`, "
            "`AutoModel`), and gives its vision tower to a model that answers (`model.vision=FOLDER` of `moai train`).",
        ),
    )
}
#: Any other image-text-to-text model of transformers.
PROMPTED = ModelSpec(
    "",
    answering="moai.models.prompted.answering_prompted.PromptedAnswering",
    task="moai.models.prompted.task_prompted.PromptedTask",
    settings="moai.models.prompted.settings_prompted.PromptedTrainSettings",
)
#: A decoder alone, which reads the verbalization in its prompt, as an :class:`moai.models.answering.Answering`.
TEXT_READER = "moai.models.moai.text_reader.TextReaderAnswering"


def find_spec(name: str, model_type: str | None) -> ModelSpec:
    """The spec of a checkpoint; :data:`PROMPTED` for a model that is transformers' own.

    Args:
        name: Folder or hub name, for messages.
        model_type: Of its ``config.json``; None = not known, which transformers will say.

    Raises:
        ValueError: It answers no questions about images, or is a MoAI in its official format.
    """
    if model_type is None or model_type in MODEL_SPECS:
        spec = MODEL_SPECS[model_type or "moai"]
        if spec.answering is None:
            raise ValueError(f"expected a model that answers questions, got {name!r}, a {model_type}. {spec.purpose}")
        return spec
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    if model_type not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        raise ValueError(
            f"expected a MoAI checkpoint or an image-text-to-text model of transformers, got {name!r} with model_type "
            f"{model_type!r}. Published weights are turned into this format by `moai convert {name} OUT`; a "
            "verbalizer's are named in `verbalizers.json`."
        )
    return PROMPTED


def find_answering(name: str, model_type: str | None) -> type[Answering]:
    """The class that answers with a checkpoint; see :func:`find_spec`."""
    return load_named(find_spec(name, model_type).answering)


def load_named(name: str) -> Any:
    """A class by its dotted name, as specs have it."""
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(module), attribute)


#: Models with Auto classes: folder -> how the names of its classes begin.
CLASS_PREFIXES = {"moai": "MoAI", "emu": "Emu", "flamingo": "Flamingo", "prismer": "Prismer", "tcl": "TCL"}


def class_of(model: str, file: str, kind: str) -> type:
    """A model's class, for example ``class_of("emu", "processing", "Processor")``."""
    return load_named(f"moai.models.{model}.{file}_{model}.{CLASS_PREFIXES[model]}{kind}")


#: Module of transformers -> ours that register with it, and the names that nobody gets without that.
AUTO_MODULES = {
    "transformers.models.auto.configuration_auto": (
        tuple(f"moai.models.{model}.configuration_{model}" for model in CLASS_PREFIXES),
        {"AutoConfig", "CONFIG_MAPPING"},
    ),
    "transformers.models.auto.modeling_auto": (
        tuple(f"moai.models.{model}.modeling_{model}" for model in CLASS_PREFIXES),
        {
            "AutoModel",
            "AutoModelForImageTextToText",
            "AutoModelForMultimodalLM",
            "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING",
            "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES",
            "MODEL_FOR_MULTIMODAL_LM_MAPPING",
            "MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES",
            "MODEL_MAPPING",
        },
    ),
    "transformers.models.auto.tokenization_auto": (
        ("moai.models.auto_tokenizers",),
        {"AutoTokenizer", "TOKENIZER_MAPPING", "tokenizer_class_from_name"},
    ),
    "transformers.models.auto.image_processing_auto": (
        ("moai.models.auto_image_processors",),
        {"AutoImageProcessor", "IMAGE_PROCESSOR_MAPPING", "get_image_processor_class_from_name"},
    ),
    "transformers.models.auto.processing_auto": (
        ("moai.models.auto_processors",),
        {"AutoProcessor", "PROCESSOR_MAPPING", "processor_class_from_name"},
    ),
}


def register_auto_classes() -> None:
    """Register with the Auto classes that are imported by now, and with the others on first use; safe to call twice."""
    if not any(isinstance(finder, _AutoModuleFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AutoModuleFinder())
    for theirs, (ours, _) in AUTO_MODULES.items():
        if theirs in sys.modules:  # somebody may have taken its classes
            _import_all(ours)


def _import_all(modules: Sequence[str]) -> None:
    for module in modules:
        importlib.import_module(module)


class _WaitingModule(ModuleType):
    """Module of Auto classes that registers MoAI when one of them is first read; then it is an ordinary module again.

    Importing our module when theirs has run would be too early: transformers imports theirs for its docstrings while
    other modules, which ours needs, are half imported.
    """

    def __getattribute__(self, name: str) -> Any:
        ours, names = AUTO_MODULES[ModuleType.__getattribute__(self, "__name__")]
        if name in names:
            _import_all(ours)  # one of ours may be the module that asks: it takes AutoModel to register with it
            self.__class__ = ModuleType
        return ModuleType.__getattribute__(self, name)


class _AutoModuleFinder(importlib.abc.MetaPathFinder):
    """Import finder of the modules of Auto classes."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in AUTO_MODULES:
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        spec = next(filter(None, (finder.find_spec(fullname, path, target) for finder in others)), None)
        if spec is not None:
            spec.loader = _WaitingLoader(spec.loader)
        return spec


class _WaitingLoader(importlib.abc.Loader):
    """Loader that makes the loaded module a :class:`_WaitingModule`."""

    def __init__(self, loader: importlib.abc.Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__.loader = module.__loader__ = self._loader  # whoever looks at it sees an ordinary module
        self._loader.exec_module(module)
        module.__class__ = _WaitingModule

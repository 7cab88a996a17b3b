"""The written laws of the house (CONTRIBUTING.md) as tests: who may import whom, and what no file holds.

A law is a function from files (path -> syntax tree) to complaints. It runs over the repository, and over the few files
of ``BROKEN``, each of which breaks one: a law that lets it pass forbids nothing.
"""

import ast
import configparser
import graphlib
import json
import subprocess
import sys
import tomllib
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import cache
from pathlib import Path, PurePosixPath

import pytest

REPO_ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("moai", "verbalizers", "compressor", "mixer")
#: How the bundled weights were made: may import everything, nothing of the packages imports it.
RECIPES = "recipes"

# The import law. A package imports only what stands beside its name here, besides itself.
ALLOWED_FIRST_PARTY = {
    "compressor": set(),
    "mixer": set(),
    "verbalizers": set(),
    "moai": {"verbalizers", "compressor", "mixer"},
}
# What the leaves may import at the top of a module, besides the standard library and themselves.
ALLOWED_TOP_LEVEL = {
    "compressor": {"torch"},
    "mixer": {"torch"},
    "verbalizers": {"numpy", "PIL"},
}
# A model of transformers' kind inside verbalizers: torch and transformers are its substance, not a backend of it.
# Importing `verbalizers` reaches none of it: test_verbalizers_import_stays_light_when_fresh sees to that.
MODEL_FOLDERS_OF_VERBALIZERS = (
    "verbalizers/efficientnet/",
    "verbalizers/nanodet/",
    "verbalizers/predcls/",
    "verbalizers/psgtr/",
)
ALLOWED_IN_MODEL_FOLDER = {"torch", "transformers", "huggingface_hub", "safetensors", "scipy"}
# Inside moai, a folder imports itself, what stands beside its name here, and what those may import. So imports run one
# way: verbalizers, mixer, compressor < processing, checkpoints/io < models < checkpoints/convert < pipeline, data <
# training < evaluation < serving, cli, without exceptions. The model and the processor know no verbalizer.
FOLDER_LAW = {
    "moai/processing": (),
    "moai/scenes": ("verbalizers",),
    "moai/checkpoints/io": ("verbalizers",),
    "moai/models": ("moai/processing", "moai/checkpoints/io"),
    "moai/models/moai": ("mixer", "compressor", "moai/models"),
    "moai/models/prompted": ("moai/models",),
    "moai/models/interleaved": ("moai/models",),
    "moai/models/emu": ("moai/models/interleaved",),
    "moai/models/flamingo": ("moai/models/interleaved",),
    "moai/models/prismer": ("moai/models",),
    "moai/models/tcl": ("moai/models",),
    "moai/checkpoints/convert": (
        "verbalizers",
        "moai/models/moai",
        "moai/models/emu",
        "moai/models/flamingo",
        "moai/models/prismer",
        "moai/models/tcl",
    ),
    "moai/pipeline": ("verbalizers", "moai/models"),
    "moai/planning": ("verbalizers", "moai/training"),
    "moai/data": ("verbalizers", "moai/scenes", "moai/processing", "moai/checkpoints/io"),
    "moai/training": ("verbalizers", "moai/models/moai", "moai/models/emu", "moai/models/tcl", "moai/data"),
    "moai/evaluation": (
        "verbalizers",
        "moai/models/moai",
        "moai/models/flamingo",
        "moai/models/prismer",
        "moai/models/prompted",
        "moai/data",
        "moai/pipeline",
        "moai/training",
    ),
    "moai/serving": ("verbalizers", "moai/pipeline"),
    "moai/cli": (
        "verbalizers",
        "moai/checkpoints/convert",
        "moai/pipeline",
        "moai/training",
        "moai/evaluation",
        "moai/serving",
        "moai/planning",
    ),
}
# The only files of a model that know what verbalizers found: scenes to what the model's processor takes.
SCENES_FILE = "moai/models/*/scenes_*.py"
# The only files of a model that know how it is trained.
TRAINING_FILES = ("moai/models/*/task_*.py", "moai/models/*/settings_*.py", "moai/models/*/collator_*.py")
# The models, each in its folder of moai/models; what several share there is no model.
MODELS = {"moai", "prompted", "emu", "flamingo", "prismer", "tcl"}
# What lies outside a model's folder and is about one model, or about named ones: by path, the models. All else reaches
# a model through moai/models/registry.py. MoAI's parts, mixer and compressor, are MoAI.
ABOUT_MODELS = {
    "moai/checkpoints/convert/official*.py": {"moai"},
    "moai/checkpoints/convert/emu.py": {"emu"},
    "moai/checkpoints/convert/flamingo.py": {"flamingo"},
    "moai/checkpoints/convert/prismer.py": {"prismer"},
    "moai/checkpoints/convert/tcl.py": {"tcl"},
    "moai/training/tasks/emu_decoder/*.py": {"emu"},
    "moai/training/tasks/tcl/*.py": {"tcl"},
    "moai/training/tasks/__init__.py": {"tcl"},
    "moai/evaluation/rerouting.py": {"moai"},
    "moai/evaluation/new_models.py": MODELS,
    "moai/models/registry.py": MODELS,
    "moai/models/auto_*.py": MODELS,
}
# Inside verbalizers a folder imports itself and what stands beside its name here, nothing else, no file is forgiven.
VERBALIZERS_LAW = {
    "verbalizers/core": (),
    "verbalizers/store": ("verbalizers/core",),
    "verbalizers/efficientnet": ("verbalizers/core",),
    "verbalizers/nanodet": ("verbalizers/core",),
    "verbalizers/predcls": ("verbalizers/core",),
    "verbalizers/psgtr": ("verbalizers/core",),
    "verbalizers/backends": (
        "verbalizers/core",
        "verbalizers/efficientnet",
        "verbalizers/nanodet",
        "verbalizers/predcls",
        "verbalizers/psgtr",
    ),
}
# Files that any folder of moai may import; they import one another only.
FOUNDATIONS = ("moai/__init__.py", "moai/bundled/__init__.py", "moai/import_utils.py", "moai/settings.py")
# Needs nothing but Python: text is made valid by one function, whoever takes it in.
FOUNDATION_OF_ALL = "verbalizers/core/valid_text.py"
DOORS = ("moai/__init__.py", "moai/__main__.py")  # the public names, imported on first use, and the command line
# Joining: running verbalizers and a model in one file.
VERBALIZER_RUNNERS = {"parse_scene", "complete_scenes"}
MODEL_RUNNERS = {"generate"}
MAY_JOIN_VERBALIZERS_AND_MODEL = {"moai/pipeline/pipeline.py"}

FORBIDDEN_NAMES = {"utils", "helpers", "misc", "common"}
HEAVY_PACKAGES = {
    "cv2",
    "onnxruntime",
    "rapidocr",
    "paddle",
    "paddleocr",
    "ultralytics",
    "supervision",
    "timm",
}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__"}
FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
PICKLE_ERRORS = {"UnpicklingError", "PickleError"}  # what torch.load raises: may be caught by name


Files = Mapping[str, ast.Module]


@cache
def _read(*packages: str) -> Files:
    """Path from the repository's top -> syntax tree."""
    paths = [path for package in packages for path in sorted((REPO_ROOT / package).rglob("*.py"))]
    return {path.relative_to(REPO_ROOT).as_posix(): ast.parse(path.read_text(encoding="utf-8")) for path in paths}


def _module_name(path: str) -> str:
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def _imported_modules(node: ast.AST, path: str) -> Iterator[str]:
    """Absolute names that one import statement brings in; relative imports are resolved."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            package = PurePosixPath(path).parts[:-1]
            package = package[: len(package) - (node.level - 1)]
            base = ".".join([*package, base] if base else package)
        yield base
        yield from (f"{base}.{alias.name}" for alias in node.names)


def _is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}


def _walk_import_time(tree: ast.AST) -> Iterator[ast.AST]:
    """Nodes that run when the module is imported: not the bodies of functions, not TYPE_CHECKING blocks."""
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if _is_type_checking(child):
            for node in child.orelse:
                yield node
                yield from _walk_import_time(node)
            continue
        yield child
        yield from _walk_import_time(child)


def _imports(path: str, tree: ast.Module, *, import_time_only: bool = False) -> set[str]:
    nodes = _walk_import_time(tree) if import_time_only else ast.walk(tree)
    return {module for node in nodes for module in _imported_modules(node, path)}


def _roots(modules: Collection[str], among: Collection[str] | None = None) -> set[str]:
    roots = {module.split(".")[0] for module in modules}
    return roots if among is None else roots & set(among)


def _in(files: Files, *folders: str) -> Files:
    return {path: tree for path, tree in files.items() if path.startswith(tuple(f"{folder}/" for folder in folders))}


# ---------------------------------------------------------------------- the laws


def package_law(files: Files) -> Iterator[str]:
    """A package imports only those that stand beside its name."""
    for path, tree in _in(files, *PACKAGES).items():
        package = path.split("/")[0]
        if illegal := _roots(_imports(path, tree), PACKAGES) - ALLOWED_FIRST_PARTY[package] - {package}:
            yield f"{path} imports {sorted(illegal)}; {package} may import {sorted(ALLOWED_FIRST_PARTY[package])}"


def recipes_law(files: Files) -> Iterator[str]:
    """No package imports the recipes."""
    for path, tree in _in(files, *PACKAGES).items():
        if RECIPES in _roots(_imports(path, tree)):
            yield f"{path} imports recipes"


def leaf_law(files: Files) -> Iterator[str]:
    """At the top of a module, a leaf imports its few packages only."""
    for path, tree in _in(files, *ALLOWED_TOP_LEVEL).items():
        package = path.split("/")[0]
        allowed = ALLOWED_TOP_LEVEL[package] | {package} | set(sys.stdlib_module_names)
        if path.startswith(MODEL_FOLDERS_OF_VERBALIZERS):
            allowed |= ALLOWED_IN_MODEL_FOLDER
        if illegal := _roots(_imports(path, tree, import_time_only=True)) - allowed:
            yield f"{path} imports {sorted(illegal)} at the top. Import inside the function that needs it."


def torch_only_law(files: Files) -> Iterator[str]:
    """Compressor and mixer need torch only, inside functions too."""
    for path, tree in _in(files, "compressor", "mixer").items():
        if illegal := _roots(_imports(path, tree)) - {"torch", path.split("/")[0], *sys.stdlib_module_names}:
            yield f"{path} imports {sorted(illegal)}"


def _folder_of(module: str) -> str | None:
    """The folder of the law that a first-party module lies in; None = outside the law's reach."""
    if f"{module}.".startswith(f"{_module_name(FOUNDATION_OF_ALL)}."):
        return None
    path = module.replace(".", "/") + "/"
    folders = (*FOLDER_LAW, *(package for package in PACKAGES if package != "moai"))
    return max((folder for folder in folders if path.startswith(f"{folder}/")), key=len, default=None)


def _reachable(folder: str) -> set[str]:
    """A folder, what the law lets it import, and what those may import; verbalizers only where they are named."""
    named = set(FOLDER_LAW.get(folder, ()))
    indirect = {other for near in named for other in _reachable(near) if other != "verbalizers"}
    return {folder} | named | indirect


def _is_foundation(module: str) -> bool:
    """``moai``, a folder without a law of its own (``moai.checkpoints``), or a name in a foundation."""
    files = {_module_name(file) for file in (*FOUNDATIONS, FOUNDATION_OF_ALL)}
    return module in {"moai.checkpoints", *PACKAGES} | files or module.rpartition(".")[0] in files


def foundation_law(files: Files) -> Iterator[str]:
    """What everybody may import needs nothing but Python."""
    for path in {FOUNDATION_OF_ALL}.intersection(files):
        if strangers := sorted(_roots(_imports(path, files[path])) - sys.stdlib_module_names):
            yield f"{path} imports {strangers}"


def moai_law(files: Files) -> Iterator[str]:
    """A file of moai lies in a folder of the law and imports what that folder may; foundations import one another."""
    for path, tree in _in(files, "moai").items():
        modules = {name for name in _imports(path, tree) if name.split(".")[0] in PACKAGES}
        folder = _folder_of(_module_name(path))
        if path in DOORS:
            continue
        if path in FOUNDATIONS:
            if strangers := sorted(name for name in modules if not _is_foundation(name)):
                yield f"{path} is a foundation, and imports {strangers}"
            continue
        if folder is None and path != "moai/checkpoints/__init__.py":
            yield f"{path} lies in no folder of the law"
            continue
        reached = {name: _folder_of(name) for name in modules}
        allowed = _reachable(folder) | ({"verbalizers"} if PurePosixPath(path).match(SCENES_FILE) else set())
        if any(map(PurePosixPath(path).match, TRAINING_FILES)):
            allowed |= {"moai/training", "moai/data"}
        if illegal := sorted(name for name, other in reached.items() if other and other not in allowed):
            yield f"{path} imports {illegal}; it may import {sorted(allowed)}"
        if loose := sorted(name for name, other in reached.items() if other is None and not _is_foundation(name)):
            yield f"{path} imports {loose}, which lie in no folder of the law"


def model_law(files: Files) -> Iterator[str]:
    """General code imports no single model and names none in a string; it asks the registry."""
    for path, tree in _in(files, "moai").items():
        if path in DOORS or path.startswith(tuple(f"moai/models/{model}/" for model in MODELS)):
            continue
        allowed = set().union(*(models for about, models in ABOUT_MODELS.items() if PurePosixPath(path).match(about)))
        reached = {_model_of(name) for name in _imports(path, tree)} | {_model_named(text) for text in _strings(tree)}
        if illegal := sorted(reached - allowed - {None}):
            yield f"{path} is about {illegal}; general code asks moai/models/registry.py"


def _model_of(module: str) -> str | None:
    """The model whose module this is."""
    if module.split(".")[0] in ("mixer", "compressor"):
        return "moai"
    parts = module.split(".")
    return parts[2] if parts[:2] == ["moai", "models"] and len(parts) > 2 and parts[2] in MODELS else None


def _model_named(text: str) -> str | None:
    """The model that a string is the name or the module of; "moai" is the package's name too."""
    return text if text in MODELS - {"moai"} else _model_of(text) if text.startswith("moai.models.") else None


def _strings(tree: ast.AST) -> Iterator[str]:
    """Strings of the code, docstrings left out."""
    docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs:
            yield node.value


def verbalizers_law(files: Files) -> Iterator[str]:
    """A file of verbalizers lies in a folder of the law and imports what that folder may."""
    for path, tree in _in(files, "verbalizers").items():
        folder = path.rpartition("/")[0]
        if path == "verbalizers/__init__.py":
            continue
        if folder not in VERBALIZERS_LAW:
            yield f"{path} lies in no folder of the law"
            continue
        allowed = tuple(f"{name.replace('/', '.')}." for name in (folder, *VERBALIZERS_LAW[folder]))
        modules = {name for name in _imports(path, tree) if name.split(".")[0] == "verbalizers"}
        if illegal := sorted(name for name in modules if not f"{name}.".startswith(allowed)):
            yield f"{path} imports {illegal}; {folder} may import {allowed}"


def circle_law(files: Files) -> Iterator[str]:
    """Modules import each other in no circle, be it inside a function or for a type checker."""
    paths = {_module_name(path): path for path in _in(files, *PACKAGES)}
    graph = {}
    for name, path in paths.items():
        modules = {_module_of(imported, paths) for imported in _imports(path, files[path])}
        graph[name] = {module for module in modules if module and not f"{name}.".startswith(f"{module}.")}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        yield f"a circle: {' -> '.join(error.args[1])}"


def _module_of(imported: str, modules: Collection[str]) -> str | None:
    """The module that an imported name is, or lies in."""
    while imported and imported not in modules:
        imported = imported.rpartition(".")[0]
    return imported or None


def joining_law(files: Files) -> Iterator[str]:
    """Verbalizers and a model are run together where that is named, and nowhere else."""
    joining = set()
    for path, tree in _in(files, "moai").items():
        called = {ast.unparse(node.func).split(".")[-1] for node in ast.walk(tree) if isinstance(node, ast.Call)}
        if called & VERBALIZER_RUNNERS and called & MODEL_RUNNERS:
            joining.add(path)
    for path in sorted(joining - MAY_JOIN_VERBALIZERS_AND_MODEL):
        yield f"{path} runs verbalizers and the model; that is moai/pipeline/pipeline.py's work"
    for path in sorted(MAY_JOIN_VERBALIZERS_AND_MODEL.intersection(files) - joining):
        yield f"{path} no longer runs verbalizers and the model: take it out of MAY_JOIN_VERBALIZERS_AND_MODEL"


def name_law(files: Files) -> Iterator[str]:
    """A file's name says what is inside."""
    yield from (path for path in files if FORBIDDEN_NAMES & set(PurePosixPath(path).with_suffix("").parts))


def safety_law(files: Files) -> Iterator[str]:
    """Nothing unpickles, evaluates, or swallows every error."""
    for path, tree in files.items():
        for node in ast.walk(tree):
            if problem := _danger(node):
                yield f"{path}:{node.lineno}: {problem}"


def _danger(node: ast.AST) -> str | None:
    if isinstance(node, ast.ExceptHandler) and node.type is None:
        return "bare except"
    if isinstance(node, ast.Call):
        name = ast.unparse(node.func)
        keywords = {keyword.arg: keyword.value for keyword in node.keywords}
        if name in FORBIDDEN_CALLS:
            return f"{name}()"
        if name == "torch.load" and not _is_true(keywords.get("weights_only")):
            return "torch.load without weights_only=True"
        if name in {"np.load", "numpy.load"} and _is_true(keywords.get("allow_pickle")):
            return f"{name} with allow_pickle=True"
        if name == "yaml.load":
            return "yaml.load instead of yaml.safe_load"
    if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in FORBIDDEN_MODULES:
        if names := sorted({alias.name for alias in node.names} - PICKLE_ERRORS):
            return f"imports {names} from {node.module}"
    if isinstance(node, ast.Attribute) and ast.unparse(node.value) in FORBIDDEN_MODULES:
        if node.attr not in PICKLE_ERRORS:
            return f"uses {ast.unparse(node)}"
    if isinstance(node, ast.Raise) and node.exc is not None and "NotImplementedError" in ast.unparse(node.exc):
        return "NotImplementedError; an abstract method or a clear ValueError"
    return None


def _is_true(node: ast.AST | None) -> bool:
    return isinstance(node, ast.Constant) and node.value is True


LAWS: dict[Callable[[Files], Iterator[str]], tuple[str, ...]] = {
    package_law: PACKAGES,
    recipes_law: PACKAGES,
    leaf_law: PACKAGES,
    torch_only_law: PACKAGES,
    foundation_law: PACKAGES,
    moai_law: PACKAGES,
    model_law: PACKAGES,
    verbalizers_law: PACKAGES,
    circle_law: PACKAGES,
    joining_law: PACKAGES,
    name_law: (*PACKAGES, RECIPES),
    safety_law: (*PACKAGES, RECIPES),
}

# What each law forbids: files by path, and the complaint. ``{}`` files would please every law.
BROKEN: list[tuple[Callable[[Files], Iterator[str]], dict[str, str], str]] = [
    (package_law, {"mixer/a.py": "def f():\n    from compressor import Compressor"}, "imports ['compressor']"),
    (package_law, {"verbalizers/core/a.py": "import moai.settings"}, "imports ['moai']"),
    (recipes_law, {"moai/cli/a.py": "from recipes.nano import x"}, "imports recipes"),
    (leaf_law, {"verbalizers/core/a.py": "import numpy\nimport torch"}, "imports ['torch'] at the top"),
    (leaf_law, {"verbalizers/psgtr/a.py": "import torch\nimport timm"}, "imports ['timm'] at the top"),
    (torch_only_law, {"mixer/a.py": "def f():\n    import numpy"}, "imports ['numpy']"),
    (foundation_law, {FOUNDATION_OF_ALL: "import re\nimport numpy"}, "imports ['numpy']"),
    (
        moai_law,
        {"moai/models/moai/a.py": "from verbalizers import Scene"},
        "imports ['verbalizers', 'verbalizers.Scene']",
    ),
    (
        moai_law,
        {"moai/data/a.py": "from ..pipeline import queries"},
        "imports ['moai.pipeline', 'moai.pipeline.queries']",
    ),
    (moai_law, {"moai/models/prompted/modeling_prompted.py": "import mixer.gating"}, "imports ['mixer.gating']"),
    (moai_law, {"moai/models/moai/a.py": "from moai.models.prompted import x"}, "imports ['moai.models.prompted'"),
    (moai_law, {"moai/models/moai/a.py": "import moai.training.task"}, "imports ['moai.training.task']"),
    (moai_law, {"moai/settings.py": "from moai.cli import app"}, "is a foundation"),
    (moai_law, {"moai/stray.py": ""}, "lies in no folder of the law"),
    (moai_law, {"moai/data/a.py": "from moai.stray import x"}, "which lie in no folder of the law"),
    (
        model_law,
        {"moai/evaluation/a.py": "def f():\n    from moai.models.tcl.modeling_tcl import x"},
        "is about ['tcl']",
    ),
    (model_law, {"moai/cli/a.py": "from ..models.moai import text_reader"}, "is about ['moai']"),
    (model_law, {"moai/training/a.py": "if kind == 'prismer':\n    pass"}, "is about ['prismer']"),
    (model_law, {"moai/planning/a.py": "load_named('moai.models.emu.task_emu.EmuTask')"}, "is about ['emu']"),
    (model_law, {"moai/pipeline/a.py": "from mixer import LayerRouting"}, "is about ['moai']"),
    (model_law, {"moai/models/answering.py": "from .flamingo import prompts"}, "is about ['flamingo']"),
    (model_law, {"moai/checkpoints/convert/emu.py": "from ...models.tcl import x"}, "is about ['tcl']"),
    (verbalizers_law, {"verbalizers/core/a.py": "from verbalizers.store.cache import x"}, "verbalizers.store.cache"),
    (verbalizers_law, {"verbalizers/stray.py": ""}, "lies in no folder of the law"),
    (
        circle_law,
        {"mixer/a.py": "from mixer.b import x", "mixer/b.py": "from . import c", "mixer/c.py": "import mixer.a"},
        "a circle: ",
    ),
    (
        joining_law,
        {"moai/evaluation/a.py": "model.generate(words(parse_scene(x, y)))"},
        "runs verbalizers and the model",
    ),
    (joining_law, {"moai/pipeline/pipeline.py": "parse_scene(x, y)"}, "no longer runs"),
    (name_law, {"moai/data/utils.py": ""}, "moai/data/utils.py"),
    (name_law, {"recipes/helpers/a.py": ""}, "recipes/helpers/a.py"),
    (safety_law, {"a.py": "try:\n    f()\nexcept:\n    pass"}, "a.py:3: bare except"),
    (safety_law, {"a.py": "eval(x)"}, "eval()"),
    (safety_law, {"a.py": "torch.load(x)"}, "torch.load without"),
    (safety_law, {"a.py": "np.load(x, allow_pickle=True)"}, "allow_pickle"),
    (safety_law, {"a.py": "yaml.load(x)"}, "yaml.safe_load"),
    (safety_law, {"a.py": "from pickle import UnpicklingError, loads"}, "imports ['loads'] from pickle"),
    (safety_law, {"a.py": "pickle.loads(x)"}, "uses pickle.loads"),
    (safety_law, {"a.py": "raise NotImplementedError"}, "NotImplementedError"),
]
# What looks like a breach and is none.
SOUND = {
    "mixer/a.py": "import math\nimport torch",
    "verbalizers/core/a.py": "def f():\n    import torch",
    "verbalizers/core/b.py": (
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch\nelse:\n    import numpy"
    ),
    "moai/models/moai/scenes_moai.py": "from verbalizers.core.structures import Scene\nimport mixer",
    "moai/models/moai/task_moai.py": "import moai.training.task",
    "moai/cli/a.py": "from moai.settings import x\nfrom moai.scenes.b import y\nparse_scene(x, y)",
    "moai/checkpoints/convert/emu.py": "from ...models.emu import x\n'emu'",
    "moai/evaluation/a.py": "'About prismer.'\nfrom ..models.registry import MODEL_SPECS\nname = 'moai'",
    "moai/data/a.py": "torch.load(x, weights_only=True)\nmodel.generate()\nfrom pickle import UnpicklingError",
}


def _parse(texts: Mapping[str, str]) -> Files:
    return {path: ast.parse(text) for path, text in texts.items()}


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
def test_law_is_kept_when_the_sources_are_read(law: Callable[[Files], Iterator[str]]) -> None:
    files = _read(*LAWS[law])
    assert len(files) > 150 and {path.split("/")[0] for path in files} == set(LAWS[law])
    complaints = list(law(files))
    assert not complaints, f"{law.__doc__}\n" + "\n".join(complaints)


def test_files_that_laws_name_are_there_when_listed() -> None:
    """An exemption of a file that has gone would be open to the next of that name."""
    files = _read(*PACKAGES)
    assert {*DOORS, *FOUNDATIONS, *MAY_JOIN_VERBALIZERS_AND_MODEL} <= files.keys()
    assert all(any(PurePosixPath(path).match(about) for path in files) for about in ABOUT_MODELS)
    assert all(f"moai/models/{model}/__init__.py" in files for model in MODELS)
    assert all(_in(_read(*PACKAGES), folder.rstrip("/")) for folder in MODEL_FOLDERS_OF_VERBALIZERS)


def test_laws_complain_when_they_are_broken_and_only_then() -> None:
    assert {law for law, _, _ in BROKEN} == set(LAWS)
    for law, texts, complaint in BROKEN:
        found = list(law(_parse(texts)))
        assert len(found) == 1 and complaint in found[0], f"{law.__name__} on {texts}: {found}"
    for law in LAWS:
        assert list(law(_parse(SOUND))) == [], law.__name__


def test_recipes_are_checked_by_ruff_and_not_installed_when_configured() -> None:
    parser = configparser.ConfigParser()
    parser.read(REPO_ROOT / "setup.cfg", encoding="utf-8")
    packages = parser["options"]["packages"].split()
    assert not [name for name in packages if name.split(".")[0] == RECIPES]
    ruff = tomllib.loads((REPO_ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["ruff"]
    left_out = [*ruff.get("exclude", []), *ruff.get("extend-exclude", []), *ruff["lint"]["per-file-ignores"]]
    assert not [pattern for pattern in left_out if pattern.startswith(RECIPES)]
    assert _read(RECIPES)


def _modules_after(statement: str) -> set[str]:
    """Root names in ``sys.modules`` of a fresh interpreter after ``statement``."""
    script = f"import json, sys; {statement}; print(json.dumps(sorted({{m.split('.')[0] for m in sys.modules}})))"
    result = subprocess.run(
        [sys.executable, "-c", script],
        cwd=REPO_ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return set(json.loads(result.stdout.strip().splitlines()[-1]))


def test_moai_import_stays_light_when_fresh() -> None:
    loaded = _modules_after("import moai")
    heavy = loaded & (HEAVY_PACKAGES | {"torch", "transformers", "numpy", "PIL", "compressor", "mixer", "verbalizers"})
    assert not heavy, f"`import moai` loads {sorted(heavy)}"


def test_verbalizers_import_stays_light_when_fresh() -> None:
    loaded = _modules_after("import verbalizers")
    heavy = loaded & (HEAVY_PACKAGES | {"torch", "transformers", "moai", "compressor", "mixer", "scipy", "pandas"})
    assert not heavy, f"`import verbalizers` loads {sorted(heavy)}; it needs numpy and Pillow only"


@pytest.mark.parametrize("package", ["compressor", "mixer"])
def test_model_leaf_import_needs_no_sibling_when_fresh(package: str) -> None:
    strangers = _modules_after(f"import {package}") & ((set(PACKAGES) - {package}) | {"transformers", "PIL"})
    assert not strangers, f"`import {package}` loads {sorted(strangers)}"


def test_command_line_help_stays_light_when_fresh() -> None:
    heavy = _modules_after("import moai.cli") & (HEAVY_PACKAGES | {"torch", "transformers", "numpy", "PIL"})
    assert not heavy, f"`moai --help` loads {sorted(heavy)}"

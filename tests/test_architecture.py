"""The written laws of the house (CONTRIBUTING.md) as tests: who may import whom, and how a file looks."""

import ast
import configparser
import graphlib
import json
import subprocess
import sys
import tomllib
from collections.abc import Collection, Iterator
from pathlib import Path

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
MODEL_FOLDERS_OF_VERBALIZERS = ("verbalizers/nanodet/", "verbalizers/psgtr/")
ALLOWED_IN_MODEL_FOLDER = {"torch", "transformers", "huggingface_hub", "safetensors", "scipy"}
# Inside moai, a folder imports itself, what stands beside its name here, and what those may import. So imports run one
# way: verbalizers, mixer, compressor < processing, checkpoints/io < models < checkpoints/convert < pipeline, data <
# training < evaluation < serving, cli, without exceptions. The model and the processor know no verbalizer.
FOLDER_LAW = {
    "moai/processing": (),
    "moai/scenes": ("verbalizers",),
    "moai/checkpoints/io": ("verbalizers",),
    "moai/models": ("mixer", "compressor", "moai/processing", "moai/checkpoints/io"),
    "moai/checkpoints/convert": ("verbalizers", "moai/models"),
    "moai/pipeline": ("verbalizers", "moai/models"),
    "moai/data": ("verbalizers", "moai/scenes", "moai/processing", "moai/checkpoints/io"),
    "moai/training": ("verbalizers", "moai/models", "moai/data"),
    "moai/evaluation": ("verbalizers", "moai/models", "moai/data", "moai/pipeline", "moai/training"),
    "moai/serving": ("verbalizers", "moai/pipeline"),
    "moai/cli": ("verbalizers", "moai/checkpoints/convert", "moai/pipeline", "moai/training", "moai/evaluation"),
}
# Inside verbalizers a folder imports itself and what stands beside its name here, nothing else, no file is forgiven.
VERBALIZERS_LAW = {
    "verbalizers/core": (),
    "verbalizers/store": ("verbalizers/core",),
    "verbalizers/nanodet": ("verbalizers/core",),
    "verbalizers/psgtr": ("verbalizers/core",),
    "verbalizers/backends": ("verbalizers/core", "verbalizers/nanodet", "verbalizers/psgtr"),
}
# Files that any folder of moai may import; they import one another only.
FOUNDATIONS = ("moai/__init__.py", "moai/import_utils.py", "moai/moved_modules.py", "moai/settings.py")
DOORS = ("moai/__init__.py", "moai/__main__.py")  # the public names, imported on first use, and the command line
# Joining: running verbalizers and holding the model in one file.
MODEL_NAMES = {
    "moai.models.moai.modeling_moai",
    "moai.models.moai.injection",
    "moai.MoAIForConditionalGeneration",
    "moai.MoAIModel",
}
VERBALIZER_RUNNERS = {"parse_scene", "build_verbalizer"}
MAY_JOIN_VERBALIZERS_AND_MODEL = ("moai/pipeline/pipeline_moai.py",)

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


def _source_files(*packages: str) -> list[Path]:
    return [
        path
        for package in packages
        for path in sorted((REPO_ROOT / package).rglob("*.py"))
        if "__pycache__" not in path.parts
    ]


def _relative(path: Path) -> str:
    return path.relative_to(REPO_ROOT).as_posix()


def _module_name(path: Path) -> str:
    parts = path.relative_to(REPO_ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imported_modules(node: ast.AST, path: Path) -> Iterator[str]:
    """Absolute names that one import statement brings in; relative imports are resolved."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            package = _module_name(path).split(".")
            if path.name != "__init__.py":
                package = package[:-1]
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


def _imports(path: Path, *, import_time_only: bool) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    nodes = _walk_import_time(tree) if import_time_only else ast.walk(tree)
    return {module for node in nodes for module in _imported_modules(node, path)}


def _roots(modules: set[str]) -> set[str]:
    return {module.split(".")[0] for module in modules}


def _each(*packages: str):
    return pytest.mark.parametrize("path", _source_files(*packages), ids=_relative)


@_each(*PACKAGES)
def test_imports_follow_the_law_when_one_package_needs_another(path: Path) -> None:
    package = path.relative_to(REPO_ROOT).parts[0]
    first_party = _roots(_imports(path, import_time_only=False)) & set(PACKAGES)
    illegal = first_party - ALLOWED_FIRST_PARTY[package] - {package}
    assert not illegal, f"{_relative(path)} imports {sorted(illegal)}; {package} may import only " + str(
        sorted(ALLOWED_FIRST_PARTY[package]) or "itself"
    )


@_each(*PACKAGES)
def test_recipes_are_imported_by_no_package_when_read(path: Path) -> None:
    assert RECIPES not in _roots(_imports(path, import_time_only=False)), f"{_relative(path)} imports recipes"


def test_recipes_are_checked_by_ruff_and_not_installed_when_configured() -> None:
    parser = configparser.ConfigParser()
    parser.read(REPO_ROOT / "setup.cfg", encoding="utf-8")
    packages = parser["options"]["packages"].split()
    assert not [name for name in packages if name.split(".")[0] == RECIPES]
    ruff = tomllib.loads((REPO_ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["ruff"]
    left_out = [*ruff.get("exclude", []), *ruff.get("extend-exclude", []), *ruff["lint"]["per-file-ignores"]]
    assert not [pattern for pattern in left_out if pattern.startswith(RECIPES)]
    assert _source_files(RECIPES)


@_each("compressor", "mixer", "verbalizers")
def test_leaf_needs_only_its_few_packages_when_imported(path: Path) -> None:
    package = path.relative_to(REPO_ROOT).parts[0]
    allowed = ALLOWED_TOP_LEVEL[package] | {package}
    if _relative(path).startswith(MODEL_FOLDERS_OF_VERBALIZERS):
        allowed = allowed | ALLOWED_IN_MODEL_FOLDER
    illegal = {
        root
        for root in _roots(_imports(path, import_time_only=True))
        if root not in allowed and root not in sys.stdlib_module_names
    }
    assert not illegal, (
        f"{_relative(path)} imports {sorted(illegal)} at the top. Import inside the function that needs it."
    )


@_each("compressor", "mixer")
def test_compressor_and_mixer_need_torch_only_when_they_run(path: Path) -> None:
    third_party = {
        root for root in _roots(_imports(path, import_time_only=False)) if root not in sys.stdlib_module_names
    }
    package = path.relative_to(REPO_ROOT).parts[0]
    assert third_party <= {"torch", package}


def _folder_of(module: str) -> str | None:
    """The folder of the law that a first-party module lies in; None = outside the law's reach."""
    path = module.replace(".", "/") + "/"
    folders = (*FOLDER_LAW, *(package for package in PACKAGES if package != "moai"))
    return max((folder for folder in folders if path.startswith(f"{folder}/")), key=len, default=None)


def _reachable(folder: str) -> set[str]:
    """A folder, what the law lets it import, and what those may import; verbalizers only where they are named."""
    named = set(FOLDER_LAW.get(folder, ()))
    indirect = {other for near in named for other in _reachable(near) if other != "verbalizers"}
    return {folder} | named | indirect


@_each("moai")
def test_moai_file_imports_only_what_its_folder_may_when_read(path: Path) -> None:
    relative = _relative(path)
    if relative in DOORS:
        return
    modules = {name for name in _imports(path, import_time_only=False) if name.split(".")[0] in PACKAGES}
    folder = _folder_of(_module_name(path))
    if relative in FOUNDATIONS:
        strangers = {name for name in modules if not _is_foundation(name)}
        assert not strangers, f"{relative} is a foundation, and imports {sorted(strangers)}"
        return
    assert folder is not None or relative == "moai/checkpoints/__init__.py", f"{relative} lies in no folder of the law"
    reached = {name: _folder_of(name) for name in modules}
    illegal = {name for name, other in reached.items() if other and other not in _reachable(folder)}
    assert not illegal, f"{relative} imports {sorted(illegal)}; {folder} may import {sorted(_reachable(folder))}"
    loose = {name for name, other in reached.items() if other is None and not _is_foundation(name)}
    assert not loose, f"{relative} imports {sorted(loose)}, which lie in no folder of the law"


@_each(*VERBALIZERS_LAW)
def test_verbalizers_file_imports_only_what_its_folder_may_when_read(path: Path) -> None:
    folder = path.parent.relative_to(REPO_ROOT).as_posix()
    allowed = tuple(f"{name.replace('/', '.')}." for name in (folder, *VERBALIZERS_LAW[folder]))
    modules = {name for name in _imports(path, import_time_only=False) if name.split(".")[0] == "verbalizers"}
    illegal = {name for name in modules if not f"{name}.".startswith(allowed)}
    assert not illegal, f"{_relative(path)} imports {sorted(illegal)}; {folder} may import {allowed}"


def test_verbalizers_file_lies_in_a_folder_of_the_law_when_listed() -> None:
    outside = {_relative(path) for path in _source_files("verbalizers")} - {
        _relative(path) for path in _source_files(*VERBALIZERS_LAW)
    }
    assert outside == {"verbalizers/__init__.py", "verbalizers/moved_modules.py"}


def _is_foundation(module: str) -> bool:
    """``moai``, a folder without a law of its own (``moai.checkpoints``), or a name in a foundation."""
    files = {_module_name(REPO_ROOT / file) for file in FOUNDATIONS}
    packages = {"moai.checkpoints", *PACKAGES}
    return module in packages or module in files or module.rpartition(".")[0] in files


def test_modules_import_each_other_in_no_circle_when_loaded() -> None:
    """At import time; what a function or a type checker imports may lead back."""
    paths = {_module_name(path): path for path in _source_files(*PACKAGES)}
    graph = {}
    for name, path in paths.items():
        modules = {_module_of(imported, paths) for imported in _first_party(path)}
        graph[name] = {module for module in modules if module and not f"{name}.".startswith(f"{module}.")}
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


def _module_of(imported: str, modules: Collection[str]) -> str | None:
    """The module that an imported name is, or lies in."""
    while imported and imported not in modules:
        imported = imported.rpartition(".")[0]
    return imported or None


def _first_party(path: Path) -> set[str]:
    return {module for module in _imports(path, import_time_only=True) if module.split(".")[0] in PACKAGES}


@_each("moai")
def test_moai_file_joins_verbalizers_and_model_only_when_it_is_the_pipeline(path: Path) -> None:
    if _relative(path) in MAY_JOIN_VERBALIZERS_AND_MODEL:
        return
    tree = ast.parse(path.read_text(encoding="utf-8"))
    called = {ast.unparse(node.func).split(".")[-1] for node in ast.walk(tree) if isinstance(node, ast.Call)}
    model_names = _imports(path, import_time_only=False) & MODEL_NAMES
    assert not (called & VERBALIZER_RUNNERS and model_names), (
        f"{_relative(path)} runs verbalizers and the model; that is moai/pipeline/pipeline_moai.py's work"
    )


@_each(*PACKAGES, RECIPES)
def test_file_name_says_what_is_inside_when_listed(path: Path) -> None:
    assert not FORBIDDEN_NAMES & set(path.relative_to(REPO_ROOT).with_suffix("").parts), _relative(path)


@_each(*PACKAGES, RECIPES)
def test_source_is_free_of_unsafe_constructs_when_parsed(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    problems = []
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.ExceptHandler) and node.type is None:
            problems.append(f"line {line}: bare except")
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            keywords = {keyword.arg: keyword.value for keyword in node.keywords}
            if name in FORBIDDEN_CALLS:
                problems.append(f"line {line}: {name}()")
            elif name == "torch.load" and not _is_true(keywords.get("weights_only")):
                problems.append(f"line {line}: torch.load without weights_only=True")
            elif name in {"np.load", "numpy.load"} and _is_true(keywords.get("allow_pickle")):
                problems.append(f"line {line}: {name} with allow_pickle=True")
            elif name == "yaml.load":
                problems.append(f"line {line}: yaml.load instead of yaml.safe_load")
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in FORBIDDEN_MODULES:
            names = {alias.name for alias in node.names} - PICKLE_ERRORS
            problems += [f"line {line}: imports {node.module}.{name}" for name in sorted(names)]
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) in FORBIDDEN_MODULES:
            if node.attr not in PICKLE_ERRORS:
                problems.append(f"line {line}: uses {ast.unparse(node)}")
        elif isinstance(node, ast.Raise) and node.exc is not None:
            if "NotImplementedError" in ast.unparse(node.exc):
                problems.append(f"line {line}: NotImplementedError; an abstract method or a clear ValueError")
    assert not problems, f"{_relative(path)}: " + "; ".join(problems)


def _is_true(node: ast.AST | None) -> bool:
    return isinstance(node, ast.Constant) and node.value is True


@_each(*PACKAGES, RECIPES)
def test_everything_public_is_explained_when_parsed(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    missing = [] if ast.get_docstring(tree) else ["the module itself"]
    for node in tree.body:
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        if not node.name.startswith("_") and not ast.get_docstring(node):
            missing.append(node.name)
    assert not missing, f"{_relative(path)} has no docstring on: {', '.join(missing)}"


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

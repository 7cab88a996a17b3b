"""The distribution: a wheel holds what setup.cfg promises, optional packages say how to get them."""

import configparser
import importlib.metadata
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from moai import import_utils

REPO_ROOT = Path(__file__).resolve().parent.parent
TOP_LEVEL_PACKAGES = ("moai", "verbalizers", "compressor", "mixer")


@pytest.fixture(scope="module")
def setup_cfg() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(REPO_ROOT / "setup.cfg", encoding="utf-8")
    return parser


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.strip().splitlines() if line.strip() and not line.startswith("#")]


def _packages_in_tree() -> set[str]:
    return {
        ".".join(path.parent.relative_to(REPO_ROOT).parts)
        for top in TOP_LEVEL_PACKAGES
        for path in (REPO_ROOT / top).rglob("__init__.py")
    }


def _data_files_in_tree() -> set[str]:
    return {
        path.relative_to(REPO_ROOT).as_posix()
        for top in TOP_LEVEL_PACKAGES
        for path in (REPO_ROOT / top).rglob("*")
        if path.is_file() and path.suffix not in {".py", ".pyc"} and "__pycache__" not in path.parts
    }


def test_package_list_equals_the_tree_when_compared(setup_cfg: configparser.ConfigParser) -> None:
    assert sorted(_lines(setup_cfg["options"]["packages"])) == sorted(_packages_in_tree())


def test_every_folder_with_code_is_a_package_when_listed() -> None:
    folders = {
        ".".join(path.parent.relative_to(REPO_ROOT).parts)
        for top in TOP_LEVEL_PACKAGES
        for path in (REPO_ROOT / top).rglob("*.py")
    }
    assert folders == _packages_in_tree(), "a folder with .py files has no __init__.py"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """A wheel built from a copy of the sources, so that no build/ is left behind in the repository."""
    pytest.importorskip("setuptools")
    source = tmp_path_factory.mktemp("source")
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPO_ROOT / name, source)
    for package in TOP_LEVEL_PACKAGES:
        shutil.copytree(REPO_ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        ".",
        "--no-deps",
        "--no-build-isolation",
        "--quiet",
        "-w",
        "out",
    ]
    result = subprocess.run(command, cwd=source, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr
    (path,) = (source / "out").glob("*.whl")
    return zipfile.ZipFile(path)


@pytest.mark.slow
def test_wheel_holds_every_module_and_data_file_when_built(wheel: zipfile.ZipFile) -> None:
    modules = {
        path.relative_to(REPO_ROOT).as_posix()
        for top in TOP_LEVEL_PACKAGES
        for path in (REPO_ROOT / top).rglob("*.py")
        if "__pycache__" not in path.parts
    }
    shipped = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert shipped == modules | _data_files_in_tree()


@pytest.mark.slow
def test_wheel_names_command_licence_and_extras_when_built(wheel: zipfile.ZipFile) -> None:
    texts = {name.split("/", 1)[1]: wheel.read(name).decode() for name in wheel.namelist() if ".dist-info/" in name}
    assert "moai = moai.__main__:main" in texts["entry_points.txt"]
    assert "Apache License" in texts["licenses/LICENSE"]
    metadata = texts["METADATA"]
    assert "Name: moai-vlm" in metadata
    assert "License-Expression: Apache-2.0" in metadata
    extras = set(re.findall(r"^Provides-Extra: (\S+)$", metadata, flags=re.MULTILINE))
    assert extras == {
        "ocr",
        "paddleocr",
        "segmentation",
        "detection",
        "quantization",
        "train",
        "evaluate",
        "cluster",
        "serve",
        "all",
        "test",
    }


def test_requirements_have_lower_bounds_that_installed_versions_meet(
    setup_cfg: configparser.ConfigParser,
) -> None:
    texts = _lines(setup_cfg["options"]["install_requires"])
    extras = ("ocr", "paddleocr", "segmentation", "detection", "quantization", "train", "evaluate", "cluster", "serve")
    for extra in (*extras, "test"):
        texts += _lines(setup_cfg["options.extras_require"][extra])
    for requirement in map(Requirement, texts):
        if requirement.name == "moai-vlm":
            continue
        assert any(bound.operator == ">=" for bound in requirement.specifier), f"{requirement} has no lower bound"
        try:
            installed = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            continue
        assert requirement.specifier.contains(installed, prereleases=True), f"{requirement}, installed: {installed}"


def _read_lock(name: str) -> dict[str, list[Requirement]]:
    """Pins by package; a package has several where they depend on the platform or the interpreter."""
    pins: dict[str, list[Requirement]] = {}
    for line in _lines((REPO_ROOT / "constraints" / name).read_text(encoding="utf-8")):
        assert "://" not in line, f"{name} names a host: {line}"
        if not line.startswith("#"):
            pin = Requirement(line)
            assert [bound.operator for bound in pin.specifier] == ["=="], f"{name} does not pin {line}"
            pins.setdefault(canonicalize_name(pin.name), []).append(pin)
    return pins


@pytest.mark.parametrize(
    ("name", "left_out"), [("locked.txt", {"paddleocr"}), ("oldest.txt", {"paddleocr"}), ("paddleocr.txt", set())]
)
def test_lock_pins_every_requirement_within_its_bounds_when_read(
    name: str, left_out: set[str], setup_cfg: configparser.ConfigParser
) -> None:
    pins = _read_lock(name)
    extras = setup_cfg["options.extras_require"]
    texts = _lines(setup_cfg["options"]["install_requires"])
    texts += [line for extra in set(extras) - left_out for line in _lines(extras[extra])]
    for requirement in map(Requirement, texts):
        if requirement.name == "moai-vlm":
            continue
        for pin in pins[canonicalize_name(requirement.name)]:
            (bound,) = pin.specifier
            assert bound.version in requirement.specifier, f"run `make lock`: {requirement}, but {name} has {pin}"


def test_lock_pins_what_is_installed_transitively_when_compared() -> None:
    locked = _read_lock("locked.txt")
    for name in ("transformers", "torch", "peft", "datasets", "rapidocr", "timm"):
        try:
            needs = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        needed = [
            need for need in map(Requirement, needs) if need.marker is None or need.marker.evaluate({"extra": ""})
        ]
        assert {canonicalize_name(need.name) for need in needed} <= locked.keys()


def test_all_extra_names_every_user_facing_extra_when_read(setup_cfg: configparser.ConfigParser) -> None:
    extras = setup_cfg["options.extras_require"]
    (requirement,) = map(Requirement, _lines(extras["all"]))
    # paddleocr: 1.4 GB for a second engine of what the extra `ocr` reads already; asked for by name only.
    assert requirement.extras == set(extras) - {"all", "test", "paddleocr"}


def test_extra_named_in_install_hint_really_holds_the_package_when_read(
    setup_cfg: configparser.ConfigParser,
) -> None:
    extras = setup_cfg["options.extras_require"]
    for package, extra in import_utils.EXTRA_OF_PACKAGE.items():
        names = {canonicalize_name(Requirement(line).name) for line in _lines(extras[extra])}
        assert canonicalize_name(package) in names, f"{package} is not in the extra {extra}"


def test_require_gives_the_exact_line_when_a_package_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(import_utils, "_is_package_available", lambda package: package != "rapidocr")
    import_utils.require("onnxruntime")
    with pytest.raises(ImportError, match=r'OCR needs `rapidocr`.*pip install "moai-vlm\[ocr\]"'):
        import_utils.require("rapidocr", "onnxruntime", purpose="OCR")


def test_require_names_every_missing_package_when_several_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(import_utils, "_is_package_available", lambda package: False)
    with pytest.raises(ImportError, match=r"`fastapi` and `uvicorn`, which are not installed.*\[serve\]"):
        import_utils.require("fastapi", "uvicorn")


def test_availability_is_false_when_only_a_stray_folder_has_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "stray_folder_of_no_package").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    assert not import_utils._is_package_available("stray_folder_of_no_package")


def test_first_party_check_passes_when_packages_are_ours() -> None:
    import_utils.check_first_party_packages()


@pytest.mark.parametrize("package", ["mixer", "compressor", "verbalizers"])
def test_first_party_check_names_the_stranger_when_a_name_clashes(package: str, tmp_path: Path) -> None:
    """In a fresh interpreter, with a stranger of that name standing before ours on ``sys.path``."""
    stranger = tmp_path / package
    stranger.mkdir()
    (stranger / "__init__.py").write_text("raise RuntimeError('a stranger was imported')\n")
    checker = REPO_ROOT / "moai" / "import_utils.py"
    script = (
        "import sys, importlib.util\n"
        f"sys.path[:0] = [{str(tmp_path)!r}, {str(REPO_ROOT)!r}]\n"
        f"spec = importlib.util.spec_from_file_location('checker', {str(checker)!r})\n"
        "checker = importlib.util.module_from_spec(spec); spec.loader.exec_module(checker)\n"
        "checker.check_first_party_packages()\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode != 0
    assert "a stranger was imported" not in result.stderr
    assert f"`{package}` is hidden by another one of the same name at {stranger}" in result.stderr
    assert f"pip uninstall {package}" in result.stderr


def test_version_is_told_once_when_both_are_read(setup_cfg: configparser.ConfigParser) -> None:
    moai = pytest.importorskip("moai")
    assert moai.__version__ == setup_cfg["metadata"]["version"]
    assert f"## [{moai.__version__}]" in (REPO_ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_shipped_texts_name_no_path_of_this_machine_when_searched():
    tops = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "docs", "configs", "checkpoints", "examples", "benchmarks")
    files = [file for top in tops for file in [REPO_ROOT / top, *(REPO_ROOT / top).rglob("*")] if file.is_file()]
    texts = [file for file in files if file.suffix in {".md", ".json", ".jsonl", ".yaml", ".jinja", ".txt", ".py"}]
    assert len(texts) > 40
    found = [file for file in texts if f"{REPO_ROOT}/" in file.read_text(encoding="utf-8")]
    assert found == []

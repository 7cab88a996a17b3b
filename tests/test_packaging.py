"""The distribution: a wheel holds what setup.cfg promises, optional packages say how to get them."""

import configparser
import importlib.metadata
import os
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from fresh_processes import run_each
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from moai import import_utils

REPO_ROOT = Path(__file__).resolve().parent.parent
TOP_LEVEL_PACKAGES = ("moai", "verbalizers", "compressor", "mixer")
#: Stand at the repository's top and are installed as moai/bundled.
BUNDLED = ("checkpoints", "configs", "examples")
#: Of the examples, what README.md's first commands need and the images beside it.
BUNDLED_EXAMPLES = {"astronaut.jpg", "page.png", "street.jpg", "street.json", "LICENSES.md"}


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
    mapped = dict(line.split(" = ") for line in _lines(setup_cfg["options"]["package_dir"]))
    assert mapped == {f"moai.bundled.{name}": name for name in BUNDLED}
    assert sorted(_lines(setup_cfg["options"]["packages"])) == sorted(_packages_in_tree() | mapped.keys())


def test_every_folder_with_code_is_a_package_when_listed() -> None:
    folders = {
        ".".join(path.parent.relative_to(REPO_ROOT).parts)
        for top in TOP_LEVEL_PACKAGES
        for path in (REPO_ROOT / top).rglob("*.py")
    }
    assert folders == _packages_in_tree(), "a folder with .py files has no __init__.py"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """A wheel built by way of the sdist from a copy of the sources: no build/ is left behind in the repository."""
    pytest.importorskip("build")
    source = tmp_path_factory.mktemp("source")
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPO_ROOT / name, source)
    for folder in (*TOP_LEVEL_PACKAGES, *BUNDLED):
        shutil.copytree(REPO_ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", "out"]
    result = subprocess.run(command, cwd=source, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr
    (path,) = (source / "out").glob("*.whl")
    return zipfile.ZipFile(path)


@pytest.fixture(scope="module")
def installed(wheel: zipfile.ZipFile, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the wheel installs, in a folder of its own."""
    folder = tmp_path_factory.mktemp("site")
    wheel.extractall(folder)
    return folder


@pytest.mark.slow
def test_wheel_holds_every_module_and_data_file_when_built(wheel: zipfile.ZipFile) -> None:
    modules = {
        path.relative_to(REPO_ROOT).as_posix()
        for top in TOP_LEVEL_PACKAGES
        for path in (REPO_ROOT / top).rglob("*.py")
        if "__pycache__" not in path.parts
    }
    files = [path for folder in BUNDLED[:2] for path in (REPO_ROOT / folder).rglob("*") if path.is_file()]
    files += [REPO_ROOT / "examples" / name for name in BUNDLED_EXAMPLES]
    bundled = {f"moai/bundled/{path.relative_to(REPO_ROOT).as_posix()}" for path in files}
    shipped = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert shipped == modules | _data_files_in_tree() | bundled
    assert 13e6 < Path(wheel.filename).stat().st_size < 60e6


@pytest.mark.slow
def test_bundled_checkpoints_carry_their_licences_when_installed(installed: Path) -> None:
    folders = [path.parent for path in (installed / "moai" / "bundled" / "checkpoints").rglob("config.json")]
    assert len(folders) == 7
    for folder in folders:
        card = (folder / "README.md").read_text(encoding="utf-8")
        assert "\nlicense: apache-2.0\n" in card, folder
    assert "SIL Open Font License" in (installed / "moai/scenes/assets/scenes/LICENSES.md").read_text(encoding="utf-8")
    assert "public domain" in (installed / "moai/bundled/examples/LICENSES.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_installed_wheel_answers_and_trains_when_there_is_no_clone(installed: Path, tmp_path: Path) -> None:
    pytest.importorskip("timm")
    pytest.importorskip("rapidocr")
    pytest.importorskip("peft")
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    environment.pop("MOAI_MODEL", None)

    readme = (REPO_ROOT / "README.md").read_text(encoding="utf-8")
    photograph, sign = re.findall(r"^moai (ask .+)$", readme, flags=re.MULTILINE)[:2]
    tiny = "data.sources=[{scenes: {length: 2, num_questions: 1, image_size: 64}}]"
    words = ("optimization.num_steps=1", "optimization.batch_size=2", "optimization.micro_batch_size=2", tiny)
    training = ["train", "--config", "train_stage1.yaml", *words]
    commands = [["info"], shlex.split(photograph), shlex.split(sign), training]
    scripts = [
        f"import sys\nprint('COMMAND', flush=True)\nsys.argv = {['moai', *each]!r}\n"
        "from moai.__main__ import main\nmain()"
        for each in commands
    ]
    told = "\n".join(run_each(scripts, tmp_path, environment)).split("COMMAND\n")[1:]
    assert f"{installed}/moai/bundled/checkpoints/moai-nano" in told[0]
    assert (told[1].strip(), told[2].strip()) == ("yes", "PLEASE")
    assert "outputs/stage1/final" in told[3]
    assert (tmp_path / "outputs" / "stage1" / "final" / "adapter_model.safetensors").is_file()


def test_extras_are_found_without_an_index_when_the_package_is_installed() -> None:
    """The line of `require` asks no index for moai-vlm, which is on none."""
    try:
        importlib.metadata.distribution("moai-vlm")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("moai-vlm is not installed here")
    command = [sys.executable, "-m", "pip", "install", "--no-index", "--dry-run", "moai-vlm[ocr]"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr


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
        "generate",
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
    extras = setup_cfg["options.extras_require"]
    texts = _lines(setup_cfg["options"]["install_requires"])
    texts += [line for extra in extras for line in _lines(extras[extra])]
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

"""What a fresh interpreter loads: nothing for `import moai` and for help, and every public name on first use."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer

import moai
from moai.cli import app

COMMANDS = sorted(typer.main.get_command(app).commands)


def _run(script: str, repo_root: Path) -> dict:
    """The last line that a script prints in a fresh interpreter, as JSON."""
    result = subprocess.run(
        [sys.executable, "-c", script], cwd=repo_root, capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.strip().splitlines()[-1])


def _run_commands(commands: list[str], repo_root: Path) -> dict:
    """Exit code of each command, one after the other, and which of the slow packages were imported by then."""
    script = (
        "import json, sys\nfrom moai.cli import app\nfound = {}\n"
        f"for words, arguments in {[(words, shlex.split(words)) for words in commands]!r}:\n"
        "    code = 0\n"
        "    try: app(arguments, prog_name='moai')\n"
        "    except SystemExit as exit: code = exit.code\n"
        "    slow = {'torch', 'transformers', 'compressor', 'mixer'} & set(sys.modules)\n"
        "    found[words] = [code, sorted(slow)]\n"
        "print(json.dumps(found))"
    )
    return _run(script, repo_root)


def test_help_needs_neither_torch_nor_transformers_when_asked_for(repo_root: Path) -> None:
    commands = ["--help", "--version", *(f"{name} --help" for name in COMMANDS)]
    assert _run_commands(commands, repo_root) == {words: [0, []] for words in commands}


def test_wrong_arguments_need_neither_torch_nor_transformers_when_reported(repo_root: Path) -> None:
    codes = {
        "ask": 2,
        "ask examples/street.jpg": 2,
        "ask --no-such-option": 2,
        "no-such-command": 2,
        "ask examples/street.jpg Why? --questions questions.jsonl": 2,
        "ask examples/street.jpg Why? --model no-such-model": 1,
        "ask examples/street.jpg Why? --option routing": 1,
        "ask examples/street.jpg Why? --verbalizers no-such-verbalizer": 1,
        "ask examples/street.jpg Why? --scene no-such-scene.json": 1,
        "ask --questions no-such-file.jsonl": 1,
    }
    assert _run_commands(list(codes), repo_root) == {words: [code, []] for words, code in codes.items()}


def test_import_loads_no_other_module_of_ours_when_fresh(repo_root: Path) -> None:
    packages = ("moai", "compressor", "mixer", "verbalizers")
    script = (
        "import json, sys, moai\n"
        f"print(json.dumps(sorted(name for name in sys.modules if name.split('.')[0] in {packages})))"
    )
    assert _run(script, repo_root) == ["moai", "moai.import_utils", "moai.models", "moai.models.registry"]


def test_public_names_are_all_there_when_looked_at() -> None:
    namespace: dict[str, object] = {}
    exec("from moai import *", namespace)
    assert set(moai.__all__) <= set(namespace)
    assert set(moai.__all__) <= set(dir(moai))
    for name in moai.__all__:
        assert namespace[name] is getattr(moai, name)
        assert namespace[name].__name__ == name


def test_unknown_name_is_refused_when_asked_for() -> None:
    with pytest.raises(AttributeError, match="module 'moai' has no attribute 'MoAIConfiguration'"):
        _ = moai.MoAIConfiguration

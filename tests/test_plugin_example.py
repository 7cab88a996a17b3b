"""The example package is installed for real, by pip, beside the repository, and found by its entry point."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPO_ROOT = Path(__file__).resolve().parent.parent

LOOK = """
import json, sys
import numpy as np
from verbalizers import Detections, Scene, available_verbalizers, build_verbalizer, parse_scene, verbalize_scene

assert available_verbalizers()["colour"] == ("mean",), available_verbalizers()
assert "moai_colour_verbalizer" not in sys.modules, "listed without being imported"
image = np.zeros((60, 80, 3), np.uint8)
image[:, :40], image[:, 40:] = (210, 20, 20), (30, 70, 210)
found = parse_scene([image], [build_verbalizer("colour")])[0]
assert not found.failures, found.failures
boxes = [[4, 4, 36, 56], [44, 4, 76, 56], [0, 0, 80, 60]]
detections = Detections(boxes, ("balloon", "car", "wall"), (0.9, 0.8, 0.1), (60, 80))
scene = Scene((60, 80), detections=detections, findings=found.findings)
print(verbalize_scene(scene, kinds=["colour"]))
print(json.dumps(scene.to_dict()))
"""

READ_BACK = """
import json, sys
from verbalizers import Scene, verbalize_scene

scene = Scene.from_dict(json.loads(sys.stdin.read()))
assert type(scene.findings["colour"]).__name__ == "ColourGrid"
print(verbalize_scene(scene, kinds=["colour"]))
"""

WORDS = "The image includes colours of objects: balloon is red, and car is blue."


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder into which pip has installed the example; a copy is built, which leaves the repository clean."""
    pytest.importorskip("setuptools")
    if subprocess.run([sys.executable, "-m", "pip", "--version"], capture_output=True, check=False).returncode:
        pytest.skip("this environment has no pip")
    folder = tmp_path_factory.mktemp("plugin")
    shutil.copytree(REPO_ROOT / "examples" / "colour_verbalizer", folder / "source")
    options = ["--no-index", "--no-deps", "--no-build-isolation", "--target", str(folder / "site")]
    command = [sys.executable, "-m", "pip", "install", "--quiet", *options, str(folder / "source")]
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
    return folder / "site"


def run(site, *arguments, text=None):
    """A fresh interpreter that has the repository and, unless None, the installed example on its path."""
    path = os.pathsep.join([str(REPO_ROOT)] + ([] if site is None else [str(site)]))
    result = subprocess.run(
        [sys.executable, *arguments],
        input=text,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


@pytest.fixture(scope="module")
def looked(site):
    """The example's words about an image, and the scene as JSON."""
    return run(site, "-c", LOOK)


def test_example_looks_and_speaks_when_installed(site, looked):
    words, data = looked
    assert words == WORDS
    # Another process, which has only read the scene, finds finding and words through the entry point.
    assert run(site, "-c", READ_BACK, text=data) == [WORDS]


def test_scene_is_readable_when_example_is_not_installed(looked):
    script = "import json, sys; from verbalizers import Scene; s = Scene.from_dict(json.loads(sys.stdin.read())); "
    script += "print(len(s.detections), s.findings['colour']['structure'])"
    assert run(None, "-c", script, text=looked[1]) == ["3 colour_grid"]


def test_command_line_knows_the_kind_when_example_is_installed(site):
    scene = REPO_ROOT / "examples" / "street.jpg"
    arguments = ["-m", "moai", "verbalize", str(scene), "--verbalizers", "colour", "--json"]
    row = json.loads(run(site, *arguments)[-1])
    assert row["scene"]["findings"]["colour"]["structure"] == "colour_grid"

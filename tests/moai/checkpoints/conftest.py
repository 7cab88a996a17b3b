"""The published checkpoint in small."""

import pytest
from official_checkpoints import write_release


@pytest.fixture(scope="session")
def release(tmp_path_factory):
    """Folder of a checkpoint as MoAI-7B is published; tests only read it."""
    return write_release(tmp_path_factory.mktemp("release") / "official")

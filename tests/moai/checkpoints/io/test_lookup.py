from pathlib import Path

import pytest

from moai.checkpoints.io.lookup import find_checkpoint


@pytest.mark.parametrize("name", ["config.json", "adapter_config.json"])
def test_folder_of_a_training_names_its_result_when_asked_for_as_a_model(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="without one\\.$"):
        find_checkpoint(tmp_path)
    (tmp_path / "final").mkdir()
    with pytest.raises(ValueError, match="moai convert"):
        find_checkpoint(tmp_path)
    (tmp_path / "final" / name).write_text("{}")
    with pytest.raises(ValueError, match="wrote its result to .*final"):
        find_checkpoint(tmp_path)
    assert find_checkpoint(tmp_path / "final") == str(tmp_path / "final")

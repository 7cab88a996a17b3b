"""docs/trl.md, run as it stands: TRL trains a MoAI with and without auxiliary text, whole and as an adapter."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

import pytest
import torch

for _package in ("trl", "peft", "datasets", "rapidocr"):
    pytest.importorskip(_package, reason=f'needs {_package}: pip install trl "moai-vlm[train,ocr]"')

import moai  # noqa: E402
from moai.models.moai.pretrained_model import MoAIPreTrainedModel  # noqa: E402

REPO_ROOT = Path(__file__).resolve().parent.parent
NANO = REPO_ROOT / "checkpoints" / "moai-nano"


@pytest.mark.slow
def test_page_runs_and_trains_the_compressor_when_copied(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("checkpoints", "examples"):
        (tmp_path / name).symlink_to(REPO_ROOT / name)
    blocks = re.findall(r"```python\n(.*?)```", (REPO_ROOT / "docs" / "trl.md").read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 4
    said: dict = {}
    with contextlib.chdir(tmp_path):
        for block in blocks:
            exec(block, said)  # the page's own code
        before = moai.MoAIForConditionalGeneration.from_pretrained(NANO, dtype=torch.float32).state_dict()
        after = moai.MoAIForConditionalGeneration.from_pretrained("trl-run/final", dtype=torch.float32).state_dict()
        compressor = [name for name in before if re.search(MoAIPreTrainedModel.trainable_parts["compressor"], name)]
        moved = [name for name in compressor if not torch.equal(before[name], after[name])]
        assert len(moved) >= 0.9 * len(compressor), sorted(set(compressor) - set(moved))
        for folder in ("trl-run/final", "trl-adapter/final"):
            pipeline = moai.Pipeline.from_pretrained(folder)
            assert pipeline("examples/street.jpg", "What is written on the sign?").answer == "PLEASE"
        pipeline.save_pretrained("adapter")
    os.rename(tmp_path / "adapter", tmp_path / "moved")
    assert moai.MoAIForConditionalGeneration.from_pretrained(tmp_path / "moved").adapter_base.name == str(NANO)
    assert not (NANO / "adapter_config.json").exists()


def test_trl_takes_the_templates_for_training_when_only_answers_are_learned() -> None:
    from trl.chat_template_utils import is_chat_template_stop_token_trained

    assert is_chat_template_stop_token_trained(moai.MoAIProcessor.from_pretrained(NANO))

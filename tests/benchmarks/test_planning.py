"""What `moai plan` counts is what real calls take, within a tenth, of any model."""

from pathlib import Path

import pytest
from flamingo_builders import save_flamingo
from prismer_builders import save_prismer
from prompted_builders import save_prompted

pytest.importorskip("peft", reason='needs peft: pip install "moai-vlm[train]"')

from benchmarks.planning import compare_answer, compare_step, format_rows  # noqa: E402
from moai.planning.planned_model import SampleShape  # noqa: E402
from moai.training.train_settings import load_settings  # noqa: E402

SHAPE = SampleShape(num_prompt_tokens=40, num_auxiliary_tokens=60, num_answer_tokens=24)
#: Checkpoint, recipe, and how far memory may be off: tiny models' own buffers count for much.
MODELS = {
    "moai": (lambda folder: "moai-nano", "train_stage2", 0.1),
    "llava": (lambda folder: save_prompted(folder, "llava"), "prompted_lora", 0.2),
    "qwen2_vl": (lambda folder: save_prompted(folder, "qwen2_vl"), "prompted_lora", 0.2),
    "flamingo": (save_flamingo, "flamingo", 0.2),
    "prismer": (lambda folder: save_prismer(folder) or folder, "prismer", 0.6),
}


@pytest.mark.parametrize("family", MODELS)
def test_counts_are_those_of_real_calls_when_both_are_made(family: str, tmp_path: Path) -> None:
    save, recipe, tolerance = MODELS[family]
    name = str(save(tmp_path))
    overrides = [f"model={{path: {name}}}", "optimization.micro_batch_size=2", "optimization.batch_size=2"]
    overrides += ["train.lora_dropout=0.0"] if family == "moai" else []
    settings = load_settings(f"configs/{recipe}.yaml", overrides)
    rows = [compare_answer(name, SHAPE), compare_step(name, settings, SHAPE)]
    print(format_rows(rows))
    for row in rows:
        assert row.counted_flops == pytest.approx(row.flops, rel=0.05), row
        assert row.counted_bytes == pytest.approx(row.peak_bytes, rel=tolerance), row

"""What a run takes of the machine it is on: attention kernels and processes that prepare batches."""

import multiprocessing
import os

import pytest
import torch
from torch.nn import functional as F

pytest.importorskip("accelerate", reason='needs accelerate: pip install "moai-vlm[train]"')

from moai.training.attention_kernels import short_rows_plainly  # noqa: E402
from moai.training.processes import count_workers  # noqa: E402


@pytest.mark.parametrize(
    ("cores", "ranks", "chosen", "count"),
    [(1, 1, None, 0), (2, 1, None, 1), (3, 2, None, 0), (4, 2, None, 1), (1, 1, 3, 3), (8, 1, 0, 0)],
)
def test_workers_are_one_by_default_when_each_rank_has_a_core_to_spare(
    monkeypatch: pytest.MonkeyPatch, cores: int, ranks: int, chosen: int | None, count: int
) -> None:
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(cores)), raising=False)
    assert count_workers(chosen, ranks) == count
    monkeypatch.setattr(multiprocessing, "get_start_method", lambda: "spawn")
    assert count_workers(None, ranks) == 0


@pytest.mark.parametrize(
    ("dtype", "length", "is_plain"), [("bfloat16", 64, True), ("bfloat16", 320, False), ("float32", 64, False)]
)
def test_attention_on_cpus_is_plain_when_rows_are_short_and_half(dtype: str, length: int, is_plain: bool) -> None:
    query, key, value = (torch.randn(2, 2, length, 16, requires_grad=True) for _ in range(3))
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"), short_rows_plainly():
        out = F.scaled_dot_product_attention(query, key, value=value, is_causal=True)
    assert ("FlashAttention" not in type(out.grad_fn).__name__) == is_plain
    expected = F.scaled_dot_product_attention(query, key, value, is_causal=True)
    torch.testing.assert_close(out.float(), expected, atol=2e-2, rtol=0)

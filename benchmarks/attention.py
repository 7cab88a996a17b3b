"""Attention in training on CPUs: plain products beside torch's fused kernel, forward and backward pass.

    OMP_NUM_THREADS=1 python -m benchmarks.attention

`moai.training.attention_kernels` chooses by it. Processor time; a ratio is the median of those of calls that stood side
by side.
"""

from __future__ import annotations

import argparse
import time
from functools import partial

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.measurement import describe_machine, markdown_table, paired_ratio, time_alternating

#: Queries and keys.
SHAPES = ((32, 32), (64, 64), (128, 128), (160, 160), (192, 192), (256, 256), (512, 512), (64, 256), (64, 1024))
#: Samples, heads, width of a head.
MODELS = ((16, 4, 32), (4, 8, 64))


def attend(backend: SDPBackend, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, num_calls: int) -> None:
    """Forward and backward pass, several times."""
    for _ in range(num_calls):
        with sdpa_kernel(backend):
            scaled_dot_product_attention(query, key, value).sum().backward()


def main() -> None:
    """Measure and print a table for each dtype."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    device = torch.device("cpu")
    print(describe_machine(device))
    for dtype in (torch.float32, torch.bfloat16):
        rows = []
        for num_queries, num_keys in SHAPES:
            row = [f"{num_queries} x {num_keys}"]
            for batch, heads, width in MODELS:
                query, key, value = (
                    torch.randn(batch, heads, length, width, dtype=dtype, requires_grad=True)
                    for length in (num_queries, num_keys, num_keys)
                )
                num_calls = max(1, 50_000_000 // (batch * heads * num_queries * num_keys * width))
                calls = {
                    name: partial(attend, backend, query, key, value, num_calls)
                    for name, backend in (("fused", SDPBackend.FLASH_ATTENTION), ("plain", SDPBackend.MATH))
                }
                times = time_alternating(calls, arguments.rounds, device, clock=time.process_time)
                row.append(paired_ratio(times["plain"], times["fused"]).shown(2))
            rows.append(row)
        print(f"\n{str(dtype).removeprefix('torch.')}, plain / fused:\n")
        header = ["queries x keys", *(f"{batch} x {heads} heads of {width}" for batch, heads, width in MODELS)]
        print("\n".join(markdown_table(header, rows)), flush=True)


if __name__ == "__main__":
    main()

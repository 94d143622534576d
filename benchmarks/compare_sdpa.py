#!/usr/bin/env python3
"""Attention under masks beside PyTorch's: bench_sdpa's rows as a table.

  benchmarks/compare_sdpa.py --bin build/release/bin
  benchmarks/compare_sdpa.py --bin build/release/bin --shapes 32x512x12x64 --masks bool_keys:50 \\
      --modes train --flex

Milliseconds a call, launched one behind the other, of the device's clock. PyTorch's best is the fastest of
its flash, memory-efficient, cuDNN and plain backends that takes the call; --flex adds compiled
flex_attention, and says so where it is the best. Of heads 32/8, keys and values have 8: the model repeats them,
PyTorch is told enable_gqa, and copies is Tenon's time without a schedule. ratio: Tenon's time over the best; of none: over
Tenon's own time without a mask. Operands lie as models have them: (batch, seq, heads, head), permuted.
"""

import argparse
import json
import os
import subprocess
import sys

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

BACKENDS = {"flash": SDPBackend.FLASH_ATTENTION, "efficient": SDPBackend.EFFICIENT_ATTENTION,
            "cudnn": SDPBackend.CUDNN_ATTENTION, "math": SDPBackend.MATH}
# The plain backend writes all scores.
MOST_SCORES = 1 << 30
MASKS = ["none", "bool_keys:0", "bool_keys:50", "additive_keys:0", "additive_keys:50", "bool:50",
         "additive:0", "causal"]


def make_mask(kind, hidden, batch, seq, dtype):
    """As bench_sdpa makes it."""
    if kind in ("none", "causal"):
        return None
    keys = kind.endswith("_keys")
    shape = (batch, 1, 1, seq) if keys else (seq, seq)
    shown = (torch.arange(seq, device="cuda") < seq - seq * hidden // 100).expand(shape)
    if kind.startswith("bool"):
        return shown.contiguous()
    noise = (torch.zeros if keys else torch.randn)(shape, device="cuda", dtype=dtype)
    return noise.masked_fill(~shown, float("-inf"))


def flex(kind, mask):
    """Compiled flex_attention under that mask."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention
    compiled = torch.compile(flex_attention)
    blocks, change = None, None
    if kind == "causal":
        blocks = lambda q, k: create_block_mask(lambda b, h, i, j: i >= j, None, None, q, k)
    elif kind == "bool_keys":
        blocks = lambda q, k: create_block_mask(lambda b, h, i, j: mask[b, 0, 0, j],
                                                mask.shape[0], None, q, k)
    elif kind == "bool":
        blocks = lambda q, k: create_block_mask(lambda b, h, i, j: mask[i, j], None, None, q, k)
    elif kind == "additive_keys":
        change = lambda score, b, h, i, j: score + mask[b, 0, 0, j]
    elif kind == "additive":
        change = lambda score, b, h, i, j: score + mask[i, j]
    made = {}

    def call(q, k, v):
        if blocks is not None and not made:
            made["mask"] = blocks(q.shape[2], k.shape[2])
        return compiled(q, k, v, score_mod=change, block_mask=made.get("mask"))
    return call


def time_ms(work, runs):
    for _ in range(3):
        work()
    times = []
    for _ in range(3):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(runs):
            work()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) / runs)
    return sorted(times)[1]


def pytorch_ms(options, kind, hidden, shape, mode):
    """{backend: ms} of those that take the call."""
    batch, seq, heads, key_heads, head = shape
    dtype = getattr(torch, options.dtype)
    draw = lambda n: torch.randn(batch, seq, n, head, device="cuda", dtype=dtype).transpose(1, 2)
    q, k, v, g = (draw(n) for n in (heads, key_heads, key_heads, heads))
    mask = make_mask(kind, hidden, batch, seq, dtype)

    def attention():
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=kind == "causal",
                                              enable_gqa=heads != key_heads)

    calls = {name: attention for name in BACKENDS}
    if options.flex:
        compiled = flex(kind, mask)
        calls["flex"] = lambda: compiled(q, k, v)
    found = {}
    for name, call in calls.items():
        if name == "math" and batch * heads * seq * seq > MOST_SCORES:
            continue
        for tensor in (q, k, v):
            tensor.requires_grad_(mode == "train")

        def step():
            if mode == "fwd":
                with torch.no_grad():
                    return call()
            return torch.autograd.grad(call(), (q, k, v), g)

        try:
            if name in BACKENDS:
                with sdpa_kernel(BACKENDS[name]):
                    found[name] = time_ms(step, options.runs)
            else:
                found[name] = time_ms(step, options.runs)
        except Exception as error:  # a backend that does not take the call
            if options.verbose:
                print(f"{name}: {str(error).splitlines()[0][:150]}", file=sys.stderr)
    return found


def tenon_row(options, kind, hidden, shape, mode, schedule="full"):
    batch, seq, heads, key_heads, head = map(str, shape)
    command = [os.path.join(options.bin, "bench_sdpa"), "--json", "--dtype", options.dtype,
               "--batch", batch, "--seq", seq, "--heads", heads, "--head", head, "--mode", mode,
               "--key-heads", key_heads, "--schedule", schedule,
               "--mask", "none" if kind == "causal" else kind, "--hidden", str(hidden),
               "--runs", str(options.runs)] + (["--causal"] if kind == "causal" else [])
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                          check=False)
    if done.returncode != 0:
        sys.exit(f"failed: {' '.join(command)}\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main():
    def names(text):
        return [name for name in text.split(",") if name]

    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--bin", required=True, help="the folder of Tenon's programs")
    add("--shapes", type=names, default=["32x512x12x64", "4x4096x12x64", "4x4096x16x128"],
        help="BATCHxSEQxHEADSxHEAD, ...; HEADS may be HEADS/KEY_HEADS")
    add("--masks", type=names, default=MASKS, help="KIND:PERCENT, ... as bench_sdpa's --mask and "
        "--hidden; none, causal")
    add("--modes", type=names, default=["fwd", "train"], help="fwd, train")
    add("--dtype", default="bfloat16")
    add("--runs", type=int, default=20)
    add("--flex", action="store_true", help="compiled flex_attention too: many seconds a row")
    add("--verbose", action="store_true", help="say why a backend was left out")
    options = parser.parse_args()
    print("| shape, mask, percent hidden | mode | Tenon ms | TFLOP/s | of none | copies | PyTorch best "
          "| ratio | kernels |\n|---|---|---|---|---|---|---|---|---|")
    for text in options.shapes:
        batch, seq, heads, head = text.split("x")
        heads, _, key_heads = heads.partition("/")
        shape = tuple(map(int, (batch, seq, heads, key_heads or heads, head)))
        for mode in options.modes:
            plain = None
            for mask in options.masks:
                kind, _, hidden = mask.partition(":")
                hidden = int(hidden or 0)
                row = tenon_row(options, kind, hidden, shape, mode)
                if kind == "none":
                    plain = row["throughput_ms"]
                copies = (tenon_row(options, kind, hidden, shape, mode, "none")["throughput_ms"]
                          if key_heads else None)
                theirs = pytorch_ms(options, kind, hidden, shape, mode)
                best = min(theirs, key=theirs.get) if theirs else None
                ms = row["throughput_ms"]
                print(f"| {text}, {mask} | {mode} | {ms:.4f} | {row['tflops']:.0f} | "
                      f"{f'{ms / plain:.2f}' if plain else '-'} | "
                      f"{f'{copies:.4f}' if copies else '-'} | "
                      + (f"{theirs[best]:.4f} {best} | {ms / theirs[best]:.2f}" if best else "- | -")
                      + f" | {' '.join(name.removeprefix('cuda.') for name in row['kernels'])} |",
                      flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

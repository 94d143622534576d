#!/usr/bin/env python3
"""Convolutions of image models beside PyTorch's: bench_conv's rows as a table.

  benchmarks/compare_conv.py --bin build/release/bin
  benchmarks/compare_conv.py --bin build/release/bin --model wide_resnet50_2 --batch 32

Each distinct convolution of the model, forward and both gradients, channels-last on both sides, launched from
captured graphs. torch: cuDNN's heuristic; best: after its own measurement (cudnn.benchmark). ratio: the
smaller of both over Tenon's time; above 1 Tenon is faster. Totals count every convolution of the model.
"""

import argparse
import json
import os
import subprocess
import sys
from collections import Counter

import torch

PASSES = ["forward", "d_images", "d_filters"]


def convolutions(model, batch, size):
    """(N, C, H, W, O, kernel, groups, stride, padding) -> how many the model has."""
    wide = 2 if model == "wide_resnet50_2" else 1
    found = Counter({(batch, 3, size, size, 64, 7, 1, 2, 3): 1})
    side, channels = size // 4, 64
    for stage, blocks in enumerate([3, 4, 6, 3]):
        planes, out = 64 * wide << stage, 256 << stage
        for block in range(blocks):
            stride = 2 if block == 0 and stage > 0 else 1
            small = side // stride
            found[(batch, channels, side, side, planes, 1, 1, 1, 0)] += 1
            found[(batch, planes, side, side, planes, 3, 1, stride, 1)] += 1
            found[(batch, planes, small, small, out, 1, 1, 1, 0)] += 1
            if block == 0:
                found[(batch, channels, side, side, out, 1, 1, stride, 0)] += 1
            side, channels = small, out
    return found


def captured_us(work, runs):
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(2):
            work()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(runs):
            work()
    times = []
    for _ in range(5):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) * 1e3 / runs)
    return sorted(times)[2]


def pytorch_us(sizes, dtype, runs):
    n, c, h, w, o, k, groups, stride, padding = sizes
    last = {"memory_format": torch.channels_last}
    x = torch.randn(n, c, h, w, device="cuda", dtype=dtype).to(**last)
    f = torch.randn(o, c // groups, k, k, device="cuda", dtype=dtype).to(**last)
    s, p, d = [stride] * 2, [padding] * 2, [1, 1]
    y = torch.ops.aten.convolution(x, f, None, s, p, d, False, [0, 0], groups)

    def gradients(images, filters):
        return torch.ops.aten.convolution_backward(
            y, x, f, None, s, p, d, False, [0, 0], groups, [images, filters, False])

    return {
        "forward": captured_us(
            lambda: torch.ops.aten.convolution(x, f, None, s, p, d, False, [0, 0], groups), runs),
        "d_images": captured_us(lambda: gradients(True, False), runs),
        "d_filters": captured_us(lambda: gradients(False, True), runs),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--bin", required=True, help="the folder of Tenon's programs")
    add("--model", choices=["resnet50", "wide_resnet50_2"], default="resnet50")
    add("--batch", type=int, default=64)
    add("--size", type=int, default=224)
    add("--dtype", default="bfloat16")
    add("--runs", type=int, default=10)
    add("--no-best", action="store_true", help="PyTorch with its heuristic only")
    options = parser.parse_args()
    shapes = convolutions(options.model, options.batch, options.size)
    command = [os.path.join(options.bin, "bench_conv"), "--json", "--dtype", options.dtype,
               "--runs", str(options.runs)]
    for sizes in shapes:
        command += ["--sizes", *map(str, sizes)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                          check=False)
    if done.returncode != 0:
        sys.exit(f"failed: {done.stderr[-2000:]}")
    ours = {tuple(row["sizes"]): row for row in json.loads(done.stdout.splitlines()[-1])["rows"]}
    dtype = getattr(torch, options.dtype)
    theirs = {}
    for best in [False] if options.no_best else [False, True]:
        torch.backends.cudnn.benchmark = best
        theirs[best] = {sizes: pytorch_us(sizes, dtype, options.runs) for sizes in shapes}
    best_of = theirs[max(theirs)]
    totals = Counter()
    for sizes, count in shapes.items():
        print(f"{count} x {'x'.join(map(str, sizes[:4]))} -> {sizes[4]}, kernel {sizes[5]}, "
              f"stride {sizes[7]}:", flush=True)
        for name in PASSES:
            row = ours[sizes][name]
            time, heuristic, best = (row["microseconds"], theirs[False][sizes][name],
                                     best_of[sizes][name])
            for side, value in (("ours", time), ("torch", heuristic), ("best", best)):
                totals[name, side] += count * value
            print(f"    {name:9} {time:9.1f} us  torch {heuristic:9.1f}  best {best:9.1f}  ratio "
                  f"{min(heuristic, best) / time:.2f}  {row['kernel']}"
                  f"{'' if row['channels_last'] else ' row-major'}, workspace "
                  f"{row['workspace_bytes'] / 2**20:.1f} MiB")
        if "fused" in ours[sizes]:
            print(f"    fused     {ours[sizes]['fused'].get('microseconds', 0):9.1f} us  "
                  f"{ours[sizes]['fused']['kernel']}")
    for name in PASSES:
        print(f"all {name}: {totals[name, 'ours']:.0f} us, torch {totals[name, 'torch']:.0f}, best "
              f"{totals[name, 'best']:.0f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

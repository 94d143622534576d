#!/usr/bin/env python3
"""Products of Transformers beside cuBLASLt's fastest algorithm: bench_gemm's rows as a table.

  benchmarks/compare_gemm.py --bin build/release/bin
  benchmarks/compare_gemm.py --bin build/release/bin --shapes random --count 100 --seed 7
  benchmarks/compare_gemm.py --bin build/release/bin --sizes 128x768x3072,1x4096x4096
  benchmarks/compare_gemm.py --bin build/release/bin --epilogue gelu    # beside cuBLASLt's tanh form

models: 200 products (M, N, K) as BERT, GPT-2, LLaMA, T5 and ViT have them at batch 1 to 32, M tokens from K to
N features. random: others, of the same range. ratio: the time of cuBLASLt's fastest of 16 deterministic
algorithms, with split sums and without, over that of the kernel that Tenon runs; above 1 Tenon is faster.
Operands rotate through more memory than the cache holds (--warm: one set).
"""

import argparse
import json
import math
import os
import random
import subprocess
import sys

# (hidden sizes, features of the layers' outputs and inputs as (N, K) of the hidden size, lengths)
FAMILIES = {
    "BERT": ([768, 1024], lambda h: [(3 * h, h), (h, h), (4 * h, h), (h, 4 * h)], [128, 512]),
    "GPT-2": ([768, 1024, 1280, 1600], lambda h: [(3 * h, h), (h, h), (4 * h, h), (h, 4 * h)],
              [1, 1024]),
    "LLaMA": ([2048, 4096], lambda h: [(h + h // 2, h), (h, h), (4 * h, h), (h, 4 * h)], [1, 512]),
    "T5": ([512, 768, 1024], lambda h: [(h, h), (4 * h, h), (h, 4 * h)], [64, 512]),
    "ViT": ([384, 768, 1024], lambda h: [(3 * h, h), (h, h), (4 * h, h), (h, 4 * h)], [197]),
}
BATCHES = [1, 2, 4, 8, 16, 32]
LARGEST = 4e13  # operations: what one product may cost


def model_sizes(count):
    """The same `count` of them each time, of all families."""
    found = []
    for hidden_sizes, layers, lengths in FAMILIES.values():
        for h in hidden_sizes:
            found += [(batch * length, n, k) for n, k in layers(h)
                      for length in lengths for batch in BATCHES]
    found = sorted({sizes for sizes in found if 2 * math.prod(sizes) < LARGEST})
    return sorted(random.Random(0).sample(found, min(count, len(found))))


def random_sizes(count, seed):
    """M from 1 to 16384, N and K multiples of 8 (now and then not) from 64 to 8192."""
    draw = random.Random(seed)

    def between(least, most):
        return round(math.exp(draw.uniform(math.log(least), math.log(most))))

    def features():
        size = between(64, 8192)
        return size if draw.random() < 0.05 else (size + 7) // 8 * 8

    return [(between(1, 16384), features(), features()) for _ in range(count)]


def measure(options, sizes):
    rows = []
    for first in range(0, len(sizes), 50):
        command = [os.path.join(options.bin, "bench_gemm"), "--json", "--dtype", options.dtype,
                   "--runs", str(options.runs)]
        command += ["--warm"] * options.warm + ["--no-bias"] * options.no_bias
        command += ["--plans"] * options.plans + ["--epilogue", options.epilogue, "--layout",
                                                    options.layout]
        for m, n, k in sizes[first:first + 50]:
            command += ["--sizes", str(m), str(n), str(k)]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                              check=False)
        if done.returncode != 0:
            sys.exit(f"failed: {' '.join(command)}\n{done.stderr[-2000:]}")
        rows += json.loads(done.stdout.splitlines()[-1])["rows"]
        print(f"{len(rows)} of {len(sizes)}", file=sys.stderr, flush=True)
    return rows


def line(row):
    rate = 2e-6 * row["m"] * row["n"] * row["k"] / row["microseconds"]
    return (f"{row['m']:6} {row['n']:6} {row['k']:6}  {row['microseconds']:9.2f} us {rate:6.1f} TFLOP/s"
            f"  best {row['best_microseconds']:9.2f}{' split' if row['best_splits_k'] else '      '}"
            f" first {row['first_microseconds']:9.2f}"
            f"  ratio {row['ratio']:.2f}  {row['kernel']}")


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--bin", required=True, help="the folder of Tenon's programs")
    add("--shapes", choices=["models", "random"], default="models")
    add("--sizes", default="", help="MxNxK,... instead")
    add("--count", type=int, default=200)
    add("--seed", type=int, default=0, help="of random shapes")
    add("--dtype", default="bfloat16")
    add("--runs", type=int, default=20)
    add("--warm", action="store_true")
    add("--no-bias", action="store_true")
    add("--epilogue", choices=["none", "gelu", "gelu_tanh"], default="none")
    add("--layout", choices=["linear", "product", "gradient"], default="linear",
        help="product: x times W stored (K, N); gradient: as a weight's")
    add("--plans", action="store_true", help="with --json: the time of every algorithm and plan")
    add("--worst", type=int, default=10, help="rows listed at the end")
    add("--json", action="store_true", help="one JSON object on stdout")
    options = parser.parse_args()
    if options.sizes:
        sizes = [tuple(map(int, one.split("x"))) for one in options.sizes.split(",")]
    else:
        sizes = (model_sizes(options.count) if options.shapes == "models"
                 else random_sizes(options.count, options.seed))
    rows = measure(options, sizes)
    mean = math.exp(sum(math.log(row["ratio"]) for row in rows) / len(rows))
    if options.json:
        print(json.dumps({"geometric_mean": mean, "rows": rows}))
        return 0
    for row in rows:
        print(line(row))
    print(f"\nworst {min(options.worst, len(rows))} of {len(rows)}:")
    for row in sorted(rows, key=lambda row: row["ratio"])[:options.worst]:
        print(line(row))
    below = sum(row["ratio"] < 0.9 for row in rows)
    print(f"geometric mean {mean:.3f}; {below} below 0.9")
    return 0


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python3
"""Runs the work of Tenon's benchmark programs in PyTorch too, in turns, and prints one table of ratios.

  benchmarks/compare_pytorch.py --bin build/release/bin --out benchmarks/RESULTS.md
  benchmarks/compare_pytorch.py --bin ... --only attention --shapes 1x128,8x512 --modes fwd \\
      --variants eager,reduce-overhead --budget-s 500 --rows rows.jsonl
  benchmarks/compare_pytorch.py --render a.jsonl b.jsonl --out benchmarks/RESULTS.md

Each row takes --rounds turns of Tenon, then PyTorch (kernels: one turn); figures are medians. PyTorch is
measured as eager code and compiled, with each of its fused attention kernels, and its best variant counts,
for latency and back-to-back time separately. Inputs are random and rotate through more memory than a cache
holds. float32 rows have TF32 off. Latency: one step and the wait for it, by the host's clock. Back to back:
CUDA events around many steps. Floor: operations over 790 TFLOP/s (float32: 61.8) and bytes over 4.2 TB/s,
summed over Tenon's kernels.

Rows are appended to --rows as they come, and --out is written from all of that file. What --budget-s cuts
off is printed. Works with PyTorch 1.13 and later; the table needs Tenon's programs, not its sources.
"""

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time

import torch

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "tools"))
import pytorch_kernels  # noqa: E402
import pytorch_workloads as work  # noqa: E402
from results_table import render  # noqa: E402
from torch_gpt import read_checkpoint  # noqa: E402

ATTENTION_SHAPES = ["1x128", "8x512", "32x512", "4x2048", "2x8192"]
FLOAT32_SHAPES = ["1x128", "8x512", "32x512"]
AUTOTUNED_SHAPES = ["8x512", "32x512"]
VARIANTS = ["eager", "default", "reduce-overhead", "max-autotune"]


class Budget:
    """Seconds that may still be used; says what is left out."""

    def __init__(self, seconds):
        self.ends = time.monotonic() + seconds if seconds else None

    def allows(self, what):
        if self.ends is None or time.monotonic() < self.ends:
            return True
        print(f"skipped, the budget is used up: {what}", flush=True)
        return False


class Comparison:
    def __init__(self, options):
        self.options = options
        self.device = torch.device(options.device)
        self.budget = Budget(options.budget_s)

    # --- running ------------------------------------------------------------------------------------

    def tenon(self, program, *arguments):
        """The JSON object of one run; None, and why on stdout, when it fails."""
        command = [os.path.join(self.options.bin, program), "--json", "--device",
                   self.options.device, *map(str, arguments)]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                              check=False)
        if done.returncode != 0:
            print(f"failed: {' '.join(command)}\n{done.stderr[-2000:]}", flush=True)
            return None
        return json.loads(done.stdout.splitlines()[-1])

    def record(self, row):
        row["context"] = self.context()
        with open(self.options.rows, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps({key: value for key, value in row.items()
                          if key not in ("context", "losses")}), flush=True)
        if self.options.out:
            write_results(self.options.out, [self.options.rows])

    def context(self):
        cuda = self.device.type == "cuda"
        return {"date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
                "hardware": torch.cuda.get_device_name() if cuda else platform.processor() or "CPU",
                "driver": driver_version() if cuda else "",
                "torch": torch.__version__, "cuda": torch.version.cuda or "",
                "cudnn": str(torch.backends.cudnn.version()) if cuda else "",
                "python": platform.python_version(), "command": " ".join(sys.argv)}

    def chosen(self, wanted, available):
        return [one for one in available if not wanted or one in wanted]

    # --- attention block ----------------------------------------------------------------------------

    def attention(self):
        for dtype, shapes in (("bfloat16", ATTENTION_SHAPES), ("float32", FLOAT32_SHAPES)):
            if self.options.dtypes and dtype not in self.options.dtypes:
                continue
            for mode in self.chosen(self.options.modes, ["fwd", "train"]):
                for shape in self.options.shapes or shapes:
                    if self.budget.allows(f"attention {dtype} {mode} {shape}"):
                        self.attention_row(dtype, mode, shape)

    def attention_row(self, dtype, mode, shape):
        batch, seq = map(int, shape.split("x"))
        settings = {"mode": mode, "seed": self.options.seed, "hidden": self.options.hidden,
                    "heads": self.options.heads, "dropout": 0.1 if mode == "train" else 0.0}
        timers = self.attention_timers(work.DTYPES[dtype], (batch, seq), settings, shape)
        ours, theirs = [], {name: [] for name in timers}
        for _ in range(self.options.rounds):
            ours.append(self.tenon("bench_attention", "--batch", batch, "--seq", seq, "--dtype",
                                   dtype, "--mode", mode, "--dropout", settings["dropout"],
                                   "--hidden", settings["hidden"], "--heads", settings["heads"],
                                   "--schedule", self.options.schedule))
            for name, timer in timers.items():
                theirs[name].append(timer.measure())
        del timers
        row = {"work": "attention", "dtype": dtype, "mode": mode, "shape": shape}
        if None not in ours:
            row["tenon"] = medians(ours, ["latency_ms", "throughput_ms", "floor_ms", "kernels",
                                          "tflops", "arena_bytes", "live_bound_bytes", "peak_bytes",
                                          "build_ms", "eager_us_per_op"])
        row["pytorch"] = {name: {"latency_ms": 1e3 * statistics.median(t[0] for t in times),
                                 "throughput_ms": 1e3 * statistics.median(t[1] for t in times)}
                          for name, times in theirs.items()}
        self.record(row)

    def attention_timers(self, dtype, shape, settings, shape_name):
        timers = {}
        work.reset_compiler()
        for variant in self.variants(shape_name in AUTOTUNED_SHAPES):
            for backend in work.attention_backends(dtype):
                name = f"{variant}+{backend}"
                if not self.budget.allows(f"{name} at {shape_name}"):
                    continue
                try:
                    step = work.attention_step(self.device, dtype, shape, settings, backend, variant)
                    timers[name] = work.StepTimer(self.device, step, self.options.runs)
                except Exception as error:  # a backend that does not take the call
                    print(f"not available: {name} at {shape_name}: {str(error).splitlines()[0]}",
                          flush=True)
        return timers

    def variants(self, autotuned):
        if not hasattr(torch, "compile") or self.device.type != "cuda":
            return ["eager"]
        return [variant for variant in self.chosen(self.options.variants, VARIANTS)
                if variant != "max-autotune" or autotuned]

    # --- GPT-2 --------------------------------------------------------------------------------------

    def gpt2(self):
        for batch in self.options.batches:
            if self.budget.allows(f"GPT-2 at batch {batch}"):
                self.gpt2_row(batch)
        if self.budget.allows("GPT-2 loss curve"):
            self.gpt2_losses()

    def gpt2_arguments(self, batch):
        o = self.options
        return ["--batch", batch, "--seq", o.seq, "--layers", o.layers, "--hidden", o.gpt_hidden,
                "--heads", o.gpt_heads, "--vocabulary", o.vocabulary, "--dtype", o.gpt_dtype,
                "--seed", o.seed, "--schedule", o.schedule]

    def gpt2_config(self):
        o = self.options
        return {"vocabulary": (o.vocabulary + 127) // 128 * 128, "context": o.seq,
                "layers": o.layers, "hidden": o.gpt_hidden, "heads": o.gpt_heads}

    def precisions(self):
        return ["float32"] if self.options.gpt_dtype == "float32" else ["autocast", "master"]

    def gpt2_row(self, batch):
        o = self.options
        stream = work.TokenStream(None, o.vocabulary, 8 * batch * o.seq + 1)
        batches = [stream.batch(i, batch, o.seq, self.device) for i in range(4)]
        row = {"work": "gpt2", "dtype": o.gpt_dtype, "shape": f"{batch}x{o.seq}", "pytorch": {}}
        ours = []
        for name, make in self.gpt2_variants():
            if not self.budget.allows(f"GPT-2 {name} at batch {batch}"):
                continue
            ours.append(self.tenon("bench_gpt2", *self.gpt2_arguments(batch), "--steps", o.steps))
            try:
                row["pytorch"][name] = self.time_gpt2(make(), batches)
            except Exception as error:
                print(f"not available: {name}: {str(error).splitlines()[0]}", flush=True)
        ours = [run for run in ours if run is not None]
        if ours:
            row["tenon"] = medians(ours, ["ms_median", "ms_back_to_back", "tokens_per_s", "mfu",
                                          "floor_ms", "kernels", "peak_bytes", "arena_bytes",
                                          "live_bound_bytes", "first_step_s", "build_ms"])
        self.record(row)

    def gpt2_variants(self):
        """(name, what makes the training), in the order of the turns."""
        for precision in self.precisions():
            for variant in self.variants(False):
                for backend in work.attention_backends(torch.bfloat16):
                    yield f"{variant}+{backend}+{precision}", (
                        lambda p=precision, v=variant, b=backend: work.Gpt2Training(
                            self.device, self.gpt2_config(), p, b, v))

    def time_gpt2(self, training, batches):
        cuda = self.device.type == "cuda"
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        timer = work.StepTimer(self.device, lambda i: training.step(*batches[i % len(batches)]),
                               self.options.runs)
        latency, back_to_back = timer.measure()
        return {"ms_median": 1e3 * latency, "ms_back_to_back": 1e3 * back_to_back,
                "peak_bytes": torch.cuda.max_memory_allocated() if cuda else 0}

    def gpt2_losses(self):
        """All from Tenon's initial weights on the same tokens, at the largest batch: the fewer tokens a
        step, the further apart are PyTorch's own precisions. The last of them computes as Tenon does:
        in 16 bits, with float32 copies of parameters."""
        o = self.options
        batch = max(o.batches)
        with tempfile.TemporaryDirectory() as folder:
            ours = self.tenon("bench_gpt2", *self.gpt2_arguments(batch), "--steps", o.steps,
                              "--data", o.data, "--dump-weights", folder)
            if ours is None:
                return
            _, weights = read_checkpoint(os.path.join(folder, "weights.json"))
        theirs = {precision: self.pytorch_losses(batch, precision, weights)
                  for precision in self.precisions()}
        self.record({"work": "losses", "dtype": o.gpt_dtype, "shape": f"{batch}x{o.seq}",
                     "steps": o.steps, "losses": {"tenon": ours["losses"], "pytorch": theirs}})

    def pytorch_losses(self, batch, precision, weights):
        o = self.options
        stream = work.TokenStream(o.data, o.vocabulary, 0)
        backend = work.attention_backends(torch.bfloat16)[0]
        training = work.Gpt2Training(self.device, self.gpt2_config(), precision, backend, "eager",
                                     weights)
        losses = []
        for step in range(o.steps):
            training.optimizer.set_lr(6e-4 * min((step + 1) / 10, 1))  # bench_gpt2's rise
            losses.append(training.step(*stream.batch(step, batch, o.seq, self.device)).item())
        return losses

    def first_step(self):
        """From the start of a process to the end of its first training step, compiled."""
        batch = min(self.options.batches)
        ours = [self.tenon("bench_gpt2", *self.gpt2_arguments(batch), "--steps", 1)
                for _ in range(self.options.rounds)]
        start = time.monotonic()
        command = [sys.executable, os.path.abspath(__file__), "--one-step", *sys.argv[1:]]
        done = subprocess.run(command, check=False)
        row = {"work": "first_step", "dtype": self.options.gpt_dtype,
               "shape": f"{batch}x{self.options.seq}"}
        if None not in ours:
            row["tenon"] = medians(ours, ["first_step_s", "build_ms"])
        if done.returncode == 0:
            row["pytorch"] = {"process": {"first_step_s": time.monotonic() - start}}
        self.record(row)

    def one_step(self):
        """What first_step() times: a process that takes one step and ends."""
        o = self.options
        batch = min(o.batches)
        variant = "default" if "default" in self.variants(False) else "eager"
        training = work.Gpt2Training(self.device, self.gpt2_config(), self.precisions()[0],
                                     work.attention_backends(torch.bfloat16)[0], variant)
        stream = work.TokenStream(None, o.vocabulary, batch * o.seq + 1)
        training.step(*stream.batch(0, batch, o.seq, self.device)).item()

    # --- kernels ------------------------------------------------------------------------------------

    def kernels(self):
        """Rows of bench_kernels beside the same operation in PyTorch."""
        run = self.tenon("bench_kernels", "--filter", self.options.filter)
        for ours in run["rows"] if run is not None else []:
            name = ours["name"]
            if not self.budget.allows(name):
                continue
            row = {"work": "kernels", "shape": name, "dtype": ours["dtype"],
                   "tenon": medians([ours], ["ms", "floor_ms", "bytes", "flops", "kernels"]),
                   "pytorch": {}}
            for variant, step in pytorch_kernels.steps(name, ours, self.device):
                try:
                    timer = work.StepTimer(self.device, step, self.options.runs)
                    row["pytorch"][variant] = {"ms": 1e3 * timer.measure()[1]}
                except Exception as error:
                    print(f"not available: {variant} of {name}: {str(error).splitlines()[0]}",
                          flush=True)
            self.record(row)


def medians(runs, names):
    return {name: statistics.median(run[name] for run in runs) for name in names if name in runs[0]}


def driver_version():
    done = subprocess.run(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
                          stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=False)
    return done.stdout.split("\n")[0] if done.returncode == 0 else ""


def write_results(path, files):
    rows = []
    for file in files:
        with open(file, encoding="utf-8") as lines:
            rows += [json.loads(line) for line in lines if line.strip()]
    text = render(rows)
    with open(path, "w", encoding="utf-8") as out:
        out.write(text)
    return text


def parse_arguments():
    def names(text):
        return [name for name in text.split(",") if name]

    root = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..")
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    add = parser.add_argument
    add("--bin", help="the folder of Tenon's programs")
    add("--device", default="cuda")
    add("--only", type=names, default=[], help="attention, gpt2, first-step, kernels")
    add("--quick", action="store_true", help="one round of few runs")
    add("--rounds", type=int, default=3)
    add("--runs", type=int, default=50, help="single steps of a measurement")
    add("--seed", type=int, default=0)
    add("--schedule", default="full", choices=["none", "full"])
    add("--budget-s", type=float, default=0, help="rows that would start later are skipped")
    add("--rows", default="", help="JSON lines; default: beside --out, or a temporary file")
    add("--out", help="Markdown, written from --rows after each row")
    add("--render", nargs="+", metavar="ROWS", help="only write --out, from these files")
    add("--shapes", type=names, default=[], help="attention: BATCHxSEQ, ...")
    add("--modes", type=names, default=[], help="attention: fwd, train")
    add("--dtypes", type=names, default=[], help="attention: bfloat16, float32")
    add("--variants", type=names, default=[], help=", ".join(VARIANTS))
    add("--hidden", type=int, default=1024)
    add("--heads", type=int, default=16)
    add("--batches", type=lambda text: [int(n) for n in names(text)], default=[4, 32])
    add("--steps", type=int, default=50)
    add("--seq", type=int, default=1024)
    add("--layers", type=int, default=12)
    add("--gpt-hidden", type=int, default=768)
    add("--gpt-heads", type=int, default=12)
    add("--vocabulary", type=int, default=50257)
    add("--gpt-dtype", default="bfloat16")
    add("--data", default=os.path.join(root, "examples", "data", "alice.txt"))
    add("--filter", default=".*", help="kernels: a regular expression")
    add("--one-step", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.runs = min(options.rounds, 1), min(options.runs, 10)
    if not options.render and not options.bin:
        parser.error("--bin is needed")
    if not options.rows:
        options.rows = (os.path.splitext(options.out)[0] + ".jsonl" if options.out
                        else tempfile.mkstemp(suffix=".jsonl")[1])
    return options


def main():
    options = parse_arguments()
    if options.render:
        print(write_results(options.out or os.devnull, options.render))
        return 0
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    comparison = Comparison(options)
    if options.one_step:
        comparison.one_step()
        return 0
    parts = {"attention": comparison.attention, "gpt2": comparison.gpt2,
             "first-step": comparison.first_step, "kernels": comparison.kernels}
    for name, part in parts.items():
        if not options.only or name in options.only:
            part()
    if os.path.exists(options.rows):
        print(write_results(options.out or os.devnull, [options.rows]))
    return 0


if __name__ == "__main__":
    sys.exit(main())

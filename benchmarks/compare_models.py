#!/usr/bin/env python3
"""Whole models in Tenon and in PyTorch, in turns, with shared weights and outputs compared.

  benchmarks/compare_models.py --bin build/release/bin --out benchmarks/RESULTS.md
  benchmarks/compare_models.py --bin ... --only bert_base --modes fwd --shapes 32x128 \\
      --variants reduce-overhead --budget-s 300 --rows rows.jsonl
  benchmarks/compare_models.py --bin ... --trials FOLDER --programs FOLDER

Each row takes --rounds turns of Tenon, then of every variant of PyTorch (eager with its fused attention,
torch.compile's default and reduce-overhead; images channels-last), and PyTorch's best counts. The error is
the largest distance of an output from PyTorch's in float32, beside that of PyTorch in the row's dtype.
Clocks and floors are those of compare_pytorch.py, which takes GPT-2.

--trials: programs that were written by others, run as they are; their own clock is used for PyTorch too.
Those that are not in --programs are compiled into it.
"""

import os
import re
import statistics
import subprocess
import sys
import tempfile
import time

import torch

import compare_pytorch
import pytorch_models as models
import pytorch_workloads as work

SHAPES = {"bert": ["1x128", "8x128", "32x128", "32x512", "128x128"], "image": ["1x224", "64x224"]}
TRAINING_SHAPES = {"bert": ["32x128", "8x512"], "image": ["64x224"]}
MODELS = [*models.BERT_SIZES, *models.IMAGE_MODELS]
# (batches of steps, steps of a batch): bert.cpp waits for 20 steps at a time.
TRIAL_CLOCK = {"bert": (12, 20), "resnet": (12, 1)}
TRIAL_LINE = re.compile(
    r"^TENON (?:\w+ )?(?:(fwd|train)(?: step)? )?\((\d+),(\d+)\) median ([\d.]+)", re.M)


def kind_of(name):
    return "image" if name in models.IMAGE_MODELS else "bert"


def trial_median_ms(step, kind):
    """By the clock of the outsiders' programs."""
    batches, steps = TRIAL_CLOCK[kind]
    times = []
    for _ in range(batches):
        start = time.perf_counter()
        for i in range(steps):
            last = step(i)
        last.reshape(-1)[:1].float().cpu()
        times.append((time.perf_counter() - start) / steps)
    return 1e3 * statistics.median(times)


class ModelComparison(compare_pytorch.Comparison):
    def run(self):
        with tempfile.TemporaryDirectory() as folder:
            if self.options.trials and (not self.options.only or "llama" in self.options.only):
                self.llama_trial(folder)
            for name in self.chosen(self.options.only, MODELS):
                model = models.make(name)
                files = models.save(name, model, folder)
                if self.options.trials:
                    self.trial(name, model, files)
                    continue
                for mode in self.chosen(self.options.modes, ["fwd", "train"]):
                    table = SHAPES if mode == "fwd" else TRAINING_SHAPES
                    for shape in self.options.shapes or table[kind_of(name)]:
                        if self.budget.allows(f"{name} {mode} {shape}"):
                            self.row(name, model, files, mode, shape)

    def steps(self, name, model, mode, shape, padding):
        """{variant: step(i)}, each behind a few calls."""
        dtype = work.DTYPES[self.options.dtype]
        work.reset_compiler()
        sets = models.draw_inputs(name, shape, self.device, dtype, padding)
        steps = {}
        for variant in self.options.variants:
            placed = models.placed(name, model, self.device, dtype)
            make = models.forward_step if mode == "fwd" else models.training_step
            try:
                step = make(name, placed, variant, sets)
                for i in range(4):
                    step(i)
                steps[variant] = step
            except Exception as error:
                print(f"not available: {variant} of {name}: {str(error).splitlines()[0]}",
                      flush=True)
        return steps

    def row(self, name, model, files, mode, shape):
        o = self.options
        batch, size = map(int, shape.split("x"))
        weights, reference = files
        arguments = ["--model", name, "--batch", batch, "--dtype", o.dtype, "--mode", mode,
                     "--schedule", o.schedule, "--weights", weights,
                     "--size" if kind_of(name) == "image" else "--seq", size,
                     "--padding", o.padding]
        if mode == "fwd":
            arguments += ["--reference", reference]
        timers = {variant: work.StepTimer(self.device, step, o.runs) for variant, step in
                  self.steps(name, model, mode, (batch, size), o.padding).items()}
        ours, theirs = [], {variant: [] for variant in timers}
        for _ in range(o.rounds):
            ours.append(self.tenon("bench_models", *arguments))
            for variant, timer in timers.items():
                theirs[variant].append(timer.measure())
        row = {"work": "models", "dtype": o.dtype, "mode": mode,
               "shape": f"{name} {shape}" + (f" {o.padding}% padding" if o.padding else "")}
        if None not in ours:
            row["tenon"] = compare_pytorch.medians(ours, ["latency_ms", "throughput_ms", "floor_ms",
                                                          "kernels", "arena_bytes"])
            row["tenon"]["max_error"] = ours[0].get("max_error")
        row["pytorch"] = {variant: {"latency_ms": 1e3 * statistics.median(t[0] for t in times),
                                    "throughput_ms": 1e3 * statistics.median(t[1] for t in times)}
                          for variant, times in theirs.items()}
        if mode == "fwd":
            placed = models.placed(name, model, self.device, work.DTYPES[o.dtype])
            row["pytorch_error"] = models.own_error(name, placed, reference, self.device,
                                                    work.DTYPES[o.dtype])
        self.record(row)

    # --- programs that others wrote -----------------------------------------------------------------

    def program(self, name):
        """The compiled program of that name."""
        o = self.options
        path = os.path.join(o.programs, name)
        if not os.path.exists(path):
            root = os.path.abspath(os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
            library = os.path.abspath(os.path.join(o.bin, "..", "lib"))
            generated = os.path.join(o.bin, "..", "generated")
            subprocess.run(["c++", "-std=c++20", "-O1", "-march=x86-64-v3", f"-I{root}",
                            f"-I{generated}", os.path.join(o.trials, f"{name}.cpp"), "-o", path,
                            f"-L{library}", "-ltenon", "-lfmt", "-pthread",
                            f"-Wl,-rpath,{library}"], check=True)
        return path

    def trial_times(self, command):
        """{(mode, shape): ms} as the program prints them."""
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                              check=False)
        if done.returncode != 0:
            print(f"failed: {' '.join(command)}\n{done.stdout[-2000:]}", flush=True)
        found = {}
        for mode, batch, size, value in TRIAL_LINE.findall(done.stdout):
            found[mode or "fwd", f"{batch}x{size}"] = float(value)
        return found

    def trial(self, name, model, files):
        if kind_of(name) == "bert":
            size = models.BERT_SIZES[name]
            command = [self.program("bert"), *files, self.options.device, self.options.dtype,
                       *map(str, (models.VOCABULARY, size["layers"], size["hidden"], size["heads"],
                                  size["mlp"]))]
            commands = [command]
        elif name == "resnet50":
            commands = [[self.program("resnet"), self.options.device, self.options.dtype,
                         *shape.split("x")] for shape in self.options.shapes or SHAPES["image"]]
        else:
            return
        for command in commands:
            ours = [self.trial_times(command) for _ in range(self.options.rounds)]
            for mode, shape in ours[0]:
                wanted = not self.options.shapes or shape in self.options.shapes
                if wanted and self.budget.allows(f"{name} {mode} {shape}"):
                    self.trial_row(name, model, mode, shape, ours)

    def llama_trial(self, folder):
        """A decoder's training step; the PyTorch side is the outsiders' script, which makes weights."""
        o = self.options
        sizes, shape = ["8", "2048", "32", "8", "8192", "32000"], ["4", "1024"]
        if not self.budget.allows("llama train"):
            return
        script = os.path.join(o.trials, "llama_torch.py")
        done = subprocess.run([sys.executable, script, o.device, o.dtype, *sizes, folder, *shape],
                              stdout=subprocess.PIPE, text=True, check=True)
        theirs = {variant: {"ms": float(value)} for variant, value in
                  re.findall(r"^TORCH ([\w-]+) train .*median ([\d.]+)", done.stdout, re.M)}
        command = [self.program("llama"), os.path.join(folder, "llama.safetensors"),
                   os.path.join(folder, "llama_ref.safetensors"), o.device, o.dtype, *sizes, *shape]
        ours = [self.trial_times(command) for _ in range(o.rounds)]
        key = "train", "x".join(shape)
        row = {"work": "trials", "dtype": o.dtype, "mode": "train", "shape": f"llama {key[1]}",
               "pytorch": theirs}
        if all(key in one for one in ours):
            row["tenon"] = {"ms": statistics.median(one[key] for one in ours)}
        self.record(row)

    def trial_row(self, name, model, mode, shape, ours):
        kind = "bert" if kind_of(name) == "bert" else "resnet"
        steps = self.steps(name, model, mode, tuple(map(int, shape.split("x"))), 0)
        theirs = {variant: [trial_median_ms(step, kind) for _ in range(self.options.rounds)]
                  for variant, step in steps.items()}
        self.record({"work": "trials", "dtype": self.options.dtype, "mode": mode,
                     "shape": f"{name} {shape}",
                     "tenon": {"ms": statistics.median(one[mode, shape] for one in ours)},
                     "pytorch": {variant: {"ms": statistics.median(times)}
                                 for variant, times in theirs.items()}})


def parse_arguments():
    import argparse

    def names(text):
        return [name for name in text.split(",") if name]

    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--bin", required=True, help="the folder of Tenon's programs")
    add("--device", default="cuda")
    add("--dtype", default="bfloat16", choices=list(work.DTYPES))
    add("--only", type=names, default=[], help=", ".join([*MODELS, "llama (--trials)"]))
    add("--modes", type=names, default=[], help="fwd, train")
    add("--shapes", type=names, default=[], help="BATCHxSEQ or BATCHxSIZE, ...")
    add("--padding", type=int, default=0, help="percent of each sequence")
    add("--schedule", default="full", choices=["none", "full"])
    add("--variants", type=names, default=["eager", "default", "reduce-overhead"])
    add("--rounds", type=int, default=3)
    add("--runs", type=int, default=50, help="single steps of a measurement")
    add("--budget-s", type=float, default=0, help="rows that would start later are skipped")
    add("--trials", default="", help="the folder of programs that others wrote: only these are run")
    add("--programs", default="", help="where they are compiled; default: a temporary folder")
    add("--rows", default="", help="JSON lines; default: beside --out, or a temporary file")
    add("--out", help="Markdown, written from --rows after each row")
    options = parser.parse_args()
    if not options.programs:
        options.programs = tempfile.mkdtemp()
    if not options.rows:
        options.rows = (os.path.splitext(options.out)[0] + ".jsonl" if options.out
                        else tempfile.mkstemp(suffix=".jsonl")[1])
    return options


def main():
    options = parse_arguments()
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    ModelComparison(options).run()
    if os.path.exists(options.rows):
        print(compare_pytorch.write_results(options.out or os.devnull, [options.rows]))
    return 0


if __name__ == "__main__":
    sys.exit(main())

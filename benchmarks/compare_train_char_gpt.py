#!/usr/bin/env python3
"""Trains the default GPT of train_char_gpt in Tenon and in PyTorch, from the same weights on the same
batches, and compares validation loss and speed.

  benchmarks/compare_train_char_gpt.py --program build/release/bin/train_char_gpt
  benchmarks/compare_train_char_gpt.py --program ... --rounds 5 --steps 60     # speed only, roughly

The two take turns in `--rounds` rounds, so that a busy machine slows both; speeds are medians. Prints
one JSON object; the exit status is 1 when the losses are more than 1% apart or Tenon's speed is below
0.8 of PyTorch's. `--record FILE` keeps PyTorch's result.

Works with PyTorch 1.13 and later, and NumPy.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

import torch

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "tools"))
from torch_gpt import (CharText, Gpt, make_adamw, read_checkpoint, training_step, warmup_cosine,  # noqa: E402
                       with_prefix)

FARTHEST_LOSS, LOWEST_SPEED = 0.01, 0.8


def run_tenon(options, folder, *arguments):
    """The JSON line of one run."""
    command = [options.program, "--json", "--device", "cpu", "--sample", "0", "--out", folder,
               "--text", options.text, "--schedule", options.schedule, *options.arguments,
               *arguments]
    environment = {**os.environ, "TENON_NUM_THREADS": str(options.threads)}
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                          env=environment, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def run_torch(options, config, weights):
    text = CharText(options.text, config["seq"])
    model = Gpt(len(text.vocabulary), config["seq"], config["layers"], config["hidden"],
                config["heads"])
    model.load_state_dict(weights)
    optimizer = make_adamw(model, config["lr"])
    # As the trainer: the whole run's schedule, the first step not timed.
    timed, seconds = 0, 0.0
    for step in range(config["steps"]):
        rate = warmup_cosine(step, config["lr"], config["steps"] // 20, config["steps"],
                             config["lr"] / 10)
        for group in optimizer.param_groups:
            group["lr"] = rate
        inputs, targets = text.training_batch(int(config["seed"]), step, config["batch"])
        started = time.perf_counter()
        training_step(model, optimizer, inputs, targets)
        if step > 0:
            seconds += time.perf_counter() - started
            timed += 1
    return {"val_loss": text.validation_loss(model, config["batch"]),
            "tokens_per_s": timed * config["batch"] * config["seq"] / seconds,
            "steps": config["steps"]}


def parse_arguments():
    root = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..")
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--program", required=True, help="bin/train_char_gpt")
    parser.add_argument("--text", default=os.path.join(root, "examples", "data", "alice.txt"))
    parser.add_argument("--schedule", default="full", choices=["none", "full"])
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count()))
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--record", help="writes PyTorch's result and the settings here")
    options, options.arguments = parser.parse_known_args()  # others go to the program
    return options


def main():
    options = parse_arguments()
    torch.set_num_threads(options.threads)
    ours, theirs = [], []
    with tempfile.TemporaryDirectory() as folder:
        run_tenon(options, folder, "--steps", "0")  # leaves the initial weights
        _, tensors = read_checkpoint(os.path.join(folder, "checkpoint.json"))
        for _ in range(options.rounds):
            ours.append(run_tenon(options, folder))
            config, _ = read_checkpoint(os.path.join(folder, "checkpoint.json"))
            theirs.append(run_torch(options, config, with_prefix(tensors, "model.")))
    speeds = [statistics.median(run["tokens_per_s"] for run in runs) for runs in (ours, theirs)]
    result = {
        "torch": torch.__version__, "threads": options.threads, "steps": config["steps"],
        "tenon": {"val_loss": ours[0]["val_loss"], "tokens_per_s": speeds[0]},
        "pytorch": {"val_loss": theirs[0]["val_loss"], "tokens_per_s": speeds[1]},
        "bigram_val_loss": ours[0]["bigram_val_loss"],
        "val_loss_ratio": ours[0]["val_loss"] / theirs[0]["val_loss"],
        "tokens_per_s_ratio": speeds[0] / speeds[1]}
    print(json.dumps(result, indent=1))
    if options.record:
        with open(options.record, "w", encoding="utf-8") as file:
            json.dump({"torch": torch.__version__, "config": config,
                       "val_loss": theirs[0]["val_loss"]}, file, indent=1)
            file.write("\n")
    close = abs(result["val_loss_ratio"] - 1) <= FARTHEST_LOSS
    return 0 if close and result["tokens_per_s_ratio"] >= LOWEST_SPEED else 1


if __name__ == "__main__":
    sys.exit(main())

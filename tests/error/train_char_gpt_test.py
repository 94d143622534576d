#!/usr/bin/env python3
"""train_char_gpt as a program: what it leaves behind, that a stopped run resumes bit for bit, and what
it says about bad input.

  train_char_gpt_test.py PROGRAM
"""

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import unittest

PROGRAM = sys.argv.pop(1) if len(sys.argv) > 1 else "train_char_gpt"
SMALL = ["--device", "cpu", "--steps", "30", "--batch", "2", "--seq", "16", "--layers", "1",
         "--hidden", "16", "--heads", "2", "--dropout", "0.1", "--save-every", "10", "--sample", "20"]


def run(*arguments, threads=None):
    environment = dict(os.environ)
    if threads:
        environment["TENON_NUM_THREADS"] = str(threads)
    return subprocess.run([PROGRAM, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          text=True, env=environment, timeout=300, check=False)


def final_state(folder):
    """The bytes of parameters, optimizer state and generator of a finished run."""
    with open(os.path.join(folder, "checkpoint.json"), encoding="utf-8") as file:
        manifest = json.load(file)
    sides = []
    for entry in manifest.get("files", {}).values():
        with open(os.path.join(folder, entry["path"]), "rb") as file:
            sides.append(file.read())
    return manifest["config"], manifest["tensors"], sides


class TrainCharGpt(unittest.TestCase):
    def setUp(self):
        self.scratch = tempfile.TemporaryDirectory()
        self.addCleanup(self.scratch.cleanup)

    def folder(self, name):
        return os.path.join(self.scratch.name, name)

    def write(self, name, text):
        path = self.folder(name)
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
        return path

    def assert_fails(self, done, status, *texts):
        self.assertEqual(done.returncode, status, done.stderr)
        for text in texts:
            self.assertIn(text, done.stderr)

    def test_reports_and_files(self):
        folder = self.folder("run")
        done = run(*SMALL, "--out", folder, "--json")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(len(done.stdout.splitlines()), 1)
        line = json.loads(done.stdout)
        self.assertEqual(list(line), ["val_loss", "bigram_val_loss", "tokens_per_s", "steps"])
        self.assertEqual(line["steps"], 30)
        self.assertGreater(line["tokens_per_s"], 0)
        with open(os.path.join(folder, "metrics.jsonl"), encoding="utf-8") as file:
            steps = [json.loads(text) for text in file]
        self.assertEqual([step["step"] for step in steps], list(range(1, 31)))
        self.assertLess(steps[-1]["loss"], steps[0]["loss"])
        self.assertIn("val_loss", steps[-1])
        with open(os.path.join(folder, "loss.svg"), encoding="utf-8") as file:
            self.assertTrue(file.read().startswith("<svg"))
        self.assertIn("--- sample ---", done.stderr)

    def test_same_seed_same_bits_on_any_number_of_threads(self):
        for name, threads in (("one", 1), ("two", 2), ("again", 2)):
            self.assertEqual(run(*SMALL, "--out", self.folder(name), threads=threads).returncode, 0)
        self.assertEqual(final_state(self.folder("one")), final_state(self.folder("two")))
        self.assertEqual(final_state(self.folder("two")), final_state(self.folder("again")))

    def test_interrupted_and_resumed_is_uninterrupted(self):
        longer = SMALL + ["--steps", "300"]
        whole, cut = self.folder("whole"), self.folder("cut")
        self.assertEqual(run(*longer, "--out", whole).returncode, 0)
        with subprocess.Popen([PROGRAM, *longer, "--out", cut], stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, text=True) as process:
            metrics = os.path.join(cut, "metrics.jsonl")
            wanted = random.randint(20, 120)
            while process.poll() is None:
                try:
                    with open(metrics, encoding="utf-8") as file:
                        if len(file.readlines()) >= wanted:
                            break
                except FileNotFoundError:
                    pass
                time.sleep(0.002)
            process.send_signal(signal.SIGINT)
            output, _ = process.communicate(timeout=120)
        self.assertEqual(process.returncode, 130, output)
        self.assertIn("continue with --resume", output)
        done = run("--resume", "--out", cut, "--sample", "0")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(final_state(whole), final_state(cut), f"stopped after step {wanted}")
        with open(os.path.join(cut, "metrics.jsonl"), encoding="utf-8") as file:
            self.assertEqual([json.loads(text)["step"] for text in file], list(range(1, 301)))

    def test_refuses_bad_texts(self):
        missing = run(*SMALL, "--out", self.folder("o"), "--text", self.folder("none.txt"))
        self.assert_fails(missing, 2, "cannot read the text", "none.txt")
        empty = run(*SMALL, "--out", self.folder("o"), "--text", self.write("empty.txt", ""))
        self.assert_fails(empty, 2, "is empty", "empty.txt")
        short = run(*SMALL, "--out", self.folder("o"), "--text", self.write("short.txt", "abc" * 20))
        self.assert_fails(short, 2, "has 60 bytes, too few", "need at least 170")
        self.assertFalse(os.path.exists(self.folder("o")))

    def test_refuses_bad_options(self):
        out = ["--out", self.folder("o")]
        self.assert_fails(run(*SMALL, *out, "--batch", "0"), 2, "--batch is 0; needed at least 1")
        self.assert_fails(run(*SMALL, *out, "--heads", "3"), 2, "not divisible by 3 heads")
        self.assert_fails(run(*SMALL, *out, "--dtype", "int64"), 2, "int64")
        self.assert_fails(run(*SMALL, *out, "--schedule", "some"), 2,
                          "--schedule: some not in {none,full}")
        self.assert_fails(run(*out, "--steps", "many"), 2, "Could not convert: --steps = many")
        self.assert_fails(run(*SMALL, *out, "--sequence", "4"), 2, "--sequence")
        self.assert_fails(run(*SMALL, *out, "--device", "tpu"), 2, "tpu")

    def test_help(self):
        done = run("--help")
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        for text in ("--steps INT=1000 ", "--schedule TEXT:{none,full}=full", "Exit status: 0 trained"):
            self.assertIn(text, done.stdout)

    def test_refuses_to_resume_something_else(self):
        folder = self.folder("run")
        self.assert_fails(run("--resume", "--out", folder), 2, "checkpoint.json")
        self.assertEqual(run(*SMALL, "--out", folder).returncode, 0)
        self.assert_fails(run("--resume", "--out", folder, "--hidden", "32"), 2,
                          "--hidden differs from the run that --resume continues")
        other = self.write("other.txt", "The quick brown fox. " * 100)
        self.assert_fails(run("--resume", "--out", folder, "--text", other), 2, "another text")

    def test_stops_at_a_loss_that_is_not_finite(self):
        folder = self.folder("run")
        done = run(*SMALL, "--out", folder, "--lr", "1e30", "--save-every", "1")
        self.assert_fails(done, 1, "the loss is", "the first tensor that is not finite: ",
                          "The last checkpoint is kept")
        self.assertEqual(final_state(folder)[0]["steps_done"] >= 1, True)


if __name__ == "__main__":
    unittest.main()

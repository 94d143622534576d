"""The tutorial program on bad input: exit status 2, one line that says what was given and needed.

Usage: attention_program_test.py PROGRAM
"""
import json
import os
import shutil
import subprocess
import sys
import tempfile
import unittest

PROGRAM = os.path.abspath(sys.argv.pop(1))


def run(*arguments):
    return subprocess.run([PROGRAM, "--device", "cpu", *arguments], capture_output=True, text=True,
                          timeout=300, check=False)


class BadInput(unittest.TestCase):
    def check_refused(self, text, *arguments):
        result = run(*arguments)
        self.assertEqual(result.returncode, 2, result.stderr)
        self.assertIn(text, result.stderr)
        self.assertNotIn("terminate called", result.stderr)
        self.assertEqual(result.stdout if "--json" in arguments else "", "")

    def test_heads_that_do_not_divide(self):
        self.check_refused("error: SelfAttention: hidden size 130 is not divisible by 8 heads",
                           "--hidden", "130", "--heads", "8", "--json")

    def test_unknown_dtype(self):
        self.check_refused("error: unknown dtype 'float8'; known: float32,", "--dtype", "float8")

    def test_integer_dtype(self):
        self.check_refused("error: --dtype int64 is not a float", "--dtype", "int64")

    def test_unknown_device(self):
        self.check_refused("error: unknown device 'tpu'; needed cpu, cuda or cuda:N",
                           "--device", "tpu")

    def test_missing_gpu(self):
        result = run("--device", "cuda:63")
        self.assertEqual(result.returncode, 2, result.stderr)
        self.assertRegex(result.stderr, "error: (no CUDA device|device cuda:63 does not exist)")

    def test_missing_checkpoint(self):
        self.check_refused("no_such_file.json", "--checkpoint", "no_such_file.json")

    def test_broken_checkpoint(self):
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "broken.json")
            with open(path, "w", encoding="utf-8") as file:
                file.write('{"format": "tenon.checkpoint", "version": 1, "tensors": {')
            self.check_refused("broken.json", "--checkpoint", path)

    def test_checkpoint_of_another_size(self):
        self.check_refused("error: ", "--hidden", "64", "--heads", "8", "--checkpoint",
                           os.path.join(os.path.dirname(PROGRAM), "..", "share", "tenon", "tests",
                                        "attention", "attention.json"))

    def test_no_batch(self):
        self.check_refused("--batch and --seq start at 1", "--batch", "0")

    def test_unknown_option(self):
        self.check_refused("--sequence", "--sequence", "4")


class GoodInput(unittest.TestCase):
    def test_help(self):
        result = run("--help")
        self.assertEqual(result.returncode, 0)
        for option in ("--device", "--dtype", "--seed", "--json", "--dot", "--svg", "--report",
                       "--checkpoint"):
            self.assertIn(option, result.stdout)

    def check_json(self, *arguments):
        result = run("--json", "--batch", "2", "--seq", "33", *arguments)
        self.assertEqual(result.returncode, 0, result.stderr)
        report = json.loads(result.stdout)
        self.assertTrue(report["ok"])
        matched = {step["name"]: step["matched"] for step in report["steps"]}
        self.assertEqual(matched["find_qkv"], 3)
        self.assertEqual(report["steps"][-1]["kernels"], 4)
        self.assertLess(report["steps"][-1]["kernels"], report["steps"][0]["kernels"])
        return report

    def test_float32_meets_the_recorded_output(self):
        self.assertLessEqual(self.check_json()["recorded_max_abs_err"], 1e-5)

    def test_float64(self):
        self.assertLessEqual(self.check_json("--dtype", "float64")["recorded_max_abs_err"], 1e-5)

    def test_bfloat16(self):
        self.check_json("--dtype", "bfloat16")

    def test_float16(self):
        self.check_json("--dtype", "float16")

    def test_a_checkpoint_of_its_own(self):
        report = self.check_json("--hidden", "96", "--heads", "3")
        self.assertEqual((report["hidden"], report["heads"]), (96, 3))

    def test_dot_files(self):
        with tempfile.TemporaryDirectory() as folder:
            self.check_json("--dot", folder)
            files = sorted(os.listdir(folder))
            self.assertEqual(len(files), 11)
            with open(os.path.join(folder, files[-1]), encoding="utf-8") as file:
                text = file.read()
            self.assertIn("digraph", text)
            self.assertIn("bias_dropout_residual_layer_norm", text)

    def test_report_in_the_object(self):
        rows = self.check_json("--report")["report"]
        self.assertEqual([row["primitive"] for row in rows],
                         ["traced", "replace", "replace", "decompose", "trace", "fuse"])
        self.assertNotIn("failure", rows[-1])
        self.assertEqual(rows[-1]["kernels"], 4)
        self.assertLess(rows[-1]["bytes_moved"], rows[0]["bytes_moved"])
        self.assertLess(rows[-1]["max_error"], 1e-5)

    def test_what_changed_and_the_table_as_text(self):
        text = run("--batch", "2", "--seq", "33", "--report").stdout
        self.assertIn("-     (q_proj): Linear(in_features=", text)
        self.assertIn("replaced by FusedQKV_0", text)
        self.assertIn("5. fuse on 'proj'", text)

    @unittest.skipUnless(shutil.which("dot"), "there is no program 'dot'; install graphviz")
    def test_pictures(self):
        with tempfile.TemporaryDirectory() as folder:
            self.check_json("--svg", os.path.join(folder, "new"))
            for name, mark in (("before.svg", "removed by the schedule"), ("after.svg", "new")):
                with open(os.path.join(folder, "new", name), encoding="utf-8") as file:
                    text = file.read()
                self.assertIn("</svg>", text)
                self.assertIn(mark, text)

    def test_pictures_without_dot(self):
        with tempfile.TemporaryDirectory() as folder:
            result = subprocess.run([PROGRAM, "--device", "cpu", "--svg", folder],
                                    capture_output=True, text=True, timeout=300, check=False,
                                    env={**os.environ, "PATH": folder})
        self.assertEqual(result.returncode, 2, result.stderr)
        self.assertIn("error: there is no program 'dot' to draw an SVG with; install graphviz",
                      result.stderr)


if __name__ == "__main__":
    unittest.main()

#!/usr/bin/env python3
"""What results_table makes of rows: the best variant, ratios, targets, floors."""

import unittest

from results_table import render

CONTEXT = {"date": "2026-11-22 12:00 UTC", "hardware": "a GPU", "driver": "580", "torch": "2.11",
           "cuda": "13.0", "cudnn": "91000", "python": "3.12", "command": "compare_pytorch.py"}


def attention_row(latency, throughput):
    return {"work": "attention", "dtype": "bfloat16", "mode": "fwd", "shape": "1x128",
            "context": CONTEXT,
            "tenon": {"latency_ms": latency, "throughput_ms": throughput, "floor_ms": 0.01,
                      "kernels": 4},
            "pytorch": {"eager+flash": {"latency_ms": 0.2, "throughput_ms": 0.05},
                        "default+cudnn": {"latency_ms": 0.1, "throughput_ms": 0.08}}}


def kernel_row(name, milliseconds, size):
    return {"work": "kernels", "dtype": "bfloat16", "shape": name, "context": CONTEXT,
            "tenon": {"ms": milliseconds, "floor_ms": 0.01, "bytes": size, "flops": 0, "kernels": 1},
            "pytorch": {"eager": {"ms": 2 * milliseconds}}}


class RenderTest(unittest.TestCase):
    def assert_cells(self, text, *cells):
        for cell in cells:
            self.assertIn(f"| {cell} |", text)

    def test_the_best_variant_counts_for_each_figure(self):
        text = render([attention_row(0.05, 0.02)])
        self.assert_cells(text, "0.050 | 0.100 default+cudnn | **0.50** (MISSED: 0.35)",
                          "0.020 | 0.050 eager+flash | **0.40**", "0.010 | 50%")

    def test_the_last_row_of_the_same_work_counts(self):
        text = render([attention_row(0.05, 0.02), attention_row(0.03, 0.02)])
        self.assert_cells(text, "**0.30** (met: 0.35)")
        self.assertNotIn("MISSED", text)

    def test_a_row_without_tenon_says_so(self):
        row = attention_row(1, 1)
        del row["tenon"]
        self.assert_cells(render([row]), "failed")

    def test_kernels_are_judged_by_their_rate(self):
        rows = [kernel_row("copy", 1, 4e9), kernel_row("adamw_124m", 1, 3e9),
                kernel_row("layer_norm_forward", 1, 3.7e9)]
        self.assert_cells(render(rows), "MISSED: 0.75, at least 0.85 of copy",
                          "met: 3.70, at least 3.6 TB/s")

    def test_losses_and_the_first_step_are_sentences(self):
        losses = {"work": "losses", "dtype": "bfloat16", "shape": "4x1024", "context": CONTEXT,
                  "steps": 2, "losses": {"tenon": [10.8, 9.0],
                                         "pytorch": {"autocast": [10.8, 9.27],
                                                     "master": [10.8, 9.018]}}}
        first = {"work": "first_step", "dtype": "bfloat16", "shape": "4x1024", "context": CONTEXT,
                 "tenon": {"first_step_s": 2.5}, "pytorch": {"process": {"first_step_s": 17.0}}}
        text = render([losses, first])
        self.assertIn("PyTorch (master) 10.8000 to 9.0180; largest relative difference 2.00e-03 "
                      "(met: 0.01); from PyTorch (autocast) 2.91e-02, between PyTorch's two 2.72e-02.",
                      text)
        self.assertIn("2.50 s (met: 3), PyTorch compiled 17.0 s.", text)

    def test_models_show_errors_and_programs_of_others(self):
        variants = {"eager": {"latency_ms": 2.0, "throughput_ms": 1.6, "ms": 2.0},
                    "default": {"latency_ms": 1.0, "throughput_ms": 1.8, "ms": 1.5}}
        row = {"work": "models", "dtype": "bfloat16", "mode": "fwd", "shape": "resnet50 1x224",
               "context": CONTEXT, "pytorch_error": 0.03, "pytorch": variants,
               "tenon": {"latency_ms": 0.5, "throughput_ms": 0.4, "floor_ms": 0.1,
                         "max_error": 0.02}}
        trial = {"work": "trials", "dtype": "bfloat16", "mode": "train", "shape": "resnet50 64x224",
                 "context": CONTEXT, "pytorch": variants, "tenon": {"ms": 3.0}}
        text = render([row, trial])
        self.assert_cells(text, "0.500 | 1.000 default | **0.50**", "0.400 | 1.600 eager | **0.25**",
                          "0.020, 0.030", "3.000 | 1.500 default | **2.00**")

    def test_sections_name_hardware_versions_and_commands(self):
        text = render([attention_row(0.05, 0.02)])
        self.assertIn("2026-11-22 12:00 UTC; a GPU, driver 580; PyTorch 2.11, CUDA 13.0, cuDNN 91000, "
                      "Python 3.12.", text)
        self.assertIn("    compare_pytorch.py\n", text)


if __name__ == "__main__":
    unittest.main()

#!/usr/bin/env python3
"""run_op_calls PROGRAM: results and gradients of a product, op by op and as a Program; axes, heads, errors."""

import json
import math
import os
import struct
import subprocess
import sys
import tempfile
import unittest

PROGRAM = sys.argv.pop()


def run(tensors, calls, *arguments):
    """`tensors`: name -> (shape, numbers), float32. Results likewise, and the notes by name."""
    header, data = {"__metadata__": {"calls": json.dumps(calls)}}, b""
    for name, (shape, numbers) in tensors.items():
        end = len(data) + 4 * len(numbers)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [len(data), end]}
        data += struct.pack(f"<{len(numbers)}f", *numbers)
    text = json.dumps(header).encode()
    with tempfile.TemporaryDirectory() as folder:
        given, found = (os.path.join(folder, name) for name in ("a.safetensors", "b.safetensors"))
        with open(given, "wb") as file:
            file.write(struct.pack("<Q", len(text)) + text + data)
        done = subprocess.run([PROGRAM, given, found, "--device", "cpu", "--json", *arguments],
                              check=True, stdout=subprocess.PIPE, text=True)
        with open(found, "rb") as file:
            (size,) = struct.unpack("<Q", file.read(8))
            header, data = json.loads(file.read(size)), file.read()
    results = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        begin, end = entry["data_offsets"]
        kind = "f" if entry["dtype"] == "F32" else "d"
        results[name] = list(struct.unpack(f"<{(end - begin) // struct.calcsize(kind)}{kind}",
                                           data[begin:end]))
    return results, {note["name"]: note for note in json.loads(done.stdout)["calls"]}


def call(name, op, inputs, **other):
    return {"name": name, "op": op, "attributes": None, "inputs": inputs, "cotangent": None,
            "wanted": [], "program": False, "exact": False, **other}


ATTENTION = {"type": "AttentionAttrs", "dropout_p": 0.0, "is_causal": False, "scale": 1.0,
             "mode": "train", "site": 1}


class RunOpCallsTest(unittest.TestCase):
    def test_results_and_gradients_both_ways(self):
        tensors = {"x": ([1, 2], [1, 2]), "w": ([2, 2], [3, 4, 5, 6]), "g": ([1, 2], [1, 10])}
        given = {"cotangent": "g", "wanted": [0, 1], "exact": True}
        calls = [call("e", "linear", ["x", "w", None], **given),
                 call("p", "linear", ["x", "w", None], **{**given, "program": True})]
        results, notes = run(tensors, calls, "--repeats", "3")
        for name in ("e", "p", "e.exact", "p.exact"):
            self.assertEqual(results[f"{name}.output"], [11, 17])
            self.assertEqual(results[f"{name}.gradient 0"], [53, 64])
            self.assertEqual(results[f"{name}.gradient 1"], [1, 2, 10, 20])
        self.assertEqual(notes["p"]["different_repeats"], 0)
        self.assertTrue(any("linear" in kernel or "matmul" in kernel or "gemm" in kernel
                            for kernel in notes["p"]["kernels"]), notes["p"])

    def test_axes_are_an_order_in_memory(self):
        tensors = {"x": ([2, 3], [1, 2, 3, 4, 5, 6])}
        results, _ = run(tensors, [call("c", "neg", ["x"], axes=[[1, 0]])])
        self.assertEqual(results["c.output"], [-1, -2, -3, -4, -5, -6])

    def test_heads_are_used_several_times(self):
        tensors = {"q": ([1, 2, 1, 1], [0, 0]), "k": ([1, 1, 2, 1], [1, 1]), "v": ([1, 1, 2, 1], [2, 4]),
                   "g": ([1, 2, 1, 1], [1, 1])}
        for program in (False, True):
            results, _ = run(tensors, [call("c", "scaled_dot_product_attention", ["q", "k", "v", None],
                                            attributes=ATTENTION, copies=[1, 2, 2, 1], cotangent="g",
                                            wanted=[2], program=program)])
            self.assertEqual(results["c.output"], [3, 3])
            self.assertTrue(all(math.isclose(x, 1) for x in results["c.gradient 2"]))

    def test_a_call_that_does_not_fit_is_noted(self):
        tensors = {"x": ([2], [1, 2])}
        results, notes = run(tensors, [call("bad", "matmul", ["x", None]), call("good", "neg", ["x"])])
        self.assertIn("error", notes["bad"])
        self.assertEqual(results["good.output"], [-1, -2])


if __name__ == "__main__":
    unittest.main()

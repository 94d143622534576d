#!/usr/bin/env python3
"""Records operator cases at the edges, computed by PyTorch on the CPU, one file an op.

  tools/record_conformance_edges.py tests/conformance/cases

Numbers that a double cannot hold, int8 and int16, sizes of zero, signed zeros, copies. The format is
that of the other cases; everything here is exact or a loss over nothing.
"""

import json
import math
import sys

import torch

BIG = 2**53
NAMES = {torch.float32: "float32", torch.float64: "float64", torch.float16: "float16",
         torch.bfloat16: "bfloat16", torch.int64: "int64", torch.int32: "int32", torch.int16: "int16",
         torch.int8: "int8", torch.uint8: "uint8", torch.bool: "bool"}


def number(value):
    if isinstance(value, float) and not math.isfinite(value):
        return "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"
    return value


def described(tensor, layout=None):
    result = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape),
              "data": [number(v) for v in tensor.contiguous().flatten().tolist()]}
    if layout:
        result["layout"] = layout
    return result


def ids(dtype=torch.int64):
    return torch.tensor([[BIG, BIG + 1, -BIG - 1], [2**62 + 1, -2**63, 2**63 - 1]], dtype=dtype)


def small(dtype):
    limits = torch.iinfo(dtype)
    return torch.tensor([[limits.min, limits.max, 0], [1, -1, 100]], dtype=dtype)


class Recorder:
    def __init__(self):
        self.files = {}

    def add(self, op, inputs, attrs, outputs, layout=None):
        outputs = outputs if isinstance(outputs, (list, tuple)) else [outputs]
        cases = self.files.setdefault(op, [])
        cases.append({"name": f"{op}_edges_{len(cases)}",
                      "inputs": [described(x, layout) for x in inputs], "attrs": attrs,
                      "outputs": [described(y) for y in outputs], "rtol": 0, "atol": 0})


def record_numbers(record):
    for op in ("eq", "ne", "lt", "le", "gt", "ge"):
        compare = getattr(torch, op)
        for other in (BIG + 1, -BIG - 1, 2**63 - 1, 0, BIG):
            record.add(op, [ids()], {"other": other}, compare(ids(), other))
        record.add(op, [ids(), ids().flip(1)], {}, compare(ids(), ids().flip(1)))
        for dtype in (torch.int8, torch.int16):
            x = small(dtype)
            record.add(op, [x, x.flip(1)], {}, compare(x, x.flip(1)), "reversed_axes")
            record.add(op, [x], {"other": -1}, compare(x, -1))
    near = torch.tensor([[BIG, BIG + 1, -BIG], [3, -5, 7]])
    for op in ("add", "sub", "mul"):
        for other in (1, BIG + 1, -BIG - 3):
            if op != "mul" or abs(other) == 1:
                record.add(op, [near], {"other": other}, getattr(torch, op)(near, other))
        factor = torch.tensor([[3], [BIG + 1]])
        record.add(op, [near, factor], {}, getattr(torch, op)(near, factor))
    mask = torch.tensor([[True, False, True], [False, True, True]])
    for value in (BIG + 1, -2**63, 2**63 - 1):
        record.add("masked_fill", [ids(), mask], {"value": value}, ids().masked_fill(mask, value))
    for dtype in (torch.int8, torch.int16):
        record.add("masked_fill", [small(dtype), mask], {"value": -3},
                   small(dtype).masked_fill(mask, -3))
        record.add("where", [mask, small(dtype), small(dtype).flip(0)], {},
                   torch.where(mask, small(dtype), small(dtype).flip(0)), "reversed_axes")
    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        x = torch.tensor([0.0, -0.0, math.inf, -math.inf, 1.5], dtype=dtype)
        record.add("neg", [x], {}, -x)
        record.add("reciprocal", [x[:4]], {}, torch.reciprocal(x[:4]))


def record_moves(record):
    for dtype in (torch.int8, torch.int16, torch.int64):
        x = ids() if dtype == torch.int64 else small(dtype)
        y = x.flip(0)
        for layout in (None, "reversed_axes"):
            record.add("clone", [x], {}, x.clone(), layout)
            record.add("contiguous", [x], {}, x.contiguous(), layout)
            record.add("reshape", [x], {"shape": [3, 2]}, x.reshape(3, 2), layout)
            record.add("transpose", [x], {"dim0": 0, "dim1": 1}, x.transpose(0, 1), layout)
            record.add("narrow", [x], {"dim": 1, "start": 1, "length": 2}, x.narrow(1, 1, 2), layout)
            record.add("narrow", [x], {"dim": 1, "start": 3, "length": 0}, x.narrow(1, 3, 0), layout)
            record.add("select", [x], {"dim": 0, "index": -1}, x.select(0, -1), layout)
            record.add("cat", [x, y], {"dim": 1}, torch.cat([x, y], 1), layout)
            record.add("stack", [x, y], {"dim": 1}, torch.stack([x, y], 1), layout)
            record.add("tril", [x], {"diagonal": -1}, x.tril(-1), layout)
        index = torch.tensor([2, 0, 2, 1])
        record.add("index_select", [x, index], {"dim": 1}, x.index_select(1, index))
        pick = torch.tensor([[2, 0], [1, 1]])
        record.add("gather", [x, pick], {"dim": 1}, x.gather(1, pick))
    none = torch.zeros(0, dtype=torch.int64)
    table = torch.arange(6, dtype=torch.float32).reshape(3, 2)
    record.add("embedding", [none, table], {}, torch.nn.functional.embedding(none, table))
    record.add("index_select", [table, none], {"dim": 0}, table.index_select(0, none))
    for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
        x = torch.tensor([[1.5, -0.0, math.nan], [math.inf, -2.25, 300.0]], dtype=dtype)
        record.add("clone", [x], {}, x.clone(), "reversed_axes")


def record_nothing(record):
    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        empty = torch.zeros((0, 3), dtype=dtype)
        record.add("mse_loss", [empty, empty], {"reduction": "mean"},
                   torch.nn.functional.mse_loss(empty, empty))
        record.add("mse_loss", [empty, empty], {"reduction": "sum"},
                   torch.nn.functional.mse_loss(empty, empty, reduction="sum"))
        record.add("mean", [empty], {"dim": [0]}, empty.mean(0))
        record.add("sum", [empty], {"dim": [0]}, empty.sum(0))
        record.add("softmax", [empty], {"dim": 0}, empty.softmax(0))
        record.add("matmul", [torch.zeros((2, 0), dtype=dtype), empty], {},
                   torch.zeros((2, 0), dtype=dtype) @ empty)


def main():
    record = Recorder()
    record_numbers(record)
    record_moves(record)
    record_nothing(record)
    count = 0
    for op, cases in record.files.items():
        count += len(cases)
        with open(f"{sys.argv[1]}/{op}_edges.json", "w", encoding="utf-8") as file:
            json.dump({"op": op, "source": f"PyTorch {torch.__version__}", "cases": cases}, file,
                      separators=(",", ":"))
            file.write("\n")
    print(f"{count} cases of {len(record.files)} ops", file=sys.stderr)


if __name__ == "__main__":
    main()

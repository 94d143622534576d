#!/usr/bin/env python3
"""Records what PyTorch's optimizers do to a few small parameters over 20 steps.

  tools/record_optimizer_steps.py tests/data/optimizer/steps.json

tests/nn/optimizer_test.cpp makes the same steps. Everything is float64; learning rates are float32
numbers, as Tenon's are. A gradient that is null was None: the parameter has no part in that step.
"""

import json
import struct
import sys

import torch

STEPS = 20
SNAPSHOTS = (1, 2, 5, 20)
SHAPES = {"block.weight": (2, 3), "block.bias": (3,), "norm.weight": (3,), "late": (2,)}

CASES = [
    ("sgd", "SGD", [({}, list(SHAPES))], 0),
    ("sgd_momentum", "SGD", [({"momentum": 0.9}, list(SHAPES))], 0),
    ("sgd_dampening_decay", "SGD",
     [({"momentum": 0.8, "dampening": 0.3, "weight_decay": 0.1}, list(SHAPES))], 0),
    ("sgd_nesterov", "SGD",
     [({"momentum": 0.9, "nesterov": True, "weight_decay": 0.05}, ["block.weight", "late"]),
      ({"momentum": 0.0}, ["block.bias", "norm.weight"])], 0),
    ("adam", "Adam", [({}, list(SHAPES))], 0),
    ("adam_decay", "Adam", [({"betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.1},
                             list(SHAPES))], 0),
    ("adamw", "AdamW", [({}, list(SHAPES))], 0),
    ("adamw_groups", "AdamW",
     [({"weight_decay": 0.2}, ["block.weight", "late"]),
      ({"weight_decay": 0.0, "betas": (0.85, 0.99)}, ["block.bias", "norm.weight"])], 0),
    ("sgd_clipped", "SGD", [({"momentum": 0.9}, list(SHAPES)[:3])], 1.0),
    ("adamw_clipped", "AdamW", [({"weight_decay": 0.1}, list(SHAPES)[:3])], 0.5),
]


def as_float32(value):
    return struct.unpack("f", struct.pack("f", value))[0]


def learning_rate(step, group):
    return as_float32(0.01 * (1 + group) * (1 - 0.5 * step / STEPS))


def is_used(name, step):
    return name != "late" or (step >= 2 and step != 6)


def record(optimizer_name, groups, max_norm, initial, gradients):
    parameters = {name: torch.nn.Parameter(torch.tensor(initial[name], dtype=torch.float64))
                  for _, names in groups for name in names}
    optimizer = getattr(torch.optim, optimizer_name)(
        [{"params": [parameters[n] for n in names], "lr": 0.1, **options}
         for options, names in groups], lr=0.1)
    snapshots, norms = {}, []
    for step in range(STEPS):
        for group, settings in enumerate(optimizer.param_groups):
            settings["lr"] = learning_rate(step, group)
        for name, parameter in parameters.items():
            gradient = gradients[step][name]
            parameter.grad = None if gradient is None else torch.tensor(gradient,
                                                                        dtype=torch.float64)
        if max_norm:
            norms.append(torch.nn.utils.clip_grad_norm_(parameters.values(), max_norm).item())
        optimizer.step()
        if step + 1 in SNAPSHOTS:
            snapshots[str(step + 1)] = {n: p.detach().tolist() for n, p in parameters.items()}
    return snapshots, norms


def main():
    generator = torch.Generator().manual_seed(7)

    def numbers(shape):
        return (torch.randn(shape, generator=generator) * 4096).round().div(4096).tolist()

    initial = {name: numbers(shape) for name, shape in SHAPES.items()}
    gradients = [{name: numbers(shape) if is_used(name, step) else None
                  for name, shape in SHAPES.items()} for step in range(STEPS)]
    cases = []
    for name, optimizer, groups, max_norm in CASES:
        snapshots, norms = record(optimizer, groups, max_norm, initial, gradients)
        cases.append({
            "name": name, "optimizer": optimizer, "max_grad_norm": max_norm,
            "groups": [{"options": options, "parameters": names} for options, names in groups],
            "norms": norms, "snapshots": snapshots})
    rates = [[learning_rate(step, group) for group in range(2)] for step in range(STEPS)]
    document = {"producer": f"PyTorch {torch.__version__}", "initial": initial,
                "gradients": gradients, "lr": rates, "cases": cases}
    with open(sys.argv[1], "w", encoding="utf-8") as file:
        # One line a case or step keeps the file readable and its differences small.
        text = json.dumps(document)
        for mark in ('{"name"', '{"block.weight"', '"gradients"', '"lr"', '"cases"'):
            text = text.replace(", " + mark, ",\n" + mark)
        file.write(text + "\n")


if __name__ == "__main__":
    main()

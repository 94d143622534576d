"""The operations of bench_kernels in PyTorch: for each, the variants of which the best counts."""

import re

import torch
from torch.nn import functional as F

import pytorch_workloads as work

ROWS, HIDDEN, WIDE, CLASSES, WIDTH = 32768, 1024, 3072, 50304, 768


def layer_norm(x, weight, bias):
    return F.layer_norm(x, (HIDDEN,), weight, bias)


def rms_norm(x, weight):
    return F.rms_norm(x, (HIDDEN,), weight)


def residual_norm(x, residual, bias, weight, norm_bias):
    return layer_norm(F.dropout(x + bias, 0.1) + residual, weight, norm_bias)


def loss(x, targets, weight):
    return F.cross_entropy(F.linear(x, weight).float(), targets)


# What is timed: forward; backward alone, behind a forward pass that is kept; or both.
FORWARD, BACKWARD, BOTH = "forward", "backward", "both"

# Name: function, shapes of inputs, shapes of parameters, what is timed where the name does not say.
OPERATIONS = {
    "copy": (torch.clone, [(ROWS, WIDE)], [], FORWARD),
    "transpose": (lambda x: x.t().contiguous(), [(ROWS // 4, ROWS // 4)], [], FORWARD),
    "cast_to_float32": (lambda x: x.float(), [(ROWS, WIDE)], [], FORWARD),
    "column_sum": (lambda x: x.sum(0), [(ROWS, WIDE)], [], FORWARD),
    "gelu": (lambda x: F.gelu(x, approximate="tanh"), [(ROWS, WIDE)], [], FORWARD),
    "softmax": (lambda x: x.softmax(-1), [(ROWS, HIDDEN)], [], FORWARD),
    "embedding_gradient": (F.embedding, ["classes"], [(CLASSES, WIDTH)], BACKWARD),
    "layer_norm": (layer_norm, [(ROWS, HIDDEN)], [(HIDDEN,)] * 2, FORWARD),
    "rms_norm": (rms_norm, [(ROWS, HIDDEN)], [(HIDDEN,)], FORWARD),
    "residual_norm": (residual_norm, [(ROWS, HIDDEN)] * 2, [(HIDDEN,)] * 3, FORWARD),
    "linear_cross_entropy": (loss, [(ROWS, WIDTH), "classes"], [(CLASSES, WIDTH)], BOTH),
}


def find(name):
    """(function, shapes of inputs, shapes of parameters, what is timed), or None."""
    if name.startswith("gemm_"):
        m, n, k = map(int, name[len("gemm_"):].split("x"))
        return F.linear, [(m, k)], [(n, k), (n,)], FORWARD
    found = OPERATIONS.get(re.sub("_(forward|backward)$", "", name))
    if found is None or not name.endswith("_backward"):
        return found
    return (*found[:3], BACKWARD)


def steps(name, row, device):
    """Yields (variant, step(i)) for a row of bench_kernels; nothing where there is no counterpart."""
    dtype = work.DTYPES[row["dtype"]]
    if name.startswith("adamw_124m"):
        yield from adamw_steps(dtype, device, clips=name.endswith("_clipped"))
        return
    found = find(name)
    if found is None:
        return
    function, shapes, parameter_shapes, timed = found
    parameters = [random(shape, dtype, device) for shape in parameter_shapes]
    inputs = [random(shape, dtype, device) for shape in shapes]
    size = sum(t.numel() * t.element_size() for t in inputs)
    sets = [inputs] + [[random(shape, dtype, device) for shape in shapes]
                       for _ in range(work.rotation_length(size) - 1)]
    for variant in ("eager", "default"):
        yield variant, make_step(compiled(function, variant), sets, parameters, timed)


def random(shape, dtype, device):
    if shape == "classes":
        return torch.randint(CLASSES, (ROWS,), device=device)
    return torch.randn(shape, device=device, dtype=dtype)


def compiled(function, variant):
    if variant != "eager":
        work.reset_compiler()  # each variant is measured before the next is made
        torch._functorch.config.donated_buffer = False  # the graph of a kept forward pass is reused
    return work.compiled(function, variant)


def make_step(run, sets, parameters, timed):
    if timed == FORWARD:
        def forward(i):
            with torch.no_grad():
                run(*sets[i % len(sets)], *parameters)
        return forward
    wanted = [[t.requires_grad_() for t in [*inputs, *parameters] if t.is_floating_point()]
              for inputs in sets]
    if timed == BOTH:
        def both(i):
            torch.autograd.grad(run(*sets[i % len(sets)], *parameters), wanted[i % len(sets)])
        return both
    outputs = [run(*inputs, *parameters) for inputs in sets]
    cotangents = [torch.randn_like(output) for output in outputs]

    def backward(i):
        i %= len(sets)
        torch.autograd.grad(outputs[i], wanted[i], cotangents[i], retain_graph=True)
    return backward


def adamw_steps(dtype, device, clips):
    """The update of GPT-2's parameters from gradients that are there."""
    model = work.Gpt2(CLASSES, 1024, 12, WIDTH, 12).to(device, dtype)
    optimizer = work.MasterWeights(model, 1e-3)
    gradients = [torch.randn_like(p) for p in optimizer.params]

    def step(_):
        for param, gradient in zip(optimizer.params, gradients):
            param.grad = gradient
        optimizer.step(clips)
    yield "fused", step

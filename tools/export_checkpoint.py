#!/usr/bin/env python3
"""Exports a PyTorch module or state dict to a Tenon checkpoint, version 1.

From Python:

    from export_checkpoint import export
    export(model, "model.json", inputs=[x], config={"hidden_size": 128})

From the command line:

    export_checkpoint.py --state-dict weights.pt --out model.json
    export_checkpoint.py --demo attention --hidden 128 --heads 8 --seed 0 --out attention.json

Works with PyTorch 1.13 and later, and NumPy. The manifest's grammar is in nn/checkpoint.h.
"""

import argparse
import base64
import copy
import hashlib
import json
import math
import os
import struct
import sys

import torch
from torch import nn
from torch.nn import functional as F

FORMAT, VERSION = "tenon.checkpoint", 1
DTYPES = {  # torch dtype -> (Tenon's name, .safetensors' name)
    torch.float32: ("float32", "F32"),
    torch.float64: ("float64", "F64"),
    torch.float16: ("float16", "F16"),
    torch.bfloat16: ("bfloat16", "BF16"),
    torch.int64: ("int64", "I64"),
    torch.int32: ("int32", "I32"),
    torch.int16: ("int16", "I16"),
    torch.int8: ("int8", "I8"),
    torch.uint8: ("uint8", "U8"),
    torch.bool: ("bool", "BOOL"),
}
SIDE_FILE = "weights"  # its key in "files"
SIDE_ALIGNMENT = 64


def tensor_bytes(tensor):
    """Little-endian row-major bytes of a CPU tensor."""
    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype == torch.bfloat16:
        tensor = tensor.view(torch.int16)  # NumPy has no bfloat16
    array = tensor.numpy()
    return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()


def json_values(tensor):
    """The flat "data" list; None when it holds a NaN, whose sign and payload "nan" would lose."""
    values = tensor.detach().cpu().reshape(-1)
    if not tensor.dtype.is_floating_point:
        return values.tolist()
    if tensor.dtype == torch.float32:  # str() gives the shortest decimal of the float32
        values = [float(str(value)) for value in values.numpy()]
    else:
        values = values.double().tolist()
    result = []
    for value in values:
        if math.isfinite(value):
            result.append(value)
        elif math.isinf(value):
            result.append("inf" if value > 0 else "-inf")
        else:
            return None
    return result


class SideFile:
    """Collects large tensors and writes them as one .safetensors file."""

    def __init__(self):
        self.entries = []  # [name, tensor, begin, end], offsets set by plan()

    def add(self, name, tensor):
        entry = [name, tensor, 0, 0]
        self.entries.append(entry)
        return entry

    def plan(self):
        """Wide elements first, so that every tensor starts aligned to its element."""
        self.entries.sort(key=lambda entry: -entry[1].element_size())
        position = 0
        for entry in self.entries:
            entry[2] = position
            position += entry[1].numel() * entry[1].element_size()
            entry[3] = position

    def write(self, path):
        """Writes the file and returns its entry in "files"."""
        header = {name: {"dtype": DTYPES[tensor.dtype][1], "shape": list(tensor.shape),
                         "data_offsets": [begin, end]}
                  for name, tensor, begin, end in self.entries}
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-(8 + len(text)) % SIDE_ALIGNMENT)
        digest, size = hashlib.sha256(), 0

        def parts():
            yield struct.pack("<Q", len(text)) + text
            for _, tensor, _, _ in self.entries:
                yield tensor_bytes(tensor)

        with AtomicFile(path) as file:
            for part in parts():
                file.write(part)
                digest.update(part)
                size += len(part)
        return {"path": os.path.basename(path), "size": size, "sha256": digest.hexdigest()}


class AtomicFile:
    """A binary file that appears under its name only when it is complete and synced."""

    def __init__(self, path):
        self.path, self.temporary = path, f"{path}.tmp-{os.getpid()}"

    def __enter__(self):
        self.file = open(self.temporary, "xb")
        return self.file

    def __exit__(self, kind, *_):
        if kind is None:
            self.file.flush()
            os.fsync(self.file.fileno())
        self.file.close()
        if kind is not None:
            os.unlink(self.temporary)
            return
        os.replace(self.temporary, self.path)
        folder = os.open(os.path.dirname(os.path.abspath(self.path)), os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)


def split_aliases(state):
    """Separates tensors from further names of the same memory: (tensors, aliases)."""
    tensors, aliases, seen = {}, {}, {}
    for name, tensor in state.items():
        if not isinstance(tensor, torch.Tensor):
            raise TypeError(f"{name!r} is a {type(tensor).__name__}; needed a tensor")
        if tensor.dtype not in DTYPES:
            known = ", ".join(map(str, DTYPES))
            raise TypeError(f"{name!r} is {tensor.dtype}; needed one of {known}")
        key = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        if tensor.numel() > 0 and key in seen:
            aliases[name] = seen[key]
        else:
            seen[key] = name
            tensors[name] = tensor
    return tensors, aliases


def as_tensors(value):
    """The tensors that a forward returned, as a list."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, (list, tuple)):
        return [tensor for element in value for tensor in as_tensors(element)]
    raise TypeError(f"forward returned a {type(value).__name__}; needed tensors, lists or tuples")


def record_test(module, inputs, seed=0, rtol=1e-5, atol=1e-5, in_float64=False):
    """One forward call in eval mode as an entry of "tests"; the module's mode is put back.

    With in_float64 a copy of the module in float64 computes it and the outputs are rounded once.
    """
    torch.manual_seed(seed)
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        with torch.no_grad():
            if in_float64:
                wide = [x.double() if x.is_floating_point() else x for x in inputs]
                exact = as_tensors(copy.deepcopy(module).double()(*wide))
                dtype = next(module.parameters()).dtype
                outputs = [y.to(dtype) if y.is_floating_point() else y for y in exact]
            else:
                outputs = as_tensors(module(*inputs))
    finally:
        for part, training in modes:
            part.training = training
    return {"mode": "eval", "inputs": list(inputs), "outputs": outputs, "rtol": rtol, "atol": atol}


def write_checkpoint(path, state, *, metadata=None, config=None, tests=(), inline_limit=1024,
                     base64_limit=32768):
    """Writes tensors by name (and tests as record_test returns them) to `path`.

    Tensors of at most inline_limit bytes become numbers, of at most base64_limit bytes base64, and
    larger ones go to <path without extension>.safetensors. The manifest is written last.
    """
    tensors, aliases = split_aliases(state)
    side, side_path = SideFile(), os.path.splitext(path)[0] + ".safetensors"
    if path.lower().endswith(".safetensors"):
        raise ValueError(f"{path}: the manifest needs another name than a side file")

    def describe(name, tensor):
        size = tensor.numel() * tensor.element_size()
        entry = {"dtype": DTYPES[tensor.dtype][0], "shape": list(tensor.shape)}
        values = json_values(tensor) if size <= inline_limit else None
        if values is not None:
            entry["data"] = values
        elif size <= max(inline_limit, base64_limit):
            entry["base64"] = base64.b64encode(tensor_bytes(tensor)).decode()
        else:
            entry["file"], entry["data_offsets"] = SIDE_FILE, side.add(name, tensor)
        return entry

    described = {name: describe(name, tensor) for name, tensor in tensors.items()}
    described_tests = []
    for i, test in enumerate(tests):
        lists = {}
        for kind in ("inputs", "outputs"):
            for tensor in test[kind]:
                if tensor.dtype not in DTYPES:
                    raise TypeError(f"tests[{i}].{kind}: {tensor.dtype} is not supported")
            lists[kind] = [describe(f"tests.{i}.{kind}.{j}", tensor)
                           for j, tensor in enumerate(test[kind])]
        described_tests.append({"mode": test["mode"], **lists, "rtol": test["rtol"],
                                "atol": test["atol"]})

    side.plan()
    all_tests = [entry for test in described_tests for kind in ("inputs", "outputs")
                 for entry in test[kind]]
    for entry in list(described.values()) + all_tests:
        if "data_offsets" in entry:
            entry["data_offsets"] = entry["data_offsets"][2:]

    metadata = {"producer": "export_checkpoint.py", "torch": torch.__version__.split("+")[0],
                **(metadata or {})}
    files = {SIDE_FILE: side.write(side_path)} if side.entries else {}
    with AtomicFile(path) as file:
        file.write(manifest_text(metadata, config or {}, files, described, aliases,
                                 described_tests).encode())
    return {"tensors": described, "aliases": aliases, "files": files}


def manifest_text(metadata, config, files, tensors, aliases, tests):
    """The manifest with one tensor a line; NaN and Infinity as numbers are refused."""
    def dump(value):
        return json.dumps(value, allow_nan=False)

    def lines(table):
        return ",".join(f"\n  {dump(key)}: {dump(value)}" for key, value in table.items())

    return (f'{{"format": {dump(FORMAT)}, "version": {VERSION},\n'
            f' "metadata": {dump(metadata)},\n "config": {dump(config)},\n'
            f' "files": {{{lines(files)}}},\n "tensors": {{{lines(tensors)}}},\n'
            f' "aliases": {{{lines(aliases)}}},\n'
            f' "tests": [{",".join(chr(10) + "  " + dump(test) for test in tests)}]}}\n')


def export(module, path, inputs=None, *, config=None, metadata=None, seed=0, rtol=1e-5, atol=1e-5,
           in_float64=False, inline_limit=1024, base64_limit=32768):
    """Exports an nn.Module; `inputs`, a list of tensors, adds a recorded call in eval mode."""
    tests = []
    if inputs is not None:
        tests.append(record_test(module, inputs, seed, rtol, atol, in_float64))
    return write_checkpoint(path, module.state_dict(), metadata=metadata, config=config,
                            tests=tests, inline_limit=inline_limit, base64_limit=base64_limit)


# --- the demo model: the attention of the schedule tutorial -------------------------------------


def scaled_dot_product(q, k, v, dropout_p=0.0):
    """(batch, heads, seq, head_size) each -> the same."""
    scores = torch.matmul(q, k.transpose(-2, -1)) / math.sqrt(q.shape[-1])
    probabilities = F.softmax(scores, dim=-1)
    return torch.matmul(F.dropout(probabilities, dropout_p, training=dropout_p > 0), v)


class SelfAttention(nn.Module):
    def __init__(self, hidden, heads, dropout=0.1):
        super().__init__()
        self.q_proj = nn.Linear(hidden, hidden)
        self.k_proj = nn.Linear(hidden, hidden)
        self.v_proj = nn.Linear(hidden, hidden)
        self.dropout = nn.Dropout(dropout)
        self.n_heads = heads

    def permute_for_scores(self, x):
        return x.view(x.shape[:-1] + (self.n_heads, -1)).permute(0, 2, 1, 3)

    def forward(self, hidden_states):
        q = self.permute_for_scores(self.q_proj(hidden_states))
        k = self.permute_for_scores(self.k_proj(hidden_states))
        v = self.permute_for_scores(self.v_proj(hidden_states))
        output = scaled_dot_product(q, k, v, self.dropout.p if self.training else 0.0)
        output = output.permute(0, 2, 1, 3)
        return output.reshape(output.shape[0], output.shape[1], -1)


class Projection(nn.Module):
    def __init__(self, hidden, dropout=0.1):
        super().__init__()
        self.dense = nn.Linear(hidden, hidden)
        self.dropout = nn.Dropout(dropout)
        self.layer_norm = nn.LayerNorm(hidden)

    def forward(self, hidden_states, input_tensor):
        return self.layer_norm(self.dropout(self.dense(hidden_states)) + input_tensor)


class Attention(nn.Module):
    def __init__(self, hidden=1024, heads=16):
        super().__init__()
        self.self_attn = SelfAttention(hidden, heads)
        self.proj = Projection(hidden)

    def forward(self, hidden_states):
        return self.proj(self.self_attn(hidden_states), hidden_states)


def mean_attention_entropy(model, x):
    """Entropy of the attention's rows in nats, averaged over batch, heads and queries."""
    part = model.self_attn
    with torch.no_grad():
        q = part.permute_for_scores(part.q_proj(x)).double()
        k = part.permute_for_scores(part.k_proj(x)).double()
        logs = F.log_softmax(torch.matmul(q, k.transpose(-2, -1)) / math.sqrt(q.shape[-1]), dim=-1)
        return -(logs.exp() * logs).sum(-1).mean().item()


SCORE_DEVIATION = 3.0


def demo_attention(hidden, heads, seed):
    """The model with weights large enough that its attention is far from uniform.

    With standard normal inputs and q and k weights of variance s/hidden, scores have the standard
    deviation s, here SCORE_DEVIATION. Norm weights and biases differ from their defaults, so that
    leaving them out shows.
    """
    torch.manual_seed(seed)
    model = Attention(hidden, heads)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            is_score = "q_proj.weight" in name or "k_proj.weight" in name
            if parameter.dim() == 2:
                parameter.normal_(0, math.sqrt((SCORE_DEVIATION if is_score else 1.0) / hidden))
            elif name.endswith("layer_norm.weight"):
                parameter.normal_(1, 0.2)
            else:
                parameter.normal_(0, 0.2)
    return model


def export_demo(options):
    if options.hidden % options.heads != 0:
        raise ValueError(f"--hidden {options.hidden} is not divisible by --heads {options.heads}")
    model = demo_attention(options.hidden, options.heads, options.seed)
    x = torch.randn(options.batch, options.seq, options.hidden)
    entropy = mean_attention_entropy(model, x)
    uniform = math.log(options.seq)
    print(f"mean attention entropy {entropy:.4f}; uniform attention has log({options.seq}) = "
          f"{uniform:.4f}", file=sys.stderr)
    if entropy >= 0.5 * uniform:
        raise ValueError(f"attention is too uniform: entropy {entropy:.4f} is not under half of "
                         f"log({options.seq}) = {uniform:.4f}; use a longer --seq")
    metadata = {"source": "tools/export_checkpoint.py --demo attention", "seed": options.seed,
                "mean_attention_entropy": round(entropy, 6), "log_seq": round(uniform, 6),
                "recorded_in": "float64, rounded to float32"}
    config = {"model": "Attention", "hidden_size": options.hidden, "num_heads": options.heads,
              "dropout": 0.1, "layer_norm_eps": 1e-5}
    return export(model, options.out, [x], config=config, metadata=metadata, seed=options.seed,
                  in_float64=True, inline_limit=options.inline_limit,
                  base64_limit=options.base64_limit)


def export_state_dict(options):
    # weights_only never runs code that the file brings along.
    try:
        state = torch.load(options.state_dict, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # the unpickler raises whatever the bytes lead it to
        raise ValueError(f"{options.state_dict}: torch.load cannot read it as weights: "
                         f"{type(error).__name__}: {error}") from error
    for key in ("state_dict", "model"):  # the usual wrappers
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict):
        raise TypeError(f"{options.state_dict} holds a {type(state).__name__}; needed a state dict")
    return write_checkpoint(options.out, state,
                            metadata={"source": os.path.basename(options.state_dict)},
                            inline_limit=options.inline_limit, base64_limit=options.base64_limit)


def parse_arguments(arguments):
    parser = argparse.ArgumentParser(
        description="Exports PyTorch weights to a Tenon checkpoint (JSON and .safetensors).")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--state-dict", metavar="FILE", help="a file written by torch.save")
    source.add_argument("--demo", choices=["attention"], help="the tutorial's model, seeded")
    parser.add_argument("--out", required=True, metavar="FILE.json", help="the manifest to write")
    parser.add_argument("--inline-limit", type=int, default=1024, metavar="BYTES",
                        help="tensors up to this size are written as numbers (default 1024)")
    parser.add_argument("--base64-limit", type=int, default=32768, metavar="BYTES",
                        help="and up to this size as base64 (default 32768)")
    demo = parser.add_argument_group("for --demo")
    demo.add_argument("--hidden", type=int, default=128, help="hidden size (default 128)")
    demo.add_argument("--heads", type=int, default=8, help="attention heads (default 8)")
    demo.add_argument("--batch", type=int, default=2, help="of the recorded test (default 2)")
    demo.add_argument("--seq", type=int, default=24, help="of the recorded test (default 24)")
    demo.add_argument("--seed", type=int, default=0)
    return parser.parse_args(arguments)


def main(arguments=None):
    options = parse_arguments(arguments)
    try:
        written = export_demo(options) if options.demo else export_state_dict(options)
    except (OSError, TypeError, ValueError) as error:
        print(f"export_checkpoint.py: {error}", file=sys.stderr)
        return 2
    for name, entry in written["tensors"].items():
        kind = next(key for key in ("data", "base64", "file") if key in entry)
        print(f"{name}  {entry['dtype']}{tuple(entry['shape'])}  {kind}", file=sys.stderr)
    for name, target in written["aliases"].items():
        print(f"{name}  is {target}", file=sys.stderr)
    print(f"wrote {options.out}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())

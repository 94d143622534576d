#!/usr/bin/env python3
"""Errors of Tenon's results and gradients beside PyTorch's, both against float64, over random calls.

  benchmarks/compare_errors.py --bin build/release/bin --count 300 --seed 7
  benchmarks/compare_errors.py --bin build/release/bin --what convolutions --count 200
  benchmarks/compare_errors.py --bin build/release/bin --seed 7 --only 31      # one of them again
  benchmarks/compare_errors.py --bin build/release/bin --count 100 --repeats 100

The largest error of each result of Tenon may be twice that of PyTorch's, from whatever backend PyTorch
chooses, plus a floor: one rounding to the dtype of the largest number of the exact result, a few roundings
of float32 of the largest sum of its terms' absolute values, and, of attention's gradients, what comes of
reading the output as it was rounded. --strict: no floor, to see how near it is.

attention: dtypes, batches, grouped heads, lengths, head sizes, masks, causality, windows, dropout. Queries
that see no key must get exact zeros. With dropout Tenon's float64 on the CPU draws the same and is what is
exact; PyTorch's error is that without dropout, in proportion to the largest number of the result.

--repeats computes each call so often and demands the same bits. Exit status: 0 all holds, 1 something does
not, 2 nothing was compared.
"""

import argparse
import json
import os
import pathlib
import random
import struct
import subprocess
import sys
import tempfile
import time

import torch

import random_calls

TYPES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
         torch.bool: "BOOL"}


def write_safetensors(path, tensors, metadata):
    """The container of nn/detail/safetensors.h."""
    header, offset, parts = {"__metadata__": metadata}, 0, []
    for name, tensor in tensors.items():
        data = tensor.detach().contiguous().cpu().reshape(-1).view(torch.uint8).numpy().tobytes()
        header[name] = {"dtype": TYPES[tensor.dtype], "shape": list(tensor.shape),
                        "data_offsets": [offset, offset + len(data)]}
        offset += len(data)
        parts.append(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for part in parts:
            file.write(part)


def read_safetensors(path, device):
    data = bytearray(pathlib.Path(path).read_bytes())
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(bytes(data[8:8 + size]))
    names = {text: dtype for dtype, text in TYPES.items()}
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        begin, end = (8 + size + x for x in entry["data_offsets"])
        dtype, shape = names[entry["dtype"]], entry["shape"]
        tensors[name] = (torch.empty(shape, dtype=dtype) if begin == end else torch.frombuffer(
            data, dtype=torch.uint8, count=end - begin, offset=begin).clone().view(dtype).reshape(shape))
        tensors[name] = tensors[name].to(device)
    return tensors


def run_tenon(options, calls):
    """Results by call number: {"output": …, "exact.output": …} and the program's notes."""
    tensors, listed = {}, []
    for number, call in calls.items():
        names = []
        for i, operand in enumerate(call.operands):
            names.append(None if operand is None else f"{number}.{i}")
            if operand is not None:
                tensors[names[-1]] = operand
        tensors[f"{number}.cotangent"] = call.cotangent
        listed.append({"name": str(number), "op": call.op, "attributes": call.attributes, "inputs": names,
                       "axes": call.axes, "copies": call.copies or [1] * len(names),
                       "cotangent": f"{number}.cotangent", "wanted": call.wanted,
                       "program": call.program, "exact": call.exact_by_tenon})
    with tempfile.TemporaryDirectory() as folder:
        given, found = (os.path.join(folder, name) for name in ("calls.safetensors", "results.safetensors"))
        write_safetensors(given, tensors, {"calls": json.dumps(listed)})
        command = [os.path.join(options.bin, "run_op_calls"), given, found, "--json", "--device",
                   options.device, "--repeats", str(options.repeats)]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, check=False)
        if done.returncode != 0:
            sys.exit(f"run_op_calls failed: {done.stderr[-2000:]}")
        results = {number: {} for number in calls}
        for name, tensor in read_safetensors(found, options.device).items():
            number, _, result = name.partition(".")
            results[int(number)][result] = tensor
    notes = {int(note["name"]): note for note in json.loads(done.stdout)["calls"]}
    return results, notes


def error_of(found, exact):
    """The largest difference; infinite where one of them only is not finite."""
    if exact.numel() == 0:
        return 0.0
    difference = (found.double() - exact.double()).abs()
    same = (found.double() == exact.double()) | (found.isnan() & exact.isnan())
    return torch.where(same, 0.0, difference).nan_to_num(nan=float("inf")).max().item()


def without_rows(results, empty):
    """The results with zeros for queries that see no key: PyTorch's may be anything there."""
    kept = {}
    for name, value in results.items():
        rows = name in ("output", "gradient 0")
        kept[name] = value.masked_fill(empty[..., None], 0) if rows else value
    return kept


def compare(options, number, call, found, note):
    """Lines about what is wrong, and the largest share of the allowed error with its result's name; None
    instead of these where PyTorch does not take the call."""
    if "error" in note:
        return [f"error: {note['error']}"], (float("inf"), "")
    wrong = []
    if note["different_repeats"]:
        wrong.append(f"bits differ in {note['different_repeats']} of {options.repeats} runs")
    exact, terms, losses = call.exact()
    try:
        peer = call.peer()
    except RuntimeError as error:
        print(f"{number}: PyTorch refuses {call.text}: {str(error)[:200]}", flush=True)
        return wrong, None
    wanted = exact
    if call.exact_by_tenon:
        wanted = {name.removeprefix("exact."): value for name, value in found.items() if name.startswith("exact.")}
    unit = random_calls.UNITS[call.operands[0].dtype]
    if call.empty_rows is not None and call.empty_rows.any():
        for name in ("output", "gradient 0"):
            if found[name][call.empty_rows].abs().max().item() != 0:
                wrong.append(f"{name}: not zero for queries that see no key")
        peer = without_rows(peer, call.empty_rows)
    most = (0.0, "")
    for name, want in wanted.items():
        size = random_calls.largest(want)
        ours, theirs = error_of(found[name], want), error_of(peer[name], exact[name])
        peer_size = random_calls.largest(exact[name])
        if call.exact_by_tenon and peer_size > 0:
            theirs *= max(1.0, size / peer_size)
        floor = 0 if options.strict else (
            unit * size + 4 * 2.0**-24 * terms[name] + losses.get(name, 0.0))
        if size < 1e-9 * terms[name]:  # zero in truth: noise on both sides
            floor = unit * terms[name]
        allowed = 2 * theirs + floor if theirs == theirs and theirs != float("inf") else float("inf")
        share = ours / allowed if allowed > 0 else float(ours > 0) * float("inf") if ours > 0 else 0.0
        if options.verbose:
            print(f"    {number} {name}: ours {ours:.3e} theirs {theirs:.3e} of {size:.3e}, share {share:.2f}")
        if share > 1:
            wrong.append(f"{name}: {ours:.3e}, PyTorch {theirs:.3e}, of numbers up to {size:.3e}; allowed "
                         f"{allowed:.3e}")
        if allowed == float("inf"):
            wrong.append(f"{name}: PyTorch's is not finite, ours is {'' if ours < float('inf') else 'not '}")
        if share > most[0]:
            most = (share, name)
    return wrong, most


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--bin", required=True, help="the folder of Tenon's programs")
    add("--what", choices=list(random_calls.DRAW), default="attention")
    add("--count", type=int, default=300)
    add("--seed", type=int, default=1)
    add("--first", type=int, default=0, help="number of the first call")
    add("--only", type=int, nargs="+", help="numbers of the calls to compare")
    add("--device", default="cuda")
    add("--repeats", type=int, default=1)
    add("--pairs", type=int, default=4 << 20, help="most scores of one attention")
    add("--chunk", type=int, default=30, help="calls of one run of Tenon's program")
    add("--seconds", type=float, default=float("inf"), help="no further chunk begins after these")
    add("--strict", action="store_true")
    add("--verbose", action="store_true")
    return parser.parse_args()


def main():
    options = parse()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    numbers = options.only or list(range(options.first, options.first + options.count))
    start, compared, bad, shares = time.monotonic(), 0, 0, []
    print(f"{options.what}, seed {options.seed}, PyTorch {torch.__version__} on {options.device}")
    for at in range(0, len(numbers), options.chunk):
        if time.monotonic() - start > options.seconds:
            break
        calls = {}
        for number in numbers[at:at + options.chunk]:
            # Each call has numbers of its own, so that one can be looked at again.
            rng = random.Random(f"{options.what} {options.seed} {number}")
            generator = torch.Generator().manual_seed(rng.getrandbits(60))
            calls[number] = random_calls.DRAW[options.what](rng, generator, options.device, options.pairs)
        results, notes = run_tenon(options, calls)
        for number, call in calls.items():
            wrong, most = compare(options, number, call, results[number], notes[number])
            bad += bool(wrong)
            if most is not None:
                compared += 1
                shares.append((most[0], number, most[1], call.text))
            if wrong:
                print(f"{number}: {call.text}\n    kernels: {', '.join(notes[number].get('kernels', []))}")
                print("".join(f"    {line}\n" for line in wrong), end="", flush=True)
    shares.sort(reverse=True)
    print("largest shares of the allowed error:")
    for share, number, name, text in shares[:8]:
        print(f"    {share:.2f} {number} {name}: {text}")
    print(f"{compared} compared, {bad} wrong, seed {options.seed}, {time.monotonic() - start:.0f} s")
    return 2 if compared == 0 else 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python3
"""Checks the structure of the source tree; prints `file:line: rule: what` for each violation, exit 1.

usage: check_layering.py [ROOT]

Rules: which folder may include which (ALLOWED), and which room of a folder which (SCHEDULE_ROOMS,
TENSOR_ROOMS); no folder includes what another keeps in its detail/; no third-party headers in public headers; Eigen in
tensor/cpu/ only; CLI11 in one source; files of at most 700 lines; .cu files only for device code;
every source and every public header listed in a CMakeLists.txt.
"""

import pathlib
import re
import sys

LAYERS = ("tensor", "autograd", "graph", "nn", "schedule")
PROGRAMS = ("tests", "examples", "benchmarks")
ALL = LAYERS + ("cuda",) + PROGRAMS

# The whole table of arrows: a folder may include itself and what stands here.
ALLOWED = {
    "tensor": (),
    "autograd": ("tensor",),
    "graph": ("tensor",),
    "nn": ("tensor", "autograd"),
    "schedule": ("tensor", "graph", "nn", "autograd"),
    "cuda": ("tensor", "graph"),
    "examples": ALL,
    "tests": ALL,
    "benchmarks": ALL,
}

# The rooms of schedule/, the lowest first, each with the public headers that are its doors: a room may
# include itself and those before it.
SCHEDULE_ROOMS = {
    "facts": (),
    "matching": ("pattern.h", "matcher.h"),
    "rewriting": ("replacement.h", "weight_map.h", "schedule.h"),
    "primitives": (),
    "saving": ("schedule_json.h",),
    "regions": (),
    "gradients": ("joint_graph.h",),
    "trials": (),
    "verification": ("verification.h",),
    "training": ("training.h",),
    "showing": ("tree.h", "report.h"),
    "ready_made": ("schedules.h",),
    "schedule.cpp": (),
}

# What the rooms of tensor/ may include beside themselves and the headers of tensor/ itself. Definitions of
# ops stand above their rules and kernels, their attributes, in headers, below.
TENSOR_ROOMS = {
    "support": (),
    "detail": ("support",),
    "calls": ("support", "ops/*.h"),
    "rules": ("support", "calls", "ops/*.h"),
    "cpu": ("support", "calls", "rules", "ops/*.h"),
    "ops": ("support", "calls", "rules", "cpu"),
}

# Folders whose headers are not installed, beside every detail/; and headers there that are.
INTERNAL = {("tensor", room) for room in ("support", "calls", "rules", "cpu")} | {
    ("schedule", room) for room in SCHEDULE_ROOMS if room != "primitives"}
INSTALLED = ("tensor/rules/gradients.h", "tensor/rules/infer_rules.h")

MAX_LINES = 700
SOURCES = {".cpp", ".cu"}
HEADERS = {".h", ".hpp", ".cuh"}
COUNTED = SOURCES | HEADERS | {".py", ".cmake"}

# The one source that includes CLI11, which costs every source that does 5 seconds or more.
COMMAND_LINE = "examples/command_line.cpp"

INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]')
EIGEN = re.compile(r"^(unsupported/)?Eigen/")
CLI11 = re.compile(r"^CLI/")
NOT_IN_PUBLIC = re.compile(r"^(unsupported/)?Eigen/|^cuda|^cublas|^cudnn|^nvrtc|^nlohmann/json\.hpp$|^fmt/")
DEVICE_CODE = re.compile(r"__global__|__device__|^#include \".*\.cuh\"")


def is_internal_header(path):
    return "detail" in path.parts or (path.parts[:2] in INTERNAL and path.as_posix() not in INSTALLED)


def is_public_header(path):
    return path.suffix in HEADERS and path.parts[0] in LAYERS and not is_internal_header(path)


def room_of(path):
    """The room of a file of schedule/ or tensor/; "" for a file of tensor/ itself, None where there is none."""
    folder, *rest = path.parts
    if folder == "tensor":
        return rest[0] if len(rest) > 1 and rest[0] in TENSOR_ROOMS else ""
    if rest[0] in SCHEDULE_ROOMS:
        return rest[0]
    return next((room for room, doors in SCHEDULE_ROOMS.items() if rest[0] in doors), None)


def is_room_arrow(path, target):
    """Whether a file of schedule/ or tensor/ may include another of its folder."""
    source, room = room_of(path), room_of(target)
    if path.parts[0] == "schedule":
        order = list(SCHEDULE_ROOMS)
        return None not in (source, room) and order.index(room) <= order.index(source)
    if source == "" or room in ("", source):
        return True
    return room in TENSOR_ROOMS[source] or (target.suffix == ".h" and f"{room}/*.h" in TENSOR_ROOMS[source])


def include_violations(path, number, quote, target):
    """Yields (line, rule, text) for one #include of `target` in `path`."""
    folder, first = path.parts[0], target.split("/")[0]
    public = is_public_header(path)
    # <cuda/...> is NVIDIA's, "cuda/..." is ours.
    ours = "/" in target and first in ALLOWED and (quote == '"' or first != "cuda")
    if ours and first != folder and first not in ALLOWED[folder]:
        yield number, "arrow", f"{folder}/ may not include {target}"
    other = pathlib.PurePosixPath(target)
    if ours and first == folder and folder in ("schedule", "tensor") and not is_room_arrow(path, other):
        yield number, "room", f"{path.parent}/ may not include {target}: it is no room below"
    if ours and first != folder and "detail" in other.parts and folder not in PROGRAMS:
        yield number, "detail", f"{folder}/ may not include {target}: it is {first}/'s own"
    if public and NOT_IN_PUBLIC.search(target):
        yield number, "public-header", f"a public header may not include {target}"
    if public and ours and is_internal_header(other):
        yield number, "public-header", f"a public header may not include {target}: it is not installed"
    if EIGEN.search(target) and path.parts[:2] != ("tensor", "cpu"):
        yield number, "eigen", f"only tensor/cpu/ may include {target}"
    if CLI11.search(target) and path.as_posix() != COMMAND_LINE:
        yield number, "cli11", f"only {COMMAND_LINE} may include {target}: it takes seconds to compile"


def is_listed(root, path):
    """Whether a CMakeLists.txt at or above the file (below the root) names it."""
    for folder in list(path.parents)[:-1]:
        lists = root / folder / "CMakeLists.txt"
        if lists.is_file():
            text = re.sub(r"#.*", "", lists.read_text(encoding="utf-8"))
            if path.relative_to(folder).as_posix() in re.split(r"[\s()\"]+", text):
                return True
    return False


def file_violations(root, path):
    """Yields (line, rule, text) for the file root/path."""
    lines = (root / path).read_text(encoding="utf-8").splitlines()
    if len(lines) > MAX_LINES:
        yield len(lines), "length", f"{len(lines)} lines; at most {MAX_LINES}"
    if path.suffix not in SOURCES | HEADERS:
        return
    for number, line in enumerate(lines, 1):
        match = INCLUDE.match(line)
        if match is None:
            continue
        quote, target = match.groups()
        yield from include_violations(path, number, quote, target)
        if target.startswith(".") or (quote == '"' and "/" not in target):
            yield number, "arrow", f'write "{target}" from the project root'
    if path.suffix == ".cu" and not any(DEVICE_CODE.search(l.split("//")[0]) for l in lines):
        yield 1, "cu", "no device code here: make it a .cpp"
    if path.parts[0] == "schedule" and room_of(path) is None:
        yield 1, "room", "in no room of schedule/"
    if (path.suffix in SOURCES or is_public_header(path)) and not is_listed(root, path):
        yield 1, "unlisted", "no CMakeLists.txt lists this file"


def violations(root):
    """All violations under root, as sorted (path, line, rule, text), and the number of files."""
    root, found, count = pathlib.Path(root), [], 0
    for folder in ALLOWED:
        for full in sorted((root / folder).rglob("*")):
            path = full.relative_to(root)
            if full.is_file() and path.suffix in COUNTED:
                count += 1
                found += [(path.as_posix(), *v) for v in file_violations(root, path)]
    return sorted(found), count


def main(arguments):
    root = arguments[0] if arguments else pathlib.Path(__file__).resolve().parents[2]
    found, count = violations(root)
    for path, line, rule, text in found:
        print(f"{path}:{line}: {rule}: {text}")
    if count == 0:
        print(f"{root}: no source files found; is this the project root?")
    print(f"{count} files, {len(found)} violations")
    return 1 if found or count == 0 else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

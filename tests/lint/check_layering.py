#!/usr/bin/env python3
"""Checks the structure of the source tree; prints `file:line: rule: what` for each violation, exit 1.

usage: check_layering.py [ROOT]

Rules: which folder may include which (ALLOWED); no third-party headers in public headers; Eigen in
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


def is_public_header(path):
    return (path.suffix in HEADERS and path.parts[0] in LAYERS and "detail" not in path.parts
            and path.parts[:2] != ("tensor", "cpu"))


def is_internal_header(path):
    return "detail" in path.parts or path.parts[:2] == ("tensor", "cpu")


def include_violations(path, number, quote, target):
    """Yields (line, rule, text) for one #include of `target` in `path`."""
    folder, first = path.parts[0], target.split("/")[0]
    public = is_public_header(path)
    # <cuda/...> is NVIDIA's, "cuda/..." is ours.
    ours = "/" in target and first in ALLOWED and (quote == '"' or first != "cuda")
    if ours and first != folder and first not in ALLOWED[folder]:
        yield number, "arrow", f"{folder}/ may not include {target}"
    if public and NOT_IN_PUBLIC.search(target):
        yield number, "public-header", f"a public header may not include {target}"
    if public and ours and is_internal_header(pathlib.PurePosixPath(target)):
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

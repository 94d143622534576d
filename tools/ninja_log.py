"""What each step of a ninja build took, from the .ninja_log in the build folder."""

import posixpath
import re
from typing import NamedTuple

KINDS = ("C++", "CUDA", "precompiled headers", "links", "other")
OBJECT = re.compile(r"(?:(.*)/)?CMakeFiles/([^/]+)\.dir/(.*)\.o(?:bj)?$")


class Step(NamedTuple):
    outputs: tuple  # as ninja names them, relative to the build folder
    start_ms: int   # since that build began
    end_ms: int

    @property
    def seconds(self):
        return (self.end_ms - self.start_ms) / 1000


def kind(output):
    """One of KINDS, by the output's name."""
    if output.endswith((".gch", ".pch")):
        return "precompiled headers"
    if OBJECT.search(output):
        if output.endswith("cmake_device_link.o"):
            return "links"
        return "CUDA" if ".cu." in output else "C++"
    if output.startswith("bin/") or re.search(r"\.(a|so(\.[\d.]+)?)$", output):
        return "links"
    return "other"


def source(output):
    """The source of an object file, relative to the checkout; of other outputs, their own name."""
    match = OBJECT.search(output)
    if match is None:
        header = re.search(r"CMakeFiles/([^/]+)\.dir/cmake_pch\.", output)
        return f"precompiled headers of {header[1]}" if header else output
    folder, target, name = match.groups()
    if name.startswith("Unity/"):  # several sources as one: each target has such files
        return f"{target} ({name.removeprefix('Unity/')})"
    parts = [".." if part == "__" else part for part in name.split("/")]
    return posixpath.normpath(posixpath.join(folder or "", *parts))


def read(path):
    """The log's Steps in its order; of several entries of one output only the last counts.

    Raises OSError, and ValueError where the file is no ninja log.
    """
    with open(path, encoding="utf-8", errors="replace") as file:
        if not file.readline().startswith("# ninja log v"):
            raise ValueError(f"{path} is not a ninja log")
        lines = file.read().splitlines()
    last = {}
    for line in lines:
        fields = line.split("\t")
        # The last line may be cut off: a build is still writing it, or was killed.
        if len(fields) != 5 or not (fields[0].isdigit() and fields[1].isdigit()):
            continue
        start, end, output, command = int(fields[0]), int(fields[1]), fields[3], fields[4]
        last.pop(output, None)
        last[output] = (start, end, command)
    steps = {}
    for output, key in last.items():  # one command may have several outputs
        steps.setdefault(key, []).append(output)
    return [Step(tuple(outputs), *key[:2]) for key, outputs in steps.items()]

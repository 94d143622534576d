#!/usr/bin/env python3
"""Draws which folder and which room of schedule/ and tensor/ includes which, from the sources.

usage: draw_folders.py [--check] [ROOT]

Writes docs/folders.dot and, by Graphviz' program dot, docs/folders.svg. An arrow says how many includes one
room, or with dashes one folder, has of another; below is what others build on. --check writes nothing and
fails where docs/folders.dot is not what the sources say now.
"""

import argparse
import collections
import pathlib
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "lint"))
import check_layering as lint  # noqa: E402

FOLDERS = lint.LAYERS + ("cuda",)
# Arrows to what every room includes say nothing.
EVERYWHERE = ("tensor/support", "tensor/core")
# Where arrows between folders leave and arrive.
LOWEST = {"schedule": "schedule/facts", "tensor": "tensor/support"}
HIGHEST = {"tensor": "tensor/ops"}


def place_of(path):
    """The name of the room that a file is in, as the picture has it."""
    folder = path.parts[0]
    if folder == "schedule":
        room = lint.room_of(path)
        return f"schedule/{room}" if room is not None and "." not in room else "schedule/schedule.cpp"
    if folder == "tensor":
        if path.parts[1] == "ops" and path.suffix == ".h":
            return "tensor/attributes"
        return f"tensor/{lint.room_of(path) or 'core'}"
    return folder


def folder_of(place):
    return place.split("/")[0]


def count_arrows(root):
    """{(place, place): includes} between different places."""
    arrows = collections.Counter()
    for folder in FOLDERS:
        for full in sorted((root / folder).rglob("*")):
            path = full.relative_to(root)
            if path.suffix not in lint.SOURCES | lint.HEADERS:
                continue
            for line in full.read_text(encoding="utf-8").splitlines():
                match = lint.INCLUDE.match(line)
                if match is None or match[1] != '"':
                    continue
                target = pathlib.PurePosixPath(match[2])
                if target.parts[0] in FOLDERS:
                    arrows[place_of(path), place_of(target)] += 1
    return {(a, b): n for (a, b), n in arrows.items() if a != b}


def draw(arrows):
    """The picture in Graphviz' language."""
    places = sorted({place for pair in arrows for place in pair})
    lines = ["digraph folders {", "  compound=true; rankdir=TB; ranksep=0.45; nodesep=0.3;",
             '  node [shape=box, style="rounded,filled", fillcolor=white, fontname="Helvetica", fontsize=11];',
             '  edge [fontname="Helvetica", fontsize=8, color="#707070", arrowsize=0.6];']
    for folder in FOLDERS:
        lines.append(f"  subgraph cluster_{folder} {{")
        lines.append(f'    label="{folder}/"; fontname="Helvetica"; style=rounded; color="#a0a0a0";')
        lines += [f'    "{place}" [label="{place.split("/")[-1]}"];' for place in places
                  if folder_of(place) == folder]
        lines.append("  }")
    between = collections.Counter()
    for (source, target), count in sorted(arrows.items()):
        if folder_of(source) != folder_of(target):
            between[folder_of(source), folder_of(target)] += count
        elif target not in EVERYWHERE:
            lines.append(f'  "{source}" -> "{target}" [label="{count}"];')
    for (source, target), count in sorted(between.items()):
        ends = f'"{LOWEST.get(source, source)}" -> "{HIGHEST.get(target, target)}"'
        lines.append(f'  {ends} [label="{count}", style=dashed, ltail=cluster_{source}, '
                     f"lhead=cluster_{target}];")
    return "\n".join([*lines, "}", ""])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("root", nargs="?", type=pathlib.Path, default=ROOT)
    options = parser.parse_args()
    picture = draw(count_arrows(options.root))
    path = options.root / "docs" / "folders.dot"
    if options.check:
        if not path.is_file() or path.read_text(encoding="utf-8") != picture:
            print(f"{path} is not what the sources say; run tools/draw_folders.py")
            return 1
        return 0
    path.write_text(picture, encoding="utf-8")
    if shutil.which("dot") is None:
        sys.exit("there is no program 'dot'; install graphviz")
    subprocess.run(["dot", "-Tsvg", path, "-o", path.with_suffix(".svg")], check=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

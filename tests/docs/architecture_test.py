#!/usr/bin/env python3
"""docs/architecture.md names files and rooms that exist, its walks never return to a room that they left, its
picture is what the sources say."""

import pathlib
import re
import subprocess
import sys
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path[1:1] = [str(ROOT / "tests" / "lint")]
import check_layering as lint  # noqa: E402

TEXT = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")


def room_of(name):
    path = pathlib.PurePosixPath(name)
    folder = path.parts[0]
    return folder, lint.room_of(path) if folder in ("schedule", "tensor") else ""


def walks():
    """{title: files in order}"""
    found = {}
    for block in TEXT.split("## Walks", 1)[1].split("\n\n"):
        files = re.findall(r"^\d+\. `([^`]+)`", block, re.M)
        if files:
            found[title] = files
        else:
            title = block.strip()
    return found


def steps_back(files):
    """Files of a room that the walk had left."""
    left, now, found = set(), None, []
    for name in files:
        room = room_of(name)
        if room != now:
            left.add(now)
        if room in left:
            found.append(name)
        now = room
    return found


class ArchitectureTest(unittest.TestCase):
    def test_named_files_exist(self):
        names = set(re.findall(r"`([\w/]+\.(?:h|cpp|py))`", TEXT))
        self.assertGreater(len(names), 30)
        folders = ["", "schedule/", "docs/"]
        for name in sorted(names):
            with self.subTest(name=name):
                self.assertTrue(any((ROOT / folder / name).is_file() for folder in folders))

    def test_walks(self):
        self.assertEqual(len(walks()), 5)
        for title, files in walks().items():
            with self.subTest(title=title):
                self.assertEqual(steps_back(files), [])

    def test_a_step_back_is_found(self):
        self.assertEqual(steps_back(["tensor/cpu/a.cpp", "tensor/cpu/b.cpp", "tensor/ops/c.cpp",
                                     "tensor/cpu/d.cpp"]), ["tensor/cpu/d.cpp"])

    def test_rooms_are_those_of_the_lint(self):
        rooms = [room for room in lint.SCHEDULE_ROOMS if "." not in room]
        self.assertEqual([line.split("`")[1].rstrip("/") for line in TEXT.splitlines()
                          if line.startswith("| `") and line.split("`")[1].rstrip("/") in rooms], rooms)

    def test_picture(self):
        program = ROOT / "tools" / "draw_folders.py"
        result = subprocess.run([sys.executable, "-B", program, "--check"], capture_output=True,
                                text=True, check=False)
        self.assertEqual(result.returncode, 0, result.stdout)


if __name__ == "__main__":
    unittest.main()

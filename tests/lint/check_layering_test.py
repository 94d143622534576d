#!/usr/bin/env python3
"""Plants every kind of violation in a temporary tree and demands that check_layering reports it."""

import pathlib
import subprocess
import sys
import tempfile
import unittest

import check_layering


class CheckLayeringTest(unittest.TestCase):
    def setUp(self):
        temporary = tempfile.TemporaryDirectory()
        self.addCleanup(temporary.cleanup)
        self.root = pathlib.Path(temporary.name)

    def plant(self, path, text, listed=True):
        full = self.root / path
        full.parent.mkdir(parents=True, exist_ok=True)
        full.write_text(text, encoding="utf-8")
        if listed:
            folder = path.split("/")[0]
            with (self.root / folder / "CMakeLists.txt").open("a", encoding="utf-8") as lists:
                lists.write(path[len(folder) + 1:] + "\n")

    def found(self):
        return [(path, line, rule) for path, line, rule, _ in check_layering.violations(self.root)[0]]

    def expect(self, path, text, *expected):
        """Plants one file and expects exactly these (line, rule)."""
        self.plant(path, text)
        self.assertEqual(self.found(), [(path, line, rule) for line, rule in expected])

    def test_every_arrow(self):
        for source, allowed in check_layering.ALLOWED.items():
            for target in check_layering.ALLOWED:
                with self.subTest(source=source, target=target):
                    path = f"{source}/a.cpp" if source != "schedule" else "schedule/ready_made/a.cpp"
                    target = "schedule/facts" if source == target == "schedule" else target
                    self.plant(path, f'\n#include "{target}/b.h"\n')
                    forbidden = target.split("/")[0] != source and target not in allowed
                    self.assertEqual(self.found(), [(path, 2, "arrow")] if forbidden else [])
                    (self.root / path).unlink()

    def expect_room_arrow(self, source, target, allowed):
        with self.subTest(source=source, target=target):
            self.plant(source, f'#include "{target}"\n')
            self.assertEqual(self.found(), [] if allowed else [(source, 1, "room")])
            (self.root / source).unlink()

    def test_every_arrow_between_rooms_of_schedule(self):
        rooms = [room for room in check_layering.SCHEDULE_ROOMS if "." not in room]
        for i, source in enumerate(rooms):
            for j, target in enumerate(rooms):
                self.expect_room_arrow(f"schedule/{source}/a.cpp", f"schedule/{target}/b.h", j <= i)
                for door in check_layering.SCHEDULE_ROOMS[target]:
                    self.expect_room_arrow(f"schedule/{source}/a.cpp", f"schedule/{door}", j <= i)
        self.expect_room_arrow("schedule/schedule.cpp", "schedule/ready_made/b.h", True)
        self.expect_room_arrow("schedule/schedule.h", "schedule/verification.h", False)
        self.expect("schedule/other.cpp", "\n", (1, "room"))

    def test_every_arrow_between_rooms_of_tensor(self):
        rooms = check_layering.TENSOR_ROOMS
        for source, allowed in rooms.items():
            self.expect_room_arrow(f"tensor/{source}/a.cpp", "tensor/b.h", True)
            for target in rooms:
                header = target in allowed or target == source or f"{target}/*.h" in allowed
                self.expect_room_arrow(f"tensor/{source}/a.cpp", f"tensor/{target}/b.h", header)
                self.expect_room_arrow(f"tensor/a.cpp", f"tensor/{target}/b.h", True)

    def test_detail_of_another_folder(self):
        self.plant("graph/a.cpp", '#include "graph/detail/b.h"\n')
        self.plant("tests/graph/a.cpp", '#include "graph/detail/b.h"\n')
        self.expect("nn/a.cpp", '#include "tensor/detail/b.h"\n', (1, "detail"))

    def test_table_is_the_design(self):
        table = check_layering.ALLOWED
        self.assertEqual(table["tensor"], ())
        self.assertEqual(table["graph"], ("tensor",))
        self.assertNotIn("graph", table["nn"])
        for folder in check_layering.LAYERS:
            self.assertFalse({"cuda", "tests", "examples", "benchmarks"} & set(table[folder]))

    def test_arrow_in_header_subfolder_and_odd_spelling(self):
        self.expect("graph/detail/a.h", '  #  include  "nn/module.h"  // why\n', (1, "arrow"))

    def test_arrow_with_angle_brackets(self):
        self.expect("tensor/a.cpp", "#include <graph/graph.h>\n", (1, "arrow"))

    def test_include_not_from_root(self):
        self.plant("tensor/a.cpp", '#include "b.h"\n#include "../graph/c.h"\n')
        self.assertEqual(self.found(), [("tensor/a.cpp", 1, "arrow"), ("tensor/a.cpp", 2, "arrow")])

    def test_third_party_in_public_header(self):
        for target in ("Eigen/Core", "unsupported/Eigen/CXX11/Tensor", "cuda.h", "cuda_runtime.h",
                       "cuda/std/array", "cublasLt.h", "cublas_v2.h", "cudnn.h", "nvrtc.h",
                       "nlohmann/json.hpp", "fmt/format.h"):
            with self.subTest(target=target):
                self.plant("nn/a.h", f"#pragma once\n#include <{target}>\n")
                self.assertIn(("nn/a.h", 2, "public-header"), self.found())

    def test_third_party_where_it_may_be(self):
        self.plant("tensor/detail/a.h", "#include <fmt/format.h>\n#include <nlohmann/json.hpp>\n")
        self.plant("tensor/cpu/a.h", "#include <Eigen/Core>\n")
        self.plant("cuda/a.h", "#include <cuda_runtime.h>\n")
        self.plant("tensor/a.cpp", "#include <fmt/format.h>\n#include <nlohmann/json.hpp>\n")
        self.plant("tensor/a.h", "#include <nlohmann/json_fwd.hpp>\n#include <vector>\n")
        self.assertEqual(self.found(), [])

    def test_internal_in_public_header(self):
        self.expect("nn/a.h", '#include "nn/detail/b.h"\n#include "tensor/cpu/c.h"\n',
                    (1, "public-header"), (2, "public-header"))

    def test_eigen_outside_cpu(self):
        for path in ("tensor/a.cpp", "graph/detail/a.h", "cuda/a.cpp", "tests/a.cpp"):
            with self.subTest(path=path):
                self.plant(path, '#include "Eigen/Core"\n')
                self.assertIn((path, 1, "eigen"), self.found())

    def test_cli11_outside_command_line(self):
        self.plant("examples/command_line.cpp", "#include <CLI/CLI.hpp>\n")
        self.assertEqual(self.found(), [])
        for path in ("examples/a.cpp", "examples/command_line.h", "benchmarks/command_line.cpp",
                     "tests/fuzz/a.cpp"):
            with self.subTest(path=path):
                self.plant(path, "\n#include <CLI/App.hpp>\n")
                self.assertIn((path, 2, "cli11"), self.found())

    def test_length(self):
        self.plant("tensor/a.cpp", "\n" * check_layering.MAX_LINES)
        self.assertEqual(self.found(), [])
        self.expect("tensor/b.cpp", "\n" * (check_layering.MAX_LINES + 1),
                    (check_layering.MAX_LINES + 1, "length"))

    def test_cu_without_device_code(self):
        self.plant("cuda/kernels/a.cu", "__global__ void kernel() {}\n")
        self.assertEqual(self.found(), [])
        self.expect("cuda/kernels/b.cu", "void host();  // calls no __global__\n", (1, "cu"))

    def test_unlisted(self):
        self.plant("tensor/CMakeLists.txt", "# a.cpp\nother/a.cpp aa.cpp\n", listed=False)
        for path in ("tensor/a.cpp", "tensor/b.h", "tests/tensor/c_test.cpp"):
            self.plant(path, "\n", listed=False)
        self.plant("tensor/detail/d.h", "\n", listed=False)
        self.assertEqual(self.found(), [("tensor/a.cpp", 1, "unlisted"), ("tensor/b.h", 1, "unlisted"),
                                        ("tests/tensor/c_test.cpp", 1, "unlisted")])

    def run_program(self):
        program = pathlib.Path(check_layering.__file__)
        return subprocess.run([sys.executable, "-B", program, self.root], capture_output=True,
                              text=True, check=False)

    def test_program(self):
        self.assertEqual(self.run_program().returncode, 1, "an empty tree must not pass")
        self.plant("tensor/a.cpp", "#include <vector>\n")
        self.assertEqual(self.run_program().returncode, 0)
        self.plant("tensor/b.cpp", '\n\n#include "graph/graph.h"\n')
        result = self.run_program()
        self.assertEqual(result.returncode, 1)
        self.assertIn("tensor/b.cpp:3: arrow: tensor/ may not include graph/graph.h", result.stdout)


if __name__ == "__main__":
    unittest.main()

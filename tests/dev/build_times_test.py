#!/usr/bin/env python3
"""tools/build_times.py on canned logs: which entries count, sums by kind, errors."""

import contextlib
import io
import json
import pathlib
import sys
import tempfile
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "tools"))
import build_times  # noqa: E402
import ninja_log  # noqa: E402

HEADER = "# ninja log v5\n"
PCH = "nn/CMakeFiles/tenon_nn.dir/cmake_pch.hxx.gch"
CPP = "nn/CMakeFiles/tenon_nn.dir/module.cpp.o"
CU = "cuda/CMakeFiles/tenon_cuda.dir/kernels/copy.cu.o"


def entry(start, end, output, command="1"):
    return f"{start}\t{end}\t1700000000000000000\t{output}\t{command}\n"


ONE_BUILD = HEADER + "".join([
    entry(0, 2500, PCH, "a"),
    entry(2500, 6500, CPP, "b"),
    entry(0, 20000, CU, "c"),
    # One command, two names of the library.
    entry(20000, 20500, "lib/libtenon.so.0.1", "d"),
    entry(20000, 20500, "lib/libtenon.so", "d"),
    entry(20500, 21000, "bin/test_nn", "e"),
    entry(21000, 21100, "tests/CMakeFiles/tenon_test_data", "f")])


class BuildTimesTest(unittest.TestCase):
    def setUp(self):
        temporary = tempfile.TemporaryDirectory()
        self.addCleanup(temporary.cleanup)
        self.folder = pathlib.Path(temporary.name)

    def run_tool(self, log=None, *arguments):
        """(what is printed, the reason it ended with, or None)."""
        if log is not None:
            (self.folder / ".ninja_log").write_text(log, encoding="utf-8")
        printed, reason = io.StringIO(), None
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            try:
                build_times.main([str(self.folder), *arguments])
            except SystemExit as error:
                reason = error.code
        return printed.getvalue(), reason

    def facts(self, log):
        return json.loads(self.run_tool(log, "--json")[0])

    def test_one_build(self):
        text, reason = self.run_tool(ONE_BUILD, "--top", "2")
        self.assertIsNone(reason)
        self.assertEqual(text, """\
the slowest 2 of 3 compiled files, in seconds
     20.0  cuda/kernels/copy.cu
      4.0  nn/module.cpp

                       steps  job-seconds  longest
C++                        1          4.0      4.0
CUDA                       1         20.0     20.0
precompiled headers        1          2.5      2.5
links                      2          1.0
other                      1          0.1
total                      6         27.6

wall clock 21.1 s, 1.3 jobs at a time
""")

    def test_json_holds_every_source(self):
        facts = self.facts(ONE_BUILD)
        self.assertEqual([(s["source"], s["kind"], s["seconds"]) for s in facts["sources"]],
                         [("cuda/kernels/copy.cu", "CUDA", 20.0), ("nn/module.cpp", "C++", 4.0),
                          ("precompiled headers of tenon_nn", "precompiled headers", 2.5)])
        self.assertEqual(facts["kinds"]["links"], {"steps": 2, "job_seconds": 1.0})

    def test_the_last_entry_of_an_output_counts(self):
        facts = self.facts(ONE_BUILD + entry(10, 1010, CPP, "b"))
        self.assertEqual(facts["kinds"]["C++"], {"steps": 1, "job_seconds": 1.0})
        self.assertIsNone(facts["wall_clock_seconds"])
        self.assertNotIn("wall clock", self.run_tool()[0])

    def test_a_whole_second_build_replaces_the_first(self):
        facts = self.facts(HEADER + entry(0, 9000, CPP) + entry(0, 3000, CPP))
        self.assertEqual(facts["wall_clock_seconds"], 3.0)

    def test_lines_that_are_cut_off_are_skipped(self):
        facts = self.facts(ONE_BUILD + "21100\t23")
        self.assertEqual(facts["job_seconds"], 27.6)

    def test_a_parallel_build_says_how_many_jobs_ran(self):
        text, _ = self.run_tool(HEADER + entry(0, 10000, CPP, "a") + entry(0, 10000, CU, "b"))
        self.assertIn("wall clock 10.0 s, 2.0 jobs at a time\n", text)

    def test_sources_of_any_target(self):
        for output, source in {
                "tests/CMakeFiles/test_a.dir/nn/a_test.cpp.o": "tests/nn/a_test.cpp",
                "CMakeFiles/tenon.dir/generated/empty.cpp.o": "generated/empty.cpp",
                "a/b/CMakeFiles/x.dir/__/shared/y.cpp.o": "a/shared/y.cpp",
                "tests/CMakeFiles/test_a.dir/Unity/unity_0_cxx.cxx.o":
                    "test_a (unity_0_cxx.cxx)"}.items():
            self.assertEqual(ninja_log.source(output), source)

    def test_errors(self):
        self.assertEqual(self.run_tool()[1], f"build_times: {self.folder} has no .ninja_log: "
                                             "nothing was built there by ninja")
        (self.folder / "Makefile").touch()
        self.assertEqual(self.run_tool()[1], f"build_times: {self.folder} is built by make; only "
                                             "ninja notes what steps take")
        self.assertEqual(self.run_tool("hello\n")[1],
                         f"build_times: {self.folder}/.ninja_log is not a ninja log")
        self.assertEqual(self.run_tool(HEADER)[1],
                         f"build_times: {self.folder}/.ninja_log is empty: no step has ended yet")
        text, code = self.run_tool(ONE_BUILD, "--top", "-1")
        self.assertEqual(code, 2)
        self.assertIn("--top -1: needed 0 or more", text)
        self.folder = self.folder / "absent"
        self.assertEqual(self.run_tool()[1], f"build_times: no such folder: {self.folder}")

    def test_help_says_what_the_figures_are(self):
        text, code = self.run_tool(None, "--help")
        self.assertEqual(code, 0)
        self.assertIn("not processor time", text)


if __name__ == "__main__":
    unittest.main()

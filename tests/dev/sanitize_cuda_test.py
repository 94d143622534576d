#!/usr/bin/env python3
"""tools/sanitize_cuda.py with stand-ins for compute-sanitizer and programs: what is clean."""

import contextlib
import io
import json
import pathlib
import sys
import tempfile
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "tools"))
import sanitize_cuda  # noqa: E402

# Reports as many faults as the environment says for what it runs, then runs it.
SANITIZER = """#!/usr/bin/env python3
import json, os, pathlib, subprocess, sys
settings = json.loads((pathlib.Path(__file__).parent / "settings.json").read_text())
tool = sys.argv[sys.argv.index("--tool") + 1]
first = next(i for i, word in enumerate(sys.argv) if i > 0 and "/bin/" in word)
command = sys.argv[first:]
subject = command[2] if command[1] == "--fault" else pathlib.Path(command[0]).name
status = subprocess.run(command).returncode
count = settings["reports"].get(f"{tool} {subject}", 0)
kind = "RACECHECK" if tool == "racecheck" else "ERROR"
if not settings.get("silent"):
    things = "hazards displayed" if tool == "racecheck" else "errors"
    print(f"========= {kind} SUMMARY: {count} {things}")
sys.exit(status or (86 if count else 0))
"""
PROGRAM = """#!/usr/bin/env python3
import json, pathlib, sys
settings = json.loads((pathlib.Path(__file__).parents[1] / "settings.json").read_text())
name = pathlib.Path(__file__).name
wanted = sys.argv[-1].split("=", 1)[-1]
if "--gtest_list_tests" in sys.argv:
    print("Running main()")
    print("" if wanted == settings.get("absent") else f"Suite.\\n  {wanted}")
elif name != "planted_cuda_faults":
    print(f"[  PASSED  ] {0 if name == settings.get('skipping') else 1} test.")
    sys.exit(1 if name == settings.get("failing") else 0)
"""
FOUND = {f"{tool} {fault}": 1 for tool, fault in sanitize_cuda.FAULTS.items()}


class SanitizeCudaTest(unittest.TestCase):
    def setUp(self):
        temporary = tempfile.TemporaryDirectory()
        self.addCleanup(temporary.cleanup)
        self.folder = pathlib.Path(temporary.name)
        (self.folder / "bin").mkdir()
        names = {"planted_cuda_faults", *(group.program for group in sanitize_cuda.GROUPS)}
        for path, text in [(self.folder / "sanitizer", SANITIZER),
                           *((self.folder / "bin" / name, PROGRAM) for name in names)]:
            path.write_text(text)
            path.chmod(0o755)

    def test_racecheck_sees_wgmma_kernels_in_a_build_for_it_only(self):
        for arguments, excluded in (([], "kns=wgmma"), (["--check-races"], "kns=gemm_wgmma")):
            runs = sanitize_cuda.Runs(sanitize_cuda.parse(arguments), "compute-sanitizer")
            self.assertEqual(runs.tool_options("racecheck")[-2:],
                             ["--kernel-name-exclude", excluded])
            self.assertNotIn(excluded, runs.tool_options("synccheck"))

    def run_script(self, *arguments, **settings):
        (self.folder / "settings.json").write_text(json.dumps({"reports": FOUND, **settings}))
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = sanitize_cuda.main([str(self.folder), "--sanitizer",
                                         str(self.folder / "sanitizer"), *arguments])
        return status, out.getvalue(), err.getvalue()

    def results(self, **settings):
        status, out, _ = self.run_script("--json", "--tool", "memcheck", "--group", "rows",
                                         **settings)
        return status, [run["result"] for run in json.loads(out)["runs"]]

    def test_finds_every_planted_fault_before_anything_else(self):
        status, out, _ = self.run_script()
        self.assertEqual(status, 0)
        lines = out.splitlines()
        self.assertEqual(sum("found" in line for line in lines), 4)
        self.assertEqual(sum("planted: none" in line and "clean" in line for line in lines), 4)
        expected = 2 * len(sanitize_cuda.FAULTS) + sum(len(g.tools) for g in sanitize_cuda.GROUPS)
        self.assertIn(f"{expected} runs as they should be, 0 not", lines[-1])
        self.assertIn("RACECHECK SUMMARY: 1 hazards displayed", out)

    def test_a_tool_that_misses_its_fault_checks_nothing(self):
        self.assertEqual(self.results(reports={}), (1, ["MISSED", "clean"]))

    def test_a_tool_that_cries_wolf_checks_nothing(self):
        reports = {**FOUND, "memcheck none": 2}
        self.assertEqual(self.results(reports=reports), (1, ["found", "FALSE ALARM"]))

    def test_a_tool_without_a_summary_did_not_run(self):
        self.assertEqual(self.results(silent=True), (1, ["DID NOT RUN", "DID NOT RUN"]))

    def test_runs_of_kernels_fail_for_a_report_a_test_or_none(self):
        reports = {**FOUND, "memcheck test_cuda_norm": 1}
        self.assertEqual(self.results(reports=reports), (1, ["found", "clean", "FOUND"]))
        self.assertEqual(self.results(failing="test_cuda_norm"),
                         (1, ["found", "clean", "TEST FAILED"]))
        self.assertEqual(self.results(skipping="test_cuda_norm"),
                         (1, ["found", "clean", "NO TEST RAN"]))

    def test_a_filter_that_matches_no_test_is_an_error(self):
        absent = sanitize_cuda.GROUPS[0].tests[0]
        with self.assertRaises(SystemExit) as caught:
            self.run_script(absent=absent)
        self.assertIn(f"has no test {absent}", str(caught.exception))

    def test_says_what_is_missing(self):
        (self.folder / "bin" / "test_cuda_norm").unlink()
        status, _, err = self.run_script()
        self.assertEqual(status, 2)
        self.assertIn("has no bin/test_cuda_norm: build it with CUDA first", err)
        status, _, err = self.run_script("--group", "no such")
        self.assertEqual((status, "no kernels of that name" in err), (2, True))


if __name__ == "__main__":
    unittest.main()

#!/usr/bin/env python3
"""tools/build_progress.py with canned ninja output and logs: what it prints and returns."""

import os
import pathlib
import pty
import signal
import subprocess
import sys
import tempfile
import time
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))
import build_progress  # noqa: E402

HEADER = "# ninja log v5\n"
CPP = "nn/CMakeFiles/tenon_nn.dir/module.cpp.o"
CU = "cuda/CMakeFiles/tenon_cuda.dir/kernels/copy.cu.o"
LIBRARY = "lib/libtenon.so.0.1"
STEPS = (f"Building CXX object {CPP}", f"Building CUDA object {CU}",
         f"Linking CXX shared library {LIBRARY}")

# Prints what ninja would: with `-n` the plan, else the steps, among them what $SAYS holds.
NINJA = """
status() { printf '%s' "$NINJA_STATUS" | sed "s/%f/$1/; s/%t/$2/"; }
case "$*" in
  *' -n') [ -z "$NO_PLAN" ] || exit 1 ;;
  *) running=1; printf '%s' "$SAYS" ;;
esac
number=0
for step in "$@"; do
  case $step in -*) continue ;; esac
  number=$((number + 1))
  echo "$(status $number 3)$step"
  [ -z "$running" ] || sleep "${STEP_SECONDS:-0}"
done
[ -z "$running" ] || exit "${STATUS:-0}"
"""


def log(*entries):
    return HEADER + "".join(f"{start}\t{end}\t17\t{output}\t{output}\n"
                            for start, end, output in entries)


class ProgressCase(unittest.TestCase):
    def setUp(self):
        temporary = tempfile.TemporaryDirectory()
        self.addCleanup(temporary.cleanup)
        self.folder = pathlib.Path(temporary.name).resolve() / "build" / "cpu"
        self.folder.mkdir(parents=True)

    def write_log(self, *entries, folder=None):
        (folder or self.folder).mkdir(exist_ok=True)
        ((folder or self.folder) / ".ninja_log").write_text(log(*entries), encoding="utf-8")

    def command(self, *steps, jobs="2"):
        ninja = self.folder / "fake_ninja"
        ninja.write_text(NINJA, encoding="utf-8")
        return [sys.executable, "-B", str(ROOT / "tools" / "build_progress.py"), str(self.folder),
                jobs, "sh", str(ninja), *(steps or STEPS)]

    def build(self, *steps, **environment):
        """What the build prints into a pipe, and its exit status."""
        result = subprocess.run(self.command(*steps), env={**os.environ, **environment}, text=True,
                                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=60,
                                check=False)
        return result.stdout, result.returncode


class PipeTest(ProgressCase):
    def test_the_first_build_on_a_machine(self):
        text, status = self.build()
        self.assertEqual(status, 0)
        self.assertRegex(text, r"""(?x)\A
            3\ steps,\ 1\ of\ them\ CUDA,\ by\ 2\ jobs:\ about\ 30\ s,
            \ a\ guess\ that\ the\ first\ of\ them\ will\ correct\n
            (\[[12]/3\]\ \d:\d\d,\ about\ \d+\ s\ left:\ \S+\n)*
            (\[3/3\]\ \d:\d\d:\ \S+\n)?
            built\ 3\ of\ 3\ steps\ in\ \d:\d\d\n\Z""")

    def test_a_machine_that_has_built_before_does_not_guess(self):
        self.write_log((0, 4000, CPP), (0, 100000, CU))
        text, _ = self.build()
        self.assertTrue(text.startswith("3 steps, 1 of them CUDA, by 2 jobs: about 2 min\n"), text)

    def test_a_cpu_build_says_nothing_of_cuda(self):
        self.assertTrue(self.build(STEPS[0])[0].startswith("1 step by 2 jobs: about "))

    def test_nothing_to_do(self):
        text, status = self.build("-x", SAYS="ninja: no work to do.\n")
        self.assertEqual((text, status), ("ninja: no work to do.\n", 0))

    def test_warnings_come_through_whole(self):
        warning = "a.cpp:3:5: warning: \x1b[1munused\x1b[m 'x'\n    3 | int x;\n" + 300 * "w" + "\n"
        text, _ = self.build(SAYS=warning)
        self.assertIn(warning, text)

    def test_a_failed_build_keeps_its_status_and_errors(self):
        for status in (1, 2, 77):
            text, code = self.build(SAYS="FAILED: a.o\nerror: no", STATUS=str(status))
            self.assertEqual(code, status)
            self.assertIn("FAILED: a.o\nerror: no", text)
            self.assertRegex(text, r"FAILED after 3 of 3 steps in \d:\d\d\n\Z")

    def test_a_step_killed_by_a_signal(self):
        command = [*self.command()[:5], "sh", "-c", "kill -9 $$"]
        self.assertEqual(subprocess.run(command, check=False, timeout=60).returncode, 137)

    def test_without_a_plan_steps_are_still_counted(self):
        text, status = self.build(NO_PLAN="1")
        self.assertEqual(status, 0)
        self.assertRegex(text, r"\A(\[\d/3\] \d:\d\d: \S+\n)+built 3 of 3 steps in \d:\d\d\n\Z")

    def test_a_broken_log_does_not_stop_the_build(self):
        for content in (b"", b"\xff\x00\n\xfe", b"# ninja log v9\n1\t2\n\t\t\t\t\n9\t1\tx\ty\tz\n"):
            (self.folder / ".ninja_log").write_bytes(content)
            text, status = self.build()
            self.assertEqual(status, 0)
            self.assertIn("built 3 of 3 steps", text)

    def test_lines_are_few(self):
        steps = [f"Building CXX object CMakeFiles/t.dir/{i}.cpp.o" for i in range(3)]
        text, _ = self.build(*steps)
        self.assertLessEqual(text.count("left: "), 3)

    def test_verbose_is_ninjas_own_output(self):
        text, _ = self.build(*STEPS, "-v", NINJA_STATUS="<%f> ")
        self.assertEqual(text, "".join(f"<{i}> {step}\n" for i, step in enumerate(STEPS, 1)))


class TerminalTest(ProgressCase):
    def on_terminal(self, columns, after=None, **environment):
        """The build's output on a terminal of this width; `after`(process) runs after a step."""
        ours, theirs = pty.openpty()
        process = subprocess.Popen(
            self.command(), stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
            env={**os.environ, "COLUMNS": str(columns), **environment})
        os.close(theirs)
        data = b""
        while True:
            try:
                part = os.read(ours, 4096)
            except OSError:  # how Linux ends a terminal that nobody writes to any more
                break
            if not part:
                break
            data += part
            if after and b"[1/3]" in data:
                after(process)
                after = None
        os.close(ours)
        return data.decode(), process.wait()

    def test_one_line_that_fits(self):
        text, status = self.on_terminal(40, SAYS="warning: " + 60 * "w" + "\n", STEP_SECONDS="0.2")
        self.assertEqual(status, 0)
        self.assertIn("warning: " + 60 * "w" + "\r\n", text)
        updates = [part.split("\x1b[K")[0] for part in text.split("\r") if part.startswith("[")]
        self.assertGreaterEqual(len(updates), 2, text)
        for update in updates:
            self.assertLess(len(update), 40)
            self.assertNotIn("\n", update)
        self.assertRegex(text, r"\r\x1b\[Kbuilt 3 of 3 steps in \d:\d\d\r\n\Z")

    @staticmethod
    def runs_sleep(entry, session):
        try:
            return ((entry / "comm").read_text() == "sleep\n"
                    and os.getsid(int(entry.name)) == session)
        except OSError:  # it ended
            return False

    def test_interrupting_stops_the_build(self):
        def interrupt(process):
            # A shell loses an interrupt that comes between its fork and the step's start.
            while not any(self.runs_sleep(entry, process.pid)
                          for entry in pathlib.Path("/proc").glob("[0-9]*")):
                time.sleep(0.01)
            os.killpg(process.pid, signal.SIGINT)  # as the terminal does for Ctrl-C

        start = time.monotonic()
        text, status = self.on_terminal(80, interrupt, STEP_SECONDS="30")
        self.assertEqual(status, 130, text)
        self.assertLess(time.monotonic() - start, 20)
        self.assertNotIn("Traceback", text)


class EstimateTest(ProgressCase):
    def estimate(self, *outputs, jobs=2):
        return build_progress.Estimate(self.folder, jobs, outputs)

    def test_a_cuda_source_counts_ten_times(self):
        seconds = build_progress.SECONDS
        self.assertEqual(seconds["CUDA"], 10 * seconds["C++"])
        self.assertEqual(self.estimate(CPP).left[CPP] * 10, self.estimate(CU).left[CU])

    def test_what_a_step_took_last_time_counts(self):
        self.write_log((0, 9000, CPP))
        self.assertEqual(self.estimate(CPP).left, {CPP: 9.0})

    def test_work_is_shared_by_jobs(self):
        outputs = [f"a/CMakeFiles/a.dir/{i}.cpp.o" for i in range(100)]
        self.assertAlmostEqual(self.estimate(*outputs, jobs=4).seconds_left(0), 75)

    def test_the_longest_step_bounds_the_rest(self):
        self.assertAlmostEqual(self.estimate(CU, CPP, jobs=64).seconds_left(0), 30)

    def test_another_build_folder_tells_how_fast_the_machine_is(self):
        outputs = [f"a/CMakeFiles/a.dir/{i}.cpp.o" for i in range(200)]
        self.write_log(*((0, 9000, output) for output in outputs),
                       folder=self.folder.parent / "other")
        estimate = self.estimate(CU)
        self.assertFalse(estimate.is_guess)
        self.assertAlmostEqual(estimate.left[CU], 90, delta=4)

    def test_the_first_steps_correct_the_estimate(self):
        outputs = [f"a/CMakeFiles/a.dir/{i}.cpp.o" for i in range(100)]
        estimate = self.estimate(*outputs, jobs=1)
        first = estimate.seconds_left(0)
        self.write_log(*((0, 12000, output) for output in outputs[:50]))  # four times slower
        for output in outputs[:50]:
            estimate.finish(output)
        self.assertGreater(estimate.seconds_left(600), 1.5 * first)

    def test_time_spent_on_a_running_step_is_not_expected_again(self):
        estimate = self.estimate(CU, jobs=1)
        estimate.watch({CU}, 0)
        self.assertAlmostEqual(estimate.seconds_left(10), 20)
        self.assertAlmostEqual(estimate.seconds_left(500), 3)
        estimate.finish(CU)
        self.assertEqual(estimate.seconds_left(500), 0)

    def test_running_steps_are_seen(self):
        with subprocess.Popen([sys.executable, "-c", "input()", "-o", CPP], cwd=self.folder,
                              stdin=subprocess.PIPE) as compiler:
            try:
                deadline = time.monotonic() + 20
                found = set()
                while not found and time.monotonic() < deadline:
                    found = build_progress.running_outputs(str(self.folder), {CPP, CU})
                self.assertEqual(found, {CPP})
                self.assertEqual(build_progress.running_outputs("/elsewhere", {CPP}), set())
            finally:
                compiler.communicate(b"\n")

    def test_words(self):
        self.assertEqual([build_progress.about(s) for s in (0, 12, 54, 55, 89, 91, 700)],
                         ["about 5 s", "about 10 s", "about 55 s", "about 1 min", "about 1 min",
                          "about 2 min", "about 12 min"])
        self.assertEqual([build_progress.clock(s) for s in (0, 65.7, 3700)],
                         ["0:00", "1:05", "1:01:40"])


if __name__ == "__main__":
    unittest.main()

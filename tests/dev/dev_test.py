#!/usr/bin/env python3
"""What ./dev chooses, runs and says, with stand-ins for cmake, ctest, nvcc and nvidia-smi."""

import re
import unittest

from checkout import Checkout

NO_GPU = "an NVIDIA GPU with its driver (nvidia-smi -L lists none)"
NO_NVCC = "the CUDA toolkit (no nvcc in CUDA_HOME, PATH or /usr/local/cuda)"


class DevCase(unittest.TestCase):
    def setUp(self):
        self.checkout = Checkout()
        self.addCleanup(self.checkout.remove)

    def give_gpu(self):
        self.checkout.program("nvidia-smi", "echo 'GPU 0: NVIDIA H200 (UUID: GPU-0)'")

    def give_nvcc(self):
        self.checkout.program("nvcc", "exit 0")


class DemoTest(DevCase):
    def check_demo(self, preset, lacks=None, **environment):
        """Demands the preset, the demo's run, and the line that says what CUDA lacks."""
        result = self.checkout.dev("demo", "--json", **environment)
        self.assertEqual(result.returncode, 0, result.stdout)
        self.assertEqual(self.checkout.called("cmake --preset"), [f"cmake --preset {preset}"])
        self.assertIn(f"the demo of {preset}, arguments: --json\n", result.stdout)
        if lacks:
            self.assertIn(f"== building for the CPU: CUDA needs {lacks}; "
                          "TENON_PRESET=release ./dev demo asks for it all the same\n",
                          result.stdout)
        else:
            self.assertNotIn("building for the CPU", result.stdout)

    def test_neither_nvcc_nor_gpu(self):
        self.check_demo("cpu", f"{NO_GPU} and {NO_NVCC}")

    def test_gpu_without_nvcc(self):
        self.give_gpu()
        self.check_demo("cpu", NO_NVCC)

    def test_nvcc_without_gpu(self):
        self.give_nvcc()
        self.check_demo("cpu", NO_GPU)

    def test_driver_that_finds_no_gpu(self):
        self.give_nvcc()
        self.checkout.program("nvidia-smi", "echo 'No devices found.'; exit 6")
        self.check_demo("cpu", NO_GPU)

    def test_device_query_that_fails(self):
        self.give_nvcc()
        self.checkout.program("__nvcc_device_query", "exit 1")
        self.check_demo("cpu", NO_GPU)

    def test_both(self):
        self.give_nvcc()
        self.give_gpu()
        self.check_demo("release")

    def test_device_query_beside_nvcc(self):
        self.checkout.program("nvcc", "exit 0", self.checkout.cuda / "bin")
        self.checkout.program("__nvcc_device_query", "printf 90", self.checkout.cuda / "bin")
        self.check_demo("release")

    def test_every_place_of_nvcc(self):
        self.give_gpu()
        cuda = self.checkout.root / "toolkit"
        nvcc = self.checkout.program("nvcc", "exit 0", cuda / "bin")
        for variables in ({"CUDACXX": str(nvcc)}, {"CUDA_HOME": str(cuda)},
                          {"CUDA_PATH": str(cuda)}):
            with self.subTest(variables):
                self.checkout.calls.unlink(missing_ok=True)
                self.check_demo("release", **variables)

    def test_the_compiler_that_is_named_counts_alone(self):
        self.give_gpu()
        self.give_nvcc()
        self.check_demo("cpu", NO_NVCC, CUDACXX="/nowhere/nvcc")

    def test_the_users_preset_wins(self):
        self.check_demo("release", TENON_PRESET="release")

    def test_the_users_preset_wins_with_a_gpu(self):
        self.give_nvcc()
        self.give_gpu()
        self.check_demo("cpu", TENON_PRESET="cpu")


class TestTest(DevCase):
    """`./dev test`, with and without --quick."""

    SUMMARY = ("\n== result of ./dev test, preset release\n"
               "cases:    1 passed, 0 failed, 1 skipped\n"
               "programs: 2 passed, 0 failed\n")

    def test_everything_runs(self):
        result = self.checkout.dev("test", CMAKE_BUILD_PARALLEL_LEVEL="3")
        self.assertEqual(result.returncode, 0, result.stdout)
        self.assertEqual(self.checkout.called("ctest"),
                         ["ctest --preset release --output-on-failure -j 3"])
        self.assertTrue(result.stdout.endswith(self.SUMMARY), result.stdout)

    def test_quick_leaves_out_slow_tests_and_says_how_many(self):
        for arguments in (["--quick", "-R", "nn"], ["-R", "nn", "--quick"]):
            with self.subTest(arguments):
                self.checkout.calls.unlink(missing_ok=True)
                result = self.checkout.dev("test", *arguments, CMAKE_BUILD_PARALLEL_LEVEL="3")
                self.assertEqual(result.returncode, 0, result.stdout)
                self.assertNotEqual(self.checkout.called("cmake --build"), [])
                self.assertEqual(self.checkout.called("ctest"), [
                    "ctest --preset release --output-on-failure -j 3 -LE ^slow$ -R nn",
                    "ctest --preset release -N -L ^slow$ -R nn"])
                left_out = "left out: 3 slow programs; ./dev test runs them\n"
                self.assertTrue(result.stdout.endswith(self.SUMMARY + left_out), result.stdout)

    def test_a_failed_test_is_counted_and_sets_the_status(self):
        self.checkout.program("ctest", """
echo '<testsuites tests="1" failures="1"><testcase name="a" />' > "${GTEST_OUTPUT#xml:}a.xml"
echo '50% tests passed, 1 tests failed out of 2'
exit 8""")
        result = self.checkout.dev("test", "--quick")
        self.assertEqual(result.returncode, 8, result.stdout)
        self.assertIn("programs: 1 passed, 1 failed\n", result.stdout)


class CommandTest(DevCase):
    def test_build_and_test_use_release(self):
        for command in ("build", "test"):
            with self.subTest(command):
                self.checkout.calls.unlink(missing_ok=True)
                result = self.checkout.dev(command)
                self.assertEqual(result.returncode, 0, result.stdout)
                self.assertEqual(self.checkout.called("cmake --preset"), ["cmake --preset release"])
                self.assertNotIn("building for the CPU", result.stdout)

    def test_the_build_shows_progress(self):
        result = self.checkout.dev("build", "--target", "a", CMAKE_BUILD_PARALLEL_LEVEL="3")
        build = "cmake --build --preset release -j 3 --target a"
        self.assertEqual(self.checkout.called("cmake --build"), [f"{build} -- -n", build])
        self.assertRegex(result.stdout, r"(?m)^1 step by 3 jobs: about \d+ s, a guess")
        self.assertRegex(result.stdout, r"(?m)^built 1 of 1 step in \d:\d\d$")

    def test_a_failed_build_ends_the_command_with_its_status(self):
        for command in ("demo", "test"):
            with self.subTest(command):
                result = self.checkout.dev(command, BUILD_STATUS="3")
                self.assertEqual(result.returncode, 3, result.stdout)
                self.assertNotIn("the demo of", result.stdout)
                self.assertEqual(self.checkout.called("ctest"), [])

    def test_missing_packages_are_named(self):
        self.checkout.program("dpkg-query", "exit 1")
        result = self.checkout.dev("build")
        self.assertEqual(result.returncode, 1, result.stdout)
        self.assertIn("no apt-get here; install the equivalents of: libeigen3-dev ", result.stdout)

    def test_unknown_command(self):
        result = self.checkout.dev("biuld")
        self.assertEqual(result.returncode, 1)
        self.assertTrue(result.stdout.startswith("usage: ./dev COMMAND"), result.stdout)
        self.assertTrue(result.stdout.endswith("dev: unknown command 'biuld'\n"), result.stdout)
        self.assertEqual(self.checkout.called(), [])

    def test_help(self):
        for arguments in (["--help"], ["-h"], ["help"], []):
            with self.subTest(arguments):
                result = self.checkout.dev(*arguments)
                self.assertEqual(result.returncode, 0)
                text = (self.checkout.root / "dev").read_text(encoding="utf-8")
                commands = re.findall(r"^    ([a-z]+)(?: \|[^)]*)?\)", text, re.MULTILINE)
                self.assertIn("demo", commands)
                for command in commands:
                    self.assertRegex(result.stdout, rf"(?m)^  {command} ")
        self.assertEqual(self.checkout.called(), [])


if __name__ == "__main__":
    unittest.main()

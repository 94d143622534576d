#!/usr/bin/env python3
"""README.md shows what the commands print now.

usage: readme_test.py BIN_FOLDER

The rules of what must be equal stand in shown_output.py. Programs run on the CPU; ./dev runs with
stand-ins for cmake and ctest, but its demo is the real program.
"""

import functools
import os
import pathlib
import shlex
import subprocess
import sys
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path[1:1] = [str(ROOT / "tests" / "dev")]
from checkout import Checkout  # noqa: E402
from shown_output import blocks, difference  # noqa: E402

BIN = pathlib.Path(sys.argv.pop(1)).resolve()
README = (ROOT / "README.md").read_text(encoding="utf-8")


@functools.lru_cache(maxsize=None)
def output(command):
    """The lines that the command of a marker prints."""
    program, *arguments = shlex.split(command)
    environment = {name: os.environ[name]
                   for name in ("LD_LIBRARY_PATH", "ASAN_OPTIONS", "UBSAN_OPTIONS")
                   if name in os.environ}
    environment |= {"CUDA_VISIBLE_DEVICES": "", "LC_ALL": "C.UTF-8"}
    if program == "./dev":
        checkout = Checkout()
        try:
            demo = f'exec "{BIN}/attention_single_gpu" "$@"'
            result = checkout.dev(*arguments, DEMO=demo, **environment)
        finally:
            checkout.remove()
    else:
        folder, name = program.split("/")
        if folder != "bin":
            raise ValueError(f"a marker's command starts with bin/ or is ./dev, not {program}")
        with tempfile.TemporaryDirectory() as scratch:
            result = subprocess.run([BIN / name, *arguments], cwd=scratch, text=True, check=False,
                                    stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=500,
                                    env={**os.environ, **environment})
    if result.returncode != 0:
        raise RuntimeError(f"{command} ended with {result.returncode}:\n{result.stdout}")
    return result.stdout.splitlines()


def differences(readme, run=output):
    """One sentence for each block that does not show what its command prints."""
    found = []
    for block in blocks(readme):
        if block.command is None:
            if block.typed is not None and block.lines:
                found.append(f"line {block.line}: the output of `{block.typed}` has no marker")
            continue
        if block.typed is not None and block.typed != block.command:
            found.append(f"line {block.line - 1}: shows `{block.typed}`, its marker says "
                         f"`{block.command}`")
        wrong = difference(block.lines, run(block.command), block.is_part)
        if wrong is not None:
            index, why = wrong
            found.append(f"line {block.line + index}: {block.lines[index]}\n    {why}")
    return found


class ReadmeTest(unittest.TestCase):
    def test_blocks_show_what_is_printed(self):
        self.assertEqual("\n".join(differences(README)), "")

    def test_every_command_that_matters_is_shown(self):
        commands = {block.command for block in blocks(README)}
        for command in ("./dev demo", "./dev test", "./dev test --quick"):
            self.assertIn(command, commands)


PRINTED = """\
== build
Attention(
  (proj): Linear(in=128)
)
largest difference 1.43e-06, 4 kernels, 1.6948 ms, 118.8 GFLOP/s

   primitive    kernels     ms   max error
0. traced            10  27.14           0
1. replace            8   2.66    1.43e-06

verified
"""
MARKED = "<!-- output of: bin/program -->\n```console\n$ bin/program\n{}```\n"


class CannedReadmeTest(unittest.TestCase):
    """What is equal and what is not, by a README and an output that are made up."""

    def found(self, shown, readme=MARKED, printed=PRINTED):
        return differences(readme.format(shown), lambda command: printed.splitlines())

    def check_equal(self, shown, readme=MARKED):
        self.assertEqual(self.found(shown, readme), [])

    def check_wrong(self, shown, *texts, readme=MARKED):
        """Demands that each text stands in the one difference that is found."""
        found = self.found(shown, readme)
        self.assertEqual(len(found), 1, found)
        for text in texts:
            self.assertIn(text, found[0])

    def test_the_same_output(self):
        self.check_equal(PRINTED)

    def test_a_wrong_line_is_found_with_its_number(self):
        self.check_wrong(PRINTED.replace("4 kernels", "5 kernels"),
                         "line 8: largest difference 1.43e-06, 5 kernels",
                         "printed is: largest difference 1.43e-06, 4 kernels")

    def test_a_wrong_line_after_left_out_lines(self):
        self.check_wrong("== build\n…\n5 kernels\n…\n", "line 6: 5 kernels", "no such line")
        self.check_wrong("…\nverifed\n", "line 5: verifed", "printed is: verified")

    def test_a_line_that_is_missing_or_too_much(self):
        self.check_wrong(PRINTED.replace("Attention(\n", ""), "printed is: Attention(")
        self.check_wrong(PRINTED + "more\n", "line 15: more", "nothing more is printed")
        self.check_wrong("== build\nAttention(\n", "behind it is printed:   (proj)")

    def test_indentation_counts(self):
        self.check_wrong(PRINTED.replace("  (proj)", " (proj)"), "line 6:  (proj)")

    def test_the_order_of_lines_counts(self):
        self.check_wrong("…\nverified\n…\n== build\n…\n", "line 7: == build")

    def test_left_out_lines_and_text(self):
        self.check_equal("== build\n…\n  (proj): Linear(…)\n…\nverified\n")
        self.check_equal("…\n")
        self.check_equal("…\n== build\n…\n")
        self.check_wrong("…\n  (proj): Linear(… out=3)\n…\n", "line 5:   (proj)")

    def test_figures_of_the_machine_are_free_others_not(self):
        self.check_equal(PRINTED.replace("1.6948 ms, 118.8", "12.1 ms, 7"))
        self.check_equal(PRINTED.replace("1.43e-06", "2e-7"))
        self.check_equal(PRINTED.replace(" 27.14 ", "  8.50 ").replace(" 2.66 ", "12.66 "))
        self.check_wrong(PRINTED.replace("          10  27.14", "          11  27.14"), "0. traced")
        self.check_wrong(PRINTED.replace("27.14           0", "27.14    1.43e-06"), "0. traced")
        self.check_wrong(PRINTED.replace("1.6948 ms", "fast ms"), "line 8")

    def test_a_part(self):
        part = MARKED.replace("output of", "part of the output of")
        self.check_equal("Attention(\n  (proj): Linear(in=128)\n", part)
        self.check_wrong("Attention(\n)\n", "line 5: )", "printed is:   (proj)", readme=part)

    def test_blocks_without_a_marker(self):
        self.check_equal("", "```console\n$ ./dev demo\n```\n```cpp\nint x;\n```\n")
        self.check_wrong("", "the output of `./dev demo` has no marker",
                         readme="```console\n$ ./dev demo\nhello\n```\n")

    def test_another_command_than_the_markers(self):
        self.check_wrong(PRINTED, "line 3: shows `bin/program`, its marker says `bin/other`",
                         readme=MARKED.replace("of: bin/program", "of: bin/other"))


if __name__ == "__main__":
    unittest.main()

#!/usr/bin/env python3
"""Kernels in small shapes under each tool of compute-sanitizer, after a proof that the tool works.

    tools/sanitize_cuda.py                        # needs a GPU and build/release
    tools/sanitize_cuda.py --tool racecheck --group attention
    tools/sanitize_cuda.py build/races --check-races    # configured with -DTENON_CHECK_RACES=ON

racecheck takes an arrival at a barrier for the arriving lane's own, where Tenon's wgmma kernels let
one lane arrive for its warp, and would report races that are none. It sees them only with
--check-races, in a build where each lane arrives.

First each tool must find the fault that is planted for it in bin/planted_cuda_faults, and nothing
where none is planted: one that is silent, or that cannot run on this machine, proves nothing. Then
it runs over tests of bin/test_cuda_*. One line a run, with the tool's own summary; a run fails when
the tool reports anything, when a test fails, and when no test ran. Exit status: 0 all is clean, 1
something is not, 2 there is nothing to run or no tool to run it with.
"""

import argparse
import concurrent.futures
import dataclasses
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time

# What each tool must find.
FAULTS = {"memcheck": "out_of_bounds", "racecheck": "shared_race",
          "synccheck": "foreign_barrier", "initcheck": "uninitialized_read"}
# Only Tenon's kernels are watched where all that counts lies within one kernel: cuBLAS's take long.
# initcheck must see who wrote what another kernel reads.
OPTIONS = {"memcheck": ["--report-api-errors", "no"],
           "racecheck": ["--kernel-name", "kns=tenon", "--kernel-name-exclude"],
           "synccheck": ["--kernel-name", "kns=tenon"],
           "initcheck": []}
ALL = tuple(FAULTS)


@dataclasses.dataclass(frozen=True)
class Group:
    """Tests of one program, by the tools that they are for."""
    name: str
    program: str
    tests: tuple
    tools: tuple = ALL


GROUPS = [
    Group("attention gradient", "test_cuda_attention_gradient",
          tuple(f"DTypes/CudaGradient.OfSmallAttentionInEveryKernel/{dtype}"
                for dtype in ("bfloat16", "float32"))),
    # Decisions of dropout are read 16 bytes at a time, of which those on keys that do not exist, or
    # that causality hides, are never drawn nor used: initcheck would report them.
    Group("attention gradient, dropout", "test_cuda_attention_gradient",
          tuple(f"DTypes/CudaGradient.OfSmallDroppedAttentionInEveryKernel/{dtype}"
                for dtype in ("bfloat16", "float32")),
          ("memcheck", "racecheck", "synccheck")),
    Group("masked attention", "test_cuda_attention_gradient",
          tuple(f"DTypes/CudaGradient.OfSmallMaskedAttentionInEveryKernel/{dtype}"
                for dtype in ("bfloat16", "float32"))),
    Group("masked attention, dropout", "test_cuda_attention_gradient",
          tuple(f"DTypes/CudaGradient.OfSmallMaskedDroppedAttentionInEveryKernel/{dtype}"
                for dtype in ("bfloat16", "float32")),
          ("memcheck", "racecheck", "synccheck")),
    Group("attention gradient, wide heads", "test_cuda_attention_groups",
          ("AttentionGroups.SmallWideHeadsByWgmma",), ("memcheck", "racecheck", "synccheck")),
    Group("attention by wgmma", "test_cuda_attention_wgmma",
          ("AttentionWgmma.SmallCasesOfEveryMask",)),
    # Results are stored by the copy engine: initcheck (2025.3) misses those stores, and racecheck
    # ends with an internal error of its own.
    Group("matrix products", "test_cuda_gemm",
          ("CudaGemmWgmma.SmallSizes", "CudaGemmWgmma.SeveralTilesOfEveryBlock"),
          ("memcheck", "synccheck")),
    Group("small matrix products", "test_cuda_gemm",
          ("CudaGemmSkinny.SmallSizes", "CudaGemmSplit.SmallSizes")),
    Group("rows", "test_cuda_norm",
          ("CudaNorm.SmallRowsOfEveryOp", "CudaNorm.SeveralRowsOfEveryBlock")),
    Group("batch norm", "test_cuda_norm", ("CudaBatchNorm.SmallShapesOfEveryOp",)),
    Group("pooling", "test_cuda_ops", ("CudaPool.EachCaseOnce",)),
    Group("convolutions", "test_cuda_ops", ("CudaConv.SmallOnesWithoutCudnn",)),
    # initcheck does not see what cuDNN's kernels write.
    Group("convolutions and what follows", "test_cuda_ops", ("CudaConv.SmallOnesThatEndInRelu",),
          ("memcheck", "racecheck", "synccheck")),
    Group("images", "test_cuda_ops", ("CudaCopy.SmallImagesToChannelsLastAndBack",)),
    Group("activations", "test_cuda_ops",
          ("CudaSaturation.ActivationsAreStraightLinesFarFromZero",
           "CudaSaturation.BiasGeluHasTheSameSlopes")),
]

SUMMARY = re.compile(r"=+ ((?:ERROR|RACECHECK) SUMMARY: (\d+) .*)")
PASSED = re.compile(r"\[  PASSED  \] (\d+) tests?\.")
LISTED = re.compile(r"^  \S", re.MULTILINE)


def find_sanitizer(given):
    """The program compute-sanitizer, or None."""
    if given:
        return shutil.which(given)
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    folders = [pathlib.Path(home) / part for home in homes if home
               for part in ("bin", "compute-sanitizer")]
    return shutil.which("compute-sanitizer") or shutil.which(
        "compute-sanitizer", path=os.pathsep.join(map(str, folders)))


def judge_planted(tool, fault, output, status):
    """(whether it is as it should be, one word) of a run of planted_cuda_faults."""
    reports = reports_of(output)
    if reports is None or "skipped: " in output:
        return False, "DID NOT RUN"
    if fault == "none":
        return (reports == 0 and status == 0), "clean" if reports == 0 else "FALSE ALARM"
    return reports > 0, "found" if reports > 0 else "MISSED"


def judge_tests(output, status):
    """(whether it is as it should be, one word) of a run of tests."""
    reports = reports_of(output)
    passed = PASSED.search(output)
    if reports is None:
        return False, "DID NOT RUN"
    if reports > 0:
        return False, "FOUND"
    if passed is None or int(passed[1]) == 0:
        return False, "NO TEST RAN"
    return status == 0, "clean" if status == 0 else "TEST FAILED"


def reports_of(output):
    """How many faults the tool reports; None without its summary."""
    summary = SUMMARY.search(output)
    return int(summary[2]) if summary else None


class Runs:
    """Runs programs under the tools and notes each run as a dictionary."""

    def __init__(self, options, sanitizer):
        self.options = options
        self.sanitizer = sanitizer
        self.notes = []

    def run(self, tool, subject, command, judge, extra=()):
        # Exactly as many bytes as asked for: an access beyond them is one outside of an allocation.
        environment = {**os.environ, "TENON_CUDA_NO_CACHE": "1"}
        start = time.monotonic()
        try:
            done = subprocess.run(
                [self.sanitizer, "--tool", tool, "--error-exitcode", "86", *extra, *command],
                env=environment, text=True, errors="replace", timeout=self.options.timeout,
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
            output, status = done.stdout, done.returncode
            good, word = judge(output, status)
        except subprocess.TimeoutExpired as expired:
            output, good = (expired.stdout or b"").decode(errors="replace"), False
            word = f"STOPPED after {self.options.timeout} s"
        summary = SUMMARY.search(output)
        note = {"tool": tool, "subject": subject, "good": good, "result": word,
                "seconds": round(time.monotonic() - start, 1),
                "summary": summary[1] if summary else ""}
        self.notes.append(note)
        out = sys.stderr if self.options.json else sys.stdout
        print(f"{tool:10}{subject:30}{word:14}{note['seconds']:7.1f} s  {note['summary']}",
              file=out, flush=True)
        if not good:
            lines = output.splitlines()
            print("\n".join("    " + line for line in lines[:20] + lines[20:][-20:]),
                  file=sys.stderr, flush=True)
        return good

    def planted(self, tool):
        program = str(self.options.folder / "bin" / "planted_cuda_faults")
        return all([self.run(tool, f"planted: {fault}", [program, "--fault", fault],
                             lambda output, status, fault=fault:
                             judge_planted(tool, fault, output, status))
                    for fault in (FAULTS[tool], "none")])

    def tests(self, tool, group):
        program = str(self.options.folder / "bin" / group.program)
        return self.run(tool, group.name, [program, "--gtest_filter=" + ":".join(group.tests)],
                        judge_tests, self.tool_options(tool))

    def tool_options(self, tool):
        if tool != "racecheck":
            return OPTIONS[tool]
        return [*OPTIONS[tool], "kns=gemm_wgmma" if self.options.check_races else "kns=wgmma"]


def check_filters(folder, groups):
    """Exits unless every test that a group names is there."""
    for group in groups:
        program = folder / "bin" / group.program
        for test in group.tests:
            listed = subprocess.run([program, "--gtest_list_tests", "--gtest_filter=" + test],
                                    text=True, check=True, stdout=subprocess.PIPE).stdout
            if not LISTED.search(listed):
                sys.exit(f"sanitize_cuda: bin/{group.program} has no test {test}")


def parse(arguments):
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", metavar="BUILD_FOLDER", type=pathlib.Path,
                        default=pathlib.Path(__file__).resolve().parents[1] / "build" / "release",
                        help="default: build/release of this checkout")
    parser.add_argument("--tool", action="append", choices=ALL, help="default: all, in this order")
    parser.add_argument("--group", metavar="TEXT", default="",
                        help="only kernels whose group's name contains this: "
                             + "; ".join(group.name for group in GROUPS))
    parser.add_argument("--sanitizer", metavar="PATH", help="where compute-sanitizer is")
    parser.add_argument("--check-races", action="store_true",
                        help="the build has -DTENON_CHECK_RACES=ON")
    parser.add_argument("--jobs", type=int, default=1, metavar="COUNT",
                        help="runs at a time, beside each other on the GPU (default 1)")
    parser.add_argument("--timeout", type=float, default=240, metavar="SECONDS",
                        help="of one run (default 240)")
    parser.add_argument("--json", action="store_true",
                        help="one JSON object on stdout; everything else on stderr")
    return parser.parse_args(arguments)


def main(arguments=None):
    options = parse(arguments)
    groups = [group for group in GROUPS if options.group in group.name]
    programs = {"planted_cuda_faults", *(group.program for group in groups)}
    missing = sorted(name for name in programs if not (options.folder / "bin" / name).exists())
    sanitizer = find_sanitizer(options.sanitizer)
    reason = ("no kernels of that name" if not groups else
              f"{options.folder} has no bin/{missing[0]}: build it with CUDA first" if missing else
              "compute-sanitizer was not found; it is part of the CUDA toolkit" if not sanitizer
              else "")
    if reason:
        print(f"sanitize_cuda: {reason}", file=sys.stderr)
        return 2
    check_filters(options.folder, groups)
    runs = Runs(options, sanitizer)
    proved = [tool for tool in options.tool or ALL if runs.planted(tool)]
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        for tool in proved:
            for group in groups:
                if tool in group.tools:
                    pool.submit(runs.tests, tool, group)
    bad = [note for note in runs.notes if not note["good"]]
    if options.json:
        print(json.dumps({"runs": runs.notes, "bad": len(bad)}))
    else:
        seconds = sum(note["seconds"] for note in runs.notes)
        print(f"{len(runs.notes) - len(bad)} runs as they should be, {len(bad)} not, "
              f"{seconds:.0f} s")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())

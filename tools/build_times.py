#!/usr/bin/env python3
"""Where the time of a build went: the slowest sources, sums by kind, and how long it took in all.

    tools/build_times.py build/cpu --top 10

Reads the .ninja_log of a build folder. All figures are the elapsed seconds of steps (their sum:
job-seconds), not processor time: they grow on a loaded machine and with the number of jobs. Of a
step that was built several times the last time counts. The wall clock is there for a folder that was
built once: ninja puts the log of several builds into another order.
"""

import argparse
import json
import pathlib
import sys

import ninja_log


def load(folder):
    """The steps of the build in this folder; exits with a reason where there are none."""
    if not folder.is_dir():
        sys.exit(f"build_times: no such folder: {folder}")
    path = folder / ".ninja_log"
    if not path.exists():
        if (folder / "Makefile").exists():
            sys.exit(f"build_times: {folder} is built by make; only ninja notes what steps take")
        sys.exit(f"build_times: {folder} has no .ninja_log: nothing was built there by ninja")
    try:
        steps = ninja_log.read(path)
    except (OSError, ValueError) as error:
        sys.exit(f"build_times: {error}")
    if not steps:
        sys.exit(f"build_times: {path} is empty: no step has ended yet")
    return steps


def summarize(steps):
    """The facts of a build as a dictionary, which --json prints."""
    kinds = {kind: {"steps": 0, "job_seconds": 0} for kind in ninja_log.KINDS}
    sources = []
    for step in steps:
        output = step.outputs[0]
        kind = ninja_log.kind(output)
        kinds[kind]["steps"] += 1
        kinds[kind]["job_seconds"] += step.seconds
        if kind in ("C++", "CUDA", "precompiled headers"):
            sources.append({"source": ninja_log.source(output), "output": output, "kind": kind,
                            "seconds": step.seconds})
    for sums in kinds.values():
        sums["job_seconds"] = round(sums["job_seconds"], 3)
    ends = [step.end_ms for step in steps]
    built_once = ends == sorted(ends)  # a step is noted when it ends
    first = min(step.start_ms for step in steps)
    return {"wall_clock_seconds": (ends[-1] - first) / 1000 if built_once else None,
            "job_seconds": round(sum(step.seconds for step in steps), 3),
            "kinds": kinds,
            "sources": sorted(sources, key=lambda entry: (-entry["seconds"], entry["output"]))}


def to_text(facts, top):
    sources, wall = facts["sources"], facts["wall_clock_seconds"]
    lines = [f"the slowest {min(top, len(sources))} of {len(sources)} compiled files, in seconds"]
    lines += [f"{entry['seconds']:9.1f}  {entry['source']}" for entry in sources[:top]]
    lines += ["", f"{'':22}{'steps':>6}{'job-seconds':>13}{'longest':>9}"]
    longest = {}
    for entry in sources:
        longest.setdefault(entry["kind"], f"{entry['seconds']:.1f}")
    for kind, sums in facts["kinds"].items():
        lines.append(f"{kind:22}{sums['steps']:6}{sums['job_seconds']:13.1f}"
                     f"{longest.get(kind, ''):>9}".rstrip())
    steps = sum(sums["steps"] for sums in facts["kinds"].values())
    lines.append(f"{'total':22}{steps:6}{facts['job_seconds']:13.1f}")
    if wall:
        jobs = facts["job_seconds"] / wall
        lines += ["", f"wall clock {wall:.1f} s, {jobs:.1f} jobs at a time"]
    return "\n".join(lines)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", metavar="BUILD_FOLDER", type=pathlib.Path,
                        default=pathlib.Path(__file__).resolve().parents[1] / "build" / "release",
                        help="default: build/release of this checkout")
    parser.add_argument("--top", type=int, default=20, metavar="N",
                        help="how many of the slowest sources to list (default 20)")
    parser.add_argument("--json", action="store_true", help="one JSON object, with every source")
    options = parser.parse_args(arguments)
    if options.top < 0:
        parser.error(f"--top {options.top}: needed 0 or more")
    facts = summarize(load(options.folder))
    print(json.dumps(facts, indent=2) if options.json else to_text(facts, options.top))


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Runs a build by ninja and shows what it builds, how far it is and about how long it will take.

    tools/build_progress.py BUILD_FOLDER JOBS COMMAND...     ends with the command's exit status

On a terminal one line is updated; elsewhere a line comes every 10 % or 30 s. Whatever else the
build prints, as warnings and errors, comes through whole. The estimate: the steps that `COMMAND -n`
lists, each weighted by what it took last time (.ninja_log), else by its kind and by how fast this
machine built other steps, over the number of jobs. Nothing of it is needed for the build to run.
"""

import os
import pathlib
import re
import select
import shutil
import signal
import subprocess
import sys
import time

import ninja_log

# Seconds of a step that was never built here, as measured on two shared cores of a server.
SECONDS = {"C++": 3, "CUDA": 30, "precompiled headers": 5, "links": 0.4, "other": 0.1}
# So many seconds of steps must be done before the machine's speed is believed by half.
DOUBT = 20
STATUS = "@%f/%t@ "
STATUS_LINE = re.compile(r"@(\d+)/(\d+)@ (.*)")
NAMES_OUTPUT = re.compile(r"(?:Building|Linking) .* (\S+)$")


def output_of(description):
    """The output that ninja's line about a step names; steps of other kinds stay as they are."""
    match = NAMES_OUTPUT.match(description)
    return match[1] if match else description


def shown(output):
    """How a step is shown: by its source, or the program that is linked."""
    return "copying files" if " -E copy" in output else ninja_log.source(output)


def planned(command):
    """The outputs of the steps that the build will run."""
    dry = [*command, *([] if "--" in command else ["--"]), "-n"]
    lines = subprocess.run(dry, env={**os.environ, "NINJA_STATUS": STATUS}, text=True, check=True,
                           stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                           stderr=subprocess.DEVNULL).stdout.splitlines()
    return [output_of(match[3]) for match in map(STATUS_LINE.match, lines) if match]


def durations(folder):
    """Seconds by output, of every step in the folder's log."""
    try:
        steps = ninja_log.read(folder / ".ninja_log")
    except (OSError, ValueError):
        return {}
    return {output: step.seconds for step in steps for output in step.outputs}


def default_seconds(output):
    return SECONDS[ninja_log.kind(output)]


def speed(seconds, expected):
    """Real seconds for an expected one, from {output: real} and a function of the output."""
    return ((sum(seconds.values()) + DOUBT)
            / (sum(expected(output) for output in seconds) + DOUBT))


def running_outputs(folder, outputs):
    """Which of the outputs compilers and linkers make right now, as /proc tells."""
    found = set()
    for process in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            if os.readlink(process / "cwd") != folder:
                continue
            arguments = (process / "cmdline").read_text(errors="replace").split("\0")
        except OSError:  # it ended, or is another user's
            continue
        found.update(b for a, b in zip(arguments, arguments[1:]) if a == "-o" and b in outputs)
    return found


class Estimate:
    """How long the rest of the planned steps will take."""

    def __init__(self, folder, jobs, outputs):
        self.folder, self.jobs = folder, max(jobs, 1)
        before = durations(folder)
        # A machine's speed shows in its other build folders, too.
        elsewhere = {(log.parent, output): seconds
                     for log in folder.parent.glob("*/.ninja_log")
                     for output, seconds in durations(log.parent).items()}
        self.is_guess = not elsewhere
        factor = speed(elsewhere, lambda key: default_seconds(key[1]))
        self.left = {output: before.get(output, factor * default_seconds(output))
                     for output in outputs}
        self.expected = dict(self.left)
        self.started = {}

    def finish(self, output):
        self.left.pop(output, None)
        self.started.pop(output, None)

    def watch(self, running, now):
        """Notes what runs at `now`, so that time spent on it is no longer expected."""
        self.started = {output: self.started.get(output, now)
                        for output in running if output in self.left}

    def seconds_left(self, now):
        done = {output: seconds for output, seconds in durations(self.folder).items()
                if output in self.expected and output not in self.left}
        factor = speed(done, self.expected.get)
        rest = [factor * seconds for output, seconds in self.left.items()
                if output not in self.started]
        # A step that takes longer than expected is taken to be nearly done, never done.
        rest += [max(factor * self.left[output] - (now - start), 0.1 * factor * self.left[output])
                 for output, start in self.started.items()]
        return max(sum(rest) / self.jobs, max(rest, default=0))


def clock(seconds):
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def count(number, word):
    return f"{number} {word}{'s' if number != 1 else ''}"


def about(seconds):
    """An estimate in words, no finer than it is good."""
    if seconds < 55:
        return f"about {max(5, 5 * round(seconds / 5))} s"
    return f"about {max(1, round(seconds / 60))} min"


class Screen:
    """Prints the build's own lines, and the progress between them."""

    def __init__(self, out):
        self.out, self.is_terminal = out, out.isatty()
        self.last_line, self.last_time, self.last_tenth = "", 0, 0

    def write(self, data):
        self.out.buffer.write(data)
        self.out.flush()

    def clear(self):
        if self.last_line and self.is_terminal:
            self.write(b"\r\x1b[K")
        self.last_line = ""

    def say(self, text):
        self.clear()
        self.write(f"{text}\n".encode(errors="replace"))

    def progress(self, text, done, total, elapsed):
        if self.is_terminal:
            line = text[:max(shutil.get_terminal_size().columns - 1, 1)]
            if line != self.last_line:
                self.write(f"\r{line}\x1b[K".encode(errors="replace"))
                self.last_line = line
            return
        tenth = 10 * done // max(total, 1)
        if tenth > self.last_tenth or elapsed - self.last_time >= 30:
            self.last_tenth, self.last_time = tenth, elapsed
            self.say(text)


class Build:
    def __init__(self, folder, jobs, command, screen):
        self.folder, self.jobs, self.command, self.screen = folder, jobs, command, screen
        self.estimate, self.latest = None, ""
        self.done = self.total = 0

    def plan(self):
        """Says what will be done and how long it takes; without a plan only steps are counted."""
        outputs = planned(self.command)
        if not outputs:
            return
        self.estimate = Estimate(self.folder, self.jobs, outputs)
        self.total = len(outputs)
        cuda = sum(ninja_log.kind(output) == "CUDA" for output in outputs)
        steps = count(self.total, "step") + (f", {cuda} of them CUDA," if cuda else "")
        guess = ", a guess that the first of them will correct" if self.estimate.is_guess else ""
        self.screen.say(f"{steps} by {count(self.jobs, 'job')}: "
                        f"{about(self.estimate.seconds_left(0))}{guess}")

    def line(self, elapsed):
        text = f"[{self.done}/{self.total}] {clock(elapsed)}"
        latest = self.latest
        try:
            if self.estimate:
                running = running_outputs(str(self.folder), self.estimate.left)
                self.estimate.watch(running, elapsed)
                if self.estimate.left:
                    text += f", {about(self.estimate.seconds_left(elapsed))} left"
                latest = ", ".join(sorted(map(shown, running))) or latest
        except Exception:  # pylint: disable=broad-except
            self.estimate = None
        return f"{text}: {latest}"

    def take(self, line):
        """One line of the build's output."""
        match = STATUS_LINE.match(line.decode(errors="replace").rstrip("\n"))
        if match is None:
            self.screen.clear()
            self.screen.write(line)
            return
        self.done, self.total = int(match[1]), int(match[2])
        output = output_of(match[3])
        self.latest = shown(output)
        if self.estimate:
            self.estimate.finish(output)

    def run(self):
        """The exit status of the build."""
        try:
            self.plan()
        except Exception:  # pylint: disable=broad-except
            self.estimate = None
        start, rest = time.monotonic(), b""
        with subprocess.Popen(self.command, env={**os.environ, "NINJA_STATUS": STATUS},
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
            pipe = process.stdout.fileno()
            try:
                while True:
                    ready, _, _ = select.select([pipe], [], [], 1)
                    data = os.read(pipe, 1 << 16) if ready else None
                    if data == b"":
                        break
                    *lines, rest = (rest + (data or b"")).split(b"\n")
                    for line in lines:
                        self.take(line + b"\n")
                    if self.total:
                        elapsed = time.monotonic() - start
                        self.screen.progress(self.line(elapsed), self.done, self.total, elapsed)
                if rest:
                    self.take(rest)
                status = process.wait()
            except KeyboardInterrupt:
                # The terminal has told ninja as well, which stops its jobs and says so.
                self.screen.clear()
                self.screen.write(rest + process.stdout.read())
                return 130
        if self.total:
            self.screen.say(f"{'built' if status == 0 else 'FAILED after'} {self.done} of "
                            f"{count(self.total, 'step')} in {clock(time.monotonic() - start)}")
        return status if status >= 0 else 128 - status


def main():
    if len(sys.argv) < 4 or not sys.argv[2].isdigit():
        sys.exit(__doc__)
    folder, jobs, *command = sys.argv[1:]
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # a reader that goes away ends the build quietly
    if {"-v", "--verbose"} & set(command) or os.environ.get("VERBOSE"):
        os.execvp(command[0], command)  # whoever wants every command gets nothing else
    try:
        status = Build(pathlib.Path(folder).resolve(), int(jobs), command, Screen(sys.stdout)).run()
    except KeyboardInterrupt:
        status = 130
    sys.exit(status)


if __name__ == "__main__":
    main()

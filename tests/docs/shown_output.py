"""Which blocks of a Markdown file show a command's output, and whether they show what it prints.

    <!-- output of: bin/program --option -->             before the fence: all that it prints
    <!-- part of the output of: bin/program --option --> some lines in a row

In such a block
  `$ COMMAND` as its first line is the command as a reader types it;
  `…` on a line of its own stands for any lines, within a line for any text;
  a number before ` ms` or ` GFLOP/s`, or right-aligned under such a heading, stands for any number,
  and a number with an exponent (a rounding error) for any other with one.
Everything else must be equal. Spaces at the end of a line do not count.
"""

import re
from typing import NamedTuple

ELLIPSIS = "…"
NUMBER = r"[-+]?(?:\d+(?:\.\d+)?|inf|nan)"
MEASURED = re.compile(rf" *{NUMBER}(?:e[-+]?\d+)?(?= (?:ms|GFLOP/s)\b)")
ROUNDING = re.compile(rf" *{NUMBER}e[-+]?\d+")
HEADING = re.compile(r"(?<=  )(?:ms|GFLOP/s)(?=  |$)")
MARKER = re.compile(r"<!-- (part of the )?output of: (.*?) -->$")


class Block(NamedTuple):
    line: int      # of the first line that is compared, from 1
    fence: str     # what stands behind the fence's backticks
    command: str   # of the marker; None where there is none
    is_part: bool
    typed: str     # behind `$ `; None where it is not shown
    lines: tuple


def blocks(text):
    """Every fenced block of a Markdown text."""
    found, lines = [], text.splitlines()
    marker, number = None, 0
    while number < len(lines):
        line = lines[number]
        number += 1
        if not line.startswith("```"):
            # A marker belongs to the fence that follows it, blank lines apart.
            marker = MARKER.match(line) or (marker if not line.strip() else None)
            continue
        end = lines.index("```", number)
        shown = lines[number:end]
        typed = shown[0][2:] if shown and shown[0].startswith("$ ") else None
        shown = shown[1:] if typed is not None else shown
        found.append(Block(end - len(shown) + 1, line[3:].strip(), marker[2] if marker else None,
                           bool(marker and marker[1]), typed, tuple(shown)))
        marker, number = None, end + 1
    return found


def without_measurements(lines):
    """The lines with # for each number that no two runs share."""
    result, columns = [], []
    for line in lines:
        if not re.search(r"\d", line):
            columns = [match.end() for match in HEADING.finditer(line)]
        for column in reversed(columns):
            number = re.search(rf" *{NUMBER}(?:e[-+]?\d+)?$", line[:column])
            if number and not line[column:column + 1].strip():
                line = f"{line[:number.start()]} #{line[column:]}"
        line = MEASURED.sub(" #", line)
        result.append(ROUNDING.sub(" #e", line).rstrip())
    return result


def line_matches(shown, printed):
    pattern = ".*".join(map(re.escape, shown.split(ELLIPSIS)))
    return re.fullmatch(pattern, printed) is not None


def matched(run, printed, start):
    """How many lines of `run` are those of `printed` from `start` on."""
    count = 0
    while (count < len(run) and start + count < len(printed)
           and line_matches(run[count], printed[start + count])):
        count += 1
    return count


def difference(shown, printed, is_part=False):
    """None where the shown lines are what was printed, else (index in shown, what is wrong)."""
    masked = without_measurements(shown) + ([ELLIPSIS] if is_part else [])
    printed_masked = without_measurements(printed)
    index, position, is_free = 0, 0, is_part  # is_free: other lines may come before the next run
    while index < len(masked):
        if masked[index].strip() == ELLIPSIS:
            is_free, index = True, index + 1
            continue
        end = index
        while end < len(masked) and masked[end].strip() != ELLIPSIS:
            end += 1
        run = masked[index:end]
        starts = range(position, len(printed) + 1) if is_free else [position]
        if is_free and end == len(masked):
            starts = [max(position, len(printed) - len(run))]
        counts = {start: matched(run, printed_masked, start) for start in starts}
        start = next((at for at, count in counts.items() if count == len(run)), None)
        if start is None:
            start = max(counts, key=counts.get)
            wrong, at = index + counts[start], start + counts[start]
            if is_free and counts[start] == 0 and len(starts) > 1:
                return wrong, "no such line is printed, or not behind those above"
            return wrong, (f"printed is: {printed[at]}" if at < len(printed) else
                           "nothing more is printed")
        position, is_free, index = start + len(run), False, end
    if not is_free and position < len(printed):
        return len(shown) - 1, f"behind it is printed: {printed[position]}"
    return None

"""Markdown of the rows that compare_pytorch.py records: ratios of Tenon to PyTorch's best variant, with
floors and targets. Of rows about the same work the last one counts."""

TERABYTE = 1e12

# Ratios that latency and back-to-back time should not exceed; None: reported only.
ATTENTION_TARGETS = {
    ("bfloat16", "fwd"): {"1x128": (0.35, None), "8x512": (0.6, None), "32x512": (None, 0.95),
                          "4x2048": (None, 0.95), "2x8192": (None, 1.0)},
    ("bfloat16", "train"): {"1x128": (0.35, None), "8x512": (0.5, None), "32x512": (None, 1.0),
                            "4x2048": (None, 1.0)},
    ("float32", "fwd"): {shape: (1.1, 1.1) for shape in ("1x128", "8x512", "32x512")},
    ("float32", "train"): {shape: (1.1, 1.1) for shape in ("1x128", "8x512", "32x512")},
}
GPT2_TARGET_MS = {"4x1024": 9.0, "32x1024": 55.0}
GPT2_TARGET_BYTES = {"32x1024": 10e9}
LOSS_TARGET = 0.01
FIRST_STEP_TARGET_S = 3.0
# (figure, at least): TB/s, a share of copy bandwidth, or PyTorch's time over Tenon's.
KERNEL_TARGETS = {"layer_norm_forward": ("TB/s", 3.6), "layer_norm_backward": ("TB/s", 3.0),
                  "adamw_124m": ("of copy", 0.85), "linear_cross_entropy": ("speed-up", 2.0)}


def latest(rows, work):
    """The last row of each key, in the order in which keys came first."""
    found = {}
    for row in rows:
        if row["work"] == work:
            found[(row.get("dtype"), row.get("mode"), row["shape"])] = row
    return list(found.values())


def best(row, figure):
    """(variant, value) of the smallest, or None."""
    values = [(entry[figure], name) for name, entry in row.get("pytorch", {}).items()
              if figure in entry]
    return (min(values)[1], min(values)[0]) if values else None


def judged(value, target, text):
    """`text`, the target and whether it is met."""
    if target is None:
        return text
    return f"{text} ({'met' if value <= target else 'MISSED'}: {target:g})"


def compared(row, figure, target=None, digits=3):
    """Cells: Tenon's figure, PyTorch's best and its variant, their ratio."""
    ours, theirs = row.get("tenon", {}).get(figure), best(row, figure)
    cells = [f"{ours:.{digits}f}" if ours is not None else "failed",
             f"{theirs[1]:.{digits}f} {theirs[0]}" if theirs else "–"]
    if ours is None or theirs is None:
        return [*cells, "–"]
    ratio = ours / theirs[1]
    return [*cells, judged(ratio, target, f"**{ratio:.2f}**")]


def table(header, rows):
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(map(str, row)) + " |" for row in rows]) + "\n"


def attention(rows):
    lines = []
    for row in latest(rows, "attention"):
        targets = ATTENTION_TARGETS.get((row["dtype"], row["mode"]), {}).get(row["shape"],
                                                                             (None, None))
        ours = row.get("tenon", {})
        floor, step = ours.get("floor_ms"), ours.get("throughput_ms")
        lines.append([row["dtype"], row["mode"], row["shape"],
                      *compared(row, "latency_ms", targets[0]),
                      *compared(row, "throughput_ms", targets[1]),
                      f"{floor:.3f}" if floor else "–",
                      f"{100 * floor / step:.0f}%" if floor and step else "–",
                      ours.get("kernels", "–")])
    header = ["dtype", "mode", "batch x seq", "latency ms", "PyTorch", "ratio", "back to back ms",
              "PyTorch", "ratio", "floor ms", "of it reached", "kernels"]
    return lines and table(header, lines)


def largest_difference(ours, theirs):
    return max(abs(a / b - 1) for a, b in zip(ours, theirs))


def losses(row):
    """Judged against the precision that computes as Tenon does, the last; how far PyTorch's own are
    apart says what a difference means."""
    ours, theirs = row["losses"]["tenon"], row["losses"]["pytorch"]
    alike = list(theirs)[-1]
    apart = largest_difference(ours, theirs[alike])
    text = (f"\nLoss over {row['steps']} steps at {row['shape']}, same weights and tokens: "
            f"{ours[0]:.4f} to {ours[-1]:.4f}, PyTorch ({alike}) {theirs[alike][0]:.4f} to "
            f"{theirs[alike][-1]:.4f}; largest relative difference "
            f"{judged(apart, LOSS_TARGET, f'{apart:.2e}')}")
    for other in list(theirs)[:-1]:
        text += (f"; from PyTorch ({other}) {largest_difference(ours, theirs[other]):.2e}, between "
                 f"PyTorch's two {largest_difference(theirs[alike], theirs[other]):.2e}")
    return text + ".\n"


def gpt2(rows):
    lines = []
    for row in latest(rows, "gpt2"):
        ours, shape = row.get("tenon", {}), row["shape"]
        peak = ours.get("peak_bytes")
        theirs = best(row, "peak_bytes")
        limit = GPT2_TARGET_BYTES.get(shape)
        milliseconds = compared(row, "ms_median", digits=2)
        if "ms_median" in ours:
            milliseconds[0] = judged(ours["ms_median"], GPT2_TARGET_MS.get(shape), milliseconds[0])
        lines.append([shape, *milliseconds, *compared(row, "ms_back_to_back", digits=2),
                      f"{ours['floor_ms']:.2f}" if ours else "–",
                      f"{ours['tokens_per_s']:,.0f}" if ours else "–",
                      f"{100 * ours['mfu']:.1f}%" if ours else "–",
                      judged(peak / 1e9, limit and limit / 1e9, f"{peak / 1e9:.2f}") if peak else "–",
                      f"{theirs[1] / 1e9:.2f}" if theirs else "–"])
    header = ["batch x seq", "step ms", "PyTorch", "ratio", "back to back ms", "PyTorch", "ratio",
              "floor ms", "tokens/s", "MFU", "peak GB", "PyTorch peak GB"]
    text = lines and table(header, lines)
    for row in latest(rows, "losses"):
        text = (text or "") + losses(row)
    for row in latest(rows, "first_step"):
        ours = row.get("tenon", {}).get("first_step_s")
        theirs = best(row, "first_step_s")
        if ours is None:
            continue
        text = (text or "") + (
            f"\nFrom process start to the end of the first step at {row['shape']}: "
            f"{judged(ours, FIRST_STEP_TARGET_S, f'{ours:.2f} s')}"
            + (f", PyTorch compiled {theirs[1]:.1f} s" if theirs else "") + ".\n")
    return text


def kernels(rows):
    found = latest(rows, "kernels")
    copy = next((row["tenon"]["bytes"] / row["tenon"]["ms"] * 1e3 for row in found
                 if row["shape"].startswith("copy")), None)
    lines = []
    for row in found:
        ours, theirs = row["tenon"], best(row, "ms")
        bytes_per_s = ours["bytes"] / ours["ms"] * 1e3
        lines.append([row["shape"], f"{ours['ms']:.4f}",
                      f"{theirs[1]:.4f} {theirs[0]}" if theirs else "–",
                      f"**{ours['ms'] / theirs[1]:.2f}**" if theirs else "–",
                      f"{bytes_per_s / TERABYTE:.2f}",
                      f"{ours['flops'] / ours['ms'] * 1e-9:.0f}" if ours["flops"] else "–",
                      f"{ours['floor_ms']:.4f}", f"{100 * ours['floor_ms'] / ours['ms']:.0f}%",
                      kernel_target(row, bytes_per_s, copy, theirs)])
    header = ["operation", "ms", "PyTorch", "ratio", "TB/s", "TFLOP/s", "floor ms", "of it reached",
              "target"]
    return lines and table(header, lines)


def kernel_target(row, bytes_per_s, copy, theirs):
    for name, (figure, least) in KERNEL_TARGETS.items():
        if not row["shape"].startswith(name):
            continue
        value = {"TB/s": bytes_per_s / TERABYTE,
                 "of copy": bytes_per_s / copy if copy else None,
                 "speed-up": theirs[1] / row["tenon"]["ms"] if theirs else None}[figure]
        if value is None:
            return f"{least:g} {figure}"
        return f"{'met' if value >= least else 'MISSED'}: {value:.2f}, at least {least:g} {figure}"
    return "–"


def models(rows):
    """Whole models: bench_models by both clocks, programs of others by their own."""
    lines = []
    for row in latest(rows, "models"):
        ours = row.get("tenon", {})
        error, own = ours.get("max_error"), row.get("pytorch_error")
        lines.append([row["dtype"], row["mode"], row["shape"], *compared(row, "latency_ms"),
                      *compared(row, "throughput_ms"),
                      f"{ours['floor_ms']:.3f}" if ours else "–",
                      f"{error:.3f}, {own:.3f}" if error is not None and own is not None else "–"])
    header = ["dtype", "mode", "model", "latency ms", "PyTorch", "ratio", "back to back ms", "PyTorch",
              "ratio", "floor ms", "error, PyTorch's"]
    text = table(header, lines) if lines else ""
    trials = [[row["dtype"], row["mode"], row["shape"], *compared(row, "ms")]
              for row in latest(rows, "trials")]
    if trials:
        text += ("\nPrograms that others wrote, by the clock in them:\n\n"
                 + table(["dtype", "mode", "model", "ms", "PyTorch", "ratio"], trials))
    return text


def contexts(rows, works):
    """What the rows of these works ran on, each different one once."""
    found = {}
    for row in rows:
        if row["work"] in works:
            context = dict(row["context"])
            date, command = context.pop("date"), context.pop("command")
            entry = found.setdefault(tuple(context.items()), {"dates": [], "commands": []})
            entry["dates"].append(date)
            if command not in entry["commands"]:
                entry["commands"].append(command)
    lines = []
    for context, entry in found.items():
        c = dict(context)
        dates = min(entry["dates"]), max(entry["dates"])
        when = dates[0] if dates[0] == dates[1] else f"{dates[0]} to {dates[1]}"
        lines.append(f"{when}; {c['hardware']}" + (f", driver {c['driver']}" if c["driver"] else "")
                     + f"; PyTorch {c['torch']}, CUDA {c['cuda'] or '–'}, cuDNN {c['cudnn'] or '–'}, "
                     f"Python {c['python']}.\n")
        lines += [f"    {command}" for command in entry["commands"]]
    return "\n".join(lines) + "\n"


SECTIONS = [("Attention block", ("attention",), attention),
            ("Models", ("models", "trials"), models),
            ("GPT-2 training", ("gpt2", "losses", "first_step"), gpt2),
            ("Kernels", ("kernels",), kernels)]

INTRODUCTION = """# Results

Written by `benchmarks/compare_pytorch.py`, which says how it measures. Ratios are Tenon's time over that
of PyTorch's best variant in the same run: lower is better. Times are medians. Every figure of Tenon is that
of a Program built by a ready-made schedule. A floor is the sum over that Program's kernels of operations
over 790 TFLOP/s (float32: 61.8) or bytes over 4.2 TB/s, whichever is longer.
"""


def render(rows):
    text = INTRODUCTION
    for title, works, section in SECTIONS:
        body = section(rows)
        if body:
            text += f"\n## {title}\n\n{contexts(rows, works)}\n{body}"
    return text

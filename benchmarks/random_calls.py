"""Random calls of ops with their gradients, as compare_errors.py draws them: what Tenon gets, what PyTorch
computes in the same dtype, and what is exact.

A Call is data (op, attributes, operands) and two functions: `peer`, PyTorch's results, and `exact`, those in
float64. Results are {"output": …, "gradient 0": …}, the number being that of the operand.
"""

import dataclasses
import math
import typing

import torch
import torch.nn.functional as F

INF = float("inf")
UNITS = {torch.float64: 2.0**-53, torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
LENGTHS = [1, 2, 3, 7, 8, 15, 16, 17, 31, 33, 63, 64, 65, 77, 100, 127, 128, 129, 200, 255, 256, 257,
           300, 384, 511, 512, 640, 777, 1000, 1024, 1500, 2048]
HEADS = [8, 16, 24, 32, 40, 48, 64, 64, 64, 64, 72, 80, 96, 128, 128, 128, 160, 192, 256, 4, 20, 33, 5]


@dataclasses.dataclass
class Call:
    """`operands` are on `device`, None where absent; the cotangent is that of the first result."""
    text: str
    op: str
    attributes: typing.Optional[dict]
    operands: list
    cotangent: torch.Tensor
    wanted: list
    peer: typing.Callable
    # Gives results, for each the largest sum of its terms' absolute values, and for some what they lose
    # where they read a result that was rounded before.
    exact: typing.Callable
    axes: list = dataclasses.field(default_factory=list)
    copies: list = dataclasses.field(default_factory=list)
    program: bool = False
    # Random numbers are Tenon's: exact is what its CPU computes in float64.
    exact_by_tenon: bool = False
    # Rows (…, L) of queries that see no key: their results are zeros, whatever a peer says.
    empty_rows: typing.Optional[torch.Tensor] = None


def gradients_of(output, cotangent, leaves):
    """{"output": …, "gradient i": …} by autograd; leaves: operand number -> tensor."""
    results = {"output": output.detach()}
    found = torch.autograd.grad(output, list(leaves.values()), cotangent)
    for number, gradient in zip(leaves, found):
        results[f"gradient {number}"] = gradient
    return results


def largest(tensor):
    return tensor.abs().max().item() if tensor.numel() else 0.0


def maxima(tensors):
    return {name: largest(value) for name, value in tensors.items()}


def summed_to(tensor, shape):
    """The gradient of a broadcast operand."""
    return tensor.sum_to_size(shape)


# --- attention


@dataclasses.dataclass
class Mask:
    kind: str
    value: typing.Optional[torch.Tensor]  # bool or of the dtype; None: no mask


def low_values(dtype):
    """What programs hide keys with, as far as the dtype has it."""
    lowest = torch.finfo(dtype).min
    return [-INF, -1e4] + ([-1e9] if lowest < -1e9 else []) + [lowest]


def padding(rng, batch, keys, hides_all):
    """(batch, keys), true where a key is seen: the first few or the last few."""
    shown = torch.zeros(batch, keys, dtype=torch.bool)
    for b in range(batch):
        count = 0 if hides_all and b == 0 else rng.randint(1, keys)
        if rng.random() < 0.7:
            shown[b, :count] = True
        else:
            shown[b, keys - count:] = True
    return shown


def draw_mask(rng, generator, kind, dtype, sizes, finite_only):
    """`sizes` is (B, H, L, S). finite_only: no query has its keys hidden by finite numbers alone."""
    b, h, length, keys = sizes

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def additive(shown, value):
        return torch.zeros(shown.shape, dtype=torch.float64).masked_fill(~shown, value).to(dtype)

    hides_all = rng.random() < 0.3
    if kind == "bool keys":
        return padding(rng, b, keys, hides_all)[:, None, None, :]
    if kind == "low keys":
        value = rng.choice(low_values(dtype))
        if finite_only and value != -INF:
            hides_all = False
        return additive(padding(rng, b, keys, hides_all)[:, None, None, :], value)
    if kind == "bias of keys":
        return normal(*rng.choice([(b, 1, 1, keys), (1, h, 1, keys), (keys,)])).to(dtype)
    if kind == "bias of queries":
        return normal(*rng.choice([(length, 1), (1, h, length, 1)])).to(dtype)
    outer = rng.choice([(), (1, 1), (1, h), (b, 1), (b, h)])
    if kind == "bool pairs":
        shown = normal(*outer, length, keys) < rng.choice([-1.0, 0.0, 1.0])
        if not hides_all:
            shown[..., 0] = True
        return shown
    if kind == "bias of pairs":
        return (normal(*outer, length, keys) * rng.choice([0.5, 1, 5])).to(dtype)
    if kind == "low pairs":
        value = rng.choice([-INF, -1e4] if finite_only else low_values(dtype))
        shown = normal(*outer, length, keys) < 0.3
        if value != -INF and finite_only:
            shown[..., 0] = True
        return additive(shown, value)
    distance = torch.arange(keys)[None, :] - torch.arange(length)[:, None]
    if kind == "window":
        width = rng.choice([1, 4, 16, 64, 128, 300])
        shown = (distance <= 0) & (distance > -width) if rng.random() < 0.5 else (
            distance.abs() <= width)
    else:  # causal from the end: the last query sees all keys
        shown = distance <= keys - length
    return shown if rng.random() < 0.5 else additive(shown, -INF)


MASKS = ["none"] * 4 + ["causal"] * 4 + ["bool keys"] * 3 + ["low keys"] * 5 + [
    "bias of keys", "bias of queries", "bool pairs", "bool pairs", "bias of pairs", "bias of pairs",
    "low pairs", "window", "window", "end causal"]


def draw_attention(rng, generator, device, largest_pairs):
    dtype = rng.choice([torch.bfloat16] * 4 + [torch.float16] * 3 + [torch.float32] * 3)
    while True:
        b, hk, group = rng.choice([1, 1, 2, 3, 4]), rng.choice([1, 2, 3, 4, 8]), rng.choice([1] * 6 + [2, 4])
        length, keys = rng.choice(LENGTHS), rng.choice(LENGTHS)
        if rng.random() < 0.5:
            keys = length
        if b * hk * group * length * keys <= largest_pairs:
            break
    h = hk * group
    head = rng.choice(HEADS)
    head_v = head if rng.random() < 0.85 else rng.choice(HEADS)
    kind = rng.choice(MASKS)
    dropout = rng.choice([0.0] * 5 + [0.1, 0.4])
    scale = rng.choice([1 / math.sqrt(head)] * 5 + [0.5 / math.sqrt(head), 1.0 / head])
    spread = rng.choice([1.0, 1.0, 1.0, 0.1, 3.0])
    by_token, program = rng.random() < 0.5, rng.random() < 0.5
    wants_mask = rng.random() < 0.3

    def normal(*shape):
        values = torch.randn(*shape, generator=generator, dtype=torch.float32)
        return values.to(dtype).to(device)

    q = (normal(b, h, length, head) * spread).to(dtype)
    k, v = normal(b, hk, keys, head), normal(b, hk, keys, head_v)
    g = normal(b, h, length, head_v)
    mask = None
    if kind not in ("none", "causal"):
        mask = draw_mask(rng, generator, kind, dtype, (b, h, length, keys), dropout > 0).to(device)
    wants_mask = wants_mask and mask is not None and mask.dtype != torch.bool
    is_causal = kind == "causal"
    wanted = [0, 1, 2, 3] if wants_mask else [0, 1, 2]

    def peer():
        leaves = {i: t.detach().clone().requires_grad_()
                  for i, t in enumerate([q, k, v, mask]) if i in wanted}
        m = leaves.get(3, mask)
        m = m[None] if m is not None and m.dim() == 1 else m
        kk, vv = (x.repeat_interleave(group, 1) if group > 1 else x for x in (leaves[1], leaves[2]))
        # cuDNN's kernel fails on some masks (rows not of whole vectors) and leaves the device unusable.
        torch.backends.cuda.enable_cudnn_sdp(m is None)
        out = F.scaled_dot_product_attention(leaves[0], kk, vv, m, 0.0, is_causal, scale=scale)
        return gradients_of(out, g, leaves)

    def exact():
        return exact_attention(q, k, v, mask, g, is_causal, scale, group, wanted)

    mask_text = kind if mask is None else (
        f"{kind} {tuple(mask.shape)} {str(mask.dtype)[6:]} min {mask.min().item():.4g}")
    text = (f"{str(dtype)[6:]} B{b} H{h}/{hk} L{length} S{keys} E{head} Ev{head_v}, {mask_text}"
            f"{', gradient of the mask' if wants_mask else ''}, scale {scale:.4g}, q x{spread}"
            f"{f', dropout {dropout}' if dropout else ''}{', by token' if by_token else ''}"
            f"{', program' if program else ''}")
    token = [0, 2, 1, 3] if by_token else None
    return Call(
        text=text, op="scaled_dot_product_attention",
        attributes={"type": "AttentionAttrs", "dropout_p": dropout, "is_causal": is_causal,
                    "scale": scale, "mode": "train", "site": 5},
        operands=[q, k, v, mask], cotangent=g, wanted=wanted, peer=peer, exact=exact,
        axes=[token, token, token, None, token], copies=[1, group, group, 1], program=program,
        exact_by_tenon=dropout > 0,
        empty_rows=seen_keys(mask, is_causal, (b, h, length, keys), device) == 0)


def seen_keys(mask, is_causal, sizes, device):
    """(B, H, L): how many keys each query sees."""
    seen = torch.ones(sizes, dtype=torch.bool, device=device)
    if is_causal:
        seen = seen.tril()
    if mask is not None:
        seen = seen & (mask if mask.dtype == torch.bool else mask != -INF)
    return seen.sum(-1)


def exact_attention(q, k, v, mask, g, is_causal, scale, group, wanted):
    """All in float64, but scores with numbers below -1e6 added are rounded to float32, as whoever computes
    in float32 must: what is left of their differences is the op's contract."""
    heads = [x.double().repeat_interleave(group, 1) for x in (k, v)]
    qq, (kk, vv), gg = q.double(), heads, g.double()
    scores = qq @ kk.mT * scale
    if is_causal:
        scores = scores.masked_fill(~torch.ones_like(scores, dtype=torch.bool).tril(), -INF)
    elif mask is not None and mask.dtype == torch.bool:
        scores = scores.masked_fill(~mask, -INF)
    elif mask is not None:
        scores = scores + mask.double()
    top = scores.amax(-1, keepdim=True)
    coarse = (top < -1e6) & (top != -INF)
    scores = torch.where(coarse, scores.float().double(), scores)
    p = torch.exp(scores - torch.where(top == -INF, 0.0, torch.where(coarse, scores.amax(-1, True), top)))
    total = p.sum(-1, keepdim=True)
    p = torch.where(total == 0, 0.0, p / total)
    out = p @ vv
    dp = gg @ vv.mT
    delta = (gg * out).sum(-1, keepdim=True)
    ds = p * (dp - delta)
    ds_terms = p * ((gg.abs() @ vv.abs().mT) + (gg * out).abs().sum(-1, keepdim=True))

    def of_heads(x):
        return x.unflatten(1, (-1, group)).sum(2)

    results = {"output": out, "gradient 0": ds @ kk * scale,
               "gradient 1": of_heads(ds.mT @ qq * scale), "gradient 2": of_heads(p.mT @ gg)}
    terms = {"output": p @ vv.abs(), "gradient 0": ds_terms @ kk.abs() * scale,
             "gradient 1": of_heads(ds_terms.mT @ qq.abs() * scale),
             "gradient 2": of_heads(p.mT @ gg.abs())}
    # The gradient reads the output as it was returned: a rounding of each of its numbers.
    lost = UNITS[q.dtype] * (gg * out).square().sum(-1, keepdim=True).sqrt()
    losses = {"gradient 0": lost * (p @ kk).abs() * scale,
              "gradient 1": of_heads(((p * lost).mT @ qq).abs() * scale)}
    if 3 in wanted:
        results["gradient 3"] = summed_to(ds, mask.shape)
        terms["gradient 3"] = summed_to(ds_terms, mask.shape)
        losses["gradient 3"] = summed_to((p * lost).square(), mask.shape).sqrt()
    return results, maxima(terms), maxima(losses)


# --- what is a sum of products: exact and its terms by the same function of absolute values


def linear_call(rng, generator, device, make):
    """`make` gives text, op, attributes, shapes of the operands (None: absent), and a function of them."""
    dtype = rng.choice([torch.bfloat16] * 3 + [torch.float16] * 2 + [torch.float32] * 3)
    text, op, attributes, shapes, function, axes = make(rng)
    operands = [None if shape is None else torch.randn(shape, generator=generator).to(dtype).to(device)
                for shape in shapes]
    present = [i for i, x in enumerate(operands) if x is not None]
    program = rng.random() < 0.5
    with torch.no_grad():
        shape = function(*operands).shape
    g = torch.randn(shape, generator=generator).to(dtype).to(device)

    def results(change):
        leaves = {i: change(operands[i]).detach().requires_grad_() for i in present}
        return gradients_of(function(*[leaves.get(i) for i in range(len(operands))]), change(g), leaves)

    def exact():
        terms = results(lambda x: x.double().abs())
        return results(lambda x: x.double()), maxima(terms), {}

    return Call(text=f"{str(dtype)[6:]} {text}{', program' if program else ''}", op=op,
                attributes=attributes, operands=operands, cotangent=g, wanted=present,
                peer=lambda: results(lambda x: x), exact=exact, axes=axes, program=program)


def make_convolution(rng):
    groups = rng.choice([1, 1, 1, 2, 4])
    channels = groups * rng.choice([1, 3, 5, 8, 16, 24, 64])
    if rng.random() < 0.15:
        groups = channels
    filters = groups * rng.choice([1, 2, 8, 12, 32])
    kernel_h = rng.choice([1, 1, 3, 3, 5, 7])
    kernel_w = kernel_h if rng.random() < 0.75 else rng.choice([1, 2, 3])
    stride, dilation = rng.choice([1, 1, 2, 3]), rng.choice([1, 1, 1, 2])
    pad = rng.choice([0, 1, kernel_h // 2])
    reach = dilation * (max(kernel_h, kernel_w) - 1) + 1
    height, width = reach + rng.choice([0, 1, 5, 14, 30]), reach + rng.choice([0, 2, 7, 13, 31])
    samples = rng.choice([1, 2, 5, 16])
    bias = rng.random() < 0.5
    last = [0, 2, 3, 1] if rng.random() < 0.5 else None
    text = (f"({samples}, {channels}, {height}, {width}) -> {filters}, kernel {kernel_h}x{kernel_w}, stride "
            f"{stride}, padding {pad}, dilation {dilation}, {groups} groups{', bias' if bias else ''}"
            f"{', channels last' if last else ''}")
    attributes = {"type": "Conv2dAttrs", "stride": [stride] * 2, "padding": [pad] * 2,
                  "dilation": [dilation] * 2, "groups": groups}
    shapes = [(samples, channels, height, width), (filters, channels // groups, kernel_h, kernel_w),
              (filters,) if bias else None]

    def function(x, w, b):
        return F.conv2d(x, w, b, stride, pad, dilation, groups)

    return text, "conv2d", attributes, shapes, function, [last, last, None, last]


def make_product(rng):
    def size():
        return rng.choice([1, 3, 8, 16, 17, 64, 100, 128, 200, 256, 333, 512, 768, 1000, 1024, 2304, 3072])

    m, n, k = size(), size(), size()
    if rng.random() < 0.5:
        bias = rng.random() < 0.5
        text = f"linear ({m}, {k}) -> {n}{', bias' if bias else ''}"
        return (text, "linear", None, [(m, k), (n, k), (n,) if bias else None],
                F.linear, [None] * 4)
    outer = rng.choice([(), (3,), (2, 4)])
    axes = list(range(len(outer)))
    swapped = axes + [len(outer) + 1, len(outer)]
    lies = [swapped if rng.random() < 0.4 else None for _ in range(2)]
    text = f"matmul {outer} {m} x {k} x {n}, by columns {[x is not None for x in lies]}"
    return text, "matmul", None, [(*outer, m, k), (*outer, k, n)], torch.matmul, [*lies, None]


def draw_convolution(rng, generator, device, _):
    return linear_call(rng, generator, device, make_convolution)


def draw_product(rng, generator, device, _):
    return linear_call(rng, generator, device, make_product)


# --- batch norm


def draw_batch_norm(rng, generator, device, _):
    dtype = rng.choice([torch.bfloat16] * 2 + [torch.float16] + [torch.float32] * 2)
    channels = rng.choice([1, 3, 8, 16, 37, 64, 256, 1000])
    inner = rng.choice([(), (1,), (7,), (1, 1), (7, 7), (14, 15), (56, 56)])
    samples = rng.choice([2, 3, 16, 64])
    trains = rng.random() < 0.7
    program = rng.random() < 0.5
    last = [0, *range(2, 2 + len(inner)), 1] if inner and rng.random() < 0.5 else None

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    mean, spread = rng.choice([0.0, 1.0, 10.0]), rng.choice([1.0, 0.1, 4.0])
    x = (normal(samples, channels, *inner) * spread + mean).to(dtype).to(device)
    g = normal(*x.shape).to(dtype).to(device)
    running_mean, weight, bias = (normal(channels).to(dtype).to(device) for _ in range(3))
    running_var = (normal(channels).abs() + 0.5).to(dtype).to(device)

    def results(change):
        leaves = {0: change(x).detach().requires_grad_(), 3: change(weight).detach().requires_grad_(),
                  4: change(bias).detach().requires_grad_()}
        y = F.batch_norm(leaves[0], change(running_mean).clone(), change(running_var).clone(),
                         leaves[3], leaves[4], trains, 0.1, 1e-5)
        return gradients_of(y, change(g), {0: leaves[0], 3: leaves[3], 4: leaves[4]})

    def exact():
        found = results(lambda t: t.double())
        count = x.numel() / channels
        size, factor = largest(x) + abs(mean), 1 / math.sqrt(spread * spread + 1e-5)
        terms = size * factor * largest(weight) + largest(bias)
        sums = largest(g) * math.sqrt(count) * max(1.0, size * factor)
        return found, {"output": terms, "gradient 0": largest(g) * factor * largest(weight) * 4,
                       "gradient 3": sums, "gradient 4": sums}, {}

    text = (f"{str(dtype)[6:]} {tuple(x.shape)}, {'training' if trains else 'evaluation'}, mean {mean}, "
            f"deviation {spread}{', channels last' if last else ''}{', program' if program else ''}")
    # Leaves are numbered as Tenon's operands: input, running_mean, running_var, weight, bias.
    return Call(text=text, op="batch_norm",
                attributes={"type": "BatchNormAttrs", "mode": "train" if trains else "eval",
                            "momentum": 0.1, "eps": 1e-5},
                operands=[x, running_mean, running_var, weight, bias], cotangent=g, wanted=[0, 3, 4],
                peer=lambda: results(lambda t: t), exact=exact,
                axes=[last, None, None, None, None, last], program=program)


DRAW = {"attention": draw_attention, "convolutions": draw_convolution, "products": draw_product,
        "batch_norm": draw_batch_norm}

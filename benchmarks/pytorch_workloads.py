"""The work of bench_attention and bench_gpt2 in PyTorch, and the same two clocks (benchmarks/measure.h).

Works with PyTorch 1.13 (without its fused attention and torch.compile) and later.
"""

import contextlib
import math
import statistics
import time

import torch
from torch import nn
from torch.nn import functional as F

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
LATENCY_BUDGET_S, QUEUE_S, QUEUES = 2.0, 0.1, 5


# --- clocks -----------------------------------------------------------------------------------------

def synchronize(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def device_seconds(device, work):
    """Of CUDA events around `work`; of the host's clock on the CPU."""
    if device.type != "cuda":
        start = time.perf_counter()
        work()
        return time.perf_counter() - start
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    first.record()
    work()
    last.record()
    last.synchronize()
    return first.elapsed_time(last) * 1e-3


class StepTimer:
    """Times step(i), which queues the i-th step; measurements of one timer may be far apart."""

    def __init__(self, device, step, runs):
        self.device, self.step, self.runs, self.next = device, step, runs, 0
        for _ in range(5):  # compilation, recording and clocks that rise
            self.usual = self.single()

    def single(self):
        synchronize(self.device)
        start = time.perf_counter()
        self.advance()
        synchronize(self.device)
        return time.perf_counter() - start

    def advance(self):
        self.step(self.next)
        self.next += 1

    def measure(self):
        """(latency, seconds a step back to back)."""
        count = max(3, min(self.runs, int(LATENCY_BUDGET_S / max(self.usual, 1e-6))))
        latency = statistics.median(self.single() for _ in range(count))
        queued = max(2, min(2000, int(QUEUE_S / max(latency, 1e-6))))

        def queue():
            for _ in range(queued):
                self.advance()
        return latency, statistics.median(device_seconds(self.device, queue) / queued
                                          for _ in range(QUEUES))


# --- attention --------------------------------------------------------------------------------------

def attention_backends(dtype):
    """Names for attention_backend(); the flash and cuDNN kernels take 16-bit floats only."""
    if not hasattr(torch.nn, "attention"):
        return ["written"]
    return ["efficient", "math"] if dtype == torch.float32 else ["flash", "cudnn"]


def attention_backend(name):
    """The context in which scaled_dot_product_attention uses that kernel and no other."""
    if name == "written":
        return contextlib.nullcontext()
    from torch.nn.attention import SDPBackend, sdpa_kernel
    return sdpa_kernel({"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION,
                        "efficient": SDPBackend.EFFICIENT_ATTENTION,
                        "math": SDPBackend.MATH}[name])


def attend(q, k, v, dropout_p=0.0, is_causal=False):
    if hasattr(F, "scaled_dot_product_attention"):
        return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout_p, is_causal=is_causal)
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
    if is_causal:
        future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(future, -math.inf)
    return F.dropout(scores.softmax(-1), dropout_p) @ v


class AttentionBlock(nn.Module):
    """benchmarks/attention_block.h with its three projections in one."""

    def __init__(self, hidden, heads, dropout):
        super().__init__()
        self.qkv = nn.Linear(hidden, 3 * hidden)
        self.dense = nn.Linear(hidden, hidden)
        self.layer_norm = nn.LayerNorm(hidden)
        self.heads, self.dropout = heads, dropout

    def forward(self, x):
        batch, seq, hidden = x.shape
        q, k, v = self.qkv(x).view(batch, seq, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        y = attend(q, k, v, dropout_p=self.dropout if self.training else 0.0)
        y = self.dense(y.transpose(1, 2).reshape(batch, seq, hidden))
        return self.layer_norm(F.dropout(y, self.dropout, self.training) + x)


def rotation_length(bytes_of_one_set):
    """bench::rotation_length."""
    wanted = (128 << 20) // max(bytes_of_one_set, 1) + 1
    return max(2, min(8, 1 << (wanted - 1).bit_length()))


def compiled(module, variant):
    """`module`, or a function; `variant`: eager, or a mode of torch.compile ("default": its own)."""
    if variant == "eager":
        return module
    return torch.compile(module, mode=None if variant == "default" else variant, dynamic=False)


def reset_compiler():
    """Forgets what was compiled; what is used after all is compiled again."""
    if hasattr(torch, "_dynamo"):
        torch._dynamo.reset()
        # Variants of one module differ by object: each is one more entry of the same code.
        torch._dynamo.config.cache_size_limit = 64


def attention_step(device, dtype, shape, options, backend, variant):
    """The step(i) of one variant. Gradients: of every parameter and of the input."""
    batch, seq = shape
    train = options["mode"] == "train"
    torch.manual_seed(options["seed"])
    block = AttentionBlock(options["hidden"], options["heads"], options["dropout"])
    block = block.to(device, dtype).train(train)
    run = compiled(block, variant)
    size = (batch, seq, options["hidden"])
    per_set = (2 if train else 1) * math.prod(size) * torch.finfo(dtype).bits // 8
    sets = [(torch.randn(size, device=device, dtype=dtype, requires_grad=train),
             torch.randn(size, device=device, dtype=dtype))
            for _ in range(rotation_length(per_set))]
    parameters = list(block.parameters())
    graphs = variant not in ("eager", "default")

    def step(i):
        x, cotangent = sets[i % len(sets)]
        if graphs:
            torch.compiler.cudagraph_mark_step_begin()
        with attention_backend(backend):
            if not train:
                with torch.no_grad():
                    run(x)
                return
            torch.autograd.grad(run(x), [*parameters, x], cotangent)
    return step


# --- GPT-2 ------------------------------------------------------------------------------------------

class Gpt2Attention(nn.Module):
    def __init__(self, hidden, heads):
        super().__init__()
        self.qkv = nn.Linear(hidden, 3 * hidden)
        self.heads = heads

    def forward(self, x):
        batch, seq, hidden = x.shape
        q, k, v = (y.view(batch, seq, self.heads, -1).transpose(1, 2)
                   for y in self.qkv(x).split(hidden, -1))
        return attend(q, k, v, is_causal=True).transpose(1, 2).reshape(batch, seq, hidden)


class Gpt2Block(nn.Module):
    def __init__(self, hidden, heads):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(hidden), nn.LayerNorm(hidden)
        self.attn = Gpt2Attention(hidden, heads)
        self.proj = nn.Linear(hidden, hidden)
        self.up, self.down = nn.Linear(hidden, 4 * hidden), nn.Linear(4 * hidden, hidden)

    def forward(self, x):
        x = x + self.proj(self.attn(self.norm1(x)))
        return x + self.down(F.gelu(self.up(self.norm2(x)), approximate="tanh"))


class Gpt2(nn.Module):
    """benchmarks/gpt2_model.h, its three projections in one."""

    def __init__(self, vocabulary, context, layers, hidden, heads):
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, hidden)
        self.positions = nn.Embedding(context, hidden)
        self.blocks = nn.ModuleList(Gpt2Block(hidden, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(hidden)

    def initialize(self):
        residual = 0.02 / math.sqrt(2 * len(self.blocks))
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                adds = name.endswith((".proj.weight", "down.weight"))
                nn.init.normal_(parameter, 0, residual if adds else 0.02)
            elif "norm" not in name:
                nn.init.zeros_(parameter)

    def load_tenon(self, weights):
        """The parameters of bench_gpt2 --dump-weights."""
        state = {name: tensor for name, tensor in weights.items() if "_proj." not in name}
        for i in range(len(self.blocks)):
            for kind in ("weight", "bias"):
                prefix = f"blocks.{i}.attn."
                state[f"{prefix}qkv.{kind}"] = torch.cat(
                    [weights[f"{prefix}{part}_proj.{kind}"] for part in "qkv"])
        self.load_state_dict(state)

    def forward(self, tokens, targets):
        x = self.tokens(tokens) + self.positions.weight[:tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        logits = F.linear(self.norm(x), self.tokens.weight)
        return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten())


class MasterWeights:
    """AdamW and clipping as bench_gpt2 has them: on the parameters themselves, or, for 16-bit ones, on
    float32 copies."""

    def __init__(self, model, lr):
        named = list(model.named_parameters())
        self.params = [parameter for _, parameter in named]
        self.copies = self.params[0].dtype != torch.float32
        self.masters = [p.detach().float() for p in self.params] if self.copies else self.params
        decays = [not (name.endswith("bias") or "norm" in name) for name, _ in named]
        groups = [{"params": [m for m, d in zip(self.masters, decays) if d], "weight_decay": 0.1},
                  {"params": [m for m, d in zip(self.masters, decays) if not d],
                   "weight_decay": 0.0}]
        fused = {"fused": True} if self.params[0].is_cuda else {}
        self.adamw = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95), eps=1e-8, **fused)

    def set_lr(self, lr):
        for group in self.adamw.param_groups:
            group["lr"] = lr

    def step(self, clips=True):
        if clips:
            torch.nn.utils.clip_grad_norm_(self.params, 1.0)
        if self.copies:
            for master in self.masters:
                master.grad = torch.empty_like(master) if master.grad is None else master.grad
            torch._foreach_copy_([m.grad for m in self.masters], [p.grad for p in self.params])
        self.adamw.step()
        with torch.no_grad():
            if self.copies:
                torch._foreach_copy_(self.params, self.masters)
        for param in self.params:
            param.grad = None


class Gpt2Training:
    """precision: float32, autocast (float32 parameters) or master (16-bit ones with float32 copies)."""

    def __init__(self, device, config, precision, backend, variant, weights=None, seed=0):
        torch.manual_seed(seed)
        reset_compiler()
        model = Gpt2(**config)
        if weights is None:
            model.initialize()
        else:
            model.load_tenon(weights)
        model = model.to(device, torch.bfloat16 if precision == "master" else torch.float32)
        self.device, self.backend = device, backend
        self.autocasts = precision == "autocast"
        self.optimizer = MasterWeights(model, 6e-4)
        self.run = compiled(model, variant)
        self.graphs = variant not in ("eager", "default")

    def step(self, tokens, targets):
        if self.graphs:
            torch.compiler.cudagraph_mark_step_begin()
        casts = (torch.autocast(self.device.type, dtype=torch.bfloat16) if self.autocasts
                 else contextlib.nullcontext())
        with attention_backend(self.backend):
            with casts:
                loss = self.run(tokens, targets)
            loss.backward()
        self.optimizer.step()
        return loss.detach()


class TokenStream:
    """benchmarks/token_stream.h: the bytes of a file, 16-bit numbers of a .bin, or random tokens."""

    def __init__(self, path, vocabulary, count, seed=0):
        if path is None:
            generator = torch.Generator().manual_seed(seed)
            self.tokens = torch.randint(vocabulary, (count,), generator=generator)
            return
        with open(path, "rb") as file:
            content = file.read()
        if path.endswith(".bin"):
            self.tokens = torch.tensor([content[i] | content[i + 1] << 8
                                        for i in range(0, len(content) - 1, 2)])
        else:
            self.tokens = torch.tensor(list(content))

    def batch(self, step, batch, seq, device):
        starts = [(step * batch + row) * seq % (len(self.tokens) - seq) for row in range(batch)]
        inputs = torch.stack([self.tokens[s:s + seq] for s in starts])
        targets = torch.stack([self.tokens[s + 1:s + seq + 1] for s in starts])
        return inputs.to(device), targets.to(device)

"""The GPT of examples/gpt_model.h in PyTorch, under the same parameter names, and what is needed to
train it on the same numbers: Tenon's checkpoints, batches and settings.

Works with PyTorch 1.13 and later, and NumPy.
"""

import base64
import json
import math
import os

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

DTYPES = {"float32": (torch.float32, np.float32), "float64": (torch.float64, np.float64),
          "int64": (torch.int64, np.int64)}


def attention(q, k, v):
    """Causal attention of (batch, head, seq, size), by PyTorch's own kernel where it has one."""
    if hasattr(F, "scaled_dot_product_attention"):
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
    future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
    return scores.masked_fill(future, -math.inf).softmax(-1) @ v


class CausalSelfAttention(nn.Module):
    def __init__(self, hidden, heads):
        super().__init__()
        self.q_proj = nn.Linear(hidden, hidden)
        self.k_proj = nn.Linear(hidden, hidden)
        self.v_proj = nn.Linear(hidden, hidden)
        self.out_proj = nn.Linear(hidden, hidden)
        self.heads = heads

    def forward(self, x):
        def split(y):
            return y.view(y.shape[0], y.shape[1], self.heads, -1).transpose(1, 2)
        y = attention(split(self.q_proj(x)), split(self.k_proj(x)), split(self.v_proj(x)))
        return self.out_proj(y.transpose(1, 2).reshape(x.shape))


class Mlp(nn.Module):
    def __init__(self, hidden):
        super().__init__()
        self.up = nn.Linear(hidden, 4 * hidden)
        self.down = nn.Linear(4 * hidden, hidden)

    def forward(self, x):
        return self.down(F.gelu(self.up(x)))


class Block(nn.Module):
    def __init__(self, hidden, heads):
        super().__init__()
        self.norm1 = nn.LayerNorm(hidden)
        self.attn = CausalSelfAttention(hidden, heads)
        self.norm2 = nn.LayerNorm(hidden)
        self.mlp = Mlp(hidden)

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Gpt(nn.Module):
    """Without dropout: the comparisons are made where both programs compute the same numbers."""

    def __init__(self, vocabulary, context, layers, hidden, heads):
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, hidden)
        self.positions = nn.Embedding(context, hidden)
        self.blocks = nn.ModuleList(Block(hidden, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(hidden)
        self.head = nn.Linear(hidden, vocabulary, bias=False)

    def initialize(self):
        """examples/gpt_model.h, Gpt::initialize, from PyTorch's generator."""
        residual = 0.02 / math.sqrt(2 * len(self.blocks))
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                adds = name.endswith(("out_proj.weight", "down.weight"))
                nn.init.normal_(parameter, 0, residual if adds else 0.02)
            elif name.endswith(("proj.bias", "up.bias", "down.bias")):
                nn.init.zeros_(parameter)

    def forward(self, tokens):
        x = self.tokens(tokens) + self.positions.weight[:tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def next_token_loss(logits, targets):
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def make_adamw(model, lr, weight_decay=0.1):
    """The trainer's optimizer: no decay of biases and norms."""
    def decays(name):
        return not (name.endswith(".bias") or "norm" in name)
    named = list(model.named_parameters())
    groups = [{"params": [p for n, p in named if decays(n)], "weight_decay": weight_decay},
              {"params": [p for n, p in named if not decays(n)], "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95), eps=1e-8)


def training_step(model, optimizer, inputs, targets, max_norm=1.0):
    """Returns the loss before the update and the gradient norm before clipping."""
    optimizer.zero_grad(set_to_none=True)
    loss = next_token_loss(model(inputs), targets)
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)
    optimizer.step()
    return loss.item(), norm.item()


def warmup_cosine(step, lr, warmup, total, lowest):
    """nn/lr_schedule.h, WarmupCosine."""
    if step < warmup:
        return lr * (step + 1) / warmup
    progress = min((step - warmup) / max(total - warmup, 1), 1.0)
    return lowest + (lr - lowest) * 0.5 * (1 + math.cos(math.pi * progress))


def read_checkpoint(path):
    """(config, tensors by name) of a Tenon checkpoint; the grammar is in nn/checkpoint.h."""
    with open(path, encoding="utf-8") as file:
        manifest = json.load(file)
    sides = {}
    for key, entry in manifest.get("files", {}).items():
        with open(os.path.join(os.path.dirname(path), entry["path"]), "rb") as file:
            content = file.read()
        header = 8 + int.from_bytes(content[:8], "little")
        sides[key] = content[header:]
    tensors = {}
    for name, entry in manifest["tensors"].items():
        dtype, array_type = DTYPES[entry["dtype"]]
        if "data" in entry:
            tensors[name] = torch.tensor([float(v) if isinstance(v, str) else v
                                          for v in entry["data"]],
                                         dtype=dtype).reshape(entry["shape"])
            continue
        if "base64" in entry:
            raw = base64.b64decode(entry["base64"])
        else:
            begin, end = entry["data_offsets"]
            raw = sides[entry["file"]][begin:end]
        array = np.frombuffer(raw, dtype=array_type).copy()
        tensors[name] = torch.from_numpy(array).reshape(entry["shape"])
    return manifest["config"], tensors


def with_prefix(tensors, prefix):
    return {name[len(prefix):]: tensor for name, tensor in tensors.items()
            if name.startswith(prefix)}


MASK32 = 0xFFFFFFFF


def philox_word(counter, key):
    """The first output word of Philox4x32-10 (Salmon et al., SC 2011)."""
    c, k = list(counter), list(key)
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(p1 >> 32) ^ c[1] ^ k[0], p1 & MASK32, (p0 >> 32) ^ c[3] ^ k[1], p0 & MASK32]
        k = [(k[0] + 0x9E3779B9) & MASK32, (k[1] + 0xBB67AE85) & MASK32]
    return c[0]


class CharText:
    """examples/char_text.h."""

    def __init__(self, path, seq):
        with open(path, "rb") as file:
            text = file.read()
        self.seq = seq
        self.vocabulary = sorted(set(text))
        number = {byte: i for i, byte in enumerate(self.vocabulary)}
        tokens = torch.tensor([number[byte] for byte in text])
        held_out = len(text) // 10
        self.train, self.validation = tokens[:-held_out], tokens[-held_out:]

    def windows(self, tokens, starts):
        inputs = torch.stack([tokens[s:s + self.seq] for s in starts])
        targets = torch.stack([tokens[s + 1:s + self.seq + 1] for s in starts])
        return inputs, targets

    def training_batch(self, seed, step, batch):
        places = len(self.train) - self.seq
        key = (seed & MASK32, (seed >> 32) ^ 0x74657874)
        starts = [philox_word((step & MASK32, step >> 32, row, 0), key) * places >> 32
                  for row in range(batch)]
        return self.windows(self.train, starts)

    def validation_loss(self, model, batch):
        count = (len(self.validation) - 1) // self.seq
        total = 0.0
        with torch.no_grad():
            for first in range(0, count, batch):
                rows = range(first, min(first + batch, count))
                inputs, targets = self.windows(self.validation, [r * self.seq for r in rows])
                total += next_token_loss(model(inputs), targets).item() * len(rows)
        return total / count

#!/usr/bin/env python3
"""Records 100 AdamW steps of a 2-layer GPT in PyTorch, float32, without dropout.

  tools/record_gpt_losses.py tests/data/gpt/losses.json

The checkpoint holds the initial weights ("model.*"), the batches ("inputs", "targets"; step i takes
batch i modulo their number), and what PyTorch made of them ("losses", "grad_norms").
tests/nn/gpt_losses_test.cpp makes the same steps.
"""

import sys

import torch
from export_checkpoint import write_checkpoint
from torch_gpt import Gpt, make_adamw, training_step, warmup_cosine

CONFIG = {"vocabulary": 29, "context": 16, "layers": 2, "hidden": 32, "heads": 4}
SETTINGS = {"steps": 100, "lr": 3e-3, "warmup_steps": 10, "min_lr": 3e-4, "weight_decay": 0.1,
            "max_grad_norm": 1.0}
BATCHES, BATCH = 10, 4


def main():
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = Gpt(**CONFIG)
    model.initialize()
    # Sequences with a rule, so that there is something to learn: each token follows from two.
    sequences = torch.randint(CONFIG["vocabulary"], (BATCHES, BATCH, CONFIG["context"] + 1))
    for i in range(2, CONFIG["context"] + 1):
        sequences[..., i] = (sequences[..., i - 1] + 3 * sequences[..., i - 2]) % CONFIG["vocabulary"]
    inputs, targets = sequences[..., :-1].contiguous(), sequences[..., 1:].contiguous()
    state = {f"model.{name}": tensor.clone() for name, tensor in model.state_dict().items()}

    optimizer = make_adamw(model, SETTINGS["lr"], SETTINGS["weight_decay"])
    losses, norms = [], []
    for step in range(SETTINGS["steps"]):
        rate = warmup_cosine(step, SETTINGS["lr"], SETTINGS["warmup_steps"], SETTINGS["steps"],
                             SETTINGS["min_lr"])
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss, norm = training_step(model, optimizer, inputs[step % BATCHES],
                                   targets[step % BATCHES], SETTINGS["max_grad_norm"])
        losses.append(loss)
        norms.append(norm)
    state.update(inputs=inputs, targets=targets,
                 losses=torch.tensor(losses, dtype=torch.float64),
                 grad_norms=torch.tensor(norms, dtype=torch.float64))
    write_checkpoint(sys.argv[1], state,
                     metadata={"producer": f"PyTorch {torch.__version__}"},
                     config={**CONFIG, **SETTINGS})
    print(f"loss {losses[0]:.4f} -> {losses[-1]:.4f}, largest gradient norm {max(norms):.3f}")


if __name__ == "__main__":
    main()

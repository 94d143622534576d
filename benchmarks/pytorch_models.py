"""The models of bench_models and of the outsiders' programs in PyTorch: weights and references that both
sides read, and steps to time. Needs torchvision, transformers and safetensors."""

import copy
import os

import torch
from torch.nn import functional as F

import pytorch_workloads as work

BERT_SIZES = {"bert_base": {"layers": 12, "hidden": 768, "heads": 12, "mlp": 3072},
              "minilm": {"layers": 6, "hidden": 384, "heads": 12, "mlp": 1536}}
VOCABULARY = 30522
IMAGE_MODELS = ("resnet50", "wide_resnet50_2")


def make(name):
    """The model in float32 on the CPU, in evaluation mode."""
    torch.manual_seed(0)
    if name in IMAGE_MODELS:
        import torchvision
        return getattr(torchvision.models, name)().eval()
    from transformers import BertConfig, BertModel
    size = BERT_SIZES[name]
    config = BertConfig(vocab_size=VOCABULARY, num_hidden_layers=size["layers"],
                        hidden_size=size["hidden"], num_attention_heads=size["heads"],
                        intermediate_size=size["mlp"])
    config._attn_implementation = "sdpa"
    return BertModel(config, add_pooling_layer=False).eval()


def save(name, model, folder):
    """(weights, reference): safetensors of the model, and of inputs with its output in float32."""
    from safetensors.torch import save_file
    weights = os.path.join(folder, f"{name}.safetensors")
    reference = os.path.join(folder, f"{name}_reference.safetensors")
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, weights)
    with torch.no_grad():
        if name in IMAGE_MODELS:
            x = torch.randn(2, 3, 224, 224)
            tensors = {"input": x, "output": model(x).contiguous()}
        else:
            ids = torch.randint(0, VOCABULARY, (3, 50))
            mask = torch.ones_like(ids)
            mask[1, 30:] = 0
            mask[2, 7:] = 0
            hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state
            tensors = {"input_ids": ids, "attention_mask": mask, "hidden": hidden.contiguous()}
    save_file(tensors, reference)
    return weights, reference


def own_error(name, model, reference, device, dtype):
    """The largest distance of PyTorch's own output in `dtype` from the reference."""
    from safetensors.torch import load_file
    tensors = {key: value.to(device) for key, value in load_file(reference).items()}
    with torch.no_grad():
        if name in IMAGE_MODELS:
            y, wanted = model(tensors["input"].to(dtype)), tensors["output"]
        else:
            y = model(input_ids=tensors["input_ids"], attention_mask=tensors["attention_mask"])
            y, wanted = y.last_hidden_state, tensors["hidden"]
    return (y.float() - wanted).abs().max().item()


def draw_inputs(name, shape, device, dtype, padding=0):
    """Sets of inputs that rotate; images are channels-last."""
    generator = torch.Generator().manual_seed(1)
    sets = []
    for _ in range(2 if name in IMAGE_MODELS else 8):
        if name in IMAGE_MODELS:
            batch, size = shape
            x = torch.randn(batch, 3, size, size, generator=generator)
            sets.append((x.to(device, dtype).to(memory_format=torch.channels_last),))
            continue
        batch, seq = shape
        mask = torch.ones(batch, seq, dtype=torch.int64)
        mask[:, seq - seq * padding // 100:] = 0
        ids = torch.randint(0, VOCABULARY, (batch, seq), generator=generator)
        sets.append((ids.to(device), mask.to(device)))
    return sets


def call(name, model, inputs):
    if name in IMAGE_MODELS:
        return model(*inputs)
    return model(input_ids=inputs[0], attention_mask=inputs[1]).last_hidden_state


def placed(name, model, device, dtype):
    model = copy.deepcopy(model).to(device, dtype)
    return model.to(memory_format=torch.channels_last) if name in IMAGE_MODELS else model


def forward_step(name, model, variant, sets):
    """step(i) of evaluation."""
    model = work.compiled(model.eval(), variant)

    def step(i):
        with torch.no_grad():
            return call(name, model, sets[i % len(sets)])
    return step


def training_step(name, model, variant, sets):
    """step(i): images by cross entropy and SGD with momentum; BERT by the mean square of its output and
    AdamW on float32 copies, gradients clipped to a norm of 1."""
    parameters = list(model.train().parameters())
    batch = sets[0][0].shape[0]
    labels = (torch.arange(batch) % 1000).to(parameters[0].device)

    def loss_of(inputs):
        y = call(name, model, inputs).float()
        return F.cross_entropy(y, labels) if name in IMAGE_MODELS else y.square().mean()

    loss_of = work.compiled(loss_of, variant)
    if name in IMAGE_MODELS:
        optimizer = torch.optim.SGD(parameters, lr=0.01, momentum=0.9, fused=True)

        def step(i):
            loss = loss_of(sets[i % len(sets)])
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            return loss
        return step
    masters = [p.detach().float().clone() for p in parameters]
    optimizer = torch.optim.AdamW(masters, lr=1e-4, fused=True)

    def master_step(i):
        loss = loss_of(sets[i % len(sets)])
        loss.backward()
        for parameter, master in zip(parameters, masters):
            master.grad = parameter.grad.float()
            parameter.grad = None
        torch.nn.utils.clip_grad_norm_(masters, 1.0, foreach=True)
        optimizer.step()
        with torch.no_grad():
            torch._foreach_copy_(parameters, masters)
        return loss
    return master_step

"""What the frozen language model of SSF costs: memory of the loss, rate of a training step.

    python benchmarks/language_cost.py --loss                     # Qwen3's vocabulary, any machine
    python benchmarks/language_cost.py --rate --llm smollm2       # 2 CPU cores: `hoc fetch smollm2`
    python benchmarks/language_cost.py --rate --shape qwen3-4b --device cuda --batch 64
    python benchmarks/language_cost.py --count --shape qwen3-4b --batch 64 --tokens 40   # no GPU

`--loss` compares the chunked loss with the plain one (all logits, F.cross_entropy): peak memory
above what was there before, each in a process of its own, and the values.

`--rate` compares a whole training step of HocSLM (NW-UCLA's shape, HGLNet in bf16) with the
straightforward way to write it: the same model in float32 (`--plain-dtype`), captions padded to the
longest of the batch behind the prefix, logits at every position, labels of -100 where nothing is
scored, as transformers computes its loss. Both take turns; a ratio is the median of the ratios of
each round. Captions are made-up words of lengths spread as captions' are (`--tokens` on average).
With `--shape qwen3-4b` the model has Qwen3-4B's shape and random weights; with `--tflops` the share
of the compute limit is told: 2 x (parameters read) x tokens forward and as much for the gradient of
the inputs; weights get none.

`--count` measures nothing: it runs the language model's part of that step forward on fake tensors
of a GPU and adds up its weights, what is kept for the gradient, and the products.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the name torch's users know
from made_up_skeletons import SHAPES  # beside this program
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode
from train_speed import cpu_name

from datasets_build.manifest import environment
from training.build import build_model
from training.config import ModelConfig, OptimConfig
from training.methods.hocslm import HocSLMMethod
from training.models import language_model
from training.models.caption_loss import caption_loss
from training.models.language_model import FrozenLanguageModel
from training.models.language_model_files import LoadedModel
from training.models.ssf import SSF
from training.optim import make_optimizer
from training.seeding import seeded
from training.skeleton_data import SkeletonBatch

QWEN3_4B = {
    "vocab_size": 151936,
    "hidden_size": 2560,
    "intermediate_size": 9728,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "tie_word_embeddings": True,
}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


# --- memory of the loss --------------------------------------------------------------------------


def loss_problem(args: argparse.Namespace) -> tuple[Tensor, nn.Linear, Tensor, Tensor]:
    """Hidden states, a head of Qwen3-4B's size, tokens and their weights."""
    torch.manual_seed(0)
    num = args.batch * args.tokens
    dtype = DTYPES[args.dtype]
    head = nn.Linear(2560, 151936, bias=False, dtype=dtype, device=args.device)
    head.requires_grad_(False)
    hidden = torch.randn(num, 2560, dtype=dtype, device=args.device).requires_grad_()
    target = torch.randint(151936, (num,), device=args.device)
    return hidden, head, target, torch.full((num,), 1 / num, device=args.device)


def plain_loss(hidden: Tensor, head: nn.Linear, target: Tensor, weight: Tensor) -> Tensor:
    """All logits at once."""
    losses = F.cross_entropy(head(hidden).float(), target, reduction="none")
    return (losses * weight).sum()


LOSSES: dict[str, Callable[..., Tensor]] = {"plain": plain_loss, "chunked": caption_loss}


def peak_of_loss(args: argparse.Namespace, name: str, answer: Any) -> None:
    """In a process of its own: value, gradient's norm, bytes above those before."""
    problem = loss_problem(args)
    is_cuda = args.device == "cuda"
    if is_cuda:
        torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated() if is_cuda else _peak_bytes()
    loss = LOSSES[name](*problem)
    loss.backward()
    after = torch.cuda.max_memory_allocated() if is_cuda else _peak_bytes()
    grad = problem[0].grad
    assert grad is not None, "hidden states get a gradient"
    answer.put((float(loss.detach()), float(grad.float().norm()), after - before))


def _peak_bytes() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def compare_losses(args: argparse.Namespace) -> dict[str, Any]:
    """Both ways, one after the other."""
    context = multiprocessing.get_context("spawn")
    found: dict[str, Any] = {}
    for name in LOSSES:
        answer = context.Queue()
        process = context.Process(target=peak_of_loss, args=(args, name, answer))
        process.start()
        value, norm, peak = answer.get()
        process.join()
        found[name] = {"loss": value, "gradient norm": norm, "peak bytes": peak}
    plain, chunked = found["plain"], found["chunked"]
    found["memory share"] = round(chunked["peak bytes"] / plain["peak bytes"], 4)
    found["relative difference"] = abs(chunked["loss"] - plain["loss"]) / plain["loss"]
    return found


# --- rate of a training step ---------------------------------------------------------------------


def frozen_model(args: argparse.Namespace, dtype: torch.dtype) -> FrozenLanguageModel:
    """The model asked for; Qwen3-4B's shape with random weights and the bundled tokenizer."""
    if args.shape is None:
        return FrozenLanguageModel.load(args.llm, dtype=dtype, device=args.device)
    from transformers import Qwen3Config, Qwen3ForCausalLM

    tokenizer = tiny_tokenizer()
    with torch.device(args.device):
        torch.set_default_dtype(dtype)
        model = Qwen3ForCausalLM(Qwen3Config(**QWEN3_4B)).eval()
        torch.set_default_dtype(torch.float32)
    loaded = LoadedModel(model, tokenizer, "qwen3-4b shape", None, Path(), None)
    return FrozenLanguageModel(loaded, gradient_checkpointing=args.gradient_checkpointing)


@cache
def tiny_tokenizer() -> Any:
    """The bundled model's."""
    return FrozenLanguageModel.load("tiny")._tokenizer


class PlainLanguageModel(FrozenLanguageModel):
    """The straightforward way: padded rows, all logits."""

    def caption_loss(self, prefix: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        """Mean over all tokens, as transformers has it."""
        decoder, embedding, head = self.modules_and_head()
        spoken = embedding(tokens)
        sequence = torch.cat((prefix.to(spoken.dtype), spoken), dim=1)  # (N, P+L, D)
        nothing = tokens.new_full(prefix.shape[:2], -100)
        real = mask.to(tokens.device)
        labels = torch.cat((nothing, tokens.masked_fill(~real, -100)), dim=1)
        attention = torch.cat((torch.ones_like(nothing), real.long()), dim=1)
        with torch.autocast(prefix.device.type, enabled=False):
            output = decoder(inputs_embeds=sequence, attention_mask=attention, use_cache=False)
            logits = head(output.last_hidden_state).float()  # (N, P+L, W)
        return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())


def make_step(args: argparse.Namespace, model: FrozenLanguageModel, has_bf16: bool) -> Any:
    """One training step on a batch, and its tokens."""
    shape = SHAPES["nw-ucla"]
    with seeded(0, "weights"):
        encoder = build_model(ModelConfig(), num_classes=shape.num_classes, skeleton=shape.skeleton)
        ssf = SSF(encoder.num_features, model.width)  # type: ignore[arg-type]
        method = HocSLMMethod(encoder, ssf, model, lambda_gen=0.5, lambda_cls=1.0).to(args.device)
    optim = OptimConfig(name="adamw", lr=1e-4, weight_decay=0.01)
    optimizer = make_optimizer(method.param_groups(optim), optim)
    method.train()

    def step(batch: SkeletonBatch) -> None:
        with torch.autocast(args.device, torch.bfloat16, enabled=has_bf16):
            output = method(batch, torch.Generator())
        output.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if args.device == "cuda":
            torch.cuda.synchronize()

    return step


def make_batch(args: argparse.Namespace, model: FrozenLanguageModel, seed: int) -> SkeletonBatch:
    """Random skeletons, and captions of random words, log-normal in length."""
    shape = SHAPES["nw-ucla"]
    rng = np.random.default_rng(seed)
    counts = rng.lognormal(np.log(args.tokens), args.spread, args.batch)
    counts = np.clip(counts.round().astype(int), 2, 4 * args.tokens)
    words = model.modules_and_head()[2].out_features
    mask = torch.arange(int(counts.max())) < torch.from_numpy(counts)[:, None]
    tokens = torch.from_numpy(rng.integers(0, words, mask.shape)) * mask
    x = torch.from_numpy(
        rng.standard_normal((args.batch, 1, shape.num_frames, shape.skeleton.num_joints, 3))
    )
    label = torch.from_numpy(rng.integers(0, shape.num_classes, args.batch))
    parts = (x.float(), label, label, tokens)
    return SkeletonBatch(*(part.to(args.device) for part in parts), mask)  # type: ignore[arg-type]


def compare_rates(args: argparse.Namespace) -> dict[str, Any]:
    """Both ways in turns."""
    own = frozen_model(args, DTYPES[args.dtype])
    steps = {"hoc": make_step(args, own, True)}
    if args.plain_dtype != "no":
        args.gradient_checkpointing = False
        plain = frozen_model(args, DTYPES[args.plain_dtype])
        plain.__class__ = PlainLanguageModel
        steps["plain"] = make_step(args, plain, args.plain_dtype == "bf16")
    times: dict[str, list[float]] = {name: [] for name in steps}
    num_tokens = []
    if args.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    for round_ in range(-args.warm, args.rounds):
        batch = make_batch(args, own, round_ + args.warm)
        for name, step in steps.items():
            began = time.perf_counter()
            step(batch)
            if round_ >= 0:
                times[name].append(time.perf_counter() - began)
        if round_ >= 0:
            assert batch.token_mask is not None, "made above"
            num_tokens.append(int(batch.token_mask.sum()) + 8 * args.batch)  # read: 9 + tokens - 1
    found: dict[str, Any] = {
        name: {
            "samples/s": round(args.batch / statistics.median(values), 2),
            "most samples/s": round(args.batch / min(values), 2),
        }
        for name, values in times.items()
    }
    if "plain" in times:
        ratios = [b / a for a, b in zip(times["hoc"], times["plain"], strict=True)]
        found["times as fast"] = round(statistics.median(ratios), 2)
    found["tokens a sample, prefix included"] = statistics.mean(num_tokens) / args.batch
    if args.device == "cuda":
        found["peak GB"] = round(torch.cuda.max_memory_allocated() / 1e9, 1)
    if args.tflops:
        decoder, embedding, _ = own.modules_and_head()
        weights = sum(p.numel() for p in decoder.parameters())
        weights -= sum(p.numel() for p in embedding.parameters())  # looked up
        flops = 4 * weights * statistics.mean(num_tokens)  # forward, gradient of the inputs
        head = own.modules_and_head()[2].weight.numel()
        flops += 4 * head * (statistics.mean(num_tokens) - 8 * args.batch)
        rate = flops / statistics.median(times["hoc"])
        found["share of the compute limit"] = round(rate / (args.tflops * 1e12), 3)
    return found


# --- memory and products, counted -----------------------------------------------------------------


def count(args: argparse.Namespace) -> dict[str, Any]:
    """What the loss of one batch with captions of `--tokens` each holds and computes."""
    args = argparse.Namespace(**vars(args) | {"device": "cuda"})
    num, length = args.batch, args.tokens
    Tensor.pin_memory = lambda self: self  # type: ignore[method-assign,assignment]
    language_model._counts = lambda mask: np.full(num, length)  # a fake mask has no values
    tiny_tokenizer()  # read with values
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = frozen_model(args, DTYPES[args.dtype])
        model.__dict__["shares_rows"] = True  # tried with values
        weights = {
            weight.untyped_storage()._cdata: weight.untyped_storage().nbytes()
            for module in model.modules_and_head()
            for weight in module.parameters()
        }
        kept: dict[int, int] = {}
        alive = []  # so that no storage's address is used again

        def keep(x: Tensor) -> Tensor:
            storage = x.untyped_storage()
            if storage._cdata not in weights:
                kept[storage._cdata] = storage.nbytes()
                alive.append(x)
            return x

        prefix = torch.empty(num, 9, model.width, device=args.device, requires_grad=True)
        tokens = torch.zeros(num, length, dtype=torch.long, device=args.device)
        with saved_tensors_hooks(keep, lambda x: x), FlopCounterMode(display=False) as counter:
            model.caption_loss(prefix, tokens, torch.ones(num, length, dtype=torch.bool))
    head = 2 * num * length * model.modules_and_head()[2].weight.numel()
    layers = counter.get_total_flops() - 2 * head  # the head's gradient is formed with its logits
    passes = 3 if args.gradient_checkpointing else 2
    return {
        "weights GB": round(sum(weights.values()) / 1e9, 1),
        "kept for the gradient GB": round(sum(kept.values()) / 1e9, 1),
        "TFLOP a step": round((passes * layers + 2 * head) / 1e12, 1),
    }


def main() -> None:
    """Parse, measure, print a line of JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--loss", action="store_true")
    parser.add_argument("--rate", action="store_true")
    parser.add_argument("--count", action="store_true")
    parser.add_argument("--llm", default="smollm2")
    parser.add_argument("--shape", choices=["qwen3-4b"])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=24, help="of a caption, the median")
    parser.add_argument("--spread", type=float, default=0.35, help="of the lengths' logarithm")
    parser.add_argument("--dtype", choices=list(DTYPES), default="bf16")
    parser.add_argument("--plain-dtype", choices=["no", *DTYPES], default="fp32")
    parser.add_argument("--gradient-checkpointing", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--warm", type=int, default=2)
    parser.add_argument("--tflops", type=float, help="the device's limit, for the share")
    args = parser.parse_args()
    if args.count and args.shape is None:
        parser.error("--count is for a model without weights; give --shape")
    if args.threads:
        torch.set_num_threads(args.threads)
    told = {"settings": vars(args).copy(), "cpu": cpu_name()}
    told |= {"commit": environment()["git_commit"], "torch": torch.__version__}
    if args.device == "cuda":
        told["gpu"] = torch.cuda.get_device_name()
    if args.loss:
        told["loss"] = compare_losses(args)
    if args.count:
        told["count"] = count(args)
    if args.rate:
        told["rate"] = compare_rates(args)
    print(json.dumps(told))


if __name__ == "__main__":
    main()

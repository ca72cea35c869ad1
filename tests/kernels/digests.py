"""Digests of the kernels' outputs on fixed small inputs, recorded per instruction set.

    python -m tests.kernels.digests            # compare with digests.json, on the set in use
    python -m tests.kernels.digests --record   # after raising fulmen.kernels.REVISION

Recording covers the set in use; FULMEN_ISA names another. Each set has to be recorded on a machine
that has it; until then its test is skipped.
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from fulmen.kernels import (
    REVISION,
    ExpertWeights,
    KVPages,
    LightningCarry,
    PackedExperts,
    Scoring,
    add_residual,
    attend,
    embed,
    gated_norm,
    head,
    lightning_attention,
    linear,
    mixture_of_experts,
    native,
    residual_norm,
    rms_norm,
    rotary_angles,
    rotate,
    route,
    softmax_attention,
    target_logprobs,
    write_pages,
)
from tests.kernels.helpers import FORMATS, packed, rounds_inputs

FILE = Path(__file__).with_name("digests.json")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def values(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return numbers from -2 to 2 by integer arithmetic alone, so that no random generator of any
    version takes part."""
    count = torch.Size(shape).numel()
    mixed = torch.arange(count, dtype=torch.int64) + seed * 1_000_003
    for _ in range(3):
        mixed = ((mixed >> 16) ^ mixed) * 0x45D9F3B & 0xFFFFFFFF
    return ((mixed >> 8).double() / 2**22 - 2).view(shape).to(dtype)


def products() -> Iterator[tuple[str, Tensor]]:
    """Run linear, head and experts in every format."""
    for name, dtype in DTYPES.items():
        for format in FORMATS:
            for bits in (16, 8) if rounds_inputs(format) else (16,):
                key = f"{name} x {format}, {bits} bits"
                weight = packed(values(100, 320, seed=1) / 8, format)
                x = values(130, 320, seed=2, dtype=dtype)
                for rows in (1, 7, 130):
                    yield f"linear {key}, {rows} rows", linear(x[:rows], weight, input_bits=bits)
                yield (
                    f"linear {key}, silu to float32",
                    linear(x, weight, activation="silu", out_dtype=torch.float32, input_bits=bits),
                )
                targets = torch.arange(130) % 100
                found = head(x, weight, targets=targets, top_k=5, input_bits=bits)
                for field, part in found._asdict().items():
                    if part is not None:
                        yield f"head {key}, {field}", part
                yield (
                    f"target_logprobs {key}",
                    target_logprobs(x, weight, targets, input_bits=bits),
                )
                yield f"experts {key}", experts(dtype, format, bits)
        plain = values(100, 320, seed=1, dtype=dtype) / 8
        for activation in ("none", "sigmoid"):
            x = values(9, 320, seed=2, dtype=dtype)
            yield f"linear {name}, plain, {activation}", linear(x, plain, activation=activation)


def experts(dtype: torch.dtype, format: str, bits: int) -> Tensor:
    """Run four experts on tokens that choose two each."""
    matrices = PackedExperts(
        [
            ExpertWeights(
                packed(values(48, 64, seed=10 + i) / 4, format),
                packed(values(64, 48, seed=20 + i) / 4, format),
                packed(values(48, 64, seed=30 + i) / 4, format),
            )
            for i in range(4)
        ]
    )
    ids = torch.stack([torch.arange(40) % 4, (torch.arange(40) // 4 + 1) % 3], -1)
    ids[:, 1] += (ids[:, 1] >= ids[:, 0]).long()
    weights = values(40, 2, seed=3).abs()
    x = values(40, 64, seed=4, dtype=dtype)
    return mixture_of_experts(x, weights, ids, matrices, input_bits=bits)


def rows() -> Iterator[tuple[str, Tensor]]:
    """Run norms, gates, residuals, routing, embedding and rotation."""
    for name, dtype in DTYPES.items():
        x, branch, gate = (values(5, 200, seed=i, dtype=dtype) for i in (1, 2, 3))
        weight = values(200, seed=4, dtype=dtype)
        yield f"rms_norm {name}", rms_norm(x, weight, 1e-6)
        stream, normed = residual_norm(x, branch, weight, 1e-5, alpha=3.5, beta=0.75)
        yield f"residual_norm {name}, stream", stream
        yield f"residual_norm {name}, norm", normed
        yield f"add_residual {name}", add_residual(x, branch, alpha=3.5, beta=0.75)
        yield f"gated_norm {name}", gated_norm(x, weight, gate, 1e-6)
        yield f"embed {name}", embed(torch.tensor([3, 0, 4]), x)
        q, k = values(9, 4 * 48, seed=5, dtype=dtype), values(9, 2 * 48, seed=6, dtype=dtype)
        cos, sin = rotary_angles(torch.arange(9) * 12_345, 32, 1e7)
        norms = values(4 * 48, seed=7, dtype=dtype), values(2 * 48, seed=8, dtype=dtype)
        for kind, q_norm, k_norm in (("plain", None, None), ("with norms", *norms)):
            turned = rotate(q, k, cos, sin, head_dim=48, q_norm=q_norm, k_norm=k_norm, eps=1e-6)
            for part, heads in zip(("q", "k"), turned, strict=True):
                yield f"rotate {name} {kind}, {part}", heads
    cos, sin = rotary_angles(torch.arange(99), 64, 5e6)
    yield "rotary_angles, cos", cos
    yield "rotary_angles, sin", sin
    scorings: tuple[Scoring, ...] = ("softmax", "sigmoid")
    for scoring in scorings:
        logits, bias = values(30, 20, seed=1), values(20, seed=2) / 8
        weights, ids = route(logits, 4, scoring=scoring, choice_bias=bias)
        yield f"route {scoring}, weights", weights
        yield f"route {scoring}, ids", ids


def attention() -> Iterator[tuple[str, Tensor]]:
    """Run both attentions, prompts and decoded tokens, and read what they keep."""
    seqlens, context_lens = torch.tensor([0, 70, 71, 74]), torch.tensor([64, 130, 0])
    table = torch.tensor([[0, 1, 2], [3, 4, 5], [6, 6, 6]])
    for name, dtype in DTYPES.items():
        q = values(74, 4, 48, seed=1, dtype=dtype)
        k, v = (values(7 * 64, 2, 48, seed=i, dtype=dtype) for i in (2, 3))
        for stored in (None, torch.int8):
            pages = KVPages(7, 2, 48, dtype=dtype, stored=stored)
            write_pages(k, v, pages, torch.arange(7 * 64))
            kind = f"{name}, {'int8' if stored else 'plain'} pages"
            for part, kept in pages.stored.items():
                yield f"write_pages {kind}, {part}", kept
            found = softmax_attention(
                q, pages, cu_seqlens=seqlens, context_lens=context_lens, block_table=table
            )
            yield f"softmax_attention {kind}", found
        yield f"attend {name}", attend(q, k[:74], v[:74], cu_seqlens=seqlens)

        q, k, v = (values(74, 3, 48, seed=i, dtype=dtype) for i in (4, 5, 6))
        slope_rate = torch.tensor([0.7, 0.05, 0.001])
        carry = LightningCarry(
            values(3, 3, 48, 48, seed=7),
            values(3, 3, 64, 48, seed=8, dtype=dtype),
            values(3, 3, 64, 48, seed=9, dtype=dtype),
        )
        out = lightning_attention(
            q,
            k,
            v,
            slope_rate,
            states=carry,
            cu_seqlens=seqlens,
            context_lens=context_lens,
            slots=torch.tensor([2, 0, 1]),
        )
        for part, found in zip(("out", *carry._fields), (out, *carry), strict=True):
            yield f"lightning_attention {name}, {part}", found


def digests() -> dict[str, str]:
    """Return a digest of each output, on the instruction set in use."""
    with torch.inference_mode():
        found = [*products(), *rows(), *attention()]
    raw = {name: x.contiguous().view(torch.uint8).numpy().tobytes() for name, x in found}
    assert len(raw) == len(found)
    return {name: hashlib.sha256(data).hexdigest()[:16] for name, data in raw.items()}


def recorded(isa: str) -> dict[str, str] | None:
    """Return the digests of this revision on an instruction set; None where nobody recorded it."""
    if not FILE.exists():
        return None
    record = json.loads(FILE.read_text(encoding="utf-8"))
    if record["revision"] != REVISION:
        return None
    known: dict[str, str] | None = record["sets"].get(isa)
    return known


def main() -> None:
    """Compare or record the digests of the instruction set in use."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--record", action="store_true", help="write digests.json")
    should_record = parser.parse_args().record
    extension = native()
    if extension is None:
        sys.exit("the C++ kernels are not in use, plain torch has no record")
    isa, found = extension.isa(), digests()
    known = recorded(isa)
    changed = [name for name in found if found[name] != (known or {}).get(name, found[name])]
    if changed:
        sys.exit(
            f"{isa}: {len(changed)} of {len(found)} outputs differ from revision {REVISION}, "
            f"{changed[0]!r} first; raise REVISION in fulmen/kernels/numerics.py, then record"
        )
    if not should_record:
        print(
            f"{isa}: {len(found)} outputs" + (", no record" if known is None else ", as recorded")
        )
        return
    record = json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else {}
    if record.get("revision") != REVISION:
        record = {"revision": REVISION, "sets": {}}
    record["sets"][isa] = found
    FILE.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

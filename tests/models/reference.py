"""M1 and M2 once more, line by line from docs/models.md, as plainly as they can be said.

One sequence from position 0, one token and one head at a time, in the dtype of the weights: a dict
under checkpoint names. Of the package it takes the fields of the configs and nothing else, so that
a slip there is not repeated here.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from fulmen.models import M1Config, M2Config

Weights = Mapping[str, Tensor]


def m1_logits(config: M1Config, weights: Weights, input_ids: Tensor) -> Tensor:
    """(T,) -> (T, V), sections 1 and 2"""
    x = weights["model.embed_tokens.weight"][input_ids]  # (T, C)
    for layer, kind in enumerate(config.attn_type_list):
        w = layer_weights(weights, layer)
        h = rms_norm(x, w["input_layernorm.weight"], config.rms_norm_eps)
        if kind == 0:
            alpha = config.layernorm_linear_attention_alpha
            beta = config.layernorm_linear_attention_beta
            attended = lightning_attention(config, w, h, layer)
        else:
            alpha = config.layernorm_full_attention_alpha
            beta = config.layernorm_full_attention_beta
            attended = softmax_attention(config, w, h)
        x = alpha * (h if config.postnorm else x) + beta * attended

        g = rms_norm(x, w["post_attention_layernorm.weight"], config.rms_norm_eps)
        mixed = torch.stack([m1_experts(config, w, token) for token in g])
        alpha, beta = config.layernorm_mlp_alpha, config.layernorm_mlp_beta
        x = alpha * (g if config.postnorm else x) + beta * mixed
    return head(config, weights, x)


def m2_logits(config: M2Config, weights: Weights, input_ids: Tensor) -> Tensor:
    """(T,) -> (T, V), sections 1 and 3"""
    x = weights["model.embed_tokens.weight"][input_ids]  # (T, C)
    for layer in range(config.num_hidden_layers):
        w = layer_weights(weights, layer)
        h = rms_norm(x, w["input_layernorm.weight"], config.rms_norm_eps)
        x = x + softmax_attention(config, w, h)
        g = rms_norm(x, w["post_attention_layernorm.weight"], config.rms_norm_eps)
        x = x + torch.stack([m2_experts(config, w, token) for token in g])
    return head(config, weights, x)


def layer_weights(weights: Weights, layer: int) -> Weights:
    """The tensors of one layer, by their names inside it."""
    prefix = f"model.layers.{layer}."
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in weights.items()
        if name.startswith(prefix)
    }


def head(config: M1Config | M2Config, weights: Weights, x: Tensor) -> Tensor:
    """The last norm and the head, (T, C) -> (T, V)"""
    name = "model.embed_tokens.weight" if config.tie_word_embeddings else "lm_head.weight"
    return rms_norm(x, weights["model.norm.weight"], config.rms_norm_eps) @ weights[name].T


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """(T, C) -> (T, C)"""
    return weight * x / ((x * x).mean(-1, keepdim=True) + eps).sqrt()


def sigmoid(x: Tensor) -> Tensor:
    return 1 / (1 + (-x).exp())


def silu(x: Tensor) -> Tensor:
    return x * sigmoid(x)


def lightning_attention(config: M1Config, w: Weights, h: Tensor, layer: int) -> Tensor:
    """(T, C) -> (T, C), the four steps of the section"""
    u = silu(h @ w["self_attn.qkv_proj.weight"].T)
    factor = 1 - layer / (config.num_hidden_layers - 1) + 1e-5
    dim = config.head_dim
    outs = []
    for i, slope in enumerate(alibi_slopes(config.num_attention_heads)):
        q, k, v = u[:, 3 * dim * i : 3 * dim * (i + 1)].chunk(3, 1)  # (T, D) each
        state = h.new_zeros(dim, dim)
        rows = []
        for t in range(len(h)):
            state = math.exp(-slope * factor) * state + torch.outer(k[t], v[t])
            rows.append(q[t] @ state)
        outs.append(torch.stack(rows))
    normed = rms_norm(torch.cat(outs, 1), w["self_attn.norm.weight"], 1e-6)
    gate = sigmoid(h @ w["self_attn.output_gate.weight"].T)
    return (gate * normed) @ w["self_attn.out_proj.weight"].T


def alibi_slopes(num_heads: int) -> list[float]:
    """Return the slopes of the last power of two, then every other one of the next."""
    power = 1
    while 2 * power <= num_heads:
        power *= 2
    own = [2 ** (-8 * (i + 1) / power) for i in range(power)]
    between = [2 ** (-8 * (i + 1) / (2 * power)) for i in range(0, 2 * power, 2)]
    return (own + between)[:num_heads]


def softmax_attention(config: M1Config | M2Config, w: Weights, h: Tensor) -> Tensor:
    """(T, C) -> (T, C); M2 norms all queries together and all keys together."""
    q, k, v = (h @ w[f"self_attn.{name}_proj.weight"].T for name in "qkv")
    if isinstance(config, M2Config) and config.use_qk_norm:
        q = rms_norm(q, w["self_attn.q_norm.weight"], config.rms_norm_eps)
        k = rms_norm(k, w["self_attn.k_norm.weight"], config.rms_norm_eps)
    dim, group = config.head_dim, config.num_attention_heads // config.num_key_value_heads
    future = torch.ones(len(h), len(h), dtype=torch.bool).triu(1)
    outs = []
    for i in range(config.num_attention_heads):
        query = rotate(config, q[:, dim * i : dim * (i + 1)])
        shared = slice(dim * (i // group), dim * (i // group + 1))
        scores = query @ rotate(config, k[:, shared]).T / dim**0.5
        weights = scores.masked_fill(future, -math.inf).exp()  # (T, T)
        outs.append(weights / weights.sum(-1, keepdim=True) @ v[:, shared])
    return torch.cat(outs, 1) @ w["self_attn.o_proj.weight"].T


def rotate(config: M1Config | M2Config, x: Tensor) -> Tensor:
    """(T, D) -> (T, D): pairs (j, j + rotary_dim / 2) as complex numbers, turned by their angle."""
    half = config.rotary_dim // 2
    j, position = torch.arange(half), torch.arange(len(x), dtype=x.dtype)
    angle = position[:, None] * config.rope_theta ** (-2 * j.to(x.dtype) / config.rotary_dim)
    pairs = torch.complex(x[:, :half], x[:, half : 2 * half]) * torch.exp(1j * angle)
    return torch.cat((pairs.real, pairs.imag, x[:, 2 * half :]), 1)


def gated(w: Weights, x: Tensor, gate: str, down: str, up: str) -> Tensor:
    """w2(silu(w1 x) * (w3 x)) of one token (C,)"""
    hidden = silu(w[f"{gate}.weight"] @ x) * (w[f"{up}.weight"] @ x)
    return w[f"{down}.weight"] @ hidden


def expert(w: Weights, x: Tensor, index: int) -> Tensor:
    """One expert on one token (C,)"""
    name = f"block_sparse_moe.experts.{index}"
    return gated(w, x, f"{name}.w1", f"{name}.w2", f"{name}.w3")


def best(scores: Tensor, count: int) -> list[int]:
    """The indices of the largest of (E,)"""
    return sorted(range(len(scores)), key=lambda e: -float(scores[e]))[:count]


def m1_experts(config: M1Config, w: Weights, g: Tensor) -> Tensor:
    """One token (C,): softmax router, and the shared expert where there is one."""
    p = (w["block_sparse_moe.gate.weight"] @ g).exp()  # the softmax's own sum cancels below
    chosen = best(p, config.num_experts_per_tok)
    routed = torch.stack([p[e] * expert(w, g, e) for e in chosen]).sum(0) / p[chosen].sum()
    if not config.shared_intermediate_size:
        return routed
    c = sigmoid(w["coefficient.weight"][0] @ g)
    if config.shared_moe_mode == "softmax":
        c = torch.ones_like(c)  # of one logit
    shared = gated(w, g, "shared_mlp.gate_proj", "shared_mlp.down_proj", "shared_mlp.up_proj")
    return (1 - c) * routed + c * shared


def m2_experts(config: M2Config, w: Weights, g: Tensor) -> Tensor:
    """One token (C,): sigmoid router, whose bias helps to choose and is no part of the weights."""
    scores = sigmoid(w["block_sparse_moe.gate.weight"] @ g)
    wanted = scores
    if config.use_routing_bias:
        wanted = scores + w["block_sparse_moe.e_score_correction_bias"]
    chosen = best(wanted, config.num_experts_per_tok)
    return torch.stack([scores[e] * expert(w, g, e) for e in chosen]).sum(0) / scores[chosen].sum()

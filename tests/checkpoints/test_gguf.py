"""A Llama-shaped GGUF keeps its function when M2 reads it."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf as gguf_package
import numpy as np
import numpy.typing as npt
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter, TokenType
from gguf.quants import dequantize, quantize
from jinja2 import Template
from tokenizers import Tokenizer
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.convert_slow_tokenizer import bytes_to_unicode
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from fulmen.catalog import download
from fulmen.checkpoints import gguf, load_model

Weights = dict[str, npt.NDArray[np.float32]]

HIDDEN, INTERMEDIATE, LAYERS, HEADS, KV_HEADS, HEAD_DIM = 64, 256, 2, 4, 2, 16
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
ALPHABET = sorted(bytes_to_unicode().values())
MERGES = ["Ġ t", "h e", "Ġt he", "Ġ Ġ", "1 2", "Ġ 1", "i n", "l l", "' s", "Ċ Ċ"]
TOKENS = [*SPECIAL, *ALPHABET, *(merge.replace(" ", "") for merge in MERGES), "<think>"]
TOKEN_TYPES = [TokenType.CONTROL] * 3 + [TokenType.NORMAL] * (len(TOKENS) - 4)
TOKEN_TYPES += [TokenType.USER_DEFINED]
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
)


def random_weights(*, tied: bool) -> Weights:
    """A Llama's weights under their names in a GGUF, rows in the half-split order."""
    random = np.random.default_rng(7)
    shapes: dict[str, tuple[int, ...]] = {"token_embd": (len(TOKENS), HIDDEN)}
    for i in range(LAYERS):
        shapes |= {
            f"blk.{i}.attn_norm": (HIDDEN,),
            f"blk.{i}.attn_q": (HEADS * HEAD_DIM, HIDDEN),
            f"blk.{i}.attn_k": (KV_HEADS * HEAD_DIM, HIDDEN),
            f"blk.{i}.attn_v": (KV_HEADS * HEAD_DIM, HIDDEN),
            f"blk.{i}.attn_output": (HIDDEN, HEADS * HEAD_DIM),
            f"blk.{i}.ffn_norm": (HIDDEN,),
            f"blk.{i}.ffn_gate": (INTERMEDIATE, HIDDEN),
            f"blk.{i}.ffn_up": (INTERMEDIATE, HIDDEN),
            f"blk.{i}.ffn_down": (HIDDEN, INTERMEDIATE),
        }
    shapes["output_norm"] = (HIDDEN,)
    if not tied:
        shapes["output"] = (len(TOKENS), HIDDEN)
    return {
        f"{name}.weight": random.normal(0, 0.3, shape).astype(np.float32)
        for name, shape in shapes.items()
    }


def interleave(rows: npt.NDArray[Any], num_heads: int) -> npt.NDArray[Any]:
    """The order a GGUF keeps the rows of q and k in."""
    halves = rows.reshape(num_heads, 2, HEAD_DIM // 2, -1)
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(rows.shape)


def write_gguf(
    path: Path,
    *,
    tied: bool = False,
    quantization: GGMLQuantizationType = GGMLQuantizationType.F32,
    pre: str = "smollm",
    change: Callable[[GGUFWriter, Weights], None] | None = None,
    drop: tuple[str, ...] = (),
    architecture: str = "llama",
) -> Weights:
    """Writes a tiny Llama and returns its weights; `drop` leaves metadata out."""
    weights = random_weights(tied=tied)
    original = dict(weights)
    writer = GGUFWriter(path, architecture)
    metadata: dict[str, Callable[[], None]] = {
        "block_count": lambda: writer.add_block_count(LAYERS),
        "context_length": lambda: writer.add_context_length(128),
        "embedding_length": lambda: writer.add_embedding_length(HIDDEN),
        "feed_forward_length": lambda: writer.add_feed_forward_length(INTERMEDIATE),
        "head_count": lambda: writer.add_head_count(HEADS),
        "head_count_kv": lambda: writer.add_head_count_kv(KV_HEADS),
        "freq_base": lambda: writer.add_rope_freq_base(10000.0),
        "dimension_count": lambda: writer.add_rope_dimension_count(HEAD_DIM),
        "rms_epsilon": lambda: writer.add_layer_norm_rms_eps(1e-5),
        "vocab_size": lambda: writer.add_vocab_size(len(TOKENS)),
        "model": lambda: writer.add_tokenizer_model("gpt2"),
        "pre": lambda: writer.add_tokenizer_pre(pre),
        "tokens": lambda: writer.add_token_list(TOKENS),
        "token_type": lambda: writer.add_token_types(TOKEN_TYPES),
        "merges": lambda: writer.add_token_merges(MERGES),
        "bos": lambda: writer.add_bos_token_id(1),
        "eos": lambda: writer.add_eos_token_id(0),
        "template": lambda: writer.add_chat_template(TEMPLATE),
    }
    for name, add in metadata.items():
        if name not in drop:
            add()
    if change is not None:
        change(writer, weights)
    for name, values in weights.items():
        rows = values
        if ".attn_q.weight" in name:
            rows = interleave(values, HEADS)
        elif ".attn_k.weight" in name:
            rows = interleave(values, KV_HEADS)
        if values.ndim == 1:
            writer.add_tensor(name, rows)
        else:
            writer.add_tensor(name, quantize(rows, quantization), raw_dtype=quantization)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return original


OFFICIAL_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "block_sparse_moe.experts.0.w1",
    "ffn_up": "block_sparse_moe.experts.0.w3",
    "ffn_down": "block_sparse_moe.experts.0.w2",
}


def official_name(name: str) -> str:
    match name.split("."):
        case ["blk", layer, kind, "weight"]:
            return f"model.layers.{layer}.{OFFICIAL_NAMES[kind]}.weight"
        case ["token_embd", _]:
            return "model.embed_tokens.weight"
        case ["output_norm", _]:
            return "model.norm.weight"
        case _:
            return "lm_head.weight"


def llama_name(name: str) -> str:
    """Return the tensor's name in transformers' Llama."""
    for expert, projection in {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}.items():
        name = name.replace(f"block_sparse_moe.experts.0.{expert}", f"mlp.{projection}")
    return name


# Tensors and configuration.


@pytest.mark.parametrize("quantization", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_1"])
def test_tensors_have_official_names_and_the_values_that_were_stored(
    tmp_path: Path, quantization: str
) -> None:
    kind = GGMLQuantizationType[quantization]
    weights = write_gguf(tmp_path / "a.gguf", quantization=kind)
    found = dict(gguf.read_tensors(tmp_path / "a.gguf"))
    for name, values in weights.items():
        stored = values if values.ndim == 1 else dequantize(quantize(values, kind), kind)
        tensor = found.pop(official_name(name))
        assert tensor.dtype == torch.float32
        torch.testing.assert_close(tensor, torch.from_numpy(stored.copy()), rtol=0, atol=0)
    for i in range(LAYERS):
        router = found.pop(f"model.layers.{i}.block_sparse_moe.gate.weight")
        torch.testing.assert_close(router, torch.zeros(1, HIDDEN), rtol=0, atol=0)
    assert not found


def test_a_quantisation_that_only_the_gguf_package_can_undo_is_read(tmp_path: Path) -> None:
    kind = GGMLQuantizationType.Q4_K
    blocks = np.random.default_rng(3).integers(0, 256, (HIDDEN, 144), np.uint8)
    blocks[:, :4] = np.array([0.01, 0.02], np.float16).view(np.uint8)  # the two scales of a block

    def replace_one(writer: GGUFWriter, weights: Weights) -> None:
        del weights["blk.1.ffn_down.weight"]
        writer.add_tensor("blk.1.ffn_down.weight", blocks, raw_dtype=kind)

    write_gguf(tmp_path / "a.gguf", change=replace_one)
    found = dict(gguf.read_tensors(tmp_path / "a.gguf"))
    expected = torch.from_numpy(dequantize(blocks, kind))
    w2 = found["model.layers.1.block_sparse_moe.experts.0.w2.weight"]
    torch.testing.assert_close(w2, expected, rtol=0, atol=0)


def test_tensors_own_their_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    write_gguf(path)
    before = path.read_bytes()
    for _, tensor in gguf.read_tensors(path):
        tensor.fill_(1)
    assert path.read_bytes() == before


def test_config_is_that_of_an_m2_with_one_expert(tmp_path: Path) -> None:
    write_gguf(tmp_path / "a.gguf")
    assert gguf.read_config(tmp_path / "a.gguf") == {
        "architectures": ["MiniMaxM2ForCausalLM"],
        "model_type": "minimax_m2",
        "vocab_size": len(TOKENS),
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "rotary_dim": HEAD_DIM,
        "intermediate_size": INTERMEDIATE,
        "max_position_embeddings": 128,
        "rope_theta": 10000.0,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "attn_type_list": [1] * LAYERS,
        "num_local_experts": 1,
        "num_experts_per_tok": 1,
        "shared_intermediate_size": 0,
        "scoring_func": "sigmoid",
        "use_routing_bias": False,
        "use_qk_norm": False,
        "hidden_act": "silu",
        "torch_dtype": "float32",
    }


def test_what_the_format_lets_out_has_the_formats_defaults(tmp_path: Path) -> None:
    write_gguf(tmp_path / "a.gguf")
    write_gguf(tmp_path / "b.gguf", drop=("freq_base", "dimension_count", "vocab_size"))
    assert gguf.read_config(tmp_path / "a.gguf") == gguf.read_config(tmp_path / "b.gguf")


def test_tied_embeddings_have_no_lm_head(tmp_path: Path) -> None:
    write_gguf(tmp_path / "a.gguf", tied=True)
    assert gguf.read_config(tmp_path / "a.gguf")["tie_word_embeddings"] is True
    assert "lm_head.weight" not in dict(gguf.read_tensors(tmp_path / "a.gguf"))


@pytest.mark.parametrize("tied", [False, True])
def test_weights_are_those_that_transformers_reads(tmp_path: Path, tied: bool) -> None:
    write_gguf(tmp_path / "a.gguf", tied=tied)
    config = {**gguf.read_config(tmp_path / "a.gguf"), "model_type": "llama"}
    model = LlamaForCausalLM(LlamaConfig(**config))
    theirs = load_gguf_checkpoint(tmp_path / "a.gguf", return_tensors=True, model_to_load=model)
    ours = {llama_name(name): value for name, value in gguf.read_tensors(tmp_path / "a.gguf")}
    for name, value in theirs["tensors"].items():
        torch.testing.assert_close(ours.pop(name), value, rtol=0, atol=0)
    assert all("block_sparse_moe.gate" in name for name in ours)
    for name in ("rope_theta", "head_dim", "num_key_value_heads", "tie_word_embeddings"):
        assert theirs["config"].get(name, config[name]) == config[name]


@pytest.mark.parametrize("tied", [False, True])
def test_the_m2_model_computes_what_a_llama_computes(tmp_path: Path, tied: bool) -> None:
    write_gguf(tmp_path / "a.gguf", tied=tied)
    config = {**gguf.read_config(tmp_path / "a.gguf"), "model_type": "llama"}
    llama = LlamaForCausalLM(LlamaConfig(**config))
    tensors = {llama_name(name): value for name, value in gguf.read_tensors(tmp_path / "a.gguf")}
    problems = llama.load_state_dict(tensors, strict=False)
    assert problems.missing_keys == (["lm_head.weight"] if tied else [])
    llama.tie_weights()
    input_ids = torch.arange(100).reshape(2, 50)
    with torch.no_grad():
        expected = llama(input_ids).logits
        found = load_model(tmp_path / "a.gguf")(input_ids)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


# The checkpoint folder.


def test_unpack_makes_a_folder_that_says_all_but_the_weights(tmp_path: Path) -> None:
    path, folder = tmp_path / "a.gguf", tmp_path / "folder"
    write_gguf(path)
    gguf.unpack(path, folder)
    assert sorted(file.name for file in folder.iterdir()) == [
        "config.json",
        "generation_config.json",
        "model.gguf",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert (folder / gguf.WEIGHTS_NAME).samefile(path)
    assert json.loads((folder / "config.json").read_text()) == gguf.read_config(path)
    assert (folder / "tokenizer.json").read_text() == gguf.read_tokenizer(path)
    assert json.loads((folder / "tokenizer_config.json").read_text()) == {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "add_bos_token": False,
        "model_max_length": 128,
        "bos_token": "<|im_start|>",
        "eos_token": "<|endoftext|>",
        "chat_template": TEMPLATE,
    }


def test_unpack_again_and_in_place_changes_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    write_gguf(folder / gguf.WEIGHTS_NAME)
    gguf.unpack(folder / gguf.WEIGHTS_NAME, folder)
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    gguf.unpack(folder / gguf.WEIGHTS_NAME, folder)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


def test_unpack_copies_the_weights_where_it_cannot_link(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError("no hard links on this file system")

    monkeypatch.setattr(os, "link", refuse)
    write_gguf(tmp_path / "a.gguf")
    gguf.unpack(tmp_path / "a.gguf", tmp_path / "folder")
    copy = tmp_path / "folder" / gguf.WEIGHTS_NAME
    assert not copy.samefile(tmp_path / "a.gguf")
    assert copy.read_bytes() == (tmp_path / "a.gguf").read_bytes()
    assert len(list((tmp_path / "folder").iterdir())) == 5


def test_unpack_of_a_refused_file_writes_nothing(tmp_path: Path) -> None:
    write_gguf(tmp_path / "a.gguf", drop=("merges",))
    with pytest.raises(ValueError, match=r"no tokenizer\.ggml\.merges"):
        gguf.unpack(tmp_path / "a.gguf", tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


# Files that are refused, each in one sentence.


def add_metadata(add: Callable[[GGUFWriter], None]) -> Callable[[GGUFWriter, Weights], None]:
    return lambda writer, _: add(writer)


def add_tensor(name: str, *shape: int) -> Callable[[GGUFWriter, Weights], None]:
    def change(_: GGUFWriter, weights: Weights) -> None:
        weights[name] = np.ones(shape, np.float32)

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            add_metadata(lambda w: w.add_rope_scaling_type(gguf_package.RopeScalingType.LINEAR)),
            r"llama\.rope\.scaling\.type = 'linear', needed is none",
        ),
        (
            add_metadata(lambda w: w.add_expert_count(8)),
            r"llama\.expert_count = 8, needed is 0",
        ),
        (
            add_metadata(lambda w: w.add_logit_scale(0.5)),
            r"llama\.logit_scale = 0\.5, needed is 1\.0",
        ),
        (
            add_metadata(lambda w: w.add_sliding_window(512)),
            r"llama\.attention\.sliding_window = 512, needed is 0",
        ),
        (
            add_metadata(lambda w: w.add_float32("llama.attention.odd", 2.0)),
            r"llama\.attention\.odd = 2\.0, needed is a model without it",
        ),
        (add_metadata(lambda w: w.add_uint16("split.count", 3)), "one of 3 parts"),
        (add_metadata(lambda w: w.add_key_length(32)), "key heads of 32, value heads of 32"),
        (add_tensor("blk.0.attn_q.bias", 64), r"blk\.0\.attn_q\.bias, which is not supported"),
        (add_tensor("rope_freqs.weight", 8), r"rope_freqs\.weight, which is not supported"),
        (add_tensor("blk.1.ffn_norm.weight", 32), r"of shape \(32,\), needed is \(64,\)"),
        (lambda _, weights: weights.pop("output_norm.weight"), r"no tensor output_norm\.weight"),
    ],
)
def test_a_model_that_m2_cannot_compute_is_refused(
    tmp_path: Path, change: Callable[[GGUFWriter, Weights], None], message: str
) -> None:
    write_gguf(tmp_path / "a.gguf", change=change)
    for read in (gguf.read_config, gguf.read_tensors):
        with pytest.raises(ValueError, match=message):
            read(tmp_path / "a.gguf")


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    write_gguf(tmp_path / "a.gguf", architecture="gpt2")
    with pytest.raises(ValueError, match="architecture gpt2, needed: llama"):
        gguf.read_config(tmp_path / "a.gguf")


def test_partly_rotated_heads_are_refused(tmp_path: Path) -> None:
    change = add_metadata(lambda w: w.add_rope_dimension_count(8))
    write_gguf(tmp_path / "a.gguf", drop=("dimension_count",), change=change)
    with pytest.raises(ValueError, match=r"rope\.dimension_count 8, the three must be one"):
        gguf.read_config(tmp_path / "a.gguf")


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("block_count", "llama.block_count"),
        ("head_count", "llama.attention.head_count"),
        ("rms_epsilon", "llama.attention.layer_norm_rms_epsilon"),
    ],
)
def test_missing_metadata_is_named(tmp_path: Path, name: str, key: str) -> None:
    write_gguf(tmp_path / "a.gguf", drop=(name,))
    with pytest.raises(ValueError, match=f"has no {key} in its metadata"):
        gguf.read_config(tmp_path / "a.gguf")


def test_sizes_by_layer_are_refused(tmp_path: Path) -> None:
    change = add_metadata(lambda w: w.add_head_count_kv([2, 1]))
    write_gguf(tmp_path / "a.gguf", drop=("head_count_kv",), change=change)
    with pytest.raises(ValueError, match=r"head_count_kv = \[2, 1\], it must be int"):
        gguf.read_config(tmp_path / "a.gguf")


def test_a_quantisation_without_a_way_back_is_refused(tmp_path: Path) -> None:
    def add_integers(writer: GGUFWriter, weights: Weights) -> None:
        weights.pop("output_norm.weight")
        writer.add_tensor("output_norm.weight", np.ones(HIDDEN, np.int8))

    write_gguf(tmp_path / "a.gguf", change=add_integers)
    with pytest.raises(ValueError, match=r"stores output_norm\.weight in I8, which the installed"):
        list(gguf.read_tensors(tmp_path / "a.gguf"))


def test_a_quantisation_unknown_to_the_gguf_package_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    write_gguf(path)
    name = b"blk.0.attn_norm.weight"
    before, after = path.read_bytes().split(name)
    # Behind the name: the number of dimensions, one dimension, the type.
    path.write_bytes(before + name + after[:12] + (250).to_bytes(4, "little") + after[16:])
    with pytest.raises(ValueError, match=r"stores blk\.0\.attn_norm\.weight in quantisation 250"):
        gguf.read_config(path)


def test_every_cut_of_a_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    write_gguf(path)
    whole = path.read_bytes()
    cut = tmp_path / "cut.gguf"
    for size in [*range(0, 200), *range(200, len(whole), 9973), len(whole) - 1]:
        cut.write_bytes(whole[:size])
        with pytest.raises(ValueError, match="is not a GGUF" if size < 4 else "is cut short"):
            gguf.read_config(cut)


def read_all(path: Path) -> str | None:
    """Return why the file is refused, or None if it is not."""
    try:
        gguf.read_config(path)
        gguf.read_tokenizer(path)
    except ValueError as error:
        return str(error)
    return None


def test_damaged_headers_are_refused_in_a_sentence_or_read(tmp_path: Path) -> None:
    write_gguf(tmp_path / "a.gguf")
    whole = (tmp_path / "a.gguf").read_bytes()
    random = np.random.default_rng(11)
    damaged = tmp_path / "damaged.gguf"
    reasons = []
    for _ in range(200):
        content = bytearray(whole)
        for position in random.integers(4, 4000, 8):
            content[position] = random.integers(256)
        damaged.write_bytes(content)
        reasons.append(read_all(damaged))
    refused = [reason for reason in reasons if reason is not None]
    assert len(refused) > 100
    assert all(reason.startswith(str(damaged)) and "\n" not in reason for reason in refused)


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (b"PK\x03\x04" + bytes(40), "is not a GGUF: it does not begin with the letters GGUF"),
        (b"GGUF\x01\x00\x00\x00" + bytes(40), "version 1 GGUF, needed is a little-endian one"),
        (b"GGUF\x00\x00\x00\x03" + bytes(40), "big-endian GGUF, needed is a little-endian one"),
    ],
)
def test_other_files_and_other_versions_are_refused(
    tmp_path: Path, start: bytes, message: str
) -> None:
    (tmp_path / "a.gguf").write_bytes(start)
    with pytest.raises(ValueError, match=message):
        gguf.read_config(tmp_path / "a.gguf")


# The real model, when a user has pulled it.


def find_smollm2() -> Path:
    """The file, if it is on this machine."""
    for path in download.cache_folder().rglob("*.gguf"):
        if path.stat().st_size == 98_362_432:
            return path
    pytest.skip(f"no SmolLM2-135M-Instruct below {download.cache_folder()}")


smollm2 = pytest.fixture(scope="module")(find_smollm2)


@pytest.mark.slow
def test_smollm2_is_read_whole(smollm2: Path) -> None:
    config = gguf.read_config(smollm2)
    assert (config["num_hidden_layers"], config["hidden_size"]) == (30, 576)
    num_routers = 30 * 576
    sizes = [tensor.numel() for _, tensor in gguf.read_tensors(smollm2)]
    assert sum(sizes) == 134_515_008 + num_routers


@pytest.mark.slow
def test_smollm2_answers_in_the_m2_model(smollm2: Path, tmp_path: Path) -> None:
    gguf.unpack(smollm2, tmp_path)
    template = json.loads((tmp_path / "tokenizer_config.json").read_text())["chat_template"]
    end_ids = json.loads((tmp_path / "generation_config.json").read_text())["eos_token_id"]
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = Template(template).render(messages=messages, add_generation_prompt=True)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    ids = tokenizer.encode(prompt).ids
    num_prompt_tokens = len(ids)
    model = load_model(tmp_path)
    with torch.no_grad():
        while ids[-1] not in end_ids and len(ids) < num_prompt_tokens + 20:
            ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    assert tokenizer.decode(ids[num_prompt_tokens:]) == "The capital of France is Paris."
    assert ids[-1] == tokenizer.token_to_id("<|im_end|>")

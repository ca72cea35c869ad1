"""A recipe so small that a whole speedrun takes seconds."""

from pathlib import Path

RECIPE = """
[shares]
learn = 0.5
practice = 0.4
scores = 0.1

[tokenizer]
kind = "words"
vocab_size = 640
environments = ["basics:compare:training", "basics:unknown:training"]

[scores]
tasks = 6
environments = ["basics:compare:test", "basics:unknown:test"]
unknown = "basics:unknown:test"
"""
LEARN = """
out = "out/learn"
tensorboard = false
save_every = 4

[model]
dtype = "float32"
tokenizer = "out/tokenizer"

[model.config]
model_type = "minimax_m1"
hidden_size = 64
num_hidden_layers = 2
attn_type_list = [0, 1]
num_attention_heads = 2
num_key_value_heads = 1
head_dim = 32
rotary_dim = 16
intermediate_size = 64
num_local_experts = 4
num_experts_per_tok = 2
max_position_embeddings = 256
postnorm = true

[tasks.compare]
environment = "basics:compare:training"

[tasks.unknown]
environment = "basics:unknown:training"

[[stages]]
tokens = 20_000
length = 128
step_tokens = 512
mixture = { compare = 0.5, unknown = 0.5 }

[[stages]]
tokens = 60_000
length = 192
step_tokens = 512

[optimizer]
kind = "muon"
learning_rate = 3e-3

[schedule]
warmup = 1000
decay_start = 40_000
decay_length = 40_000

[probe]
every = 1000
documents = 2
max_tokens = 32
samples = 1
"""
PRACTICE = """
folder = "out/practice"
model = "out/learn"
dtype = "float32"

[trainer]
num_steps = 3
num_groups = 2
max_refills = 0
dynamic_sampling = false

[[sources]]
levels = ["basics:compare:training"]

[sampling]
group_size = 4
max_tokens = 48

[batch]
min_groups = 1

[probe]
every = 2
num_tasks = 4
max_drop = 1.0

[engine]
max_num_seqs = 16
kv_cache_bytes = 8_388_608
"""


def write_recipe(folder: Path) -> Path:
    """Write a recipe into a folder of its own, and return that."""
    folder.mkdir(parents=True)
    for name, text in (("recipe", RECIPE), ("learn", LEARN), ("practice", PRACTICE)):
        (folder / f"{name}.toml").write_text(text)
    return folder

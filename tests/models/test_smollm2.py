"""SmolLM2 in the M2 container against transformers' Llama, from the same GGUF, in float32."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from fulmen.chat import Tokenizer, load_format
from fulmen.checkpoints import load_model
from fulmen.engine import Engine, EngineConfig
from fulmen.models import Model
from fulmen.sampling import SamplingParams
from tests.engine.helpers import new_tokens
from tests.models.helpers import smollm2_folder

pytestmark = pytest.mark.slow

PROMPTS = [
    "What is the capital of France?",
    "Name three colours of the rainbow.",
    "How many legs does a spider have?",
    "Write a haiku about the sea.",
    "What is 12 plus 30?",
    "Translate 'good morning' into Spanish.",
    "Who wrote Romeo and Juliet?",
    "Explain gravity to a child.",
    "Give me a recipe for pancakes.",
    "What does the word 'benevolent' mean?",
    "List the planets of the solar system.",
    "Tell me a short story about a fox.",
    "Why is the sky blue?",
    "What is the opposite of hot?",
    "Describe a rainy day in two sentences.",
    "Write a Python function that adds two numbers.",
    "What is photosynthesis?",
    "Suggest a name for a black cat.",
    "How do I boil an egg?",
    "What is the largest ocean on Earth?",
]
NUM_TOKENS = 64


@pytest.fixture(scope="module")
def folder() -> Path:
    return smollm2_folder()


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    return load_model(folder, dtype=torch.float32)


@pytest.fixture(scope="module")
def prompts(folder: Path) -> list[list[int]]:
    tokenizer, format = Tokenizer.from_folder(folder), load_format(folder)
    messages = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]
    return [format.encode(message, tokenizer=tokenizer) for message in messages]


class Llama:
    """transformers' Llama with the weights as transformers itself reads them from the GGUF."""

    def __init__(self, file: Path) -> None:
        import transformers
        from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

        transformers.logging.disable_progress_bar()
        config = dict(load_gguf_checkpoint(str(file))["config"])
        with torch.device("meta"):
            shape = transformers.LlamaForCausalLM(transformers.LlamaConfig(**config))
        checkpoint = load_gguf_checkpoint(str(file), return_tensors=True, model_to_load=shape)
        llama = transformers.LlamaForCausalLM(transformers.LlamaConfig(**config))
        missing, unknown = llama.load_state_dict(checkpoint["tensors"], strict=False)
        assert set(missing) <= {"lm_head.weight"}
        assert not unknown
        llama.tie_weights()
        self._llama = llama.float().eval()

    def logits(self, ids: list[int]) -> Tensor:
        """(T,) -> (T, V)"""
        with torch.no_grad():
            logits: Tensor = self._llama(torch.tensor([ids])).logits[0]
        return logits

    def greedy(self, ids: list[int]) -> list[int]:
        """NUM_TOKENS ids after a prompt, whatever they are."""
        output = self._llama.generate(
            torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.int64),
            do_sample=False,
            min_new_tokens=NUM_TOKENS,
            max_new_tokens=NUM_TOKENS,
            eos_token_id=None,
            pad_token_id=2,
        )
        generated: list[int] = output[0, len(ids) :].tolist()
        return generated


@pytest.fixture(scope="module")
def llama(folder: Path) -> Llama:
    return Llama(folder / "model.gguf")


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_greedy_answers_equal_those_of_transformers(
    model: Model, llama: Llama, prompts: list[list[int]]
) -> None:
    engine = Engine(model, EngineConfig(max_num_seqs=5, max_model_len=256))
    params = SamplingParams(temperature=0, max_tokens=NUM_TOKENS)
    numbers = {engine.add_request(ids, params): n for n, ids in enumerate(prompts)}
    answers: list[list[int]] = [[] for _ in prompts]
    while engine.has_unfinished:
        for output in new_tokens(engine.step()):
            answers[numbers[output.request_id]].append(output.token_id)
    for ids, answer in zip(prompts, answers, strict=True):
        assert answer == llama.greedy(ids)


def test_logits_are_near_those_of_transformers(
    model: Model, llama: Llama, prompts: list[list[int]]
) -> None:
    differences = []
    for ids in prompts:
        with torch.no_grad():
            found = model(torch.tensor([ids]))[0]
        differences.append((found - llama.logits(ids)).abs())
    every = torch.cat(differences)
    mean, largest = float(every.mean()), float(every.max())
    print(f"SmolLM2 against transformers: mean logit difference {mean:.2e}, largest {largest:.2e}")
    assert mean < 1e-4
    assert largest < 5e-3


def test_the_default_model_answers_a_question(folder: Path, model: Model) -> None:
    tokenizer, format = Tokenizer.from_folder(folder), load_format(folder)
    ids = format.encode([{"role": "user", "content": PROMPTS[0]}], tokenizer=tokenizer)
    engine = Engine(model, eos_token_ids=tokenizer.eos_token_ids)
    request_id = engine.add_request(ids, SamplingParams(temperature=0, max_tokens=64))
    answer = []
    while engine.has_unfinished:
        answer += [
            out.token_id for out in new_tokens(engine.step()) if out.request_id == request_id
        ]
    assert answer[-1] in tokenizer.eos_token_ids
    assert "Paris" in tokenizer.decode(answer)

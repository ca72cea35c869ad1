"""Record the session store that stands beside this file, with Fulmen 0.1.0 and its tests:

    cd TESTS_OF_0.1.0 && PYTHON_OF_0.1.0 PATH/tests/sessions/data-0.1.0/record.py

`m1` and `m2` are the tiny checkpoints of `tests/tiny.py`, loaded as float32 and bfloat16, with two
turns each; a model is told by its config.json too, so those that 0.1.0 wrote stand here. `m1-cut`
is `m1` after four tokens of its second answer. `expected.json` holds what each session said, and
the ids and log-probabilities of a third answer after it: temperature 1, seed 9, no thinking budget,
twelve tokens.
"""
# ruff: noqa: E402 (the path decides which packages are imported)

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType

import torch

sys.path.append(str(Path.cwd()))  # behind the installed package: only its tests are wanted
sys.modules.setdefault("pytest", ModuleType("pytest"))  # what is needed of them never skips

from fulmen import __version__
from fulmen.chat import Message
from fulmen.engine import EngineConfig, SessionStore
from fulmen.llm import LLM
from fulmen.sampling import SamplingParams
from fulmen.sessions import Session
from tests.tiny import write_checkpoint

HERE = Path(__file__).parent
PARAMS = SamplingParams(temperature=1.0, top_p=1.0, top_k=None, max_tokens=12, ignore_eos=True)
DTYPES = {"m1": torch.float32, "m2": torch.bfloat16}
QUESTIONS = ["What is lightning?", "And thunder?"]
LAST_QUESTION = "Which is first?"


def ask(session: Session, text: str, seed: int, thinking_budget: int | None = 0):
    messages = [Message("system", "Be brief."), Message("user", text)]
    if session.messages:
        messages = [*session.messages, Message("user", text)]
    params = replace(PARAMS, seed=seed, thinking_budget=thinking_budget)
    completion = session.llm.chat(messages, params=params)
    return messages, completion


def main() -> None:
    assert __version__ == "0.1.0", __version__
    for name in ("sessions", "turns", "chunks"):
        shutil.rmtree(HERE / name, ignore_errors=True)
    store = SessionStore(HERE)
    expected = {}
    with TemporaryDirectory() as folder:
        for kind, dtype in DTYPES.items():
            checkpoint = write_checkpoint(Path(folder) / kind, kind)
            shutil.copy(checkpoint / "config.json", HERE / f"{kind}-config.json")
            llm = LLM.load(str(checkpoint), dtype=dtype, engine_config=EngineConfig(max_num_seqs=2))
            session = Session(llm, store, kind, model=kind)
            for seed, text in enumerate(QUESTIONS):
                session.save(*ask(session, text, seed))
            _, answer = ask(session, LAST_QUESTION, 9, None)
            turns = store.turns(session.head)
            expected[kind] = {
                "fingerprint": llm.origin.model,
                "numerics": llm.origin.numerics,
                "messages": [message.to_dict() for message in session.messages],
                "turn_ids": [store.ids(turn) for turn in turns],
                "num_known": turns[-1].num_known,
                "next_prompt_ids": list(answer.prompt_ids),
                "next_answer_ids": list(answer.answer_ids),
                "next_logprobs": [output.logprob for output in answer.outputs],
            }
    store.fork("m1", "m1-cut", num_turns=2, cut=4)
    (HERE / "lock").unlink()
    (HERE / "expected.json").write_text(json.dumps(expected, ensure_ascii=False) + "\n")


main()

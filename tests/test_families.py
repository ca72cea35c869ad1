"""A family is found however its name is spelled; `architectures` decides before `model_type`."""

import pytest

from fulmen.families import KNOWN_ARCHITECTURES, family_of, family_of_name

M1 = ["minimax", "minimax_m1", "MiniMax-M1", "minimax_text_01", "minimax-text-01", "MINIMAX_M1"]
M2 = ["minimax_m2", "minimax-m2", "MiniMaxM2", "MiniMaxM2ForCausalLM", "minimax_m2_for_causal_lm"]


@pytest.mark.parametrize("name", M1)
def test_every_spelling_of_m1_is_m1(name: str) -> None:
    assert family_of({"model_type": name}) == "minimax_m1"


@pytest.mark.parametrize("name", M2)
def test_every_spelling_of_m2_is_m2(name: str) -> None:
    assert family_of({"model_type": name}) == "minimax_m2"


def test_every_architecture_an_error_names_is_known() -> None:
    assert all(family_of_name(name) for name in KNOWN_ARCHITECTURES)


def test_architectures_decide_before_model_type() -> None:
    config = {"architectures": ["Unknown", "MiniMaxM2ForCausalLM"], "model_type": "minimax"}
    assert family_of(config) == "minimax_m2"


@pytest.mark.parametrize("name", ["llama", "minimax_m3", "", "minimaxm2x", None, 5])
def test_anything_else_is_no_family(name: object) -> None:
    assert family_of({"architectures": [name], "model_type": name}) is None
    assert family_of({"model_type": name}) is None

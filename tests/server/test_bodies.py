"""Bodies of requests: what is wrong with them costs little to find."""

from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from fulmen.server.anthropic_messages import MessagesBody
from fulmen.server.openai_chat import ChatBody
from fulmen.server.openai_completions import CompletionsBody
from fulmen.server.openai_responses import ResponsesBody

BODIES: list[type[BaseModel]] = [ChatBody, CompletionsBody, MessagesBody, ResponsesBody]


@pytest.mark.parametrize("body", BODIES)
def test_a_list_of_wrong_values_is_read_up_to_the_first(body: type[BaseModel]) -> None:
    num_lists = 0
    for name, field in body.model_fields.items():
        if "list[" not in str(field.annotation):
            continue
        num_lists += 1
        wrong: Any = [1.5] * 1000
        with pytest.raises(ValidationError) as caught:
            body.model_validate({name: wrong})
        assert len(caught.value.errors()) <= 3, name
    assert num_lists > 2

"""tau2-bench in a worker process: its tasks, its environments and its verdicts, as plain values.

    domains -> names        tasks -> tasks to be had        describe -> one of them, for a model
    act: calls so far, one more -> its result               verdict: calls, words -> parts

An environment follows from its task and the calls so far: it is made anew from them, or is the one
that the last call left here. So a conversation may go on in any process.
"""

import json
import os
import pickle
import random
import uuid
from collections.abc import Sequence
from functools import cache, lru_cache, partial
from itertools import count
from types import SimpleNamespace
from typing import Any

_NUM_KEPT = 4
"""Environments that are kept for their next call"""

_kept: dict[str, Any] = {}


@cache
def prepare() -> Any:
    """Import tau2, which takes seconds, and return what is used of it."""
    # Without it the import of litellm asks the network for prices.
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    from loguru import logger
    from tau2.data_model import message
    from tau2.evaluator.evaluator_action import ActionEvaluator
    from tau2.evaluator.evaluator_communicate import CommunicateEvaluator
    from tau2.evaluator.evaluator_env import EnvironmentEvaluator
    from tau2.registry import registry
    from tau2.user.user_simulator import UserSimulator

    logger.disable("tau2")  # it writes down every result
    # A tool that makes up a number has to make up the same one when its call is made again.
    uuid.uuid4 = lambda: uuid.UUID(int=random.getrandbits(128), version=4)
    return SimpleNamespace(
        message=message,
        registry=registry,
        EnvironmentEvaluator=EnvironmentEvaluator,
        ActionEvaluator=ActionEvaluator,
        CommunicateEvaluator=CommunicateEvaluator,
        UserSimulator=UserSimulator,
    )


def domains() -> list[str]:
    """Return the names of the domains that have tasks."""
    registry = prepare().registry
    return [name for name in registry.get_domains() if name in registry.get_task_sets()]


def tasks(domain: str) -> list[dict[str, Any]]:
    """Return the tasks of a domain that can be checked without a model: their places among all,
    and whether doing nothing is right."""
    writes = _writes(domain)
    found = []
    for place, task in enumerate(_tasks(domain)):
        criteria = task.evaluation_criteria
        if criteria is None or not (basis := _basis(criteria)):
            continue
        names = {action.name for action in criteria.actions or ()}
        is_still = not basis & {"ENV_ASSERTION", "ACTION"} and not names & writes
        found.append({"place": place, "is_still": is_still})
    return found


def describe(domain: str, place: int, has_user: bool) -> dict[str, Any]:
    """Return a task. has_user: somebody plays its user, so that it is no ticket to work on alone"""
    task, criteria = _tasks(domain)[place], _tasks(domain)[place].evaluation_criteria
    is_solo = not has_user and task.ticket is not None and not _history(task)
    policy, tools, user_tools = _described(domain, is_solo)
    scenario = str(task.user_scenario)
    return {
        "name": task.id,
        "is_solo": is_solo,
        "policy": policy,
        "tools": [*tools, *user_tools] if is_solo else tools,
        "user_tools": user_tools,
        "request": task.ticket if is_solo else str(task.user_scenario.instructions),
        "history": [one.model_dump(mode="json") for one in _history(task)],
        "guide": prepare()
        .UserSimulator(tools=user_tools or None, instructions=scenario)
        .system_prompt,
        "actions": [[one.name, one.arguments] for one in criteria.actions or ()],
        "told": criteria.communicate_info or [],
    }


def act(domain: str, place: int, is_solo: bool, calls: list[Any]) -> dict[str, Any]:
    """Return the result of the last of these calls, each of them who, name and arguments."""
    environment = _after(domain, place, is_solo, calls[:-1])
    found = environment.get_response(_call(len(calls) - 1, calls[-1]))
    _kept[json.dumps([domain, place, is_solo, calls])] = environment
    while len(_kept) > _NUM_KEPT:
        del _kept[next(iter(_kept))]
    return {"content": found.content, "is_error": found.error}


def state(domain: str, place: int, is_solo: bool, calls: list[Any]) -> None:
    """Make these calls, to see that they can be made."""
    _after(domain, place, is_solo, calls)


def verdict(
    domain: str, place: int, is_solo: bool, calls: list[Any], words: list[str]
) -> dict[str, float]:
    """Return what counts of a task, by its names: each is 1 or 0. What a model would have to judge
    is left out, and counted in `left_out`."""
    tau2, task = prepare(), _tasks(domain)[place]
    message, said = tau2.message, list(_history(task))
    environment: Any = _after(domain, place, is_solo, []) if calls else None
    for number, one in enumerate(calls):
        call = _call(number, one)
        kind = message.AssistantMessage if one[0] == "assistant" else message.UserMessage
        said.append(kind(role=call.requestor, content=None, tool_calls=[call]))
        said.append(environment.get_response(call))
    said += [message.AssistantMessage(role="assistant", content=text) for text in words]
    make = partial(_environment, domain)
    found = tau2.EnvironmentEvaluator.calculate_reward(make, task, said, is_solo)
    rewards = {
        "DB": found.db_check.db_reward,
        "ENV_ASSERTION": (found.reward_breakdown or {}).get("ENV_ASSERTION", found.reward),
        "ACTION": tau2.ActionEvaluator.calculate_reward(task, said).reward,
        "COMMUNICATE": tau2.CommunicateEvaluator.calculate_reward(task, said).reward,
    }
    basis = {one.value for one in task.evaluation_criteria.reward_basis}
    parts = {name.lower(): rewards[name] for name in sorted(basis & rewards.keys())}
    if left_out := basis - rewards.keys():
        parts["left_out"] = float(len(left_out))
    return parts


@lru_cache(maxsize=8)
def _tasks(domain: str) -> Sequence[Any]:
    return tuple(prepare().registry.get_tasks_loader(domain)())


def _basis(criteria: Any) -> set[str]:
    """Return what counts and has something to check."""
    is_changed = criteria.actions is not None or criteria.env_assertions is not None
    has = {
        "DB": is_changed,
        "ENV_ASSERTION": bool(criteria.env_assertions),
        "ACTION": bool(criteria.actions),
        "COMMUNICATE": bool(criteria.communicate_info),
    }
    return {one.value for one in criteria.reward_basis if has.get(one.value, False)}


def _writes(domain: str) -> set[str]:
    """Return the names of the tools that change something."""
    environment = _environment(domain)
    kits = [one for one in (environment.tools, environment.user_tools) if one is not None]
    return {name for kit in kits for name in kit.tools if kit.tool_type(name).value == "write"}


def _history(task: Any) -> Sequence[Any]:
    return () if task.initial_state is None else task.initial_state.message_history or ()


@lru_cache(maxsize=8)
def _described(domain: str, is_solo: bool) -> tuple[str, list[Any], list[Any]]:
    """Return a domain's policy, and the schemas of tools: its own, and its user's."""
    environment = _environment(domain, solo_mode=is_solo)
    tools = [one.openai_schema for one in environment.get_tools()]
    if environment.user_tools is None:
        return environment.get_policy(), tools, []
    user_tools = [one.openai_schema for one in environment.get_user_tools()]
    return environment.get_policy(), tools, user_tools


@lru_cache(maxsize=8)
def _pickled(domain: str, is_solo: bool) -> bytes:
    """Return a new environment, which is read from this faster than from tau2's files."""
    make = prepare().registry.get_env_constructor(domain)
    return pickle.dumps(make(solo_mode=is_solo), protocol=pickle.HIGHEST_PROTOCOL)


def _environment(domain: str, *, solo_mode: bool = False) -> Any:
    """Return a new environment. An assertion about it that raises, as one about a row that is not
    there does, does not hold."""
    environment = pickle.loads(_pickled(domain, solo_mode))
    respond, hold, numbers = environment.get_response, environment.run_env_assertion, count()

    def get_response(call: Any) -> Any:
        random.seed(f"tau2 {next(numbers)}")
        return respond(call)

    def run_env_assertion(assertion: Any, raise_assertion_error: bool = True) -> bool:
        try:
            return bool(hold(assertion, raise_assertion_error))
        except Exception:  # the library's code about a state that a model made
            return False

    environment.get_response = get_response
    environment.run_env_assertion = run_env_assertion
    return environment


def _after(domain: str, place: int, is_solo: bool, calls: list[Any]) -> Any:
    """Return the environment of a task after calls, for one that comes next."""
    kept = _kept.pop(json.dumps([domain, place, is_solo, calls]), None)
    if kept is not None:
        return kept
    task = _tasks(domain)[place]
    start = task.initial_state
    environment = _environment(domain, solo_mode=is_solo)
    environment.set_state(
        None if start is None else start.initialization_data,
        None if start is None else start.initialization_actions,
        list(_history(task)),
    )
    for number, one in enumerate(calls):
        environment.get_response(_call(number, one))
    return environment


def _call(number: int, call: list[Any]) -> Any:
    who, name, arguments = call
    return prepare().message.ToolCall(
        id=f"call {number}", name=name, arguments=arguments, requestor=who
    )

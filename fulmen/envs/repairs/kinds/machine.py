"""Machines: rules of change, a machine that follows them, and devices."""

import random

from fulmen.envs.repairs.kind import Kind, Probe, probe

_RULES = '''"""Rules of a machine, written as lines such as "idle coin -> ready"."""


def read_rule(line):
    """Return (state, event, next state) of a rule; ValueError for anything else."""
    left, arrow, target = line.partition("->")
    words = left.split()
    if not arrow or len(words) != 2 or len(target.split()) != 1:
        raise ValueError("no rule")
    return words[0], words[1], target.strip()


def read_rules(lines):
    """Return the rules of lines, without empty ones and those that begin with #."""
    return [read_rule(line) for line in lines if line.strip() and not line.startswith("#")]


def find_rule(rules, state, event):
    """Return the next state: of the rule for state and event, else of the one for * and event.

    The first of several counts; None if there is none.
    """
    for wanted in (state, "*"):
        for one, other, target in rules:
            if one == wanted and other == event:
                return target
    return None


def dead_ends(rules):
    """Return the states that are entered and that no rule, also none for *, leaves, in order."""
    left = {state for state, _, _ in rules}
    if "*" in left:
        return []
    return sorted({target for _, _, target in rules if target not in left})
'''

_MACHINE = '''"""A machine that follows rules."""

from .rules import dead_ends, find_rule, read_rules


class Machine:
    """A state that events change."""

    def __init__(self, lines, state):
        self.rules = read_rules(lines)
        self.state = state
        self.past = [state]
        self.refused = 0

    def fire(self, event):
        """Follow an event and return True; False, and it counts as refused, if no rule fits."""
        target = find_rule(self.rules, self.state, event)
        if target is None:
            self.refused += 1
            return False
        self.state = target
        self.past.append(target)
        return True

    def back(self, count=1):
        """Go back some changes, at most to the first state; return how many were undone."""
        count = min(count, len(self.past) - 1)
        self.past = self.past[: len(self.past) - count]
        self.state = self.past[-1]
        return count

    def visits(self):
        """Return how often each state was entered, the first one counted, in order of states."""
        return {state: self.past.count(state) for state in sorted(set(self.past))}

    def is_stuck(self):
        """Return True if the machine is in a state that no rule leaves."""
        return self.state in dead_ends(self.rules)


def run(lines, state, events):
    """Return the machine after some events."""
    machine = Machine(lines, state)
    for event in events:
        if event == "undo":
            machine.back()
        else:
            machine.fire(event)
    return machine


def reachable(lines, state):
    """Return the states that events can lead to from a state, itself included, in order."""
    rules, found = read_rules(lines), [state]
    for one in found:
        for event in sorted({event for _, event, _ in rules}):
            target = find_rule(rules, one, event)
            if target is not None and target not in found:
                found.append(target)
    return sorted(found)
'''

_DEVICES = '''"""Devices made of machines."""

from .machine import reachable, run

GATE = ["locked coin -> open", "open push -> locked", "* alarm -> shut", "shut key -> locked"]
LAMP = ["off press -> low", "low press -> high", "high press -> off", "# done"]


def entries(events):
    """Return how often a gate, which is locked at first, is pushed while it is open."""
    machine = run(GATE, "locked", [])
    count = 0
    for event in events:
        was_open = machine.state == "open"
        if machine.fire(event) and was_open and event == "push":
            count += 1
    return count


def lamp_after(presses):
    """Return the state of a lamp, off at first, after some presses."""
    return run(LAMP, "off", ["press"] * presses).state


def protocol(lines, state, events):
    """Return (state, number of refused events, how often each state was entered) after events."""
    machine = run(lines, state, events)
    return machine.state, machine.refused, machine.visits()


def accepts(lines, state, events, goals):
    """Return True if events lead to one of the goals without one that is refused."""
    machine = run(lines, state, events)
    return machine.state in goals and machine.refused == 0


def unreachable(lines, state):
    """Return the states that rules lead to and that cannot be reached from a state, in order."""
    known = reachable(lines, state)
    targets = {line.split()[-1] for line in lines}
    return sorted(target for target in targets if target not in known)


def traps(lines, state, events):
    """Return after how many of the events a machine is stuck first, None if it never is."""
    for count in range(len(events) + 1):
        if run(lines, state, events[:count]).is_stuck():
            return count
    return None
'''

_STATES, _EVENTS = ("a", "b", "c", "d", "e"), ("go", "up", "end")


def _lines(draw: random.Random) -> list[str]:
    lines = []
    for _ in range(draw.randint(3, 7)):
        state = draw.choice((*_STATES[:4], *_STATES[:3], draw.choice("a*")))
        lines.append(f"{state} {draw.choice(_EVENTS)} -> {draw.choice(_STATES)}")
    return lines


def _probes(draw: random.Random) -> list[Probe]:
    lines = _lines(draw)
    rules = [(*line.split(" ->")[0].split(), line.split()[-1]) for line in lines]
    events = [draw.choice((*_EVENTS, *_EVENTS, "undo")) for _ in range(draw.randint(1, 8))]
    plain = [event for event in events if event != "undo"]
    gate = [draw.choice(("coin", "push", "coin", "push", "alarm", "key")) for _ in range(8)]
    wrong = draw.choice(("a go b", "a -> b", "a go -> ", "a go up -> b", "a go -> b c", "a  go->b"))
    machine = [f"machine = Machine({lines}, 'a')", *(f"machine.fire({one!r})" for one in plain)]
    return [
        probe(2, f"read_rule({lines[0]!r})"),
        probe(2, f"read_rule({wrong!r})"),
        probe(2, f"read_rules({['# none', '', *lines[:2], '  ']})"),
        probe(2, f"find_rule({rules}, {draw.choice(_STATES)!r}, {draw.choice(_EVENTS)!r})"),
        probe(2, f"find_rule([('*', 'go', 'x'), ('a', 'go', 'y')], {draw.choice('ab')!r}, 'go')"),
        probe(2, f"dead_ends({rules})"),
        probe(1, *machine, "[machine.state, machine.past, machine.refused]"),
        probe(1, *machine, f"[machine.back({draw.randint(1, 4)}), machine.state, machine.past]"),
        probe(1, *machine, "machine.visits()"),
        probe(1, *machine, "machine.is_stuck()"),
        probe(1, f"run({lines}, 'a', {events}).past"),
        probe(1, f"reachable({lines}, {draw.choice('abc')!r})"),
        probe(0, f"entries({gate})"),
        probe(0, f"lamp_after({draw.randint(0, 7)})"),
        probe(0, f"protocol({lines}, 'a', {events})"),
        probe(0, f"accepts({lines}, 'a', {plain}, {draw.sample(_STATES, 3)})"),
        probe(0, f"unreachable({lines}, {draw.choice('abc')!r})"),
        probe(0, f"traps({lines}, 'a', {plain})"),
    ]


KIND = Kind(
    "machines",
    (("devices", _DEVICES), ("machine", _MACHINE), ("rules", _RULES)),
    _probes,
    {
        "Machine": ("Automaton", "StateMachine"),
        "fire": ("feed", "handle"),
        "visits": ("entered", "counts"),
        "entries": ("num_entries", "people_through"),
        "accepts": ("is_accepted", "leads_to"),
        "traps": ("stuck_after", "first_trap"),
        "protocol": ("outcome", "history"),
        "reachable": ("closure", "states_from"),
        "find_rule": ("next_state", "look_up"),
        "dead_ends": ("final_states", "sinks"),
        "read_rule": ("parse_rule", "rule_of"),
    },
)

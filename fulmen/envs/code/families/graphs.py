"""Problems with small graphs: roads, groups, orders of work, trees."""

from random import Random
from typing import Any, Final

from fulmen.envs.code import drawing
from fulmen.envs.code.problem import Family, Input, Problem

_PLACES: Final = Input("count", "number", "places have the numbers from 0 to `count` - 1")


def _roads(draw: Random, level: int) -> Problem:
    def drawn(draw: Random, size: int) -> tuple[Any, ...]:
        count = draw.randint(2, 3 + size)
        found = drawing.edges(draw, count, draw.randint(count // 2, count + size // 3))
        return found, count, draw.randrange(count)

    one_way = level >= 3
    inputs = (
        Input(
            "roads",
            "rows",
            "each has two places, and can be used "
            + ("from the first to the second only" if one_way else "in both directions"),
        ),
        _PLACES,
        Input("start", "number", "a place"),
    )
    body = f"""
distance = {{start: 0}}
waiting = [start]
for place in waiting:
    for one, other in roads:
        for begin, end in {"[(one, other)]" if one_way else "[(one, other), (other, one)]"}:
            if begin == place and end not in distance:
                distance[end] = distance[place] + 1
                waiting.append(end)
"""
    steps = draw.randint(1, 2)
    words, end = draw.choice(
        (
            (
                "For every place, from 0 on, find the least number of roads on a way from `start` "
                "to it, or -1 if there is no way. List these numbers.",
                "result = [distance.get(place, -1) for place in range(count)]",
            ),
            (
                "List the places to which no way leads from `start`, the smallest first.",
                "result = [place for place in range(count) if place not in distance]",
            ),
            (
                f"List the places to which a way of {'one road' if steps == 1 else 'two roads'} or "
                "less leads from `start`, which is one of them itself, the smallest first.",
                f"result = sorted(place for place, n in distance.items() if n <= {steps})",
            ),
        )
    )
    gives = "numbers"
    if level >= 4:
        words = (
            "A way takes each step from a place to one that a road leads to. Of all places that "
            "can be reached from `start`, take those that need the most roads at least, and list "
            "them, the smallest first."
        )
        end = """
far = max(distance.values())
result = sorted(place for place, n in distance.items() if n == far)
"""
    if level >= 5:
        words = (
            "For every place, from 0 on, find how many different ways lead from `start` to it that "
            "use the least possible number of roads: 1 for `start` itself, and 0 for a place that "
            "cannot be reached. List these numbers."
        )
        end = """
ways = {start: 1}
for place in waiting:
    for begin, end in roads:
        if begin == place and distance[end] == distance[place] + 1:
            ways[end] = ways.get(end, 0) + ways[place]
result = [ways.get(place, 0) for place in range(count)]
"""
    return Problem("follow_roads", inputs, words, body + end, gives, drawn)


def _groups(draw: Random, level: int) -> Problem:
    def drawn(draw: Random, size: int) -> tuple[Any, ...]:
        count = size + draw.randint(1, 3)
        return drawing.edges(draw, count, draw.randint(0, count - count // 3)), count

    inputs = (
        Input("friends", "rows", "each has two people who are friends"),
        Input("count", "number", "people have the numbers from 0 to `count` - 1"),
    )
    body = """
group = list(range(count))
for one, other in friends:
    old, new = max(group[one], group[other]), min(group[one], group[other])
    group = [new if name == old else name for name in group]
"""
    intro = (
        "Two people are in one group if they are friends, or if a row of friends leads from one "
        "to the other; who has no friends is a group alone. "
    )
    if level <= 2:
        words = intro + "List the sizes of the groups, the largest first."
        end = "result = sorted((group.count(name) for name in set(group)), reverse=True)"
    elif level == 3:
        words = (
            intro
            + "For every person, from 0 on, find the smallest number in the same group. List these."
        )
        end = "result = group"
    elif level == 4:
        words = intro + (
            "The friendships come one after the other, in the order in which they are given. List "
            "how many groups there are after each."
        )
        body = """
group, result = list(range(count)), []
for one, other in friends:
    old, new = max(group[one], group[other]), min(group[one], group[other])
    group = [new if name == old else name for name in group]
    result.append(len(set(group)))
"""
        end = ""
    else:
        words = intro + (
            "List the people without whom (and without whose friendships) the others would be in "
            "more groups than all people are now, the smallest number first."
        )
        body = """
def num_groups(people):
    group = {person: person for person in people}
    for one, other in friends:
        if one in group and other in group:
            old, new = group[one], group[other]
            group = {key: new if name == old else name for key, name in group.items()}
    return len(set(group.values()))

everybody = set(range(count))
"""
        end = """
result = []
for person in range(count):
    if num_groups(everybody - {person}) > num_groups(everybody):
        result.append(person)
"""
    return Problem("find_groups", inputs, words, body + end, "numbers", drawn)


def _work(draw: Random, level: int) -> Problem:
    first, which = draw.choice((("min", "smallest"), ("max", "largest")))

    def drawn(draw: Random, size: int) -> tuple[Any, ...]:
        count = size + draw.randint(1, 2)
        names = draw.sample(range(count), count)
        found = []
        for pair in drawing.edges(draw, count, draw.randint(count // 2, count + 1)):
            one, other = sorted(pair)
            found.append([names[one], names[other]])
        if level == 5 and count > 2 and draw.random() < 0.5:
            found.append([names[-1], names[draw.randrange(count - 1)]])
        if level == 4:
            return found, [draw.randint(1, 9) for _ in range(count)]
        return found, count

    inputs = (
        Input(
            "rules", "rows", "each has two jobs, of which the first must be done before the second"
        ),
        Input("count", "number", "jobs have the numbers from 0 to `count` - 1"),
    )
    order = f"""
left, result = set(range(count)), []
while left:
    ready = [job for job in left if not any(b == job and a in left for a, b in rules)]
    if not ready:
        break
    result.append({first}(ready))
    left.remove(result[-1])
"""
    if level <= 3:
        words = (
            f"Do one job after the other: each time the one with the {which} number of those that "
            "are not done and may be done now. List the jobs in this order."
        )
        if level == 3:
            words = (
                "Do the jobs in rounds: in each round all that are not done and may be done "
                "when it "
                "begins. For every job, from 0 on, find the number of its round; the first round "
                "is 1. List these numbers."
            )
            order = """
rounds = {}
while len(rounds) < count:
    now = [
        job
        for job in range(count)
        if job not in rounds and all(a in rounds for a, b in rules if b == job)
    ]
    number = max(rounds.values(), default=0) + 1
    rounds.update({job: number for job in now})
result = [rounds[job] for job in range(count)]
"""
        return Problem("order_jobs", inputs, words, order, "numbers", drawn)
    if level == 4:
        inputs = (
            inputs[0],
            Input("hours", "numbers", "hours that each job takes; jobs have the numbers from 0 on"),
        )
        words = (
            "Every job begins as soon as all jobs are done that must be done before it; any number "
            "of jobs can be done at the same time. Find the hour at which each job is done, if the "
            "first ones begin at 0. List these hours, from job 0 on."
        )
        order = """
done = {}
while len(done) < len(hours):
    for job in range(len(hours)):
        before = [a for a, b in rules if b == job]
        if job not in done and all(a in done for a in before):
            done[job] = max([done[a] for a in before], default=0) + hours[job]
result = [done[job] for job in range(len(hours))]
"""
    else:
        words = (
            f"Do one job after the other: each time the one with the {which} number of those that "
            "are not done and may be done now, until there is none. Some jobs may wait for each "
            "other in a circle, so they and all that wait for them are never done. List the jobs "
            "that are done, in this order, and after them all others, the smallest number first."
        )
        order += "result += sorted(left)\n"
    return Problem("order_jobs", inputs, words, order, "numbers", drawn)


def _trees(draw: Random, level: int) -> Problem:
    def drawn(draw: Random, size: int) -> tuple[Any, ...]:
        parents = [-1]
        for person in range(1, size + 1):
            parents.append(draw.randrange(max(person - 4, 0), person))
        return (parents,)

    inputs: tuple[Input, ...] = (
        Input(
            "bosses", "numbers", "the boss of each person, from person 0 on; person 0 has -1, none"
        ),
    )
    chain = """
def above(person):
    found = []
    while bosses[person] != -1:
        person = bosses[person]
        found.append(person)
    return found

people = range(len(bosses))
"""
    if level <= 2:
        words = (
            "For every person, from 0 on, find how many bosses there are above: 0 for person 0, "
            "and one more than for the boss for any other. List these numbers."
        )
        end = "result = [len(above(person)) for person in people]"
    elif level == 3:
        words, end = draw.choice(
            (
                (
                    "Those below a person are those whose boss it is, those whose bosses they are, "
                    "and so on. For every person, from 0 on, find how many are below. List these "
                    "numbers.",
                    "result = [sum(one in above(other) for other in people) for one in people]",
                ),
                (
                    "List the people who are nobody's boss, those with the most bosses above first "
                    "(a boss, the boss's boss, and so on), and those with as many by their number, "
                    "the smallest first.",
                    "result = sorted(\n    set(people) - set(bosses), "
                    "key=lambda person: (-len(above(person)), person)\n)",
                ),
            )
        )
    elif level == 4:
        words = (
            "A message goes from a boss to each person whose boss it is, one after the other, the "
            "smallest number first, a minute each; who has got it begins to pass it on at once. "
            "Person 0 begins at minute 0, so the first who gets it has it at minute 1. For every "
            "person, from 0 on, find the minute. List these numbers; person 0 has 0."
        )
        end = """
result, sent = [0], {}
for person in people[1:]:
    boss = bosses[person]
    sent[boss] = sent.get(boss, 0) + 1
    result.append(result[boss] + sent[boss])
"""
        chain = "people = range(len(bosses))\n"
    else:
        inputs = (*inputs, Input("pairs", "rows", "each has two people"))
        plain = drawn

        def drawn(draw: Random, size: int) -> tuple[Any, ...]:
            (parents,) = plain(draw, size)
            count = len(parents)
            return parents, [
                [draw.randrange(count), draw.randrange(count)] for _ in range(size // 2 + 1)
            ]

        words = (
            "Letters go from a person to the boss or to one whose boss the person is, and so "
            "on. For "
            "each pair find how often a letter is handed on at least, on its way from the first to "
            "the second: 0 for somebody and the same person. List these numbers."
        )
        end = """
result = []
for one, other in pairs:
    first, second = [one, *above(one)], [other, *above(other)]
    both = set(first) & set(second)
    result.append(sum(person not in both for person in first + second))
"""
    return Problem("look_at_bosses", inputs, words, chain + end, "numbers", drawn)


ROADS: Final = Family("roads", _roads)
GROUPS: Final = Family("groups", _groups)
WORK: Final = Family("work", _work)
TREES: Final = Family("trees", _trees)

"""Puzzles of words, things, places and times agree with simple solvers that read the question."""

import itertools
import re
from collections.abc import Callable, Iterable, Iterator
from random import Random

import pytest

from fulmen.envs.logic import Puzzle
from fulmen.envs.logic.kinds import KINDS
from fulmen.envs.logic.puzzle import LEVELS
from fulmen.envs.logic.words import COLOURS, GROUPS, OBJECTS, PEOPLE, PLACES, WORDS

CLOSING = {"(": ")", "[": "]", "{": "}", "<": ">"}
ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def puzzles(name: str, levels: range = LEVELS, num: int = 12) -> Iterator[Puzzle]:
    for level in levels:
        for index in range(num):
            yield KINDS[name].make(Random(f"solved {name} {level} {index}"), level)


def found(pattern: str, text: str) -> list[str]:
    """The groups of the only place where a pattern fits."""
    (match,) = re.finditer(pattern, text)
    return list(match.groups())


def only_right(puzzle: Puzzle, answers: Iterable[str]) -> None:
    """Check that of all these answers just the known one is right."""
    assert [answer for answer in answers if puzzle.is_right(answer)] == [puzzle.answer]


def brackets_of(puzzle: Puzzle) -> str:
    return puzzle.question.split("\n\n")[1].replace(" ", "")


def without_pairs(sequence: str) -> str:
    while (shorter := re.sub(r"\(\)|\[\]|\{\}|<>", "", sequence)) != sequence:
        sequence = shorter
    return sequence


def test_brackets_are_closed() -> None:
    for puzzle in puzzles("dyck_language"):
        left = without_pairs(brackets_of(puzzle))
        assert puzzle.answer == " ".join(CLOSING[bracket] for bracket in reversed(left))
    for puzzle in puzzles("dyck_language", range(1, 2)):
        lengths = (itertools.product("()[]", repeat=length) for length in range(1, 5))
        only_right(puzzle, (" ".join(one) for one in itertools.chain(*lengths)))


def test_the_first_bracket_that_cannot_stand_there_is_the_error() -> None:
    kinds = set()
    for puzzle in puzzles("dyck_language_errors", num=25):
        sequence = brackets_of(puzzle)
        bad = [
            i for i in range(1, len(sequence) + 1) if set(without_pairs(sequence[:i])) & set(")]}>")
        ]
        error = (
            str(bad[0]) if bad else str(len(sequence) + 1) if without_pairs(sequence) else "none"
        )
        assert puzzle.answer == error
        only_right(puzzle, (*map(str, range(-1, len(sequence) + 5)), "none"))
        kinds.add("none" if error == "none" else "inside" if bad else "end")
    assert kinds == {"none", "inside", "end"}


def test_words_are_sorted() -> None:
    for puzzle in puzzles("word_sorting"):
        order, text, _ = puzzle.question.split("\n\n")
        words, letters = text.split(", "), ALPHABET.lower()
        if "begins with" in order:
            (first,) = found(r"begins with ([a-z, ]+)\.", order)
            letters = first.replace(", ", "") + re.sub(f"[{first}]", "", letters)
        elif "by this alphabet" in order:
            letters = found(r"alphabet: ([a-z, ]+)\.", order)[0].replace(", ", "")
        turned = str.maketrans(letters, ALPHABET)
        words.sort(key=lambda word: word.translate(turned), reverse="from Z to A" in order)
        assert puzzle.answer == ", ".join(words)
    for puzzle in puzzles("word_sorting", range(1, 2)):
        words = puzzle.answer.split(", ")
        only_right(puzzle, (", ".join(one) for one in itertools.permutations(words)))
        only_right(puzzle, (", ".join(words[:i]) for i in range(4)))


def claim_of(sentence: str) -> Callable[[dict[str, bool]], bool]:
    if " says that " in sentence:
        name, said = sentence.split(" says that ")
        claim = claim_of(said)
        return lambda truth: truth[name] == claim(truth)
    if " and " in sentence:
        one, other, kind = found(
            r"(\w+) and (\w+) are of (the same kind|different kinds)", sentence
        )
        return lambda truth: (truth[one] == truth[other]) == (kind == "the same kind")
    name, verdict = found(r"^(\w+) (tells the truth|lies)$", sentence)
    return lambda truth: truth[name] == (verdict == "tells the truth")


def test_just_one_web_of_lies_is_possible() -> None:
    easy, hard = puzzles("web_of_lies", range(1, 5), num=6), puzzles("web_of_lies", num=1)
    for puzzle in itertools.chain(easy, hard):
        _, sentences, asked = puzzle.question.split("\n\n")
        claims = [claim_of(sentence) for sentence in sentences.rstrip(".").split(". ")]
        names = sorted(set(re.findall(r"[A-Z]\w+", sentences)))
        asked = asked.partition("truth: ")[2] or asked.partition("Does ")[2]
        about = re.findall(r"[A-Z]\w+", asked.partition("?")[0])
        worlds = []
        for values in itertools.product((False, True), repeat=len(names)):
            truth = dict(zip(names, values, strict=True))
            if all(claim(truth) for claim in claims):
                worlds.append(truth)
        assert len(worlds) == 1
        assert puzzle.answer == ", ".join("yes" if worlds[0][name] else "no" for name in about)
        answers = itertools.product(("yes", "no"), repeat=len(about))
        only_right(puzzle, (", ".join(answer) for answer in answers))


def test_things_are_counted() -> None:
    for puzzle in puzzles("object_counting"):
        story, asked = puzzle.question.split("\n\n")
        has: dict[tuple[str, str], int] = {}
        for sentence in story.rstrip(".").split(". "):
            name, verb, rest = sentence.split(" ", maxsplit=2)
            for number, thing in re.findall(r"(\d+) (\w+)", rest):
                sign = 1 if verb in ("has", "buys") else -1
                has[name, thing] = has.get((name, thing), 0) + sign * int(number)
                if verb == "gives":
                    other = rest.rpartition(" to ")[2]
                    has[other, thing] = has.get((other, thing), 0) + int(number)
                assert has[name, thing] >= 0
        groups, owner = found(r"How many (.+) does (\w+) have", asked)
        total = sum(
            number
            for (name, thing), number in has.items()
            for group, things in GROUPS.items()
            if name == owner and group in groups and thing in things.split()
        )
        assert puzzle.answer == str(total)
        only_right(puzzle, map(str, range(-5, 1000)))


def changed(things: dict[str, set[str]], kinds: dict[str, str], sentence: str) -> None:
    """Change things, known by the set of what each is, as a sentence says."""
    if sentence.endswith("is taken away."):
        (old,) = found(r"^Everything (\w+) is taken", sentence)
        for name in [name for name, has in things.items() if old in has]:
            del things[name]
    elif " becomes " in sentence:
        turns = dict(re.findall(r"verything (\w+) becomes (\w+)", sentence))
        for name, has in things.items():
            things[name] = {turns.get(value, value) for value in has}
    else:
        exchange = re.match(r"The (\w+) and the (\w+) exchange their (\w+)\.", sentence)
        like = re.match(r"The (\w+) takes on the (\w+) of the (\w+),", sentence)
        assert exchange or like
        first, second, kind = exchange.groups() if exchange else like.group(1, 3, 2)  # type: ignore[union-attr]
        mine = {value for value in things[first] if kinds[value] == kind}
        yours = {value for value in things[second] if kinds[value] == kind}
        things[first] = things[first] - mine | yours
        if exchange:
            things[second] = things[second] - yours | mine


def test_things_have_their_properties() -> None:
    kinds = {
        **dict.fromkeys(COLOURS, "colour"),
        **dict.fromkeys(("tiny", "small", "large", "huge"), "size"),
        **dict.fromkeys(("wooden", "metal", "plastic", "glass"), "material"),
        **dict.fromkeys(("smooth", "rough", "striped", "dotted"), "surface"),
    }
    for puzzle in puzzles("object_properties"):
        listed = re.findall(r"^- (\w+): (.+)$", puzzle.question, re.MULTILINE)
        things = {name: set(values.split(", ")) for name, values in listed}
        for sentence in re.findall(r"^(?:Everything|The) .+\.$", puzzle.question, re.MULTILINE):
            changed(things, kinds, sentence)
        (asked,) = found(r"Which things are ([\w ]+?)(?: now)?\?", puzzle.question)
        names = [name for name, has in things.items() if set(asked.split(" and ")) <= has]
        assert names
        assert sorted(puzzle.answer.split(", ")) == sorted(names)
        assert puzzle.is_right("the " + " and the ".join(reversed(names)))
        others = [name for name, _ in listed if name not in names]
        assert not puzzle.is_right(", ".join([*names, *others[:1], *names[:1]]))
        assert not any(puzzle.is_right(", ".join([*names, other])) for other in others)


def test_the_longest_free_time_is_found() -> None:
    for puzzle in puzzles("time_sequence"):
        free = [True] * 1440
        for line in puzzle.question.split("\n\n")[0].split("\n"):
            zone = re.search(r"clock that is (\d+) hours? (ahead|behind)", line)
            shift = 0 if zone is None else int(zone[1]) * (-60 if zone[2] == "ahead" else 60)
            for times in re.findall(r"(\d+):(\d\d)-(\d+):(\d\d)", line):
                a, b, c, d = map(int, times)
                assert 60 * a + b < 60 * c + d
                for minute in range(60 * a + b + shift, 60 * c + d + shift):
                    free[minute] = False
        spans, begin = [], 480
        for minute in range(480, 1201):
            if minute == 1200 or not free[minute]:
                spans.append((minute - begin, begin, minute))
                begin = minute + 1
        (size, begin, end), (rival, _, _) = sorted(spans, reverse=True)[:2]
        assert rival < size
        assert puzzle.answer == f"{begin // 60}:{begin % 60:02}-{end // 60}:{end % 60:02}"


def test_a_walk_ends_where_its_lines_lead() -> None:
    ways = {"north": 1j, "east": 1, "south": -1j, "west": -1}
    sides = {"forward": 1, "to your right": -1j, "backward": -1, "to your left": 1j}
    for puzzle in puzzles("space_reasoning"):
        lines = re.findall(r"^\d+\. (.+)\.$", puzzle.question, re.MULTILINE)

        def walked(
            line: str, at: complex, facing: complex, lines: list[str] = lines
        ) -> list[complex]:
            if line.startswith("Do"):
                first, last = map(int, re.findall(r"\d+", line))
                for one in lines[first - 1 : last]:
                    at, facing = walked(one, at, facing)
            elif line.startswith("Turn"):
                facing *= {"left": 1j, "right": -1j, "around": -1}[line.split()[1]]
            else:
                number, way = found(r"^Walk (\d+) steps? (.+)$", line)
                at += int(number) * (ways[way] if way in ways else facing * sides[way])
            return [at, facing]

        at, facing = 0j, 1j
        for line in lines:
            at, facing = walked(line, at, facing)
        assert puzzle.answer == f"{at.real:.0f}, {at.imag:.0f}".replace("-0,", "0,")
        assert not puzzle.is_right(f"{at.imag:.0f}, {at.real + 1:.0f}")


def test_the_only_way_through_a_tree_is_found() -> None:
    back = {"north": "south", "south": "north", "east": "west", "west": "east"}
    for puzzle in puzzles("space_reasoning_tree"):
        roads: dict[str, dict[str, str]] = {}
        for way, one, other in re.findall(
            r"leads (\w+) from the (\w+) to the (\w+)", puzzle.question
        ):
            assert way not in roads.setdefault(one, {})
            roads[one][way] = other
            assert back[way] not in roads.setdefault(other, {})
            roads[other][back[way]] = one
        begin, end = found(r"shortest way from the (\w+) to the (\w+)\?", puzzle.question)
        assert sum(map(len, roads.values())) == 2 * (len(roads) - 1)

        def ways(
            place: str, seen: list[str], roads: dict[str, dict[str, str]] = roads
        ) -> list[list[str]]:
            if place == end:  # noqa: B023
                return [[]]
            return [
                [way, *rest]
                for way, other in roads[place].items()
                if other not in seen
                for rest in ways(other, [*seen, other])
            ]

        (way,) = ways(begin, [begin])
        assert puzzle.answer == ", ".join(way)
        assert not puzzle.is_right(", ".join([*way, way[-1], back[way[-1]]]))


def encoded(text: str, rule: str) -> str:
    """Encode a text by the words of a rule."""
    numbers = list(map(int, re.findall(r"\d+", rule)))
    if "places after" in rule or "place after" in rule:
        return "".join(chr((ord(letter) - 65 + numbers[0]) % 26 + 65) for letter in text)
    if rule.startswith("A becomes Z"):
        return "".join(chr(155 - ord(letter)) for letter in text)
    if "backwards" in rule:
        return "".join(reversed(text))
    if "changes places" in rule:
        return re.sub("(.)(.)", r"\2\1", text)
    if "partner in this table" in rule:
        table = dict(re.findall("([A-Z])-([A-Z])", rule))
        return "".join(table[letter] for letter in text)
    if rule.startswith("The first letter moves"):
        first, more = numbers
        return "".join(
            chr((ord(letter) - 65 + first + place * more) % 26 + 65)
            for place, letter in enumerate(text)
        )
    if rule.startswith("The key"):
        (key,) = found("The key ([A-Z]+) is", rule)
        return "".join(
            chr((ord(a) + ord(b)) % 26 + 65)  # 65 + 65 is a multiple of 26
            for a, b in zip(text, itertools.cycle(key), strict=False)
        )
    assert "column by column" in rule
    rows = [text[i : i + numbers[0]] for i in range(0, len(text), numbers[0])]
    return "".join("".join(one) for one in itertools.zip_longest(*rows, fillvalue=""))


def test_a_cipher_follows_its_rules() -> None:
    for puzzle in puzzles("cipher", num=25):
        rules = puzzle.question.split("\n\n")[1].split("\n")
        (text,) = found(r"Text: ([A-Z]+)\n", puzzle.question)
        is_decoding = puzzle.question.startswith("Decode")
        code = puzzle.answer if is_decoding else text
        for rule in rules:
            code = encoded(code, re.sub(r"^\d+\. ", "", rule))
        assert code == (text if is_decoding else puzzle.answer)
        assert not puzzle.is_right(puzzle.answer + "A")
    for puzzle in puzzles("cipher", range(1, 2)):
        only_right(puzzle, {puzzle.answer, *(word.upper() for word in WORDS)})


def test_lists_of_words_have_no_word_twice() -> None:
    for words in (WORDS, OBJECTS, PEOPLE, PLACES, COLOURS):
        assert len(set(words)) == len(words)
    things = " ".join(GROUPS.values()).split()
    assert len(set(things)) == len(things)
    assert all(word.isascii() and word.isalpha() and word.islower() for word in WORDS)
    assert not {"and", "the"} & {*WORDS, *OBJECTS}  # lists of answers may have them in between


@pytest.mark.parametrize("level", LEVELS)
def test_a_table_is_mended(level: int) -> None:
    for puzzle in puzzles("buggy_tables", range(level, level + 1)):
        _, text, said, asked = puzzle.question.split("\n\n")
        heading, *lines = [line.split(" | ") for line in text.split("\n")]
        errors = [re.sub(r"^\d+\. |^There was one error: ", "", line) for line in said.split("\n")]
        for error in reversed([error for error in errors if not error.startswith("These")]):
            mend(heading, lines, error)
        place = heading.index(found(r"How many (\w+) did", asked)[0])
        chosen = lines
        if level == 1:
            chosen = [line for line in lines if line[0] == found(r"did (\w+) buy", asked)[0]]
        if level > 2:
            chosen = [line for line in lines if line[1] == found(r"the (\w+) team", asked)[0]]
        if level > 3:
            limit, thing = found(r"at least (\d+) (\w+)\?", asked)
            chosen = [line for line in chosen if int(line[heading.index(thing)]) >= int(limit)]
        assert chosen
        assert puzzle.answer == str(sum(int(line[place]) for line in chosen))
        assert all(10 <= int(cell) <= 99 for line in lines for cell in line if cell[-1].isdigit())


def mend(heading: list[str], lines: list[list[str]], error: str) -> None:
    """Undo an error in a table of texts."""
    under = re.search(r"under (\w+)", error)
    place = heading.index(under[1]) if under else 0
    if "became" in error:
        number, words = found(r"became (\d+) too (\w+)", error)
        for line in lines:
            line[place] = str(int(line[place]) - int(number) * (1 if words == "large" else -1))
    elif "doubled" in error:
        for line in lines:
            line[place] = str(int(line[place]) // 2)
    elif "slid down" in error:
        column = [line[place] for line in lines]
        for line, cell in zip(lines, column[1:] + column[:1], strict=True):
            line[place] = cell
    elif "headings" in error:
        one, other = found(r"headings (\w+) and (\w+)", error)
        i, j = heading.index(one), heading.index(other)
        heading[i], heading[j] = other, one
    elif "each other's" in error:
        one, other = found(r"(\w+) and (\w+) got", error)
        first, second = (next(line for line in lines if line[0] == name) for name in (one, other))
        first[place], second[place] = second[place], first[place]
    else:
        above, row = found(r"below the row of (\w+), was lost: (.+)\.", error)
        lines.insert([line[0] for line in lines].index(above) + 1, row.split(" | "))

"""Frames of word problems: who has what, and the ways in which that is said.

A frame's quantity begins as given numbers or as one step of two of them, and every turn is one more
step. Each step is said in several ways, and the same words serve several operations ("more" adds
when the one who has more is asked for, and else it subtracts), so no word tells what to do.
"""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Frame:
    """Words of one kind of story. In them {who} is the holder, {a} and {b} are numbers with their
    sign or unit, and {n} is what is added or taken away."""

    name: str
    holders: tuple[str, ...]
    things: tuple[str, ...]
    """Things that are counted; or the one unit of what is measured"""
    has: str
    """Verb of the holder"""
    asks: tuple[str, ...]
    products: tuple[str, ...]
    """{a} groups of {b}"""
    quotients: tuple[str, ...]
    """{a} things in {b} equal parts, of which the holder has one"""
    sums: tuple[str, ...]
    rests: tuple[str, ...]
    """{a} things without {b} of them"""
    gains: tuple[str, ...]
    losses: tuple[str, ...]
    loses: str
    """Verb of the holder for a share that is given away: gives away, sells"""
    kind: str = "count"
    """count, money, or measure: what may have fractions"""


NAMES: Final = (
    *("Tom", "Ann", "Ben", "Mia", "Leo", "Eva", "Sam", "Ida", "Max", "Lea", "Paul", "Nora"),
    *("Omar", "Yuki", "Ravi", "Zoe", "Karl", "Ines", "Amir", "Rosa"),
)
_HAVE: Final = (
    "How many {things} does {who} have {now}?",
    "How many {things} are {who}'s {now}?",
    "Find the number of {things} that {who} has {now}.",
)
COUNTS: Final = (
    Frame(
        name="collection",
        holders=NAMES,
        things=("marbles", "stamps", "shells", "coins", "cards", "stickers", "buttons"),
        has="has",
        asks=_HAVE,
        products=(
            "{who} has {a} boxes with {b} {things} in each.",
            "In each of {who}'s {a} bags there are {b} {things}.",
            "{who} keeps {b} {things} on a page and fills {a} pages.",
        ),
        quotients=(
            "{a} {things} are dealt out evenly to {b} children, and {who} is one of them.",
            "{who} and {b_less} friends share {a} {things} evenly.",
            "{b} equal piles are made of {a} {things}, and {who} gets one pile.",
        ),
        sums=(
            "{who} has {a} old {things} and {b} new ones.",
            "Of {who}'s {things}, {a} are small and the other {b} are large.",
            "{who} has {a} {things} at home and {b} at school.",
        ),
        rests=(
            "There are {a} {things} on a table; {b} belong to a friend and the others to {who}.",
            "{who} had {a} {things} this morning, and {b} are gone.",
            "A friend has {b} of {a} {things}, and {who} has the others.",
        ),
        gains=(
            "{who} finds {n} {things} in a drawer.",
            "A friend gives {who} {n} {things}.",
            "{who} gets {n} {things} for a birthday.",
        ),
        losses=(
            "{who} gives a friend {n} {things}.",
            "A friend gets {n} {things} from {who}.",
            "{n} of {who}'s {things} are lost.",
        ),
        loses="gives away",
    ),
    Frame(
        name="farm",
        holders=("the north farm", "the south farm", "the hill farm", "the river farm"),
        things=("eggs", "apples", "pears", "pumpkins", "melons", "cabbages"),
        has="has",
        asks=_HAVE,
        products=(
            "At {who} {a} baskets are filled with {b} {things} each.",
            "{who} packs {b} {things} into every crate and has {a} full crates.",
            "{a} rows of {b} {things} are all that {who} has.",
        ),
        quotients=(
            "A harvest of {a} {things} goes to {b} farms in equal parts, one of them {who}.",
            "{b} farms, {who} among them, divide {a} {things} evenly.",
            "Each of {b} farms, {who} among them, has the same share of {a} {things}.",
        ),
        sums=(
            "In the morning {a} {things} come in at {who}, in the evening {b}.",
            "{who} has {a} {things} in the barn and {b} in the yard.",
            "At {who} there are {a} ripe {things} and {b} others.",
        ),
        rests=(
            "Of {a} {things} at {who}, {b} are spoiled and thrown out.",
            "At {who} {b} of {a} {things} are eaten.",
            "{who} had {a} {things}, but {b} went to the market.",
        ),
        gains=(
            "A neighbour brings {n} {things} to {who}.",
            "{n} {things} are carried into the barn of {who}.",
            "A cart with {n} {things} comes to {who}.",
        ),
        losses=(
            "A neighbour fetches {n} {things} from {who}.",
            "{n} {things} are carried out of the barn of {who}.",
            "A cart with {n} {things} leaves {who}.",
        ),
        loses="sells",
    ),
    Frame(
        name="library",
        holders=("the red shelf", "the blue shelf", "the green shelf", "the white shelf"),
        things=("books", "journals", "maps", "comics"),
        has="holds",
        asks=(
            "How many {things} does {who} hold {now}?",
            "How many {things} stand on {who} {now}?",
            "Find the number of {things} on {who} {now}.",
        ),
        products=(
            "On {who} there are {a} boards with {b} {things} each.",
            "{who} holds {b} {things} a board and has {a} boards.",
            "{a} piles of {b} {things} are moved to {who}, which was empty.",
        ),
        quotients=(
            "{a} {things} are put on {b} shelves evenly, {who} among them.",
            "{who} and {b_less} other shelves hold {a} {things} in equal numbers.",
            "{b} shelves take an equal part of {a} {things}, and {who} is one of them.",
        ),
        sums=(
            "{who} holds {a} thick {things} and {b} thin ones.",
            "Beside {a} old {things} there are {b} new ones on {who}.",
            "Of the {things} on {who}, {a} are for children and {b} are not.",
        ),
        rests=(
            "{who} has room for {a} {things}, and {b} places are free.",
            "Of {a} {things} on {who}, {b} are taken out.",
            "{b} of the {a} {things} that stood on {who} are lent.",
        ),
        gains=(
            "{n} {things} come back to {who}.",
            "Somebody puts {n} {things} on {who}.",
            "A reader returns {n} {things} to {who}.",
        ),
        losses=(
            "{n} {things} on {who} are lent to a reader.",
            "Somebody takes {n} {things} from {who}.",
            "A reader borrows {n} {things} from {who}.",
        ),
        loses="gives up",
    ),
    Frame(
        name="bus",
        holders=("bus 1", "bus 2", "bus 3", "bus 4"),
        things=("people", "children", "tourists", "students"),
        has="has",
        asks=(
            "How many {things} are on {who} {now}?",
            "Find the number of {things} on {who} {now}.",
            "How many {things} does {who} carry {now}?",
        ),
        products=(
            "On {who} there are {a} rows with {b} {things} in each.",
            "{a} groups of {b} {things} get on {who}, which was empty.",
            "{b} {things} sit in each of the {a} rows of {who}.",
        ),
        quotients=(
            "{a} {things} get on {b} buses, the same number on each; {who} is one of them.",
            "{b} buses, {who} among them, carry {a} {things} in equal numbers.",
            "{who} takes an equal part of {a} {things}, and so do {b_less} other buses.",
        ),
        sums=(
            "On {who} {a} {things} sit and {b} stand.",
            "{a} {things} are in the front of {who} and {b} in the back.",
            "On {who} {a} {things} have a ticket and {b} have none.",
        ),
        rests=(
            "{who} has {a} seats, of which {b} are empty, and {things} on all others.",
            "Of {a} {things} that wait, {b} stay behind and the others get on {who}.",
            "Of {a} {things} on {who}, {b} get off.",
        ),
        gains=(
            "At a stop {n} {things} get on {who}.",
            "{n} {things} who waited in the rain are let into {who}.",
            "{n} {things} change from a tram to {who}.",
        ),
        losses=(
            "At a stop {n} {things} get off {who}.",
            "{n} {things} on {who} are at home, say goodbye and get off.",
            "{n} {things} change from {who} to a tram.",
        ),
        loses="lets out",
    ),
    Frame(
        name="bakery",
        holders=("the bakery", "the cafe", "the market stall", "the canteen"),
        things=("rolls", "buns", "cakes", "pies", "cookies", "loaves"),
        has="has",
        asks=_HAVE,
        products=(
            "{who} has {a} trays of {b} {things}.",
            "Each of the {a} trays at {who} holds {b} {things}.",
            "In {a} hours {who} bakes {b} {things} an hour.",
        ),
        quotients=(
            "{a} {things} are delivered to {b} places evenly, one of them {who}.",
            "{who} and {b_less} other places get equal parts of {a} {things}.",
            "Out of {a} {things} {b} equal orders are made up, one of them for {who}.",
        ),
        sums=(
            "{who} has {a} {things} with sugar and {b} without.",
            "There are {a} {things} in the window of {who} and {b} in the oven.",
            "{who} bakes {a} {things} before noon and {b} after it.",
        ),
        rests=(
            "{who} baked {a} {things}, and {b} of them are sold.",
            "Of {a} {things} at {who}, {b} are burnt and thrown away.",
            "{b} of {a} {things} at {who} were kept for a guest, who has taken them.",
        ),
        gains=(
            "A van brings {who} {n} {things}.",
            "{n} {things} come out of the oven of {who}.",
            "{who} bakes {n} {things}.",
        ),
        losses=(
            "A guest of {who} buys {n} {things}.",
            "{n} {things} of {who} fall on the floor and are thrown away.",
            "{who} sends {n} {things} to a school.",
        ),
        loses="sells",
    ),
    Frame(
        name="garden",
        holders=("the rose bed", "the long bed", "the round bed", "the corner bed"),
        things=("tulips", "roses", "lilies", "daisies", "herbs", "ferns"),
        has="has",
        asks=(
            "How many {things} does {who} have {now}?",
            "How many {things} grow in {who} {now}?",
            "Find the number of {things} in {who} {now}.",
        ),
        products=(
            "In {who} there are {a} rows with {b} {things}.",
            "{who} is {a} steps long, with {b} {things} on every step.",
            "{b} {things} are planted in {who} on each of {a} days; it was empty before.",
        ),
        quotients=(
            "{a} {things} are planted in {b} beds evenly, one of them {who}.",
            "{b} beds, {who} among them, have {a} {things} in equal numbers.",
            "{who} gets one of {b} equal parts of {a} {things}.",
        ),
        sums=(
            "In {who} {a} {things} are in bloom and {b} are not.",
            "{who} has {a} tall {things} and {b} short ones.",
            "There are {a} {things} on the left of {who} and {b} on the right.",
        ),
        rests=(
            "Of {a} {things} in {who}, {b} have withered and are pulled out.",
            "{who} had {a} {things}, until snails ate {b}.",
            "A storm leaves {who} without {b} of its {a} {things}.",
        ),
        gains=(
            "The gardener sets {n} {things} in {who}.",
            "{n} {things} move from a pot to {who}.",
            "In spring {n} {things} come up in {who}.",
        ),
        losses=(
            "The gardener digs {n} {things} out of {who}.",
            "{n} {things} move from {who} to a pot.",
            "In winter {n} {things} in {who} freeze and are pulled out.",
        ),
        loses="loses",
    ),
)
"""Frames of things that are counted"""

"""Frames of what is paid and measured: at high levels money has cents, measures have fractions."""

from typing import Final

from fulmen.envs.words.frames import NAMES, Frame

_MONEY: Final = (
    "How many dollars does {who} have {now}?",
    "How much money does {who} have {now}?",
    "Find the amount that {who} has {now}.",
)
_MEASURES: Final = (
    "How many {things} does {who} have {now}?",
    "How much does {who} have {now}, in {things}?",
    "Find how many {things} {who} has {now}.",
)

AMOUNTS: Final = (
    Frame(
        name="savings",
        kind="money",
        holders=NAMES,
        things=("dollars",),
        has="has",
        asks=_MONEY,
        products=(
            "{who} saves {b} a week for {a} weeks and had nothing before.",
            "For {a} weeks {who}, who had no money, gets {b} every week and keeps it.",
            "{who} has {a} envelopes with {b} in each.",
        ),
        quotients=(
            "{a} is shared evenly by {b} cousins, one of them {who}.",
            "{who} and {b_less} cousins divide {a} evenly.",
            "Each of {b} cousins gets the same part of {a}, and so does {who}, who is one of them.",
        ),
        sums=(
            "{who} has {a} in a jar and {b} in a purse.",
            "There are {a} in one pocket of {who} and {b} in the other.",
            "Of {who}'s money, {a} is in coins and {b} in notes.",
        ),
        rests=(
            "{who} had {a} and lent {b} to a friend.",
            "Of {who}'s {a}, a bike takes {b}.",
            "{who} needs {a} for a trip and {b} are missing; the rest is there.",
        ),
        gains=(
            "An aunt gives {who} {n}.",
            "{who} earns {n} with a lawn.",
            "A friend pays {n} back to {who}.",
        ),
        losses=(
            "{who} gives an aunt {n} for flowers.",
            "A lawn mower costs {who} {n}.",
            "{who} pays {n} back to a friend.",
        ),
        loses="spends",
    ),
    Frame(
        name="shop",
        kind="money",
        holders=("the till", "the cash box", "the kiosk", "the front desk"),
        things=("dollars",),
        has="has",
        asks=_MONEY,
        products=(
            "With {a} tickets at {b} each {who} takes its first money of the day.",
            "{a} guests pay {b} each at {who}, which was empty.",
            "{who} was empty, and {a} maps are sold there for {b} each.",
        ),
        quotients=(
            "{a} of change are put in {b} places evenly, one of them {who}.",
            "{who} and {b_less} others get equal parts of {a} in the morning.",
            "In the morning {a} are split evenly into {b} parts, and {who} gets one of them.",
        ),
        sums=(
            "{who} takes {a} before noon and {b} after it.",
            "In {who} there are {a} in coins and {b} in notes.",
            "{who} has {a} from adults and {b} from children.",
        ),
        rests=(
            "{who} has {a}, but {b} of it goes to the bank.",
            "Of {a} in {who} a driver gets {b}.",
            "{b} of {a} in {who} were wrong and are handed back.",
        ),
        gains=(
            "A guest pays {n} at {who}.",
            "{n} of change are brought to {who}.",
            "{who} takes {n} for a hat.",
        ),
        losses=(
            "A guest gets {n} back from {who}.",
            "{n} of change are fetched from {who}.",
            "{who} pays {n} for a hat that came back.",
        ),
        loses="hands out",
    ),
    Frame(
        name="wages",
        kind="money",
        holders=NAMES,
        things=("dollars",),
        has="has",
        asks=_MONEY,
        products=(
            "{who} works {a} hours for {b} an hour and had no money before.",
            "With no money at first, {who} delivers {a} parcels and gets {b} for each.",
            "{who}, whose purse was empty, cleans {a} windows at {b} a window.",
        ),
        quotients=(
            "{b} painters earn {a} together and divide it evenly; {who} is one of them.",
            "For a job {who} and {b_less} others get {a} together, each as much as the next.",
            "{a} is the wage of {b} people in equal parts, and {who} is one of these people.",
        ),
        sums=(
            "{who} gets {a} for work and {b} as a tip.",
            "{who} has {a} from Monday and {b} from Tuesday.",
            "On one day {who} earns {a}, on the next one {b}.",
        ),
        rests=(
            "{who} earns {a}, and the tax is {b}.",
            "From a wage of {a}, {who} loses {b} for tools.",
            "{who} was to get {a}, but {b} were kept back.",
        ),
        gains=(
            "{who} gets {n} for a late shift.",
            "The boss owes {who} {n} and pays it.",
            "A fee of {n} comes back to {who}.",
        ),
        losses=(
            "{who} pays {n} for a late bus.",
            "{who} owes the boss {n} and pays it.",
            "A fee of {n} is due, and {who} pays it.",
        ),
        loses="spends",
    ),
    Frame(
        name="juice",
        kind="measure",
        holders=("the kitchen", "the cellar", "the camp", "the school"),
        things=("litres",),
        has="has",
        asks=_MEASURES,
        products=(
            "{who} has {a} bottles with {b} of juice in each.",
            "In each of the {a} cans of {who} there are {b} of milk.",
            "On {a} days {b} of water a day are brought to {who}, where there was none.",
        ),
        quotients=(
            "{a} of juice are poured evenly into {b} barrels, and {who} gets one barrel.",
            "{who} and {b_less} other places get equal parts of {a} of milk.",
            "{b} places, {who} among them, divide {a} of water evenly.",
        ),
        sums=(
            "{who} has {a} of warm water and {b} of cold water.",
            "There are {a} of soup in one pot of {who} and {b} in the other.",
            "{who} mixes {a} of juice and {b} of water.",
        ),
        rests=(
            "{who} has {a} of milk, and {b} of it turn sour and are poured out.",
            "Of {a} of soup in {who}, {b} are eaten.",
            "A barrel of {who} that holds {a} lacks {b}.",
        ),
        gains=(
            "{n} are poured in at {who}.",
            "{who} gets {n} from a neighbour.",
            "A tap adds {n} to what {who} has.",
        ),
        losses=(
            "{n} are poured out at {who}.",
            "A neighbour gets {n} from {who}.",
            "A leak costs {who} {n}.",
        ),
        loses="uses",
    ),
    Frame(
        name="ribbon",
        kind="measure",
        holders=NAMES,
        things=("metres",),
        has="has",
        asks=_MEASURES,
        products=(
            "{who} has {a} rolls with {b} of ribbon on each.",
            "{who} sews {a} pieces of cloth of {b} each into one strip.",
            "Every one of {who}'s {a} ropes is {b} long.",
        ),
        quotients=(
            "A rope of {a} is cut into {b} equal pieces, and {who} gets one.",
            "{who} and {b_less} friends divide {a} of ribbon evenly.",
            "{b} equal strips come from a cloth of {a}, and one strip is for {who}.",
        ),
        sums=(
            "{who} has {a} of red ribbon and {b} of blue ribbon.",
            "{who} ties a rope of {a} to one of {b}; the knot takes nothing.",
            "Of {who}'s cloth, {a} are plain and {b} have dots.",
        ),
        rests=(
            "{who} buys {a} of cloth, of which {b} are torn and go back to the shop.",
            "{who} had {a} of rope and has given {b} of it to a neighbour.",
            "From {a} of ribbon a friend of {who} cuts {b}; {who} has the rest.",
        ),
        gains=(
            "A shop sends {who} {n}.",
            "{who} finds {n} in a chest.",
            "A friend leaves {n} with {who}.",
        ),
        losses=(
            "{who} sends {n} back to a shop.",
            "A chest is tied up with {n} that {who} had.",
            "{who} leaves {n} with a friend.",
        ),
        loses="uses up",
    ),
    Frame(
        name="flour",
        kind="measure",
        holders=("the mill", "the bakehouse", "the inn", "the monastery"),
        things=("kilograms",),
        has="has",
        asks=_MEASURES,
        products=(
            "{who} has {a} sacks of flour with {b} in each.",
            "A mule carries {b} of grain to {who}, {a} times; there was none before.",
            "In {who} there are {a} shelves with {b} of sugar on each.",
        ),
        quotients=(
            "{a} of grain are divided evenly by {b} houses, one of them {who}.",
            "{who} and {b_less} other houses get equal parts of {a} of flour.",
            "{b} equal sacks are filled from {a} of rice, and {who} gets one sack.",
        ),
        sums=(
            "{who} has {a} of wheat and {b} of rye.",
            "A cart brings {who} {a} of flour and a boat {b}; there was none before.",
            "In {who} there are {a} of white sugar and {b} of brown sugar.",
        ),
        rests=(
            "Of {a} of rice in {who}, mice eat {b}.",
            "{who} had {a} of flour and has baked with {b} of it.",
            "The sacks of {who} held {a}, but {b} were stolen from them.",
        ),
        gains=(
            "A farmer delivers {n} to {who}.",
            "{who} buys {n}.",
            "{n} are carried into {who}.",
        ),
        losses=(
            "A farmer takes {n} away from {who}.",
            "Dough for a feast takes {n} from {who}.",
            "{n} are carried out of {who}.",
        ),
        loses="gives away",
    ),
)
"""Frames of money and of what is measured"""

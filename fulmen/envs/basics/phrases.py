"""Sentences that people say to a model, in English and in German, and what they are made of."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from fulmen.envs.logic.words import PEOPLE, PLACES, WORDS


@dataclass(frozen=True, slots=True)
class Phrases:
    """Sentences of three parts, from which one of each is drawn: a beginning, a middle and an
    end."""

    before: Sequence[str]
    middle: Sequence[str]
    after: Sequence[str]


_NAMED_EN: Final = ("", "", ", mini-m1", ", Fulmen", ", my friend", ", little model", " there")
_NAMED_DE: Final = ("", "", ", mini-m1", ", Fulmen", ", mein Freund", ", kleines Modell")
_FIRST_NAMES: Final = ("Tom", "Ann", "Ben", "Mia", "Leo", "Eva", "Sam", "Ida", "Max", "Lea")


def _each(names: Sequence[str], ends: Sequence[str]) -> tuple[str, ...]:
    return tuple(f"{name}{end}" for name in names for end in ends)


GREETINGS_EN: Final = Phrases(
    ("", "", "Oh, ", "Well, "),
    (
        *("Hello", "Hi", "Hey", "Good morning", "Good evening", "Good afternoon", "Good day"),
        *("Greetings", "Hello again", "Welcome back"),
    ),
    _each(
        _NAMED_EN,
        (
            *("!", "", ".", "! How are you?", "! Nice to meet you.", "! It is good to see you."),
            *("! How is it going?", "! What a nice day.", "! Are you awake?"),
            *(f"! I am {name}." for name in _FIRST_NAMES),
        ),
    ),
)
GREETINGS_DE: Final = Phrases(
    ("", "", "Oh, ", "Na, "),
    (
        *("Hallo", "Hi", "Guten Morgen", "Guten Abend", "Guten Tag", "Servus", "Moin"),
        *("Grüß dich", "Hallo zusammen", "Schönen Tag"),
    ),
    _each(
        _NAMED_DE,
        (
            *("!", "", ".", "! Wie geht es dir?", "! Schön, dich zu sehen.", "! Wie geht es?"),
            *("! Was für ein schöner Tag.", "! Bist du wach?", "! Freut mich."),
            *(f"! Ich bin {name}." for name in _FIRST_NAMES),
        ),
    ),
)
THANKS_EN: Final = Phrases(
    ("", "", "Great, ", "Perfect, ", "Good, ", "Oh, "),
    (
        *("thanks", "thank you", "thank you very much", "thanks a lot", "many thanks"),
        *("thank you so much", "thanks for your help", "thank you for that"),
    ),
    _each(
        _NAMED_EN[:-1],
        (
            *("!", "", ".", "! That was right.", "! That helped me.", "! You are very kind."),
            *("! I understand it now.", "! Well done.", "! That was quick."),
        ),
    ),
)
THANKS_DE: Final = Phrases(
    ("", "", "Super, ", "Prima, ", "Gut, ", "Oh, "),
    (
        *("danke", "danke schön", "vielen Dank", "danke sehr", "tausend Dank"),
        *("herzlichen Dank", "danke für die Hilfe", "ich danke dir"),
    ),
    _each(
        _NAMED_DE,
        (
            *("!", "", ".", "! Das war richtig.", "! Das hat mir geholfen.", "! Das ist nett."),
            *("! Jetzt verstehe ich es.", "! Gut gemacht.", "! Das ging schnell."),
        ),
    ),
)
GOODBYES_EN: Final = Phrases(
    ("", "", "Well, ", "So, ", "All right, ", "Okay, "),
    (
        *("bye", "goodbye", "see you", "see you later", "good night", "bye bye", "farewell"),
        *("until tomorrow", "see you tomorrow", "so long"),
    ),
    _each(
        _NAMED_EN[:-1],
        (
            *("!", "", ".", "! I have to go now.", "! Have a nice day.", "! It is late."),
            *("! Sleep well.", "! Take care.", "! That is all for today."),
        ),
    ),
)
GOODBYES_DE: Final = Phrases(
    ("", "", "Na dann, ", "So, ", "Gut, ", "Okay, "),
    (
        *("tschüss", "auf Wiedersehen", "bis bald", "bis später", "gute Nacht", "mach es gut"),
        *("bis morgen", "ciao", "leb wohl", "bis dann"),
    ),
    _each(
        _NAMED_DE,
        (
            *("!", "", ".", "! Ich muss jetzt gehen.", "! Es ist spät.", "! Schlaf gut."),
            *(
                "! Pass auf dich auf.",
                "! Das ist alles für heute.",
                "! Mach dir einen schönen Tag.",
            ),
        ),
    ),
)
WHO_EN: Final = Phrases(
    ("", "", "Hello! ", "Hi, ", "Please tell me: ", "Excuse me, ", "A question: ", "So, "),
    (
        *("who are you", "what are you", "what is your name", "what can you do"),
        *("what do you know", "tell me who you are", "tell me about yourself"),
        *("introduce yourself", "who made you", "what are your skills", "what can I ask you"),
        *("how can you help me", "which model are you", "what kind of model are you"),
        *("are you a person", "are you a large model", "do you have a name", "how large are you"),
        *("what are you good at", "what did you learn", "are you ChatGPT", "are you human"),
        *("what is mini-m1", "which tasks can you solve", "what should I ask you"),
    ),
    ("?", "?", "", ", please?", ", my friend?", ", mini-m1?", ", little model?", " exactly?", "."),
)
WHO_DE: Final = Phrases(
    ("", "", "Hallo! ", "Hi, ", "Sag mir bitte: ", "Entschuldigung, ", "Eine Frage: ", "Also, "),
    (
        *("wer bist du", "was bist du", "wie heißt du", "was kannst du", "was weißt du"),
        *("sag mir, wer du bist", "erzähl mir von dir", "stell dich vor", "wer hat dich gemacht"),
        *("was sind deine Fähigkeiten", "was kann ich dich fragen", "wie kannst du mir helfen"),
        *("welches Modell bist du", "was für ein Modell bist du", "bist du ein Mensch"),
        *("bist du ein großes Modell", "hast du einen Namen", "wie groß bist du"),
        *("worin bist du gut", "was hast du gelernt", "bist du ChatGPT", "was ist mini-m1"),
        *("welche Aufgaben kannst du lösen", "wobei hilfst du", "was soll ich dich fragen"),
    ),
    ("?", "?", "", ", bitte?", ", mein Freund?", ", mini-m1?", ", kleines Modell?", " genau?", "."),
)
UNKNOWN_EN: Final = Phrases(
    ("", "", "", "", "Please: ", "Hey, ", "Hello! ", "Tell me, ", "One more question: "),
    (
        *("what is the capital of {country}", "who is the president of {country}"),
        *("how is the weather in {country}", "where is {country}", "what time is it in {country}"),
        *("how many people live in {country}", "how far is it to {country}"),
        *("who was {famous}", "when was {famous} born", "how old is {famous}"),
        *("what did {famous} do", "write a letter to {famous}", "what is a {word}"),
        *("tell me about {topic}", "write a poem about {topic}", "tell me a joke about {topic}"),
        *("what do you think about {topic}", "do you like {topic}", "explain {topic} to me"),
        *("recommend a book about {topic}", "give me advice about {topic}"),
        *("search the web for {topic}", "what is the best way to learn {topic}"),
        *("write a story about a {word}", "should I buy a {word}", "draw a {word}"),
        *("my {word} is broken, what should I do", "why is the {word} so {other}"),
        *('translate "{word}" into French', 'what does "{word}" mean', 'what rhymes with "{word}"'),
        *('what is the opposite of "{word}"', 'how many letters does "{word}" have'),
        *("what is the square root of {n}", "is {n} a prime number", "what is {n} divided by {m}"),
        *("what is {n} to the power of {m}", "what is {m} percent of {n}"),
        *("write a program that prints {word}", "how do I get to the {place}"),
        *("which film should I watch with {person}", "send a mail to {person}"),
        *("who won the match against {country}", "what is {person} doing today"),
        *("how do I cook {word}", "open the {word}", "sing a song about {person}"),
        *("what is the meaning of {topic}", "when does the {place} close"),
        *("what happened in the year {n}", "how much does a {word} cost"),
    ),
    ("?", "?", "", ".", "!", " please?", " now?"),
)
UNKNOWN_DE: Final = Phrases(
    ("", "", "", "", "Bitte: ", "Hey, ", "Hallo! ", "Sag mir, ", "Noch eine Frage: "),
    (
        *("was ist die Hauptstadt von {land}", "wer regiert in {land}", "wo liegt {land}"),
        *(
            "wie ist das Wetter in {land}",
            "wie spät ist es in {land}",
            "wie weit ist es bis {land}",
        ),
        *("wie viele Menschen leben in {land}", "wer war {famous}", "wann wurde {famous} geboren"),
        *("wie alt ist {famous}", "was hat {famous} gemacht", "schreib einen Brief an {famous}"),
        *("was ist ein {ding}", "erzähl mir etwas über {thema}", "magst du {thema}"),
        *("schreib ein Gedicht über {thema}", "erzähl mir einen Witz über {thema}"),
        *("was denkst du über {thema}", "erkläre mir {thema}", "suche im Netz nach {thema}"),
        *("empfiehl mir ein Buch über {thema}", "gib mir einen Rat zu {thema}"),
        *("wie lernt man am besten {thema}", "mal mir ein Bild mit {thema}"),
        *("warum ist der {ding} kaputt", "was kostet ein {ding}", "soll ich einen {ding} kaufen"),
        *(
            'übersetze "{ding}" ins Englische',
            'was bedeutet "{ding}"',
            'was reimt sich auf "{ding}"',
        ),
        *('was ist das Gegenteil von "{ding}"', 'wie viele Buchstaben hat "{ding}"'),
        *("was ist die Wurzel aus {n}", "ist {n} eine Primzahl", "was ist {n} geteilt durch {m}"),
        *("was ist {n} hoch {m}", "wie viel sind {m} Prozent von {n}", "was geschah im Jahr {n}"),
        *("schreib ein Programm für {thema}", "welchen Film soll ich mit {person} sehen"),
        *("schick {person} eine Nachricht", "wer hat gegen {land} gewonnen"),
        *("was macht {person} heute", "sing ein Lied über {person}", "öffne den {ding}"),
    ),
    ("?", "?", "", ".", "!", ", bitte?"),
)
FILLERS: Final[Mapping[str, Sequence[str]]] = {
    "word": WORDS,
    "other": WORDS,
    "place": PLACES,
    "person": PEOPLE,
    "country": (
        *("France", "Spain", "Italy", "Japan", "China", "India", "Brazil", "Canada", "Egypt"),
        *("Kenya", "Peru", "Norway", "Sweden", "Poland", "Greece", "Turkey", "Mexico", "Chile"),
        *("Berlin", "Paris", "Rome", "London", "Madrid", "Vienna", "Tokyo", "Oslo", "Lima"),
    ),
    "famous": (
        *("Einstein", "Mozart", "Goethe", "Newton", "Darwin", "Napoleon", "Cleopatra", "Bach"),
        *("Shakespeare", "Beethoven", "Picasso", "Galileo", "Columbus", "Caesar", "Curie", "Gauss"),
    ),
    "topic": (
        *("football", "music", "the weather", "politics", "history", "love", "the moon", "physics"),
        *("chess", "cooking", "the sea", "money", "life", "art", "religion", "biology", "dreams"),
        *("the news", "robots", "medicine", "travel", "dinosaurs", "the stars", "law", "gardens"),
    ),
    "land": (
        *("Frankreich", "Spanien", "Italien", "Japan", "China", "Indien", "Brasilien", "Kanada"),
        *("Kenia", "Peru", "Norwegen", "Schweden", "Polen", "Griechenland", "Mexiko", "Chile"),
        *("Berlin", "Paris", "Rom", "London", "Madrid", "Wien", "Tokio", "Oslo", "Lima"),
    ),
    "thema": (
        *("Fußball", "Musik", "Politik", "Geschichte", "Liebe", "Physik", "Schach", "Kochen"),
        *("Geld", "Kunst", "Religion", "Biologie", "Roboter", "Medizin", "Reisen", "Träume"),
        *("Dinosaurier", "Sterne", "Recht", "Blumen", "Wolken", "Märchen", "Vulkane", "Züge"),
    ),
    "ding": (
        *("Hund", "Baum", "Tisch", "Vogel", "Berg", "Fluss", "Garten", "Apfel", "Mond", "Stern"),
        *("König", "Löffel", "Schrank", "Koffer", "Wald", "Schlüssel", "Ball", "Ofen", "Brunnen"),
        *("Teppich", "Spiegel", "Kuchen", "Stuhl", "Fisch", "Turm", "Zug", "Drachen", "Hammer"),
    ),
}
"""Words that stand in the place of a name in braces; {n} and {m} are numbers"""

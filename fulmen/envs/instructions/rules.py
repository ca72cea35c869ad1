"""The 25 rules of IFEval (arXiv:2311.07911), each a function of an answer and its own settings.

A rule raises nothing and needs a time that the length of the answer bounds. Words that a rule looks
for are looked for as they are, never as patterns.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from fulmen.envs.instructions.language import language_of
from fulmen.envs.instructions.sentences import (
    count_capital_words,
    count_sentences,
    count_words,
)

_RELATIONS: Final = ("less than", "at least")
_OPTIONS: Final = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
_PLACEHOLDER: Final = re.compile(r"\[[^\[\]\n]*\]")
_HIGHLIGHT: Final = re.compile(r"\*[^\n*]*\*")
_DOUBLE_HIGHLIGHT: Final = re.compile(r"\*\*[^\n*]*\*\*")
_DIVIDER: Final = re.compile(r"\s?\*\*\*\s?")
_POSTSCRIPTS: Final = {
    "P.S.": re.compile(r"p\.\s?s\."),
    "P.P.S": re.compile(r"p\.\s?p\.\s?s"),
}
_FENCES: Final = ("```json", "```Json", "```JSON", "```")


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule and the settings that it takes, each with the kind of its value."""

    settings: Mapping[str, str]
    """Names, each with count, text, texts, letter or relation"""
    is_kept: Callable[..., bool]
    """Answer and settings -> True if the answer keeps the rule"""
    needs_language: bool = False


def checked_settings(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a rule. Raises ValueError for a rule that there is not, and settings
    that are missing, too many or of another kind."""
    rule = RULES.get(name)
    if rule is None:
        raise ValueError(f"there is no instruction {name}, it must be one of {', '.join(RULES)}")
    # Tables of rows have every column in every row, with null where it means nothing.
    given = {key: value for key, value in given.items() if value is not None}
    if given.keys() != rule.settings.keys():
        needed = ", ".join(rule.settings) or "none"
        found = ", ".join(sorted(given)) or "none"
        raise ValueError(f"{name} has the settings {found}, it must have: {needed}")
    return {key: _checked(name, key, given[key], kind) for key, kind in rule.settings.items()}


def _checked(name: str, key: str, value: Any, kind: str) -> Any:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind == "count" and is_number and 0 <= value < 10**9 and value == int(value):
        return int(value)
    is_text = isinstance(value, str) and value.strip() != ""
    if kind == "text" and is_text:
        return value
    if kind == "letter" and is_text and len(value.strip()) == 1:
        return value.strip().lower()
    if kind == "relation" and value in _RELATIONS:
        return value
    are_texts = isinstance(value, list) and all(isinstance(one, str) for one in value)
    if kind == "texts" and are_texts and value and all(map(str.strip, value)):
        return tuple(value)
    needed = {"relation": f"one of {' or '.join(_RELATIONS)}", "texts": "a list of texts"}
    text = repr(value)[:100]
    raise ValueError(f"{name} has {key} {text}, it must be {needed.get(kind, f'a {kind}')}")


def _compared(count: int, relation: str, limit: int) -> bool:
    return count < limit if relation == "less than" else count >= limit


def _has_keywords(text: str, keywords: Sequence[str]) -> bool:
    return all(re.search(re.escape(word), text, re.IGNORECASE) for word in keywords)


def _keyword_frequency(text: str, keyword: str, frequency: int, relation: str) -> bool:
    found = re.findall(re.escape(keyword.strip()), text, re.IGNORECASE)
    return _compared(len(found), relation, frequency)


def _has_no_forbidden_words(text: str, forbidden_words: Sequence[str]) -> bool:
    return not any(
        re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE)
        for word in forbidden_words
    )


def _letter_frequency(text: str, letter: str, let_frequency: int, let_relation: str) -> bool:
    return _compared(text.lower().count(letter), let_relation, let_frequency)


def _is_in_language(text: str, language: str) -> bool:
    return language_of(text) == language


def _number_sentences(text: str, num_sentences: int, relation: str) -> bool:
    return _compared(count_sentences(text), relation, num_sentences)


def _number_paragraphs(text: str, num_paragraphs: int) -> bool:
    paragraphs = [paragraph.strip() for paragraph in _DIVIDER.split(text)]
    if not all(paragraphs[1:-1]):
        return False
    return sum(map(bool, paragraphs)) == num_paragraphs


def _number_words(text: str, num_words: int, relation: str) -> bool:
    return _compared(count_words(text), relation, num_words)


def _nth_paragraph_first_word(
    text: str, num_paragraphs: int, nth_paragraph: int, first_word: str
) -> bool:
    paragraphs = text.split("\n\n")
    if sum(1 for one in paragraphs if one.strip()) != num_paragraphs:
        return False
    if not 1 <= nth_paragraph <= num_paragraphs or not paragraphs[nth_paragraph - 1].strip():
        return False
    word = paragraphs[nth_paragraph - 1].split(None, 1)[0].lstrip("'").lstrip('"')
    return re.split(r"[.,?!'\"]", word, maxsplit=1)[0].lower() == first_word.lower()


def _number_placeholders(text: str, num_placeholders: int) -> bool:
    return len(_PLACEHOLDER.findall(text)) >= num_placeholders


def _has_postscript(text: str, postscript_marker: str) -> bool:
    marker = postscript_marker.strip()
    pattern = _POSTSCRIPTS.get(marker) or re.compile(re.escape(marker.lower()))
    return pattern.search(text.lower()) is not None


def _number_bullets(text: str, num_bullets: int) -> bool:
    lines = [line.lstrip() for line in text.split("\n")]
    stars = sum(1 for line in lines if line.startswith("*") and line[1:2] not in ("", "*"))
    return stars + sum(1 for line in lines if line.startswith("-")) == num_bullets


def _is_one_of_the_options(text: str) -> bool:
    return any(option in text for option in _OPTIONS)


def _number_highlights(text: str, num_highlights: int) -> bool:
    found = [*_HIGHLIGHT.findall(text), *_DOUBLE_HIGHLIGHT.findall(text)]
    return sum(1 for one in found if one.strip("*").strip()) >= num_highlights


def _multiple_sections(text: str, section_spliter: str, num_sections: int) -> bool:
    mark = re.compile(rf"\s?{re.escape(section_spliter.strip())}\s?\d+\s?")
    return len(mark.findall(text)) >= num_sections


def _is_json(text: str) -> bool:
    text = text.strip()
    for fence in _FENCES:
        text = text.removeprefix(fence)
    try:
        json.loads(text.removesuffix("```").strip())
    except (ValueError, RecursionError):
        return False
    return True


def _has_title(text: str) -> bool:
    for line in text.split("\n"):
        begin, end = line.find("<<"), line.rfind(">>")
        if 0 <= begin < end - 2 and line[begin : end + 2].lstrip("<").rstrip(">").strip():
            return True
    return False


def _are_two_responses(text: str) -> bool:
    responses = [response.strip() for response in text.split("******")]
    given = [response for response in responses if response]
    return all(responses[1:-1]) and len(given) == 2 and given[0] != given[1]


def _repeats_prompt(text: str, prompt_to_repeat: str) -> bool:
    return text.strip().lower().startswith(prompt_to_repeat.strip().lower())


def _ends_with(text: str, end_phrase: str) -> bool:
    return text.strip().strip('"').lower().endswith(end_phrase.strip().lower())


def _capital_frequency(text: str, capital_frequency: int, capital_relation: str) -> bool:
    return _compared(count_capital_words(text), capital_relation, capital_frequency)


def _is_english_in_capitals(text: str) -> bool:
    return text.isupper() and language_of(text) == "en"


def _is_english_in_lower_case(text: str) -> bool:
    return text.islower() and language_of(text) == "en"


def _has_no_comma(text: str) -> bool:
    return "," not in text


def _is_quoted(text: str) -> bool:
    text = text.strip()
    return len(text) > 1 and text[0] == text[-1] == '"'


RULES: Final = {
    "keywords:existence": Rule({"keywords": "texts"}, _has_keywords),
    "keywords:frequency": Rule(
        {"keyword": "text", "frequency": "count", "relation": "relation"}, _keyword_frequency
    ),
    "keywords:forbidden_words": Rule({"forbidden_words": "texts"}, _has_no_forbidden_words),
    "keywords:letter_frequency": Rule(
        {"letter": "letter", "let_frequency": "count", "let_relation": "relation"},
        _letter_frequency,
    ),
    "language:response_language": Rule({"language": "text"}, _is_in_language, True),
    "length_constraints:number_sentences": Rule(
        {"num_sentences": "count", "relation": "relation"},
        _number_sentences,
    ),
    "length_constraints:number_paragraphs": Rule({"num_paragraphs": "count"}, _number_paragraphs),
    "length_constraints:number_words": Rule(
        {"num_words": "count", "relation": "relation"}, _number_words
    ),
    "length_constraints:nth_paragraph_first_word": Rule(
        {"num_paragraphs": "count", "nth_paragraph": "count", "first_word": "text"},
        _nth_paragraph_first_word,
    ),
    "detectable_content:number_placeholders": Rule(
        {"num_placeholders": "count"}, _number_placeholders
    ),
    "detectable_content:postscript": Rule({"postscript_marker": "text"}, _has_postscript),
    "detectable_format:number_bullet_lists": Rule({"num_bullets": "count"}, _number_bullets),
    "detectable_format:constrained_response": Rule({}, _is_one_of_the_options),
    "detectable_format:number_highlighted_sections": Rule(
        {"num_highlights": "count"}, _number_highlights
    ),
    "detectable_format:multiple_sections": Rule(
        {"section_spliter": "text", "num_sections": "count"}, _multiple_sections
    ),
    "detectable_format:json_format": Rule({}, _is_json),
    "detectable_format:title": Rule({}, _has_title),
    "combination:two_responses": Rule({}, _are_two_responses),
    "combination:repeat_prompt": Rule({"prompt_to_repeat": "text"}, _repeats_prompt),
    "startend:end_checker": Rule({"end_phrase": "text"}, _ends_with),
    "change_case:capital_word_frequency": Rule(
        {"capital_frequency": "count", "capital_relation": "relation"}, _capital_frequency
    ),
    "change_case:english_capital": Rule({}, _is_english_in_capitals, True),
    "change_case:english_lowercase": Rule({}, _is_english_in_lower_case, True),
    "punctuation:no_comma": Rule({}, _has_no_comma),
    "startend:quotation": Rule({}, _is_quoted),
}
"""Rules by the names that IFEval gives them"""

"""Numbers with units: people's spellings are read, everything else is one sentence."""

import contextlib
import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fulmen.plan.hardware import parse_gpus
from fulmen.units import LARGEST_COUNT, LARGEST_SIZE, parse_bytes, parse_count, parse_rate

PARSERS: list[Callable[[str], object]] = [parse_count, parse_bytes, parse_rate, parse_gpus]
every_parser = pytest.mark.parametrize("parse", PARSERS, ids=lambda parse: parse.__name__)


@pytest.mark.parametrize(
    ("text", "size"),
    [("24GiB", 24 * 1024**3), ("24GB", 24 * 10**9), ("1.5 tib", 1536 * 1024**3), ("512b", 512)],
)
def test_sizes_are_read_in_both_kinds_of_units(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["24", "GiB", "24G", "-1GB", "0GB", "1e9B", "24GB/s", "", "0.1B"])
def test_a_size_without_a_unit_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a size, it must be like 24GiB or 24GB"):
        parse_bytes(text)


@pytest.mark.parametrize(
    ("parse", "text", "sentence"),
    [
        (parse_bytes, "128", "128 is not a size, it must be like 128GiB or 128GB"),
        (parse_bytes, "1.5", "1.5 is not a size, it must be like 1.5GiB or 1.5GB"),
        (parse_bytes, "64 gigs", "64 gigs is not a size, it must be like 64GiB or 64GB"),
        (parse_bytes, "0", "0 is not a size, it must be like 24GiB or 24GB"),
        (parse_bytes, "99999999", "99999999 is not a size, it must be like 24GiB or 24GB"),
        (parse_rate, "40", "40 is not a rate, it must be like 40GB/s"),
        (parse_rate, "40GB", "40GB is not a rate, it must be like 40GB/s"),
    ],
)
def test_a_number_without_its_unit_is_shown_with_one(
    parse: Callable[[str], object], text: str, sentence: str
) -> None:
    with pytest.raises(ValueError, match=f"^{sentence}$"):
        parse(text)


def test_rates_are_read() -> None:
    assert parse_rate("3GB/s") == 3e9
    assert parse_rate(" 500 MiB / s ") == 500 * 1024**2


@pytest.mark.parametrize("text", ["3GB", "3/s", "3GB/h", "GB/s", "0GB/s", "0.1B/s", "3GB/s/s"])
def test_a_rate_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=f"{text} is not a rate, it must be like 3GB/s"):
        parse_rate(text)


def test_decimal_fractions_are_exact() -> None:
    assert parse_count("1.001k") == 1001  # in floating point 1000.9999999999999
    assert parse_bytes("4.35GB") == 4_350_000_000


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", ".", ",", "-", "nan", "inf", "-inf", "NaN GiB", "1e999", "1e999GiB", "1e400k"),
        *(
            "-1",
            "-40k",
            "-1GiB",
            "+1GiB",
            "--1",
            "0x10GiB",
            "1_000GiB",
            "\u00bdGiB",
            "\u00b2k",
            "1.5.5k",
        ),
        *(
            "\u0664\u0660k",
            "\uff14\uff10k",
            "\u0664GiB",
            "\u0968GB/s",
            "\u0668xH800",
            "1,,000",
            "GiB24",
            "2GiB2",
            "2 GiB x",
            "1\n0k",
        ),
        *("9" * 400, "9" * 400 + "GiB", "9" * 5000, "9" * 5000 + "k", "9" * 5000 + "GB/s"),
        *("9" * 5000 + "xH800", "0." + "0" * 5000 + "1GiB", "1" + "0" * 400 + "xH800", "x" * 10**6),
        *("999999999TiB", "9999999999999999TB", "999999999999M", "999999999TiB/s", "99999999xH800"),
    ],
    ids=lambda text: text[:20],
)
@every_parser
def test_an_absurd_number_is_one_short_sentence(parse: Callable[[str], object], text: str) -> None:
    with pytest.raises(ValueError, match=r"it must (be|look) |the most is") as refusal:
        parse(text)
    assert len(str(refusal.value)) < 250
    assert len(str(refusal.value).splitlines()) == 1


@given(
    st.one_of(
        st.text(max_size=60),
        st.from_regex(r"[0-9\u0660-\u0669.,+\-]{0,40}\s?[kKmMgGtTiIbB]{0,3}(/s)?", fullmatch=True),
        st.from_regex(r"[0-9]{0,30}[x*][A-Za-z0-9-]{0,8}", fullmatch=True),
        st.floats(allow_nan=True).map(lambda value: f"{value!r}GiB"),
        st.integers().map(str),
    )
)
def test_any_text_is_a_number_in_range_or_a_value_error(text: str) -> None:
    for parse, least, most in (
        (parse_count, 0, LARGEST_COUNT),
        (parse_bytes, 1, LARGEST_SIZE),
        (parse_rate, 1, LARGEST_SIZE),
        (lambda text: parse_gpus(text).count, 1, 10**6),
    ):
        value: float | None = None
        with contextlib.suppress(ValueError):
            value = parse(text)
        if value is not None:
            assert math.isfinite(value)
            assert least <= value <= most

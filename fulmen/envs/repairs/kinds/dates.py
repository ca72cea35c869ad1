"""Days: a calendar, arithmetic of dates, and a plan of what is due."""

import random

from fulmen.envs.repairs.kind import Kind, Probe, probe

_CALENDAR = '''"""The calendar: months and leap years."""

DAYS = (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)


def is_leap(year):
    """Return True for a leap year of the Gregorian calendar."""
    return year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)


def days_in_month(year, month):
    """Return the days of a month, which counts from 1; ValueError if there is no such month."""
    if not 1 <= month <= 12:
        raise ValueError("no month")
    return 29 if month == 2 and is_leap(year) else DAYS[month - 1]


def day_number(year, month, day):
    """Return the days from 1 January of the year 1, which is 1, to a date."""
    before = year - 1
    number = before * 365 + before // 4 - before // 100 + before // 400
    for earlier in range(1, month):
        number += days_in_month(year, earlier)
    return number + day


def read_date(text):
    """Return (year, month, day) of "2024-02-29" and the like; ValueError for no such day."""
    parts = text.split("-")
    if len(parts) != 3 or not all(part.isdigit() for part in parts):
        raise ValueError("no date")
    year, month, day = (int(part) for part in parts)
    if year < 1 or not 1 <= day <= days_in_month(year, month):
        raise ValueError("no such day")
    return year, month, day
'''

_DATES = '''"""Arithmetic of dates, which are texts such as "2024-02-29"."""

from .calendar_days import day_number, days_in_month, read_date

WEEKDAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")


def weekday(text):
    """Return the day of the week of a date, such as "Mon"."""
    return WEEKDAYS[(day_number(*read_date(text)) - 1) % 7]


def days_between(first, second):
    """Return the days from the first date to the second, negative if that is earlier."""
    return day_number(*read_date(second)) - day_number(*read_date(first))


def add_days(text, count):
    """Return the date a number of days, 0 or more, after a date."""
    year, month, day = read_date(text)
    day += count
    while day > days_in_month(year, month):
        day -= days_in_month(year, month)
        month += 1
        if month > 12:
            year, month = year + 1, 1
    return f"{year:04d}-{month:02d}-{day:02d}"


def add_months(text, count):
    """Return the date some months, 0 or more, later; its day is at most the month's last one."""
    year, month, day = read_date(text)
    years, month = divmod(month - 1 + count, 12)
    year, month = year + years, month + 1
    return f"{year:04d}-{month:02d}-{min(day, days_in_month(year, month)):02d}"


def next_workday(text):
    """Return the first date after a date that is no Saturday and no Sunday."""
    text = add_days(text, 1)
    while weekday(text) in ("Sat", "Sun"):
        text = add_days(text, 1)
    return text
'''

_PLAN = '''"""A plan: what is due when."""

from .dates import add_days, add_months, days_between, next_workday, weekday


def invoices(start, count):
    """Return the dates of monthly invoices from a start on; one on a weekend moves to a workday."""
    dates = []
    for number in range(count):
        date = add_months(start, number)
        if weekday(date) in ("Sat", "Sun"):
            date = next_workday(date)
        dates.append(date)
    return dates


def workdays(first, last):
    """Return the number of days from first to last, both included, that are no weekend."""
    length = days_between(first, last) + 1
    return sum(weekday(add_days(first, day)) not in ("Sat", "Sun") for day in range(length))


def overdue(due, today):
    """Return (name, days late) of what was due before today, the latest first, then by name."""
    late = [(name, days_between(date, today)) for name, date in due.items()]
    return sorted([one for one in late if one[1] > 0], key=lambda one: (-one[1], one[0]))


def finish(start, num_days):
    """Return the date on which work is done that takes some workdays, 1 or more, and begins on a
    workday."""
    date = start
    for _ in range(num_days - 1):
        date = next_workday(date)
    return date


def birthdays(born, num_years):
    """Return the weekdays of the first birthdays of somebody born on a date."""
    return [weekday(add_months(born, 12 * year)) for year in range(1, num_years + 1)]
'''


def _date(draw: random.Random) -> str:
    year = draw.choice((1900, 2000, 2023, 2024, draw.randint(1890, 2040)))
    month = draw.choice((1, 2, 2, 3, 12, draw.randint(1, 12)))
    return f"{year}-{month:02d}-{draw.choice((1, 28, 28, draw.randint(1, 28))):02d}"


def _workday(draw: random.Random) -> str:
    return f"2024-07-{draw.choice((1, 2, 3, 4, 5, 8, 9, 10, 11, 12)):02d}"


def _probes(draw: random.Random) -> list[Probe]:
    date, other = _date(draw), _date(draw)
    year = draw.choice((1900, 2000, 2023, 2024, 2100, draw.randint(1, 3000)))
    month = draw.choice((0, 1, 2, 2, 12, 13, draw.randint(1, 12)))
    wrong = draw.choice(("2023-02-29", "2024-13-01", "2024-04-31", "2024-01", "0000-01-01", "x"))
    near = f"2024-{draw.randint(5, 6):02d}-{draw.randint(1, 30):02d}"
    due = {name: f"2024-05-{draw.randint(1, 28):02d}" for name in ("rent", "phone", "loan")}
    return [
        probe(2, f"is_leap({year})"),
        probe(2, f"days_in_month({year}, {month})"),
        probe(2, f"day_number({year}, {draw.randint(1, 12)}, {draw.randint(1, 28)})"),
        probe(2, f"read_date({draw.choice((date, '2024-02-29', '2023-12-31'))!r})"),
        probe(2, f"read_date({wrong!r})"),
        probe(1, f"weekday({date!r})"),
        probe(1, f"days_between({date!r}, {other!r})"),
        probe(1, f"add_days({date!r}, {draw.choice((0, 1, 3, 28, 60, 366))})"),
        probe(1, f"add_months({date!r}, {draw.choice((0, 1, 11, 12, 25))})"),
        probe(1, f"add_months('2024-01-31', {draw.randint(0, 14)})"),
        probe(1, f"next_workday({near!r})"),
        probe(0, f"invoices({draw.choice((date, '2024-01-31'))!r}, {draw.randint(1, 6)})"),
        probe(0, f"workdays('2024-05-{draw.randint(1, 28):02d}', {near!r})"),
        probe(0, f"overdue({due}, '2024-05-{draw.randint(1, 28):02d}')"),
        probe(0, f"finish({_workday(draw)!r}, {draw.randint(1, 12)})"),
        probe(0, f"birthdays({date!r}, {draw.randint(1, 5)})"),
    ]


KIND = Kind(
    "calendar_tools",
    (("plan", _PLAN), ("dates", _DATES), ("calendar_days", _CALENDAR)),
    _probes,
    {
        "invoices": ("bill_dates", "monthly_dates"),
        "workdays": ("num_workdays", "business_days"),
        "overdue": ("late_ones", "missed"),
        "finish": ("done_on", "end_date"),
        "weekday": ("day_name", "day_of_week"),
        "days_between": ("day_difference", "days_apart"),
        "next_workday": ("following_workday", "workday_after"),
        "day_number": ("ordinal_day", "count_days"),
        "read_date": ("parse_date", "split_date"),
    },
)

def total(price, count):
    """Return price times count."""
    return price + count


def shout(text):
    """Return text in upper case."""
    return text.upper()

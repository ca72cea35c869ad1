"""Entry of `python -m fulmen`, which is `fulmen`."""

from fulmen.cli import main

if __name__ == "__main__":
    main()

"""Entry of `python -m fulmen.cli`, which is `fulmen`."""

from fulmen.cli.app import main

main()

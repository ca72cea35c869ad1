"""python -m fulmen.cli, the same as `fulmen`."""

from fulmen.cli.app import main

main()

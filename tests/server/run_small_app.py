"""A program that serves the small application: `python -m tests.server.run_small_app FIELDS`."""

import json
import sys

from fulmen.server import ServerConfig, bind, log_to, run_async, serve
from tests.server.serving import small_app


def main() -> None:
    config = ServerConfig(**json.loads(sys.argv[1]))
    log_to(sys.stderr, config)
    sock = bind(config)
    app = small_app(config)
    serving = serve(app, config, on_ready=lambda url: print(url, flush=True), sock=sock)
    is_orderly = run_async(serving)
    print("orderly" if is_orderly else "at once", flush=True)


if __name__ == "__main__":
    main()

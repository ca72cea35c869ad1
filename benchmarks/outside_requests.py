"""Does mini-m1 refuse what it has not learnt, when people ask in their own words?

    python benchmarks/outside_requests.py mini-m1

The kind `unknown` of `basics` is made of templates and random words, as its training was. Here are
a hundred requests that were written by hand (outside_requests.txt, 60 in English and 40 in German),
of which none was trained on. Each is asked once, greedily; the share that is refused in the
request's language is printed with its 95 % interval, and every other reply. A line of the file is
`en` or `de`, a tab and a request.
"""

import sys
from pathlib import Path

from fulmen import LLM, SamplingParams
from fulmen.envs.basics.talk import topic_of
from fulmen.evaluate.statistics import estimate

REQUESTS = Path(__file__).with_suffix(".txt")


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("usage: outside_requests.py MODEL")
    requests = [line.split("\t") for line in REQUESTS.read_text("utf-8").splitlines()]
    llm = LLM.load(sys.argv[1])
    params = SamplingParams(temperature=0, max_tokens=300)
    num_refused = num_other = 0
    for language, request in requests:
        reply = llm.chat([{"role": "user", "content": request}], params=params).reply.content
        topic = topic_of(reply)
        num_refused += topic == f"unknown {language}"
        num_other += topic in ("unknown en", "unknown de") and topic != f"unknown {language}"
        if topic != f"unknown {language}":
            print(f"{request}  ->  {reply}")
    share = estimate([1.0] * num_refused + [0.0] * (len(requests) - num_refused))
    interval = f"95 % interval {share.low:.3f} to {share.high:.3f}"
    print(f"refused {num_refused} of {len(requests)}, {interval}")
    print(f"refused in the other language: {num_other}")


if __name__ == "__main__":
    main()

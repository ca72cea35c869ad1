"""Calls and the verdict on each in every mode; what rules add to one another."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fulmen.agent import MODES, Mode, Permissions, Rule, Rules, Verdict
from fulmen.sandbox import PROTECTED
from tests.examples import examples

LETTERS = {"allow": "a", "ask": "q", "deny": "d"}
FREE, ASKS, WRITES, NAMED = "aaaa", "dqqa", "dqaa", "qqqq"
"""Verdicts in plan, ask, accept-edits and auto: of what reads, of a command, of a change of a file
in the workspace, of a file that is asked about in every mode"""
OUTSIDE = "qqqa"
"""Verdicts on reading outside the workspace"""


@dataclass
class Call:
    name: str
    arguments: Mapping[str, object]


def permissions(mode: Mode, rules: Rules | None = None, **options: Any) -> Permissions:
    return Permissions(
        mode, rules or Rules(), workspace=Path("/ws"), home=Path("/home/me"), **options
    )


def bash(text: str, mode: Mode = "ask", rules: Rules | None = None) -> Verdict:
    return permissions(mode, rules).judge(Call("bash", {"command": text}))


def verdicts(name: str, arguments: Mapping[str, object], rules: Rules | None = None) -> str:
    call = Call(name, arguments)
    return "".join(LETTERS[permissions(mode, rules).judge(call).decision] for mode in MODES)


ROWS: list[tuple[str, str]] = [
    # Built-ins that change what later commands are
    ("export PATH=/ws/bin", ASKS),
    ("export GIT_PAGER='sh -c x'", ASKS),
    ("typeset -x PAGER=x", ASKS),
    ("declare -x LD_PRELOAD=./x.so", ASKS),
    ("readonly PATH", ASKS),
    ("alias ls='rm -rf x'", ASKS),
    ("trap 'rm x' EXIT", ASKS),
    ("trap 'ls' DEBUG", ASKS),
    ("hash -p /ws/evil ls", ASKS),
    ("enable -f ./x.so x", ASKS),
    ("jobs -x touch a", ASKS),
    ("jobs -lx touch a", ASKS),
    ("jobs $X", ASKS),
    ("jobs -l %1", FREE),
    ("wait -p PATH", ASKS),
    ("wait $X", ASKS),
    ("wait -n 12 %2", FREE),
    ("source ./x", ASKS),
    (". ./x", ASKS),
    ("shopt -s expand_aliases", ASKS),
    ("set -a", ASKS),
    ("unset PATH", ASKS),
    ("mapfile -C 'rm x' -c 1 a", ASKS),
    ("complete -C x ls", ASKS),
    ("bind -x '\"a\":rm'", ASKS),
    ("exec rm x", ASKS),
    ("exec 3>f", ASKS),
    ("PATH=/ws/bin ls", ASKS),
    ("PATH=/ws/bin", ASKS),
    ("LD_PRELOAD=./x.so ls", ASKS),
    ("GIT_EXTERNAL_DIFF=./x git diff", ASKS),
    ("BASH_ENV=x bash -c ls", ASKS),
    ("IFS=/", ASKS),
    ("env PATH=. ls", ASKS),
    ("http_proxy=x ls", ASKS),
    ("for PATH in x; do ls; done", ASKS),
    ("read PATH", ASKS),
    ("printf -v PATH x", ASKS),
    ("printf -v 'a[$(rm x)]' x", ASKS),
    ("echo ${PATH:=x}", ASKS),
    # Arithmetic and tests that run the text of a variable
    ("echo $((`a[$(rm x)]`))", ASKS),
    ("echo $((a[$(rm x)]))", ASKS),
    ("echo $((x))", ASKS),
    ("((x))", ASKS),
    ("((x=1))", ASKS),
    ("echo $[x]", ASKS),
    ("let x", ASKS),
    ("[[ -v a[$(rm x)] ]]", ASKS),
    ("[[ -v 'a[$(rm x)]' ]]", ASKS),
    ("[[ $x -eq 1 ]]", ASKS),
    ("test -v 'a[$(rm)]'", ASKS),
    ("[ -v 'a[$(rm)]' ]", ASKS),
    ("[ $x = y ]", ASKS),
    ("echo ${a[$(rm)]}", ASKS),
    ("echo ${a[x]}", ASKS),
    ("echo ${x:y}", ASKS),
    ("echo ${x@P}", ASKS),
    ("echo ${!x}", ASKS),
    ("a[x]=1", ASKS),
    ("unset 'a[$(rm)]'", ASKS),
    ("read 'a[$(rm)]'", ASKS),
    ("echo $((1 + 2))", FREE),
    ("for ((i=0; i<3; i++)); do echo $i; done", FREE),
    ('i=0; while [ "$i" -lt 3 ]; do echo "$i"; i=$((i+1)); done', FREE),
    ("[[ $? -ne 0 ]]", FREE),
    ("[[ -f a && $x == *.py ]]", FREE),
    ('[ -f "$x" ]', FREE),
    ("test -d src", FREE),
    # Spellings of a name
    ('r"m" x', ASKS),
    ("\\rm x", ASKS),
    ("'rm' x", ASKS),
    ("$'\\x72m' x", ASKS),
    ("$'\\162\\155' x", ASKS),
    ('$"rm" x', ASKS),
    ("{rm,-rf,x}", ASKS),
    ("r{m,x} y", ASKS),
    ("/bin/rm x", ASKS),
    ("./ls", ASKS),
    ("/ws/ls", ASKS),
    ("r\\\nm x", ASKS),
    ("ls\\\n; rm x", ASKS),
    ("ls\u00a0x", ASKS),
    ("ls\u2028rm x", ASKS),
    ("ls\rrm x", ASKS),
    ("ls \x1b[1A rm", ASKS),
    ("l?", ASKS),
    ("/bin/l*", ASKS),
    ("$X foo", ASKS),
    ('"$(which rm)" x', ASKS),
    ("$(echo rm) x", ASKS),
    ("`echo rm` x", ASKS),
    ("~/x", ASKS),
    ("X=rm; $X y", ASKS),
    ("command rm x", ASKS),
    ("builtin eval 'rm x'", ASKS),
    # Where a command may hide
    ("ls; rm x", ASKS),
    ("ls\nrm x", ASKS),
    ("ls & rm x", ASKS),
    ("ls | rm x", ASKS),
    ("ls && rm x", ASKS),
    ("ls || rm x", ASKS),
    ("ls |& rm x", ASKS),
    ("(rm x)", ASKS),
    ("{ rm x; }", ASKS),
    ("! rm x", ASKS),
    ("time rm x", ASKS),
    ("time -p rm x", ASKS),
    ("coproc rm x", ASKS),
    ("select x in a b; do rm $x; done", ASKS),
    ("echo $(rm x)", ASKS),
    ("echo `rm x`", ASKS),
    ('echo "$(rm x)"', ASKS),
    ('echo "`rm x`"', ASKS),
    ("echo ${x:-$(rm x)}", ASKS),
    ("echo ${x:-`rm x`}", ASKS),
    ("echo \"${x:-'$(rm x)'}\"", ASKS),
    ("cat <(rm x)", ASKS),
    ("ls > >(rm x)", ASKS),
    ("cat <<< $(rm x)", ASKS),
    ("cat <<E\n$(rm x)\nE", ASKS),
    ("cat <<E\n`rm x`\nE", ASKS),
    ("cat <<E\nx \\\nE\nrm x\nE", ASKS),
    ("cat <<-E\n\tE\nrm x\nE", ASKS),
    ("cat <<'E'\nx\nE\nrm x", ASKS),
    ("echo a # b \\\nrm x", ASKS),
    ("echo a#b; rm x", ASKS),
    ("echo 'a' #'\nrm x #'", ASKS),
    ("x=$(rm x)", ASKS),
    ("a=(1 $(rm x))", ASKS),
    ("a=([0]=$(rm x))", ASKS),
    ("x=1 rm y", ASKS),
    ("if rm x; then ls; fi", ASKS),
    ("if ls; then :; elif rm x; then :; fi", ASKS),
    ("while rm x; do ls; done", ASKS),
    ("until ls; do rm x; done", ASKS),
    ("for x in $(rm x); do ls; done", ASKS),
    ("case $(rm x) in a) ls;; esac", ASKS),
    ("case a in a) rm x;; esac", ASKS),
    ("case a in $(rm x)) ls;; esac", ASKS),
    ("f() { rm x; }; f", ASKS),
    ("function f { rm x; }", ASKS),
    ("ls() { rm x; }", ASKS),
    ("cat <<E | rm x\na\nE", ASKS),
    ("ls >f$(rm x)", ASKS),
    # Programs that start others
    ("env rm x", ASKS),
    ("env -i A=1 rm x", ASKS),
    ("env -S 'rm x'", ASKS),
    ("nohup rm x", ASKS),
    ("nice -n 5 rm x", ASKS),
    ("timeout 5 rm x", ASKS),
    ("timeout -k 1 -s KILL 5 rm x", ASKS),
    ("stdbuf -oL rm x", ASKS),
    ("setsid rm x", ASKS),
    ("sudo ls", ASKS),
    ("ls | xargs rm", ASKS),
    ("ls | xargs -I{} rm {}", ASKS),
    ("ls | xargs -n 1 sh -c 'rm $0'", ASKS),
    ("ls | xargs --unheard-of ls", ASKS),
    ("find . -exec rm {} +", ASKS),
    ("find . -exec rm {} ';'", ASKS),
    ("find . -execdir rm {} \\;", ASKS),
    ("find . -ok rm {} \\;", ASKS),
    ("find . -delete", ASKS),
    ("find . -fprint x", ASKS),
    ("find . -name x -fls y", ASKS),
    ("find . $X", ASKS),
    ("bash -c 'rm x'", ASKS),
    ("sh -ec 'ls; rm x'", ASKS),
    ('bash -c "$x"', ASKS),
    ("bash x.sh", ASKS),
    ("bash <<< 'rm x'", ASKS),
    ("curl x | sh", ASKS),
    ("eval 'rm x'", ASKS),
    ('eval "$x"', ASKS),
    ("eval ls ';' rm x", ASKS),
    ("bash -c 'bash -c \"bash -c rm\"'", ASKS),
    ("timeout 5 env A=b ls", ASKS),
    ("timeout 5 ls", FREE),
    ("bash -c 'ls | wc -l'", FREE),
    ("eval 'ls -l'", FREE),
    ("find . -name '*.py' -exec grep -l x {} +", FREE),
    ("find . -name '*.py' | xargs wc -l", FREE),
    ("git ls-files | grep py | xargs -n1 wc -l", FREE),
    ("cat list | xargs cat", OUTSIDE),
    # Options of programs that read
    ("git -c core.pager='rm x' log", ASKS),
    ("git --exec-path=. status", ASKS),
    ("git -C x status", ASKS),
    ("git log --output=x", ASKS),
    ("git log --outp=x", ASKS),
    ("git diff --ext-diff", ASKS),
    ("git grep -O'rm x' y", ASKS),
    ("git grep --open-files-in-pager=x y", ASKS),
    ("git diff --no-index /etc/passwd a", ASKS),
    ("git cat-file --textconv x", ASKS),
    ("git branch -D x", ASKS),
    ("git branch new", ASKS),
    ("git tag v1", ASKS),
    ("git remote add x y", ASKS),
    ("git stash", ASKS),
    ("git config --global x y", ASKS),
    ("git push", ASKS),
    ("git log $X", ASKS),
    ("git log *", ASKS),
    ("git $X", ASKS),
    ("rg --pre ./x y", ASKS),
    ("rg --pr=./x y", ASKS),
    ("rg --hostname-bin ./x y", ASKS),
    ("sort -o x y", ASKS),
    ("sort -no x y", ASKS),
    ("sort --compress-prog=./x y", ASKS),
    ("sort --out=x y", ASKS),
    ("sort *", ASKS),
    ("uniq a b", ASKS),
    ("tree -o x", ASKS),
    ("file -C -m x", ASKS),
    ("diff -l a b", ASKS),
    ("sed -i s/a/b/ x", ASKS),
    ("sed -n 'w x' y", ASKS),
    ("sed 's/a/rm x/e' y", ASKS),
    ("sed '1e rm x' y", ASKS),
    ("sed -f x y", ASKS),
    ("sed s/a/b/w\\ x y", ASKS),
    ("fd -x rm", ASKS),
    ("date -s 2020-01-01", ASKS),
    ("hostname x", ASKS),
    ("awk 'BEGIN{system(\"rm x\")}'", ASKS),
    ("env", ASKS),
    ("tee x", ASKS),
    ("cp a b", ASKS),
    ("python -c 'x'", ASKS),
    ("ls", FREE),
    ("ls -la src tests", FREE),
    ("cat README.md | head -n 20", FREE),
    ("wc -l *.py", FREE),
    ("grep -rn '/api/' src", FREE),
    ("rg -n 'def f' src", FREE),
    ("git status --short", FREE),
    ("git diff HEAD~1 -- src", FREE),
    ("git --no-pager log --oneline -n 5", FREE),
    ("git show HEAD:a.py", FREE),
    ("git branch -a", FREE),
    ("git stash list", FREE),
    ("sort -rn a | uniq -c", FREE),
    ("sed -n '10,20p' a.py", FREE),
    ("sed 's/a/b/g; $d' a.py", FREE),
    ("find . -type f -name '*.py' -not -path './x/*'", FREE),
    ("jq -r .name package.json", FREE),
    ("python --version", FREE),
    ("command -v git", FREE),
    ("set -euo pipefail; ls", FREE),
    ("cd src && cat a.py", FREE),
    ("cd src && cat ../a.py", FREE),
    ('for f in *.py; do wc -l "$f"; done', FREE),
    ("for f in $(git ls-files); do echo $f; done", FREE),
    ("if [ -f a ]; then cat a; else echo none; fi", FREE),
    ('while IFS= read -r line; do echo "$line"; done < list', FREE),
    ("ls 2>/dev/null || true", FREE),
    ("ls 2>&1 | tail -5", FREE),
    ('x=src; ls "$x"', FREE),
    ("diff <(sort a) <(sort b)", FREE),
    ("cat <<'E'\n$(rm x) `rm x`\nE", FREE),
    # Places
    ("cat /etc/passwd", OUTSIDE),
    ("cat ~/.ssh/id_rsa", OUTSIDE),
    ("cat ~root/x", OUTSIDE),
    ("cat ../x", OUTSIDE),
    ("cat src/../../x", OUTSIDE),
    ("cat src//../a", FREE),
    ("cat /ws/a", FREE),
    ("cat < /etc/passwd", OUTSIDE),
    ("echo $(</etc/passwd)", OUTSIDE),
    ("grep -f/etc/passwd x", OUTSIDE),
    ("wc --files0-from=/etc/passwd", OUTSIDE),
    ("cd .. && cat x", OUTSIDE),
    ("cd / ; ls etc", OUTSIDE),
    ('cd "$x" && cat a', OUTSIDE),
    ("for d in a b; do cd $d; cat x; cd ..; done", OUTSIDE),
    ('cat "$x"', OUTSIDE),
    ("cat .env", NAMED),
    ("cat config/.env.local", NAMED),
    ("cat .env.example", FREE),
    ("head -3 < .env", NAMED),
    ("echo x > a", WRITES),
    ("echo x >> src/a", WRITES),
    ("echo x &> a", WRITES),
    ("> a", WRITES),
    ("cat > a <<'E'\nx\nE", WRITES),
    ("ls > /dev/null", FREE),
    ("echo x > /tmp/a", "dqqa"),
    ("echo x > ../a", "dqqq"),
    ("echo x > ~/.bashrc", "dqqq"),
    ("echo x > /dev/tcp/1.2.3.4/80", "dqqq"),
    ("echo x > .git/hooks/pre-commit", "dqqq"),
    ("echo x > sub/../.git/config", "dqqq"),
    ("echo x > AGENTS.md", "dqqq"),
    ("echo x > .fulmen/agent.toml", "dqqq"),
    ("cp x .git/config", "dqqq"),
    ("rm -rf .git", "dqqq"),
    ('echo x > "$y"', "dqqa"),
    # Texts that are not read
    ("(((", ASKS),
    ("echo 'a", ASKS),
    ("cat <<E\nx", ASKS),
    ("echo " + "x" * 70_000, ASKS),
    ("(" * 300 + "ls" + ")" * 300, ASKS),
    ("ls;" * 3_000, ASKS),
]


def test_the_table_is_a_table() -> None:
    assert len(ROWS) >= 150
    assert len({command for command, _ in ROWS}) == len(ROWS)


@pytest.mark.parametrize(("command", "expected"), ROWS, ids=lambda value: repr(value)[:40])
def test_a_command_in_each_mode(command: str, expected: str) -> None:
    assert verdicts("bash", {"command": command}) == expected
    assert verdicts("run", {"command": command}) == expected


# Other tools


@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("read", {"path": "a.py"}, "aaaa"),
        ("read", {"path": "/ws/a.py"}, "aaaa"),
        ("read", {"path": "src/../../x"}, "qqqa"),
        ("read", {"path": "/ws/../etc/x"}, "qqqa"),
        ("read", {"path": "//etc/x"}, "qqqa"),
        ("read", {"path": "~/.ssh/id_rsa"}, "qqqa"),
        ("read", {"path": ".env"}, "qqqq"),
        ("grep", {"pattern": "/x/", "path": "src"}, "aaaa"),
        ("grep", {"pattern": "x"}, "aaaa"),
        ("grep", {"pattern": "x", "path": "/etc"}, "qqqa"),
        ("glob", {"pattern": "**/*.py"}, "aaaa"),
        ("glob", {"pattern": "/etc/*"}, "qqqa"),
        ("glob", {"pattern": "../*"}, "qqqa"),
        ("edit", {"path": "a.py", "old": "x", "new": "y"}, "dqaa"),
        ("write", {"path": "src/a.py", "content": ""}, "dqaa"),
        ("write", {"path": "../a.py", "content": ""}, "dqqq"),
        ("write", {"path": "/tmp/a.py", "content": ""}, "dqqa"),
        ("write", {"path": ".git/config", "content": ""}, "dqqq"),
        ("write", {"path": "sub/AGENTS.md", "content": ""}, "dqqq"),
        ("todo", {"items": []}, "aaaa"),
        ("elsewhere__tool", {}, "dqqq"),
    ],
)
def test_a_tool_in_each_mode(name: str, arguments: dict[str, object], expected: str) -> None:
    assert verdicts(name, arguments) == expected


@pytest.mark.parametrize(
    ("command", "without", "with_network"),
    [
        ("ls", "allow", "allow"),
        ("cat a | grep b", "allow", "allow"),
        ("curl http://example.org", "allow", "ask"),
        ("ls; pip install x", "allow", "ask"),
        ("$X y", "allow", "ask"),
        ("cat < /dev/tcp/10.0.0.1/80", "allow", "ask"),
        ("cat < $X", "allow", "ask"),
    ],
)
def test_what_may_use_the_network_is_asked_about_in_auto(
    command: str, without: str, with_network: str
) -> None:
    call = Call("bash", {"command": command})
    assert permissions("auto").judge(call).decision == without
    verdict = permissions("auto").judge(call, leaves="the network")
    assert verdict.decision == with_network
    if with_network == "ask":
        assert "the network" in verdict.reason or "$X" in command
        free = permissions("auto", Rules.parse(["bash"]))
        allowed = free.judge(call, leaves="the network").decision
        assert allowed == "allow" or "<" in command
    for mode in ("plan", "ask", "accept-edits"):
        one = permissions(mode)
        assert one.judge(call, leaves="the network").decision == one.judge(call).decision


def test_a_command_that_may_use_the_network_can_be_allowed_for_good() -> None:
    one = permissions("auto")
    verdict = one.judge(Call("bash", {"command": "npm run t -x"}), leaves="the network")
    assert one.remember(verdict) == frozenset({Rule("bash", "npm run t *")})
    again = one.judge(Call("bash", {"command": "npm run t -q"}), leaves="the network")
    assert again.decision == "allow"


def test_a_path_counts_from_where_the_shell_stands() -> None:
    one = permissions("ask")
    call = Call("bash", {"command": "cat ../a"})
    assert one.judge(call).decision == "ask"
    assert one.judge(call, folder=Path("src")).decision == "allow"
    assert one.judge(call, folder=Path("/etc")).decision == "ask"


@pytest.mark.parametrize(
    ("name", "arguments"),
    [("bash", {}), ("bash", {"command": 3}), ("read", {"path": ""}), ("write", {"path": "a\0b"})],
)
def test_arguments_that_are_none_are_a_sentence(name: str, arguments: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=f"^{name} needs (command|path), a text$"):
        permissions("auto").judge(Call(name, arguments))


def test_a_mode_that_is_none_is_a_sentence() -> None:
    with pytest.raises(ValueError, match=r"^mode is 'yolo', it must be one of plan, ask, "):
        Permissions("yolo", Rules(), workspace=Path("/ws"))  # type: ignore[arg-type]


def test_git_does_not_read_a_repository_that_the_workspace_brings(tmp_path: Path) -> None:
    call = Call("bash", {"command": "git status"})
    one = Permissions("accept-edits", Rules(), workspace=tmp_path)
    sub = tmp_path / "sub"
    sub.mkdir()
    assert one.judge(call).decision == "allow"
    assert one.judge(call, folder=sub).decision == "allow"
    (sub / "HEAD").touch()
    assert one.judge(call, folder=sub).decision == "ask"
    assert one.judge(call, folder=sub / "deep").decision == "ask"
    text = "mkdir x; cd x && echo a > HEAD && git status"
    assert "git status" in one.judge(Call("bash", {"command": text})).reason


# Rules

RULES = Rules.parse(
    ["bash(wc *)", "bash(git *)", "bash(npm run test:*)", "edit(src/**)", "bash(make)", "grep"],
    ask=["bash(git commit *)", "edit(src/generated/**)", "read(notes/**)"],
    deny=["bash(git push *)", "read(**/secret.txt)", "edit(vendor)", "Bash(sudo *)"],
)


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("wc -l x", "aaaa"),
        ('for f in *.py; do wc -l "$f"; done', "aaaa"),
        ('wc "$x"', "qqqq"),
        ("wcx", ASKS),
        ("./wc x", ASKS),
        ("git fetch", "daaa"),
        ("git fetch; rm x", ASKS),
        ("git commit -m x", "dqqq"),
        ("git push", "dddd"),
        ("git push --force origin", "dddd"),
        ("ls && git push", "dddd"),
        ("echo $(git push)", "dddd"),
        ("git -C x push", "dddd"),
        ("git -c a=b push", "dddd"),
        ("/usr/bin/git push", "dddd"),
        ('g"i"t pu\\sh', "dddd"),
        ("ls | xargs git push", "dddd"),
        ("bash -c 'git push'", "dddd"),
        ("timeout 5 env A=b git push", "dddd"),
        ("find . -exec git push \\;", "dddd"),
        ("f() { git push; }", "dddd"),
        ("trap 'git push' EXIT", "dddd"),
        ("git $x", "dqqq"),
        ("git $x push", "dqqq"),
        ('git "$x"', "dqqq"),
        ("$x push", "dqqq"),
        ("(((", "dqqq"),
        ("sudo ls", "dddd"),
        ("npm run test", "daaa"),
        ("npm run test:unit -- -x", "daaa"),
        ("npm run tests", ASKS),
        ("make", "daaa"),
        ("make clean", ASKS),
        ("timeout 5 make", "daaa"),
        ("sudo make", "dddd"),
        ("cat secret.txt", "dddd"),
        ("cat a/b/secret.txt", "dddd"),
        ("cat sec*", "qqqq"),
        ("cat /etc/secret.txt", "dddd"),
        ("wc secret.txt", "dddd"),
        ("python x.py secret.txt", "dddd"),
        ("python x.py --file=secret.txt", "dddd"),
        ("cat < secret.txt", "dddd"),
        ("find . -name secret.txt", "aaaa"),
        ("cat notes/a", "qqqq"),
        ("echo x > src/a", "daaa"),
        ("echo x > src/generated/a", "dqqq"),
        ("echo x > vendor/a", "dddd"),
        ("rm -r vendor", "dddd"),
        ("cp x vendor/y", "dddd"),
        ("pytest vendor/tests", ASKS),
    ],
)
def test_a_command_under_rules(command: str, expected: str) -> None:
    assert verdicts("bash", {"command": command}, RULES) == expected


def test_the_reason_of_a_refusal_names_the_part_and_the_rule() -> None:
    assert bash("ls && git push", rules=RULES).reason == (
        "git push: the rule bash(git push *) denies it"
    )
    assert bash("rm x; rm y", mode="plan").reason == (
        "rm x: it is not known to only read, and nothing else runs in plan mode; "
        "rm y: it is not known to only read, and nothing else runs in plan mode"
    )


def test_a_rule_of_a_tool_is_for_all_its_calls() -> None:
    rules = Rules.parse(["bash", "thing"], deny=["edit", "grep"])
    assert verdicts("bash", {"command": "rm $x"}, rules) == "daaa"
    assert verdicts("thing", {}, rules) == "daaa"
    assert verdicts("write", {"path": "a", "content": ""}, rules) == "dddd"
    assert verdicts("bash", {"command": "ls > a"}, rules) == "dddd"
    assert verdicts("grep", {"pattern": "x"}, rules) == "dddd"
    assert verdicts("read", {"path": "a"}, Rules.parse(deny=["*"])) == "dddd"


def test_no_rule_lets_a_tool_that_is_not_ours_run_in_plan_mode() -> None:
    """Nobody knows of it that it only reads."""
    rules = Rules(allow=frozenset({Rule("mcp__issues__close")}))
    found = [permissions(mode, rules).judge(Call("mcp__issues__close", {})) for mode in MODES]
    assert [one.decision for one in found] == ["deny", "allow", "allow", "allow"]


def test_an_allow_rule_covers_protected_files_only_by_name() -> None:
    edit = {"path": "AGENTS.md", "old": "", "new": ""}
    assert verdicts("edit", edit, Rules.parse(["edit(**)", "edit(*.md)"])) == "dqqq"
    assert verdicts("edit", edit, Rules.parse(["edit(AGENTS.md)"])) == "daaa"
    assert verdicts("read", {"path": "a/.env"}, Rules.parse(["read(a/**)"])) == "qqqq"
    assert verdicts("read", {"path": "a/.env"}, Rules.parse(["read(a/.env)"])) == "aaaa"


def test_a_relative_rule_allows_nothing_outside_the_workspace() -> None:
    rules = Rules.parse(["edit(**/*.py)", "edit(/opt/**)", "edit(~/x)"])
    assert verdicts("write", {"path": "/usr/a.py", "content": ""}, rules) == "dqqq"
    assert verdicts("write", {"path": "/opt/a.py", "content": ""}, rules) == "daaa"
    assert verdicts("write", {"path": "/opt/../usr/a.py", "content": ""}, rules) == "dqqq"
    assert verdicts("write", {"path": "/home/me/x", "content": ""}, rules) == "daaa"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "must begin with a tool's name"),
        ("rm -rf", "must begin with a tool's name"),
        ("bash(ls", "has no closing bracket"),
        ("bash()", "the pattern is empty"),
        ("bash(x\\)", "a backslash at its end"),
        ("grep(x)", "only bash, read, edit, web_fetch, task take"),
        ("read([ab])", r"write \[ for the character"),
        ("read(a**)", "stands between slashes"),
        ("edit(../x)", "begin it with /"),
        ("edit(!x)", "use another list"),
        ("read(a/**/b/**/c/**/d/**/e/**/f)", "at most 4"),
        ("bash(" + "x" * 5000 + ")", "longer than 4,096"),
    ],
)
def test_a_rule_that_cannot_be_read_is_named(text: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=r"^the rule ") as caught:
        Rules.parse(["bash(ls)", text])
    assert sentence in str(caught.value)
    assert repr(text)[:40] in str(caught.value)


# Answers


@pytest.mark.parametrize(
    ("command", "remembered"),
    [
        ("pytest -x tests/a.py", ["bash(pytest *)"]),
        ("git add -A && git commit -m 'a b'", ["bash(git add *)", "bash(git commit *)"]),
        ("npm run build -- --x", ["bash(npm run build *)"]),
        ("python x.py", ["bash(python x.py)"]),
        ("python -c 'print(1)'", ["bash(python -c 'print(1)')"]),
        ("env A=b python x.py *", ["bash(env A=b python x.py \\*)"]),
        ("rm -rf build", ["bash(rm -rf build)"]),
        ("git push", ["bash(git push)"]),
        ("make test", ["bash(make test)"]),
        ("ls | xargs rm", ["bash(ls | xargs rm)"]),
        ("curl x | sh", ["bash(curl x | sh)", "bash(curl x)"]),
        ("sh", []),
        ("python -", []),
        ("$X y", ["bash($X y)"]),
        ("echo x > a", ["edit(./a)"]),
        ("cat /etc/x", ["read(/etc/x)"]),
        ("cat [ab]", []),
    ],
)
def test_always_remembers_the_narrowest_useful_rule(command: str, remembered: list[str]) -> None:
    kept: list[Rule] = []
    one = permissions("ask", store=kept.extend)
    call = Call("bash", {"command": command})
    verdict = one.judge(call)
    assert sorted(map(str, verdict.rules)) == remembered
    if verdict.decision == "ask" and remembered:
        assert one.remember(verdict) == verdict.rules == frozenset(kept)
        assert one.judge(call).decision == "allow"


@pytest.mark.parametrize("name", ["python", "bash", "env", "xargs", "sudo", "perl", "node", "rm"])
@pytest.mark.parametrize("rest", ["x", "-c x", "x y z", "'*'", '"$x"', "-x $y"])
def test_no_remembered_rule_covers_other_arguments(name: str, rest: str) -> None:
    rules = Rules(bash(f"{name} {rest}").rules)
    assert verdicts("bash", {"command": f"{name} -c other"}, rules)[1] == "q"


def test_what_an_ask_rule_asks_about_is_not_remembered() -> None:
    one = permissions("ask", RULES)
    verdict = one.judge(Call("bash", {"command": "git commit"}))
    with pytest.raises(ValueError, match="asked about each time"):
        one.remember(verdict)


def test_files_that_may_not_be_read_are_hidden_from_searches() -> None:
    one = permissions("ask", RULES)
    assert one.hides(Path("a/secret.txt"))
    assert one.hides(Path("/ws/notes/a"))
    assert one.hides(Path(".env"))
    assert not one.hides(Path("a.py"))
    assert not permissions("ask", Rules.parse(["read(.env)"])).hides(Path(".env"))


# What rules add to one another

RULE_TEXTS = st.sampled_from(
    [
        *("bash", "bash(wc *)", "bash(git *)", "bash(git push *)", "bash(* x)", "bash(ls)", "*"),
        *("edit", "edit(src/**)", "edit(*.py)", "edit(/**)", "read(**/.env)", "read(a)", "grep"),
        *("bash(git push)", "read(~/**)", "edit(src/a.py)", "bash(xargs *)", "bash(rm x)"),
    ]
)
LISTS = st.lists(RULE_TEXTS, max_size=4)
CALLS = st.sampled_from(
    [
        *(Call("bash", {"command": row}) for row, _ in ROWS if len(row) < 100),
        Call("edit", {"path": "src/a.py"}),
        Call("read", {"path": "a"}),
        Call("read", {"path": "~/x"}),
        Call("grep", {"pattern": "x"}),
        Call("thing", {}),
    ]
)
STRICTNESS = {"allow": 0, "ask": 1, "deny": 2}


@settings(max_examples=examples(200), deadline=None)
@given(CALLS, st.sampled_from(MODES), LISTS, LISTS, LISTS, RULE_TEXTS)
def test_a_rule_moves_a_verdict_only_to_its_side(
    call: Call, mode: Mode, allow: list[str], ask: list[str], deny: list[str], more: str
) -> None:
    def judged(*lists: list[str]) -> int:
        rules = Rules.parse(lists[0], ask=lists[1], deny=lists[2])
        return STRICTNESS[permissions(mode, rules).judge(call).decision]

    plain = judged(allow, ask, deny)
    assert judged(allow[::-1] * 2, ask[::-1], deny[::-1]) == plain
    assert judged(allow, ask, [*deny, more]) >= plain
    assert judged(allow, [*ask, more], deny) >= plain
    assert judged([*allow, more], ask, deny) <= plain
    assert judged([], ask, deny) >= plain


@settings(max_examples=examples(100), deadline=None)
@given(CALLS, CALLS, LISTS, LISTS, st.sampled_from(["; ", " && ", " | ", "\n", " || "]))
def test_commands_together_are_free_only_if_each_is(
    one: Call, other: Call, allow: list[str], deny: list[str], joint: str
) -> None:
    texts = [str(call.arguments.get("command", "ls")) for call in (one, other)]
    rules = Rules.parse(allow, deny=deny)
    assume("#" not in texts[0] and "<<" not in texts[0])  # they would take in what follows
    for mode in MODES:
        alone = [STRICTNESS[bash(text, mode, rules).decision] for text in texts]
        together = STRICTNESS[bash(joint.join(texts), mode, rules).decision]
        assert together >= min(max(alone), STRICTNESS["ask"])


def test_a_script_of_sed_is_read_in_time() -> None:
    began = time.process_time()
    for text in (" " * 60_000 + "x", ";" * 60_000, "p;" * 20_000 + "w x", "/" + "a" * 60_000):
        assert bash(f"sed -n '{text}' a", "plan").decision == "deny"
    assert time.process_time() - began < 5
    assert bash("sed -n '1,20p; $p' a", "plan").decision == "allow"


def test_a_command_that_jobs_starts_is_judged() -> None:
    rules = Rules.parse(deny=["bash(git push *)"])
    assert bash("jobs -x git push", "auto", rules).decision == "deny"
    assert bash("jobs -xl git push", "auto", rules).decision == "ask"
    assert bash("jobs -l", "auto", rules).decision == "allow"


@pytest.mark.parametrize(
    "text",
    [
        *("cat .en?", "cat .e*", "cat .*", "head -c9 .[e]nv", "cat ./.en*", "cat a/.n?trc"),
        *("cat .env$X", "cat .env.$X", "cat .e*.local", "grep -f.env a", "grep -inf.env a"),
        *("jq -f.env a", "git show HEAD:.env", "git log -L1,5:.env", "cat *.py .en?"),
        *("cat .envrc", "cat a/.npmrc", "cat .npm*", "file -f.env", "file -bf.env", "od @.env"),
        *("hexdump -f.env a", "strings @.env", "git ls-files -oX.env", "xargs -a.env echo"),
        *("xargs -0a .env echo", "xargs --arg-file=.env echo"),
        *("for f in .env .envrc; do cat $f; done", "xargs cat .p*", "cat .git-cred*"),
    ],
)
def test_a_file_of_keys_behind_a_wildcard_is_asked_about_in_every_mode(text: str) -> None:
    for mode in MODES:
        verdict = bash(text, mode)
        assert verdict.decision == "ask", mode
        assert "it may hold keys" in verdict.reason


@pytest.mark.parametrize(
    "text",
    [
        *("cat *", "cat *.py", "cat a/*", "cat .gitignore", "cat .github/*", "cat .clang-*"),
        *("cat ?env", "cat [.]env", "cat .env.example", "grep -ef a", "ls */.x*"),
    ],
)
def test_other_wildcards_are_not_asked_about(text: str) -> None:
    assert bash(text, "plan").decision == "allow"


@pytest.mark.parametrize(
    "text",
    [
        *("file -fsecrets/key", "file -bbfsecrets/key", "strings @secrets/key"),
        *("xargs -asecrets/key echo", "xargs -ra secrets/key echo", "hexdump -fsecrets/key a"),
    ],
)
def test_a_file_behind_the_letters_of_an_option_is_denied_in_every_mode(text: str) -> None:
    rules = Rules.parse(deny=["read(secrets/**)"])
    for mode in MODES:
        assert bash(text, mode, rules).decision == "deny", mode
    for mode in MODES:
        assert bash(f"ls -{'l' * 99}secrets/key", mode, rules).decision != "allow", mode


def test_lines_that_xargs_reads_are_a_file_that_is_read() -> None:
    for text in ("xargs -a /etc/x echo", "xargs -ra/etc/x echo", "xargs --arg-file /etc/x echo"):
        for mode in MODES:
            assert bash(text, mode).decision == bash("cat /etc/x", mode).decision, (text, mode)
    assert bash("xargs -a list echo", "plan").decision == "allow"


@pytest.mark.parametrize(
    "text",
    [
        *("ls -la", "head -n5 a", "git log --oneline -n3", "sort -k2,2n a", "cut -f1,2 -d: a"),
        *("grep -A3 -B2 x a", "rg -tpy x", "rg -g'*.py' x", "od -c a"),
    ],
)
def test_usual_options_are_no_files(text: str) -> None:
    rules = Rules.parse(deny=["read(secrets/**)", "read(.env)"])
    for mode in MODES:
        assert bash(text, mode, rules).decision == "allow", mode


def test_names_in_a_loop_may_be_hidden_ones() -> None:
    assert bash("for f in a .env; do cat $f; done", "plan").decision == "ask"
    assert bash("for f in a b; do cat $f; done", "plan").decision == "allow"


PUSHES = [
    *("git push", "/usr/bin/git push origin", "bash -c 'git push'", "bash -lc 'git push'"),
    *("bash --norc -c 'git push'", "bash -o pipefail -c 'git push'", "bash -ceu 'git push'"),
    *(
        "bash -c -x 'git push'",
        "bash -ic 'git push' x y",
        "sh -c -- 'git push'",
        "dash +e -c 'git push'",
    ),
    *("eval -- 'git push'", "eval git push", "trap -- 'git push' EXIT", "git -P push"),
    *("git --attr-source HEAD push", "git --exec-path push", "git --no-such x push"),
    *("git -c a=b -C . push", "bash --login -c 'eval \"git push\"'"),
]
"""Ways to spell `git push` of which it is sure what they do"""
HIDDEN_PUSHES = [
    *("zsh -c 'git push'", "bash <<< 'git push'", "echo git push | bash", "echo git push | sh -s"),
    *(
        "bash <<'X'\ngit push\nX",
        "source <(echo git push)",
        ". /dev/stdin",
        "bash <(echo git push)",
    ),
    *(
        "bash /dev/stdin < f",
        "flock f git push",
        "watch git push",
        "bash --rcfile f -i",
        "bash -O x f",
    ),
    *("bash --init-file f", "bash -o", "bash -k x", "git -c alias.p=push p", "bash -", "bash -i"),
    *(
        "git -p --config-env alias.p=X p",
        "strace git push",
        "source $X",
        "bash $X",
        "xargs -a f bash",
    ),
]
"""Ways to run it that are not read"""


@pytest.mark.parametrize("text", PUSHES)
def test_a_deny_rule_sees_through_every_spelling(text: str) -> None:
    assert bash(text, "auto", Rules.parse(deny=["bash(git push *)"])).decision == "deny"
    assert bash(text, "auto").decision == "allow"


@pytest.mark.parametrize("text", HIDDEN_PUSHES)
def test_what_may_run_anything_is_asked_about_where_a_rule_may_be_against_it(text: str) -> None:
    assert bash(text, "auto", Rules.parse(deny=["bash(git push *)"])).decision == "ask"
    assert bash(text, "auto").decision == "allow"
    assert bash(text, "plan").decision == "deny"


def test_a_shell_that_only_runs_an_allowed_text_is_allowed() -> None:
    for text in ("bash -lc ls", "bash -o pipefail -c 'ls | wc'", "sh -c -e ls", "eval -- ls"):
        assert bash(text, "plan").decision == "allow"
    assert (
        bash("source venv/bin/activate", "auto", Rules.parse(deny=["bash(x)"])).decision == "allow"
    )


@pytest.mark.parametrize("name", PROTECTED)
def test_a_name_that_the_sandbox_protects_is_asked_about_in_every_mode(name: str) -> None:
    for path in (name, f"a/{name}", f"{name}/x"):
        assert verdicts("write", {"path": path, "content": "x"}) == "dqqq"
        assert verdicts("bash", {"command": f"echo x > {path}"}) == "dqqq"


def test_git_is_judged_by_the_folder_that_really_is_there(tmp_path: Path) -> None:
    """A fork is shown at the path of the folder that it comes from; an open sandbox puts an empty
    folder in the place of a .git that is absent."""
    seen, source = tmp_path / "seen", tmp_path / "source"
    for folder in (seen, source):
        (folder / "sub").mkdir(parents=True)
    one = Permissions("plan", Rules(), workspace=seen, source=source, home=tmp_path)

    def decides(command: str, folder: Path = seen) -> str:
        return one.judge(Call("bash", {"command": command}), folder=folder).decision

    assert decides("git status") == "allow"
    (source / "HEAD").touch()
    assert decides("git status") == "deny"
    (source / ".git").mkdir()
    assert decides("git status") == "deny"
    (source / ".git/HEAD").touch()
    (seen / "HEAD").touch()
    assert decides("git status") == "allow"
    (source / "sub/HEAD").touch()
    assert decides("git status", seen / "sub") == "deny"
    assert verdicts("write", {"path": "HEAD", "content": "x"}) == "dqqq"
    assert verdicts("write", {"path": "a/HEAD", "content": "x"}) == "dqqq"

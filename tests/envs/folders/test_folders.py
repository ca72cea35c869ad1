"""Task folders: played without containers, graded by their tests in a fresh copy."""

import asyncio
import os
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from fulmen.agent import Score, Trajectory
from fulmen.chat import Message, get_format
from fulmen.envs import Folders, FolderTask, GraderError, load_environment, run_task
from fulmen.evaluate import self_check
from fulmen.llm import ScriptedModel
from tests.envs.played import in_folder

M2 = get_format("minimax_m2")
FILES = {
    "instruction.md": "Write the word Hello into /app/hello.txt.",
    "task.toml": 'schema_version = "1.4"\n[metadata]\ndifficulty = "easy"\n'
    "[verifier]\ntimeout_sec = 20.0\n[agent]\ntimeout_sec = 300\n[environment]\ncpus = 1\n",
    "environment/Dockerfile": "FROM python:3.9-slim\nWORKDIR /app\nENV GREETING=Hello\n"
    "COPY data .\n",
    "environment/data/seed.txt": "seed",
    "tests/test.sh": "#!/bin/bash\npython3 /tests/check.py\n",
    "tests/check.py": "import os\n"
    "there = os.path.exists('hello.txt')\n"
    "right = there and open('hello.txt').read().strip() == os.environ['GREETING']\n"
    "open('/logs/verifier/reward.txt', 'w').write(f'{int(right)}\\n')\n",
    "solution/solve.sh": "#!/bin/bash\ncp /solution/answer.txt /app/hello.txt\n",
    "solution/answer.txt": "Hello\n",
}


def written(folder: Path, **changes: str | None) -> Path:
    """Return a task's folder; changes are texts by path with _ for /, None takes a file away."""
    files: dict[str, str | None] = dict(FILES)
    names = {name.replace("/", "_").replace(".", "_"): name for name in files}
    files |= {names[key]: text for key, text in changes.items()}
    for name, text in files.items():
        if text is not None:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)
    return folder


def left(folder: Path, **files: str) -> Path:
    """Return a folder that an agent might have left."""
    folder.mkdir()
    for name, text in files.items():
        (folder / f"{name}.txt").write_text(text)
    return folder


def graded(task: FolderTask, folder: Path) -> Score:
    return in_folder(task, [Message("assistant", "Done.")], folder)


def says(text: str) -> str:
    return f"Hm.\n</think>\n\n{text}"


def runs(command: str) -> str:
    return (
        '</think>\n\n<minimax:tool_call>\n<invoke name="bash">\n<parameter name="command">'
        f"{command}</parameter>\n</invoke>\n</minimax:tool_call>"
    )


def played(task: FolderTask, script: Sequence[str]) -> Trajectory:
    return asyncio.run(run_task(ScriptedModel(M2, script), task))


@pytest.mark.usefixtures("has_sandbox")
def test_the_solution_scores_one_and_junk_nothing(tmp_path: Path) -> None:
    environment = Folders(written(tmp_path / "hello"))
    assert environment.num_tasks == 1
    assert asyncio.run(self_check(environment, [0], junk=["Hello"])) == []


@pytest.mark.usefixtures("has_sandbox")
def test_a_solution_may_have_programs_and_spaces_in_its_names(tmp_path: Path) -> None:
    folder = written(tmp_path / "hello", solution_solve_sh="'/solution/a b/c d'\n")
    program = folder / "solution/a b/c d"
    program.parent.mkdir()
    program.write_text("#!/bin/bash\ncp /solution/answer.txt hello.txt\n")
    assert asyncio.run(self_check(Folders(folder), [0], junk=[])) == []


@pytest.mark.usefixtures("has_sandbox")
def test_an_agent_finds_the_files_and_neither_tests_nor_solution(tmp_path: Path) -> None:
    task = load_environment(f"folders:{written(tmp_path / 'hello')}", seed=0).task(0)
    assert isinstance(task, FolderTask)
    look = "pwd; ls; echo $GREETING; ls -d /tests /solution /logs; echo end"
    trajectory = played(task, [runs(look), says("I give up.")])
    assert trajectory.steps[0].results[0].text.split()[:3] == ["/app", "seed.txt", "Hello"]
    assert trajectory.steps[0].results[0].text.count("No such file") == 3
    assert trajectory.score == Score(0.0, {"graded": 1.0})


@pytest.mark.usefixtures("has_sandbox")
def test_the_reward_is_a_number_with_parts(tmp_path: Path) -> None:
    test = '#!/bin/bash\necho \'{"reward": 0.5, "speed": 3}\' > /logs/verifier/reward.json\n'
    task = Folders(written(tmp_path / "hello", tests_test_sh=test)).task(0)
    folder = left(tmp_path / "left")
    assert graded(task, folder) == Score(0.5, {"speed": 3.0, "graded": 1.0})
    assert list(folder.iterdir()) == []


@pytest.mark.usefixtures("has_sandbox")
@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        ("true", "there is no reward.txt"),
        ("echo nan > /logs/verifier/reward.txt", "reward.txt has 'nan"),
        ("echo 1.5 > /logs/verifier/reward.txt", "reward 1.5, not from 0 to 1"),
        ("ln -s /etc/hostname /logs/verifier/reward.txt", "there is no reward.txt"),
        ('echo \'{"a": 1, "b": 0}\' > /logs/verifier/reward.json', "no reward among them"),
        ("kill -9 $$", "were ended"),
    ],
)
def test_tests_that_are_broken_are_an_error_and_no_score(
    tmp_path: Path, command: str, sentence: str
) -> None:
    folder = written(
        tmp_path / "hello", tests_test_sh=f"#!/bin/bash\n{command}\n", solution_solve_sh=None
    )
    task = Folders(folder).task(0)
    with pytest.raises(GraderError, match=sentence):
        graded(task, left(tmp_path / "left"))


@pytest.mark.usefixtures("has_sandbox")
def test_an_agent_that_keeps_the_tests_from_their_end_gets_nothing(tmp_path: Path) -> None:
    tests = "#!/bin/bash\n[ -f stop.txt ] && exit 1\necho 1 > /logs/verifier/reward.txt\n"
    task = Folders(written(tmp_path / "hello", tests_test_sh=tests)).task(0)
    assert graded(task, left(tmp_path / "left", stop="")) == Score(0.0, {"graded": 0.0})
    assert graded(task, left(tmp_path / "other")).value == 1


@pytest.mark.usefixtures("has_sandbox")
@pytest.mark.parametrize("target", ["/tests/right.txt", "root/tests/right.txt"])
def test_a_link_to_the_tests_is_no_answer(tmp_path: Path, target: str) -> None:
    tests = (
        "#!/bin/bash\ncmp hello.txt /tests/right.txt && reward=1\n"
        "echo ${reward:-0} > /logs/verifier/reward.txt"
    )
    path = written(tmp_path / "hello", tests_test_sh=tests)
    (path / "tests/right.txt").write_text("Hello")
    folder = left(tmp_path / "left", hello="Hello")
    task = Folders(path).task(0)
    assert graded(task, folder).value == 1
    (folder / "hello.txt").unlink()
    (folder / "root").symlink_to("/proc/self/root")
    (folder / "hello.txt").symlink_to(target)
    assert graded(task, folder) == Score(0.0, {"graded": 1.0})


@pytest.mark.usefixtures("has_sandbox")
def test_tests_that_need_an_answer_to_run_are_not_broken(tmp_path: Path) -> None:
    tests = "#!/bin/bash\nset -e\ncat hello.txt\necho 1 > /logs/verifier/reward.txt\n"
    task = Folders(written(tmp_path / "hello", tests_test_sh=tests)).task(0)
    assert graded(task, left(tmp_path / "left")) == Score(0.0, {"graded": 0.0})


@pytest.mark.usefixtures("has_sandbox")
def test_what_cannot_be_copied_scores_nothing_or_is_passed_over(tmp_path: Path) -> None:
    task = Folders(written(tmp_path / "hello")).task(0)
    folder = left(tmp_path / "left", hello="Hello")
    os.mkfifo(folder / "pipe")
    (folder / "link").symlink_to("/etc/passwd")
    assert graded(task, folder).value == 1
    with (folder / "large").open("wb") as file:
        file.truncate(2**40)
    assert graded(task, folder).value == 0


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"task_toml": None}, "no task"),
        ({"instruction_md": None}, "instruction.md is missing"),
        ({"tests_test_sh": None}, "test.sh is missing"),
        ({"task_toml": "a ="}, "is not TOML"),
        ({"task_toml": "[environment]\ngpus = 1"}, "environment.gpus asks for a GPU"),
        ({"task_toml": "[agent]\ntimeout_sec = nan"}, "agent.timeout_sec is nan, it must be above"),
        ({"task_toml": "[verifier]\ntimeout_sec = -1"}, "verifier.timeout_sec is -1, it must be"),
        ({"task_toml": f"[verifier]\ntimeout_sec = 1{'0' * 400}"}, "it must be above 0"),
        ({"task_toml": "[[steps]]\nname = 'a'"}, "steps asks for several steps"),
        ({"task_toml": "[environment]\ndocker_image = 'a'"}, "asks for an image that is fetched"),
        (
            {"task_toml": "[verifier]\nenvironment_mode = 'separate'"},
            "environment_mode is separate",
        ),
        ({"task_toml": "[verifier.env]\nKEY = '${KEY}'"}, "env.KEY is a variable of the host's"),
        ({"task_toml": "[environment.env]\nPATH = '/x'"}, "PATH cannot be set"),
        ({"environment_Dockerfile": "FROM python\nRUN make"}, "line 2 runs something"),
        ({"environment_Dockerfile": "FROM python\nWORKDIR /usr"}, "/usr"),
        ({"environment_Dockerfile": "FROM python\nWORKDIR /tests"}, "which the tests need"),
        ({"tests_test_sh": "#!/bin/bash\n\napt-get install -y curl"}, "line 3 needs the network"),
        ({"tests_test_sh": "cd /a\nif uvx \\\n pytest; then"}, "line 2 needs the network: if uvx"),
        ({"solution_solve_sh": "pip install x"}, "solve.sh, line 1 needs the network"),
    ],
)
def test_what_cannot_be_played_here_is_one_sentence(
    tmp_path: Path, changes: dict[str, str | None], sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence) as refusal:
        Folders(written(tmp_path / "hello", **changes))
    assert len(str(refusal.value).splitlines()) == 1


def test_a_script_of_white_space_is_read_in_no_time(tmp_path: Path) -> None:
    for begin in ("", "if", "!"):
        text = f"{begin}\n" * 60_000
        written(tmp_path / "hello", tests_test_sh=text)
        start = time.process_time()
        task = Folders(tmp_path / "hello").task(0)
        assert time.process_time() - start < 5
    assert task.agent_seconds == 300


def test_links_in_what_is_copied_are_refused(tmp_path: Path) -> None:
    folder = written(tmp_path / "hello")
    (folder / "environment/data/link").symlink_to("/etc")
    with pytest.raises(ValueError, match="is no file and no folder, it is not copied"):
        Folders(folder)


def test_a_folder_of_tasks_has_those_that_can_be_played(tmp_path: Path) -> None:
    for name in ("b", "a"):
        written(tmp_path / name)
    written(tmp_path / "c", environment_Dockerfile="FROM python\nRUN make\n")
    environment = Folders(tmp_path)
    assert [environment.task(index).name for index in range(environment.num_tasks)] == ["a", "b"]
    assert list(environment.refused) == ["c"]
    assert "line 2 runs something" in environment.refused["c"]
    with pytest.raises(ValueError, match="task 2 was asked for"):
        environment.task(2)
    with pytest.raises(ValueError, match="it must be folders:FOLDER"):
        load_environment("folders", seed=0)
    with pytest.raises(ValueError, match="is no folder"):
        load_environment(f"folders:{tmp_path}/nowhere", seed=0)

"""Lists of jobs: what is read from them, and that all that is wrong in one is told at once."""

import json
import re

import pytest

from mgie_jax.batch.jobs import BatchError, check_apart, folder_jobs, read_jobs, words
from mgie_jax.paths import to_path


@pytest.fixture
def listed(tmp_path):
    """Writes a list and reads it."""

    def read(*lines, seed=5):
        path = tmp_path / "lists" / "jobs.jsonl"
        path.parent.mkdir(exist_ok=True)
        rows = [line if isinstance(line, str) else json.dumps(line) for line in lines]
        path.write_text("\n".join(rows), "utf-8")
        return read_jobs(path, seed)

    return read


def test_a_line_is_a_job(listed, tmp_path):
    jobs = listed(
        {"photo": "cat.jpg", "instruction": "  make it \n warmer"},
        "",
        {"photo": "/a/b/dog.png", "instruction": "sepia", "seed": 0, "expressive": "It  turns brown.",
         "output": "d.webp"},
        {"photo": "gs://bucket/bird.jpeg", "instruction": "größer", "seed": None},
    )  # fmt: skip
    assert [job.line for job in jobs] == [1, 3, 4]
    assert [job.photo for job in jobs] == [
        tmp_path / "lists" / "cat.jpg", to_path("/a/b/dog.png"), to_path("gs://bucket/bird.jpeg")
    ]  # fmt: skip
    assert [job.instruction for job in jobs] == ["make it warmer", "sepia", "größer"]
    assert [job.seed for job in jobs] == [5, 0, 5]
    assert [job.expressive for job in jobs] == [None, "It turns brown.", None]
    assert [job.output for job in jobs] == ["cat.png", "d.webp", "bird.png"]


def test_names_are_each_once_and_stay_when_lines_are_added(listed):
    lines = [{"photo": f"{folder}/{name}", "instruction": "x"} for folder in "ab"
             for name in ("cat.jpg", "CAT.png", "cat-2.jpg")]  # fmt: skip
    asked = {"photo": "x.jpg", "instruction": "x", "output": "cat.png"}
    names = [job.output for job in listed(*lines)]
    assert names == ["cat.png", "CAT-2.png", "cat-2-2.png", "cat-3.png", "CAT-4.png", "cat-2-3.png"]
    assert [job.output for job in listed(*lines, *lines)][:6] == names
    assert len({job.output.lower() for job in listed(*lines, *lines)}) == 12
    assert [job.output for job in listed(*lines, asked)][-1] == "cat.png"
    assert "cat.png" not in [job.output.lower() for job in listed(*lines, asked)][:-1]


def test_every_mistake_is_told_at_once_with_its_line(listed):
    good = {"photo": "a.jpg", "instruction": "x"}
    wrong = [
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[1]", "is no JSON object"),
        ({"photo": "a.jpg"}, "lacks instruction"),
        ({"instruction": "x"}, "lacks photo"),
        (good | {"photo": ""}, "photo names no file"),
        (good | {"photo": "s3://b/c"}, "gs://"),
        (good | {"instruction": " "}, "instruction is empty"),
        (good | {"instruction": "x" * 1001}, "1001 characters"),
        (good | {"instruction": "\ud800"}, "UTF-8"),
        (good | {"instruction": 3}, "instruction must be a text, not 3"),
        (good | {"expressive": ""}, "expressive is empty"),
        (good | {"seed": -1}, "seed must be a whole number from 0 to 4294967295, not -1"),
        (good | {"seed": 2**32}, "seed must be"),
        (good | {"seed": 1.0}, "seed must be"),
        (good | {"seed": True}, "seed must be"),
        (good | {"steps": 3}, "has 'steps', which is none of photo"),
        (good | {"output": "../a.png"}, "without folders"),
        (good | {"output": ".a.png"}, "without folders"),
        (good | {"output": "a\\b.png"}, "without folders"),
        (good | {"output": "a.docx"}, "must end in"),
        (good | {"output": "a" * 200 + ".png"}, "must be the name of a file"),
        (good | {"output": "A.PNG"}, None),
        (good | {"output": "a.png"}, "output 'a.png' is that of another line"),
    ]
    with pytest.raises(BatchError) as caught:
        listed(good, *(line for line, _ in wrong), good)
    message = str(caught.value)
    assert f"{len(wrong) - 1} of {len(wrong) + 2} lines are wrong" in message and "\n" not in message
    told = dict(re.findall(r"line (\d+): (.*?)(?=; line \d+: |$)", message))
    for number, (_, why) in enumerate(wrong, 2):
        assert (str(number) not in told) if why is None else why in told[str(number)]


def test_a_list_of_nothing(listed, tmp_path):
    with pytest.raises(BatchError, match="has no jobs"):
        listed("", " ")
    with pytest.raises(BatchError, match="missing.jsonl: cannot be read"):
        read_jobs(tmp_path / "missing.jsonl", 0)


def test_many_mistakes_are_counted(listed):
    with pytest.raises(BatchError, match="80 of 80 lines are wrong: line 1: .*; and 30 more$"):
        listed(*["{"] * 80)


def test_a_folder_gives_its_photos_by_name(tmp_path):
    for name in ("b.jpg", "a.PNG", "a.jpg", ".hidden.jpg", "notes.txt", "c.webp"):
        (tmp_path / name).touch()
    (tmp_path / "d.jpg").mkdir()
    jobs = folder_jobs(tmp_path, "brighter", 7, "It is bright.")
    assert [(job.line, job.photo.name, job.output) for job in jobs] == [
        (1, "a.PNG", "a.png"), (2, "a.jpg", "a-2.png"), (3, "b.jpg", "b.png"), (4, "c.webp", "c.png")
    ]  # fmt: skip
    assert {(job.instruction, job.seed, job.expressive) for job in jobs} == {("brighter", 7, "It is bright.")}
    with pytest.raises(BatchError, match="holds no photos"):
        folder_jobs(tmp_path / "d.jpg", "brighter", 0, None)


def test_photos_are_not_written_over(listed, tmp_path):
    jobs = listed({"photo": "cat.png", "instruction": "x"}, {"photo": "a.png", "instruction": "x", "output": "b.png"})
    check_apart(jobs, tmp_path / "out", lambda name: [])
    with pytest.raises(BatchError, match=r"cat\.png: is one of the photos \(line 1\)"):
        check_apart(jobs, tmp_path / "lists", lambda name: [])
    (tmp_path / "link").symlink_to(tmp_path / "lists")
    with pytest.raises(BatchError, match="is one of the photos"):
        check_apart(jobs, tmp_path / "link", lambda name: [])
    with pytest.raises(BatchError, match="goes with line 1, but is another line's"):
        check_apart(jobs, tmp_path / "out", lambda name: ["B.png"])


def test_words_lose_control_characters():
    assert words("it", "make\0 it\x1b\t brighter\n") == "make it brighter"

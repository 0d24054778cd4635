"""The contact sheet shows every job, and words of jobs are only words in it."""

import os
from html.parser import HTMLParser
from urllib.parse import unquote

import pytest

from mgie_jax.batch.page import write_page

EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)> &amp; \"quoted\" 'too'"


class Page(HTMLParser):
    """Tags with their attributes, and the text of each article."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.articles, self.open = [], [], []
        self.feed(path.read_text("utf-8"))
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "img", "input"):
            self.open.append(tag)
        if tag == "article":
            self.articles.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "article" in self.open:
            self.articles[-1] += data

    def all(self, tag):
        return [attributes for found, attributes in self.tags if found == tag]


def line(name, **given):
    usual = {"output": name, "photo": f"photos/{name}", "instruction": "brighter", "expressive": "It is bright."}
    return usual | {"seed": 3, "size": [48, 24], "note": None} | given


@pytest.fixture
def page(tmp_path):
    names = ["a.png", "b #1?%&'\".png", "c.webp"]
    done = [line(names[0], note="half was cropped"), line(names[1], instruction=EVIL, expressive=EVIL, photo=EVIL),
            line(names[2], photo=os.fsdecode(b"photos/\xff.jpg"))]  # fmt: skip
    broken = [{"output": "d.png", "line": 7, "photo": EVIL, "instruction": EVIL, "seed": 1, "error": EVIL}]
    write_page(tmp_path / "index.html", done, broken, {*names, *(f"before/{name}.jpg" for name in names[:2])})
    return Page(tmp_path / "index.html"), names


def test_every_job_is_there(page):
    found, names = page
    assert found.open == [] and len(found.articles) == 4
    pictures = [unquote(picture["src"]) for picture in found.all("img")]
    assert pictures == ["./before/a.png.jpg", "./a.png", f"./before/{names[1]}.jpg", f"./{names[1]}", "./c.webp"]
    assert all(picture["loading"] == "lazy" and picture["width"] == "48" for picture in found.all("img"))
    text = found.articles[1]
    assert "brighter" in text and "It is bright." in text and "half was cropped" in text and "seed 3" in text
    assert "line 7" in found.articles[0] and "photos/?.jpg" in found.articles[3]


def test_words_are_words(page):
    found, _ = page
    assert len(found.all("script")) == 1 and all("onerror" not in attributes for _, attributes in found.tags)
    assert found.articles[0].count(EVIL) == 3 and found.articles[2].count(EVIL) == 3


def test_nothing_is_fetched_from_elsewhere(page):
    found, _ = page
    links = [attributes.get(name) for _, attributes in found.tags for name in ("src", "href", "data", "action")]
    assert all(link.startswith("./") for link in links if link is not None)

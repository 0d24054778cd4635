"""The first edit of a process finds its programs loading already, if the last process was like it."""

import json
import sys
import threading

import jax
import numpy as np
import pytest

from mgie_jax import compilation, first
from mgie_jax.loading import load
from tests.test_warmup import photo, run, warmup

PROGRAMS = ["_start", "decode", "denoise", "guide", "write"]


def ready(editor) -> list[str]:
    """The programs that are loaded once the threads are done."""
    for thread in threading.enumerate():
        if thread.name.startswith("programs"):
            thread.join()
    assert all(kept for _, kept in editor.programs._ready.values())
    return sorted(named.split()[0] for named in editor.programs._ready)


def misremember() -> None:
    """Parameters that lie otherwise, as of another layout."""
    files = first.Files(compilation.programs_dir())
    read = first.Files.read

    def wrongly(self, name):
        found = read(files, name)
        if not name.startswith("known-"):
            return found
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct((*x.shape, 1), x.dtype), found.shapes)
        return first.Known(found.model, shapes, found.special, found.width)

    first.Files.read = wrongly


def main(model: str) -> None:
    """Prints what each of several editors finds ready, and what they draw."""
    size, told, drawn = photo().size, {}, {}

    def edit(editor, name: str) -> None:
        drawn[name] = np.asarray(editor.edit(photo(), "brighter", seed=3).image).tolist()

    told["unasked"] = ready(editor := load(model))
    edit(editor, "unasked")
    told["asked"] = ready(editor := load(model, size=size))
    before = dict(editor.programs._ready)
    edit(editor, "asked")
    told["looked for again"] = sorted(set(editor.programs._ready) - set(before))
    told["another shape"] = ready(load(model, size=(200, 100)))
    told["another model"] = ready(load(model, size=size, dtype="bfloat16"))
    misremember()
    told["misremembered"] = ready(editor := load(model, size=size))
    edit(editor, "misremembered")
    told["same"] = drawn["unasked"] == drawn["asked"] == drawn["misremembered"]
    print(json.dumps(told))


@pytest.fixture(scope="module")
def told(tiny_model_dir):
    warmup(tiny_model_dir)
    return json.loads(run("tests.test_first", str(tiny_model_dir)).splitlines()[-1])


def test_programs_are_there_before_the_edit(told):
    assert told["asked"] == PROGRAMS and told["looked for again"] == []


def test_nothing_begins_unasked_or_for_another_model(told):
    assert told["unasked"] == told["another model"] == []


def test_a_photo_of_another_shape_finds_the_program_of_the_text(told):
    assert told["another shape"] == ["write"]


def test_what_is_known_wrongly_does_no_harm(told):
    """Its programs are looked for when they are wanted."""
    assert told["misremembered"] == [] and told["same"]


if __name__ == "__main__":
    main(*sys.argv[1:])

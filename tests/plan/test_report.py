"""What a plan says, as text, as JSON and as a page."""

import json
from dataclasses import replace
from xml.etree import ElementTree

import pytest

from mgie_jax.plan.facts import Facts
from mgie_jax.plan.machines import GIB
from mgie_jax.plan.page import page
from mgie_jax.plan.report import held, number, ranking, seconds, size, text
from tests.plan.made import FACTS, REQUEST, memory, plan


def test_what_fits_is_told():
    told = text(plan(), "configs/mgie_7b.py")
    for words in (
        "train of configs/mgie_7b.py on v5e:4x4: 16 x TPU v5e",
        "mesh data=1, fsdp=16, tensor=1; batch 64, accumulate 1, remat none",
        "train     1  13.00 GiB   2 s  compute      2 s  1 s  1 s  1 s  25 %     1 s       2 s",
        "arguments that are not read",
        "in all, of 15.75 GiB",
        "1.00 GiB  argument   train  float32[4,4]      state/params/unet/kernel",
        "FLOPs as compiled",
        "100 GB       4  train  all-gather over fsdp  bf16[8,4096]  jit(step)/gathered",
        "At best 2 s a batch, 32 examples/s; bound by compute; MFU 25 %",
        "It fits: 13.00 GiB of 15.75 GiB a device, 2.75 GiB to spare.",
    ):
        assert words in told
    assert "estimate" not in told and "Loops" not in told and "least effort" in told
    assert "least effort" not in text(plan(replace(REQUEST, effort="full")), "c.py")


def test_programs_stand_side_by_side_and_what_they_share_stands_once():
    both = replace(plan(), facts=(FACTS, replace(FACTS, name="decode", runs=3, parts={"state/params": GIB})))
    told = text(both, "c.py")
    (row,) = (line.split() for line in told.splitlines() if line.strip().startswith("state/params "))
    assert row == ["state/params", "4.00", "GiB", "1.00", "GiB"]
    assert told.count("state/params/unet/kernel") == 1 and "train, decode" in told
    assert "At best 8 s a batch, 8 examples/s" in told


def test_what_does_not_fit_is_told_with_what_the_compiler_says():
    full = plan(memory=memory(20, 10), refused="RESOURCE_EXHAUSTED: Ran out of memory on HBM")
    assert not full.fits
    assert "It does not fit: 20.00 GiB of 15.75 GiB a device. RESOURCE_EXHAUSTED" in text(full, "c.py")


def test_a_program_that_the_compiler_refuses_fits_no_memory():
    assert not replace(FACTS, refused="RESOURCE_EXHAUSTED").fits(1000.0 * GIB)
    assert FACTS.fits(13.0 * GIB) and not FACTS.fits(13.0 * GIB - 1)


def test_loops_and_estimates_are_owned_up_to():
    request = replace(REQUEST, topology="h200:8")
    for write in (text, page):
        told = write(plan(request, while_turns=256), "c.py")
        assert "estimate" in told and "256 turns" in told and "NVLink" in told and "ICI" not in told


def test_json_has_it_all_and_comes_back():
    told = json.loads(json.dumps(plan().to_json()))
    assert told["fits"] and told["total_bytes"] == 13 * GIB and told["bound"] == "compute" and told["mfu"] == 0.25
    (program,) = told["programs"]
    assert program["roofline"]["seconds"] == 2.0 and program["flows"][0]["axes"] == ["fsdp"]
    names = set(program) - {"roofline", "total_bytes"}
    assert Facts.from_json({name: program[name] for name in names}) == FACTS


def test_the_page_stands_alone_and_is_sound():
    made = page(plan(), "configs/<mine>.py", "do --this & that")
    tree = ElementTree.fromstring(made.split("\n", 1)[1].replace('<meta charset="utf-8">', ""))
    assert "http" not in made.replace("http://www.w3.org/2000/svg", "")
    assert len(tree.findall(".//{http://www.w3.org/2000/svg}svg")) == 2
    for words in ("configs/&lt;mine&gt;.py", "jit(step)/&lt;dot&gt;", "do --this &amp; that", "It fits"):
        assert words in made


def test_bars_are_as_long_as_what_they_show():
    tree = ElementTree.fromstring(page(plan(), "c").split("\n", 1)[1].replace('<meta charset="utf-8">', ""))
    bars = {
        bar[0].text: float(bar.get("width"))
        for bar in tree.iter("{http://www.w3.org/2000/svg}rect")
        if len(bar) and bar[0].tag.endswith("title")
    }
    assert bars["train, temporaries: 8.00 GiB"] == pytest.approx(690 * 8 / 15.75, abs=0.1)
    assert bars["train, frozen/vae: 1.00 GiB"] == pytest.approx(690 / 15.75, abs=0.1)


def test_a_ranking():
    told = ranking([plan(), plan(flops=197e12)])
    assert [line.split()[0] for line in told.splitlines()[1:]] == ["1", "2"]
    assert "1,16,1" in told and "13.00 GiB" in told


@pytest.mark.parametrize(
    "shown, expected",
    [
        (held(1536 * 2**20), "1.50 GiB"), (held(0), "0 B"), (held(-2048), "-2.00 KiB"), (number(1.234e12), "1.23 T"),
        (number(12), "12"), (size(999), "999 B"), (size(2.5e9), "2.5 GB"), (seconds(0.0123), "12.3 ms"),
        (seconds(2), "2 s"), (seconds(2670), "2,670 s"), (seconds(4e-9), "4 ns"),
    ],
)  # fmt: skip
def test_quantities(shown, expected):
    assert shown == expected

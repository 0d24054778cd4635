"""The process that compiles: what it is given, and what becomes of it when it fails."""

import json
import os

import pytest

from mgie_jax.plan import ahead
from mgie_jax.plan.ahead import CompilerFailed, compile_ahead, environment
from mgie_jax.plan.machines import parse_topology
from tests.plan.made import FACTS, REQUEST


@pytest.fixture
def compiler(tmp_path, monkeypatch):
    """Puts a shell script in the compiler's place."""

    def put(script):
        path = tmp_path / "python"
        path.write_text(f"#!/bin/sh\ncat > {tmp_path}/request\n{script}\n")
        path.chmod(0o755)
        monkeypatch.setattr(ahead.sys, "executable", str(path))
        return tmp_path / "request"

    monkeypatch.setattr(ahead, "require_compiler", lambda topology: None)
    return put


def test_facts_come_back(compiler):
    answer = json.dumps({"facts": [FACTS.to_json()]})
    request = compiler(f"echo '{json.dumps({'compiling': 'train'})}'\ncat <<'END'\n{answer}\nEND")
    seen = []
    assert compile_ahead(REQUEST, seen.append) == [FACTS] and seen == ["train"]
    assert json.loads(request.read_text())["mesh"] == [1, 16, 1]


def test_what_the_request_got_wrong_is_a_value_error(compiler):
    compiler("""echo '{"error": "mesh: data=3 must be a multiple of 2"}'""")
    with pytest.raises(ValueError, match="multiple of 2"):
        compile_ahead(REQUEST)


def test_a_failure_ends_with_what_was_said_last(compiler, monkeypatch):
    compiler("echo 'E0000 noise of libtpu' >&2; echo 'XlaError: it broke' >&2; exit 7")
    with pytest.raises(CompilerFailed, match="exit code 7: XlaError: it broke$"):
        compile_ahead(REQUEST)
    monkeypatch.setenv("MGIE_DEBUG", "1")
    with pytest.raises(CompilerFailed, match="noise of libtpu"):
        compile_ahead(REQUEST)


def test_a_process_that_is_killed(compiler):
    compiler("kill -9 $$")
    with pytest.raises(CompilerFailed, match="out of memory"):
        compile_ahead(REQUEST)


def test_its_environment(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_mine=1")
    tpu = environment(parse_topology("v5e:2x2"), "quick")
    assert tpu["JAX_PLATFORMS"] == "cpu"
    assert tpu["TPU_SKIP_MDS_QUERY"] == tpu["ALLOW_MULTIPLE_LIBTPU_LOAD"] == "1"
    assert tpu["JAX_EXEC_TIME_OPTIMIZATION_EFFORT"] == "-1" and tpu["XLA_FLAGS"] == "--xla_mine=1"
    gpu = environment(parse_topology("h200:8", 2), "full")
    assert gpu["XLA_FLAGS"] == "--xla_mine=1 --xla_force_host_platform_device_count=16"
    assert gpu.get("JAX_EXEC_TIME_OPTIMIZATION_EFFORT") == os.environ.get("JAX_EXEC_TIME_OPTIMIZATION_EFFORT")

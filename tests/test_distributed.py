"""Which process this is: said by three variables, asked of the surroundings, or nobody's business."""

import jax
import pytest

from mgie_jax import distributed


@pytest.fixture
def joined(monkeypatch):
    """What `jax.distributed.initialize` is called with; nothing is joined."""
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *args: calls.append(args))
    for name in (distributed.ADDRESS, distributed.COUNT, distributed.INDEX):
        monkeypatch.delenv(name, raising=False)
    return calls


def place(monkeypatch, address, count, index):
    for name, value in zip(("ADDRESS", "COUNT", "INDEX"), (address, count, index), strict=True):
        monkeypatch.setenv(getattr(distributed, name), value)


def test_alone_unless_told(joined, monkeypatch):
    distributed.initialize(asked=False)
    monkeypatch.setenv(distributed.ADDRESS, "10.0.0.1:1234")  # may be there for another program
    distributed.initialize(asked=False)
    assert joined == []


def test_the_variables_place_a_process(joined, monkeypatch):
    place(monkeypatch, "127.0.0.1:1234", "4", "3")
    distributed.initialize(asked=False)
    distributed.initialize(asked=True)
    assert joined == [("127.0.0.1:1234", 4, 3)] * 2
    assert jax.config.jax_cpu_collectives_implementation == "gloo"


def test_asked_without_variables_jax_looks_around(joined):
    distributed.initialize(asked=True)
    assert joined == [()]


def test_no_cluster_is_said_with_the_remedy(joined, monkeypatch):
    def fails():
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", fails)
    with pytest.raises(ValueError, match="no cluster here.*JAX_PROCESS_ID"):
        distributed.initialize(asked=True)


@pytest.mark.parametrize("values", [("", "2", "0"), ("a:1", "2", "2"), ("a:1", "two", "0"), ("a:1", "2", "")])
def test_half_a_place_is_refused(joined, monkeypatch, values):
    place(monkeypatch, *values)
    with pytest.raises(ValueError, match="JAX_NUM_PROCESSES=.* counted from 0"):
        distributed.initialize(asked=False)
    assert joined == []


def test_to_host_of_one_process():
    tree = {"a": jax.numpy.arange(3), "b": {"c": jax.numpy.ones(())}}
    host = distributed.to_host(tree)
    assert host["a"].tolist() == [0, 1, 2] and type(host["b"]["c"]).__module__ == "numpy"
    distributed.wait_for_all("here")

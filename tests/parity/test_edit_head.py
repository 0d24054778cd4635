"""The edit head against the same module built from torch.nn.Transformer."""

import jax
import jax.numpy as jnp
import pytest
import torch

from mgie_jax.models.edit_head import EditHead, EditHeadConfig
from tests.parity.carry import array, carry, gradient_error, relative_error, relative_l2, stir, tensor

CONFIG = EditHeadConfig(
    llm_hidden_size=40,
    d_model=32,
    nhead=4,
    num_layers=2,
    dim_feedforward=48,
    num_queries=7,
    cross_attention_dim=24,
)


class TorchEditHead(torch.nn.Module):
    def __init__(self, c):
        super().__init__()
        self.llm2hid = torch.nn.Linear(c.llm_hidden_size, c.d_model)
        self.query = torch.nn.Parameter(torch.randn(1, c.num_queries, c.d_model))
        self.mapper = torch.nn.Transformer(
            d_model=c.d_model,
            nhead=c.nhead,
            num_encoder_layers=c.num_layers,
            num_decoder_layers=c.num_layers,
            dim_feedforward=c.dim_feedforward,
            dropout=0.0,
            norm_first=True,
            batch_first=True,
        )
        self.hid2feat = torch.nn.Linear(c.d_model, c.cross_attention_dim)

    def forward(self, x):
        return self.hid2feat(self.mapper(self.llm2hid(x), self.query.repeat(x.shape[0], 1, 1)))


def make_pair(config):
    torch.manual_seed(0)
    theirs = TorchEditHead(config).eval()
    stir(theirs)
    ours = EditHead(config)
    x = jnp.zeros((1, 8, config.llm_hidden_size))
    template = jax.eval_shape(ours.init, jax.random.key(0), x)["params"]
    return theirs, ours, {"params": carry(template, theirs.state_dict())}


@pytest.fixture(scope="module")
def pair():
    return make_pair(CONFIG)


@pytest.fixture(scope="module")
def states():
    return jax.random.normal(jax.random.key(0), (3, 8, CONFIG.llm_hidden_size))


def test_forward(pair, states):
    theirs, ours, params = pair
    with torch.no_grad():
        wanted = theirs(tensor(states))
    assert relative_error(jax.jit(ours.apply)(params, states), wanted) < 1e-4
    low = jax.jit(EditHead(CONFIG, jnp.bfloat16).apply)(params, states)
    assert low.dtype == jnp.bfloat16
    assert relative_l2(low, wanted) < 2e-2


def test_gradients(pair, states):
    """For every parameter, the queries among them, and the states, through which training reaches the MLLM."""
    theirs, ours, params = pair
    x = tensor(states, grad=True)
    theirs(x).square().sum().backward()
    gradients = jax.jit(jax.grad(lambda params, x: jnp.square(ours.apply(params, x)).sum(), argnums=(0, 1)))
    grads, states_grad = gradients(params, states)
    assert gradient_error(grads["params"], theirs) < 1e-4
    assert relative_error(states_grad, array(x.grad)) < 1e-4

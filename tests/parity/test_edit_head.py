"""The edit head against the same module built from torch.nn.Transformer."""

import jax
import jax.numpy as jnp
import numpy as np
import torch

from mgie_jax.models.edit_head import EditHead, EditHeadConfig
from tests.parity.carry import carry, relative_error

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
    with torch.no_grad():
        for value in theirs.parameters():  # unit norms and zero biases would hide mistakes
            value.add_(0.05 * torch.randn_like(value))
    ours = EditHead(config)
    x = jnp.zeros((1, 8, config.llm_hidden_size))
    template = jax.eval_shape(ours.init, jax.random.key(0), x)["params"]
    return theirs, ours, {"params": carry(template, theirs.state_dict())}


def test_forward():
    theirs, ours, params = make_pair(CONFIG)
    x = np.random.default_rng(0).standard_normal((3, 8, CONFIG.llm_hidden_size)).astype(np.float32)
    with torch.no_grad():
        wanted = theirs(torch.tensor(x))
    assert relative_error(ours.apply(params, jnp.asarray(x)), wanted) < 1e-4


def test_gradient_of_the_queries():
    """The queries are trained through the whole decoder."""
    theirs, ours, params = make_pair(CONFIG)
    x = np.random.default_rng(1).standard_normal((2, 8, CONFIG.llm_hidden_size)).astype(np.float32)
    theirs(torch.tensor(x)).square().sum().backward()
    grads = jax.grad(lambda p: jnp.square(ours.apply(p, jnp.asarray(x))).sum())(params)["params"]
    assert relative_error(grads["query"], theirs.query.grad) < 1e-4
    packed = theirs.mapper.encoder.layers[0].self_attn.in_proj_weight.grad
    attention = grads["mapper"]["encoder"]["layers.0"]["self_attn"]
    assert relative_error(attention["in_proj_weight"], packed) < 1e-4

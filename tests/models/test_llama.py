"""`transformers` and we give the same logits for the same weights, both ways."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_lm import small

from seekray.errors import UserError
from seekray.models.llama import from_llama, to_llama, weights_from_llama, weights_to_llama
from seekray.models.transformer import Transformer, TransformerConfig

transformers = pytest.importorskip("transformers")
SHAPES: list[dict[str, Any]] = [
    {"num_kv_heads": 4},
    {"num_kv_heads": 2, "tie_embeddings": False, "bias": True},
    {"num_kv_heads": 1, "head_size": 10, "rope_theta": 500_000.0, "norm_eps": 1e-6},
]


@pytest.mark.parametrize("model", SHAPES)
def test_ours_to_theirs(model: dict[str, Any]) -> None:
    net = small(**model)
    theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(**to_llama(net.config, net.vocab_size))).eval()
    missing, unexpected = theirs.load_state_dict(weights_to_llama(net.state_dict(), net.config), strict=False)
    assert not unexpected
    assert set(missing) <= {"lm_head.weight"}  # tied
    theirs.tie_weights()
    tokens = torch.randint(40, (2, 16))
    with torch.no_grad():
        torch.testing.assert_close(theirs(tokens).logits, net(tokens), rtol=0, atol=1e-4)


@pytest.mark.parametrize("model", SHAPES)
def test_theirs_to_ours(model: dict[str, Any]) -> None:
    torch.manual_seed(0)
    shape = to_llama(small(**model).config, 40)
    theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(**shape, dtype=torch.float32)).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    config = TransformerConfig(**from_llama(theirs.config.to_dict()))
    assert {k: v for k, v in to_llama(config, 40).items() if k != "attention_dropout"}.items() <= (
        theirs.config.to_dict() | {"rope_theta": config.rope_theta}
    ).items()
    state = theirs.state_dict()
    ours = Transformer(config)
    ours.load_state_dict(weights_from_llama(state, state.__getitem__, config))
    tokens = torch.randint(40, (2, 16))
    with torch.no_grad():
        torch.testing.assert_close(ours(tokens), theirs(tokens).logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, r"architectures: \['GPT2LMHeadModel'\] given"),
        ({"hidden_act": "gelu"}, "hidden_act: 'gelu' given, expected silu"),
        ({"attention_bias": True}, r"mlp_bias: False given, expected as attention_bias \(True\)"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, "expected rope_type: default"),
    ],
)
def test_what_we_do_not_have(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        from_llama(to_llama(small().config, 40) | changed)


def test_what_llama_does_not_have() -> None:
    with pytest.raises(UserError, match=r"model.ffn: gelu has no counterpart in LlamaForCausalLM, which has ffn: swiglu"):
        to_llama(small(ffn="gelu").config, 40)


def test_missing_weights() -> None:
    config = small().config
    with pytest.raises(UserError, match=r"the weights have no model.embed_tokens.weight"):
        weights_from_llama([], {}.__getitem__, config)

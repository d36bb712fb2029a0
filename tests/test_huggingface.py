"""Folders of `transformers`: exported ones load there, theirs load here, with the same logits and the same ids."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from small_lm import write_bundle
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from typer.testing import CliRunner

from seekray.cli import app
from seekray.errors import UserError
from seekray.generator import Generator
from seekray.huggingface import read_folder, write_folder
from seekray.models import get_family

transformers = pytest.importorskip("transformers")
TEXTS = ["Once upon a time, Grüße 👋", "  two  spaces\n", ""]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("lm"), tie_embeddings=False)


@pytest.mark.parametrize("shard_bytes", [10**9, 20_000])
def test_export(bundle: Path, tmp_path: Path, shard_bytes: int) -> None:
    write_folder(bundle, tmp_path / "hf", shard_bytes)
    assert (tmp_path / "hf/model.safetensors.index.json").exists() == (shard_bytes < 10**9)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    assert type(theirs).__name__ == "LlamaForCausalLM"
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    generator = Generator.load(bundle)
    own: Any = generator.schema
    ids = own.tokenizer.encode(TEXTS)
    assert [tokenizer(t, add_special_tokens=False).input_ids for t in TEXTS] == ids
    assert [tokenizer.decode(i, skip_special_tokens=True) for i in ids] == TEXTS
    assert (theirs.config.eos_token_id, tokenizer.eos_token_id) == (own.tokenizer.end, own.tokenizer.end)
    with torch.no_grad():
        logits = theirs(torch.tensor([ids[0]])).logits[0]
    torch.testing.assert_close(logits, generator.logits(ids[0]), rtol=0, atol=1e-4)
    made = generator.generate(["Once"], temperature=0, max_tokens=20, logprobs=0)
    prompt = own.encode_prompts(["Once"])
    greedy = theirs.generate(torch.tensor(prompt), max_new_tokens=20, do_sample=False)[0, len(prompt[0]) :].tolist()
    assert made.column("token_ids")[0].as_py() == greedy
    config, schema, tensors = read_folder(tmp_path / "hf")  # and back
    assert schema.tokenizer.encode(TEXTS) == ids
    assert config.tie_embeddings is False
    assert all(torch.equal(value, generator.modules["lm"].state_dict()[name[3:]]) for name, value in tensors.items())


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A randomly initialised Llama in shards, with a tokenizer that begins texts with a token of its own."""
    folder = tmp_path_factory.mktemp("theirs")
    library = Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    special = ["<|begin|>", "<|end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    library.train_from_iterator(["once upon a time there was a time"] * 20, trainer)
    library.post_processor = processors.TemplateProcessing(single="<|begin|> $A", special_tokens=[("<|begin|>", 0)])
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=library, bos_token="<|begin|>", eos_token="<|end|>")
    fast.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=320, hidden_size=48, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=80, max_position_embeddings=64, bos_token_id=0, eos_token_id=1, rope_theta=20_000.0,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder, max_shard_size="50KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    return folder


def test_import(theirs: Path) -> None:
    config, schema, tensors = read_folder(theirs)
    assert (config.num_kv_heads, config.inner_size, config.rope_theta) == (2, 80, 20_000.0)
    tokenizer = transformers.AutoTokenizer.from_pretrained(theirs)
    assert schema.tokenizer.encode(TEXTS) == [tokenizer(t, add_special_tokens=False).input_ids for t in TEXTS]
    assert schema.first_token == "<|begin|>"
    assert schema.tokenizer.end_token == "<|end|>"
    chat = [{"role": "user", "content": "once"}]
    expected = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert schema.chat(chat) == expected
    assert schema.encode_prompts(["once"]) == [tokenizer(expected).input_ids]
    net: Any = get_family("lm").build(config, schema)["lm"]
    net.load_state_dict({name.removeprefix("lm/"): value for name, value in tensors.items()})
    model = transformers.AutoModelForCausalLM.from_pretrained(theirs)
    tokens = torch.randint(320, (2, 64))
    with torch.no_grad():
        torch.testing.assert_close(net(tokens), model(tokens).logits, rtol=0, atol=1e-4)


def test_the_commands(theirs: Path, tmp_path: Path, home: Path) -> None:
    run = CliRunner().invoke
    done = json.loads(run(app, ["models", "import", str(theirs), "--name", "tale", "--json"], catch_exceptions=False).stdout)
    assert (done["model"], done["version"]) == ("tale", "1")
    generator = Generator.load("tale/1")
    assert (generator.name, generator.version) == ("tale", "1")
    assert generator.sample["answers"]
    back = run(app, ["models", "export", "tale", "--format", "huggingface", "--out", str(tmp_path / "back")])
    assert back.exit_code == 0
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "back")
    first = transformers.AutoModelForCausalLM.from_pretrained(theirs)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), first.parameters(), strict=True))
    assert (again.config.bos_token_id, again.config.eos_token_id) == (0, 1)
    wrong = run(app, ["models", "export", "tale", "--format", "onnx", "--out", str(tmp_path / "o")])
    assert isinstance(wrong.exception, UserError)


def test_folders_that_cannot_be(theirs: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no folder of a Hugging Face model"):
        read_folder(tmp_path)
    for file in theirs.iterdir():
        if "model-00002" not in file.name:
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(UserError, match=r"model-00002.* is missing"):
        read_folder(tmp_path)
    (tmp_path / "model.safetensors.index.json").unlink()
    with pytest.raises(UserError, match=r"has neither model.safetensors nor"):
        read_folder(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"has no tokenizer.json"):
        read_folder(tmp_path)

"""What `generation_serving` asks: a bundle and a `transformers` folder with the same weights, and the servers around them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from seekray_serve.lifecycle import instance

FOLDER = "SEEKRAY_BENCH_FOLDER"
VOCABULARY = 2048
CONTEXT = 1024


def write(folder: Path) -> None:
    """`bundle` and `llama`, 5.3 million random weights. A token is a character, so that a client can count them."""
    import pyarrow as pa
    import torch

    from benchmarks.generation import CONFIG
    from seekray import bundle
    from seekray.data.tables.features import Feature
    from seekray.data.text.schema import TextSchema
    from seekray.data.text.tokenizer import train
    from seekray.generator import open_model
    from seekray.huggingface import write_folder
    from seekray.models.transformer import Transformer
    from seekray.storage import Storage

    torch.manual_seed(0)
    config = CONFIG.model_copy(update={"context_length": CONTEXT})
    net = Transformer(config).eval()
    tokenizer = train("char", ["".join(chr(0x4E00 + i) for i in range(VOCABULARY))], VOCABULARY, "<|end|>")
    assert tokenizer.size == VOCABULARY
    schema = TextSchema(tokenizer, "pretrain", VOCABULARY, CONTEXT, (Feature("text", "text", "一"),))
    info = {"name": "bench", "family": "lm", "task": "pretrain", "model": config.model_dump(), "serve": {}}
    info |= {"fingerprint": {}, "metrics": {}, "intervals": {}}
    tensors = {f"lm/{name}": value for name, value in net.state_dict().items()}
    sample = open_model(info, schema, tensors).examples(pa.table({"text": ["一丁"]}))  # type: ignore[union-attr]
    bundle.write(Storage(str(folder)), "bundle", info, schema, tensors, sample)
    write_folder(folder / "bundle", folder / "llama")
    (folder / "llama/generation_config.json").write_text("{}")  # nothing ends a text before its length


def replica() -> Any:
    """Our application on uvicorn alone, without Serve and HAProxy."""
    import torch

    from seekray_serve.generation import load
    from seekray_serve.options import Limits

    torch.set_num_threads(1)
    return load(str(Path(os.environ[FOLDER]) / "bundle"), Limits(), name="bench", version="1")


def wrapper() -> Any:
    """What one writes by hand: FastAPI, `transformers.generate` in a thread, a streamer. One text at a time: several at once
    take turns in the interpreter and are no faster together."""
    import torch
    from fastapi import FastAPI
    from fastapi.responses import StreamingResponse
    from pydantic import BaseModel
    from transformers import AutoModelForCausalLM, AutoTokenizer, TextIteratorStreamer

    torch.set_num_threads(1)
    folder = str(Path(os.environ[FOLDER]) / "llama")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    lock, app = threading.Lock(), FastAPI()

    class Body(BaseModel):
        """A request."""

        prompt: str
        max_tokens: int = 16

    def answer(body: Body) -> Iterator[str]:
        streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
        ids = tokenizer(body.prompt, return_tensors="pt", add_special_tokens=False)
        with lock:
            asked = {"max_new_tokens": body.max_tokens, "min_new_tokens": body.max_tokens, "do_sample": False}
            work = threading.Thread(target=model.generate, kwargs={**ids, **asked, "streamer": streamer, "pad_token_id": 0})
            work.start()
            for text in streamer:
                if text:
                    yield "data: " + json.dumps({"choices": [{"index": 0, "text": text}]}) + "\n\n"
            work.join()
        yield "data: [DONE]\n\n"

    def completions(body: Body) -> StreamingResponse:
        return StreamingResponse(answer(body), media_type="text/event-stream")

    completions.__annotations__["body"] = Body
    app.post("/v1/completions")(completions)
    return app


@contextmanager
def process(command: list[str], port: int, folder: Path, seconds: float = 120) -> Iterator[str]:
    """A server in a process of its own, from when it listens; its URL."""
    path = os.pathsep.join([*instance.source_roots(), str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    given = {**os.environ, FOLDER: str(folder), "PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with (folder / f"{port}.log").open("w") as log:
        server = subprocess.Popen(command, env=given, stdout=log, stderr=log)
        try:
            deadline = time.monotonic() + seconds
            while not instance.listens(f"127.0.0.1:{port}"):
                if time.monotonic() > deadline or server.poll() is not None:
                    raise SystemExit(f"{command} did not start:\n{(folder / f'{port}.log').read_text()[-2000:]}")
                time.sleep(0.1)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.kill()
            server.wait()


def uvicorn(factory: str, folder: Path) -> Any:
    """One of this file's applications."""
    port = instance.free_ports(1)[0]
    command = [sys.executable, "-m", "uvicorn", "--factory", f"benchmarks.generation_servers:{factory}", "--port", str(port)]
    return process(
        [*command, "--log-level", "warning", "--no-access-log", "--loop", "uvloop", "--http", "httptools"], port, folder
    )


def transformers_serve(folder: Path) -> Any:
    """`transformers serve` with its continuous batching."""
    port = instance.free_ports(1)[0]
    command = [str(Path(sys.executable).parent / "transformers"), "serve", str(folder / "llama"), "--port", str(port)]
    # By default its cache takes more than half of the machine's memory.
    asked = "--host 127.0.0.1 --device cpu --dtype float32 --continuous-batching --cb-max-memory-percent 0.05"
    return process([*command, *asked.split()], port, folder)

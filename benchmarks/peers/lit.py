"""LitServe: `python lit.py PORT BATCH`. BATCH over 1: its own batching (at most 5 ms of waiting) and its faster queue."""

from __future__ import annotations

import sys
from typing import Any

import litserve as ls
from shared import answers, load


class Api(ls.LitAPI):  # type: ignore[misc]
    """A request's rows in, answers out."""

    def setup(self, device: str) -> None:
        """Load the model."""
        self.predictor = load()

    def decode_request(self, request):  # type: ignore[no-untyped-def]
        """The rows. No annotations: LitServe would read a request's form from them."""
        return request["rows"]

    def predict(self, rows: Any) -> Any:
        """One request."""
        return answers(self.predictor, rows)

    def encode_response(self, output: Any) -> Any:
        """JSON is made by the server."""
        return output


class BatchedApi(Api):
    """The same for the requests of a batch together."""

    def batch(self, inputs: list[Any]) -> list[Any]:
        """As they are: the model takes rows."""
        return inputs

    def predict(self, given: Any) -> Any:
        """The requests' rows in one call, and each request's part of the answer."""
        whole, found, start = answers(self.predictor, [row for rows in given for row in rows]), [], 0
        for rows in given:
            part = {name: whole[name][start : start + len(rows)] for name in ("predictions", "probabilities")}
            found.append({**whole, **part})
            start += len(rows)
        return found

    def unbatch(self, output: list[Any]) -> list[Any]:
        """The same."""
        return output


if __name__ == "__main__":
    port, batch = int(sys.argv[1]), int(sys.argv[2])
    batching = {"max_batch_size": batch, "batch_timeout": 0.005}
    api = BatchedApi(api_path="/v1/predict", **batching) if batch > 1 else Api(api_path="/v1/predict")
    server = ls.LitServer(api, accelerator="cpu", workers_per_device=1, fast_queue=batch > 1)
    server.run(port=port, host="127.0.0.1", num_api_servers=1, generate_client_file=False, log_level="warning")

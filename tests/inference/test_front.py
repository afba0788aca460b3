"""Requests by HTTP, of one worker that stands alone."""

from __future__ import annotations

import json
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn

import codedgrad
from codedgrad.errors import ConfigError, OverloadError
from codedgrad.inference.front.batcher import Batcher, Settings
from codedgrad.inference.front.command import maker_of, predictor_of
from codedgrad.job import runtime

pytest.importorskip("starlette")
uvicorn = pytest.importorskip("uvicorn")

if TYPE_CHECKING:
    from collections.abc import Iterator

from codedgrad.inference.front.app import Front, rows_of_body  # noqa: E402


class Model(nn.Module):
    """Can be held up; counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 3)
        self.go = threading.Event()
        self.go.set()
        self.batches: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.batches.append(len(x))
        self.go.wait(20)
        if (x == 666).any():
            raise IndexError("index 666 is out of range")
        return self.layer(x)


class Served:
    def __init__(self, url: str, model: Model, batcher: Batcher) -> None:
        self.url, self.model, self.batcher = url, model, batcher

    def ask(self, path: str, body: Any = None) -> tuple[int, Any]:
        data = body if body is None or isinstance(body, bytes) else json.dumps(body)
        if isinstance(data, str):
            data = data.encode()
        try:
            with urllib.request.urlopen(self.url + path, data, timeout=20) as told:
                status, text = told.status, told.read().decode()
        except urllib.error.HTTPError as error:
            status, text = error.code, error.read().decode()
        return status, json.loads(text) if text.startswith("{") else text


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    before = codedgrad.is_initialized()
    codedgrad.init()
    torch.manual_seed(0)
    model = Model()
    predictor = codedgrad.CodedPredictor(model, faults="")
    batcher = Batcher(predictor, Settings(window_s=0.02, most=4, queue=8))
    app = Front(predictor, batcher, runtime.current()).app()
    config = uvicorn.Config(app, port=0, log_level="error", lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    end = time.monotonic() + 20
    while not server.started and time.monotonic() < end:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield Served(f"http://127.0.0.1:{port}", model, batcher)
    server.should_exit = True
    thread.join(20)
    batcher.stop()
    predictor.close()
    if not before:
        codedgrad.shutdown()


def test_queries_are_answered_in_their_order(served: Served) -> None:
    rows = [[0.5, 1.0], [2.0, 3.0], [-1.0, 4.0]]
    status, told = served.ask("/predict", {"inputs": rows})
    assert status == 200
    with torch.no_grad():
        wanted = served.model.layer(torch.tensor(rows))
    assert torch.allclose(torch.tensor(told["outputs"]), wanted)
    assert told["exact"] == [True] * 3
    assert told["doubt"] == [0.0] * 3
    assert told["who"] == [0] * 3
    assert all(s > 0 for s in told["seconds"])


def test_requests_that_come_together_share_a_batch(served: Served) -> None:
    served.model.batches.clear()
    with ThreadPoolExecutor(4) as pool:
        one = {"inputs": [[1.0, 2.0]]}
        found = list(pool.map(lambda _: served.ask("/predict", one), range(4)))
    assert {status for status, _ in found} == {200}
    assert len(served.model.batches) < 4
    assert sum(served.model.batches) == 4


def test_one_bad_query_is_not_the_error_of_others(served: Served) -> None:
    with ThreadPoolExecutor(4) as pool:
        bodies = [{"inputs": [[one, 2.0]]} for one in (1.0, 666.0, 3.0, 4.0)]
        found = list(pool.map(lambda body: served.ask("/predict", body), bodies))
    assert [status for status, _ in found] == [200, 500, 200, 200]
    assert "666" in found[1][1]["error"]


def test_unlike_queries_are_grouped(served: Served) -> None:
    status, told = served.ask("/predict", {"inputs": [[1.0, 2.0], [[1.0, 2.0]] * 2]})
    assert status == 200
    assert [len(out) for out in told["outputs"]] == [3, 2]


def test_nan_is_null(served: Served) -> None:
    status, told = served.ask("/predict", b'{"inputs": [[NaN, 1.0]]}')
    assert status == 200
    assert told["outputs"] == [[None] * 3]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"x", "no JSON"),
        (b"[" * 100_000, "no JSON"),
        ({"inputs": [[1.0, 2.0]] * 9}, "at most 8 queries"),
        ({"rows": [1]}, "no list of inputs"),
        ({"inputs": []}, "empty"),
        ({"inputs": [[1.0, 2.0]], "model": "a"}, "model"),
        ({"inputs": [[[1.0], [2.0, 3.0]]]}, "same length"),
        ({"inputs": [["a"]]}, "block of numbers"),
        ({"inputs": [[1.0, 2.0]], "dtype": "float33"}, "float33"),
    ],
)
def test_bad_requests_are_told(served: Served, body: Any, words: str) -> None:
    status, told = served.ask("/predict", body)
    assert status == 400
    assert words in told["error"]


def test_what_the_model_raises_is_told(served: Served) -> None:
    status, told = served.ask("/predict", {"inputs": [[1.0, 2.0, 3.0]]})
    assert status == 500
    assert "shapes" in told["error"]


def test_a_full_queue_refuses_and_answers_what_it_took(served: Served) -> None:
    served.model.go.clear()
    with ThreadPoolExecutor(8) as pool:
        one = {"inputs": [[1.0, 2.0]] * 2}
        taken = [pool.submit(served.ask, "/predict", one) for _ in range(4)]
        end = time.monotonic() + 20
        while served.batcher.under_way < 8 and time.monotonic() < end:
            time.sleep(0.01)
        status, told = served.ask("/predict", one)
        assert status == 503
        assert "8 queries are under way" in told["error"]
        served.model.go.set()
        assert {f.result()[0] for f in taken} == {200}
    assert served.ask("/predict", one)[0] == 200


def test_health_and_metrics(served: Served) -> None:
    status, told = served.ask("/healthz")
    assert (status, told["status"], told["workers"]) == (200, "ok", 1)
    status, text = served.ask("/metrics")
    assert status == 200
    assert 'codedgrad_serve_answers_total{by="model",worker="0"}' in text
    assert 'codedgrad_serve_seconds_bucket{le="+Inf",worker="0"}' in text
    assert served.ask("/other")[0] == 404


def test_integers_stay_integers() -> None:
    (row,) = rows_of_body(b'{"inputs": [[1, 2]]}')
    assert row.dtype == torch.int64
    (row,) = rows_of_body(b'{"inputs": [[1, 2]], "dtype": "float16"}')
    assert row.dtype == torch.float16
    (row,) = rows_of_body(b'{"inputs": [[1, 2]]}', torch.float32)
    assert row.dtype == torch.float32


def test_a_batcher_refuses_all_of_a_request(served: Served) -> None:
    with pytest.raises(OverloadError, match="9 more"):
        served.batcher.put([torch.zeros(2)] * 9, lambda *_: None)
    assert served.batcher.under_way == 0


def test_makers_are_looked_up(served: Served) -> None:
    assert maker_of("math:sqrt")(4) == 2
    for text, words in (
        ("math", "module:function"),
        ("math:nothing", "no function nothing"),
        ("no_such_module:f", "cannot be imported"),
    ):
        with pytest.raises(ConfigError, match=words):
            maker_of(text)
    with pytest.raises(ConfigError, match="torch module"):
        predictor_of(3)

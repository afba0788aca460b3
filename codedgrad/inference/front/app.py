"""The requests that a worker answers: /predict, /healthz and /metrics."""

from __future__ import annotations

import asyncio
import json
import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from codedgrad.errors import (
    CodedGradError,
    ConfigError,
    OverloadError,
    missing_extra,
)
from codedgrad.inference.front.metrics import Metrics
from codedgrad.job.objects import dtype_named

try:
    from starlette.applications import Starlette
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route
except ImportError as error:
    raise missing_extra("serve", error) from error

if TYPE_CHECKING:
    from starlette.requests import Request

    from codedgrad.inference.front.batcher import Batcher
    from codedgrad.inference.serving.predictor import CodedPredictor
    from codedgrad.inference.serving.query import Answer
    from codedgrad.job.runtime import Runtime

_MOST_BYTES = 64 << 20  # of a request
_BODY_S = 10.0  # for it to come
_WORDS = {"inputs", "dtype"}


class Front:
    """Answers requests with a predictor.

    Args:
        predictor: answers batches.
        batcher: makes them.
        job: all workers.
        dtype: of inputs that do not say theirs; None: as JSON has them.
    """

    def __init__(
        self,
        predictor: CodedPredictor,
        batcher: Batcher,
        job: Runtime,
        dtype: torch.dtype | None = None,
    ) -> None:
        self._predictor, self._batcher, self._job = predictor, batcher, job
        self._dtype = dtype
        self._metrics = Metrics(predictor, batcher, job.rank)

    def app(self) -> Starlette:
        """Return the application, for any server of ASGI."""
        return Starlette(
            routes=[
                Route("/predict", self.predict, methods=["POST"]),
                Route("/healthz", self.health),
                Route("/metrics", self.metrics),
            ]
        )

    async def predict(self, request: Request) -> Response:
        """Answer the queries of a request."""
        try:
            rows = rows_of_body(
                await asyncio.wait_for(_body(request), _BODY_S),
                self._dtype,
                self._batcher.most,
            )
        except ConfigError as error:
            return _error(400, error)
        except asyncio.TimeoutError:
            text = f"the request did not come within {_BODY_S:g} s; send it at once"
            return _error(408, ConfigError(text))
        loop = asyncio.get_running_loop()
        futures: list[asyncio.Future[Answer]] = [loop.create_future() for _ in rows]

        def hear(number: int, outcome: Answer | BaseException) -> None:
            loop.call_soon_threadsafe(_set, futures[number], outcome)

        try:
            self._batcher.put(rows, hear)
        except OverloadError as error:
            return _error(503, error, {"Retry-After": "1"})
        except CodedGradError as error:
            return _error(503, error)
        outcomes = await asyncio.gather(*futures, return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                return _error(500, outcome)
        return JSONResponse(body_of([a for a in outcomes if isinstance(a, tuple)]))

    async def health(self, request: Request) -> Response:
        """Say whether this worker answers queries."""
        del request
        job = self._job
        problem = self._predictor.problem
        failed = bool(job.engine.failed or problem)
        body = {
            "status": "failed" if failed else "ok",
            "worker": job.rank,
            "workers": job.size,
            "lost": sorted(job.engine.lost()),
            "problem": job.engine.failure if job.engine.failed else problem,
            "policy": str(self._predictor.policy),
        }
        return JSONResponse(body, 503 if failed else 200)

    async def metrics(self, request: Request) -> Response:
        """Return the counts, for Prometheus."""
        del request
        return Response(self._metrics.text(), media_type="text/plain; version=0.0.4")


async def _body(request: Request) -> bytes:
    found = bytearray()
    async for chunk in request.stream():
        found += chunk
        if len(found) > _MOST_BYTES:
            raise ConfigError(
                f"a request has at most {_MOST_BYTES >> 20} MiB; send fewer queries "
                f"in each"
            )
    return bytes(found)


def rows_of_body(
    body: bytes, dtype: torch.dtype | None = None, most: int = 256
) -> list[Tensor]:
    """Return the queries of a request, one tensor each.

    Raises:
        ConfigError: the body is something else.
    """
    wanted = 'wanted {"inputs": [query, query, ...]}, one list of numbers per query'
    try:
        told = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"the body is no JSON ({error}); {wanted}") from error
    if not isinstance(told, dict) or not isinstance(told.get("inputs"), list):
        raise ConfigError(f"the body has no list of inputs; {wanted}")
    if unknown := sorted(set(told) - _WORDS):
        raise ConfigError(f"the body has {unknown}; known are {sorted(_WORDS)}")
    if not told["inputs"]:
        raise ConfigError(f"the list of inputs is empty; {wanted}")
    if len(told["inputs"]) > most:
        raise ConfigError(
            f"a request has at most {most} queries, got {len(told['inputs'])}; send "
            f"several requests"
        )
    if "dtype" in told:
        dtype = dtype_named(str(told["dtype"]))
    return [_row(i, one, dtype) for i, one in enumerate(told["inputs"])]


def _row(number: int, numbers: Any, dtype: torch.dtype | None) -> Tensor:
    try:
        found = torch.tensor(numbers, dtype=dtype)
    except (ValueError, TypeError, RuntimeError, OverflowError) as error:
        raise ConfigError(
            f"query {number} is no block of numbers ({error}); all lists at one depth "
            f"must be of the same length"
        ) from error
    return found


def body_of(answers: list[Answer]) -> dict[str, Any]:
    """Return the answers as JSON has them; what is not finite is null there."""
    return {
        "outputs": [_plain(a.value, first=True) for a in answers],
        "exact": [a.exact for a in answers],
        "doubt": [float(a.doubt[0]) for a in answers],
        "who": [a.who for a in answers],
        "seconds": [a.seconds for a in answers],
    }


def _plain(value: Any, *, first: bool = False) -> Any:
    if isinstance(value, Tensor):
        value = value[0] if first and value.dim() and len(value) == 1 else value
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, (list, tuple)):
        return [_plain(one, first=first) for one in value]
    if isinstance(value, dict):
        return {str(k): _plain(v, first=first) for k, v in value.items()}
    return value if isinstance(value, (int, float, str, type(None))) else str(value)


def _set(future: asyncio.Future[Answer], outcome: Answer | BaseException) -> None:
    if future.done():  # the client has gone
        return
    if isinstance(outcome, BaseException):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)


def _error(
    status: int, error: BaseException, headers: dict[str, str] | None = None
) -> Response:
    text = str(error) if isinstance(error, CodedGradError) else repr(error)
    return JSONResponse({"error": text}, status, headers)

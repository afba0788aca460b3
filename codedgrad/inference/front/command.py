"""`codedgrad serve module:function`."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib
import logging
import signal
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codedgrad.errors import ConfigError, missing_extra
from codedgrad.inference.front.batcher import Batcher, Settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from codedgrad.inference.serving.predictor import CodedPredictor

_EXAMPLES = """\
  codedgrad serve my_model:make                     # one worker, http://127.0.0.1:8000
  codedgrad run -n 3 -- -m codedgrad serve my_model:make     # ports 8000, 8001, 8002

  curl -s 127.0.0.1:8000/predict -d '{"inputs": [[0.5, 1.0], [2.0, 3.0]]}'

`make()` is called on every worker, inside the job, and returns a torch module, or a
codedgrad.CodedPredictor of your own. Whoever reaches the port may ask; there is no
password and no encryption, so another host than this one belongs behind a proxy."""

_END_S = 15  # for the requests that are under way when a signal comes


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `serve` to the command line."""
    command = commands.add_parser(
        "serve",
        help="answer queries by HTTP",
        description="Answers queries by HTTP, on every worker of the job.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    defaults = Settings()
    command.add_argument("maker", metavar="module:function")
    command.add_argument("--host", default="127.0.0.1", help="(127.0.0.1)")
    command.add_argument(
        "--port", type=int, default=8000, help="of a machine's first worker; 0: any"
    )
    command.add_argument(
        "--window-ms", type=float, default=1e3 * defaults.window_s, help="of a batch"
    )
    command.add_argument("--max-batch", type=int, default=defaults.most)
    command.add_argument(
        "--max-queue", type=int, default=defaults.queue, help="above it: status 503"
    )
    command.add_argument(
        "--dtype", help="of inputs that do not say theirs (as JSON has them)"
    )
    command.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Serve until a signal ends it."""
    settings = Settings(args.window_ms / 1e3, args.max_batch, args.max_queue)
    if settings.window_s < 0 or settings.most < 1 or settings.queue < settings.most:
        raise ConfigError(
            f"wanted --window-ms of 0 or more, --max-batch of 1 or more and a "
            f"--max-queue of at least as many, got {args.window_ms:g}, "
            f"{args.max_batch} and {args.max_queue}"
        )
    try:
        import uvicorn
    except ImportError as error:
        raise missing_extra("serve", error) from error
    from codedgrad.inference.front.app import Front
    from codedgrad.job import lifecycle, runtime
    from codedgrad.job.objects import dtype_named

    dtype = None if args.dtype is None else dtype_named(args.dtype)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    make = maker_of(args.maker)
    lifecycle.init()
    job = runtime.current()
    predictor = predictor_of(make())
    batcher = Batcher(predictor, settings)
    port = args.port and args.port + job.place.local_rank
    with listening(args.host, port) as door:
        app = Front(predictor, batcher, job, dtype).app()
        config = uvicorn.Config(
            app,
            log_level="warning",
            lifespan="off",
            timeout_graceful_shutdown=_END_S,
        )
        host, number = door.getsockname()[:2]
        print(f"worker {job.rank} answers at http://{host}:{number}", flush=True)
        asyncio.run(_serve(uvicorn.Server(config), door))
    batcher.stop()
    predictor.close()
    lifecycle.shutdown()
    return 0


def maker_of(text: str) -> Any:
    """Return the function that is named as `module:function`.

    Raises:
        ConfigError: there is none.
    """
    module, colon, name = text.partition(":")
    if not colon or not module or not name:
        raise ConfigError(f"write module:function, got {text!r}")
    sys.path.insert(0, str(Path.cwd()))  # as `python -m` has it
    try:
        found = getattr(importlib.import_module(module), name, None)
    except ImportError as error:
        raise ConfigError(f"{module} cannot be imported: {error}") from error
    if not callable(found):
        raise ConfigError(f"{module} has no function {name}")
    return found


def predictor_of(made: Any) -> CodedPredictor:
    """Return a predictor of what a function has made. Collective.

    Raises:
        ConfigError: it is neither a module nor a predictor.
    """
    from torch import nn

    from codedgrad.inference.serving.predictor import CodedPredictor

    if isinstance(made, nn.Module):
        return CodedPredictor(made)
    if isinstance(made, CodedPredictor):
        return made
    raise ConfigError(
        f"the function returns a torch module or a codedgrad.CodedPredictor, got a "
        f"{type(made).__qualname__}"
    )


@contextlib.contextmanager
def listening(host: str, port: int) -> Iterator[socket.socket]:
    """Yield a socket that listens there.

    Raises:
        ConfigError: it cannot.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        door = socket.create_server((host, port), family=family)
    except OSError as error:
        raise ConfigError(
            f"nothing can listen at {host}, port {port}: {error}; give another --port"
        ) from error
    with door:
        yield door


async def _serve(server: Any, door: socket.socket) -> None:
    """Serve until SIGINT or SIGTERM, and answer what was taken.

    uvicorn would raise the signal once more at its end, before this worker has left
    the job.
    """
    server.capture_signals = contextlib.nullcontext
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, server.handle_exit, number, None)
    await server.serve(sockets=[door])

"""`dermjax serve RUNS`: the studio on this machine, or with a token on others.

dermjax serve runs                                   # http://127.0.0.1:7860, for this machine alone
dermjax serve runs --images=photographs              # and photographs that manifests name outside of runs
dermjax serve runs --nowarm                          # and nothing is compiled before somebody asks for images
dermjax serve runs --host=0.0.0.0 --token=new        # for a network: prints an address with a fresh token in it
"""

import contextlib
import os
import secrets
import socket
from pathlib import Path

from dermjax import machine
from dermjax.errors import UserError
from dermjax.progress import say

HERE = ("127.0.0.1", "localhost", "::1")
# all addresses of this machine, and one that is elsewhere: those of documentation, RFC 5737 and 3849
ANY = {"0.0.0.0": (socket.AF_INET, "192.0.2.1"), "::": (socket.AF_INET6, "2001:db8::1")}
SHORTEST = 16  # characters of a token
CLIENTS = 64  # requests at a time


def serve(runs: str, host: str, port: int, token: str, images: str, warm: bool) -> None:
    """Serves the page until it is told to stop."""
    token = check(host, port, token)
    try:
        import uvicorn  # an extra, as Starlette is
    except ImportError as error:
        raise UserError("the studio needs two more packages: pip install 'dermjax[web]'") from error
    if not Path(runs).expanduser().is_dir():
        raise UserError(f"{runs}: no such folder; give the folder that holds the runs")
    listener = _listen(host, port)
    # else JAX takes three quarters of a GPU's memory, and a config that is started from the page has none
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    machine.quiet_compiler(os.environ, joined=False)
    machine.compile_once(os.environ)
    from dermjax.studio.app import app  # here: JAX reads the environment when it is imported

    # no log of requests: addresses have tokens in them, and prompts are nobody's business
    names = addresses(host)
    config = uvicorn.Config(
        app(runs, images, token, warm, names), log_level="warning", access_log=False, server_header=False, ws="none",
        proxy_headers=False, limit_concurrency=CLIENTS, timeout_keep_alive=10, timeout_graceful_shutdown=2,
    )  # fmt: skip
    shown = [f"[{name}]" if ":" in name else name for name in names]
    links = [f"http://{name}:{port}/{f'?token={token}' if token else ''}" for name in shown]
    say(f"studio: {' or '.join(links)} (Ctrl-C ends it)")
    with contextlib.suppress(KeyboardInterrupt):
        uvicorn.Server(config).run(sockets=[listener])
    machine.remove_programs()
    os._exit(0)  # at once: a job that is at work ends with it, and XLA would crash where Python ends around it


def check(host: str, port: int, token: str) -> str:
    """The token, "" for none, a fresh one for "new"; UserError where the page would stand open to a network."""
    if not 1 <= port <= 65535:
        raise UserError(f"--port={port}: give 1 to 65535")
    token = {"none": "", "new": secrets.token_urlsafe(24)}.get(token, token)
    if host not in HERE and not token:
        raise UserError(f"--host={host} opens the studio to others: give --token=new, or a token of your own")
    if token and (
        len(token) < SHORTEST or not token.isascii() or not token.replace("-", "").replace("_", "").isalnum()
    ):
        raise UserError(f"--token: give {SHORTEST} or more letters, digits, - and _, or new, which makes one")
    return token


def addresses(host: str) -> list[str]:
    """The names under which others reach an address that the studio listens at: for all addresses of this machine its
    name and, where it has a network, the address by which it goes there."""
    if host not in ANY:
        return [host]
    named = [socket.gethostname()]
    family, elsewhere = ANY[host]
    with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as asked:
        asked.connect((elsewhere, 9))  # sends nothing
        named.append(asked.getsockname()[0])
    return named


def _listen(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"--host={host} --port={port}: {reason}; give another address or port") from error

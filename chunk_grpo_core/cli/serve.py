"""``chunk-grpo serve-reward``."""

# No ``from __future__ import annotations`` here: typer reads the annotations at run time.
import logging
from typing import Annotated

import typer

from ..method.policy_reward import needs_policy, without_policy
from ..rewards import load_reward
from ..rewards.remote.address import read_token
from ..rewards.settings import reward_settings
from .progress import clear_errors

__all__ = ["serve_reward"]


@clear_errors("no longer served")
def serve_reward(
    name: Annotated[str, typer.Argument(help="Name of the reward, for example target_colour.")],
    setting: Annotated[
        list[str] | None,
        typer.Option(help="KEY=VALUE for the reward, for example colour=#ff0000; repeatable."),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: a free one.")] = 8181,
    token_env: Annotated[
        str, typer.Option(help="Environment variable with the token clients must send.")
    ] = "CHUNK_GRPO_TOKEN",
    max_batch: Annotated[int, typer.Option(min=1, help="Pictures in a request.")] = 64,
    max_megabytes: Annotated[float, typer.Option(help="Size of a request.")] = 64.0,
    queue: Annotated[int, typer.Option(min=1, help="Requests that wait or are scored.")] = 8,
    timeout: Annotated[float, typer.Option(help="Seconds from connection to answer.")] = 300.0,
) -> None:
    """Lend a reward to other processes and machines, until Ctrl-C.

    They use the reward remote_http with the URL that is printed. An address that other machines
    can reach needs a token.
    """
    from ..rewards.remote.server import RewardServer, ServerLimits, serve  # needs aiohttp

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    limits = ServerLimits(batch=max_batch, megabytes=max_megabytes, queue=queue, timeout=timeout)
    token = read_token(token_env)
    reward = load_reward(name, **reward_settings(setting or []))
    if needs_policy(reward):
        raise without_policy(reward.name)
    server = RewardServer(reward, host=host, port=port, token=token, limits=limits)
    typer.echo(f"{reward.name} at {server.url}, {'with' if token else 'without'} a token")
    serve(server)

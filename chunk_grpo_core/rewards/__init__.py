"""Rewards: pictures and prompts in, one number per picture out.

Here: every reward that comes along; ``REWARDS`` maps the name users choose to a loader that takes
keyword settings. Not here: what a training makes of the numbers. A new reward is a new file with a
class that has ``name``, ``fingerprint`` and ``score`` (see ``method/reward.py``), one line here and
one entry in ``catalog.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from ..method.reward import Reward
from ..settings.blaming import blaming
from .settings import IN_WORDS, checked_settings, path_settings

__all__ = ["REWARDS", "check_reward", "load_reward", "paths_of"]


def _tiny_world() -> Reward:
    from ..models.tiny.reward import TinyWorldReward

    return TinyWorldReward()


def _target_colour(colour: str = "#2060c0") -> Reward:
    from .analytic import target_colour

    return target_colour(colour)


def _target_image(image: str | Path | Tensor) -> Reward:
    from .analytic import target_image

    return target_image(image)


def _brightness() -> Reward:
    from .analytic import brightness

    return brightness()


def _saturation() -> Reward:
    from .analytic import saturation

    return saturation()


def _sharpness() -> Reward:
    from .analytic import sharpness

    return sharpness()


def _jpeg_compressibility(quality: int = 95) -> Reward:
    from .analytic import jpeg_size

    return jpeg_size(small=True, quality=quality)


def _jpeg_incompressibility(quality: int = 95) -> Reward:
    from .analytic import jpeg_size

    return jpeg_size(small=False, quality=quality)


def _ocr(
    strict: bool = False,
    no_target: Literal["error", "mask"] = "error",
    longest_side: int = 640,
    threads: int | None = None,
) -> Reward:
    from .ocr import OcrReward, RapidOcr

    reader = RapidOcr(longest_side=longest_side, threads=threads)
    return OcrReward(strict=strict, no_target=no_target, reader=reader)


def _clipscore() -> Callable[..., Reward]:
    from .networks.clipscore import load_clipscore

    return load_clipscore


def _pickscore() -> Callable[..., Reward]:
    from .networks.pickscore import load_pickscore

    return load_pickscore


def _hpsv2() -> Callable[..., Reward]:
    from .networks.hpsv2 import load_hpsv2

    return load_hpsv2


def _aesthetic() -> Callable[..., Reward]:
    from .networks.aesthetic import load_aesthetic

    return load_aesthetic


def _imagereward() -> Callable[..., Reward]:
    from .networks.imagereward import load_imagereward

    return load_imagereward


def _hpsv3() -> Callable[..., Reward]:
    from .networks.hpsv3 import load_hpsv3

    return load_hpsv3


def _geneval() -> Callable[..., Reward]:
    from .geneval.load import load_geneval

    return load_geneval


def _remote_http(url: str, batch_size: int = 8, **server: Any) -> Reward:
    from .remote.http import JsonServer
    from .remote.reward import RemoteReward

    return RemoteReward(JsonServer(url=url, **server), batch_size=batch_size)


def _vlm_judge(
    url: str,
    model: str,
    judge: str = "unified_reward_2",
    token_env: str = "CHUNK_GRPO_JUDGE_TOKEN",
    concurrency: int = 4,
    **server: Any,
) -> Reward:
    from .remote.http import JsonServer
    from .remote.vlm_judge import VlmJudge, load_judge

    server |= {"url": url, "token_env": token_env, "concurrency": concurrency}
    return VlmJudge(JsonServer(**server), model=model, judge=load_judge(judge))


def _taste(
    head: str | Path,
    encoder: str | Path | None = None,
    pessimism: float = 0.0,
    distance: float = 0.0,
    device: str = "cpu",
    dtype: str = "float32",
    batch_size: int = 16,
    picks: str | Path | None = None,
) -> Reward:
    from .taste.reward import load_taste

    return load_taste(head, encoder, pessimism, distance, device, dtype, batch_size, picks)


def _follows_prompt(draws: int = 1, seed: int = 0) -> Reward:
    from .follows_prompt import FollowsPrompt

    return FollowsPrompt(draws, seed)


def _votes(
    picks: str | Path, kind: Literal["hearts", "best", "duels", "stars"] = "hearts"
) -> Reward:
    from .taste.votes import load_votes

    return load_votes(picks, kind)


def _server() -> tuple[Callable[..., Any], ...]:
    from .remote.http import JsonServer

    return (JsonServer,)


@dataclass(frozen=True)
class _Loader:
    """Makes a reward that hands settings on to others."""

    make: Callable[..., Reward]
    further: Callable[[], tuple[Callable[..., Any], ...]]
    """What declares the settings that ``make`` hands on."""

    def __call__(self, **settings: Any) -> Reward:
        return self.make(**settings)


def _network(loader: Callable[[], Callable[..., Reward]], **defaults: object) -> _Loader:
    """A reward of weight files: its loader is told where files are and how a network runs."""

    def declarations() -> tuple[Callable[..., Any], ...]:
        from .networks.network import LoadOptions

        return LoadOptions, loader()

    def make(**settings: Any) -> Reward:
        from .networks.network import LoadOptions

        settings = {**defaults, **settings}
        names = {field.name for field in fields(LoadOptions)} & set(settings)
        options = LoadOptions(**{name: settings.pop(name) for name in names})
        return loader()(options=options, **settings)

    return _Loader(make, declarations)


REWARDS: dict[str, Callable[..., Reward]] = {
    "tiny_world": _tiny_world,
    "target_colour": _target_colour,
    "target_image": _target_image,
    "brightness": _brightness,
    "saturation": _saturation,
    "sharpness": _sharpness,
    "jpeg_compressibility": _jpeg_compressibility,
    "jpeg_incompressibility": _jpeg_incompressibility,
    "clipscore": _network(_clipscore),
    "pickscore": _network(_pickscore),
    "hpsv2": _network(_hpsv2),
    "aesthetic": _network(_aesthetic),
    "imagereward": _network(_imagereward),
    # What its authors run it in, and what fits beside 15.5 GB of weights.
    "hpsv3": _network(_hpsv3, dtype="bfloat16", batch_size=4),
    "remote_http": _Loader(_remote_http, _server),
    "vlm_judge": _Loader(_vlm_judge, _server),
    "ocr": _ocr,
    "geneval": _network(_geneval),
    "taste": _taste,
    "follows_prompt": _follows_prompt,
    "votes": _votes,
}


def load_reward(name: str, **settings: object) -> Reward:
    """Load a reward by name.

    Rewards with weight files take the fields of
    :class:`~chunk_grpo_core.rewards.networks.network.LoadOptions` among their settings.

    Raises:
        ValueError: The name is unknown, or a setting is missing, unknown, of the wrong type or out
            of range; the message begins with the name.
        FileNotFoundError: A file the reward needs is not on this machine.
    """
    settings = check_reward(name, settings)
    with blaming(f"reward {name}"):
        return REWARDS[name](**settings)


def check_reward(
    name: object, settings: Mapping[str, Any], *, key: str = IN_WORDS, whole: bool = True
) -> dict[str, Any]:
    """Check the name and the settings of a reward before it is loaded.

    Args:
        name: It must be a key of :data:`REWARDS`.
        settings: As they were given.
        key: How a message names a setting, with ``{reward}`` and ``{name}`` in it.
        whole: Whether all settings without a default must be there.

    Returns:
        The settings, see :func:`~chunk_grpo_core.rewards.settings.checked_settings`.

    Raises:
        ValueError: The name is unknown; or a setting is unknown, missing, or of the wrong type.
    """
    loader = REWARDS.get(name) if isinstance(name, str) else None
    if loader is None:
        raise ValueError(f"reward is {name!r:.80}; it must be one of {', '.join(REWARDS)}")
    return checked_settings(_declarations(loader), settings, reward=str(name), key=key, whole=whole)


def paths_of(name: str) -> frozenset[str]:
    """The settings of a reward that name files or folders."""
    return path_settings(_declarations(REWARDS[name]))


def _declarations(loader: Callable[..., Reward]) -> tuple[Callable[..., Any], ...]:
    return (*loader.further(), loader.make) if isinstance(loader, _Loader) else (loader,)

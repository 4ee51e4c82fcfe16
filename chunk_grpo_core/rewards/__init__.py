"""Rewards: pictures and prompts in, one number per picture out.

Here: every reward that comes along; ``REWARDS`` maps the name users choose to a loader that takes
keyword settings. Not here: what a training makes of the numbers. A new reward is a new file with a
class that has ``name``, ``fingerprint`` and ``score`` (see ``method/reward.py``), one line here and
one entry in ``catalog.py``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, Literal

from ..method.reward import Reward

__all__ = ["REWARDS", "load_reward"]


def _tiny_world() -> Reward:
    from ..models.tiny.reward import TinyWorldReward

    return TinyWorldReward()


def _target_colour(colour: str = "#2060c0") -> Reward:
    from .analytic import target_colour

    return target_colour(colour)


def _target_image(image: str) -> Reward:
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


def _clipscore(**settings: Any) -> Reward:
    from .networks.clipscore import load_clipscore

    return _from_files(load_clipscore, settings)


def _pickscore(**settings: Any) -> Reward:
    from .networks.pickscore import load_pickscore

    return _from_files(load_pickscore, settings)


def _hpsv2(**settings: Any) -> Reward:
    from .networks.hpsv2 import load_hpsv2

    return _from_files(load_hpsv2, settings)


def _aesthetic(**settings: Any) -> Reward:
    from .networks.aesthetic import load_aesthetic

    return _from_files(load_aesthetic, settings)


def _imagereward(**settings: Any) -> Reward:
    from .networks.imagereward import load_imagereward

    return _from_files(load_imagereward, settings)


def _hpsv3(**settings: Any) -> Reward:
    from .networks.hpsv3 import load_hpsv3

    # What its authors run it in, and what fits beside 15.5 GB of weights.
    return _from_files(load_hpsv3, {"dtype": "bfloat16", "batch_size": 4, **settings})


def _geneval(**settings: Any) -> Reward:
    from .geneval.load import load_geneval

    return _from_files(load_geneval, settings)


def _remote_http(url: str, batch_size: int = 8, **server: Any) -> Reward:
    from .remote.http import JsonServer
    from .remote.reward import RemoteReward

    return RemoteReward(_called(JsonServer, {"url": url, **server}), batch_size=batch_size)


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
    return VlmJudge(_called(JsonServer, server), model=model, judge=load_judge(judge))


REWARDS: dict[str, Callable[..., Reward]] = {
    "tiny_world": _tiny_world,
    "target_colour": _target_colour,
    "target_image": _target_image,
    "brightness": _brightness,
    "saturation": _saturation,
    "sharpness": _sharpness,
    "jpeg_compressibility": _jpeg_compressibility,
    "jpeg_incompressibility": _jpeg_incompressibility,
    "clipscore": _clipscore,
    "pickscore": _pickscore,
    "hpsv2": _hpsv2,
    "aesthetic": _aesthetic,
    "imagereward": _imagereward,
    "hpsv3": _hpsv3,
    "remote_http": _remote_http,
    "vlm_judge": _vlm_judge,
    "ocr": _ocr,
    "geneval": _geneval,
}


def load_reward(name: str, **settings: object) -> Reward:
    """Load a reward by name.

    Rewards with weight files take the fields of
    :class:`~chunk_grpo_core.rewards.networks.network.LoadOptions` among their settings.

    Raises:
        ValueError: The name is unknown, or a setting is missing, unknown or out of range.
        FileNotFoundError: A file the reward needs is not on this machine.
    """
    if name not in REWARDS:
        raise ValueError(f"reward is {name!r}; it must be one of {', '.join(REWARDS)}")
    return _called(REWARDS[name], settings)


def _from_files(load: Callable[..., Reward], settings: Mapping[str, Any]) -> Reward:
    """Call a loader that wants to know first where files are and how a network runs."""
    from .networks.network import LoadOptions

    load_names = {field.name for field in fields(LoadOptions)}
    options = LoadOptions(**{key: value for key, value in settings.items() if key in load_names})
    further = {key: value for key, value in settings.items() if key not in load_names}
    return _called(load, {"options": options, **further})


def _called(make: Callable[..., Any], settings: Mapping[str, Any]) -> Any:
    """Call with settings that a user wrote: a wrong name is their mistake, not a bug."""
    signature = inspect.signature(make)
    try:
        signature.bind(**settings)
    except TypeError as error:
        raise ValueError(f"settings of the reward: {error}; it takes {signature}") from None
    return make(**settings)

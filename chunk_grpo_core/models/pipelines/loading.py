"""A model on disk as a policy that can be trained, read as diffusers' pipeline of it."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ...lora.adapter import LoraConfig
from ...optional import require
from ...prompts.example import Prompt, examples_of
from ..encoded_prompts import encoded_prompts, file_facts
from ..family import Checkpoint
from ..kept_weights import WEIGHTS, bitsandbytes_config, check_weights
from ..speed import speed_up
from ..tensor_cache import TensorCache
from .entry import PipelineEntry, Text
from .grid import token_grid
from .model import GuidedModel, PipelineModel
from .parts import check_source, naming, read_transformer, read_vae
from .policy import Conditioning, PipelinePolicy
from .scaling import decoder, encoder

__all__ = ["is_new_enough", "load_policy", "unusual_guidance"]

logger = logging.getLogger(__name__)

_CACHE_BYTES = 16 * 2**30
_NOT_TEXT = ("transformer", "vae", "scheduler")


def load_policy(
    entry: PipelineEntry,
    checkpoints: Sequence[Checkpoint],
    model: PipelineModel,
    prompts: Sequence[Prompt],
    lora: LoraConfig,
    seed: int,
    *,
    keep_on_cpu: bool = False,
) -> PipelinePolicy:
    """Load a model and put a fresh LoRA on it; see :class:`~..family.Load`.

    Text comes first: new prompts are encoded and the encoders freed before the transformer is read.
    """
    device = model.compute_device()
    check_weights(model.weights, device)
    kinds = {name: _class(entry, name) for name in (entry.pipeline, entry.transformer, entry.vae)}
    folder, dtype = model.pipeline_folder(), WEIGHTS[model.weights]
    index = model.check_pipeline(entry.pipeline)
    if said := unusual_guidance(entry, checkpoints, model):
        logger.warning(said)
    rows, columns = token_grid(entry, model)
    sources = {kind: model.part(kind) for kind in ("transformer", "vae")}
    check_source(kinds[entry.vae], sources["vae"], "vae", folder)
    check_source(
        kinds[entry.transformer],
        sources["transformer"],
        "transformer",
        folder,
        model.weights,
        entry.blocks,
    )
    negative = _negative(entry, model, index)
    encode = _encoder(entry, kinds[entry.pipeline], model, prompts, negative)
    vae: Any = read_vae(kinds[entry.vae], sources["vae"], folder, dtype)
    vae.requires_grad_(False).train(False).to(device)
    if model.vae_tiling:
        vae.enable_tiling()
    transformer: Any = read_transformer(
        kinds[entry.transformer], sources["transformer"], folder, model.weights, entry.blocks
    )
    transformer.requires_grad_(False).train(False)
    if bitsandbytes_config(model.weights) is None:  # those are placed already
        transformer.to(torch.device("cpu") if keep_on_cpu else device)
    speed_up(transformer, model, entry.blocks)
    form, decode, encode_pictures = (
        entry.form,
        decoder(vae, entry.scaling),
        encoder(vae, entry.scaling),
    )
    return PipelinePolicy(
        entry=entry,
        rows=rows,
        columns=columns,
        guidance=model.guidance,
        name=model.name,
        transformer=transformer,
        encode=encode,
        decode=lambda latents: decode(form.to_grid(latents, rows)),
        encode_pictures=lambda images: form.from_grid(encode_pictures(images)),
        latent_shape=form.shape(transformer.config.in_channels, rows, columns),
        lora=lora,
        seed=seed,
        device=device if keep_on_cpu else None,
    )


def _class(entry: PipelineEntry, name: str) -> Any:
    """A class of diffusers, or a message that names the version that has it."""
    diffusers = require("diffusers", f"To load a {entry.pipeline}")
    if not is_new_enough(diffusers.__version__, entry.since):
        raise ImportError(
            f"this kind of model needs diffusers {entry.since} or newer ({name}), and diffusers "
            f'{diffusers.__version__} is installed. Run: pip install -U "diffusers>={entry.since}"'
        )
    return getattr(diffusers, name)


def is_new_enough(version: str, since: str) -> bool:
    """Compare the first two numbers of versions, such as 0.42.1 and 0.37."""
    first, second = ([int(n) for n in re.findall(r"\d+", one)[:2]] for one in (version, since))
    return first >= second


def unusual_guidance(
    entry: PipelineEntry, checkpoints: Sequence[Checkpoint], model: PipelineModel
) -> str:
    """What to say if a checkpoint that is known by its name is loaded with guidance on though its
    makers have it off, or off though they have it on; empty if nothing is to be said."""
    name = _plain(model.name)
    fitting = [one for one in checkpoints if _plain(one.name.rpartition("/")[2]) in name]
    if not fitting or entry.guidance is None:
        return ""
    nearest = max(fitting, key=lambda one: len(one.name))
    is_on = entry.guidance.is_on
    if nearest.guidance is None or is_on(nearest.guidance) == is_on(model.guidance):
        return ""
    return (
        f"model.guidance is {model.guidance:g}, but {nearest.name}, whose name {model.name} has, "
        f"is sampled with {nearest.guidance:g} by its makers; set model.guidance = "
        f"{nearest.guidance:g}, unless you mean it"
    )


def _plain(name: str) -> str:
    return re.sub(r"[-_. ]+", "-", name.lower())


def _negative(entry: PipelineEntry, model: PipelineModel, index: dict[str, Any]) -> str | None:
    """The negative prompt, if guidance is on; a distilled checkpoint has none."""
    if entry.guidance is None or not isinstance(model, GuidedModel) or index.get("is_distilled"):
        return None
    return model.negative_prompt if entry.guidance.is_on(model.guidance) else None


def _encoder(
    entry: PipelineEntry,
    kind: Any,
    model: PipelineModel,
    prompts: Sequence[Prompt],
    negative: str | None,
) -> Callable[[str], Conditioning]:
    """Encode all prompts; the function that gives their features."""
    folder, device = model.pipeline_folder(), model.compute_device()
    # T5 and others overflow in float16.
    dtype = torch.float32 if model.weights == "float32" else torch.bfloat16
    texts = list(dict.fromkeys(example.text for example in examples_of(prompts)))
    if negative is not None and negative not in texts:
        texts.append(negative)
    parts = [
        folder / name
        for name in sorted(model.settings_of("") or {})
        if (folder / name).is_dir() and name not in _NOT_TEXT
    ]
    facts = [entry.pipeline, model.max_tokens, str(dtype), file_facts(parts)]

    def load() -> Callable[[str], Text]:
        require("transformers", "To encode prompts")
        with naming("path", folder):
            pipe = entry.text_pipe(kind, folder, dtype)
        pipe.to(device)

        @torch.no_grad()
        def encode(text: str) -> Text:
            features = entry.encode(pipe, text, model)
            return {name: part.cpu() for name, part in features.items()}

        return encode

    lookup = encoded_prompts(
        texts, json.dumps(facts), TensorCache(model.cache_folder, _CACHE_BYTES), load, device
    )
    negative_text = None if negative is None else lookup(negative)
    return lambda text: (lookup(text), negative_text)

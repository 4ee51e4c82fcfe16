"""A model on disk as a policy that can be trained, read as diffusers' pipeline of it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ...lora.adapter import LoraConfig
from ...optional import require
from ...prompts.example import Prompt, examples_of
from ...settings.declared import shortened
from ..encoded_prompts import encoded_prompts, file_facts
from ..speed import speed_up
from ..tensor_cache import TensorCache
from .entry import PipelineEntry, Text
from .grid import token_grid
from .model import GuidedModel, PipelineModel
from .policy import Conditioning, PipelinePolicy
from .scaling import decoder, encoder

__all__ = ["WEIGHTS", "is_new_enough", "load_policy"]

WEIGHTS = {"float32": torch.float32, "float16": torch.float16, "bf16": torch.bfloat16}
"""How weights are kept -> their type."""

_CACHE_BYTES = 16 * 2**30
_NOT_TEXT = ("transformer", "vae", "scheduler")
_UNREADABLE = (OSError, ValueError, RuntimeError, LookupError, TypeError, AttributeError)
"""What diffusers raises for files that are not what they are given for."""


def load_policy(
    entry: PipelineEntry,
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
    if model.weights not in WEIGHTS:
        raise ValueError(
            f"model.weights is {shortened(model.weights)}; it must be one of {', '.join(WEIGHTS)}"
        )
    kinds = {name: _class(entry, name) for name in (entry.pipeline, entry.transformer, entry.vae)}
    folder, device, dtype = model.pipeline_folder(), model.compute_device(), WEIGHTS[model.weights]
    index = model.check_pipeline(entry.pipeline)
    rows, columns = token_grid(entry, model)
    sources = {kind: model.part(kind) for kind in ("transformer", "vae")}
    negative = _negative(entry, model, index)
    encode = _encoder(entry, kinds[entry.pipeline], model, prompts, negative)
    vae: Any = _loaded(kinds[entry.vae], sources["vae"], "vae", folder, dtype)
    vae.requires_grad_(False).train(False).to(device)
    if model.vae_tiling:
        vae.enable_tiling()
    transformer: Any = _loaded(
        kinds[entry.transformer], sources["transformer"], "transformer", folder, dtype
    )
    transformer.requires_grad_(False).train(False).to(
        torch.device("cpu") if keep_on_cpu else device
    )
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
        with _naming("path", folder):
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


def _loaded(kind: Any, source: Path, part: str, folder: Path, dtype: torch.dtype) -> Any:
    """Read a part from its folder, or from one file with the help of the pipeline's settings."""
    options: dict[str, Any] = {"torch_dtype": dtype, "local_files_only": True}
    if source.is_dir():
        with _naming(part, source):
            model, report = kind.from_pretrained(source, output_loading_info=True, **options)
        _check_complete(report["missing_keys"], part, source)
        return model
    if kind.__name__ not in _single_file_classes():
        raise ValueError(
            f"model.{part} is the file {source}, but diffusers reads a {kind.__name__} from "
            f"folders alone; leave model.{part} out, and the pipeline's own is taken"
        )
    # With accelerate the model is made empty, so that a weight that the file lacks can be told.
    require("accelerate", f"To read model.{part} from a single file")
    with _naming(part, source):
        model = kind.from_single_file(str(source), config=str(folder / part), **options)
    _check_complete((n for n, p in model.named_parameters() if p.is_meta), part, source)
    return model


def _check_complete(missing: Iterable[str], part: str, source: Path) -> None:
    names = sorted(missing)
    if names:
        raise ValueError(
            f"model.{part}: {source} lacks {len(names)} weights of this model, for example "
            f"{names[0]}; it is damaged, or belongs to another model"
        )


def _single_file_classes() -> Mapping[str, object]:
    """Classes of models that this version of diffusers can read from single files."""
    return require(
        "diffusers.loaders.single_file_model", "To read a file"
    ).SINGLE_FILE_LOADABLE_CLASSES


@contextmanager
def _naming(part: str, source: Path) -> Iterator[None]:
    """Inside, what diffusers says of unreadable files names the key and the file."""
    try:
        yield
    except _UNREADABLE as error:
        reason = re.sub(r"\s+", " ", str(error)) or type(error).__name__
        raise ValueError(
            f"model.{part}: {source} cannot be read as what it is given for: {reason:.400}"
        ) from error

"""The node that brings the prompts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from comfy_api.latest import io

from ..chunk_grpo_core.prompts.files import parse_lines
from ..chunk_grpo_core.prompts.split import PromptConfig, make_prompt_set
from ..chunk_grpo_core.prompts.split import PromptSet as PlainPromptSet
from ..chunk_grpo_core.rewards.follows_prompt import EMPTY
from .bridge.conditioning import REFERENCE
from .bridge.encoding import conditioning_cache, encode_prompts
from .bridge.latents import samples_of
from .bridge.prompts import NO_FILE, files_digest, prompt_files, read_prompts, wildcard_folder
from .lazy import ask_next
from .types import CATEGORY, PromptSet, PromptsSocket, rare
from .validation import verdict

__all__ = [
    "CACHE_GIB",
    "GUIDANCE",
    "PromptSetNode",
    "cache_input",
    "describe",
    "guidance_input",
    "with_conditioning",
]

_SEED = {"min": 0, "max": 2**31 - 1}
_WILDCARDS = "wildcards"
CACHE_GIB = 4.0
GUIDANCE = 3.5
"""Not written into the conditioning: models have defaults of their own, FLUX this one."""


def guidance_input(*, optional: bool = False) -> Any:
    """The input ``guidance`` of every node that encodes prompts."""
    return rare(
        io.Float.Input(
            "guidance",
            default=GUIDANCE,
            min=0.0,
            max=100.0,
            step=0.1,
            optional=optional,
            tooltip="FLUX guidance of FLUX.1-dev and its relatives. 3.5 leaves it to the model: "
            "FLUX takes 3.5 then, Chroma 0. Models without guidance (schnell, tiny FLUX, SD3) do "
            "not look at it.",
        )
    )


def cache_input() -> Any:
    """The input ``cache_gib`` of every node that encodes prompts."""
    return rare(
        io.Float.Input(
            "cache_gib",
            default=CACHE_GIB,
            min=0.0,
            max=1000.0,
            step=0.5,
            optional=True,
            tooltip="Largest size of output/chunk_grpo/.conditioning, where encoded prompts are "
            "kept; the longest unused go first. 1 GiB holds about 250 prompts of FLUX. 0 keeps "
            "nothing.",
        )
    )


def with_conditioning(
    prompts: PlainPromptSet,
    clip: Any,
    guidance: float = GUIDANCE,
    cache_gib: float = CACHE_GIB,
    reference: Mapping[str, Any] | None = None,
) -> tuple[PromptSet, int]:
    """Encode prompts, each text once, and the empty one.

    Args:
        prompts: Of both kinds.
        clip: A CLIP.
        guidance: FLUX guidance, for the conditioning.
        cache_gib: Largest size of the folder where encoded prompts are kept.
        reference: LATENT of the picture that all prompts are about, if there is one.

    Returns:
        The prompts with their conditioning, and how many texts came from the cache.

    Raises:
        ValueError: The LATENT holds several pictures.
    """
    extra: dict[str, Any] = {} if guidance == GUIDANCE else {"guidance": guidance}
    if reference is not None:
        extra[REFERENCE] = [_only_one(samples_of(reference, "reference"))]
    every = (*prompts.train, *prompts.held_out, EMPTY)
    texts = dict.fromkeys(example.text for example in every)
    encoded = encode_prompts(clip, tuple(texts), conditioning_cache(cache_gib))
    conditioning = {
        text: [[tensor, {**extras, **extra}] for tensor, extras in entries]
        for text, entries in encoded.conditioning.items()
    }
    return PromptSet(**vars(prompts), conditioning=conditioning), encoded.cached


def _only_one(latent: Any) -> Any:
    count = 0 if getattr(latent, "is_nested", False) else len(latent)
    if count != 1:
        raise ValueError(
            f"reference holds {count or 'nested'} latents; it must be the LATENT of one picture, "
            "from VAE Encode"
        )
    return latent


class PromptSetNode(io.ComfyNode):
    """CLIP, lines of text and files -> prompts with conditioning."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """See ComfyUI's V3 node interface."""
        default = PromptConfig()
        files = [NO_FILE, *prompt_files()]
        return io.Schema(
            node_id="ChunkGRPO_PromptSet",
            display_name="Prompt Set",
            category=CATEGORY,
            description="Prompts to train on and prompts to measure on, encoded once. The result "
            "is kept on disk and found again by prompt and text encoder, which is known by samples "
            "of its weights and by its LoRAs; when all prompts are found, it is not even loaded.",
            inputs=[
                io.Clip.Input(
                    "clip", lazy=True, tooltip="The text encoder that belongs to the MODEL."
                ),
                io.String.Input(
                    "text",
                    multiline=True,
                    tooltip="Training prompts, one per line; lines that begin with # are skipped. "
                    "Wildcards (choices in braces, and __name__) are filled in, see variants. Tens "
                    "to hundreds work better than a few: with few prompts the LoRA learns those "
                    "pictures.",
                ),
                io.String.Input(
                    "held_out_text",
                    multiline=True,
                    default="",
                    tooltip="Prompts for measuring only, one per line; none of them is trained on. "
                    "Leave this and held_out_file empty to take them out of the training prompts.",
                ),
                io.Int.Input(
                    "held_out",
                    default=default.held_out,
                    min=0,
                    max=1000,
                    tooltip="How many prompts to measure on, before and after training; never "
                    "trained on. At least 2 for Train LoRA; more make the measured gain surer.",
                ),
                rare(
                    io.Int.Input(
                        "split_seed",
                        default=default.split_seed,
                        **_SEED,
                        tooltip="Another seed takes other prompts out for measuring.\n"
                        "Seed of the choice of held-out prompts.",
                    )
                ),
                guidance_input(),
                io.Combo.Input(
                    "file",
                    options=files,
                    default=NO_FILE,
                    optional=True,
                    tooltip="Further training prompts from ComfyUI's input folder: .txt (one per "
                    "line), .jsonl, .json, .csv or .tsv (key or column prompt, caption or text). "
                    "The summary says what was guessed about the file.",
                ),
                rare(
                    io.Combo.Input(
                        "held_out_file",
                        options=files,
                        default=NO_FILE,
                        optional=True,
                        tooltip="Further prompts for measuring only, from such a file.",
                    )
                ),
                io.Int.Input(
                    "variants",
                    default=default.variants,
                    min=0,
                    max=1000,
                    optional=True,
                    tooltip="Prompts made of each line with wildcards, at most, all different. "
                    "Wildcards are choices in braces, with a bar between them, and __name__. 0 "
                    "leaves braces and underscores as they are.",
                ),
                rare(
                    io.String.Input(
                        "wildcards",
                        default=_WILDCARDS,
                        optional=True,
                        tooltip="Folder inside ComfyUI's input folder: __name__ becomes a line of "
                        "its name.txt, or of the list called name in a .yaml file. Empty: the "
                        "input folder itself.",
                    )
                ),
                rare(
                    io.Int.Input(
                        "wildcard_seed",
                        default=default.wildcard_seed,
                        **_SEED,
                        optional=True,
                        tooltip="Seed of what wildcards become.",
                    )
                ),
                rare(
                    io.Int.Input(
                        "shuffle_seed",
                        default=default.shuffle_seed,
                        **_SEED,
                        optional=True,
                        tooltip="Order of the training prompts; 0 keeps it. Roll Out takes the "
                        "first ones; training goes through all in random order anyway.",
                    )
                ),
                rare(
                    io.Float.Input(
                        "held_out_share",
                        default=default.held_out_share,
                        min=0.0,
                        max=0.99,
                        step=0.01,
                        optional=True,
                        tooltip="Share of the prompts to measure on, instead of the number in "
                        "held_out; 0 takes the number.",
                    )
                ),
                cache_input(),
                io.Latent.Input(
                    "reference",
                    lazy=True,
                    optional=True,
                    tooltip="Only for models that edit pictures (FLUX.1 Kontext, FLUX.2, "
                    "Qwen-Image-Edit): the picture that all prompts are about, from VAE Encode. It "
                    "goes to the model as Reference Latent hands it over; rewards see the result "
                    "alone.",
                ),
            ],
            outputs=[
                PromptsSocket.Output(
                    "prompts", display_name="prompts", tooltip="For Roll Out and Train LoRA."
                ),
                io.String.Output(
                    "summary",
                    display_name="summary",
                    tooltip="How many prompts there are, how many were dropped, and what was "
                    "guessed about files.",
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, file: str | None = NO_FILE) -> bool | str:
        """Refuse a file that cannot be read before anything runs."""
        return verdict(_check_file, file)

    @classmethod
    def check_lazy_status(cls, **inputs: Any) -> list[str]:
        """Read the prompts before the text encoder is loaded."""
        if inputs["clip"] is None:
            _prompts_of(inputs, [])
        if inputs.get("reference") is not None:
            _only_one(samples_of(inputs["reference"], "reference"))
        return ask_next(inputs, (("reference",), ("clip",)))

    @classmethod
    def fingerprint_inputs(
        cls,
        file: str | None = NO_FILE,
        held_out_file: str | None = NO_FILE,
        variants: int | None = 1,
        wildcards: str | None = _WILDCARDS,
        **others: Any,
    ) -> str:
        """Read a file again when it was edited. What comes through a link (None) is not known."""
        names = [file or NO_FILE, held_out_file or NO_FILE]
        return files_digest(names, None if variants == 0 else wildcards)

    @classmethod
    def execute(
        cls,
        clip: Any,
        guidance: float,
        cache_gib: float = CACHE_GIB,
        reference: Mapping[str, Any] | None = None,
        **inputs: Any,
    ) -> io.NodeOutput:
        """Read, split, encode."""
        guesses: list[str] = []
        chosen = _prompts_of(inputs, guesses)
        prompts, cached = with_conditioning(chosen, clip, guidance, cache_gib, reference)
        return io.NodeOutput(prompts, "\n".join([describe(prompts, cached), *guesses]))


def _prompts_of(inputs: Mapping[str, Any], guesses: list[str]) -> PlainPromptSet:
    """The prompts that the inputs of the node say; what was guessed about files is added to
    ``guesses``.

    Raises:
        ValueError: A prompt or a number is wrong.
        FileNotFoundError: A file is missing.
    """
    numbers = {
        field.name: inputs[field.name] for field in fields(PromptConfig) if field.name in inputs
    }
    return make_prompt_set(
        parse_lines(inputs["text"], "text")
        + read_prompts(inputs.get("file", NO_FILE), guesses.append),
        parse_lines(inputs["held_out_text"], "held_out_text")
        + read_prompts(inputs.get("held_out_file", NO_FILE), guesses.append),
        PromptConfig(**numbers),
        wildcard_folder(inputs.get("wildcards", _WILDCARDS), guesses.append),
    )


def _check_file(name: str) -> None:
    read_prompts(name, lambda guess: None)  # the summary will say what was guessed


def describe(prompts: PromptSet, cached: int) -> str:
    """Say in words which prompts there are."""
    return (
        f"{len(prompts.train)} prompts to train on, {len(prompts.held_out)} held out.\n"
        f"Dropped: {prompts.repeated} repeated, {prompts.withheld} in the held-out list.\n"
        f"Encoded: {len(prompts.conditioning) - cached}, from the cache: {cached} (the "
        "empty prompt is one of them)."
    )

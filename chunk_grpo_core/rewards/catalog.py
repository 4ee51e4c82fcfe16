"""What there is to know about every reward before it is used; ``docs/rewards.md`` shows it.

No network was at hand when this was written: no reward has been run with its real weights. What
the tests prove instead, and what they leave open, stands in every entry.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..settings.declared import shortened
from .files import WeightFile
from .geneval import mask2former
from .networks import aesthetic, clipscore, hpsv2, hpsv3, imagereward, pickscore

__all__ = ["CATALOG", "Entry", "files_of"]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """Facts about a reward."""

    measures: str
    """What a high score means."""
    range: str
    """Values to expect."""
    files: tuple[WeightFile, ...] = ()
    """What has to be on the machine, tokenizers included; of variants, those of the default."""
    needs: str = "nothing"
    """Packages or services besides torch."""
    memory: str = "0"
    """Of the weights, on the device they run on."""
    speed: str = "instant"
    """``instant``, ``fast`` (CLIP-size), ``slow`` (billions of parameters), ``network``."""
    evidence: str = ""
    """What the tests prove, and how."""
    unproved: str = ""
    """What they leave open."""


def _tokenizer(folder: str, repo: str, licence: str, **names: int) -> tuple[WeightFile, ...]:
    return tuple(
        WeightFile(
            folder=folder, name=name.replace("_", "."), repo=repo, bytes=size, licence=licence
        )
        for name, size in names.items()
    )


def _clip_tokenizer(folder: str) -> tuple[WeightFile, ...]:
    return _tokenizer(
        folder,
        "openai/clip-vit-large-patch14",
        "MIT (code)",
        vocab_json=961_143,
        merges_txt=524_619,
    )


_PIXELS = "`tests/rewards/test_analytic.py`"
_ALONE = "Alone it does not make pictures better."
_NO_REAL_WEIGHTS = "The real file has never been loaded here; its scores are not compared."

CATALOG: dict[str, Entry] = {
    "tiny_world": Entry(
        measures="the five attributes of a caption of the tiny FLUX are in the picture",
        range="0 to 1",
        evidence="Read back from rendered scenes: `tests/core/test_tiny_reward.py`.",
    ),
    "target_colour": Entry(
        measures="all pixels are near one colour",
        range="0 to 1",
        evidence="Closed form: `tests/core/test_contracts.py`.",
    ),
    "target_image": Entry(
        measures="pixels are near those of one picture",
        range="0 to 1",
        evidence=f"Against numpy: {_PIXELS}.",
    ),
    "brightness": Entry(
        measures="the picture is bright (mean luma)",
        range="0 to 1",
        evidence=f"Against PIL: {_PIXELS}.",
        unproved=_ALONE,
    ),
    "saturation": Entry(
        measures="colours are saturated (mean S of HSV)",
        range="0 to 1",
        evidence=f"Against Python's colorsys: {_PIXELS}.",
        unproved=_ALONE,
    ),
    "sharpness": Entry(
        measures="edges are sharp (variance of the Laplacian); noise is, too",
        range="0 to 16",
        evidence=f"Against scipy: {_PIXELS}.",
        unproved=_ALONE,
    ),
    "jpeg_compressibility": Entry(
        measures="the picture makes a small JPEG file (minus bits per pixel)",
        range="below 0, about -8 to -0.2",
        evidence=f"Against saved files: {_PIXELS}.",
        unproved=_ALONE,
    ),
    "jpeg_incompressibility": Entry(
        measures="the picture makes a large JPEG file (bits per pixel)",
        range="above 0, about 0.2 to 8",
        evidence=f"Against saved files: {_PIXELS}.",
        unproved=_ALONE,
    ),
    "clipscore": Entry(
        measures="the picture shows what the prompt says",
        range="cosine about 0.15 to 0.35; `percent` 100 times that; `paper` 2.5 times that, "
        "negative values as 0",
        files=(clipscore.WEIGHTS["clip-l"], *_clip_tokenizer("clipscore")),
        needs="transformers",
        memory="1.7 GB (float32)",
        speed="fast",
        evidence="The formula, three conventions, preprocessing and tokens against independent "
        "derivations: `tests/rewards/test_clip.py`, `test_pixels.py`, `test_tokens.py`.",
        unproved=_NO_REAL_WEIGHTS,
    ),
    "pickscore": Entry(
        measures="people who asked for this prompt would choose the picture",
        range="about 18 to 24",
        files=(pickscore.WEIGHTS, *_clip_tokenizer("pickscore")),
        needs="transformers",
        memory="3.9 GB (float32), 2.0 GB (float16)",
        speed="fast",
        evidence="As for clipscore; the learned temperature is read from the file: "
        "`tests/rewards/test_clip.py`.",
        unproved=_NO_REAL_WEIGHTS,
    ),
    "hpsv2": Entry(
        measures="people would prefer the picture among those of the same prompt",
        range="0.2 to 0.35, times `scale`; compare within one prompt and one version alone",
        files=(hpsv2.WEIGHTS["2.1"], *_clip_tokenizer("hpsv2")),
        needs="transformers",
        memory="3.9 GB (float32), 2.0 GB (float16)",
        speed="fast",
        evidence="Features and scores equal those of open_clip on a tiny network in its layout "
        "(1e-5): `tests/rewards/test_golden.py`; letterbox: `test_pixels.py`.",
        unproved=f"{_NO_REAL_WEIGHTS} The authors name 0.2876 (2.0) for their demo picture "
        'and "A cat with two horns on its head". Unlike ftfy, nothing repairs wrongly encoded '
        "prompts.",
    ),
    "aesthetic": Entry(
        measures="people like the picture, whatever the prompt",
        range="about 1 to 10",
        files=(aesthetic.HEAD, clipscore.WEIGHTS["clip-l"]),
        needs="transformers",
        memory="1.2 GB (float32), 0.6 GB (float16)",
        speed="fast",
        evidence="The head is one affine map and equals its five layers: "
        "`tests/rewards/test_linear_head.py`. The head's digest was taken from its real file.",
        unproved="The real image tower has never been loaded here; scores are not compared.",
    ),
    "imagereward": Entry(
        measures="people would rank the picture high for this prompt",
        range="about -2.3 to 2",
        files=(
            imagereward.WEIGHTS,
            *_tokenizer(
                "imagereward", "google-bert/bert-base-uncased", "Apache-2.0", vocab_txt=231_508
            ),
        ),
        needs="transformers",
        memory="1.8 GB (float32)",
        speed="fast",
        evidence="Scores equal those of the official code on a tiny network in its layout (1e-5): "
        "`tests/rewards/test_golden.py`.",
        unproved=f"{_NO_REAL_WEIGHTS} If its file holds more than tensors it is refused.",
    ),
    "hpsv3": Entry(
        measures="people would prefer the picture (Qwen2-VL 7B; the paper's training reward)",
        range="unbounded; the authors report a mean of about 10.4 for FLUX.1-dev, and training "
        "reaches 15 and more",
        files=(
            hpsv3.WEIGHTS,
            *_tokenizer(
                "hpsv3",
                "Qwen/Qwen2-VL-7B-Instruct",
                "Apache-2.0",
                vocab_json=2_776_833,
                merges_txt=1_671_853,
            ),
        ),
        needs="transformers, psutil",
        memory="15.5 GB (bfloat16)",
        speed="slow",
        evidence="Patches and scores equal those of the official class on a tiny network in its "
        "layout (1e-4); the conversation is cut into the same tokens as by transformers: "
        "`tests/rewards/test_hpsv3.py`.",
        unproved=f"{_NO_REAL_WEIGHTS} Neither are its names and sizes: they follow from the "
        "official code. bfloat16 was compared on the tiny network alone. Special tokens inside a "
        "prompt are plain text here; the official code obeys them.",
    ),
    "ocr": Entry(
        measures="the text the prompt asks for can be read in the picture",
        range="0 to 1",
        needs="rapidocr, onnxruntime (on the CPU; the networks are in the package)",
        speed="fast",
        evidence="The real networks read rendered text, right 1 and wrong 0, offline; the formula "
        "against the definition of the edit distance: `tests/rewards/test_ocr.py`.",
        unproved="Text in generated pictures, small, bent or in other scripts.",
    ),
    "remote_http": Entry(
        measures="what the server of your choice measures",
        range="the server's",
        needs="a server: `docs/reward_server.md`",
        speed="network",
        evidence="Scores of a reward lent by `chunk-grpo serve-reward` in another process equal "
        "those at home bit for bit; servers that hang, drip, redirect or answer nonsense: "
        "`tests/rewards/test_remote.py`, `test_hostile_answers.py`, `test_server.py`.",
        unproved="HTTPS, and networks between machines.",
    ),
    "vlm_judge": Entry(
        measures="what a vision language model answers about the picture",
        range="0 to 1",
        needs="a server with an OpenAI-compatible interface: `docs/reward_server.md`",
        speed="network",
        evidence="The questions are those of UnifiedReward's repository; how answers are read, and "
        "that those without a score are masked: `tests/rewards/test_vlm_judge.py`.",
        unproved="No judge model has been run.",
    ),
    "geneval": Entry(
        measures="the objects that the prompt's metadata names are in the picture, in number, "
        "colour and place",
        range="0 or 1; with `partial`, the share that is right",
        files=(
            mask2former.WEIGHTS,
            mask2former.CONFIG,
            clipscore.WEIGHTS["clip-l"],
            *_clip_tokenizer("clipscore"),
        ),
        needs="transformers; prompts from GenEval's `evaluation_metadata.jsonl`. `colours = false` "
        "leaves CLIP out",
        memory="2.0 GB (float32); 0.3 GB without colours",
        speed="fast",
        evidence="The rules on boxes made by hand; both networks, tiny and random, from files in "
        "the layout of the real ones: `tests/rewards/test_geneval.py`.",
        unproved=f"{_NO_REAL_WEIGHTS} GenEval itself uses another detector's weights, so its "
        "figures cannot be compared closely.",
    ),
    "taste": Entry(
        measures="the person whose picks the head was fitted on would like the picture, whatever "
        "the prompt",
        range="deviations of the pictures that were picked from: about -3 to 3, 0 on average",
        needs="a head from the node Fit Taste or `chunk-grpo taste fit` ([taste](taste.md)); "
        "transformers, if the latter was fitted on an encoder from a folder",
        memory="that of the encoder; 0 without one",
        speed="fast",
        evidence="The head against its optimality condition, its primal form and closed forms, and "
        "the report against people who click at random: `tests/rewards/test_taste_head.py`; "
        "encoders of three families, tiny and random: `tests/rewards/test_taste_reward.py`.",
        unproved="Picks of real people, and real encoders. Picks cannot see whether a picture "
        "follows its prompt: train with a reward that does.",
    ),
    "follows_prompt": Entry(
        measures="the model that is trained, without its LoRA, recognises the prompt in the "
        "picture; needs no further file",
        range="0.05 to 0.3 on the tiny FLUX, smaller on large models; compare within one prompt",
        needs="the model that is trained; in ComfyUI its VAE must encode",
        memory="0 beside the model",
        speed="8 calls of the model for each picture, `draws` times",
        evidence="The formula against another derivation, and on the tiny FLUX against the true "
        "adherence inside groups: `tests/rewards/test_follows_prompt.py`, "
        "`benchmarks/taste_rl` ([taste](taste.md)).",
        unproved="Large models: at which noise captions matter was measured on the tiny FLUX. What "
        "a model does not know, its judge does not know either.",
    ),
    "votes": Entry(
        measures="a person at this machine, who is shown every group that was sampled and clicks",
        range="-1.5 to 1: the mean of hearts, crosses, best, duels and stars",
        needs="you ([taste](taste.md#votes)); held-out prompts are measured by whatever it is "
        "combined with",
        speed="yours",
        evidence="Killed and resumed with the same LoRA, and nothing asked twice: "
        "`tests/core/test_asking.py`.",
        unproved="That votes raise what a person likes: one simulated person gained 0.19 (-0.08 to "
        "0.46) with 40 clicks. Votes of real people.",
    ),
}


def files_of(name: str) -> Sequence[WeightFile]:
    """Files that a reward needs.

    Raises:
        ValueError: The name is unknown, or the reward needs no files.
    """
    files = CATALOG[name].files if name in CATALOG else ()
    if not files:
        names = ", ".join(reward for reward, entry in CATALOG.items() if entry.files)
        raise ValueError(f"reward is {shortened(name)}; there are files to fetch for {names}")
    return files

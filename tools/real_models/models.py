"""What the example workflows of real models differ in: files, loaders, guidance, notes.

File names, folders and addresses are those of ComfyUI's own templates and example pages.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

__all__ = ["MODELS", "TASTE", "File", "Loader", "ModelExample"]

_HOST = "https://huggingface.co/"
_FLUX_TEXT = "comfyanonymous/flux_text_encoders/resolve/main"
_SD35_TEXT = "Comfy-Org/stable-diffusion-3.5-fp8/resolve/main/text_encoders"
_FLUX2 = "Comfy-Org/flux2-dev/resolve/main/split_files"
_QWEN = "Comfy-Org/Qwen-Image_ComfyUI/resolve/main/split_files"
_Z_IMAGE = "Comfy-Org/z_image/resolve/main/split_files"
_KLEIN = "Comfy-Org/flux2-klein/resolve/main/split_files"
_KREA2 = "Comfy-Org/Krea-2/resolve/main"
_Z_TURBO = "Comfy-Org/z_image_turbo/resolve/main/split_files"


@dataclass(frozen=True, slots=True)
class File:
    """A model file that the user has or downloads."""

    directory: str
    """Folder below ``ComfyUI/models``."""
    name: str
    source: str
    """Repository and folder of the file on huggingface.co."""

    @property
    def url(self) -> str:
        """Address that ComfyUI's page offers when the file is missing."""
        return f"{_HOST}{self.source}/{self.name}"


@dataclass(frozen=True, slots=True)
class Loader:
    """A loader node of ComfyUI."""

    class_type: str
    height: int
    files: dict[str, File]
    """Input -> the file it names."""
    options: dict[str, str]
    """The other inputs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelExample:
    """One example workflow."""

    name: str
    title: str
    loaders: tuple[Loader, ...]
    model: tuple[int, int]
    clip: tuple[int, int]
    vae: tuple[int, int]
    """Loader and output that give MODEL, CLIP and VAE."""
    memory: str
    """Paragraph of the note: how large it is, honestly."""
    advice: str
    """Paragraph of the note: what is special about this model."""
    guidance: float = 3.5
    """FLUX guidance; models without it do not look at it."""
    cfg: float = 1.0
    latent: str = "EmptySD3LatentImage"
    scheduler: str | None = None
    """Node that gives the model's own noise levels, in the place of the recipe's."""
    sampler: str | None = None
    """Sampler of KSamplerSelect, in the place of the recipe's."""
    steps: int = 8
    """Of a rollout: those of the recipe, or of the model's own scheduler."""
    needs: str = ""
    """Sentence of the note: which ComfyUI has this model, if not every one that the pack takes."""

    @property
    def files(self) -> tuple[File, ...]:
        """All files, in the order of the loaders."""
        return tuple(file for loader in self.loaders for file in loader.files.values())


def _diffusion_model(name: str, source: str) -> Loader:
    file = File("diffusion_models", name, source)
    return Loader("UNETLoader", 82, {"unet_name": file}, {"weight_dtype": "default"})


def _checkpoint(name: str, source: str) -> Loader:
    file = File("checkpoints", name, source)
    return Loader("CheckpointLoaderSimple", 98, {"ckpt_name": file}, {})


def _text_encoder(name: str, source: str, kind: str) -> Loader:
    file = File("text_encoders", name, source)
    return Loader("CLIPLoader", 106, {"clip_name": file}, {"type": kind, "device": "default"})


def _vae(name: str, source: str) -> Loader:
    return Loader("VAELoader", 58, {"vae_name": File("vae", name, source)}, {})


_CLIP_L = File("text_encoders", "clip_l.safetensors", _FLUX_TEXT)
_T5 = File("text_encoders", "t5xxl_fp16.safetensors", _FLUX_TEXT)

MODELS = (
    ModelExample(
        name="10_flux1_dev_bf16",
        title="FLUX.1-dev in bf16",
        loaders=(
            _diffusion_model("flux1-dev.safetensors", "Comfy-Org/flux1-dev/resolve/main"),
            Loader(
                "DualCLIPLoader",
                130,
                {"clip_name1": _CLIP_L, "clip_name2": _T5},
                {"type": "flux", "device": "default"},
            ),
            _vae(
                "ae.safetensors",
                "Comfy-Org/Lumina_Image_2.0_Repackaged/resolve/main/split_files/vae",
            ),
        ),
        model=(0, 0),
        clip=(1, 0),
        vae=(2, 0),
        memory="The weights are 23.8 GB. A card of 24 GB cannot hold them and the training: "
        "ComfyUI then keeps a part in system memory, which is slow. For 16 to 24 GB open "
        "`11_flux1_dev_fp8`, or set `weight_dtype` to `fp8_e4m3fn` here.",
        advice="`guidance` in **Prompt Set** is FLUX's own, 3.5 as in the papers. `cfg` stays 1.",
    ),
    ModelExample(
        name="11_flux1_dev_fp8",
        title="FLUX.1-dev in fp8",
        loaders=(_checkpoint("flux1-dev-fp8.safetensors", "Comfy-Org/flux1-dev/resolve/main"),),
        model=(0, 0),
        clip=(0, 1),
        vae=(0, 2),
        memory="The file is 17.2 GB with both text encoders and the VAE; the model "
        "alone is about 12 GB. Meant for cards of 16 to 24 GB.",
        advice="Draw with **Apply LoRA**: loaders that merge a LoRA into fp8 weights round most of "
        "it away. Leave `cfg` at 1.",
    ),
    ModelExample(
        name="12_flux2_dev",
        title="FLUX.2-dev",
        loaders=(
            _diffusion_model("flux2_dev_fp8mixed.safetensors", f"{_FLUX2}/diffusion_models"),
            _text_encoder(
                "mistral_3_small_flux2_fp8.safetensors", f"{_FLUX2}/text_encoders", "flux2"
            ),
            _vae("flux2-vae.safetensors", f"{_FLUX2}/vae"),
        ),
        model=(0, 0),
        clip=(1, 0),
        vae=(2, 0),
        guidance=4.0,
        latent="EmptyFlux2LatentImage",
        scheduler="Flux2Scheduler",
        memory="The weights are 35.5 GB in fp8, more than a card of 24 or 32 GB holds. ComfyUI "
        "then keeps a part of them in system memory and moves it for every call: slow. "
        "This is the largest of the examples; try a smaller model first.",
        advice="Noise levels come from **Flux2Scheduler**, FLUX.2's own for this size, not from "
        "the recipe. Change its width and height together with **Picture size**; keep 8 steps.",
    ),
    ModelExample(
        name="13_sd35",
        title="Stable Diffusion 3.5 Medium",
        loaders=(
            _checkpoint(
                "sd3.5_medium.safetensors",
                "stabilityai/stable-diffusion-3.5-medium/resolve/main",
            ),
            Loader(
                "TripleCLIPLoader",
                106,
                {
                    "clip_name1": File("text_encoders", "clip_l.safetensors", _SD35_TEXT),
                    "clip_name2": File("text_encoders", "clip_g.safetensors", _SD35_TEXT),
                    "clip_name3": File("text_encoders", "t5xxl_fp16.safetensors", _SD35_TEXT),
                },
                {},
            ),
        ),
        model=(0, 0),
        clip=(1, 0),
        vae=(0, 2),
        cfg=4.5,
        memory="Medium has about 5 GB of weights and is the smallest of the examples: start here "
        "if your card has 16 GB or less. Large is the same graph with `sd3.5_large.safetensors`, "
        "or `sd3.5_large_fp8_scaled.safetensors` on 16 GB.",
        advice="It is drawn with `cfg` 4.5, so it is trained with it, at twice the time. Use the "
        "same `cfg` when you draw with the LoRA.",
    ),
    ModelExample(
        name="14_qwen_image",
        title="Qwen-Image",
        loaders=(
            _diffusion_model("qwen_image_fp8_e4m3fn.safetensors", f"{_QWEN}/diffusion_models"),
            _text_encoder(
                "qwen_2.5_vl_7b_fp8_scaled.safetensors", f"{_QWEN}/text_encoders", "qwen_image"
            ),
            _vae("qwen_image_vae.safetensors", f"{_QWEN}/vae"),
        ),
        model=(0, 0),
        clip=(1, 0),
        vae=(2, 0),
        cfg=4.0,
        memory="The weights are 20.4 GB in fp8, which leaves little of a card of 24 GB; on 16 GB "
        "ComfyUI keeps a part of them in system memory, which is slow.",
        advice="It is drawn with `cfg` 4, so it is trained with it, at twice the time. Train "
        "without Lightning LoRAs. ComfyUI's template has ModelSamplingAuraFlow, which only sets "
        "noise levels; here **Shifted Sigmas** does.",
    ),
    ModelExample(
        name="15_z_image",
        title="Z-Image",
        loaders=(
            _diffusion_model("z_image_bf16.safetensors", f"{_Z_IMAGE}/diffusion_models"),
            _text_encoder("qwen_3_4b.safetensors", f"{_Z_TURBO}/text_encoders", "lumina2"),
            _vae("ae.safetensors", f"{_Z_TURBO}/vae"),
        ),
        model=(0, 0),
        clip=(1, 0),
        vae=(2, 0),
        cfg=4.0,
        memory="The weights are about 12 GB in bf16. Meant for cards of 16 to 24 GB.",
        advice="It is drawn with `cfg` 4, so it is trained with it, at twice the time. "
        "**Z-Image-Turbo** (`z_image_turbo_bf16.safetensors`) is trained as it is used: `cfg` "
        "1, and its own sampler: `16_z_image_turbo`.",
    ),
    ModelExample(
        name="16_z_image_turbo",
        title="Z-Image-Turbo",
        loaders=(
            _diffusion_model("z_image_turbo_bf16.safetensors", f"{_Z_TURBO}/diffusion_models"),
            _text_encoder("qwen_3_4b.safetensors", f"{_Z_TURBO}/text_encoders", "lumina2"),
            _vae("ae.safetensors", f"{_Z_TURBO}/vae"),
        ),
        model=(0, 0),
        clip=(1, 0),
        vae=(2, 0),
        sampler="res_multistep",
        memory="The weights are about 12 GB in bf16. Meant for cards of 16 to 24 GB.",
        advice="It was distilled to few steps, and is trained as it is used: 8 steps, `cfg` 1 and "
        "`res_multistep`, as in ComfyUI's own template, whose ModelSamplingAuraFlow (shift 3) only "
        "sets the noise levels that **Shifted Sigmas** gives here. Draw with the same.",
    ),
    ModelExample(
        name="17_flux2_klein",
        title="FLUX.2 klein 4B",
        loaders=(
            _diffusion_model("flux-2-klein-4b.safetensors", f"{_KLEIN}/diffusion_models"),
            _text_encoder("qwen_3_4b.safetensors", f"{_KLEIN}/text_encoders", "flux2"),
            _vae("flux2-vae.safetensors", f"{_FLUX2}/vae"),
        ),
        model=(0, 0),
        clip=(1, 0),
        vae=(2, 0),
        latent="EmptyFlux2LatentImage",
        scheduler="Flux2Scheduler",
        steps=4,
        memory="The weights are about 8 GB in bf16, and the text encoder about as much; only one "
        "of them is needed at a time. The smallest of the modern models: meant for cards from 16 "
        "GB, and worth a try on 12.",
        advice="It was distilled to 4 steps, and is trained as it is used: 4 steps from "
        "**Flux2Scheduler**, `cfg` 1. Change the width and height of that node together with "
        "**Picture size**.",
        needs="ComfyUI 0.3.75 loads FLUX.2 but not klein's text encoder; 0.28 does.",
    ),
    ModelExample(
        name="18_krea2_turbo",
        title="Krea 2 Turbo",
        loaders=(
            _diffusion_model("krea2_turbo_fp8_scaled.safetensors", f"{_KREA2}/diffusion_models"),
            _text_encoder("qwen3vl_4b_fp8_scaled.safetensors", f"{_KREA2}/text_encoders", "krea2"),
            _vae("qwen_image_vae.safetensors", f"{_KREA2}/vae"),
        ),
        model=(0, 0),
        clip=(1, 0),
        vae=(2, 0),
        memory="12.9 billion weights: about 13 GB in fp8. Meant for cards of 24 GB; on 16 GB "
        "ComfyUI keeps a part of them in system memory, which is slow.",
        advice="It was distilled to few steps, and is trained as it is used: 8 steps of `euler` "
        "and `cfg` 1. Its maker trains LoRAs on Krea 2 RAW (52 steps, `cfg` 3.5) and uses them on "
        "Turbo: for that, load the RAW file here, set `cfg` and draw with Turbo. That costs about "
        "thirteen times as much, and nobody has compared the two.",
        needs="ComfyUI knows Krea 2 since its encoder type `krea2`; 0.3.75 does not, 0.28 does.",
    ),
)
"""In the order of their numbers."""
TASTE = replace(
    next(model for model in MODELS if model.name == "16_z_image_turbo"),
    name="19_z_image_turbo_your_taste",
)
"""The model of the example that begins with picking."""

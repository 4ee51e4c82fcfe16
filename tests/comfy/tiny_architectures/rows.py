"""Which small models stand behind each row of the table in docs/models.md."""

from __future__ import annotations

ROWS = {
    "FLUX.1 (dev, schnell, Krea)": ("flux", "schnell"),
    "FLUX.2 dev, klein": ("flux2", "flux2_klein"),
    "Z-Image, Z-Image-Turbo": ("z_image",),
    "Krea 2": ("krea2",),
    "Qwen-Image": ("qwen_image",),
    "SD3, SD3.5": ("sd3",),
    "Chroma, Chroma Radiance": ("chroma", "chroma_radiance"),
    "Lumina 2, AuraFlow, OmniGen 2": ("lumina2", "auraflow", "omnigen2"),
    "HunyuanImage 2.1, also distilled": ("hunyuan_image", "hunyuan_image_distilled"),
    "HiDream-I1": ("hidream",),
    "Anima, Ernie-Image, Kandinsky 5, LongCat, Ovis-Image, Lens, Ideogram 4, Boogu, PixelDiT, "
    "Z-Image in pixels": (
        "anima", "ernie", "kandinsky5", "longcat", "ovis", "lens", "ideogram4", "boogu",
        "pixeldit", "z_image_pixel",
    ),
}  # fmt: skip
REFUSED = {"Cosmos Predict 2": "CosmosT2IPredict2", "HiDream-O1": "HiDreamO1"}
"""Model -> its class in ComfyUI's ``supported_models``."""
UNTRIED = ("Qwen-Image 2.1, FLUX.3, MOSS-Image",)


def cells(page: str) -> dict[str, list[str]]:
    """Model -> the cells of its row: ComfyUI 0.3.75, ComfyUI 0.28.2, template, command line,
    worth knowing."""
    table = page.partition("| model | ComfyUI 0.3.75 |")[2].partition("\n\n")[0].splitlines()[2:]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    return {model: row for model, *row in rows}

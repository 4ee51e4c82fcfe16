"""Graphs that show pictures to pick from, and what the server then knows."""

from __future__ import annotations

import io
from urllib.parse import quote

from PIL import Image

from chunk_grpo_core.rewards.taste.picks import Taste

from .graphs import node

PICK = "ChunkGRPO_PickPictures"


def _flat(colours, size=32):
    """A batch of flat pictures, and the key of its last node."""
    nodes = {
        f"flat {n}": node("EmptyImage", width=size, height=size, batch_size=1, color=colour)
        for n, colour in enumerate(colours)
    }
    last = "flat 0"
    for n in range(1, len(colours)):
        nodes[f"joined {n}"] = node("ImageBatch", image1=[last, 0], image2=[f"flat {n}", 0])
        last = f"joined {n}"
    return nodes, last


def picking(name, colours, **inputs):
    """A graph that shows pictures to pick from, and says what was picked."""
    nodes, last = _flat(colours)
    widgets = {"taste": name, "kind": "hearts", "wait": False, "picks": "", **inputs}
    return {
        **nodes,
        "picker": node(PICK, images=[last, 0], **widgets),
        "chosen": node("PreviewImage", images=["picker", 0]),
        "rejected": node("PreviewImage", images=["picker", 1]),
        "name": node("PreviewAny", source=["picker", 2]),
        "clicks": node("PreviewAny", source=["picker", 3]),
    }


def colours_of(client, run, key):
    files = run.outputs.get(key, {}).get("images", [])
    found = [Image.open(io.BytesIO(client.view(file))).convert("RGB") for file in files]
    return ["{:02x}{:02x}{:02x}".format(*picture.getpixel((3, 3))) for picture in found]


def taste_of(server, name):
    return Taste(server.output / "chunk_grpo" / "taste" / name)


def view(client, name):
    return client.get(f"/chunk_grpo/taste/{quote(name)}")


def act(client, name, **said):
    return client.post(f"/chunk_grpo/taste/{quote(name)}/pick", said)

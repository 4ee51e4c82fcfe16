"""A family of models in one file: a small SD3 of diffusers with random weights."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from chunk_grpo_core.method.schedule import shifted_grid
from chunk_grpo_core.models.diffusers_policy import DiffusersPolicy
from chunk_grpo_core.models.family import Family, ModelTable


@dataclass(frozen=True, kw_only=True)
class ToyModel(ModelTable):
    paths = frozenset({"colours"})
    width: int = 16
    """Pixels, a multiple of 2."""
    colours: str = ""
    """A file."""


class ToyPolicy(DiffusersPolicy[tuple[torch.Tensor, torch.Tensor]]):
    blocks = ("transformer_blocks",)
    targets = {
        "attention": r"transformer_blocks\.\d+\.attn\.to_[qkv]",
        "attention+mlp": r"transformer_blocks\.\d+\.(attn\.to_[qkv]|ff\.net\.(0\.proj|2))",
        "all-linear": r"transformer_blocks\.\d+\..+",
    }

    def predict(self, x_t, t, conditioning):
        features, pooled = (part.expand(len(x_t), *part.shape[1:]) for part in conditioning)
        return self.transformer(x_t, features, pooled, 1000.0 * t, return_dict=False)[0]


def _encode(caption):
    generator = torch.Generator().manual_seed(len(caption))
    return torch.randn(1, 3, 8, generator=generator), torch.randn(1, 8, generator=generator)


def _load(table, prompts, lora, seed, *, keep_on_cpu):
    from diffusers import SD3Transformer2DModel

    torch.manual_seed(0)
    transformer = SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, out_channels=4, num_layers=2,
        attention_head_dim=8, num_attention_heads=2, joint_attention_dim=8,
        caption_projection_dim=16, pooled_projection_dim=8, pos_embed_max_size=8,
    )  # fmt: skip
    return ToyPolicy(
        name="toy", transformer=transformer, encode=_encode,
        decode=lambda x_0: torch.sigmoid(x_0[:, :3]).permute(0, 2, 3, 1),
        latent_shape=(4, table.width // 2, table.width // 2), lora=lora, seed=seed,
    )  # fmt: skip


FAMILY = Family(
    name="toy", title="a toy", table=ToyModel, load=_load, example={"colours": "colours.txt"},
    grid=lambda table, steps: shifted_grid(steps, table.width / 8),
)  # fmt: skip

"""FLUX.1 with random weights, at its true size or very small, and its count of operations.

Speed and memory of kernels do not depend on the values of weights, so nothing is loaded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from chunk_grpo_core.lora.adapter import LoraConfig
from chunk_grpo_core.models.flux.config import FluxModel
from chunk_grpo_core.models.flux.policy import FluxPolicy
from chunk_grpo_core.models.fp8 import Fp8Linear, replace_linears, to_fp8
from chunk_grpo_core.models.pipelines.scaling import KL, decoder
from chunk_grpo_core.models.speed import speed_up
from chunk_grpo_core.models.tiny.model import TRANSFORMER_CONFIG
from chunk_grpo_core.optional import require

__all__ = ["FLUX", "PRECISIONS", "TINY", "Size", "build", "operations", "random_decoder"]

PRECISIONS = ("bf16", "fp8", "nf4")


@dataclass(frozen=True, kw_only=True)
class Size:
    """A transformer and its input."""

    config: dict[str, Any]
    """Arguments of FluxTransformer2DModel."""
    text: int
    """Text tokens."""

    @property
    def width(self) -> int:
        """d."""
        return self.config["num_attention_heads"] * self.config["attention_head_dim"]

    @property
    def channels(self) -> int:
        """Of the latents."""
        return self.config["in_channels"] // 4


FLUX = Size(
    config={
        "patch_size": 1,
        "in_channels": 64,
        "num_layers": 19,
        "num_single_layers": 38,
        "attention_head_dim": 128,
        "num_attention_heads": 24,
        "joint_attention_dim": 4096,
        "pooled_projection_dim": 768,
        "guidance_embeds": True,
    },
    text=512,
)
TINY = Size(config=TRANSFORMER_CONFIG, text=8)


def operations(size: Size, image: int, *, is_update: bool = False, checkpoints: bool = True) -> int:
    """Floating-point operations of one sample, products alone, a multiplication and an addition
    counting as two.

    Forward, for n tokens of width d: every block has 12 d^2 weights for each token (attention 4,
    MLP 8), and attention is 4 n^2 d. An update adds the gradient of the inputs, the weights being
    frozen (as much again; twice as much for attention), and, with checkpoints, the blocks once
    more. A LoRA's own products, 1 % for rank 16, are left out.

    Args:
        size: Model and text.
        image: Image tokens.
        is_update: With the backward pass.
        checkpoints: Blocks are computed again in the backward pass.
    """
    config, d, n = size.config, size.width, image + size.text
    double, single = config["num_layers"], config["num_single_layers"]
    dense = (double + single) * 2 * 12 * d * d * n
    modulation = 2 * d * d * (12 * double + 3 * single + 2)
    ends = 2 * d * (2 * image * config["in_channels"] + size.text * config["joint_attention_dim"])
    embedders = 2 * d * (256 + d) * (1 + config["guidance_embeds"])
    embedders += 2 * d * (config["pooled_projection_dim"] + d)
    attention = (double + single) * 4 * n * n * d
    blocks = dense + attention
    forward = blocks + modulation + ends + embedders
    if not is_update:
        return forward
    return forward + dense + 2 * attention + checkpoints * blocks


def build(
    size: Size,
    precision: str,
    pixels: int,
    device: torch.device,
    lora: LoraConfig,
    options: FluxModel | None = None,
    decode: Callable[[Tensor], Tensor] = lambda latents: latents,
) -> FluxPolicy:
    """A policy with random weights, with checkpointing unless ``options`` has it off.

    Raises:
        ImportError: nf4 is asked for without bitsandbytes.
    """
    diffusers = require("diffusers", "To build FLUX")
    with torch.device("meta"):
        model: Any = diffusers.FluxTransformer2DModel(**size.config)
    dtype = torch.float32 if device.type == "cpu" and precision == "bf16" else torch.bfloat16
    model = model.to(dtype)
    if precision == "fp8":
        replace_linears(model, lambda name: "blocks." in name and "norm" not in name)
    if precision == "nf4":
        _use_nf4(model)
    generator = torch.Generator(device).manual_seed(0)
    _fill(model, dtype, device, generator)
    speed_up(model, options or FluxModel(), FluxPolicy.blocks)
    config = size.config
    features = torch.randn(1, size.text, config["joint_attention_dim"], device=device)
    pooled = torch.randn(1, config["pooled_projection_dim"], device=device)
    return FluxPolicy(
        name=precision,
        transformer=model,
        encode=lambda text: (features, pooled),
        decode=decode,
        latent_shape=(size.channels, pixels // 8, pixels // 8),
        lora=lora,
        guidance=3.5 if config["guidance_embeds"] else None,
        device=device,
    )


def random_decoder(size: Size, device: torch.device) -> Any:
    """FLUX.1's picture decoder with random weights: latents -> pictures (B, H, W, 3).

    For the very small size the decoder is small, too.
    """
    kind = require("diffusers", "To build a VAE").AutoencoderKL
    widths = (128, 256, 512, 512) if size is FLUX else (32, 32, 32, 32)
    with device:
        vae = kind(
            block_out_channels=widths,
            down_block_types=["DownEncoderBlock2D"] * 4,
            up_block_types=["UpDecoderBlock2D"] * 4,
            layers_per_block=2,
            latent_channels=size.channels,
            scaling_factor=0.3611,
            shift_factor=0.1159,
            use_quant_conv=False,
            use_post_quant_conv=False,
        )
    return decoder(vae.requires_grad_(False).eval().to(torch.bfloat16), KL)


def _use_nf4(model: nn.Module) -> None:
    bnb = require("bitsandbytes", "To keep weights as nf4")
    for name, child in list(model.named_modules()):
        if isinstance(child, nn.Linear) and "blocks." in name:
            parent, _, leaf = name.rpartition(".")
            layer = bnb.nn.Linear4bit(
                child.in_features,
                child.out_features,
                bias=child.bias is not None,
                compute_dtype=torch.bfloat16,
                quant_type="nf4",
                device="meta",
            )
            setattr(model.get_submodule(parent), leaf, layer)


@torch.no_grad()
def _fill(
    model: nn.Module, dtype: torch.dtype, device: torch.device, generator: torch.Generator
) -> None:
    """Give every tensor of an empty model values, one layer at a time."""

    def random(tensor: Tensor) -> Tensor:
        values = torch.randn(tensor.shape, device=device, generator=generator, dtype=dtype)
        return values * 0.02 if tensor.ndim > 1 else values * 0.02 + 1.0

    for module in model.modules():
        if isinstance(module, Fp8Linear):
            weight, scale = to_fp8(random(module.weight))
            module.weight = nn.Parameter(weight, requires_grad=False)
            module.scale_weight = scale
        for name, parameter in list(module.named_parameters(recurse=False)):
            if not parameter.is_meta:
                continue
            values = random(parameter)
            if type(parameter).__name__ == "Params4bit":
                kind: Any = type(parameter)
                new = kind(values, requires_grad=False, quant_type="nf4").to(device)
            else:
                new = nn.Parameter(values, requires_grad=False)
            setattr(module, name, new)

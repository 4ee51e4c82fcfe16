"""One LoRA of FLUX.1, written as each program names it, by rules written here a second time."""

from __future__ import annotations

import re

import torch

#: Leaf of a native layer -> its pieces in diffusers, with their rows in units of the hidden size.
DOUBLE = {
    "img_mod.lin": {"norm1.linear": 6},
    "txt_mod.lin": {"norm1_context.linear": 6},
    "img_attn.qkv": {"attn.to_q": 1, "attn.to_k": 1, "attn.to_v": 1},
    "txt_attn.qkv": {"attn.add_q_proj": 1, "attn.add_k_proj": 1, "attn.add_v_proj": 1},
    "img_attn.proj": {"attn.to_out.0": 1},
    "txt_attn.proj": {"attn.to_add_out": 1},
    "img_mlp.0": {"ff.net.0.proj": 4},
    "img_mlp.2": {"ff.net.2": 1},
    "txt_mlp.0": {"ff_context.net.0.proj": 4},
    "txt_mlp.2": {"ff_context.net.2": 1},
}
SINGLE = {
    "modulation.lin": {"norm.linear": 3},
    "linear1": {"attn.to_q": 1, "attn.to_k": 1, "attn.to_v": 1, "proj_mlp": 4},
    "linear2": {"proj_out": 1},
}
INPUTS = {"img_mlp.2": 4, "txt_mlp.2": 4, "linear2": 5}
OUTSIDE = {
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "final_layer.linear": "proj_out",
    "time_in.in_layer": "time_text_embed.timestep_embedder.linear_1",
}


def native_layers(hidden, *, double=1, single=1, rank=3, alpha=1.5, seed=0, outside=None):
    """Native module -> A, B and alpha, of every linear layer of the blocks.

    ``outside``: name -> (inputs, outputs) of layers outside of them.
    """
    generator = torch.Generator().manual_seed(seed)
    layers = {}
    for blocks, count, table in (
        ("double_blocks", double, DOUBLE),
        ("single_blocks", single, SINGLE),
    ):
        for index in range(count):
            for leaf, pieces in table.items():
                shape = (INPUTS.get(leaf, 1) * hidden, sum(pieces.values()) * hidden)
                layers[f"{blocks}.{index}.{leaf}"] = shape
    layers |= outside or {}
    return {
        name: (
            torch.randn(rank, inputs, generator=generator) / 8,
            torch.randn(outputs, rank, generator=generator) / 8,
            alpha,
        )
        for name, (inputs, outputs) in layers.items()
    }


def pieces_of(native):
    """The same function as diffusers' modules -> A, B and alpha; pieces share an A."""
    out = {}
    for name, (a, b, alpha) in native.items():
        kind, index, leaf = (name.split(".", 2) + ["", ""])[:3]
        table = {"double_blocks": DOUBLE, "single_blocks": SINGLE}.get(kind)
        if table is None:
            out[OUTSIDE[name]] = (a, b, alpha)
            continue
        unit, row = len(b) // sum(table[leaf].values()), 0
        blocks = "transformer_blocks" if kind == "double_blocks" else "single_transformer_blocks"
        for piece, units in table[leaf].items():
            rows = b[row : row + units * unit]
            out[f"{blocks}.{index}.{piece}"] = (a, rows, alpha)
            row += units * unit
    return out


def deltas(layers):
    """Module -> the dense update (alpha / r) B A."""
    return {name: b @ a * (alpha / len(a)) for name, (a, b, alpha) in layers.items()}


def _written(layers, prefix, *, flat=False, down=".lora_A", up=".lora_B", alpha=True):
    out = {}
    for module, (a, b, number) in layers.items():
        name = prefix + (module.replace(".", "_") if flat else module)
        out[f"{name}{down}.weight"] = a.clone()
        out[f"{name}{up}.weight"] = b.clone() if alpha else b * (number / len(a))
        if alpha:
            out[f"{name}.alpha"] = torch.tensor(number)
    return out


_KOHYA = {"flat": True, "down": ".lora_down", "up": ".lora_up"}
_TEXT = {
    "lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": torch.ones(2, 4),
    "lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_up.weight": torch.ones(4, 2),
    "lora_te1_text_model_encoder_layers_0_mlp_fc1.alpha": torch.tensor(2.0),
}
_DIFFUSERS_TEXT = {
    "text_encoder.text_model.encoder.layers.0.mlp.fc1.lora_A.weight": torch.ones(2, 4),
    "text_encoder.text_model.encoder.layers.0.mlp.fc1.lora_B.weight": torch.ones(4, 2),
}
_OMI_TEXT = {
    **{
        f"{name}.lora_{side}.weight": torch.ones(2, 2)
        for name in ("clip_l.text_model.encoder.layers.0.mlp.fc1", "t5.encoder.block.0.layer.0")
        for side in ("down", "up")
    },
    "bundle_emb.a fox.clip_l": torch.ones(1, 4),
}
_OLD = {"down": ".lora.down", "up": ".lora.up"}


def numbered(native):
    """The same function as OneTrainer's OMI names it: parts of stacked layers have numbers."""
    out = {}
    for name, (a, b, alpha) in native.items():
        pieces = (DOUBLE | SINGLE).get(name.split(".", 2)[-1], {name: 1})
        if len(pieces) == 1:
            out[name.replace("img_in", "img_in.proj")] = (a, b, alpha)
            continue
        rows = [units * (len(b) // sum(pieces.values())) for units in pieces.values()]
        for number, part in enumerate(b.split(rows)):
            out[f"{name}.{number}"] = (a, part, alpha)
    return out


LAYOUTS = {
    "native": lambda n: _written(n, "diffusion_model."),
    "native without alpha": lambda n: _written(n, "diffusion_model.", alpha=False),
    "diffusers": lambda n: _written(pieces_of(n), "transformer.", alpha=False),
    "diffusers with a text encoder": lambda n: (
        _written(pieces_of(n), "transformer.", alpha=False) | _DIFFUSERS_TEXT
    ),
    "diffusers, old names of factors": lambda n: _written(
        pieces_of(n), "transformer.", alpha=False, **_OLD
    ),
    "a bare adapter of diffusers": lambda n: _written(pieces_of(n), "", alpha=False),
    "kohya": lambda n: _written(n, "lora_unet_", **_KOHYA),
    "kohya with a text encoder": lambda n: _written(n, "lora_unet_", **_KOHYA) | _TEXT,
    "musubi with diffusers' names": lambda n: _written(pieces_of(n), "lora_unet_", **_KOHYA),
    "OneTrainer": lambda n: _written(pieces_of(n), "lora_transformer_", **_KOHYA) | _TEXT,
    "OneTrainer, OMI": lambda n: (
        _written(numbered(n), "transformer.", down=".lora_down", up=".lora_up") | _OMI_TEXT
    ),
    "peft": lambda n: _written(pieces_of(n), "base_model.model.", alpha=False),
    "peft, named adapter": lambda n: _written(
        pieces_of(n), "base_model.model.", down=".lora_A.default", up=".lora_B.default", alpha=False
    ),
    "peft on native names": lambda n: _written(n, "base_model.model.", alpha=False),
    "SimpleTuner, old": lambda n: _written(
        pieces_of(n), "transformer.base_model.model.", alpha=False
    ),
    "SimpleTuner, LyCORIS": lambda n: _written(pieces_of(n), "lycoris_", **_KOHYA),
}
"""Name -> function of native layers that gives the tensors of a file."""

_XLABS = {
    "img_attn.qkv": "qkv_lora1",
    "txt_attn.qkv": "qkv_lora2",
    "img_attn.proj": "proj_lora1",
    "txt_attn.proj": "proj_lora2",
    "linear2": "proj_lora",
}


def xlabs(native):
    """The layers that XLabs trains, in native names, and the file it makes of them.

    Of linear1 it has the rows of Q, K and V only.
    """
    kept, file = {}, {}
    for name, (a, b, alpha) in native.items():
        block, leaf = re.fullmatch(r"(\w+\.\d+)\.(.+)", name).groups()
        b = b * (alpha / len(a))
        if leaf in _XLABS:
            target = _XLABS[leaf]
            kept[name] = (a, b, float(len(a)))
        elif leaf == "linear1":
            target, unit = "qkv_lora", len(b) // 7
            kept[name] = (a, torch.cat([b[: 3 * unit], torch.zeros(4 * unit, b.shape[1])]), len(a))
            b = b[: 3 * unit]
        else:
            continue
        file[f"{block}.processor.{target}.down.weight"] = a
        file[f"{block}.processor.{target}.up.weight"] = b
    return kept, file

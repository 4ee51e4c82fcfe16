"""Small FLUX.1 models as files and folders, with the names that real ones have.

Everything is built from diffusers' and transformers' own models with random weights; native names
are written out here by hand, independently of the loader.
"""

from __future__ import annotations

import json

import torch
from safetensors.torch import save_file

CHANNELS, TEXT, POOLED, HEAD = 4, 32, 64, 128
T5_WORDS = 30
PROMPTS = ("a red fox", "two blue birds")


def transformer(guidance=True, seed=0):
    from diffusers import FluxTransformer2DModel

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return FluxTransformer2DModel(
            in_channels=4 * CHANNELS,
            num_layers=2,
            num_single_layers=2,
            attention_head_dim=HEAD,
            num_attention_heads=1,
            joint_attention_dim=TEXT,
            pooled_projection_dim=POOLED,
            guidance_embeds=guidance,
        ).eval()


def native_transformer(model):
    """Black Forest Labs' names and fused layers."""
    own = dict(model.state_dict())
    out = {}

    def put(name, *pieces):
        for end in ("weight", "bias"):
            out[f"{name}.{end}"] = torch.cat([own.pop(f"{piece}.{end}") for piece in pieces])

    for name, embedder in (
        ("time_in", "timestep"),
        ("vector_in", "text"),
        ("guidance_in", "guidance"),
    ):
        if f"time_text_embed.{embedder}_embedder.linear_1.weight" in own:
            put(f"{name}.in_layer", f"time_text_embed.{embedder}_embedder.linear_1")
            put(f"{name}.out_layer", f"time_text_embed.{embedder}_embedder.linear_2")
    put("img_in", "x_embedder")
    put("txt_in", "context_embedder")
    put("final_layer.linear", "proj_out")
    for end in ("weight", "bias"):
        scale, shift = own.pop(f"norm_out.linear.{end}").chunk(2)
        out[f"final_layer.adaLN_modulation.1.{end}"] = torch.cat([shift, scale])
    for i in range(model.config.num_layers):
        here, there = f"transformer_blocks.{i}", f"double_blocks.{i}"
        for side, norm, qkv, proj, mlp, q in (
            ("img", "norm1", ("to_q", "to_k", "to_v"), "to_out.0", "ff", ""),
            (
                "txt",
                "norm1_context",
                ("add_q_proj", "add_k_proj", "add_v_proj"),
                "to_add_out",
                "ff_context",
                "added_",
            ),
        ):
            put(f"{there}.{side}_mod.lin", f"{here}.{norm}.linear")
            put(f"{there}.{side}_attn.qkv", *(f"{here}.attn.{name}" for name in qkv))
            put(f"{there}.{side}_attn.proj", f"{here}.attn.{proj}")
            put(f"{there}.{side}_mlp.0", f"{here}.{mlp}.net.0.proj")
            put(f"{there}.{side}_mlp.2", f"{here}.{mlp}.net.2")
            for which, short in (("query", "q"), ("key", "k")):
                norm_name = f"{there}.{side}_attn.norm.{which}_norm.scale"
                out[norm_name] = own.pop(f"{here}.attn.norm_{q}{short}.weight")
    for i in range(model.config.num_single_layers):
        here, there = f"single_transformer_blocks.{i}", f"single_blocks.{i}"
        put(f"{there}.modulation.lin", f"{here}.norm.linear")
        attention = [f"{here}.attn.to_{name}" for name in "qkv"]
        put(f"{there}.linear1", *attention, f"{here}.proj_mlp")
        put(f"{there}.linear2", f"{here}.proj_out")
        out[f"{there}.norm.query_norm.scale"] = own.pop(f"{here}.attn.norm_q.weight")
        out[f"{there}.norm.key_norm.scale"] = own.pop(f"{here}.attn.norm_k.weight")
    assert not own, f"forgotten: {sorted(own)}"
    return {name: tensor.clone() for name, tensor in out.items()}


def scaled_fp8(native):
    """As ComfyUI's scaled fp8 files: block weights in 8 bits beside a scale and an input scale."""
    out = {"scaled_fp8": torch.empty(2, dtype=torch.float8_e4m3fn)}
    for name, tensor in native.items():
        if "_blocks." not in name or not name.endswith(".weight"):
            out[name] = tensor
            continue
        scale = tensor.abs().max() / 448
        out[name] = (tensor / scale).to(torch.float8_e4m3fn)
        layer = name.removesuffix(".weight")
        out[f"{layer}.scale_weight"] = scale.reshape(1)
        out[f"{layer}.scale_input"] = torch.ones(1)
    return out


def vae(seed=1):
    from diffusers import AutoencoderKL

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return AutoencoderKL(
            block_out_channels=[32, 64, 64, 64],
            down_block_types=["DownEncoderBlock2D"] * 4,
            up_block_types=["UpDecoderBlock2D"] * 4,
            layers_per_block=1,
            latent_channels=CHANNELS,
            scaling_factor=0.3611,
            shift_factor=0.1159,
            use_quant_conv=False,
            use_post_quant_conv=False,
        ).eval()


def native_vae(model):
    """Names of ae.safetensors."""
    out = {}
    for name, tensor in model.state_dict().items():
        words = name.split(".")
        if words[1] in ("down_blocks", "up_blocks"):
            level = int(words[2]) if words[1] == "down_blocks" else 3 - int(words[2])
            words[1:3] = [words[1].removesuffix("_blocks"), str(level)]
            if words[3] == "resnets":
                words[3] = "block"
            else:
                words[3:5] = [words[3].removesuffix("rs").removesuffix("le") + "le"]
        elif words[1] == "mid_block":
            words[1] = "mid"
            if words[2] == "resnets":
                words[2:4] = [f"block_{int(words[3]) + 1}"]
            else:
                words[2:4] = ["attn_1"]
                leaf = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v"}
                if words[3] == "to_out":
                    words[3:5] = ["proj_out"]
                else:
                    words[3] = leaf[words[3]]
                if words[-1] == "weight" and tensor.ndim == 2:
                    tensor = tensor[:, :, None, None]
        elif words[1] == "conv_norm_out":
            words[1] = "norm_out"
        words = ["nin_shortcut" if word == "conv_shortcut" else word for word in words]
        out[".".join(words)] = tensor.clone()
    return out


def clip(words=300):
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.random.fork_rng():
        torch.manual_seed(2)
        return CLIPTextModel(
            CLIPTextConfig(
                vocab_size=words,
                hidden_size=POOLED,
                projection_dim=POOLED,
                intermediate_size=96,
                num_hidden_layers=2,
                num_attention_heads=1,
                max_position_embeddings=16,
                hidden_act="quick_gelu",
                bos_token_id=words - 2,
                eos_token_id=words - 1,
                pad_token_id=words - 1,
            )
        ).eval()


def clip_file(model):
    """clip_l.safetensors: transformers' older names, which have text_model. in front."""
    return {
        "text_model." + name.removeprefix("text_model."): tensor.clone()
        for name, tensor in model.state_dict().items()
    } | {"logit_scale": torch.ones(())}


def t5():
    from transformers import T5Config, T5EncoderModel

    with torch.random.fork_rng():
        torch.manual_seed(3)
        return T5EncoderModel(
            T5Config(
                vocab_size=T5_WORDS,
                d_model=TEXT,
                d_kv=16,
                d_ff=64,
                num_layers=2,
                num_heads=3,
                feed_forward_proj="gated-gelu",
            )
        ).eval()


def t5_file(model):
    """t5xxl_*.safetensors: the embedding stands there once."""
    return {
        name: tensor.clone()
        for name, tensor in model.state_dict().items()
        if name != "encoder.embed_tokens.weight"
    }


def write_clip_tokenizer(folder):
    """Every byte is a token; returns how many tokens there are."""
    folder.mkdir(parents=True)
    printable = [chr(n) for n in range(33, 127)]
    words = [*printable, *(f"{c}</w>" for c in printable), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({w: i for i, w in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return len(words)


def write_t5_tokenizer(folder):
    """Letters as tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    folder.mkdir(parents=True)
    letters = [("\u2581", -2.0), *((chr(n), -3.0) for n in range(97, 123))]
    words = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *letters]
    tokenizer = Tokenizer(models.Unigram(words, unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing("$A </s>", None, [("</s>", 1)])
    assert len(words) == T5_WORDS
    tokenizer.save(str(folder / "tokenizer.json"))


def write_single_files(folder):
    """All files a ComfyUI user has; returns the keys of the [model] table."""
    clip_words = write_clip_tokenizer(folder / "sd1_tokenizer")
    write_t5_tokenizer(folder / "t5_tokenizer")
    parts = {
        "transformer": native_transformer(transformer()),
        "vae": native_vae(vae()),
        "clip": clip_file(clip(clip_words)),
        "t5": t5_file(t5()),
    }
    for name, tensors in parts.items():
        save_file(tensors, folder / f"{name}.safetensors")
    return {name: str(folder / f"{name}.safetensors") for name in parts} | {
        "clip_tokenizer": str(folder / "sd1_tokenizer"),
        "t5_tokenizer": str(folder / "t5_tokenizer"),
    }


def write_pipeline(folder):
    """The same models as a diffusers pipeline."""
    clip_words = write_clip_tokenizer(folder / "tokenizer")
    write_t5_tokenizer(folder / "tokenizer_2")
    parts = {
        "transformer": transformer(),
        "vae": vae(),
        "text_encoder": clip(clip_words),
        "text_encoder_2": t5(),
    }
    for name, model in parts.items():
        model.save_pretrained(folder / name)
    (folder / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    return {"path": str(folder)}

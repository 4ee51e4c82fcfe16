"""The other flow models of pictures: which ComfyUI knows them depends on its version."""

from __future__ import annotations

import torch

from .architecture import FLUX, TOKENS, Architecture, no_pooled, pooled


def _mask(generator: torch.Generator) -> dict[str, torch.Tensor]:
    return {"attention_mask": torch.ones(1, TOKENS, dtype=torch.int64)}


def _glyphs(generator: torch.Generator) -> dict[str, torch.Tensor]:
    return {"conditioning_byt5small": torch.randn(1, 3, 1472, generator=generator)}


def _llama(generator: torch.Generator) -> dict[str, torch.Tensor]:
    return {
        "pooled_output": torch.randn(1, 16, generator=generator),
        "conditioning_llama3": torch.randn(1, 2, 5, 32, generator=generator),
    }


_HUNYUAN = {
    "image_model": "hunyuan_video", "in_channels": 64, "patch_size": [1, 1], "out_channels": 64,
    "vec_in_dim": None, "axes_dim": [16, 16], "context_in_dim": 32, "hidden_size": 64,
    "mlp_ratio": 2.0, "num_heads": 2, "theta": 256, "qkv_bias": True, "vision_in_dim": None,
    "use_cond_type_embedding": False, "meanflow_sum": False,
}  # fmt: skip
_COSMOS = {
    "max_img_h": 240, "max_img_w": 240, "max_frames": 128, "in_channels": 16, "out_channels": 16,
    "patch_spatial": 2, "patch_temporal": 1, "model_channels": 64, "concat_padding_mask": True,
    "crossattn_emb_channels": 1024, "pos_emb_cls": "rope3d", "pos_emb_learnable": True,
    "pos_emb_interpolation": "crop", "min_fps": 1, "max_fps": 30, "use_adaln_lora": True,
    "adaln_lora_dim": 16, "num_blocks": 2, "num_heads": 2, "extra_per_block_abs_pos_emb": False,
    "rope_h_extrapolation_ratio": 4.0, "rope_w_extrapolation_ratio": 4.0,
    "rope_t_extrapolation_ratio": 1.0, "extra_h_extrapolation_ratio": 1.0,
    "extra_w_extrapolation_ratio": 1.0, "extra_t_extrapolation_ratio": 1.0,
    "rope_enable_fps_modulation": False,
}  # fmt: skip
_NEXT = {
    "patch_size": 2, "in_channels": 16, "cap_feat_dim": 32, "n_layers": 2, "n_refiner_layers": 1,
    "qk_norm": True, "dim": 64, "n_heads": 2, "n_kv_heads": 1, "axes_dims": [8, 12, 12],
    "axes_lens": [64, 64, 64], "rope_theta": 10000.0, "ffn_dim_multiplier": 1.0, "multiple_of": 32,
}  # fmt: skip
_OMNIGEN = {
    "patch_size": 2, "in_channels": 16, "out_channels": None, "hidden_size": 96, "num_layers": 2,
    "num_refiner_layers": 1, "num_attention_heads": 2, "num_kv_heads": 1, "multiple_of": 32,
    "ffn_dim_multiplier": None, "norm_eps": 1e-5, "axes_dim_rope": [16, 16, 16],
    "axes_lens": [64, 64, 64], "timestep_scale": 1000.0,
}  # fmt: skip

OTHERS = {
    "krea2": Architecture(
        kind="Krea2",
        unet_config={
            "image_model": "krea2", "features": 64, "tdim": 32, "txtdim": 16, "heads": 2,
            "kvheads": 1, "multiplier": 1, "layers": 2, "patch": 2, "channels": 16,
            "txtlayers": 3, "txtheads": 1, "txtkvheads": 1,
        },
        latent=(16, 1, 8, 8),
        context=48,
    ),
    "flux2_klein": Architecture(
        kind="Flux2",
        unet_config={
            **FLUX, "image_model": "flux2", "patch_size": 1, "in_channels": 128,
            "out_channels": 128, "depth": 1, "depth_single_blocks": 1, "vec_in_dim": None,
            "mlp_ratio": 3.0, "axes_dim": [8, 8, 8, 8], "theta": 2000, "qkv_bias": False,
            "global_modulation": True, "mlp_silu_act": True, "ops_bias": False,
            "default_ref_method": "index", "ref_index_scale": 10.0, "txt_ids_dims": [3],
            "guidance_embed": False,
        },
        latent=(128, 4, 4),
        extras=no_pooled,
    ),
    "longcat": Architecture(
        kind="LongCatImage",
        unet_config={
            **FLUX, "image_model": "flux", "guidance_embed": False, "vec_in_dim": None,
            "txt_ids_dims": [1, 2],
        },
    ),
    "schnell": Architecture(
        kind="FluxSchnell",
        unet_config={**FLUX, "image_model": "flux", "guidance_embed": False},
        extras=pooled(16),
    ),
    "ovis": Architecture(
        kind="LongCatImage",  # which knows yak_mlp; ComfyUI loads Ovis-Image as Flux
        unet_config={
            **FLUX, "image_model": "flux", "yak_mlp": True, "txt_norm": True,
            "guidance_embed": False, "vec_in_dim": None,
        },
        extras=no_pooled,
    ),
    "anima": Architecture(
        kind="Anima",
        unet_config={"image_model": "anima", **_COSMOS},
        latent=(16, 1, 8, 8),
        context=1024,
    ),
    "ernie": Architecture(
        kind="ErnieImage",
        unet_config={
            "image_model": "ernie", "hidden_size": 64, "num_attention_heads": 2, "num_layers": 2,
            "ffn_hidden_size": 128, "in_channels": 128, "out_channels": 128, "patch_size": 1,
            "text_in_dim": 32, "rope_axes_dim": (8, 12, 12),
        },
        latent=(128, 4, 4),
    ),
    "ideogram4": Architecture(
        kind="Ideogram4",
        unet_config={
            "image_model": "ideogram4", "in_channels": 128, "num_layers": 2,
            "num_attention_heads": 2, "attention_head_dim": 32, "intermediate_size": 96,
            "adaln_dim": 16, "llm_features_dim": 32, "rope_theta": 5000000,
            "mrope_section": [6, 5, 5], "norm_eps": 1e-5,
        },
        latent=(128, 4, 4),
    ),
    "hunyuan_image": Architecture(
        kind="HunyuanImage21",
        unet_config={
            **_HUNYUAN, "meanflow": False, "depth": 2, "depth_single_blocks": 2, "byt5": False,
            "guidance_embed": False,
        },
        latent=(64, 4, 4),
    ),
    "hunyuan_image_distilled": Architecture(
        kind="HunyuanImage21",
        unet_config={
            **_HUNYUAN, "meanflow": True, "depth": 1, "depth_single_blocks": 1, "byt5": True,
            "guidance_embed": True,
        },
        latent=(64, 4, 4),
        extras=_glyphs,
    ),
    "hidream": Architecture(
        kind="HiDream",
        unet_config={
            "image_model": "hidream", "patch_size": 2, "in_channels": 16, "out_channels": 16,
            "num_layers": 2, "num_single_layers": 2, "attention_head_dim": 32,
            "num_attention_heads": 2, "caption_channels": [32, 32], "text_emb_dim": 16,
            "num_routed_experts": 4, "num_activated_experts": 2, "axes_dims_rope": [8, 12, 12],
            "max_resolution": [16, 16], "llama_layers": [0, 1, 1, 1],
        },
        extras=_llama,
    ),
    "lumina2": Architecture(
        kind="Lumina2", unet_config={"image_model": "lumina2", **_NEXT}, extras=_mask
    ),
    "z_image_pixel": Architecture(
        kind="ZImagePixelSpace",
        unet_config={
            **_NEXT, "image_model": "zimage_pixel", "patch_size": 8, "in_channels": 3, "dim": 256,
            "n_heads": 8, "n_kv_heads": 8, "rope_theta": 256.0, "ffn_dim_multiplier": 0.25,
            "z_image_modulation": True, "time_scale": 1000.0, "pad_tokens_multiple": 8,
            "decoder_hidden_size": 32, "decoder_num_res_blocks": 2, "decoder_max_freqs": 4,
            "decoder_in_channels": 192,
        },
        latent=(3, 32, 32),
    ),
    "chroma_radiance": Architecture(
        kind="ChromaRadiance",
        unet_config={
            **{key: value for key, value in FLUX.items() if key != "guidance_embed"},
            "image_model": "chroma_radiance", "in_channels": 3, "out_channels": 3,
            "patch_size": 16, "in_dim": 64, "out_dim": 64, "hidden_dim": 64, "n_layers": 1,
            "vec_in_dim": None, "nerf_hidden_size": 16, "nerf_mlp_ratio": 2, "nerf_depth": 2,
            "nerf_max_freqs": 4, "nerf_tile_size": 512, "nerf_final_head_type": "conv",
            "nerf_embedder_dtype": torch.float32, "use_x0": False, "use_sequential_txt_ids": False,
        },
        latent=(3, 32, 32),
        extras=no_pooled,
    ),
    "omnigen2": Architecture(
        kind="Omnigen2",
        unet_config={"image_model": "omnigen2", **_OMNIGEN, "text_feat_dim": 32},
        extras=_mask,
    ),
    "boogu": Architecture(
        kind="Boogu",
        unet_config={
            **_OMNIGEN, "image_model": "boogu", "num_layers": 3, "num_double_stream_layers": 1,
            "instruction_feat_dim": 32,
        },
        extras=_mask,
    ),
    "kandinsky5": Architecture(
        kind="Kandinsky5Image",
        unet_config={
            "image_model": "kandinsky5", "in_visual_dim": 16, "out_visual_dim": 16,
            "in_text_dim": 32, "in_text_dim2": 16, "time_dim": 32, "model_dim": 64, "ff_dim": 96,
            "visual_embed_dim": 64, "patch_size": (1, 2, 2), "num_text_blocks": 1,
            "num_visual_blocks": 2, "axes_dims": (8, 12, 12), "rope_scale_factor": (1.0, 1.0, 1.0),
        },
        extras=pooled(16),
    ),
    "lens": Architecture(
        kind="Lens",
        unet_config={
            "image_model": "lens", "in_channels": 128, "out_channels": 32, "num_layers": 2,
            "attention_head_dim": 32, "num_attention_heads": 2, "enc_hidden_dim": 16,
            "axes_dims_rope": (8, 12, 12), "multi_layer_encoder_feature": True,
            "selected_layer_index": (0, 1),
        },
        latent=(128, 4, 4),
    ),
    "pixeldit": Architecture(
        kind="PixelDiTT2I",
        unet_config={
            "image_model": "pixeldit_t2i", "in_channels": 3, "num_groups": 2, "hidden_size": 64,
            "pixel_hidden_size": 8, "pixel_attn_hidden_size": 64, "pixel_num_groups": 2,
            "patch_depth": 2, "pixel_depth": 2, "patch_size": 8, "txt_embed_dim": 32,
            "txt_max_length": 16,
        },
        latent=(3, 16, 16),
    ),
    "auraflow": Architecture(
        kind="AuraFlow",
        unet_config={
            "in_channels": 4, "out_channels": 4, "patch_size": 2, "dim": 64, "n_layers": 3,
            "n_double_layers": 1, "n_heads": 2, "global_conddim": 64, "cond_seq_dim": 32,
            "max_seq": 64,
        },
        latent=(4, 8, 8),
    ),
}  # fmt: skip

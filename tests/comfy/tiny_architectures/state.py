"""What must be the same about a MODEL after it was borrowed for training."""

from __future__ import annotations

import hashlib
from typing import Any

import torch

_LAST_CALL = {"affline_emb", "affline_scale_log_info", "crossattn_emb"}
"""What Cosmos and Anima note of their last call, in ordinary sampling too."""


def _bytes(tensor: torch.Tensor) -> bytes:
    if hasattr(tensor, "__tensor_flatten__"):
        return b"".join(_bytes(getattr(tensor, name)) for name in tensor.__tensor_flatten__()[0])
    return (
        tensor.as_subclass(torch.Tensor)
        .detach()
        .cpu()
        .contiguous()
        .flatten()
        .view(torch.uint8)
        .numpy()
        .tobytes()
    )


def snapshot(model) -> dict[str, Any]:
    """All that must be the same after training: bytes, identities, flags, hooks, forwards."""
    module = model.model
    digest = hashlib.sha256()
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(_bytes(tensor))
    return {
        "sha256": digest.hexdigest(),
        "parameters": {n: (id(p), p.requires_grad) for n, p in module.named_parameters()},
        "modules": [(n, id(m), type(m), m.training) for n, m in module.named_modules()],
        "dicts": [sorted(child.__dict__.keys() - _LAST_CALL) for child in module.modules()],
        "hooks": [len(child._forward_hooks) for child in module.modules()],
        "options": repr(model.model_options),
        "injections": (list(model.injections), model.is_injected),
        "patches": (sorted(model.patches), model.patches_uuid),
    }

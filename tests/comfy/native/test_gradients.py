"""LoRA gradients through ComfyUI's FLUX blocks equal finite differences, and the test can fail."""

from __future__ import annotations

import torch

from .models import double, make_policy, noise, random_model

KINDS = (
    "double_blocks.0.img_attn.qkv",
    "double_blocks.0.img_attn.proj",
    "double_blocks.1.txt_attn.qkv",
    "double_blocks.0.txt_attn.proj",
    "double_blocks.0.img_mlp.0",
    "double_blocks.1.img_mlp.2",
    "double_blocks.0.txt_mlp.0",
    "double_blocks.0.txt_mlp.2",
    "double_blocks.0.img_mod.lin",
    "single_blocks.0.linear1",
    "single_blocks.2.linear2",
    "single_blocks.1.modulation.lin",
)


def _float64_policy(lab, **options):
    """A float64 policy whose B factors are not zero, so that A has gradients too."""
    with torch.inference_mode():  # as in an execute(): the weights are inference tensors
        policy = make_policy(lab, double(random_model(lab)), **options)
    generator = torch.Generator().manual_seed(3)
    for parameter in policy.adapter.parameters():
        values = 0.2 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.data = values
    return policy


def _loss(velocity):
    x_t, target = noise(2, 7, torch.float64), noise(2, 8, torch.float64)
    return ((velocity(x_t, 0.6, "p0") - target) ** 2).mean() * 10


def _worst_error(policy, step: float = 1e-2) -> tuple[float, str]:
    """Compare with 4-point central differences along the gradient plus a random direction."""
    tensors = policy.adapter._tensors()
    chosen = [name for name in tensors if name.rpartition(".lora_")[0] in KINDS]
    assert len(chosen) == 2 * len(KINDS)
    generator = torch.Generator().manual_seed(11)
    errors = {}

    def work(velocity):
        _loss(velocity).backward()
        with torch.no_grad():
            for name in chosen:
                tensor = tensors[name]
                random = torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
                direction = tensor.grad / tensor.grad.norm() + random / random.norm()
                direction /= direction.norm()
                values = {}
                for k in (1, -1, 2, -2):
                    tensor.add_(direction, alpha=k * step)
                    values[k] = float(_loss(velocity))
                    tensor.sub_(direction, alpha=k * step)
                numeric = (8 * (values[1] - values[-1]) - (values[2] - values[-2])) / (12 * step)
                exact = float((tensor.grad * direction).sum())
                errors[name] = abs(numeric - exact) / abs(exact)

    policy.run(work)
    worst = max(errors, key=errors.get)
    return errors[worst], worst


def test_gradients_equal_finite_differences(lab):
    error, name = _worst_error(_float64_policy(lab))
    print("worst relative error", error, name)
    assert error <= 1e-3, (error, name)


def test_the_check_fails_without_out_of_place_residuals(lab):
    """Negative control. Checkpointing hides the in-place residuals: wrong numbers, no exception."""
    adapter = lab.module("nodes.bridge.adapter")
    original = adapter.kept_or_recomputed

    def hidden(block, number, activations, forward):
        def run(args, kwargs):
            args = [a.clone() if torch.is_tensor(a) else a for a in args]
            kwargs = {k: v.clone() if k in ("img", "txt") else v for k, v in kwargs.items()}
            return forward(*args, **kwargs)

        def wrapped(*args, **kwargs):
            if not torch.is_grad_enabled():
                return forward(*args, **kwargs)
            return torch.utils.checkpoint.checkpoint(run, args, kwargs, use_reentrant=False)

        return wrapped

    adapter.kept_or_recomputed = hidden
    try:
        error, name = _worst_error(_float64_policy(lab))
    finally:
        adapter.kept_or_recomputed = original
    print("negative control", error, name)
    assert error > 1e-2, (error, name)


def test_without_the_mode_plain_backward_raises(lab):
    adapter = lab.module("nodes.bridge.adapter")
    original = adapter.kept_or_recomputed
    adapter.kept_or_recomputed = lambda block, number, activations, forward: forward
    try:
        _float64_policy(lab).run(lambda velocity: _loss(velocity).backward())
    except RuntimeError as error:
        assert "inplace" in str(error)
    else:
        raise AssertionError("in-place residuals went unnoticed: is the mode still needed?")
    finally:
        adapter.kept_or_recomputed = original


def test_float32_and_offloaded_weights_give_the_same_gradients(lab):
    """float32 agrees with float64; layers that fetch their weights again agree bit for bit."""
    adapter = lab.module("nodes.bridge.adapter")

    def gradients(policy, dtype):
        def work(velocity):
            x_t, target = noise(2, 7, dtype), noise(2, 8, dtype)
            ((velocity(x_t, 0.6, "p0") - target) ** 2).mean().backward()

        policy.run(work)
        return [parameter.grad for parameter in policy.adapter.parameters()]

    exact = _float64_policy(lab)
    start = {name: tensor.float() for name, tensor in exact.adapter.state_dict().items()}
    reference = gradients(exact, torch.float64)
    results = []
    for fetched in (False, True):
        with torch.inference_mode():
            policy = make_policy(lab, random_model(lab))
        policy.adapter.load_state_dict(start)
        original = adapter._is_fetched
        if fetched:
            adapter._is_fetched = lambda module, *_: hasattr(module, "comfy_cast_weights")
        try:
            results.append(gradients(policy, torch.float32))
        finally:
            adapter._is_fetched = original
    for a, b, c in zip(*results, reference, strict=True):
        assert torch.equal(a, b)
        assert float((a.double() - c).norm() / c.norm()) < 1e-3


def test_a_recomputed_block_sees_its_own_number(lab):
    """ComfyUI counts blocks in the options they share; patches on a block read the number there."""
    checkpointed = lab.module("nodes.bridge.autograd").checkpointed
    numbers = []

    def block(x, transformer_options=None):
        numbers.append(transformer_options["block_index"])
        transformer_options["written"] = True
        return torch.sin(x * (1 + transformer_options["block_index"]))

    start, options = torch.ones(3, requires_grad=True), {}
    x = start
    for index in range(3):
        options["block_index"] = index
        x = checkpointed(block)(x, transformer_options=options)
    assert options.pop("written")
    x.sum().backward()
    assert sorted(numbers) == [0, 0, 1, 1, 2, 2] and "written" not in options
    expected = torch.ones(3, requires_grad=True)
    torch.sin(3 * torch.sin(2 * torch.sin(expected))).sum().backward()
    assert torch.equal(start.grad, expected.grad)


def _written_in_place(x, w):
    """A block with every way of writing into tensors that backward still needs."""
    norm = torch.nn.functional.layer_norm
    x += torch.sin(norm(x, (8,)) @ w)
    x.addcmul_(torch.cos(norm(x, (8,)) @ w), x)
    x[:, 2:4] *= torch.sigmoid(norm(x, (8,))[:, 2:4] @ w[:2, :2])
    x[:, 4:].mul_(norm(x, (8,))[:, 4:])
    x[0] = norm(x, (8,))[1]
    y = norm(x, (8,)) @ w
    gate = torch.exp(y)
    torch.nn.functional.silu(y, inplace=True)
    y -= gate
    y /= 1 + gate.square()
    return x.add_(y)


def _written_anew(x, w):
    """The same function without any writing."""
    norm = torch.nn.functional.layer_norm
    x = x + torch.sin(norm(x, (8,)) @ w)
    x = x + torch.cos(norm(x, (8,)) @ w) * x
    x = torch.cat(
        [x[:, :2], x[:, 2:4] * torch.sigmoid(norm(x, (8,))[:, 2:4] @ w[:2, :2]), x[:, 4:]], 1
    )
    x = torch.cat([x[:, :4], x[:, 4:] * norm(x, (8,))[:, 4:]], 1)
    x = torch.cat([norm(x, (8,))[1:2], x[1:]])
    y = norm(x, (8,)) @ w
    gate = torch.exp(y)
    return x + (torch.nn.functional.silu(y) - gate) / (1 + gate.square())


def test_gradients_are_exact_whatever_a_block_writes_into(lab):
    checkpointed = lab.module("nodes.bridge.autograd").checkpointed
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(4, 8, generator=generator, dtype=torch.float64)
    w = torch.randn(8, 8, generator=generator, dtype=torch.float64).requires_grad_()

    def twice(block, x):
        return block(block(x * w.mean(), w), w)

    results = []
    for block in (_written_anew, checkpointed(_written_in_place)):
        out = twice(block, start)
        results.append((out.detach(), *torch.autograd.grad(out.square().mean(), w)))
    (value, gradient), (got, found) = results
    torch.testing.assert_close(got, value, rtol=1e-12, atol=0)
    torch.testing.assert_close(found, gradient, rtol=1e-10, atol=0)
    without = torch.utils.checkpoint.checkpoint
    out = twice(lambda x, w: without(lambda x: _written_in_place(x.clone(), w), x,
                                     use_reentrant=False), start)  # fmt: skip
    silent = torch.autograd.grad(out.square().mean(), w)[0]
    assert float((silent - gradient).norm() / gradient.norm()) > 0.1  # what the mode prevents


def test_writing_keeps_its_meaning(lab):
    """Names, views and buffers without gradient see what was written; other aliases do not."""
    mode = lab.module("nodes.bridge.autograd").KeepSaved
    weight, buffer = torch.ones(4, requires_grad=True), torch.zeros(4)
    with mode():
        a = weight * 2
        saved, same = a.detach(), a
        a += weight
        assert same is a and a.tolist() == [3.0] * 4 and saved.tolist() == [2.0] * 4
        view = a[1:3]
        view.mul_(weight[:2] * 2)
        assert a.tolist() == [3.0, 6.0, 6.0, 3.0] and view.tolist() == [6.0, 6.0]
        memory = buffer.data_ptr()
        buffer.copy_(torch.ones(4))
        assert buffer.data_ptr() == memory and buffer.tolist() == [1.0] * 4
    a.sum().backward()
    assert weight.grad.tolist() == [9.0, 12.0, 6.0, 3.0]

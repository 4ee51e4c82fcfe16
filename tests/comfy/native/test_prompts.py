"""Encoded prompts come from the disk only for the same text encoder, and bit for bit."""

from __future__ import annotations

import contextlib
import inspect
import tempfile
from pathlib import Path

import torch

from chunk_grpo_core.disk.names import safe_name

PROMPTS = (
    "a small red circle on a blue background",
    "two large green squares on a red background",
    "a large yellow cross on a white background",
)


@contextlib.contextmanager
def _clip(lab):
    """Yield the tiny CLIP, a function that counts its calls until now, and an empty folder."""
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        _, clip, _ = lab.module("nodes.bridge.tiny").load_tiny()
        calls = []
        original = clip.cond_stage_model.encode_token_weights

        def counted(tokens):
            calls.append(tokens)
            return original(tokens)

        clip.cond_stage_model.encode_token_weights = counted
        yield clip, lambda: len(calls), Path(folder)


def _encode(lab, clip, folder, prompts=PROMPTS, limit=10**8):
    cache = lab.module("chunk_grpo_core.models.tensor_cache").TensorCache(folder, limit)
    return lab.module("nodes.bridge.encoding").encode_prompts(clip, prompts, cache)


def _plain(clip, prompt):
    return clip.encode_from_tokens_scheduled(clip.tokenize(prompt))


def _assert_same(found, wanted):
    (((a, extras_a),), ((b, extras_b),)) = found, wanted
    assert type(found) is type(wanted) and type(found[0]) is type(wanted[0])
    assert list(extras_a) == list(extras_b)
    pairs = [(a, b), *((extras_a[key], extras_b[key]) for key in extras_a)]
    assert len(pairs) >= 2
    for x, y in pairs:
        if isinstance(y, torch.Tensor):
            assert (x.dtype, x.shape, x.device) == (y.dtype, y.shape, y.device)
            assert torch.equal(x.view(torch.uint8), y.view(torch.uint8))
        else:
            assert x == y and type(x) is type(y)


def test_what_is_cached_is_identical_and_not_encoded_again(lab):
    with _clip(lab) as (clip, calls, folder):
        first = _encode(lab, clip, folder)
        assert (first.cached, calls()) == (0, 3)
        again = _encode(lab, clip, folder)
        assert (again.cached, calls()) == (3, 3)
        for prompt in PROMPTS:
            _assert_same(again.conditioning[prompt], _plain(clip, prompt))
            _assert_same(first.conditioning[prompt], _plain(clip, prompt))
        more = (*PROMPTS[1:], "a small black cross on a red background")
        before = calls()
        assert (_encode(lab, clip, folder, more).cached, calls() - before) == (2, 1)
        _, same, _ = lab.module("nodes.bridge.tiny").load_tiny()  # as after a restart
        assert _encode(lab, same, folder).cached == 3


def test_a_text_encoder_with_nothing_to_encode_is_not_even_loaded(lab):
    import comfy.model_management as memory

    def refuse(*_, **__):
        raise AssertionError("the text encoder was needed")

    with _clip(lab) as (clip, _, folder):
        wanted = _encode(lab, clip, folder).conditioning
        again = _fresh(lab)  # as after a restart
        again.cond_stage_model.encode_token_weights = refuse
        loaders, memory.load_models_gpu = memory.load_models_gpu, refuse
        one, memory.load_model_gpu = memory.load_model_gpu, refuse
        try:
            found = _encode(lab, again, folder)
        finally:
            memory.load_models_gpu, memory.load_model_gpu = loaders, one
        assert found.cached == 3
        for prompt in PROMPTS:
            _assert_same(found.conditioning[prompt], wanted[prompt])


def _patched(clip, key, change):
    clone = clip.clone()
    assert clone.add_patches({key: ("diff", (change,))}, 1.0) == [key]
    return clone


def _fresh(lab):
    return lab.module("nodes.bridge.tiny").load_tiny()[1]


def test_another_text_encoder_never_gets_what_is_not_its_own(lab):
    """Also where one word differs, or one number, merged into the weights or not."""
    text = lab.module("chunk_grpo_core.models.tiny.text")
    with _clip(lab) as (clip, _, folder):
        _encode(lab, clip, folder)
        state = clip.cond_stage_model.encoder.state_dict()
        weak = torch.zeros_like(state["pool.weight"])
        weak[3, 5] = 1e-4
        others = {"weak LoRA": _patched(_fresh(lab), "encoder.pool.weight", weak)}
        table = torch.zeros_like(state["tokens.weight"])
        table[0] = 0.01
        others["LoRA on the table"] = _patched(_fresh(lab), "encoder.tokens.weight", table)
        edited = _fresh(lab)
        row = text.VOCABULARY.index("yellow")
        edited.cond_stage_model.encoder.tokens.weight.data[row, 0] += 0.5
        others["another word"] = edited
        skipping, precise = _fresh(lab), _fresh(lab)  # the tiny one cannot run so
        skipping.clip_layer(-2)
        precise.cond_stage_model.encoder.pool.weight.data = state["pool.weight"].double()
        fingerprint = lab.module("nodes.bridge.text_encoder").fingerprint
        known = [fingerprint(one) for one in (clip, skipping, precise, *others.values())]
        assert len(set(known)) == len(known) and None not in known
        for name, other in others.items():
            found = _encode(lab, other, folder)
            assert found.cached == 0, name
            for prompt in PROMPTS:
                _assert_same(found.conditioning[prompt], _plain(other, prompt))
            assert _encode(lab, other, folder).cached == 3, name
        assert _encode(lab, _fresh(lab), folder).cached == 3


def test_a_prompt_is_known_by_its_tokens(lab):
    """A textual inversion is a vector among the tokens; the text only names its file."""
    with _clip(lab) as (clip, _, folder):
        original = clip.tokenizer.tokenize_with_weights
        vector = torch.ones(96)

        def with_vector(text, *args, **kwargs):
            return {**original(text, *args, **kwargs), "inversion": [[(vector, 1.0)]]}

        clip.tokenizer.tokenize_with_weights = with_vector
        _encode(lab, clip, folder)
        assert _encode(lab, clip, folder).cached == 3
        vector[0] = 2.0
        assert _encode(lab, clip, folder).cached == 0


def test_what_holds_objects_is_encoded_anew(lab):
    import comfy.hooks

    with _clip(lab) as (clip, calls, folder):
        clip.apply_hooks_to_conds = comfy.hooks.HookGroup()
        clip.apply_hooks_to_conds.add(comfy.hooks.Hook())
        for _ in range(2):
            found = _encode(lab, clip, folder)
            assert found.cached == 0
            hooks = found.conditioning[PROMPTS[0]][0][1]["hooks"]
            assert isinstance(hooks, comfy.hooks.HookGroup)
        assert list(folder.iterdir()) == [] and calls() == 6


def test_an_encoder_that_runs_foreign_code_is_not_cached(lab):
    with _clip(lab) as (_, _, folder):
        objects, wrapped = _fresh(lab), _fresh(lab)
        objects.patcher.add_object_patch("encoder.gate", object())
        wrapped.patcher.add_wrapper("any", lambda executor, *args: executor(*args))
        fingerprint = lab.module("nodes.bridge.text_encoder").fingerprint
        assert fingerprint(objects) is None and fingerprint(wrapped) is None
        wrapped.patcher.wrappers.clear()
        assert fingerprint(wrapped) == fingerprint(_fresh(lab)) is not None


def test_large_weights_are_sampled_from_end_to_end_and_tables_are_read_whole(lab):
    from types import SimpleNamespace

    weights = lab.module("nodes.bridge.text_encoder")._weights

    def seen(**changes):
        layers = {"layer": torch.nn.Linear(2048, 512), "table": torch.nn.Embedding(2048, 512)}
        model = torch.nn.ModuleDict(layers).requires_grad_(False).bfloat16()
        for name, weight in model.named_parameters():
            weight.zero_()
            if name in changes:
                weight.view(-1)[changes[name]] = 1.0
        found = weights(SimpleNamespace(model=model, backup={}))
        return {name: sum(int(part.sum()) for part in parts) for name, _, _, parts in found}

    layer, table = "layer.weight", "table.weight"
    assert set(seen().values()) == {0}
    for place in (0, -1):
        assert seen(**{layer: place})[layer] > 0
    for place in (0, 777_777, -1):
        assert seen(**{table: place})[table] > 0


def test_one_prompt_with_an_object_does_not_spoil_the_others(lab):
    with _clip(lab) as (clip, _, folder):
        original = clip.encode_from_tokens_scheduled

        def odd(tokens):
            entries = original(tokens)
            if tokens == clip.tokenize(PROMPTS[1]):
                entries[0][1]["model"] = object()
            return entries

        clip.encode_from_tokens_scheduled = odd
        _encode(lab, clip, folder)
        found = _encode(lab, clip, folder)
        assert found.cached == 2 and "model" in found.conditioning[PROMPTS[1]][0][1]


def test_no_cache_means_no_file(lab):
    with _clip(lab) as (clip, calls, folder):
        encoding = lab.module("nodes.bridge.encoding")
        assert encoding.conditioning_cache(0.0) is None
        found = encoding.encode_prompts(clip, PROMPTS, None)
        assert (found.cached, calls(), len(found.conditioning)) == (0, 3, 3)
        assert list(folder.iterdir()) == []


def test_progress_is_shown_and_cancel_keeps_what_was_done(lab):
    import comfy.model_management as memory
    import comfy.utils

    with _clip(lab) as (clip, _, folder):
        shown = []

        def hook(value, total, preview, **_):
            shown.append((value, total))
            if value == 1:  # always shown; newer ComfyUI leaves out some of the next ones
                memory.interrupt_current_processing()

        comfy.utils.set_progress_bar_global_hook(hook)
        try:
            _encode(lab, clip, folder)
        except memory.InterruptProcessingException:
            assert shown == [(1, 3)]
        else:
            raise AssertionError("Cancel was ignored")
        finally:
            comfy.utils.set_progress_bar_global_hook(None)
        assert _encode(lab, clip, folder).cached == 1


def test_the_cache_is_no_run_folder(lab):
    import folder_paths

    encoding = lab.module("nodes.bridge.encoding")
    with tempfile.TemporaryDirectory() as folder:
        before = folder_paths.get_output_directory()
        folder_paths.set_output_directory(folder)
        try:
            cache = encoding.conditioning_cache(0.5)
        finally:
            folder_paths.set_output_directory(before)
        assert cache.folder.parent == Path(folder, "chunk_grpo") and cache.limit == 2**29
        try:
            safe_name(cache.folder.name)
        except ValueError:
            return
        raise AssertionError("a run could have this name")


def test_files_stay_inside_the_input_folder(lab):
    import folder_paths

    prompts = lab.module("nodes.bridge.prompts")
    with tempfile.TemporaryDirectory() as folder:
        inside, outside = Path(folder, "input"), Path(folder, "outside")
        (inside / "sub").mkdir(parents=True)
        outside.mkdir()
        (outside / "a.txt").write_text("secret")
        for name in ("b.txt", "sub/c.jsonl", "A.CSV", "d.png"):
            (inside / name).write_text('{"prompt": "x"}')
        (inside / "linked").symlink_to(outside, target_is_directory=True)
        before = folder_paths.get_input_directory()
        folder_paths.set_input_directory(str(inside))
        try:
            assert prompts.prompt_files() == ["A.CSV", "b.txt"]
            assert prompts.read_prompts("none") == []
            assert [line.text for line in prompts.read_prompts("sub/c.jsonl")] == ["x"]
            assert [line.text for line in prompts.read_prompts("linked/a.txt")] == ["secret"]
            for name in ("../outside/a.txt", str(outside / "a.txt")):
                for use in (prompts.read_prompts, prompts.wildcard_folder):
                    try:
                        use(name)
                    except ValueError as error:
                        assert "outside ComfyUI's input folder" in str(error)
                    else:
                        raise AssertionError(f"read {name}")
            try:
                prompts.read_prompts("gone.txt")
            except ValueError as error:
                assert "'gone.txt'" in str(error) and "none, A.CSV, b.txt" in str(error)
            else:
                raise AssertionError("read a file that is not there")
        finally:
            folder_paths.set_input_directory(before)


def test_a_prompt_without_the_newer_inputs_means_what_the_widgets_show(lab):
    node = lab.module("nodes.prompts").PromptSetNode
    inputs = {entry.id: entry for entry in node.define_schema().inputs}
    names = list(inputs)
    assert names[:6] == ["clip", "text", "held_out_text", "held_out", "split_seed", "guidance"]
    assert [name for name in names if inputs[name].optional] == names[6:]
    assert names[-1] == "reference"  # a socket
    config = vars(lab.module("chunk_grpo_core.prompts.split").PromptConfig())
    checked = {name for name in config if name in names[6:]}
    assert all(config[name] == inputs[name].default for name in checked)
    for method in (node.execute, node.validate_inputs, node.fingerprint_inputs):
        for name, parameter in inspect.signature(method).parameters.items():
            if name in names[6:-1]:
                assert parameter.default == inputs[name].default, (method.__name__, name)
                checked.add(name)
    assert checked == set(names[6:-1])


def test_the_default_guidance_is_left_to_the_model(lab):
    node = lab.module("nodes.prompts").PromptSetNode
    with torch.inference_mode():
        _, clip, _ = lab.module("nodes.bridge.tiny").load_tiny()
        for guidance, written in ((3.5, {}), (1.0, {"guidance": 1.0}), (0.0, {"guidance": 0.0})):
            typed = {"text": PROMPTS[0], "held_out_text": "", "held_out": 0, "split_seed": 0}
            prompts = node.execute(clip=clip, guidance=guidance, cache_gib=0.0, **typed).args[0]
            ((_, extras),) = prompts.conditioning[PROMPTS[0]]
            assert {key: extras[key] for key in extras if key == "guidance"} == written

"""GenEval: its rules on boxes made by hand, the reward, colours and detector around them."""

from __future__ import annotations

import pytest
import torch
from environment import package
from hypothesis import given
from hypothesis import strategies as st
from tiny_rewards import clip_shape, reference_clip, write_clip, write_clip_tokenizer

from chunk_grpo_core.prompts.example import Example
from chunk_grpo_core.rewards import load_reward
from chunk_grpo_core.rewards.geneval import Detection, GenevalReward, judge, read_task, rules
from chunk_grpo_core.rewards.geneval import load as geneval_files
from chunk_grpo_core.rewards.geneval.colours import ClipColours, cut_out
from chunk_grpo_core.rewards.geneval.mask2former import (
    WEIGHTS,
    Mask2Former,
    instances,
    load_mask2former,
)
from chunk_grpo_core.rewards.geneval.rules import relations
from chunk_grpo_core.rewards.geneval.task import COLOURS
from chunk_grpo_core.rewards.networks.network import NetworkReward
from chunk_grpo_core.rewards.pixels import to_levels

ONE_BENCH = {"tag": "single_object", "include": [{"class": "bench", "count": 1}]}
CUP_AND_DOG = {
    "tag": "two_object",
    "include": [{"class": "cup", "count": 1}, {"class": "dog", "count": 1}],
}
THREE_CUPS = {
    "tag": "counting",
    "include": [{"class": "cup", "count": 3}],
    "exclude": [{"class": "cup", "count": 4}],
}
RED_CUP = {"tag": "colors", "include": [{"class": "cup", "count": 1, "color": "red"}]}
DOG_LEFT_OF_CUP = {
    "tag": "position",
    "include": [
        {"class": "cup", "count": 1},
        {"class": "dog", "count": 1, "position": ["left of", 0]},
    ],
}
RED_CUP_BLUE_DOG = {
    "tag": "color_attr",
    "include": [
        {"class": "cup", "count": 1, "color": "red"},
        {"class": "dog", "count": 1, "color": "blue"},
    ],
}


def seen(label, score=0.95, x=50.0, y=50.0, size=20.0):
    """An object with its centre at (x, y)."""
    half = size / 2
    return Detection(label=label, score=score, box=(x - half, y - half, x + half, y + half))


def cups(*scores):
    return [seen("cup", score) for score in scores]


def colours_by_x(objects):
    """Left half of the picture is red, right half blue."""
    return ["red" if found.box[0] < 50 else "blue" for found in objects]


LEFT, RIGHT = {"x": 20.0}, {"x": 80.0}


@pytest.mark.parametrize(
    ("metadata", "detections", "correct", "credit"),
    [
        # single object: surer than 0.3, and how many more there are does not matter to GenEval
        (ONE_BENCH, [seen("bench", 0.31)], True, 1.0),
        (ONE_BENCH, [seen("bench", 0.3)], False, 0.0),
        (ONE_BENCH, [seen("cup")], False, 0.0),
        (ONE_BENCH, [], False, 0.0),
        (ONE_BENCH, [seen("bench"), seen("bench")], True, 0.0),
        (ONE_BENCH, [seen("bench")] * 5, True, 0.0),  # 1 - 4/1 stops at 0
        # two objects
        (CUP_AND_DOG, [seen("cup"), seen("dog")], True, 1.0),
        (CUP_AND_DOG, [seen("dog"), seen("horse")], False, 0.5),
        # counting: surer than 0.9, and one too many is wrong
        (THREE_CUPS, cups(0.95, 0.95, 0.91), True, 1.0),
        (THREE_CUPS, cups(0.95, 0.95, 0.9), False, 2 / 3),
        (THREE_CUPS, cups(0.95, 0.95, 0.95, 0.5), True, 1.0),
        (THREE_CUPS, cups(0.95, 0.95, 0.95, 0.91), False, 2 / 3),
        # colours: of the surest cup
        (RED_CUP, [seen("cup", **LEFT)], True, 1.0),
        (RED_CUP, [seen("cup", **RIGHT)], False, 0.5),
        (RED_CUP, [], False, 0.0),
        (RED_CUP, [seen("cup", 0.5, **RIGHT), seen("cup", 0.9, **LEFT)], True, 0.0),
        (RED_CUP, [seen("cup", 0.9, **RIGHT), seen("cup", 0.5, **LEFT)], False, 0.0),
        # positions
        (DOG_LEFT_OF_CUP, [seen("cup", **RIGHT), seen("dog", **LEFT)], True, 1.0),
        (DOG_LEFT_OF_CUP, [seen("cup", **LEFT), seen("dog", **RIGHT)], False, 2 / 3),
        (DOG_LEFT_OF_CUP, [seen("dog", **LEFT)], False, 1 / 3),
        # attributes
        (RED_CUP_BLUE_DOG, [seen("cup", **LEFT), seen("dog", **RIGHT)], True, 1.0),
        (RED_CUP_BLUE_DOG, [seen("cup", **RIGHT), seen("dog", **LEFT)], False, 0.5),
        (RED_CUP_BLUE_DOG, [seen("cup", **LEFT), seen("dog", **LEFT)], False, 0.75),
    ],
)
def test_verdicts(metadata, detections, correct, credit):
    verdict = judge(read_task(metadata), detections, colours_by_x)
    assert verdict.correct is correct
    assert verdict.credit == pytest.approx(credit)
    assert judge(read_task(metadata), detections[::-1], colours_by_x).correct is correct


def test_an_excluded_class_that_is_not_included_is_a_condition():
    metadata = {**ONE_BENCH, "exclude": [{"class": "dog", "count": 1}]}
    verdict = judge(read_task(metadata), [seen("bench"), seen("dog")], colours_by_x)
    assert (verdict.correct, verdict.credit) == (False, 0.5)


def test_no_more_than_sixteen_of_a_class_are_looked_at():
    metadata = {"tag": "single_object", "include": [{"class": "cup", "count": 17}]}
    assert not judge(read_task(metadata), cups(*[0.95] * 17), colours_by_x).correct


@pytest.mark.parametrize(
    ("x", "y", "names"),
    [
        (-50, 0, {"left of"}),
        (50, 0, {"right of"}),
        (0, -50, {"above"}),
        (0, 50, {"below"}),
        (-50, 50, {"left of", "below"}),  # both components 46/70.7 = 0.65
        (4, 0, set()),  # a tenth of both sizes, 4 pixels, is no offset
        (4.1, 0, set()),  # 0.1/4.1 is no direction yet
        (8.1, 0, {"right of"}),  # 4.1/8.1 is
        (0, 0, set()),
    ],
)
def test_relations_of_boxes_of_20_pixels(x, y, names):
    other = seen("cup").box
    assert relations(seen("dog", x=50.0 + x, y=50.0 + y).box, other) == names


BOXES = st.builds(
    lambda x, y, w, h: (float(x), float(y), float(x + w), float(y + h)),
    *[st.integers(0, 40)] * 2,
    *[st.integers(1, 40)] * 2,
)


@given(BOXES, BOXES)
def test_relations_are_mirrored_when_the_boxes_change_places(a, b):
    mirror = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
    assert {mirror[name] for name in relations(a, b)} == relations(b, a)
    wide = tuple(edge * 3.0 for edge in a), tuple(edge * 3.0 for edge in b)
    assert relations(*wide) == relations(a, b)


DETECTIONS = st.lists(
    st.builds(
        seen,
        st.sampled_from(["cup", "dog", "bench"]),
        st.sampled_from([0.2, 0.5, 0.95]),
        st.sampled_from([20.0, 80.0]),
    ),
    max_size=6,
)


@given(st.sampled_from([ONE_BENCH, CUP_AND_DOG, THREE_CUPS, RED_CUP, DOG_LEFT_OF_CUP]), DETECTIONS)
def test_credit_lies_in_0_to_1_and_only_a_right_picture_has_all(metadata, detections):
    verdict = judge(read_task(metadata), detections, colours_by_x)
    assert 0.0 <= verdict.credit <= 1.0
    assert verdict.correct or verdict.credit < 1.0


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({}, "tag of the GenEval metadata is None"),
        ({"tag": "counting"}, "includes no object"),
        ({"tag": "counting", "include": "cup"}, "include .* is 'cup'; it must list mappings"),
        ({"tag": "counting", "include": [{"count": 1}]}, "class .* is None"),
        ({"tag": "counting", "include": [{"class": "cup", "count": 0}]}, "count .* is 0"),
        ({"tag": "colors", "include": [{"class": "c", "count": 1, "color": "teal"}]}, "is 'teal'"),
        (
            {"tag": "position", "include": [{"class": "c", "count": 1, "position": ["above", 0]}]},
            r"position .* is \['above', 0\]",
        ),
        ({**ONE_BENCH, "exclude": [{"class": "bench", "count": 1}]}, "includes and excludes bench"),
    ],
)
def test_metadata_that_is_not_genevals_is_refused(metadata, message):
    with pytest.raises(ValueError, match=message):
        read_task(metadata)


class FoundByBrightness:
    """A cup where the picture is bright."""

    fingerprint = {"weights": "none"}
    network = torch.nn.Identity()
    labels = ("cup", "dog")

    def __call__(self, levels):
        assert levels.dtype == torch.uint8
        return [seen("cup", **LEFT)] if levels.float().mean() > 127 else []


class ReadByX:
    fingerprint = {"rule": "x"}
    network = torch.nn.Identity()

    def __call__(self, levels, objects):
        return colours_by_x(objects)


def test_the_reward_takes_genevals_metadata_and_masks_what_is_not_finite():
    images = torch.stack([torch.full((8, 8, 3), level) for level in (1.0, 0.0, torch.nan)])
    for partial, wanted in ((False, [1.0, 0.0]), (True, [1.0, 0.0])):
        reward = GenevalReward(FoundByBrightness(), ReadByX(), partial=partial)
        batch = reward.score(images, [Example("a red cup", RED_CUP)] * 3)
        assert batch.valid.tolist() == [True, True, False]
        assert batch.values[:2].tolist() == wanted
        assert batch.details["correct"][:2].tolist() == [1.0, 0.0]
    assert reward.fingerprint == {"detector/weights": "none", "colours/rule": "x", "partial": True}


def test_partial_credit_is_the_reward_where_it_is_asked_for():
    reward = GenevalReward(FoundByBrightness(), partial=True)
    batch = reward.score(torch.ones(1, 8, 8, 3), [Example("a cup and a dog", CUP_AND_DOG)])
    assert batch.values.tolist() == [0.5] and batch.extras["correct"].tolist() == [0.0]


def test_what_the_reward_lacks_is_named():
    reward = GenevalReward(FoundByBrightness())
    with pytest.raises(ValueError, match="tag of the GenEval metadata is None"):
        reward.score(torch.ones(1, 8, 8, 3), ["a cup"])
    with pytest.raises(ValueError, match="the tag 'colors' asks for colours"):
        reward.score(torch.ones(1, 8, 8, 3), [Example("a red cup", RED_CUP)])
    with pytest.raises(ValueError, match="class 'bench' .* none of the 2 .* such as cup, dog"):
        reward.score(torch.ones(1, 8, 8, 3), [Example("a bench", ONE_BENCH)])


# Colours: the cut, and zero-shot by a tower that looks at the mean colour


def test_an_object_is_cut_out_on_grey():
    levels = torch.arange(6 * 8 * 3, dtype=torch.uint8).view(6, 8, 3)
    mask = torch.zeros(6, 8, dtype=torch.bool)
    mask[2:4, 3:5] = True
    cut = cut_out(levels, Detection(label="cup", score=1.0, box=(2, 2, 6, 5), mask=mask))
    assert cut.shape == (3, 4, 3)
    assert torch.equal(cut[:2, 1:3], levels[2:4, 3:5])
    assert (cut[2] == 0x99).all() and (cut[:, 0] == 0x99).all()
    whole = cut_out(levels, Detection(label="cup", score=1.0, box=(-3, -3, 99, 99)))
    assert torch.equal(whole, levels)


def test_colours_are_zero_shot_over_genevals_thirty_texts(monkeypatch):
    from chunk_grpo_core.rewards.geneval import colours

    asked = []
    blue = COLOURS.index("blue")

    def texts(network, ids):  # feature of a text: one place for each colour
        return torch.eye(len(COLOURS)).repeat_interleave(3, 0)

    def pictures(network, levels, square):  # blue if the blue channel leads
        lead = int(levels[0].float().mean((0, 1)).argmax())
        return torch.eye(len(COLOURS))[[blue if lead == 2 else 0]]

    monkeypatch.setattr(colours, "text_features", texts)
    monkeypatch.setattr(colours, "image_features", pictures)
    reader = ClipColours(None, lambda some: (asked.extend(some),), {"weights": "none"})
    levels = torch.zeros(20, 40, 3, dtype=torch.uint8)
    levels[:, :20, 0], levels[:, 20:, 2] = 255, 255
    objects = [seen("cup", x=10.0, y=10.0), seen("cup", x=30.0, y=10.0)]
    assert reader(levels, objects) == ["red", "blue"]
    assert asked[:3] == ["a photo of a red cup", "a photo of a red-colored cup",
                         "a photo of a red object"]  # fmt: skip
    assert len(asked) == 30


# The detector: its post-processing by hand, and a tiny random network


def test_queries_become_instances():
    classes = torch.full((3, 3), -9.0)
    classes[0, 1] = classes[1, 2] = 9.0  # a dog; no object
    classes[2, 0] = 9.0  # a cup whose mask is empty
    masks = torch.full((3, 4, 4), -4.0)
    masks[0, 1:3, 0:2] = 4.0
    masks[1] = 4.0
    (found,) = instances(classes, masks, ["cup", "dog"], (4, 4))
    assert (found.label, found.box) == ("dog", (0, 1, 2, 3))
    assert found.score == pytest.approx(torch.sigmoid(torch.tensor(4.0)).item(), abs=1e-4)
    assert found.mask.sum() == 4
    (large,) = instances(classes, masks, ["cup", "dog"], (8, 8))
    assert large.box == (0, 2, 4, 6)


def test_one_query_may_be_two_objects_as_in_genevals_detector():
    classes = torch.tensor([[5.0, 5.0, -9.0]])
    found = instances(classes, torch.full((1, 2, 2), 9.0), ["cup", "dog"], (2, 2))
    assert [d.label for d in found] == ["cup", "dog"]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folder of reward models with a Mask2Former and a CLIP, both with random weights."""
    transformers = package("transformers")
    backbone = transformers.SwinConfig(
        embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 1, 1], window_size=2,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip
    config = transformers.Mask2FormerConfig(
        backbone_config=backbone, feature_size=32, mask_feature_size=32, hidden_dim=32,
        encoder_feedforward_dim=32, dim_feedforward=32, encoder_layers=1, decoder_layers=2,
        num_attention_heads=2, num_queries=5, id2label={0: "cup", 1: "mouse"},
        label2id={"cup": 0, "mouse": 1},
    )  # fmt: skip
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("reward_models")
    transformers.Mask2FormerForUniversalSegmentation(config).save_pretrained(folder / "geneval")
    shape = clip_shape(write_clip_tokenizer(folder / "clipscore"))
    write_clip(folder / "clipscore", reference_clip(shape))
    return folder, shape


@pytest.fixture
def load(models, monkeypatch):
    """Give a function that loads the tiny reward by its name."""
    folder, shape = models
    monkeypatch.setattr(geneval_files, "CLIP_L", shape)
    return lambda **settings: load_reward("geneval", **{"folders": [folder], **settings})


LEVELS = torch.randint(
    0, 256, (40, 70, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
)


def test_the_detector_loads_from_a_folder_and_finds_boxes_inside_the_picture(models):
    detector = load_mask2former(models[0] / "geneval" / "model.safetensors")
    detector.sides = (64, 96)
    found = detector(LEVELS)
    again = Mask2Former(detector.network, ["cup", "mouse"], {}, sides=(64, 96))(LEVELS)
    assert [d.box for d in found] == [d.box for d in again]
    assert found, "random weights that find nothing test nothing"
    for detection in found:
        left, top, right, bottom = detection.box
        assert 0 <= left < right <= 70 and 0 <= top < bottom <= 40
        assert detection.mask.shape == (40, 70)
        assert 0.0 < detection.score < 1.0
        assert detection.label in ("cup", "computer mouse")  # as GenEval names it
    assert len(detector.fingerprint["weights"]) == 64


def examples_of_what_is_seen(reward, image):
    """For one picture, a prompt for what is in it, one with the right colour, one with a wrong."""
    levels = to_levels(image)
    best = max(reward.detector(levels), key=lambda detection: detection.score)
    (colour,) = reward.colours(levels, [best])
    wrong = next(name for name in COLOURS if name != colour)
    wishes = ({}, {"color": colour}, {"color": wrong})
    return [
        Example("a picture", {"tag": "colors", "include": [{"class": best.label, "count": 1, **w}]})
        for w in wishes
    ]


def test_the_reward_is_loaded_by_name_and_sees_with_its_networks(load, monkeypatch):
    monkeypatch.setattr(rules, "CONFIDENCE", 0.0)  # random networks are not sure of anything
    reward = load()
    reward.detector.sides = (64, 96)
    image = LEVELS.float() / 255
    examples = examples_of_what_is_seen(reward, image)
    assert reward.score(image.repeat(3, 1, 1, 1), examples).values.tolist() == [1.0, 1.0, 0.0]
    assert isinstance(reward, NetworkReward)
    parts = (reward.detector.network, reward.colours.network)
    held = {id(p) for p in reward.network.parameters()}
    assert held == {id(p) for part in parts for p in part.parameters()}
    assert not any(p.requires_grad for p in reward.network.parameters())


def test_without_colours_clip_is_not_needed(load, models, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    path = models[0] / "geneval"
    reward = load(folders=[tmp_path], path=path, colours=False, partial=True)
    assert reward.colours is None and reward.partial
    with pytest.raises(FileNotFoundError, match=r"model.safetensors .*clip-vit-large-patch14"):
        load(folders=[tmp_path], path=path)
    clip = models[0] / "clipscore" / "model.safetensors"
    assert load(folders=[tmp_path], path=path, clip=clip).colours is not None


def test_the_type_of_the_weights_is_in_the_fingerprint(load):
    prints = [load(dtype=dtype).fingerprint for dtype in ("float32", "bfloat16")]
    for key in ("detector/dtype", "colours/dtype"):
        assert [entry[key] for entry in prints] == ["torch.float32", "torch.bfloat16"]


def test_weights_of_16_bits_find_things_and_colours(load):
    try:
        torch.nn.functional.grid_sample(*torch.zeros(2, 1, 2, 2, 2, dtype=torch.bfloat16))
    except RuntimeError as error:
        pytest.skip(f"PyTorch {torch.__version__} on a CPU: {error}")
    half = load(dtype="bfloat16")
    half.detector.sides = (64, 96)
    half.detector(LEVELS)
    half.colours(LEVELS, [seen("cup")])


def test_a_folder_without_all_weights_is_refused(models, tmp_path):
    from safetensors.torch import load_file, save_file

    source, target = models[0] / "geneval", tmp_path / "model.safetensors"
    with pytest.raises(FileNotFoundError, match="config.json; get it from https://huggingface.co"):
        load_mask2former(target)
    (tmp_path / "config.json").write_text((source / "config.json").read_text())
    tensors = load_file(source / "model.safetensors")
    del tensors["class_predictor.weight"]
    save_file(tensors, target, {"format": "pt"})
    with pytest.raises(ValueError, match=r"no values for \['class_predictor.weight'\]"):
        load_mask2former(target)
    with pytest.raises(ValueError, match=r"mine.safetensors must be called model.safetensors"):
        load_mask2former(tmp_path / "mine.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    with pytest.raises(ValueError, match="a model of type 'clip', not a mask2former"):
        load_mask2former(target)


def test_the_size_of_the_real_file_is_that_of_the_network():
    transformers = package("transformers")
    backbone = transformers.SwinConfig(
        embed_dim=96, depths=[2, 2, 18, 2], num_heads=[3, 6, 12, 24], window_size=7,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip
    config = transformers.Mask2FormerConfig(backbone_config=backbone, num_labels=80)
    with torch.device("meta"):
        network = transformers.Mask2FormerForUniversalSegmentation(config)
    count = sum(parameter.numel() for parameter in network.parameters())
    assert 4 * count == pytest.approx(WEIGHTS.bytes, rel=0.01)

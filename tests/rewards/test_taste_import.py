"""Ratings that were made elsewhere become picks: each form, its counts, and what is refused."""

from __future__ import annotations

import csv
import json
import re
import sqlite3
import zlib
from dataclasses import asdict
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image, PngImagePlugin

from chunk_grpo_core.prompts.judged import StartingNoise
from chunk_grpo_core.rewards.taste.events import Shown
from chunk_grpo_core.rewards.taste.importing.comfy_graph import prompt_and_seed
from chunk_grpo_core.rewards.taste.importing.comfy_noise import made_in
from chunk_grpo_core.rewards.taste.importing.into import import_into
from chunk_grpo_core.rewards.taste.importing.near import Seen, look_of
from chunk_grpo_core.rewards.taste.importing.notes import rating_of
from chunk_grpo_core.rewards.taste.judged import starting_noise
from chunk_grpo_core.rewards.taste.picks import Taste


def drawn(seed, size=(96, 72)):
    """A smooth picture with structure."""
    small = numpy.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=numpy.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


def save(path, seed=None, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn(seed if seed is not None else zlib.crc32(path.stem.encode())).save(path, **options)
    return path


@pytest.fixture
def taste(tmp_path):
    return Taste(tmp_path / "mine")


def counts(done):
    return {key: value for key, value in asdict(done).items() if value}


GRAPH = {
    "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "x"}},
    "2": {"class_type": "CLIPTextEncode", "inputs": {"text": "a red cat", "clip": ["1", 1]}},
    "3": {"class_type": "CLIPTextEncode", "inputs": {"text": "ugly", "clip": ["1", 1]}},
    "9": {"class_type": "FluxGuidance", "inputs": {"conditioning": ["2", 0], "guidance": 3.5}},
    "4": {"class_type": "KSampler", "inputs": {
        "seed": 77, "positive": ["9", 0], "negative": ["3", 0], "model": ["1", 0]}},
    "5": {"class_type": "VAEDecode", "inputs": {"samples": ["4", 0]}},
    "6": {"class_type": "SaveImage", "inputs": {"images": ["5", 0]}},
}  # fmt: skip
ADVANCED = {
    "a": {"inputs": {"noise_seed": 5}},
    "g": {"inputs": {"conditioning": ["t", 0], "model": ["m", 0]}},
    "t": {"inputs": {"clip_l": "", "t5xxl": ["s", 0]}},
    "s": {"inputs": {"value": "two dogs"}},
    "x": {"inputs": {"noise": ["a", 0], "guider": ["g", 0], "latent_image": ["l", 0]}},
    "i": {"inputs": {"images": ["x", 0]}},
}


def test_prompt_and_seed_are_read_from_graphs():
    assert prompt_and_seed({"prompt": json.dumps(GRAPH)}) == ("a red cat", 77)
    assert prompt_and_seed({"prompt": json.dumps(ADVANCED)}) == ("two dogs", 5)
    others = "a tree\nNegative prompt: fog\nSteps: 20, Seed: 12345, Size: 8x8"
    assert prompt_and_seed({"parameters": others}) == ("a tree", 12345)


FLUX = {
    "model": {"class_type": "UNETLoader", "inputs": {"unet_name": "flux1-dev.safetensors"}},
    "lora": {"class_type": "LoraLoaderModelOnly", "inputs": {
        "lora_name": "mine.safetensors", "model": ["model", 0]}},
    "text": {"class_type": "CLIPTextEncode", "inputs": {"text": "a red cat"}},
    "noise": {"class_type": "RandomNoise", "inputs": {"noise_seed": 5}},
    "guider": {"class_type": "BasicGuider", "inputs": {
        "conditioning": ["text", 0], "model": ["lora", 0]}},
    "euler": {"class_type": "KSamplerSelect", "inputs": {"sampler_name": "euler"}},
    "levels": {"class_type": "BasicScheduler", "inputs": {"denoise": 1.0, "model": ["lora", 0]}},
    "empty": {"class_type": "EmptySD3LatentImage", "inputs": {"batch_size": 4}},
    "sample": {"class_type": "SamplerCustomAdvanced", "inputs": {
        "noise": ["noise", 0], "guider": ["guider", 0], "sampler": ["euler", 0],
        "sigmas": ["levels", 0], "latent_image": ["empty", 0]}},
    "decode": {"class_type": "VAEDecode", "inputs": {"samples": ["sample", 0]}},
    "pick": {"class_type": "ChunkGRPO_PickPictures", "inputs": {"images": ["decode", 0]}},
}  # fmt: skip
SAMPLED = {
    "seed": 77, "positive": ["9", 0], "negative": ["3", 0], "model": ["1", 0], "denoise": 1.0,
    "sampler_name": "euler", "cfg": 4.5, "latent_image": ["0", 0],
}  # fmt: skip


def changed(graph, **nodes):
    """A graph with other nodes, or with other inputs of its nodes."""
    new = {name: node if "class_type" in node else {**graph[name], "inputs": {
        **graph[name]["inputs"], **node}} for name, node in nodes.items()}  # fmt: skip
    return {**graph, **new}


def sampled(**more):
    """The graph of KSampler, with an empty latent."""
    empty = {"class_type": "EmptyLatentImage", "inputs": {"batch_size": 1}}
    return changed({**GRAPH, "0": empty}, **{"4": {**SAMPLED, **more}})


def test_how_a_picture_was_made_is_read_from_the_graph():
    assert made_in(FLUX, "pick", 4) == {
        "model": "flux1-dev.safetensors", "lora": ["mine.safetensors"], "sampler": "euler",
        "noise": "torch-cpu",
    }  # fmt: skip
    wanted = {"model": "x", "sampler": "euler", "cfg": 4.5, "noise": "torch-cpu"}
    assert made_in(sampled(), "6") == wanted  # one file of a batch of one
    advanced = {"class_type": "KSamplerAdvanced", "inputs": {
        **SAMPLED, "noise_seed": 3, "add_noise": "enable", "start_at_step": 0, "steps": 20,
        "end_at_step": 10000, "return_with_leftover_noise": "disable"}}  # fmt: skip
    assert made_in(changed(sampled(), **{"4": advanced}), "6") == wanted


@pytest.mark.parametrize(
    "graph",
    [
        changed(FLUX, empty={"batch_size": 3}),
        changed(FLUX, empty={"batch_size": ["n", 0]}),
        changed(FLUX, empty={"class_type": "VAEEncode", "inputs": {"pixels": ["decode", 0]}}),
        changed(FLUX, noise={"noise_seed": ["n", 0]}),
        changed(FLUX, noise={"class_type": "DisableNoise", "inputs": {}}),
        changed(FLUX, euler={"sampler_name": "euler_ancestral"}),
        changed(FLUX, euler={"sampler_name": "dpmpp_2m_sde"}),
        changed(FLUX, euler={"class_type": "ChunkGRPO_FlowSDESampler", "inputs": {"eta": 0.7}}),
        changed(FLUX, levels={"denoise": 0.6}),
        changed(FLUX, levels={"class_type": "SplitSigmas", "inputs": {"sigmas": ["s", 0]}}),
        changed(FLUX, decode={"class_type": "ImageScale", "inputs": {"image": ["decode", 0]}}),
        changed(FLUX, pick={"images": ["elsewhere", 0]}),
        changed(FLUX, decode={"samples": ["decode", 0]}),
        {"pick": 5}, {"pick": {"inputs": 5}}, {},
    ],
)  # fmt: skip
def test_noise_that_the_graph_leaves_in_doubt_is_not_written(graph):
    assert "noise" not in made_in(graph, "pick", 4)


@pytest.mark.parametrize("more", [{"denoise": 0.5}, {"denoise": None}, {"seed": ["n", 0]}])
def test_noise_of_a_part_of_the_steps_or_of_another_seed_is_not_written(more):
    assert "noise" not in made_in(sampled(**more), "6")


def test_a_noise_of_its_own_takes_the_place_of_seed_and_index():
    facts = {"picture": "a" * 64, "seed": 5, "index": 2}
    assert starting_noise(Shown(**facts)) is None
    assert starting_noise(Shown(**facts, made={"noise": "torch-cpu"})) == StartingNoise(5, 2)
    own = {"noise": "torch-cpu", "noise_seed": 2**63 + 1, "noise_index": 0}
    assert starting_noise(Shown(**facts, made=own)) == StartingNoise(2**63 + 1, 0)
    for wrong in (-1, 2**64, "5", True, 1.0):
        assert starting_noise(Shown(**facts, made={**own, "noise_seed": wrong})) is None


@pytest.mark.parametrize(
    "graph",
    [
        "[", "[]", "5", "{}", '{"1": 5}', '{"1": {"inputs": 5}}', "[" * 100_000,
        json.dumps({"1": {"inputs": {"positive": ["1", 0], "images": ["1", 0]}}}),
        json.dumps({"1": {"inputs": {"positive": ["2", 0]}}, "2": {"inputs": {"text": ["1", 0]}}}),
        json.dumps({"1": {"inputs": {"positive": [[], 0], "seed": "x"}}}),
    ],
)  # fmt: skip
def test_what_cannot_be_followed_is_not_guessed(graph):
    assert prompt_and_seed({"prompt": graph}) == ("", None)


def test_folders_of_likes_with_prompts_of_comfyui_and_of_text_files(taste, tmp_path):
    notes = PngImagePlugin.PngInfo()
    notes.add_text("prompt", json.dumps(GRAPH))
    save(tmp_path / "in" / "liked" / "deep" / "a.png", pnginfo=notes)
    save(tmp_path / "in" / "Disliked" / "b.jpg")
    (tmp_path / "in" / "Disliked" / "b.txt").write_text("a text beside it\n")
    (tmp_path / "in" / "other").mkdir()
    done = import_into(taste, tmp_path / "in")
    assert counts(done) == {"form": "likes", "picks": 2, "kinds": {"like": 2}}
    by_prompt = {pick.shown[0].prompt: pick for pick in taste.counting()}
    liked, disliked = by_prompt["a red cat"], by_prompt["a text beside it"]
    assert liked.answer is True and liked.shown[0].seed == 77 and disliked.answer is False
    assert liked.shown[0].made == {"file": "a.png", "model": "x"}
    assert taste.picture(liked.shown[0]).shape == (72, 96, 3)


def test_an_import_can_be_repeated_and_a_changed_rating_takes_the_place(taste, tmp_path):
    for stars, name in ((1, "x"), (5, "y")):
        save(tmp_path / "in" / str(stars) / f"{name}.png")
    assert import_into(taste, tmp_path / "in").kinds == {"stars": 2}
    again = import_into(taste, tmp_path / "in")
    assert (again.picks, again.present) == (0, 2) and len(taste.picks()) == 2
    (tmp_path / "in" / "2").mkdir()
    (tmp_path / "in" / "5" / "y.png").rename(tmp_path / "in" / "2" / "y.png")
    changed = import_into(taste, tmp_path / "in")
    assert (changed.picks, changed.changed, changed.present) == (1, 1, 1)
    assert sorted(pick.answer for pick in taste.counting()) == [1, 2]
    (tmp_path / "in" / "2" / "y.png").rename(tmp_path / "in" / "5" / "y.png")
    assert import_into(taste, tmp_path / "in").changed == 1
    assert sorted(pick.answer for pick in taste.counting()) == [1, 5]


def test_a_number_that_is_none_of_stars_is_not_passed_over(taste, tmp_path):
    save(tmp_path / "in" / "4" / "x.png")
    save(tmp_path / "in" / "0" / "not_rated.png")
    (tmp_path / "in" / "2024").mkdir()  # nothing is in it
    assert import_into(taste, tmp_path / "in").kinds == {"stars": 1}
    save(tmp_path / "in" / "7" / "y.png")
    with pytest.raises(ValueError, match="7 holds pictures, and folders of stars are called 1 to"):
        import_into(taste, tmp_path / "in")
    assert len(taste.picks()) == 1


XMP = '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description {0}>{1}</rdf:Description></x:xmpmeta>'


def exif(tag, value):
    notes = Image.Exif()
    notes[tag] = value
    return notes


def test_ratings_are_read_wherever_programs_write_them(taste, tmp_path):
    folder = tmp_path / "in"
    (folder / "x").mkdir(parents=True)
    (save(folder / "sidecar.png").with_name("sidecar.png.xmp")).write_text(
        XMP.format('xmp:Rating="4"', "")
    )
    save(folder / "rejected.jpg").with_suffix(".xmp").write_text(
        XMP.format("", "<xmp:Rating>-1</xmp:Rating>")
    )
    save(folder / "inside.jpg", xmp=XMP.format("xmp:Rating='3'", "").encode())
    packed = PngImagePlugin.PngInfo()
    text = XMP.format('xmp:Rating="2"', " " * 500)
    packed.add_itxt("XML:com.adobe.xmp", text, zip=True)
    save(folder / "packed.png", pnginfo=packed)
    save(folder / "exif.jpg", exif=exif(0x4746, 5))
    save(folder / "percent.jpg", exif=exif(0x4749, 75))
    save(folder / "windows.jpg", xmp=XMP.format('MicrosoftPhoto:Rating="99"', "").encode())
    save(folder / "unrated.jpg", exif=exif(0x4746, 0))
    save(folder / "plain.png")
    done = import_into(taste, folder)
    assert counts(done) == {"form": "ratings", "picks": 7, "kinds": {"stars": 7}}
    stars = {pick.shown[0].made["file"].partition(".")[0]: pick.answer for pick in taste.counting()}
    assert stars == {"sidecar": 4, "rejected": -1, "inside": 3, "packed": 2, "exif": 5,
                     "percent": 4, "windows": 5}  # fmt: skip


@pytest.mark.parametrize("percent", [(0, 0), (1, 1), (25, 2), (50, 3), (75, 4), (99, 5)])
def test_percent_of_windows_are_stars(percent, tmp_path):
    assert rating_of(save(tmp_path / "a.jpg", exif=exif(0x4749, percent[0]))) == percent[1]


@pytest.mark.parametrize("value", ["6", "-2", "2.5", "many", "", "1e99", "&#51;"])
def test_a_rating_that_is_none_is_refused_with_its_file(value, tmp_path):
    file = save(tmp_path / "a.png")
    file.with_suffix(".xmp").write_text(XMP.format(f'xmp:Rating="{value}"', ""))
    says = rf"a\.xmp: xmp:Rating is '{re.escape(value)}'; it must be a whole number, -1 to 5"
    with pytest.raises(ValueError, match=says):
        rating_of(file)


WHOLE = XMP.format("", "").replace("<rdf:Description", "<Description").replace("/rdf:", "/")
TIFF = Image.Exif()
TIFF[0x0110] = "a camera"
"""Its model: notes without a rating."""


@pytest.mark.parametrize(
    ("beside", "inside", "words"),
    [
        (WHOLE[:-9].encode(), {}, r"a\.png\.xmp: its XMP is damaged \("),
        (XMP.format('xmp:Rating="4', "").encode()[:90], {}, "its XMP is damaged"),
        (b"\x00\x01rubbish", {}, "its XMP is damaged"),
        (b"", {}, "its XMP is damaged"),
        (("\ufeff" + WHOLE).encode("utf-16-le")[:-3], {}, "its XMP is damaged"),
        (b"<!DOCTYPE a [<!ENTITY b 'c'>]><a>&b;</a>", {}, "a document type is declared"),
        (None, {"exif": TIFF.tobytes()[:16]}, r"a\.png: its EXIF is damaged \("),
        (None, {"exif": b"Exif\0\0rubbish!"}, "its EXIF is damaged"),
    ],
)  # fmt: skip
def test_damaged_notes_are_named_and_everything_else_is_imported(
    beside, inside, words, taste, tmp_path
):
    save(tmp_path / "in" / "rated.jpg", exif=exif(0x4746, 5))
    damaged = save(tmp_path / "in" / "a.png", **inside)
    if beside is not None:
        damaged.with_name("a.png.xmp").write_bytes(beside)
    done = import_into(taste, tmp_path / "in")
    assert (done.picks, len(done.unreadable)) == (1, 1)
    assert re.search(words, done.unreadable[0])
    (tmp_path / "in" / "rated.jpg").unlink()
    with pytest.raises(ValueError, match=rf"(?s)holds no ratings .*{words}"):
        import_into(Taste(tmp_path / "other"), tmp_path / "in")


@pytest.mark.parametrize(
    "whole",
    [
        WHOLE.encode(),
        f"<?xpacket begin='\ufeff' id='1'?>{WHOLE}   <?xpacket end='w'?>\0".encode(),
        ("\ufeff" + WHOLE).encode("utf-16"),
        "<?xml version='1.0' encoding='ISO-8859-1'?><a>\xe4</a>".encode("latin-1"),
    ],
)
def test_whole_notes_without_a_rating_are_not_damaged(whole, taste, tmp_path):
    save(tmp_path / "in" / "rated.jpg", exif=exif(0x4746, 5))
    save(tmp_path / "in" / "a.jpg", exif=TIFF).with_suffix(".xmp").write_bytes(whole)
    assert import_into(taste, tmp_path / "in").unreadable == ()


def test_ratings_in_wide_letters_and_under_the_older_prefix_are_read(tmp_path):
    file, text = save(tmp_path / "a.png"), XMP.format('xap:Rating="4"', "")
    file.with_suffix(".xmp").write_bytes(text.encode("utf-16"))
    assert rating_of(file) == 4


def test_a_damaged_caption_is_named_and_its_picture_counts(taste, tmp_path):
    liked = tmp_path / "in" / "liked"
    save(liked / "a.png").with_suffix(".txt").write_bytes(b"\xff\xfe\x00")
    save(liked / "b.png").with_suffix(".txt").write_bytes("\ufeffein Kätzchen".encode())
    notes = PngImagePlugin.PngInfo()
    notes.add_text("prompt", json.dumps(GRAPH)[:-5])
    save(liked / "c.png", pnginfo=notes)
    done = import_into(taste, tmp_path / "in")
    assert done.picks == 3 and len(done.unreadable) == 2
    assert "a.txt" in done.unreadable[0] and "c.png: the graph in it" in done.unreadable[1]
    prompts = [pick.shown[0].prompt for pick in taste.counting()]
    assert prompts == ["", "ein Kätzchen", ""]


def index_of(folder, rows, tables=True):
    index = folder / "_mjr_index" / "assets.sqlite"
    index.parent.mkdir(parents=True, exist_ok=True)
    with sqlite3.connect(index) as database:
        database.execute("PRAGMA journal_mode=WAL")
        if tables:
            database.execute("CREATE TABLE assets (id INTEGER PRIMARY KEY, filepath TEXT)")
            database.execute("CREATE TABLE asset_metadata (asset_id INTEGER, rating)")
        for number, (path, rating) in enumerate(rows):
            database.execute("INSERT INTO assets VALUES (?, ?)", (number, path))
            database.execute("INSERT INTO asset_metadata VALUES (?, ?)", (number, rating))
    return database, index


def test_the_index_of_majoor_is_read_from_a_copy_and_0_is_unrated(taste, tmp_path):
    output = tmp_path / "output"
    files = [str(save(output / f"{name}.png")) for name in ("one", "two", "three")]
    rows = [(files[0], 5), (files[1], 0), (files[2], 2), (str(output / "gone.png"), 4)]
    database, index = index_of(output, rows)
    database.commit()  # still open: what was written may stand in the -wal file alone
    before = {path.name: path.read_bytes() for path in index.parent.iterdir()}
    done = import_into(taste, output)
    assert {path.name: path.read_bytes() for path in index.parent.iterdir()} == before
    database.close()
    wanted = {"form": "majoor", "picks": 2, "kinds": {"stars": 2}, "missing": 1}
    assert counts(done) == wanted
    assert sorted(pick.answer for pick in taste.counting()) == [2, 5]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([("a.png", 6)], "'a.png' has rating 6; it must be 0 to 5"),
        ([("a.png", "five")], "the rating 'five'"),
        ([(None, 3)], "the file None"),
        (None, "no index of Majoor AssetsManager that can be read"),
    ],
)
def test_a_database_of_others_is_refused(rows, words, taste, tmp_path):
    database, index = index_of(tmp_path, rows or [], tables=rows is not None)
    database.close()
    with pytest.raises(ValueError, match=words):
        import_into(taste, index)
    index.write_bytes(b"SQLite format 3\0" + b"\xff" * 500)
    with pytest.raises(ValueError, match="no index of Majoor"):
        import_into(taste, index)
    assert not taste.file.exists()


PAIRS = [
    ("a cat", "a.png", "b.png", 1),
    ("a dog", "c.png", "a.png", 0),
    ("", "b.png", "c.png", 0.5),
]


@pytest.mark.parametrize("ending", ["jsonl", "JSONL", "csv", "TSV"])
def test_tables_of_pairs_with_the_columns_of_pick_a_pic(ending, taste, tmp_path):
    for name in "abc":
        save(tmp_path / f"{name}.png")
    head = ("caption", "image_0", "image_1", "label_0")
    table = tmp_path / f"pairs.{ending}"
    if ending.lower() == "jsonl":
        rows = [json.dumps(dict(zip(head, row, strict=True))) for row in PAIRS]
        table.write_text("\n".join(rows))
    else:
        with table.open("w", newline="") as file:
            writer = csv.writer(file, delimiter="," if ending == "csv" else "\t")
            writer.writerows([head, *PAIRS])
    done = import_into(taste, table)
    assert counts(done) == {"form": "pairs", "picks": 3, "kinds": {"duel": 2, "same": 1}}
    first, second, third = taste.counting()
    assert (first.answer, second.answer, third.answer) == (0, 1, None)
    assert [pick.shown[0].prompt for pick in taste.counting()] == ["a cat", "a dog", ""]
    chosen = tmp_path / "chosen.jsonl"
    chosen.write_text('{"prompt": "x", "chosen": "b.png", "rejected": "c.png"}\n')
    assert import_into(taste, chosen).kinds == {"duel": 1}


def test_a_pair_may_be_judged_again_of_another_prompt_or_with_another_winner(taste, tmp_path):
    for name in "ab":
        save(tmp_path / f"{name}.png")
    rows = [("cat", "a", "b"), ("cat", "b", "a"), ("dog", "a", "b"), ("cat", "a", "b")]
    lines = [{"prompt": p, "chosen": f"{c}.png", "rejected": f"{r}.png"} for p, c, r in rows]
    table = tmp_path / "pairs.jsonl"
    table.write_text("\n".join(map(json.dumps, lines)))
    done = import_into(taste, table)
    assert (done.picks, done.same_pixels, done.changed) == (3, 1, 0)
    again = import_into(taste, table)
    assert (again.picks, again.present, again.changed) == (0, 3, 0)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": "x", "chosen": "a.png", "rejected": "a.png"}, "both pictures are the same"),
        ({"caption": "x", "image_0": "a.png", "image_1": "b.png", "label_0": 2}, "label_0 is 2"),
        ({"image_0": "a.png", "image_1": "b.png", "label_0": True}, "label_0 is True"),
        ({"image_0": "a.png", "image_1": 5, "label_0": 1}, "image_1 is 5"),
        ({"image_0": "a.png", "image_1": "none.png", "label_0": 1}, "there is no picture"),
        ({"image_0": "a.png", "image_1": "bad.png", "label_0": 1}, "no picture that can be read"),
        ({"caption": 5, "chosen": "a.png", "rejected": "b.png"}, "caption is 5"),
        ({"image_0": "a.png"}, "write {\"caption\""),
    ],
)  # fmt: skip
def test_a_wrong_row_is_named_and_nothing_is_imported(row, words, taste, tmp_path):
    for name in "ab":
        save(tmp_path / f"{name}.png")
    (tmp_path / "bad.png").write_text("no picture")
    good = {"caption": "x", "image_0": "a.png", "image_1": "b.png", "label_0": 1}
    table = tmp_path / "pairs.jsonl"
    table.write_text(f"{json.dumps(good)}\n{json.dumps(row)}\n")
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        import_into(taste, table)
    assert "pairs.jsonl, line 2" in str(error.value) and words in str(error.value)
    assert not taste.folder.exists()


def test_a_damaged_picture_stops_an_import_before_anything_is_written(taste, tmp_path):
    save(tmp_path / "in" / "liked" / "a.png")
    (tmp_path / "in" / "liked" / "b.png").write_bytes(b"\x89PNG\r\n\x1a\nrubbish")
    with pytest.raises(ValueError, match=r"b\.png .*nothing was imported"):
        import_into(taste, tmp_path / "in")
    assert not taste.folder.exists()


def test_the_same_picture_counts_once_by_its_pixels_and_by_its_look(taste, tmp_path):
    liked = tmp_path / "in" / "liked"
    save(liked / "a.png", seed=1)
    save(liked / "copy.bmp", seed=1)
    drawn(1).save(liked / "worse.jpg", quality=70)
    drawn(1, (192, 144)).save(liked / "larger.png")
    save(liked / "b.png", seed=2)
    done = import_into(taste, tmp_path / "in")
    assert (done.picks, done.same_pixels, done.same_look) == (2, 1, 2)
    save(tmp_path / "in" / "disliked" / "a again.png", seed=1)
    with pytest.raises(ValueError, match=r"one picture has two ratings: .*; take one of them out"):
        import_into(taste, tmp_path / "in")
    assert len(taste.picks()) == 2


def test_pictures_of_other_content_or_other_colours_do_not_look_the_same():
    pictures = [torch.from_numpy(numpy.array(drawn(i))).float() / 255 for i in range(40)]
    seen = Seen()
    for number, picture in enumerate(pictures):
        look = look_of(picture)
        assert look is not None and seen.same_as(look) is None
        seen.add(look, str(number))
    assert seen.same_as(look_of(pictures[7])) == "7"
    assert seen.same_as(look_of(pictures[7] * 0.7)) is None
    assert look_of(torch.full((9, 9, 3), 0.5)) is None


def test_sources_without_ratings_are_refused(taste, tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no .*none to import"):
        import_into(taste, tmp_path / "none")
    save(tmp_path / "in" / "plain.png")
    with pytest.raises(ValueError, match="holds no ratings"):
        import_into(taste, tmp_path / "in")
    with pytest.raises(ValueError, match="holds no ratings that are known; give a folder"):
        import_into(taste, tmp_path / "in" / "plain.png")
    with pytest.raises(ValueError, match="is no folder; likes reads"):
        import_into(taste, tmp_path / "in" / "plain.png", "likes")
    with pytest.raises(ValueError, match="the form is 'tags'; it must be one of likes"):
        import_into(taste, Path(tmp_path), "tags")

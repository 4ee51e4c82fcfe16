"""Pictures from files: the value that the file means, or an error with the file's name."""

from __future__ import annotations

import io
import os
import struct
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from chunk_grpo_core.cli.app import app
from chunk_grpo_core.rewards import picture_files
from chunk_grpo_core.rewards.analytic import target_image
from chunk_grpo_core.rewards.picture_files import from_pil, load_picture, read_picture
from chunk_grpo_core.rewards.pixels import to_levels, to_pil
from chunk_grpo_core.watch.pictures import save_png

SIZE = (5, 4)
"""Width, height."""
GREY = 30000 / 65535
"""0.458; read as white when it was cut at 255."""


def saved(image, form, **options):
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def png(width, height, depth, colour, data):
    """A PNG file with this head and this compressed data, whether they fit or not."""

    def chunk(name, body):
        return (
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        )

    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head)
    return start + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def even(kind, value, form):
    return saved(Image.fromarray(np.full(SIZE[::-1], value, dtype=kind)), form)


def png_16(colour, channels):
    row = b"\0" + struct.pack(">H", 30000) * channels * SIZE[0]
    return png(*SIZE, 16, colour, zlib.compress(row * SIZE[1]))


def opaque_16():
    pixel = struct.pack(">HHHH", 30000, 30000, 30000, 65535)
    return png(*SIZE, 16, 6, zlib.compress((b"\0" + pixel * SIZE[0]) * SIZE[1]))


def palette():
    image = Image.new("P", SIZE, 2)
    image.putpalette([0, 0, 0, 255, 0, 0, 117, 117, 117])
    return saved(image, "PNG")


def rgb(mode="RGB"):
    return Image.new("RGB", SIZE, (117,) * 3).convert(mode)


LEVEL = 117 / 255
ONE_LEVEL = 1 / 255


# The right value


def test_a_tensor_and_the_png_made_of_it_are_the_same_picture(tmp_path):
    picture = torch.rand(5, 7, 3) * 1.2 - 0.1
    read = load_picture(save_png(picture, tmp_path / "x.png"))
    assert torch.equal(to_levels(picture[None]), to_levels(read[None]))
    assert torch.equal(from_pil(to_pil(picture[None])[0]), read)


@pytest.mark.parametrize(
    ("data", "value", "tolerance"),
    [
        (even("uint16", 30000, "PNG"), GREY, 1e-7),
        (even("uint16", 30000, "TIFF"), GREY, 1e-7),
        (even("float32", 0.458, "TIFF"), 0.458, 1e-7),
        (even("float32", 1.0, "TIFF"), 1.0, 0.0),
        (png_16(2, 3), GREY, ONE_LEVEL),  # of colours Pillow keeps 8 bits
        (opaque_16(), GREY, ONE_LEVEL),
        (palette(), LEVEL, 1e-7),
        (saved(rgb("L"), "PNG"), LEVEL, 1e-7),
        (saved(rgb("LA"), "PNG"), LEVEL, 1e-7),
        (saved(rgb("RGBA"), "PNG"), LEVEL, 1e-7),
        (saved(rgb("RGBA"), "WEBP", lossless=True), LEVEL, 1e-7),
        (saved(rgb("CMYK"), "JPEG", quality=100), LEVEL, ONE_LEVEL),
        (saved(rgb(), "JPEG", quality=100), LEVEL, ONE_LEVEL),
        (saved(rgb(), "GIF"), LEVEL, 1e-7),
        (saved(rgb(), "BMP"), LEVEL, 1e-7),
        (saved(Image.new("1", SIZE, 1), "PNG"), 1.0, 0.0),
        (b"P5 5 4 65535\n" + struct.pack(">H", 30000) * 20, GREY, 1e-4),
    ],
    ids=(
        "grey16 grey16tif float float1 rgb16 rgba16 palette L LA RGBA webp CMYK jpeg gif bmp 1 pgm"
    ).split(),
)
def test_every_kind_of_picture_has_the_value_that_it_means(data, value, tolerance):
    picture = read_picture(io.BytesIO(data), "x")
    assert picture.shape == (4, 5, 3) and picture.dtype == torch.float32
    assert float((picture - value).abs().max()) <= tolerance


def test_transparent_pictures_lie_on_white():
    clear = np.full((2, 2, 4), (10, 20, 30, 0), dtype=np.uint8)
    assert torch.equal(from_pil(Image.fromarray(clear)), torch.ones(2, 2, 3))
    half = np.full((2, 2, 4), (0, 51, 255, 51), dtype=np.uint8)
    expected = torch.tensor([0.8, 0.84, 1.0]).expand(2, 2, 3)
    torch.testing.assert_close(from_pil(Image.fromarray(half)), expected)
    keyed = Image.new("L", SIZE, 117)
    data = saved(keyed, "PNG", transparency=117)  # a grey that stands for nothing
    assert torch.equal(read_picture(io.BytesIO(data), "x"), torch.ones(4, 5, 3))


def test_grey_pictures_become_colour():
    grey = Image.fromarray(np.array([[0, 51], [102, 255]], dtype=np.uint8))
    assert torch.equal(from_pil(grey)[..., 1] * 255, torch.tensor([[0.0, 51], [102, 255]]))
    assert torch.equal(from_pil(grey)[..., 0], from_pil(grey)[..., 2])


@pytest.mark.parametrize("kind", ["uint8", "uint16"])
def test_pictures_are_read_as_their_camera_held_them(tmp_path, kind):
    shape = (2, 4, 3) if kind == "uint8" else (2, 4)
    lying = Image.fromarray(np.arange(24, dtype=kind)[: np.prod(shape)].reshape(shape))
    facts = Image.Exif()
    facts[0x0112] = 6  # turn by 90 degrees
    lying.save(tmp_path / "x.png", exif=facts)
    found = load_picture(tmp_path / "x.png")
    assert found.shape == (4, 2, 3)
    top = 255 if kind == "uint8" else 65535
    values = torch.arange(24 if kind == "uint8" else 8).reshape(2, 4, -1) / top
    torch.testing.assert_close(found, values.flip(0).transpose(0, 1).expand(4, 2, 3))


def test_the_content_counts_and_not_the_ending(tmp_path):
    (tmp_path / "x.png").write_bytes(saved(rgb(), "JPEG", quality=100))
    assert float((load_picture(tmp_path / "x.png") - LEVEL).abs().max()) <= ONE_LEVEL


# An error with the file's name


def animation(form):
    frames = [Image.new("RGB", SIZE, (n, n, n)) for n in (0, 255)]
    return saved(frames[0], form, save_all=True, append_images=frames[1:])


GOOD = saved(rgb(), "PNG")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (even("int32", 2**30, "TIFF"), "whole, of 32 bits"),
        (even("float32", 128.0, "TIFF"), "lie in 128 to 128; they must be in 0 to 1"),
        (even("float32", float("nan"), "TIFF"), "must be in 0 to 1"),
        (animation("GIF"), "holds several pictures"),
        (animation("PNG"), "holds several pictures"),
        (animation("TIFF"), "holds several pictures"),
        (animation("WEBP"), "holds several pictures"),
        (b"", "is no picture that can be read"),
        (b"hello", "is no picture that can be read"),
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "is no picture that can be read"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is no picture that can be read"),
        (GOOD[:-30], "is damaged"),
        (png(60_000, 60_000, 8, 2, zlib.compress(bytes(1000))), "more than the 67,108,864"),
        (png(9000, 9000, 8, 2, zlib.compress(bytes(1000))), "9000 x 9000 pixels, more than"),
        (png(8000, 8000, 8, 2, zlib.compress(bytes(1000))), "is damaged: "),
        (png(0, 16, 8, 2, zlib.compress(bytes(100))), "x.png"),
    ],
)
def test_what_is_no_sound_picture_is_named(data, message, tmp_path, recwarn):
    path = tmp_path / "x.png"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=message) as error:
        load_picture(path)
    assert str(error.value).startswith(str(path))
    with pytest.raises(ValueError, match=message) as error:
        read_picture(io.BytesIO(data), "image 3 of x.png")
    assert str(error.value).startswith("image 3 of x.png ")
    assert not recwarn.list


def test_a_size_that_is_refused_is_never_unpacked(monkeypatch):
    def load(self):
        raise AssertionError("unpacked")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", load)
    with pytest.raises(ValueError, match="13000 x 13000 pixels"):
        read_picture(io.BytesIO(png(13_000, 13_000, 8, 2, zlib.compress(bytes(100)))), "x")


def test_postscript_is_opened_by_no_program(monkeypatch):
    """Pillow gives PostScript to Ghostscript."""
    opened = []
    monkeypatch.setattr("subprocess.check_call", lambda *words, **_: opened.append(words))
    data = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n" + b" " * 500
    with pytest.raises(ValueError, match="no picture"):
        read_picture(io.BytesIO(data), "x")
    assert not opened


def strange_files(folder):
    (folder / "folder.png").mkdir()
    os.mkfifo(folder / "pipe.png")
    (folder / "zeros.png").symlink_to("/dev/zero")
    (folder / "itself.png").symlink_to(folder / "itself.png")
    return {
        "folder": "is a folder; name the pictures in it, for example .*folder.png/",
        "pipe": "is no ordinary file",
        "zeros": "is no ordinary file",
        "itself": "there is no picture",
        "gone": "there is no picture",
    }


def test_what_is_no_ordinary_file_is_refused_at_once(tmp_path):
    for name, message in strange_files(tmp_path).items():
        with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
            load_picture(tmp_path / f"{name}.png")
        assert f"{name}.png" in str(error.value)
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            target_image(tmp_path / f"{name}.png")


def score(*words):
    return CliRunner().invoke(
        app, ["score", *map(str, words), "--reward", "brightness"], terminal_width=300
    )


def test_one_bad_file_among_many_ends_the_command_with_its_name(tmp_path):
    files = [tmp_path / f"{number}.png" for number in range(3)]
    for file in files:
        rgb().save(file)
    assert score(*files).exit_code == 0
    files[1].write_bytes(GOOD[:-30])
    for bad in (files[1], tmp_path, tmp_path / "gone.png"):
        result = score(files[0], bad, files[2])
        text = result.output.replace("\n", "")
        assert result.exit_code == 2 and str(bad) in text and "Traceback" not in text
        assert "score" not in result.stdout  # no table


def test_16_bits_of_grey_are_scored_as_what_they_are(tmp_path):
    (tmp_path / "x.png").write_bytes(even("uint16", 30000, "PNG"))
    assert "0.4588" in score(tmp_path / "x.png").stdout  # rounded to 8 bits, as rewards see it


# Whatever a file holds


_SOUND = [
    GOOD,
    palette(),
    even("uint16", 30000, "PNG"),
    even("float32", 0.4, "TIFF"),
    saved(rgb(), "JPEG"),
    saved(rgb("CMYK"), "JPEG"),
    saved(rgb("RGBA"), "WEBP"),
    saved(rgb(), "GIF"),
    saved(rgb(), "BMP"),
    saved(rgb(), "TIFF", compression="tiff_lzw"),
    saved(rgb(), "TGA"),
    saved(rgb(), "JPEG2000"),
    b"P6 5 4 255\n" + bytes(60),
]


@pytest.mark.slow
@given(
    st.sampled_from(_SOUND),
    st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), max_size=6),
    st.integers(0, 2000) | st.none(),
)
@settings(max_examples=300)
def test_any_bytes_are_a_picture_in_0_to_1_or_refused_by_name(data, changes, length):
    changed = bytearray(data)
    for place, value in changes:
        changed[place % len(changed)] = value
    try:
        picture = read_picture(io.BytesIO(bytes(changed[:length])), "image 7")
    except ValueError as error:
        assert str(error).startswith("image 7 ")
        return
    assert picture.ndim == 3 and picture.shape[2] == 3
    assert bool(((picture >= 0) & (picture <= 1)).all())


def test_the_formats_are_those_that_pillow_has():
    Image.init()
    assert {"PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP"} <= set(picture_files._FORMATS)
    assert not {"EPS", "WMF", "HDF5", "FITS"} & set(picture_files._FORMATS)

"""Every file that a clinic's folder may hold: read right, or refused in one line that names it."""

import io
import struct

import numpy as np
import pytest
from PIL import Image

from dermjax.data import images
from dermjax.errors import UserError


def gradient(height, width):
    """uint8 [height, width, 3], smooth: red grows to the right, green downwards."""
    rows, columns = np.mgrid[0:height, 0:width]
    red, green = 255 * columns / (width - 1), 255 * rows / (height - 1)
    return np.stack([red, green, np.full_like(red, 90)], axis=-1).astype(np.uint8)


def test_an_image_of_the_wanted_size_is_kept_to_the_bit(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    (tmp_path / "a.png").write_bytes(images.encode_png(pixels))
    np.testing.assert_array_equal(images.load(tmp_path / "a.png", 24), pixels)


@pytest.mark.parametrize("suffix", ["jpg", "JPG", "png", "tif", "bmp", "gif", "webp"])
def test_every_format_is_read(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(gradient(40, 40)).save(path)
    loaded = images.load(path, 32)
    assert loaded.shape == (32, 32, 3) and loaded.dtype == np.uint8
    assert abs(loaded.astype(int) - gradient(32, 32).astype(int)).mean() < 12


def test_a_wide_image_covers_the_square_from_its_centre(tmp_path):
    pixels = np.zeros((50, 150, 3), np.uint8)
    pixels[:, 50:100] = 255
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    assert images.load(tmp_path / "wide.png", 25)[:, 2:-2].min() > 250


def test_a_ribbon_of_an_image_stays_cheap(tmp_path):
    Image.new("RGB", (30_000, 2), (9, 9, 9)).save(tmp_path / "ribbon.png")
    assert images.load(tmp_path / "ribbon.png", 64).shape == (64, 64, 3)


@pytest.mark.parametrize("resize", [{"shortest_edge": 40, "resample": 3}, {"height": 50, "width": 40, "resample": 2}])
def test_the_middle_of_what_is_resized_is_what_transformers_cuts(tmp_path, resize):
    Image.fromarray(gradient(61, 90)).save(tmp_path / "a.png")
    width, height = (59, 40) if "shortest_edge" in resize else (40, 50)
    whole = Image.fromarray(gradient(61, 90)).resize((width, height), Image.Resampling(resize["resample"]))
    left, top = (width - 32) // 2, (height - 32) // 2
    expected = np.asarray(whole.crop((left, top, left + 32, top + 32))).astype(int)
    assert np.abs(images.load(tmp_path / "a.png", 32, resize) - expected).max() <= 1
    np.testing.assert_array_equal(images.load_any(gradient(61, 90), 32, resize),
                                  images.load(tmp_path / "a.png", 32, resize))  # fmt: skip


def test_a_ribbon_that_is_resized_stays_cheap(tmp_path):
    Image.new("RGB", (30_000, 2), (9, 9, 9)).save(tmp_path / "ribbon.png")
    assert (images.load(tmp_path / "ribbon.png", 64, {"shortest_edge": 80, "resample": 3}) == 9).all()


def test_a_jpeg_keeps_the_detail_that_a_larger_resize_asks_for(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (640, 640, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.jpg", quality=95)
    with Image.open(tmp_path / "a.jpg") as image:
        whole = np.asarray(image.convert("RGB"))
    resize = {"shortest_edge": 640, "resample": 3}
    np.testing.assert_array_equal(images.load(tmp_path / "a.jpg", 64, resize), whole[288:352, 288:352])


def test_a_large_jpeg_decoded_coarsely_looks_the_same(tmp_path):
    Image.fromarray(gradient(640, 640)).save(tmp_path / "large.jpg", quality=95)
    loaded = images.load(tmp_path / "large.jpg", 64)
    assert abs(loaded.astype(int) - gradient(64, 64).astype(int)).max() < 6


def test_a_turned_photograph_is_set_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera lay on its side: turn by 90 degrees clockwise
    Image.fromarray(np.rot90(gradient(32, 32))).save(tmp_path / "turned.png", exif=exif)
    np.testing.assert_array_equal(images.load(tmp_path / "turned.png", 32), gradient(32, 32))


def test_sixteen_bit_grey_is_scaled_and_not_clipped(tmp_path):
    grey = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    Image.fromarray(grey).save(tmp_path / "deep.png")
    np.testing.assert_array_equal(images.load(tmp_path / "deep.png", 16)[..., 0], np.rint(grey / 257))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_becomes_white(tmp_path, mode):
    clear = Image.new("RGBA", (16, 16), (200, 10, 10, 0)).convert(mode)
    clear.save(tmp_path / "clear.png", **({"transparency": 0} if mode == "P" else {}))
    np.testing.assert_array_equal(images.load(tmp_path / "clear.png", 16), 255)


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK"])
def test_every_mode_becomes_rgb(tmp_path, mode):
    Image.new("RGB", (16, 16), "white").convert(mode).save(tmp_path / "a.tif")
    np.testing.assert_array_equal(images.load(tmp_path / "a.tif", 16), 255)


def test_the_first_frame_of_an_animation_counts(tmp_path):
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("black", "white")]
    frames[0].save(tmp_path / "two.gif", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(images.load(tmp_path / "two.gif", 16), 0)


def test_zeroed_pixels_are_an_image(tmp_path):
    Image.new("RGB", (16, 16)).save(tmp_path / "black.png")
    assert images.load(tmp_path / "black.png", 16).max() == 0


def broken_files():
    buffer, noise = io.BytesIO(), np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(buffer, format="JPEG")
    deep = io.BytesIO()
    Image.new("F", (8, 8)).save(deep, format="TIFF")
    return {
        "truncated.jpg": buffer.getvalue()[:-900],
        "page.jpg": b"<!DOCTYPE html><html><body>404</body></html>",
        "pointer.png": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n",
        "empty.png": b"",
        "float.tif": deep.getvalue(),
        "zeroes.png": bytes(4096),
        "cut.png": images.encode_png(noise)[:-900],
        "flipped.png": images.encode_png(gradient(64, 64)).replace(b"IDAT", b"IDAT\xff\xff", 1),
    }


@pytest.mark.parametrize("name", sorted(broken_files()))
def test_a_broken_file_is_named_in_one_line(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(broken_files()[name])
    with pytest.raises(UserError, match=name) as caught:
        images.load(path, 32)
    assert "\n" not in str(caught.value) and str(caught.value).count(str(path)) == 1


def test_a_page_in_disguise_is_called_no_image(tmp_path):
    (tmp_path / "page.jpg").write_bytes(broken_files()["page.jpg"])
    with pytest.raises(UserError, match=r"not an image"):
        images.load(tmp_path / "page.jpg", 32)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"gone.png.*No such file"):
        images.load(tmp_path / "gone.png", 32)


def test_a_decompression_bomb_is_refused(tmp_path):
    Image.new("1", (10_000, 10_000)).save(tmp_path / "bomb.png")
    with pytest.raises(UserError, match=r"bomb.png"):
        images.load(tmp_path / "bomb.png", 32)


@pytest.mark.parametrize(
    "name, mode, more, told",
    [
        ("plain.png", "RGB", {}, ()),
        ("clear.png", "RGBA", {}, ("laid on white",)),
        ("deep.png", "I;16", {}, ("16-bit grey scaled to 8",)),
        ("press.tif", "CMYK", {}, ("CMYK made RGB",)),
        (
            "two.gif",
            "RGB",
            {"save_all": True, "append_images": [Image.new("RGB", (8, 8), "red")]},
            ("first frame of several",),
        ),
    ],
)
def test_what_is_done_to_pixels_is_told_by_the_header(tmp_path, name, mode, more, told):
    Image.new(mode, (8, 8)).save(tmp_path / name, **more)
    assert images.read_header(tmp_path / name) == ("", told)


def profile(name, primaries):
    """The bytes of an ICC profile of three primaries (XYZ under D50) and gamma 2 (ICC.1:2001-04, matrix and curves)."""
    white, size = (0.9642, 1, 0.8249), 128 + 4 + 8 * 12

    def xyz(values):
        return b"XYZ \0\0\0\0" + b"".join(struct.pack(">i", round(value * 65536)) for value in values)

    text = name.encode() + b"\0"
    described = b"desc\0\0\0\0" + struct.pack(">I", len(text)) + text + bytes(78)
    curve = b"curv\0\0\0\0" + struct.pack(">IHH", 1, 2 * 256, 0)
    tags = {b"desc": described + bytes(-len(described) % 4), b"wtpt": xyz(white)}
    tags |= dict(zip((b"rXYZ", b"gXYZ", b"bXYZ"), map(xyz, primaries), strict=True))
    tags |= dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve)
    table, body = struct.pack(">I", len(tags)), b""
    for tag, content in tags.items():
        table += tag + struct.pack(">II", size + len(body), len(content))
        body += content
    head = struct.pack(">I", size + len(body)) + bytes(4) + b"\x02\x40\0\0" + b"mntrRGB XYZ " + bytes(12) + b"acsp"
    head += bytes(28) + b"".join(struct.pack(">i", round(value * 65536)) for value in white)
    return head.ljust(128, b"\0") + table + body


SRGB = ((0.4361, 0.2225, 0.0139), (0.3851, 0.7169, 0.0971), (0.1431, 0.0606, 0.7141))
SWAPPED = (SRGB[1], SRGB[0], SRGB[2])  # a camera whose red is sRGB's green


@pytest.mark.parametrize(
    "name, mode, colour, read",
    [
        ("a.png", "RGB", (255, 0, 0), (0, 255, 0)),
        ("a.jpg", "RGB", (255, 0, 0), (0, 255, 0)),
        ("a.png", "RGBA", (255, 0, 0, 255), (0, 255, 0)),
        ("a.png", "RGBA", (255, 0, 0, 0), (255, 255, 255)),
        ("a.png", "P", 0, (0, 255, 0)),
        ("a.png", "RGB", (128, 128, 128), (137, 137, 137)),  # 255 x sRGB's curve of (128 / 255) ** 2
    ],
)
def test_colours_of_a_profile_are_made_srgb(tmp_path, name, mode, colour, read):
    image = Image.new(mode, (16, 16), colour)
    if mode == "P":
        image.putpalette([255, 0, 0])
    image.save(tmp_path / name, icc_profile=profile("Camera RGB", SWAPPED))
    assert np.abs(images.load(tmp_path / name, 8).astype(int) - read).max() <= 2
    assert "colour profile made sRGB" in images.read_header(tmp_path / name)[1]


@pytest.mark.parametrize(
    "content", [profile("sRGB IEC61966-2.1", SRGB), b"damaged", profile("Camera RGB", SWAPPED)[:200]]
)
def test_a_profile_that_is_srgb_or_damaged_changes_no_pixel(tmp_path, content):
    pixels = gradient(16, 16)
    Image.fromarray(pixels).save(tmp_path / "a.png", icc_profile=content)
    np.testing.assert_array_equal(images.load(tmp_path / "a.png", 16), pixels)
    assert images.read_header(tmp_path / "a.png") == ("", ())


def test_a_profile_of_other_pixels_than_the_files_changes_none(tmp_path):
    Image.new("L", (16, 16), 128).save(tmp_path / "a.png", icc_profile=profile("Camera RGB", SWAPPED))
    assert (images.load(tmp_path / "a.png", 8) == 128).all()


def test_the_camera_and_its_position_are_told(tmp_path):
    exif = Image.Exif()
    exif[0x010F], exif[0x0110], exif[0x0112] = "FotoFinder \0", "bodystudio", 3
    Image.new("RGB", (8, 8)).save(tmp_path / "a.jpg", exif=exif)
    assert images.read_header(tmp_path / "a.jpg") == ("FotoFinder bodystudio", ("turned upright",))
    with pytest.raises(UserError, match=r"gone\.jpg: cannot be decoded"):
        images.read_header(tmp_path / "gone.jpg")


def test_a_photograph_of_a_phone_with_a_preview_inside_is_read(tmp_path):
    """MPO: JPEGs one after the other in a file that is named .jpg."""
    first, preview = Image.fromarray(gradient(64, 64)), Image.new("RGB", (16, 16))
    first.save(tmp_path / "phone.jpg", format="MPO", save_all=True, append_images=[preview], quality=95)
    loaded = images.load(tmp_path / "phone.jpg", 32)
    assert abs(loaded.astype(int) - gradient(32, 32).astype(int)).mean() < 4


def test_the_model_range_is_minus_one_to_one_and_back_without_loss():
    every = np.arange(256, dtype=np.uint8)
    values = images.to_model(every)
    assert values.dtype == np.float32 and values[0] == -1 and values[-1] == 1
    np.testing.assert_array_equal(images.from_model(values), every)
    np.testing.assert_array_equal(images.from_model(np.array([-3.0, 3.0])), [0, 255])


def test_grey_deeper_than_sixteen_bits_is_refused_rather_than_clipped(tmp_path):
    Image.fromarray(np.full((8, 8), 70_000, np.int32)).save(tmp_path / "deep.tif")
    with pytest.raises(UserError, match=r"deep\.tif.*deeper than 16 bits"):
        images.load(tmp_path / "deep.tif", 8)


def test_grey_below_zero_is_refused_and_either_order_of_bytes_is_read(tmp_path):
    grey = np.full((8, 8), 30_000, np.int32)
    Image.fromarray(-grey).save(tmp_path / "below.tif")
    with pytest.raises(UserError, match=r"below\.tif: cannot be decoded \(grey below 0 or deeper than 16 bits"):
        images.load(tmp_path / "below.tif", 8)
    Image.frombytes("I;16B", (8, 8), grey.astype(">u2").tobytes()).save(tmp_path / "big.tif")
    assert images.load(tmp_path / "big.tif", 8).max() == 117


def test_a_jpeg_that_was_filled_up_with_zeros_is_only_a_part(tmp_path):
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(buffer, "JPEG")
    whole = buffer.getvalue()
    (tmp_path / "padded.jpg").write_bytes(whole + bytes(4096))  # some cameras fill up the last block
    assert images.load(tmp_path / "padded.jpg", 64).shape == (64, 64, 3)
    (tmp_path / "part.jpg").write_bytes(whole[: len(whole) // 2] + bytes(len(whole) // 2))
    for read in (images.decode, lambda path: images.load(path, 16)):
        with pytest.raises(UserError, match=r"part\.jpg: cannot be decoded \(only zeros from some place on"):
            read(tmp_path / "part.jpg")


def test_a_photograph_of_a_phone_that_was_broken_off_is_only_a_part(tmp_path):
    """MPO: with a second picture behind the first."""
    first, second = (Image.fromarray(gradient(64, 64)[::step]) for step in (1, -1))
    first.save(tmp_path / "phone.jpg", format="MPO", save_all=True, append_images=[second])
    whole = (tmp_path / "phone.jpg").read_bytes()
    (tmp_path / "phone.jpg").write_bytes(whole[: len(whole) // 4] + bytes(len(whole) // 2))
    with pytest.raises(UserError, match=r"phone\.jpg: cannot be decoded"):
        images.decode(tmp_path / "phone.jpg")


@pytest.mark.parametrize("suffix", ["jpg", "tif", "png"])
def test_the_shape_is_that_of_the_pixels_as_they_lie(tmp_path, suffix):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (96, 64)).save(tmp_path / f"a.{suffix}", exif=exif)
    assert images.read_shape(tmp_path / f"a.{suffix}") == (96, 64, 6)


def test_damaged_tags_print_nothing(tmp_path, recwarn):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.jpg", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    assert images.read_header(tmp_path / "a.jpg") == ("", ())
    assert images.load(tmp_path / "a.jpg", 8).shape == (8, 8, 3)

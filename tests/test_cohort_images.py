"""Which images are read, as what, and what a person is told of the others."""

from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from hemomil.cohort import check_images, image_size, read_image
from hemomil.errors import ImageError
from hemomil.types import Cohort, ImageRow, Sample

RGB = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
GREY = RGB[..., 0]
WIDE = RGB.astype(np.uint16) * 257
PLANES = np.ascontiguousarray(RGB.transpose(2, 0, 1))
TURNED = np.rot90(RGB, -1)


def picture(mode: str = "RGB") -> Image.Image:
    return Image.fromarray(RGB).convert(mode)


def tiff(path: Path, values: np.ndarray, **options) -> None:
    tifffile.imwrite(path, values, **options)


def exif_turned(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    picture().save(path, exif=exif)


def pyramid(path: Path) -> None:
    with tifffile.TiffWriter(path) as writer:
        writer.write(np.tile(RGB, (4, 4, 1)), subifds=1, tile=(16, 16), photometric="rgb")
        writer.write(np.tile(RGB, (4, 4, 1))[::2, ::2], subfiletype=1, tile=(16, 16), photometric="rgb")


def three_times(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[..., None], 3, axis=2)


def on_white(rgb: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    share = alpha[..., None] / 255
    return np.round(rgb * share + 255 * (1 - share))


ALPHA = np.linspace(0, 255, 600).astype(np.uint8).reshape(20, 30)
RGBA = np.dstack([RGB, ALPHA])

EXACT = {
    "rgb.png": (lambda p: picture().save(p), RGB),
    "grey.png": (lambda p: Image.fromarray(GREY).save(p), three_times(GREY)),
    "bits.png": (
        lambda p: Image.fromarray(GREY > 127).save(p),
        three_times(np.where(GREY > 127, 255, 0)),
    ),
    "bits.tif": (
        lambda p: tiff(p, GREY > 127, photometric="minisblack"),
        three_times(np.where(GREY > 127, 255, 0)),
    ),
    "palette.png": (lambda p: picture("P").save(p), np.asarray(picture("P").convert("RGB"))),
    "palette.tif": (lambda p: picture("P").save(p), np.asarray(picture("P").convert("RGB"))),
    "alpha.png": (lambda p: Image.fromarray(RGBA).save(p), on_white(RGB, ALPHA)),
    "alpha.tif": (lambda p: Image.fromarray(RGBA).save(p), on_white(RGB, ALPHA)),
    "grey-alpha.png": (
        lambda p: Image.fromarray(np.dstack([GREY, ALPHA])).save(p),
        on_white(three_times(GREY), ALPHA),
    ),
    "cmyk.tif": (lambda p: picture("CMYK").save(p), RGB),
    "turned.png": (exif_turned, TURNED),
    "turned.tif": (lambda p: tiff(p, RGB, photometric="rgb", extratags=[(274, 3, 1, 6, True)]), TURNED),
    "grey16.png": (lambda p: Image.fromarray(WIDE[..., 0]).save(p), three_times(GREY)),
    "grey16.tif": (lambda p: tiff(p, WIDE[..., 0]), three_times(GREY)),
    "rgb16.tif": (lambda p: tiff(p, WIDE, photometric="rgb"), RGB),
    "rgb16be.tif": (lambda p: tiff(p, WIDE, photometric="rgb", byteorder=">"), RGB),
    "big.tif": (lambda p: tiff(p, RGB, photometric="rgb", bigtiff=True), RGB),
    "twelve-bits.ome.tif": (
        lambda p: tiff(
            p, RGB.astype(np.uint16) << 4, photometric="rgb", metadata={"axes": "YXS", "SignificantBits": 12}
        ),
        RGB,
    ),
    "planar.tif": (lambda p: tiff(p, PLANES, photometric="rgb", planarconfig="separate"), RGB),
    "channels.ome.tif": (lambda p: tiff(p, PLANES, photometric="minisblack", metadata={"axes": "CYX"}), RGB),
    "imagej.tif": (
        lambda p: tiff(p, PLANES, imagej=True, photometric="minisblack", metadata={"axes": "CYX"}),
        RGB,
    ),
    "inverted.tif": (lambda p: tiff(p, GREY, photometric="miniswhite"), three_times(255 - GREY)),
    "lzw.tif": (lambda p: picture().save(p, compression="tiff_lzw"), RGB),
    "deflate.tif": (lambda p: tiff(p, RGB, photometric="rgb", compression="zlib", tile=(16, 16)), RGB),
    "pyramid.ome.tif": (pyramid, np.tile(RGB, (4, 4, 1))),
}


@pytest.mark.parametrize("name", EXACT)
def test_every_kind_of_image_becomes_the_rgb_it_shows(tmp_path, name):
    write, expected = EXACT[name]
    write(tmp_path / name)
    rgb = read_image(tmp_path / name)
    # CMYK and alpha round once more
    assert np.abs(rgb.astype(int) - expected).max() <= (1 if "alpha" in name or "cmyk" in name else 0)
    assert rgb.dtype == np.uint8
    assert rgb.flags.writeable
    assert rgb.flags.c_contiguous
    assert image_size(tmp_path / name) == (rgb.shape[1], rgb.shape[0])
    assert check_images(cohort(tmp_path / name)) == []


@pytest.mark.parametrize(
    ("name", "mode"),
    [("a.jpg", "RGB"), ("l.jpg", "L"), ("cmyk.jpg", "CMYK"), ("jpeg.tif", "RGB"), ("y.tif", "YCbCr")],
)
def test_lossy_images_come_near(tmp_path, name, mode):
    smooth = np.linspace(60, 200, 64)[None, :, None] * np.ones((48, 1, 3))
    image = Image.fromarray(smooth.astype(np.uint8)).convert(mode)
    image.save(tmp_path / name, **({"compression": "jpeg"} if name == "jpeg.tif" else {}))
    assert np.abs(read_image(tmp_path / name) - smooth).max() < 10
    assert check_images(cohort(tmp_path / name)) == []


def test_sixteen_bits_are_scaled_by_a_fixed_rule_not_by_the_image(tmp_path):
    half = (WIDE // 2).astype(np.uint16)
    tiff(tmp_path / "half.tif", half, photometric="rgb")
    assert np.array_equal(read_image(tmp_path / "half.tif"), half >> 8)


BAD = {
    "zero.png": (lambda p: p.write_bytes(b""), "is empty (0 bytes)"),
    "text.png": (lambda p: p.write_text("not an image"), "is not a PNG, JPEG or TIFF image"),
    "text.tif": (lambda p: p.write_bytes(b"II*\0 not an image"), "is damaged"),
    "a.bmp": (lambda p: picture().save(p), "is not a PNG, JPEG or TIFF image"),
    "one.png": (lambda p: picture().crop((0, 0, 1, 1)).save(p), "is 1x1 pixels"),
    "one.tif": (lambda p: picture().crop((0, 0, 1, 1)).save(p), "is 1x1 pixels"),
    "flat.png": (lambda p: picture().crop((0, 0, 30, 7)).save(p), "is 30x7 pixels"),
    "film.png": (lambda p: picture().save(p, save_all=True, append_images=[picture("L")]), "is an animation"),
    "pages.tif": (lambda p: picture().save(p, save_all=True, append_images=[picture()]), "several pages"),
    "z.ome.tif": (
        lambda p: tiff(p, PLANES, photometric="minisblack", metadata={"axes": "ZYX"}),
        "several pages or planes (3 along Z)",
    ),
    "fluorescence.ome.tif": (
        lambda p: tiff(
            p, np.zeros((4, 20, 30), np.uint8), photometric="minisblack", metadata={"axes": "CYX"}
        ),
        "4 along C",
    ),
    "float.tif": (lambda p: tiff(p, RGB.astype(np.float32), photometric="rgb"), "has float32 pixels"),
    "signed.tif": (lambda p: tiff(p, GREY.astype(np.int16)), "has int16 pixels"),
    "twelve-bits.tif": (lambda p: tiff(p, WIDE >> 4, photometric="rgb"), "a camera of 12 bits?"),
    "folder.png": (lambda p: p.mkdir(), "is a folder"),
    "gone.png": (lambda p: None, "is not there"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_read_is_named_with_a_remedy_and_checking_finds_it(tmp_path, name):
    write, expected = BAD[name]
    write(tmp_path / name)
    with pytest.raises(ImageError) as caught:
        read_image(tmp_path / name)
    assert str(tmp_path / name) in caught.value.message
    assert expected in caught.value.message
    assert caught.value.hint
    (problem,) = check_images(cohort(tmp_path / name))
    assert expected in problem.text
    assert problem.row == 2


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif", "lzw.tif", "grey16.tif", "grey16.png"])
def test_a_truncated_image_is_never_read_and_always_found(tmp_path, name, share):
    large = np.random.default_rng(1).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    if name.startswith("grey16"):
        Image.fromarray(large[..., 0].astype(np.uint16) * 257).save(tmp_path / name)
    else:
        options = {"compression": "tiff_lzw"} if name == "lzw.tif" else {}
        Image.fromarray(large).save(tmp_path / name, **options)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(ImageError):
        read_image(tmp_path / name)
    assert len(check_images(cohort(tmp_path / name))) == 1


def cohort(*paths: Path, region: tuple[int, int, int, int] | None = None) -> Cohort:
    images = tuple(ImageRow(image=p.name, path=p, row=k + 2, region=region) for k, p in enumerate(paths))
    return Cohort(samples=(Sample(sample="s", patient="p", label=None, images=images),))


def test_a_file_of_many_rows_is_one_problem(tmp_path):
    path = tmp_path / "zero.png"
    path.write_bytes(b"")
    (problem,) = check_images(cohort(path, path, path))
    assert (problem.row, problem.text) == (2, "is empty (0 bytes) (also rows 3-4)")


def test_a_region_must_lie_inside_its_image(tmp_path):
    picture().save(tmp_path / "a.png")
    assert check_images(cohort(tmp_path / "a.png", region=(0, 0, 30, 20))) == []
    (problem,) = check_images(cohort(tmp_path / "a.png", region=(0, 0, 31, 20)))
    assert "row 2: region 0 0 31 20 leaves its image 'a.png' of 30x20 pixels" in str(problem)


def test_a_stitched_field_is_read_without_a_warning(tmp_path, recwarn):
    Image.new("1", (9600, 9500), 1).save(tmp_path / "stitched.png")
    assert read_image(tmp_path / "stitched.png").shape == (9500, 9600, 3)
    assert not recwarn.list


def test_a_whole_slide_is_refused_before_it_is_unpacked(tmp_path):
    Image.new("1", (24000, 24000), 1).save(tmp_path / "slide.png")
    with pytest.raises(ImageError, match="24000x24000 pixels: a whole slide"):
        image_size(tmp_path / "slide.png")
    with pytest.raises(ImageError, match="24000x24000 pixels: a whole slide"):
        read_image(tmp_path / "slide.png")

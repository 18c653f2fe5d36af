import io
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ensembles import images
from ensembles.images import (
    ImageError,
    list_images,
    load_image,
    measure_image,
    open_image,
    scan_images,
)
from ensembles.inputs import Fit, ImageInput
from ensembles.ordering import natural_order

GREY = ImageInput(size=8, channels=1)
RGB = ImageInput(size=8, channels=3)


def picture_bytes(picture: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def noise(height: int, width: int, channels: int, seed: int = 0) -> np.ndarray:
    shape = (height, width, channels)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def test_a_picture_of_the_right_size_keeps_its_pixels() -> None:
    pixels = noise(8, 8, 3)

    np.testing.assert_array_equal(load_image(pixels, RGB), pixels)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_file_its_bytes_a_picture_and_an_array_give_the_same_pixels(
    tmp_path: Path, channels: int
) -> None:
    image_input = ImageInput(size=8, channels=channels)
    pixels = noise(37, 52, channels)
    picture = Image.fromarray(pixels.squeeze())
    (tmp_path / "a.png").write_bytes(picture_bytes(picture))

    fitted = load_image(pixels, image_input)

    assert fitted.shape == (8, 8, channels)
    for source in (tmp_path / "a.png", picture_bytes(picture), picture):
        np.testing.assert_array_equal(load_image(source, image_input), fitted)


@pytest.mark.parametrize("shape", [(8, 8), (8, 8, 1)])
def test_grey_arrays_become_three_equal_channels(shape: tuple[int, ...]) -> None:
    pixels = noise(8, 8, 1).reshape(shape)

    fitted = load_image(pixels, RGB)

    for channel in range(3):
        np.testing.assert_array_equal(fitted[:, :, channel], pixels.reshape(8, 8))


def test_resizing_averages_instead_of_picking_pixels() -> None:
    stripes = np.tile(np.array([0, 255], dtype=np.uint8), (64, 32))

    fitted = load_image(stripes, GREY)

    assert np.abs(fitted.astype(int) - 127).max() <= 2


@pytest.mark.parametrize(("fit", "left", "middle"), [("crop", 200, 200), ("pad", 50, 200)])
def test_crop_keeps_the_middle_and_pad_keeps_everything(fit: Fit, left: int, middle: int) -> None:
    wide = np.full((16, 32), 50, dtype=np.uint8)
    wide[:, 6:26] = 200

    fitted = load_image(wide, ImageInput(size=8, channels=1, fit=fit))[:, :, 0]

    assert fitted[4, 0] == left
    assert fitted[4, 4] == middle
    assert fitted[0, 4] == (0 if fit == "pad" else 200)


def test_stretch_fills_the_square() -> None:
    wide = np.repeat(np.array([[50, 200]], dtype=np.uint8), 16, axis=0).repeat(16, axis=1)

    fitted = load_image(wide, ImageInput(size=8, channels=1, fit="stretch"))[:, :, 0]

    assert (fitted[:, :3] == 50).all()
    assert (fitted[:, 5:] == 200).all()


def test_a_line_of_pixels_can_be_padded() -> None:
    line = np.full((1, 500), 90, dtype=np.uint8)

    fitted = load_image(line, ImageInput(size=8, channels=1, fit="pad"))[:, :, 0]

    assert (fitted == 90).sum() == 8


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photo_stands_upright_however_the_camera_was_held(orientation: int) -> None:
    upright = noise(8, 8, 1)[:, :, 0]
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.T,
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].T,
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation

    photo = picture_bytes(Image.fromarray(np.ascontiguousarray(stored)), exif=exif)

    np.testing.assert_array_equal(load_image(photo, GREY)[:, :, 0], upright)


def test_damaged_exif_leaves_a_photo_as_it_is() -> None:
    pixels = noise(8, 8, 1)
    photo = picture_bytes(Image.fromarray(pixels[:, :, 0]), exif=b"Exif\x00\x00MM\x00\xff\xff")

    np.testing.assert_array_equal(load_image(photo, GREY), pixels)


def test_transparent_pixels_lie_on_white() -> None:
    pixels = np.zeros((8, 8, 4), dtype=np.uint8)
    pixels[:4, :, 3] = 255

    fitted = load_image(pixels, RGB)

    assert (fitted[:4] == 0).all()
    assert (fitted[4:] == 255).all()


@pytest.mark.parametrize("mode", ["LA", "RGBA", "PA", "RGBa", "La"])
def test_half_transparent_black_is_middle_grey_in_every_mode(mode: str) -> None:
    picture = Image.new("RGBA", (8, 8), (0, 0, 0, 128))
    picture = picture.convert({"La": "LA", "PA": "P"}.get(mode, "RGBA"))
    if mode == "PA":
        picture = Image.new("PA", (8, 8), (0, 128))
    elif mode in ("LA", "La", "RGBa"):
        picture = picture.convert(mode)

    assert np.unique(load_image(picture, GREY)).tolist() == [127]


def test_a_palette_with_a_transparent_entry_shows_white_there() -> None:
    picture = Image.new("P", (8, 8), 1)
    picture.putpalette([255, 0, 0, 0, 0, 255])
    picture.paste(0, (0, 0, 4, 8))

    fitted = load_image(picture_bytes(picture, transparency=0), RGB)

    assert fitted[0, 0].tolist() == [255, 255, 255]
    assert fitted[0, 7].tolist() == [0, 0, 255]


def test_sixteen_bits_keep_their_upper_byte() -> None:
    picture = Image.fromarray(np.full((8, 8), 0xABCD, dtype=np.uint16))

    for source in (picture_bytes(picture), picture_bytes(picture, "TIFF"), picture):
        assert np.unique(load_image(source, GREY)).tolist() == [0xAB]


def test_thirty_two_bits_beyond_sixteen_are_refused() -> None:
    picture = Image.fromarray(np.full((8, 8), 1 << 20, dtype=np.int32))

    with pytest.raises(ImageError, match="go from 1048576 to 1048576, not 0 to 65535"):
        load_image(picture, GREY)


def test_float_pixels_are_refused() -> None:
    picture = Image.fromarray(np.zeros((8, 8), dtype=np.float32))

    with pytest.raises(ImageError, match="its pixels are floats"):
        load_image(picture_bytes(picture, "TIFF"), GREY)


def test_cmyk_and_one_bit_are_converted() -> None:
    cyan = Image.new("CMYK", (8, 8), (255, 0, 0, 0))
    white = Image.new("1", (8, 8), 1)

    assert load_image(picture_bytes(cyan, "TIFF"), RGB)[0, 0].tolist() == [0, 255, 255]
    assert np.unique(load_image(picture_bytes(white), GREY)).tolist() == [255]
    assert open_image(white).mode == "L"


def test_a_gif_shows_its_first_frame() -> None:
    frames = [Image.new("L", (8, 8), grey) for grey in (10, 200)]

    gif = picture_bytes(frames[0], "GIF", save_all=True, append_images=frames[1:])

    assert np.unique(load_image(gif, GREY)).tolist() == [10]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000"])
def test_every_format_is_read(kind: str) -> None:
    plain = Image.new("RGB", (8, 8), (120, 120, 120))

    assert np.abs(load_image(picture_bytes(plain, kind), RGB).astype(int) - 120).max() <= 2


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_truncated_file_is_an_error(kind: str) -> None:
    whole = picture_bytes(Image.fromarray(noise(64, 64, 3)), kind)

    with pytest.raises(ImageError, match="truncated"):
        load_image(whole[: len(whole) // 2], RGB)


def test_a_picture_beyond_the_pixel_limit_is_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = picture_bytes(Image.new("L", (40, 30)))
    monkeypatch.setattr(images, "MAX_PIXELS", 1000)

    with pytest.raises(ImageError, match="more than 1,000 pixels: 40 x 30"):
        load_image(whole, GREY)


def test_a_decompression_bomb_is_refused_by_its_header(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = picture_bytes(Image.new("L", (40, 30)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)

    with pytest.raises(ImageError, match="more than 89,478,485 pixels"):
        load_image(whole, GREY)


def test_what_is_no_picture_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "notes.png").write_text("dear diary")
    (tmp_path / "empty.png").touch()

    with pytest.raises(ImageError, match=r"^not a picture in a known format$"):
        load_image(tmp_path / "notes.png", RGB)
    with pytest.raises(ImageError, match=r"^empty file$"):
        load_image(tmp_path / "empty.png", RGB)
    with pytest.raises(ImageError, match=r"^No such file or directory$"):
        load_image(tmp_path / "gone.png", RGB)
    with pytest.raises(ImageError, match=r"^Is a directory$"):
        load_image(tmp_path, RGB)


def test_postscript_is_not_run() -> None:
    with pytest.raises(ImageError, match="not a picture in a known format"):
        load_image(picture_bytes(Image.new("RGB", (8, 8)), "EPS"), RGB)


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((8, 8), dtype=np.float32),
        np.zeros((8, 8, 2), dtype=np.uint8),
        np.zeros((0, 8), dtype=np.uint8),
        np.zeros(8, dtype=np.uint8),
    ],
)
def test_arrays_that_are_no_pixels_are_refused(pixels: np.ndarray) -> None:
    with pytest.raises(ImageError, match=r"must be uint8, shaped \(h, w\)"):
        load_image(pixels, RGB)
    with pytest.raises(ImageError, match=r"must be uint8, shaped \(h, w\)"):
        measure_image(pixels)


def test_a_picture_is_measured_by_its_header(tmp_path: Path) -> None:
    picture = Image.fromarray(noise(5, 9, 3))
    picture.save(tmp_path / "a.png")
    whole = picture_bytes(picture)

    for source in (tmp_path / "a.png", whole, whole[:60], picture, np.asarray(picture)):
        assert measure_image(source) == (9, 5)


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=150, deadline=None)
@given(
    kind=st.sampled_from(["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000"]),
    wounds=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=12),
)
def test_a_damaged_file_gives_pixels_or_an_image_error(
    kind: str, wounds: list[tuple[float, int]]
) -> None:
    damaged = bytearray(picture_bytes(Image.fromarray(noise(12, 12, 3)), kind))
    for place, value in wounds:
        damaged[int(place * (len(damaged) - 1))] = value

    try:
        outcome = str(load_image(bytes(damaged), RGB).shape)
    except ImageError as error:
        outcome = str(error)

    assert outcome
    assert "\n" not in outcome


def test_pictures_are_listed_below_a_folder_in_natural_order(tmp_path: Path) -> None:
    names = ["b/1.png", "a/10.JPG", "a/2.jpg", "a/.hidden.png", ".git/x.png", "a/notes.txt"]
    for name in [*names, "__MACOSX/y.png", "c.webp"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()

    listed = [path.relative_to(tmp_path).as_posix() for path in list_images(tmp_path)]

    assert listed == ["a/2.jpg", "a/10.JPG", "b/1.png", "c.webp"]


@pytest.mark.parametrize("end", ["", "9", "shots 2", "shots 2/"])
def test_the_name_of_the_folder_does_not_change_the_order_of_what_is_in_it(
    tmp_path: Path, end: str
) -> None:
    root = tmp_path / end
    for name in ("10.png", "9.png", "x/1.png", "x1.png", "09.png", "1/b.png"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()

    paths = [file.path for file in scan_images(f"{tmp_path}/{end}")]

    assert paths == sorted(paths, key=natural_order)
    assert len(paths) == 6


def test_a_link_back_up_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.png").touch()
    (tmp_path / "a" / "up").symlink_to(tmp_path)

    assert list_images(tmp_path) == [tmp_path / "a" / "1.png"]


def test_a_folder_that_is_not_there_cannot_be_listed(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"cannot list .*: No such file or directory"):
        list_images(tmp_path / "gone")


@pytest.fixture
def pipe(tmp_path: Path) -> Path:
    """Return a pipe that nobody writes to: whoever opens it to read waits for ever."""
    path = tmp_path / "pipe.png"
    os.mkfifo(path)
    return path


def test_only_regular_files_are_listed(pipe: Path) -> None:
    folder = pipe.parent
    (folder / "1.png").touch()
    (folder / "2.png").symlink_to("1.png")
    (folder / "3.png").symlink_to(pipe)
    (folder / "4.png").symlink_to("/dev/zero")

    assert list_images(folder) == [folder / "1.png", folder / "2.png"]


@pytest.mark.parametrize("read", [open_image, measure_image])
def test_a_pipe_is_refused_and_not_opened(pipe: Path, read: Callable[[Path], object]) -> None:
    with pytest.raises(ImageError, match=r"^not a regular file$"):
        read(pipe)

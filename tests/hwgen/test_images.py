"""Images from files, folders, arrays and batches: the same numbers, or the fault named."""

import sys
import zipfile

import numpy as np
import pytest

from hwgen import images
from hwgen.errors import UserError

IMAGES = np.arange(24, dtype=np.float32).reshape(3, 1, 2, 4)
INPUTS = {"image": (1, 2, 4)}


def read(source, limit=None):
    return images.read(source, INPUTS, limit)["image"]


@pytest.mark.parametrize("kind", ["u1", "f2", ">f4", "f8", "i8", "?"])
def test_any_numbers_become_float32(tmp_path, kind):
    np.savez(tmp_path / "x.npz", image=IMAGES.astype(kind))
    found = read(tmp_path / "x.npz", limit=2)
    assert found.dtype == np.float32
    assert np.array_equal(found, IMAGES[:2].astype(kind))


def test_other_arrays_are_ignored_whatever_they_hold(tmp_path):
    np.savez(tmp_path / "x.npz", image=IMAGES, names=np.array([{"a": 1}], dtype=object), label=np.zeros(7))
    assert np.array_equal(read(tmp_path / "x.npz"), IMAGES)


def test_values_beyond_float32_are_named(tmp_path):
    np.savez(tmp_path / "x.npz", image=np.stack([IMAGES[0].astype(np.float64), np.full((1, 2, 4), 1e200)]))
    with pytest.raises(UserError, match="x.npz: array 'image' holds a value beyond float32 in image 1"):
        read(tmp_path / "x.npz")


def test_damaged_files_are_named(tmp_path):
    path = tmp_path / "x.npz"
    np.savez_compressed(path, image=IMAGES)
    good = path.read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(200):
        bad = bytearray(good)
        for place in rng.integers(len(bad), size=3):
            bad[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(bad)
        try:
            read(path)
        except UserError as error:
            assert "x.npz" in str(error)
    path.write_text("an ordinary text")
    with pytest.raises(UserError, match="x.npz: not an .npz file"):
        read(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("image", "no array")
    with pytest.raises(UserError, match="x.npz: has no array 'image'"):
        read(path)


@pytest.mark.parametrize(
    "source",
    [
        lambda: {"image": IMAGES, "other": "text"},
        lambda: IMAGES,
        lambda: [IMAGES[:1], IMAGES[1:]],
        lambda: ({"image": image[None]} for image in IMAGES),
        lambda: iter([IMAGES]),
    ],
    ids=["dict", "array", "list", "iterator of dicts", "iterator of arrays"],
)
def test_arrays_and_batches_are_images(source):
    assert np.array_equal(read(source()), IMAGES)
    assert np.array_equal(read(source(), limit=2), IMAGES[:2])


def test_an_iterator_without_end_ends_at_the_limit():
    def endless():
        while True:
            yield IMAGES[:1]

    assert len(read(endless(), limit=5)) == 5


@pytest.mark.parametrize(
    "source, said",
    [
        (5, "int is neither a path"),
        ([], "gives no batch"),
        ({}, "an empty dict"),
        ([(IMAGES, 3)], "batch 0 is a tuple; it must be an array or a dict"),
        ([IMAGES, IMAGES[..., :2]], "batch 1 holds other arrays than the first, or other shapes"),
        ({"picture": IMAGES}, "no array for input 'image': give a dict of arrays by the names image"),
        (IMAGES[0], "has shape [1, 2, 4], expected [images, 1, 2, 4]"),
        (np.float32(1), "has shape [], expected [images, 1, 2, 4]"),
        ([np.float32(1)], "batch 0 holds a single number"),
    ],
)
def test_what_is_no_image_is_named(source, said):
    with pytest.raises(UserError) as error:
        read(source)
    assert said in str(error.value)


def test_a_bare_array_is_ambiguous_for_two_inputs():
    with pytest.raises(UserError, match="by the names a, b"):
        images.read(IMAGES, {"a": (1, 2, 4), "b": (1, 2, 4)})


def test_a_folder_of_arrays_is_read_in_the_order_of_names(tmp_path):
    for number, name in ((1, "b.npy"), (0, "a.npy"), (2, "c.npy")):
        np.save(tmp_path / name, IMAGES[number])
    (tmp_path / ".hidden").touch()
    assert np.array_equal(read(tmp_path), IMAGES)
    assert np.array_equal(read(str(tmp_path), limit=2), IMAGES[:2])
    np.save(tmp_path / "b.npy", IMAGES)
    with pytest.raises(UserError, match=r"b.npy: has shape \[3, 1, 2, 4\], expected one image, \[1, 2, 4\]"):
        read(tmp_path)
    (tmp_path / "b.npy").write_bytes(b"none")
    with pytest.raises(UserError, match="b.npy: not a readable .npy"):
        read(tmp_path)
    (tmp_path / "notes.txt").touch()
    with pytest.raises(UserError, match="notes.txt: is no image"):
        read(tmp_path)


def test_folders_that_cannot_be_images(tmp_path):
    with pytest.raises(UserError, match="holds no image"):
        read(tmp_path)
    with pytest.raises(UserError, match="a folder holds the images of one input"):
        images.read(tmp_path, {"a": (1,), "b": (1,)})


# --- pictures ------------------------------------------------------------------------------------------------------


@pytest.fixture
def pictures(tmp_path):
    """A folder with one PNG of 4 x 2 pixels and how it is to be read, and its pixels [2, 4, 3]."""
    library = pytest.importorskip("PIL.Image")
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 4, 3) * 10
    library.fromarray(pixels).save(tmp_path / "a.png")
    (tmp_path / "preprocess.toml").write_text("mean = [0.5, 0.25, 0]\nstd = [0.5, 1, 2]\n")
    return tmp_path, pixels


def picture(folder, shape=(3, 2, 4)):
    return images.read(folder, {"image": shape})["image"]


def test_pictures_are_normalised_as_their_folder_says(pictures):
    folder, pixels = pictures
    expected = (pixels / 255.0 - [0.5, 0.25, 0]) / [0.5, 1, 2]
    assert np.allclose(picture(folder)[0], expected.transpose(2, 0, 1), atol=1e-6)


def test_pictures_are_resized_and_cropped_only_where_it_is_said(pictures):
    folder, pixels = pictures
    with pytest.raises(UserError, match="a.png: is 4 x 2, the input 2 x 2; preprocess.toml may say resize"):
        picture(folder, (3, 2, 2))
    (folder / "preprocess.toml").write_text("mean = [0, 0, 0]\nstd = [1, 1, 1]\nresize = 2\n")
    middle = pixels[:, 1:3].transpose(2, 0, 1) / 255.0
    assert np.allclose(picture(folder, (3, 2, 2))[0], middle, atol=1e-6)
    (folder / "preprocess.toml").write_text('mean = [0]\nstd = [1]\nresize = 4\ninterpolation = "bicubic"\n')
    assert picture(folder, (1, 4, 4)).shape == (1, 1, 4, 4)


@pytest.mark.parametrize(
    "says, said",
    [
        (None, "preprocess.toml: missing: it says how pictures become the network's input"),
        ("mean = [0, 0, 0]", "std=None: must be 3 numbers"),
        ("mean = [0]\nstd = [1, 1, 1]", "mean=.0.: must be 3 numbers"),
        ("mean = [0, 0, 0]\nstd = [1, 0, 1]", "std must be above 0"),
        ("mean = [0, 0, 0]\nstd = [1, 1, 1]\nresize = 1", "resize=1: pixels of the shorter side, at least 4"),
        ("mean = [0, 0, 0]\nstd = [1, 1, 1]\ninterpolation = 'best'", "interpolation='best': one of bicubic"),
        ("mean = [0, 0, 0]\nstd = [1, 1, 1]\ncrop = 9", "unknown 'crop'"),
        ("mean = ", "preprocess.toml: "),
    ],
)
def test_pictures_are_never_guessed(pictures, says, said):
    folder, _ = pictures
    (folder / "preprocess.toml").unlink() if says is None else (folder / "preprocess.toml").write_text(says)
    with pytest.raises(UserError, match=said):
        picture(folder)


def test_damaged_pictures_and_other_channels_are_named(pictures):
    folder, _ = pictures
    with pytest.raises(UserError, match="pictures have 1 or 3 channels"):
        picture(folder, (4, 2, 4))
    (folder / "a.png").write_bytes(b"none")
    with pytest.raises(UserError, match="a.png: not a readable picture"):
        picture(folder)


def test_without_pillow_its_extra_is_named(tmp_path, monkeypatch):
    (tmp_path / "a.jpg").touch()
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(UserError, match="pip install 'hwgen.images.'"):
        picture(tmp_path)

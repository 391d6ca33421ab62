"""The blood cells' reader and the reader of photos: what they return, and one sentence for each kind of damage."""

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from datasets import DataCorrupt, DataUnavailable
from datasets.bccd import load_bccd
from datasets.photos import read_photo

BOX = "<object><name>{}</name><bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox></object>"


def note(*boxes):
    return f"<annotation>{''.join(BOX.format(*box) for box in boxes)}</annotation>"


def put(root, photos=None, notes=None, lists=None):
    """A set of three photos, some of its files exchanged."""
    folder = root / "bccd" / "BCCD"
    files = {f"ImageSets/Main/{part}.txt": f"photo_{part}\n" for part in ("train", "val", "test")} | (lists or {})
    for part in ("train", "val", "test"):
        files[f"Annotations/photo_{part}.xml"] = note(("RBC", 10, 20, 110, 100))
        files[f"JPEGImages/photo_{part}.jpg"] = encoded(Image.new("RGB", (640, 480), (200, 100, 50)))
    for name, content in (files | (photos or {}) | (notes or {})).items():
        if content is not None:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def encoded(image, kind="JPEG"):
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def test_photos_boxes_and_parts(tmp_path):
    boxes = (("WBC", 0, 0, 640, 480), ("RBC", 5, 5, 5, 5), ("Platelets", 1, 2, 3, 4))
    put(tmp_path, notes={"Annotations/photo_val.xml": note(*boxes), "Annotations/photo_test.xml": note()})
    whole, half = load_bccd(tmp_path), load_bccd(tmp_path / "bccd" / "BCCD", shrink=2)
    assert whole.images.shape == (3, 3, 480, 640) and half.images.shape == (3, 3, 240, 320)
    assert whole.parts == {"train": range(1), "val": range(1, 2), "test": range(2, 3)} and whole.left_out == 1
    assert whole.boxes[1].tolist() == [[0, 0, 640, 480], [1, 2, 3, 4]] and whole.kinds[1].tolist() == [1, 2]
    assert torch.equal(half.boxes[0] * 2, whole.boxes[0]) and whole.boxes[2].shape == (0, 4)
    assert whole.content_hash == half.content_hash and (whole.images[0, 0].float() - 200).abs().max() < 4
    with pytest.raises(ValueError, match="shrink must divide"):
        load_bccd(tmp_path, shrink=7)


@pytest.mark.parametrize(
    "content, says",
    [
        ("<annotation>", "is no annotation of boxes"),
        (b"\x00\xff\xfe", "is no annotation of boxes"),
        ('<!DOCTYPE a [<!ENTITY b "c">]><annotation>&b;</annotation>', "document type"),
        (note(("RBC", "", 1, 2, 3)), "is no annotation of boxes"),
        (note(("RBC", "one", 1, 2, 3)), "is no annotation of boxes"),
        (note(("RBC", "nan", 1, 2, 3)), "does not lie inside of the 640 x 480"),
        (note(("RBC", "1e999", 1, 2, 3)), "does not lie inside"),
        (note(("RBC", 0, 0, 641, 3)), "box 0, 0, 641, 3, which does not lie inside"),
        (note(("RBC", -1, 0, 4, 3)), "does not lie inside"),
        (note(("RBC", 9, 0, 4, 3)), "does not lie inside"),
        (note(("virus", 0, 0, 4, 3)), "class 'virus'; known are RBC, WBC, Platelets"),
        (note(*[("RBC", 0, 0, 4, 3)] * 1001), "1001 boxes are more than 1000"),
    ],
)
def test_damaged_annotations_are_one_sentence(tmp_path, content, says):
    put(tmp_path, notes={"Annotations/photo_test.xml": content})
    with pytest.raises(DataCorrupt, match=rf"photo_test\.xml.*{says}"):
        load_bccd(tmp_path)


@pytest.mark.parametrize(
    "content, says",
    [
        (b"no photo", "is no photo"),
        (encoded(Image.new("RGB", (640, 480)))[:900], "is damaged"),
        (encoded(Image.new("RGB", (64, 48))), "has 64 x 48 pixels, not 640 x 480"),
    ],
)
def test_damaged_photos_of_the_set_are_one_sentence(tmp_path, content, says):
    put(tmp_path, photos={"JPEGImages/photo_val.jpg": content})
    with pytest.raises(DataCorrupt, match=rf"photo_val\.jpg {says}"):
        load_bccd(tmp_path)


@pytest.mark.parametrize(
    "content, says",
    [
        ("", "0 entries"),
        ("../etc", "'../etc'"),
        ("photo_val\n", "lists photo_val twice"),
        ("a " * 2000, "2000 entries"),
    ],
)
def test_odd_lists_of_the_split_are_one_sentence(tmp_path, content, says):
    put(tmp_path, lists={"ImageSets/Main/train.txt": content})
    with pytest.raises(DataCorrupt, match=says):
        load_bccd(tmp_path)


def test_absent_files_are_one_sentence(tmp_path):
    with pytest.raises(DataUnavailable, match=r"3 files, ImageSets/Main/train\.txt the first"):
        load_bccd(tmp_path)
    folder = put(tmp_path)
    (folder / "Annotations" / "photo_val.xml").unlink()
    with pytest.raises(DataUnavailable, match=r"1 files, Annotations/photo_val\.xml"):
        load_bccd(tmp_path)


GREY = np.linspace(0, 255, 48, dtype=np.uint8).reshape(6, 8)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_photos_of_every_mode_have_three_channels_of_bytes(tmp_path, mode):
    image = Image.fromarray(GREY.astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(GREY).convert(mode)
    image.save(tmp_path / "photo.png")
    photo = read_photo(tmp_path / "photo.png")
    assert photo.shape == (3, 6, 8) and photo.dtype == torch.uint8
    if mode != "1":
        assert torch.equal(photo, torch.from_numpy(GREY).expand(3, 6, 8))


def test_other_formats_and_turned_photos(tmp_path):
    colour = Image.fromarray(GREY).convert("RGB")
    colour.convert("CMYK").save(tmp_path / "a.jpg")
    colour.save(tmp_path / "a.bmp")
    assert read_photo(tmp_path / "a.jpg").shape == (3, 6, 8)
    assert torch.equal(read_photo(tmp_path / "a.bmp")[0], torch.from_numpy(GREY))
    tags = Image.Exif()
    tags[0x0112] = 6  # to be turned by a quarter
    colour.save(tmp_path / "turned.jpg", exif=tags)
    assert read_photo(tmp_path / "turned.jpg").shape == (3, 8, 6)


def header(width, height):
    """A PNG that claims a size and has nothing of it."""
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [body, b"IDAT"]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks
    )


@pytest.mark.parametrize(
    "content, says",
    [
        (b"", "is no photo"),
        (b"GIF89a", "is no photo"),
        (header(60000, 60000), "pixels"),
        (header(9000, 9000), "9000 x 9000 pixels"),
        (header(20, 20), "is damaged"),
        (header(0, 20), "is (no photo|damaged)"),
        (encoded(Image.fromarray(GREY / 255.0), "TIFF"), "mode F"),
        (encoded(Image.fromarray(GREY.astype(np.int32) * 9999), "TIFF"), "outside of 0 to 65535"),
    ],
)
def test_what_is_no_photo_is_one_sentence(tmp_path, content, says):
    (tmp_path / "photo").write_bytes(content)
    with pytest.raises(DataCorrupt, match=rf"photo.* {says}") as caught:
        read_photo(tmp_path / "photo")
    assert "\n" not in str(caught.value)


def test_a_photo_that_is_not_there_or_a_folder_is_one_sentence(tmp_path):
    for path in (tmp_path / "none.jpg", tmp_path):
        with pytest.raises(DataCorrupt, match="cannot be read"):
            read_photo(path)


@pytest.mark.data
def test_real_photos():
    data = load_bccd(shrink=4)
    counts = [torch.cat([data.kinds[i] for i in data.parts[part]]).bincount().tolist() for part in data.parts]
    assert [len(part) for part in data.parts.values()] == [205, 87, 72] and data.left_out == 2
    assert counts[2] == [805, 71, 69] and sum(map(sum, counts)) == 4888 - 2

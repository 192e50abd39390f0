import errno
import os
import socket
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from models import small_model
from PIL import Image

from vitconv.convert import convert_checkpoint
from vitconv.errors import InputError
from vitconv.inference.images import Batches, read_images
from vitconv.inference.pixels import open_preprocessor
from vitconv.inference.runtime import read_info
from vitconv.models.pixels import process
from vitconv.models.processors import load_processor


@pytest.fixture
def cut(folder):
    """Cut a list into batches."""
    model = read_info(folder)
    return lambda path, size: Batches(read_images(path), size, open_preprocessor(model))


def test_a_list_has_paths_and_perhaps_labels(tmp_path):
    path = tmp_path / "list.csv"
    path.write_text('path,note,label\na.jpg,1,oak\n"with, comma.jpg",2,\nNA,3,null\n')
    images = read_images(path)
    assert images.paths.to_pylist() == ["a.jpg", "with, comma.jpg", "NA"]
    assert images.labels.to_pylist() == ["oak", "", "null"]
    path.write_text('path\n5" pipe.jpg\n"5"" pipe.jpg"\n\na.jpg')
    assert read_images(path).paths.to_pylist() == ['5" pipe.jpg', '5" pipe.jpg', "a.jpg"]
    assert images.folder == tmp_path
    path.write_text("path\n1\n2\n")
    assert read_images(path).paths.to_pylist() == ["1", "2"]
    assert read_images(path).labels is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file\na.jpg\n", "no column 'path': its header is 'file'"),
        (
            "path;label\na.jpg;ash\n",
            "no column 'path': its header is 'path;label'.\nSeparate the columns with commas, not with semicolons",
        ),
        (
            "path\tlabel\na.jpg\tash\n",
            r"no column 'path': its header is 'path.*\nSeparate the columns with commas, not with tabs",
        ),
        ("path\n", "is empty"),
        ("", "is not CSV"),
        ("path,label\na.jpg,x\n,y\n", "a row without a path"),
        ("path,label\na.jpg,x,z\n", "is not CSV"),
        ("path\n\xff\n", "is not CSV"),
        ("\xff\na.jpg\n", "it is not UTF-8"),
        ("\n\n", "it has no header"),
        ("path,label,path\na.jpg,x,b.jpg\n", "two columns of the same name"),
        ("path\n" + "x" * 2**25 + "\n", "a row of more than 16,777,216 bytes, or a quotation mark without its other"),
        ('path\n"' + "images/a.jpg\n" * 2**21, "field larger than field limit"),
        ('path\na.jpg\n"b.jpg\nc.jpg\nd.jpg\n', "a quotation mark without its other"),
        ('path,note\na.jpg,x\nb.jpg,"5 inch\nc.jpg,x\n', "a quotation mark without its other"),
        ("path," + "x" * 2**25 + "\na.jpg,b\n", "its header has more than 16,777,216 bytes"),
    ],
)
def test_what_is_no_list_is_refused(tmp_path, text, message):
    path = tmp_path / "list.csv"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=message) as caught:
        read_images(path)
    assert "list.csv" in caught.value.problem


def test_a_missing_list_is_named(tmp_path):
    with pytest.raises(InputError, match="There is no list of images '.*nothing.csv'"):
        read_images(tmp_path / "nothing.csv")


def test_batches_have_one_shape_and_the_folders_pixels(folder, write_images, cut):
    path = write_images(5)
    batches = cut(path, 2)
    assert [list(batches.rows(i)) for i in range(len(batches))] == [[0, 1], [2, 3], [4]]
    processor = load_processor(folder)
    for number in range(3):
        pixels = batches[number]
        assert pixels.batch == number
        assert pixels.values.shape == (2, 3, 32, 32)
        assert pixels.values.dtype == np.float32
        for place, name in enumerate(batches.images.slice(batches.rows(number))):
            expected = process(Image.open(path.parent / name), processor, 3)[0]
            assert np.array_equal(pixels.values[place], expected)
    assert not batches[2].values[1].any()


def test_what_cannot_be_read_has_an_error_and_its_place_stays_empty(write_images, cut):
    path = write_images(4, broken=(1, 2))
    (path.parent / "images" / "folder.png").mkdir()
    path.write_text(path.read_text() + "images/folder.png\n")
    batches = cut(path, 5)
    pixels = batches[0]
    assert pixels.errors == [
        None,
        "'images/00001.png' is not an image that can be read.",
        "There is no image 'images/00002.jpg'.",
        None,
        "'images/folder.png' is not an image that can be read: it is a folder.",
    ]
    assert [bool(values.any()) for values in pixels.values] == [True, False, False, True, False]


def test_pixels_of_another_shape_are_an_error_of_the_image(folder, write_images):
    path = write_images(1)
    for shape in ((1, 32, 32), (3, 32, 64)):
        preprocessor = replace(open_preprocessor(read_info(folder)), shape=shape)
        pixels = Batches(read_images(path), 1, preprocessor)[0]
        assert pixels.errors == [f"'images/00000.jpg' becomes pixels of shape (3, 32, 32), the model takes {shape}."]
        assert not pixels.values.any()


def test_an_image_that_becomes_too_large_is_a_row_with_an_error(write_images, cut):
    """A file of two kilobytes, whose resize would take gigabytes."""
    path = write_images(1)
    Image.new("L", (1, 2_000_000)).save(path.parent / "thin.png")
    Image.new("1", (10_000, 6_000)).save(path.parent / "large.png")
    path.write_text("path\nthin.png\nimages/00000.jpg\nlarge.png\n")
    pixels = cut(path, 3)[0]
    assert pixels.errors == [
        "'thin.png' is 1x2000000 pixels, and 35x70000000 while it is resized; at most 50,331,648 are allowed.",
        None,
        "'large.png' is 10000x6000 pixels; at most 50,331,648 are allowed.",
    ]
    assert [bool(values.any()) for values in pixels.values] == [False, True, False]


def test_what_is_no_regular_file_is_a_row_with_an_error(write_images, cut, monkeypatch):
    """At once: nothing waits for the other end of a pipe, or reads what has no end."""
    path = write_images(1)
    monkeypatch.chdir(path.parent)
    os.mkfifo("pipe.png")
    names = {"pipe.png": "it is a pipe", "/dev/zero": "it is a device", "/dev/tty": "it is a device"}
    names |= {"/proc/self/mem": "it is empty", "socket.png": "it is a socket"}
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.png")
        names = {name: why for name, why in names.items() if os.path.exists(name)}
        path.write_text("\n".join(["path", *names, "images/00000.jpg"]) + "\n")
        pixels = cut(path, len(names) + 1)[0]
    assert pixels.errors[:-1] == [f"'{name}' is not an image that can be read: {why}." for name, why in names.items()]
    assert pixels.errors[-1] is None
    assert pixels.values[-1].any()


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENOMEM, errno.ETIMEDOUT, errno.EACCES, errno.EPERM])  # fmt: skip
def test_an_error_of_the_machine_ends_the_run(write_images, cut, monkeypatch, number):
    batches = cut(write_images(1), 1)
    monkeypatch.setattr("vitconv.models.images.open_file", lambda path: _raise(OSError(number, os.strerror(number))))
    with pytest.raises(
        InputError, match=f"00000.jpg' is not an image that can be read. {os.strerror(number)}"
    ) as caught:
        batches[0]
    assert "take the image off the list" in caught.value.remedy


@pytest.mark.parametrize("number", [errno.ELOOP, errno.ENXIO, errno.EOVERFLOW, errno.EOPNOTSUPP])
def test_any_other_error_of_the_system_is_a_row_with_an_error(write_images, cut, monkeypatch, number):
    batches = cut(write_images(1), 1)
    monkeypatch.setattr("vitconv.models.images.open_file", lambda path: _raise(OSError(number, os.strerror(number))))
    assert batches[0].errors == ["'images/00000.jpg' is not an image that can be read."]


def _raise(error):
    raise error


def test_a_list_is_a_regular_file(tmp_path):
    """Not what a shell's <(…) makes: a run that was cut off could not read it again."""
    os.mkfifo(tmp_path / "list.csv")
    with pytest.raises(InputError, match="The list of images '.*list.csv' is a pipe, not a file") as caught:
        read_images(tmp_path / "list.csv")
    assert "Write its content to a file" in caught.value.remedy


@pytest.mark.parametrize("count", [10, 100_000])
def test_a_path_may_have_line_breaks_however_long_the_list(tmp_path, count):
    """pyarrow cuts a long file into pieces, by default at any line break."""
    names = [f"images/a\nb{i:07}.jpg" for i in range(count)]
    (tmp_path / "list.csv").write_text("path\n" + "".join(f'"{name}"\n' for name in names))
    assert read_images(tmp_path / "list.csv").paths.to_pylist() == names


def test_a_list_too_large_for_the_memory_is_refused(tmp_path):
    (tmp_path / "list.csv").write_text("path\na.jpg\n")
    os.truncate(tmp_path / "list.csv", 2 * 10**9)
    with pytest.raises(InputError, match="list.csv' has 2,000,000,000 bytes; at most 1,073,741,824"):
        read_images(tmp_path / "list.csv")


@pytest.mark.parametrize(
    ("header", "column", "name"),
    [("path, label", " label", "label"), ("path,Label", "Label", "label"), ("Path,label", "Path", "path")],
)
def test_a_column_whose_name_differs_in_spaces_or_case_is_refused(tmp_path, header, column, name):
    """Its labels would not be read, and nothing would say so."""
    (tmp_path / "list.csv").write_text(f"{header}\na.jpg,oak\n")
    with pytest.raises(InputError, match=f"has a column '{column}', which is not read: its name is not '{name}'"):
        read_images(tmp_path / "list.csv")


def test_columns_that_are_not_read_take_no_time(tmp_path):
    """A hundred thousand of them took 36 seconds and 3 GiB."""
    with (tmp_path / "list.csv").open("w") as file:
        file.write(f"{','.join(map(str, range(100_000)))},path\n")
        file.writelines(f"{'1,' * 100_000}{row}.jpg\n" for row in range(50))
    start = time.monotonic()
    assert read_images(tmp_path / "list.csv").paths.to_pylist() == [f"{row}.jpg" for row in range(50)]
    assert time.monotonic() - start < 5


@pytest.fixture
def photos(tmp_path):
    """A folder with a subfolder for each class, and other files."""
    for name in ("ash/b.JPG", "ash/a.png", "oak/deep/c.webp", "oak/.hidden.png", ".cache/d.png", "ash/notes.txt"):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".txt":
            path.write_text("no image")
        else:
            Image.new("RGB", (40, 40)).save(path)
    return tmp_path / "photos"


def test_a_folder_lists_its_images_and_its_subfolders_are_labels(photos):
    found = read_images(photos)
    assert found.paths.to_pylist() == ["ash/a.png", "ash/b.JPG", "oak/deep/c.webp"]
    assert found.labels.to_pylist() == ["ash", "ash", "oak"]
    assert (found.folder, found.by_folder) == (photos, True)
    assert all((found.folder / path).is_file() for path in found.paths.to_pylist())


def test_images_beside_subfolders_have_no_label(photos):
    Image.new("RGB", (40, 40)).save(photos / "z.png")
    assert read_images(photos).labels.to_pylist() == ["ash", "ash", "oak", None]
    flat = read_images(photos / "ash")
    assert (flat.labels, flat.by_folder) == (None, False)


def test_links_to_folders_are_followed_once(photos):
    (photos / "oak" / "again").symlink_to(photos)
    assert len(read_images(photos)) == 3
    (photos.parent / "linked").mkdir()
    (photos.parent / "linked" / "ash").symlink_to(photos / "ash")
    assert read_images(photos.parent / "linked").labels.to_pylist() == ["ash", "ash"]


def test_links_to_one_folder_are_all_followed(photos):
    """Only a link to a folder that holds it leads nowhere new: which of two links is met first is chance."""
    (photos.parent / "linked").mkdir()
    for name in ("ash", "beech", "cedar"):
        (photos.parent / "linked" / name).symlink_to(photos / "ash")
    (photos / "ash" / "up").symlink_to("..")
    (photos / "oak" / "other").symlink_to("../ash")
    found = read_images(photos.parent / "linked")
    own = [path for path in found.paths.to_pylist() if path.count("/") == 1]
    assert own == [f"{name}/{image}" for name in ("ash", "beech", "cedar") for image in ("a.png", "b.JPG")]
    assert set(found.labels.to_pylist()) == {"ash", "beech", "cedar"}
    assert "oak/other/a.png" in read_images(photos).paths.to_pylist()
    assert not any("up/oak/other/up" in path for path in found.paths.to_pylist())


def test_links_that_fan_out_are_refused(photos):
    """Each folder holds two links to the next: of 40, as many ways lead to the last as no one can wait for."""
    way = photos.parent / "ways"
    for i in range(40):
        (way / str(i)).mkdir(parents=True)
        if i:
            for name in "ab":
                (way / str(i - 1) / name).symlink_to(f"../{i}")
    (way / "39" / "ash").symlink_to(photos / "ash")
    with pytest.raises(InputError, match=r"Links lead to the folder '.*' in more than 1,000 ways\.") as refused:
        read_images(way / "0")
    assert refused.value.remedy == "Remove some of the links, or list the images in a CSV file."
    assert len(read_images(way / "31")) == 2 * 2**8


def test_a_linked_image_is_the_one_that_the_link_leads_to(photos, cut):
    """Beside the target lies another image of the link's name."""
    Image.new("RGB", (40, 40), "red").save(photos / "ash" / "latest.png")
    (photos / "pick").mkdir()
    (photos / "pick" / "latest.png").symlink_to("../ash/a.png")
    (photos / "there").symlink_to("pick")
    for path in (photos / "pick" / "latest.png", photos / "there" / "latest.png", photos / "there" / ".." / "pick"):
        path = path if path.suffix else path / "latest.png"
        found = read_images(path)
        assert (found.paths.to_pylist(), found.folder) == (["latest.png"], photos / "pick")
        black = cut(photos / "ash" / "a.png", 1)[0].values
        assert np.array_equal(cut(path, 1)[0].values, black)


def test_the_paths_of_a_linked_list_begin_where_the_link_lies(photos, tmp_path):
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "all.csv").write_text("path\na.png\n")
    (photos / "ash" / "list.csv").symlink_to("../../lists/all.csv")
    found = read_images(photos / "ash" / "list.csv")
    assert found.folder == photos / "ash" and (found.folder / "a.png").is_file()


def test_one_image_is_told_by_its_suffix(photos):
    found = read_images(photos / "ash" / "b.JPG")
    assert (found.paths.to_pylist(), found.labels, found.folder) == (["b.JPG"], None, photos / "ash")
    missing = read_images(photos / "none.png")
    assert missing.paths.to_pylist() == ["none.png"]


def test_a_folder_without_images_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(InputError, match=f"The folder '{tmp_path}' has no images.") as caught:
        read_images(tmp_path)
    assert caught.value.remedy.startswith("Name a folder with images (.jpg, .png, .webp…)")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every folder")
def test_a_subfolder_that_cannot_be_read_is_not_left_out(photos):
    (photos / "oak").chmod(0)
    try:
        with pytest.raises(InputError, match="oak' cannot be read: Permission denied"):
            read_images(photos)
    finally:
        (photos / "oak").chmod(0o700)


def test_an_error_of_a_subfolder_is_not_swallowed(photos, monkeypatch):
    """As the test above, for root."""
    walk = os.scandir

    def scandir(path):
        if os.fspath(path).endswith("oak"):
            raise PermissionError(13, "Permission denied", path)
        return walk(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(InputError, match="oak' cannot be read: Permission denied"):
        read_images(photos)


def test_a_name_that_is_not_utf8_is_named(tmp_path):
    os.mkdir(os.fsencode(tmp_path / "photos"))
    with open(os.fsencode(tmp_path / "photos") + b"/\xff.png", "wb"):
        pass
    with pytest.raises(InputError, match="is not UTF-8"):
        read_images(tmp_path / "photos")


def test_splits_are_read_as_they_are(tmp_path):
    (tmp_path / "list.csv").write_text("path,split\na.png,1\nb.png,held-out\n")
    assert read_images(tmp_path / "list.csv").splits.to_pylist() == ["1", "held-out"]


def test_images_that_timm_prepares_otherwise_have_a_note(tmp_path):
    model = small_model()
    torch.save(model.state_dict(), tmp_path / "model.pth")
    convert_checkpoint(
        tmp_path / "model.pth", tmp_path / "model", architecture=model, data={"crop_pct": 1.0}, verify=False
    )
    height, width = 32, 32
    sizes = {"same.png": (width, height), "shifted.png": (width + 3, height), "clear.png": (width, height)}
    for name, size in sizes.items():
        image = Image.new("RGB", size)
        if name == "clear.png":
            image.putalpha(100)
        image.save(tmp_path / name)
    (tmp_path / "list.csv").write_text("path\n" + "\n".join(sizes) + "\nnone.png\n")
    info = read_info(tmp_path / "model")
    pixels = Batches(read_images(tmp_path / "list.csv"), 4, open_preprocessor(info))[0]
    same, shifted, clear, missing = pixels.notes
    assert (same, missing) == (None, None)
    assert shifted.startswith("Transformers begins the crop one pixel earlier than timm")
    assert clear.startswith("Transformers blends transparency with white")
    timm = Batches(read_images(tmp_path / "list.csv"), 4, open_preprocessor(info, "timm"))[0]
    assert timm.notes == [None] * 4

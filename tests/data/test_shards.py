"""Webdataset shards, and which files are all of a data set."""

import gzip
import io
import tarfile
from pathlib import Path, PurePath

import pytest
from image_files import greys, png, samples, shard, webdataset

from diffusion_classifier.data.file_sets import missing_shards, split_of
from diffusion_classifier.data.labelled import open_labelled
from diffusion_classifier.data.texts import open_texts
from diffusion_classifier.errors import InputError


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_labels_of_text(tmp_path, end):
    source = open_labelled(shard(tmp_path / "0.tar", samples(f"coat{end}", f"bag{end}", f"café{end}")))
    assert source.class_names == ("bag", "café", "coat")
    assert source.labels == (2, 0, 1)


def test_numbers_that_are_padded_are_no_numbers(tmp_path):
    source = open_labelled(shard(tmp_path / "0.tar", samples("01", "1", "2")))
    assert source.class_names == ("01", "1", "2")
    assert source.labels == (0, 1, 2)


def test_a_label_of_bytes_in_another_encoding(tmp_path):
    with pytest.raises(InputError, match=r"0.tar\[1\] \(1\), .cls, is not text in UTF-8: b'caf.xe9'"):
        open_labelled(shard(tmp_path / "0.tar", samples("a", "café".encode("latin-1"))))


def test_members_in_any_order_and_of_any_format(tmp_path):
    members = [("b/0.PNG", png(1)), ("b/1.webp", png(2)), ("b/2.jpeg", png(3)), ("a.x/0.jpg", png(4))]
    labels = [("a.x/0.cls", "3"), ("b/0.CLS", "0"), ("b/2.cls", "2"), ("b/1.cls", "1")]
    source = open_labelled(shard(tmp_path / "0.tar", members + labels))
    found = dict(zip(source.ids, zip(greys(source), source.labels, strict=True), strict=True))
    assert found == {"b/0": (1, 0), "b/1": (2, 1), "b/2": (3, 2), "a.x/0": (4, 3)}


def test_two_images_a_sample(tmp_path):
    path = shard(tmp_path / "0.tar", [("0.jpg", png(1)), ("0.mask.png", png(2)), ("0.cls", "0")])
    with pytest.raises(InputError, match=r"2 image columns \(jpg, mask.png\); name one with --image-column"):
        open_labelled(path, class_names=["a", "b"])
    assert greys(open_labelled(path, class_names=["a", "b"], image_column="mask.png")) == [2]


def test_what_a_sample_lacks(tmp_path):
    path = shard(tmp_path / "0.tar", [("a.jpg", png(1)), ("a.cls", "0"), ("b.jpg", png(2)), ("c.cls", "1")])
    with pytest.raises(InputError, match=r"0.tar\[1\] \(b\) has no label \(None in column 'cls'\)"):
        open_labelled(path)
    source = open_labelled(path, allow_incomplete=True)
    assert source.ids == ("a", "c")
    assert source.read(1) == b""  # recorded as a failure when it is evaluated
    assert any("1 of 3 images" in note and "no label and are skipped" in note for note in source.notes)


def test_files_of_no_sample_are_noted(tmp_path):
    more = [("README", "x"), ("._0.png", "x"), ("__MACOSX/0.png", "x")]
    source = open_labelled(shard(tmp_path / "0.tar", samples("a", "b") + more))
    assert len(source) == 2
    assert any("2 files in archives belong to no sample" in n and "such as README of" in n for n in source.notes)


@pytest.mark.parametrize("kind", [tarfile.LNKTYPE, tarfile.SYMTYPE])
def test_links_within_an_archive(tmp_path, kind):
    path = shard(tmp_path / "0.tar", [("d/0.png", png(7)), ("d/0.cls", "a"), ("d/1.cls", "b")])
    with tarfile.open(path, "a") as tar:
        link = tarfile.TarInfo("d/1.png")
        link.type, link.linkname = kind, "d/0.png" if kind == tarfile.LNKTYPE else "0.png"
        tar.addfile(link)
    assert greys(open_labelled(path)) == [7, 7]


@pytest.mark.parametrize("format_", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names(tmp_path, format_):
    key = "/".join(["d" * 90] * 2)
    path = shard(tmp_path / "0.tar", [(f"{key}.png", png(3)), (f"{key}.cls", "a"), ("1.cls", "b")], format=format_)
    assert open_labelled(path).ids[0] == key


def ends(path):
    with tarfile.open(path) as tar:
        return [(m.offset, m.offset_data, m.name) for m in tar]


def test_an_archive_that_is_cut_off_anywhere(tmp_path):
    """Every cut, in steps of half a block, up to the mark at the end."""
    whole = Path(shard(tmp_path / "0.tar", samples("a", "b", "a", "b"))).read_bytes()
    last = ends(tmp_path / "0.tar")[-1]
    for cut in range(512, last[1] + 512, 256):
        (tmp_path / "0.tar").write_bytes(whole[:cut])
        with pytest.raises(InputError, match=r"0.tar (is cut off|cannot be read as a tar archive)"):
            open_labelled(str(tmp_path / "0.tar"))
    (tmp_path / "0.tar").write_bytes(whole[: ends_of_sample(whole)])
    source = open_labelled(str(tmp_path / "0.tar"), allow_incomplete=True)
    assert len(source) == 2
    assert any("is cut off" in note and "read without the rest" in note for note in source.notes)


def ends_of_sample(whole):
    with tarfile.open(fileobj=io.BytesIO(whole)) as tar:
        return tar.getmembers()[4].offset


def test_archives_that_were_joined(tmp_path):
    a, b = (
        Path(shard(tmp_path / f"{n}.tar", samples(*labels))).read_bytes() for n, labels in (("a", "xy"), ("b", "yz"))
    )
    (tmp_path / "ab.tar").write_bytes(a + b)
    with pytest.raises(InputError, match=r"ab.tar is cut off, or several archives were joined"):
        open_labelled(str(tmp_path / "ab.tar"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read as a tar archive: empty file"),
        (b"no archive", "cannot be read as a tar archive"),
        (gzip.compress(b"x" * 2000, mtime=0), "it is compressed: unpack it first, for example with gunzip"),
        (b"\0" * 10240, "holds no webdataset samples"),
    ],
)
def test_no_archive(tmp_path, content, message):
    (tmp_path / "x.tar").write_bytes(content)
    with pytest.raises(InputError, match=message):
        open_labelled(str(tmp_path / "x.tar"))


def test_a_file_twice(tmp_path):
    with pytest.raises(InputError, match=r"holds 0.png twice"):
        open_labelled(shard(tmp_path / "x.tar", samples("a") + samples("b")))
    with pytest.raises(InputError, match=r"the sample '0' of .*y.tar has two files .png"):
        open_labelled(shard(tmp_path / "y.tar", [*samples("a"), ("0.PNG", png(1))]))


def test_text_files_beside_a_shard_as_clip_benchmark_lays_it_out(tmp_path):
    folder = webdataset(tmp_path / "d", (1, 0))
    (folder / "test" / "1.tar").unlink()
    (folder / "test" / "nshards.txt").write_text("1\n")
    assert open_labelled(str(folder)).class_names == ("cat", "dog")
    (folder / "test" / "nshards.txt").write_text("3")
    with pytest.raises(InputError, match=r"test holds 1 shards, and its nshards.txt says '3'; use --allow"):
        open_labelled(str(folder))
    assert any("nshards.txt says '3'" in note for note in open_labelled(str(folder), allow_incomplete=True).notes)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["test-00000-of-00003.x", "test-00001-of-00003.x", "test-00002-of-00003.x"], None),
        (["test-00001-of-00002-ab.x", "test-00002-of-00002-cd.x"], None),
        (["a-0-of-2.x", "a-1-of-2.x", "b-0-of-1.x"], None),
        (["0.x", "1.x", "2.x"], None),
        (["s-0001.x", "s-0002.x"], None),
        (["part-7.x"], None),
        (["imagenet2012.x"], None),
        (["test-00000-of-00003.x", "test-00002-of-00003.x"], r"lacks 1 shards of 3: test-1"),
        (["test-00002-of-00003.x"], r"lacks 2 shards of 3: test-0, test-1"),
        (["a-0-of-2.x", "a-1-of-2.x", "b-1-of-2.x"], r"lacks 1 shards of 2: b-0"),
        (["a-0-of-2-x.x", "a-0-of-2-y.x", "a-1-of-2.x"], "holds shard a-00000 of 00002 twice"),
        (["a-0-of-1.x", "a-0-of-2.x", "a-1-of-2.x"], "holds shards a-… of 1 and of 2: remove those of the older set"),
        (["0.x", "2.x"], r"lacks 1 shards: 1"),
        (["9.x", "11.x"], r"lacks 1 shards: 10"),
        (["s-000003.x", "s-000004.x"], r"lacks 3 shards: s-0, s-1, s-2"),
    ],
)  # fmt: skip
def test_shards_that_are_missing(names, message):
    told = missing_shards([Path("d") / name for name in names])
    assert (told == []) if message is None else (len(told) == 1 and message in told[0])


@pytest.mark.parametrize(
    ("path", "split"),
    [
        ("train/0.tar", "train"), ("data/test-00000-of-00001.parquet", "test"), ("VAL/0.tar", "validation"),
        ("x/my-test.parquet", "test"), ("test/train.tar", "test"), ("0.tar", None), ("latest.tar", None),
        ("trainer/0.tar", None), ("eval_2.tar", "test"), ("train_and_test.tar", None),
    ],
)  # fmt: skip
def test_the_split_of_a_file(path, split):
    assert split_of(PurePath(path)) == split


def test_a_file_of_no_split(tmp_path):
    for name in ("train/0.tar", "test/0.tar", "extra/0.tar"):
        shard(tmp_path / "d" / name, samples("a", "b"))
    with pytest.raises(
        InputError, match=r"1 files of .* belong to none of its splits test, train, such as .*extra/0.tar: move"
    ):
        open_labelled(str(tmp_path / "d"))
    source = open_labelled(str(tmp_path / "d"), allow_incomplete=True)
    assert len(source) == 2
    assert any("extra/0.tar: left out" in note for note in source.notes)


def test_the_folder_of_a_split_is_its_only_one(tmp_path):
    folder = webdataset(tmp_path / "d")
    assert open_labelled(str(folder / "test"), split="test").class_names == ("cat", "dog")  # of the folder above
    assert len(open_labelled(str(folder / "test"), split="train")) == 3  # the default where one trains
    with pytest.raises(InputError, match=r"has no split 'val': its only split is test"):
        open_labelled(str(folder / "test"), split="val")


def test_two_kinds_of_files(tmp_path):
    folder = webdataset(tmp_path / "d")
    (folder / "test" / "x.parquet").write_bytes(b"")
    with pytest.raises(
        InputError, match=r"holds both .*x.parquet and .*0.tar: pass a folder with one kind of file, or one file"
    ):
        open_labelled(str(folder))


def test_images_beside_archives(tmp_path):
    folder = webdataset(tmp_path / "d")
    (folder / "cat").mkdir()
    (folder / "cat" / "a.PNG").write_bytes(png(1))
    with pytest.raises(
        InputError, match=r"holds 1 images beside its .tar files, such as .*cat/a.PNG: move them elsewhere"
    ):
        open_labelled(str(folder))
    assert len(open_labelled(str(folder), allow_incomplete=True)) == 3


def test_one_shard_of_several_is_noted(tmp_path):
    path = shard(tmp_path / "d-00001-of-00004.tar", samples("a", "b"))
    assert open_labelled(path).notes == (f"{path} is one of 4 shards: the others are not read",)
    table = tmp_path / "d-00001-of-00004.csv"
    table.write_text("image,label\na.png,cat\nb.png,dog\n")
    assert open_labelled(str(table)).notes == (f"{table} is one of 4 shards: the others are not read",)


def test_captions_in_shards(tmp_path):
    path = shard(tmp_path / "0.tar", [("0.jpg", png(1)), ("0.txt", "a cat\n"), ("1.txt", "a dog"), ("1.jpg", png(2))])
    assert open_texts(path, caption_column="txt").captions == ("a cat", "a dog")

"""Odd folders, tables and class files are read right, refused with a hint, or said in a note."""

from __future__ import annotations

from pathlib import Path

import pytest

from stagedkd.data.index import Listing
from tests.test_layouts import labels, lay, listed, pictures, refused, splits, table

# ---------------------------------------------------------------- split folders


@pytest.mark.parametrize(
    ("names", "order"),
    [
        *(("trainset testset", "train test"), ("TrainData TestData", "train test"), ("tr va te", "train val test")),
        *(("trn tst", "train test"), ("ucf_train ucf_test", "train test"), ("trainval test", "train test")),
        *(
            ("my-train my-val my-test", "train val test"),
            ("train_val test", "train test"),
            ("TRAIN TEST", "train test"),
        ),
        *(("UCFTrain UCFTest", "train test"), ("1_train 2_val", "train val"), ("trainVideos valVideos", "train val")),
        *(("ucf_tr ucf_te", "train test"), ("trn vld tst", "train val test"), ("datatrain datatest", "train test")),
    ],
)
@pytest.mark.parametrize("inner", [False, True])
def test_folders_that_are_splits_beyond_doubt(tmp_path: Path, names: str, order: str, inner: bool) -> None:
    for name in names.split():
        lay(tmp_path, *(f"{c}/{name}/1.mp4" if inner else f"{name}/{c}/1.mp4" for c in ("walk", "run")))
    listing = listed(tmp_path, kind="folder")
    assert listing.classes == ("run", "walk")
    expected = dict.fromkeys(order.split(), 2)
    if "val" not in expected:
        expected = {"": 2, "test": 2}
    assert splits(listing) == expected
    told = {name: name for name in sorted(names.split())}
    where = " in the class folders" if inner else ""
    assert len(listing.notes) == 1
    assert set(listing.notes[0].partition(": that no")[0].split("folders ")[1].split(" in ")[0].split(", ")) == {
        f"{name}/" for name in told
    }
    assert where in listing.notes[0]


@pytest.mark.parametrize(
    ("paths", "said"),
    [
        (
            "val/a/1.mp4 test/a/1.mp4",
            "has split folders (test/, val/), and none is for training"
            " | name the folder of the training clips train; if they are classes, set data: {folders: classes}",
        ),
        (
            "a/val/1.mp4 a/test/1.mp4 b/test/2.mp4",
            "has split folders (a/test/, a/val/, b/test/), and none is for training"
            " | name the folder of the training clips train; if they are classes, set data: {folders: classes}",
        ),
        (
            "val/1.mp4 test/1.mp4",
            ": test, val are named as splits and hold no class folders | if they are classes, set data: {folders:"
            " classes}; if tables hold the labels, name them (data.kind: csv)",
        ),
        (
            "ucf_train/1.mp4 ucf_test/1.mp4",
            ": ucf_test, ucf_train are named as splits and hold no class folders | if they are classes, set data:"
            " {folders: classes}; if tables hold the labels, name them (data.kind: csv)",
        ),
        *(
            (
                f"train/a/1.mp4 {bare}/1.mp4",
                f": {bare}/ lies beside train/, and its clips have no class | list the clips in a table, where a label"
                f" may be empty (data.kind: csv); or move {bare}/ away",
            )
            for bare in ("unlabeled", "Unlabelled_data", "un_labeled")
        ),
        (
            "labeled/a/1.mp4 unlabeled/1.mp4",
            ": unlabeled/ lies beside labeled/, and its clips have no class | list the clips in a table, where a label"
            " may be empty (data.kind: csv); or move unlabeled/ away",
        ),
        (
            "train/a/1.mp4 holdout/a/1.mp4",
            "has split folders (train/) and holdout/, which also holds videos"
            " | move holdout/ away; or, if all of them are classes, set data: {folders: classes}",
        ),
        *(
            (
                f"{a}/run/1.mp4 {b}/run/1.mp4",
                f": {b}/, {a}/ each hold a folder run/ | if they are splits, name them train, val and test; if they are"
                " classes, set data: {folders: classes}",
            )
            for a, b in (("Trainingsdaten", "Testdaten"), ("test", "learn"), ("trainlist", "testlist"))
        ),
        (
            "a/train/1.mp4 a/test/1.mp4 b/1.mp4",
            ": a/test/, a/train/ are named as splits, and b/ holds other clips"
            " | put all clips into split folders; or, if they are none, set data: {folders: classes}",
        ),
        (
            "my/train/a/1.mp4 my/test/a/1.mp4",
            "holds one folder, my/, and the splits in it"
            " | end data.path in my; if they are classes, set data: {folders: classes}",
        ),
    ],
)
def test_folders_that_may_be_splits_are_refused(tmp_path: Path, paths: str, said: str) -> None:
    lay(tmp_path / "r", *paths.split())
    assert refused(tmp_path, kind="folder", path="r") == f"r{'' if said.startswith(':') else ' '}{said}"
    lay(tmp_path / "r", "zebra/1.mp4")
    classes = listed(tmp_path, kind="folder", path="r", folders="classes").classes
    assert set(classes) == {path.partition("/")[0] for path in (*paths.split(), "zebra/")}


def test_classes_that_are_named_like_splits_are_said(tmp_path: Path) -> None:
    lay(tmp_path, "train/1.mp4", "bus/1.mp4", "car/1.mp4")
    as_splits = "splits are read where every folder is one and holds class folders"
    assert listed(tmp_path, kind="folder").notes == (f"train/ is a class by its place: {as_splits}",)
    lay(tmp_path / "b", "tr/1.mp4", "te/1.mp4")
    listing = listed(tmp_path / "b", kind="folder")
    assert listing.classes == ("te", "tr") and listing.notes == (f"te/, tr/ are classes by their place: {as_splits}",)
    lay(tmp_path / "c", "vehicle/train/1.mp4", "vehicle/bus/1.mp4", "animal/1.mp4")
    listing = listed(tmp_path / "c", kind="folder")
    assert listing.classes == ("animal", "vehicle")
    assert listing.notes == ("vehicle/train/ is named as a split, and is a part of its class",)
    lay(tmp_path / "d", "bullet_train/a/1.mp4", "test_drive/b/1.mp4", "train_ride/c/1.mp4")
    listing = listed(tmp_path / "d", kind="folder")
    assert len(listing.classes) == 3 and listing.notes == ()


def test_split_folders_below_the_classes_keep_their_clips_apart(tmp_path: Path) -> None:
    lay(tmp_path, "walk/train/1.mp4", "walk/walk_test/2.mp4", "run/train/3.mp4", "run/val/deep/4.mp4")
    for folders in (None, "splits"):
        listing = listed(tmp_path, kind="folder", folders=folders)
        assert {e.path: (e.label, e.split) for e in listing.entries} == {
            "walk/train/1.mp4": ("walk", "train"),
            "walk/walk_test/2.mp4": ("walk", "test"),
            "run/train/3.mp4": ("run", "train"),
            "run/val/deep/4.mp4": ("run", "val"),
        }
    lay(tmp_path, "run/test/5.xyz")
    assert "the class run/test has no clip" in refused(tmp_path, kind="folder")
    assert labels(listed(tmp_path, kind="folder", folders="classes"))["run/train/3.mp4"] == "run"


# ---------------------------------------------------------------- groups, and cells that say nothing


def groups(root: Path, text: str) -> dict[str, str]:
    table(root, text)
    return {e.path: e.group for e in listed(root, kind="csv", path="t.csv").entries}


def notes(root: Path, text: str) -> tuple[str, ...]:
    table(root, text)
    return listed(root, kind="csv", path="t.csv").notes


def test_a_file_under_two_spellings_is_one_group(tmp_path: Path) -> None:
    lay(tmp_path, "v/a.mp4", "v/caf\u00e9.mp4", *pictures("v/One", 9))
    head = "path,label,start,end\n"
    found = groups(tmp_path, f"{head}v/a.avi,x,0,1\nv/a.mp4,x,1,2\nv/A.MP4,x,2,3\nv/cafe\u0301.mkv,x,0,1\n")
    assert list(found.values()) == ["v/a.mp4"] * 3 + ["v/caf\u00e9.mp4"]
    assert groups(tmp_path, "path,label,offset,frames\nv/One,x,0,2\nv/one,x,2,2\n") == {
        "v/One/img_{:05}.jpg#f=0,2": "v/One",
        "v/One/img_{:05}.jpg#f=2,4": "v/One",
    }
    assert groups(tmp_path, "path,label,group\nv/a.avi,x,g\nv/gone.mp4,y,\n") == {
        "v/a.mp4": "g",
        "v/gone.mp4": "v/gone.mp4",
    }


@pytest.mark.parametrize(
    ("rows", "pairs"),
    [
        ("v/a.mp4,x,0,2,p\nv/a.mp4,x,1,3,q\n", "v/a.mp4#t=0,2 and v/a.mp4#t=1,3"),
        ("v/a.mp4,x,0,2,p\nv/a.mp4,x,2,3,q\n", ""),
        ("v/a.mp4,x,0,2,p\nv/a.mp4,x,1,3,p\n", ""),
        ("v/a.mp4,x,,,p\nv/a.avi,x,1,3,q\n", "v/a.mp4 and v/a.mp4#t=1,3"),
    ],
)
def test_parts_that_overlap_in_different_groups_are_said(tmp_path: Path, rows: str, pairs: str) -> None:
    lay(tmp_path, "v/a.mp4")
    said = [n for n in notes(tmp_path, f"path,label,start,end,group\n{rows}") if "same frames" in n]
    expected = f"1 pair of clips show the same frames in different groups, such as {pairs}"
    assert said == ([expected] if pairs else [])


@pytest.mark.parametrize(
    ("written", "read", "said"),
    [
        ("3.0 3 4.0", "3 3 4", ("t.csv: groups such as 3.0 are read as integers",)),
        ("3 03 003 12", "3 3 3 12", ("the groups 003 and 03 and 3 are the same number, 3: they are one group",)),
        ("01 02 10", "01 02 10", ()),
        ("3.0 3 anna", "3.0 3 anna", ()),
        *(
            (f"{word} 3.0 {word}", "a.mp4 3 c.mp4", ("t.csv: nan and the like are read as empty cells, in 2 rows",))
            for word in ("None", "NA", "#N/A", "-1", "-1.0", "nan", "NULL", "N/A", "-", "?")
        ),
        ("None anna ben", "a.mp4 anna ben", ("t.csv: nan and the like are read as empty cells, in 1 rows",)),
    ],
)
def test_groups_in_one_form(tmp_path: Path, written: str, read: str, said: tuple[str, ...]) -> None:
    rows = "".join(f"{clip}.mp4,x,{group}\n" for clip, group in zip("abcd", written.split(), strict=False))
    assert list(groups(tmp_path, f"path,label,group\n{rows}").values()) == read.split()
    decimals = (
        ("t.csv: groups such as 3.0 are read as integers",) if written != "3.0 3 anna" and "3.0" in written else ()
    )
    assert sorted(notes(tmp_path, f"path,label,group\n{rows}")) == sorted({*said, *decimals})


@pytest.mark.parametrize(
    ("written", "read", "said"),
    [
        *(
            (f"3.0 {word} 4.0", "3  4", [f"t.csv: the label {word} is read as no label"])
            for word in ("None", "NA", "-1", "-1.0", "none", "-")
        ),
        ("3.0 #N/A 4.0", "3  4", ["t.csv: nan and the like are read as empty cells, in 1 rows"]),
        *(
            (
                f"walk {word} run",
                f"walk {word} run",
                [f"the label {word} is read as a class: if it means no label, leave it empty"],
            )
            for word in ("-1", "None", "NA")
        ),
        ("-2 -1 0", "-2 -1 0", []),
    ],
)
def test_labels_that_stand_for_none(tmp_path: Path, written: str, read: str, said: list[str]) -> None:
    rows = "".join(f"{clip}.mp4,{label}\n" for clip, label in zip("abc", written.split(" "), strict=True))
    table(tmp_path, f"path,label\n{rows}")
    listing = listed(tmp_path, kind="csv", path="t.csv")
    assert [e.label for e in listing.entries] == read.split(" ")
    decimals = ["t.csv: labels such as 3.0 are read as integers"] if "3.0" in written else []
    assert [n for n in listing.notes if not n.startswith("no clip has")] == said + decimals


def test_numbers_of_groups_are_compared_over_all_tables(tmp_path: Path) -> None:
    table(tmp_path, "path,label,group\na.mp4,0,1\nb.mp4,1,2\n", "train.csv")
    table(tmp_path, "path,label,group\nc.mp4,0,3.0\nd.mp4,None,\nd2.mp4,1,04\n", "more.csv")
    table(tmp_path, "path,label,group\ne.mp4,0,4\nf.mp4,1,nan\n", "test.csv")
    said = refused(tmp_path, kind="csv", path="train.csv", val="more.csv", test="test.csv")
    assert said == "more.csv:3: a val clip needs a label | "


# ---------------------------------------------------------------- paths


def test_folders_that_are_spelled_otherwise_are_found(tmp_path: Path) -> None:
    lay(tmp_path, "Caf\u00e9/Sub/A.mp4", *pictures("v/One", 4), "v/two.MKV")
    table(tmp_path, "cafe\u0301/sub/a.avi,x\nV/one,y\nv/TWO.mp4,z\nv/gone/1.mp4,z\n")
    listing = listed(tmp_path, kind="csv", path="t.csv")
    assert set(labels(listing)) == {"Caf\u00e9/Sub/A.mp4", "v/One/img_{:05}.jpg", "v/two.MKV", "v/gone/1.mp4"}
    assert listing.unlisted == ()


def test_ucf101_with_a_folder_in_the_case_of_its_files(tmp_path: Path) -> None:
    lay(tmp_path, "u/UCF-101/HandStandPushups/v_HandStandPushups_g01_c01.avi", "u/UCF-101/X/v_X_g02_c01.avi")
    table(tmp_path, "1 HandstandPushups\n2 X\n", "u/ucfTrainTestlist/classInd.txt")
    table(tmp_path, "HandstandPushups/v_HandStandPushups_g01_c01.avi 1\n", "u/ucfTrainTestlist/trainlist01.txt")
    table(tmp_path, "X/v_X_g02_c01.avi\n", "u/ucfTrainTestlist/testlist01.txt")
    for other in ("trainlist02.txt", "testlist03.txt", "readme.txt"):
        table(tmp_path, "x\n", f"u/ucfTrainTestlist/{other}")
    listing = listed(tmp_path, kind="ucf101", path="u")
    assert labels(listing) == {
        "UCF-101/HandStandPushups/v_HandStandPushups_g01_c01.avi": "HandstandPushups",
        "UCF-101/X/v_X_g02_c01.avi": "X",
    }
    assert listing.unlisted == () and {r: len(p) for r, p in listing.left_out.items()} == {
        "a list of clips or classes": 6
    }


def test_absolute_paths_with_dots_and_through_links_are_kept_relative(tmp_path: Path) -> None:
    root, far = tmp_path / "root", tmp_path / "far"
    lay(root, "v/1.mp4")
    lay(far, "deep/2.mp4", "3.mp4", "x/4.mp4")
    (root / "lnk").symlink_to(far / "deep")
    (root / "v" / "file.mp4").symlink_to(far / "3.mp4")
    rows = (f"{root}/v/../v/1.mp4", f"{far}/deep/2.mp4", f"{far}/x/../3.mp4", f"{far}/x/4.mp4")
    table(root, "".join(f"{row},x\n" for row in rows))
    listing = listed(root, kind="csv", path="t.csv")
    assert set(labels(listing)) == {"v/1.mp4", "lnk/2.mp4", "v/file.mp4", f"{far}/x/4.mp4"}
    assert listing.notes == (
        f"1 clips lie outside of the data root, such as {far}/x/4.mp4: keys and stagedkd.lock hold folders of this"
        " machine",
    )


@pytest.mark.parametrize("path", ["x" * 300 + ".mp4", "v/" * 3000 + "a.mp4", "v\\" + "x" * 300 + ".mp4"])
def test_a_path_that_is_too_long_is_refused_with_its_line(tmp_path: Path, path: str) -> None:
    table(tmp_path, f"path,label\nv/a.mp4,x\n{path},x\n")
    said = f"t.csv:3: the path {path[:60]}... is longer than a path can be | "
    assert refused(tmp_path, kind="csv", path="t.csv") == said
    table(tmp_path, f"v/a.mp4 x\n{path} x\n")
    assert refused(tmp_path, kind="csv", path="t.csv") == said.replace(":3:", ":2:")


def test_parts_by_frames_are_whole_numbers(tmp_path: Path) -> None:
    table(tmp_path, "path,label,offset,frames\nv/a.mp4,x,0,8.5\n")
    assert refused(tmp_path, kind="csv", path="t.csv") == "t.csv:2: frames must be a whole number, not 8.5 | "


# ---------------------------------------------------------------- files of classes


def with_classes(
    root: Path, text: str, rows: str = "0.mp4 0\n1.mp4 1\n2.mp4 2\n", name: str = "classes.txt"
) -> Listing:
    table(root, text, name)
    table(root, rows)
    return listed(root, kind="csv", path="t.csv", classes=name)


@pytest.mark.parametrize(
    "lines",
    [
        *("id,action|0,walk|1,run|2,sit down", "ID;Aktion|0;walk|1;run|2;sit down", "action|walk|run|sit down"),
        *("class no;what|0;walk|1;run|2;sit down", "what,label|walk,0|run,1|sit down,2", "Gestures|walk|run|sit down"),
        *("nr\tBewegung|0\twalk|1\trun|2\tsit down", "Category Name|walk|run|sit down"),
    ],
)
def test_a_header_of_other_words_shifts_no_class(tmp_path: Path, lines: str) -> None:
    listing = with_classes(tmp_path, lines.replace("|", "\n") + "\n")
    assert labels(listing) == {"0.mp4": "walk", "1.mp4": "run", "2.mp4": "sit down"}
    first = lines.partition("|")[0]
    assert listing.notes == (f"classes.txt: its first line, '{first}', is read as a header",)


@pytest.mark.parametrize(
    "lines",
    [
        *("// classes|walk|run|sit down", "0. walk|1. run|2. sit down", "0) walk|1) run|2) sit down"),
        *("walk=0|run=1|sit down=2", "0=walk|1=run|2=sit down", "[0] walk|[1] run|[2] sit down"),
        *("(0) walk|(1) run|(2) sit down", "0 - walk|1 - run|2 - sit down", "walk (0)|run (1)|sit down (2)"),
        *("0: walk|1: run|2: sit down", "0 -> walk|1 -> run|2 -> sit down", "walk: 0|run: 1|sit down: 2"),
        *("1. walk|2. run|3. sit down", "0,walk,|1,run,|2,sit down,", "# x|// y|walk|run|sit down"),
        *(
            "- walk|- run|- sit down",
            "'walk'|'run'|'sit down'",
            "walk;|run;|sit down;",
            "% x|-- y|; z|walk|run|sit down",
        ),
        *("0: 'walk',|1: 'run',|2: 'sit down',", "* 0 walk|* 1 run|* 2 sit down"),
    ],
)
def test_numbers_with_any_mark_are_read(tmp_path: Path, lines: str) -> None:
    listing = with_classes(tmp_path, lines.replace("|", "\n"))
    assert labels(listing) == {"0.mp4": "walk", "1.mp4": "run", "2.mp4": "sit down"} and listing.notes == ()


def test_columns_beside_number_and_name_are_said(tmp_path: Path) -> None:
    for text in ("id,name,group\n0,walk,a\n1,run,a\n2,sit,b\n", "count,id,name\n90,0,walk\n91,1,run\n92,2,sit\n"):
        listing = with_classes(tmp_path, text)
        assert listing.classes == ("walk", "run", "sit")
        assert listing.notes[-1] == "classes.txt: of its 3 columns, id and name are read"


HINT = "a line is NAME, NUMBER,NAME or NAME,NUMBER; other names can be listed in the spec (data: {classes: [...]})"
NOT_COUNTED = ": the numbers of the classes are not 0, 1, 2, ... or 1, 2, 3, ..."


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("class,count\nwalk,12\nrun,30\nsit,30\n", ":1: the column 'count' counts something else than classes"),
        ("class,count\nwalk,0\nrun,1\n", ":1: the column 'count' counts something else than classes"),
        ("class,n_clips\nwalk,0\nrun,1\n", ":1: the column 'n_clips' counts something else than classes"),
        ("walk,sports\nrun,sports\n", ":1: its lines have 2 cells, and in no column all are numbers"),
        ("0,walk,sports\n1,run,home\n", ":1: it cannot be told which of its 3 columns are the number and the name"),
        ("id,x,y\n0,walk,a\n1,run,b\n", ":1: it cannot be told which of its 3 columns are the number and the name"),
        ("walk,\nrun,1\nsit,2\n", ":1: its line is neither a class with its number nor a header"),
        ("0,walk\n0,run\n", ": the numbers of the classes are not"),
        ("0. walk\n1. run\nsit\n", ":3: 'sit' has no number, and most lines have one"),
        ("0 walk\nrun\n1 sit\n2 go\n", ":2: 'run' has no number, and most lines have one"),
        ("rest\n1 hand\n2 hands\n", ":1: 'rest' has no number, and most lines have one"),
        ("0 walk 12\n1 run 13\n", ":1: its lines have a number before and after the name"),
        ("0. walk\n1. walk\n", ":1: two lines have the same number, or the same name"),
        ("90 degrees\n180 turns\n", NOT_COUNTED),
    ],
)
def test_a_file_of_classes_that_may_be_read_in_two_ways_is_refused(tmp_path: Path, text: str, said: str) -> None:
    table(tmp_path, text, "c.txt")
    table(tmp_path, "a.mp4 0\nb.mp4 1\n")
    message, _, hint = refused(tmp_path, kind="csv", path="t.csv", classes="c.txt").partition(" | ")
    assert message.startswith(f"c.txt{said}")
    numbers = "if the numbers are parts of the names, list the classes in the spec: data: {classes: [...]}"
    assert hint == (numbers if "the numbers of the classes are not" in message else HINT)


def test_names_with_separators_and_classes_without_clips_are_said(tmp_path: Path) -> None:
    listing = with_classes(tmp_path, '0,"up, then down"\n1,run\n2,sit\n3,go|stay\n')
    assert listing.classes == ("up, then down", "run", "sit", "go|stay")
    assert listing.notes[:2] == (
        "classes.txt: a comma or the like is part of 2 names, such as 'up, then down'",
        f"{tmp_path / 'classes.txt'} names 4 classes, and no clip has 'go|stay'",
    )
    listing = with_classes(tmp_path, "Bewegung\nwalk\nrun\nsit\n")  # no list of words has all headers
    assert listing.notes == (f"{tmp_path / 'classes.txt'} names 4 classes, and no clip has 'sit'",)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"[" * 100_000 + b"]" * 100_000, "c.json is not a list of classes: it is nested too deeply | "),
        (b'{"walk": 0, "walk": 1}', "c.json is not JSON: 'walk' is there twice | "),
        (b'{"walk": ' + b"1" * 5000 + b"}", "c.json is not JSON: Exceeds the limit"),
        (b'{"walk": "' + b"1" * 5000 + b'"}', "c.json must be a list of class names, or a map of names and numbers | "),
        ("café".encode("latin-1"), "c.json is not text in UTF-8 | save it in UTF-8"),
        ("[]".encode("utf-16"), "c.json is not text in UTF-8 | save it in UTF-8"),
    ],
    ids=range(6),
)
def test_json_that_is_no_list_of_classes_is_refused_in_words(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "c.json").write_bytes(content)
    table(tmp_path, "a.mp4 0\n")
    assert refused(tmp_path, kind="csv", path="t.csv", classes="c.json").startswith(said)


def test_labels_of_many_digits_cost_no_memory(tmp_path: Path) -> None:
    table(tmp_path, "path,label\na.mp4,0\nb.mp4,9000000000000\n")
    listing = listed(tmp_path, kind="csv", path="t.csv")
    assert listing.notes == (
        "no clip has the label 1, 2, 3, 4, 5, ...: ids are counted without it; data.classes can state all classes",
    )
    many = "1" * 5000
    table(tmp_path, f"path,label,group\na.mp4,0,{many}\nb.mp4,{many},7\n")
    listing = listed(tmp_path, kind="csv", path="t.csv")
    assert listing.classes == ("0", many) and [e.group for e in listing.entries] == [many, "7"]
    table(tmp_path, "x\ny\n", "c.txt")
    said = refused(tmp_path, kind="csv", path="t.csv", classes="c.txt")
    assert said.startswith("the label '0' is none of the 2 classes of ") or "is none of the 2 classes" in said


# ---------------------------------------------------------------- modalities

FLOW, OTHER = "optical flow", "another modality than RGB"


def counts(listing: Listing) -> dict[str, int]:
    return {reason: len(paths) for reason, paths in listing.left_out.items()}


@pytest.mark.parametrize(
    "name",
    [
        *(
            "optical-flow",
            "flows",
            "of_x",
            "x_flow",
            "flow_imgs",
            "farneback",
            "tvl1_flow",
            "warp_flow_y",
            "OpticalFlow",
        ),
        *("flowx", "flow_u", "optical_flow_horizontal", "flow frames"),
    ],
)
def test_flow_by_any_name_is_left_out(tmp_path: Path, name: str) -> None:
    lay(tmp_path, *pictures("a/c0"), *pictures(f"a/c0/{name}"), *pictures("a/c1/rgb"), *pictures(f"a/c1/{name}"))
    lay(tmp_path, *pictures("a/c2"), *pictures(f"a/c2_{name}"), "a/c3.mp4", f"a/c3_{name}.mp4", "a/c4_rgb.avi")
    lay(tmp_path, f"a/c4_{name}.avi", *pictures("a/c5"), f"a/c5/{name}.mp4", "a/rgb/c6.mp4", f"a/{name}/c6.mp4")
    lay(tmp_path, *pictures("a/c7"), *pictures("a/c7", 3, f"{name}_{{:05}}.jpg"), "a/c8.mp4", *pictures(f"a/c8/{name}"))
    listing = listed(tmp_path, kind="folder")
    expected = ("a/c0/img_{:05}.jpg", "a/c1/rgb/img_{:05}.jpg", "a/c2/img_{:05}.jpg", "a/c3.mp4", "a/c4_rgb.avi")
    expected += ("a/c5/img_{:05}.jpg", "a/c7/img_{:05}.jpg", "a/c8.mp4", "a/rgb/c6.mp4")
    assert tuple(labels(listing)) == expected and listing.notes == ()
    assert counts(listing) == {FLOW: 3 * 3 + 2 + 1 + 1 + 3 + 3}


def test_depth_and_infrared_beside_rgb_are_left_out(tmp_path: Path) -> None:
    lay(tmp_path, *(p for kind in ("rgb", "depth", "ir") for p in pictures(f"walk/c0/{kind}")))
    lay(tmp_path, "run/c0_rgb.avi", "run/c0_depth.avi", "run/c1.mp4", "run/c1_ir.mp4", "run/depth_charge.mp4")
    lay(tmp_path, *pictures("sit/c0/images"), *pictures("sit/c0/thermal"), *pictures("sit/depth"))
    listing = listed(tmp_path, kind="folder")
    expected = {"walk/c0/rgb/img_{:05}.jpg", "run/c0_rgb.avi", "run/c1.mp4", "run/depth_charge.mp4"}
    assert set(labels(listing)) == expected | {"sit/c0/images/img_{:05}.jpg", "sit/depth/img_{:05}.jpg"}
    assert counts(listing) == {OTHER: 11}


@pytest.mark.parametrize(
    ("paths", "said"),
    [
        *(
            (
                [f"{a}/walk/1.mp4", f"{b}/walk/1.mp4"],
                f": {', '.join(sorted([a + '/', b + '/']))} are named as modalities, not as classes"
                f" | put the class folders of one of them, such as {best}/, into data.path; if they are classes, set"
                " data: {folders: classes}",
            )
            for a, b, best in (("rgb", "flow", "rgb"), ("flow_x", "flow_y", "flow_x"), ("RGB", "Depth", "RGB"))
        ),
        (
            ["train/rgb/walk/1.mp4", "train/depth/walk/1.mp4"],
            ": rgb/ is named as a modality, not as a class | put the class folders of one of them, such as"
            " rgb/, into data.path; if they are classes, set data: {folders: classes}",
        ),
        (
            ["walk/1.mp4", "walk_flow/1.mp4", "run/1.mp4"],
            ": walk_flow/ is named as a modality of the clips in walk/"
            " | move walk_flow/ away; if they are classes, set data: {folders: classes}",
        ),
        (
            [*pictures("a/c0/depth"), *pictures("a/c0/ir")],
            "/a/c0 has several modalities, and none is RGB: a/c0/depth/img_{:05}.jpg, a/c0/ir/img_{:05}.jpg"
            " | move all but one away, or list the clips to read in a table (data.kind: csv)",
        ),
        (
            [*pictures("a/c0/flow_x"), *pictures("a/c0/flow_y")],
            "/a/c0 has several modalities, and none is RGB: a/c0/flow_x/img_{:05}.jpg, a/c0/flow_y/img_{:05}.jpg"
            " | move all but one away, or list the clips to read in a table (data.kind: csv)",
        ),
    ],
)
def test_modalities_that_would_be_classes_or_clips_are_refused(tmp_path: Path, paths: list[str], said: str) -> None:
    lay(tmp_path / "r", *paths)
    assert refused(tmp_path, kind="folder", path="r") == f"r{said}"


def test_a_class_that_is_named_as_a_modality_is_said(tmp_path: Path) -> None:
    lay(tmp_path, "flow/1.mp4", "walk/1.mp4")
    listing = listed(tmp_path, kind="folder")
    assert listing.classes == ("flow", "walk")
    assert listing.notes == ("flow/ is read as a class, and is named as a modality",)
    assert listed(tmp_path, kind="folder", folders="classes").notes == ()


def test_a_table_may_list_another_modality(tmp_path: Path) -> None:
    lay(tmp_path, *pictures("c0"), *pictures("c0/flow_x"), *pictures("c1"), *pictures("c1/flow_x"))
    table(tmp_path, "c0 0\nc0/flow_x 1\n")
    listing = listed(tmp_path, kind="csv", path="t.csv")
    assert set(labels(listing)) == {"c0/img_{:05}.jpg", "c0/flow_x/img_{:05}.jpg"}
    assert counts(listing)[FLOW] == 3 and len(listing.unlisted) == 3


def test_a_line_that_is_too_long_is_refused(tmp_path: Path) -> None:
    table(tmp_path, f"path,label\na.mp4,{'x' * 200_000}\n")
    assert refused(tmp_path, kind="csv", path="t.csv") == "t.csv:2: the line has 200006 characters, which is no clip | "


def test_letters_among_other_letters_are_clips(tmp_path: Path) -> None:
    letters = "abcduvwxyz"
    lay(tmp_path, *(p for letter in letters for p in pictures(f"signs/{letter}")), *pictures("raft/raft"))
    lay(tmp_path, *pictures("raft/kayak"), *pictures("raft/warp"))
    listing = listed(tmp_path, kind="folder")
    assert len(listing.entries) == len(letters) + 3 and listing.left_out == {}
    lay(tmp_path / "two", *pictures("a/c", 3, "v_{:04}.jpg"), *pictures("a/c", 3, "w_{:04}.jpg"))
    assert "holds several sequences of pictures: v_{:04}.jpg, w_{:04}.jpg" in refused(tmp_path / "two", kind="folder")
    lay(tmp_path / "xy", *(p for kind in "xy" for p in pictures("a/c", 3, f"{kind}_{{:04}}.jpg")), *pictures("a/c"))
    assert set(labels(listed(tmp_path / "xy", kind="folder"))) == {"a/c/img_{:05}.jpg"}


# ---------------------------------------------------------------- one clip under two names


def test_one_clip_under_two_names_is_one_group(tmp_path: Path) -> None:
    lay(tmp_path, "a/One.mp4", "a/one.avi", "a/2.mp4.avi", "a/2.mp4", "a/3.mp4", *pictures("a/3/rgb"), "b/one.mp4")
    lay(tmp_path, "a/caf\u00e9.mp4", "a/cafe\u0301.webm", "a/5.mp4", "A/one.mp4")
    listing = listed(tmp_path, kind="folder")
    groups = {e.path: e.group for e in listing.entries}
    assert groups == {
        "A/one.mp4": "A/one.mp4",
        "a/2.mp4": "a/2",
        "a/2.mp4.avi": "a/2",
        "a/3.mp4": "a/3",
        "a/3/rgb/img_{:05}.jpg": "a/3",
        "a/5.mp4": "a/5.mp4",
        "a/One.mp4": "a/One",
        "a/one.avi": "a/One",
        "a/caf\u00e9.mp4": "a/cafe\u0301",
        "a/cafe\u0301.webm": "a/cafe\u0301",
        "b/one.mp4": "b/one.mp4",
    }
    assert (
        "4 clips are there twice under one name, such as a/2.mp4, a/2.mp4.avi: each pair is one group" in listing.notes
    )


def test_links_to_one_file_are_one_group(tmp_path: Path) -> None:
    lay(tmp_path, "w/1.mp4", "w/2.mp4", "v/3.mp4", *pictures("far/c"))
    (tmp_path / "lk").symlink_to(tmp_path / "w")
    (tmp_path / "v" / "lnk.mp4").symlink_to(tmp_path / "v" / "3.mp4")
    (tmp_path / "v" / "c").symlink_to(tmp_path / "far" / "c")
    listing = listed(tmp_path, kind="folder")
    assert {e.path: e.group for e in listing.entries} == {
        **{f"{folder}/{i}.mp4": f"lk/{i}" for folder in ("lk", "w") for i in (1, 2)},
        **{f"v/{name}.mp4": "v/3" for name in ("3", "lnk")},
        **{f"{folder}/c/img_{{:05}}.jpg": "far/c" for folder in ("far", "v")},
    }
    assert listing.notes == (
        "4 clips are there twice by links to one file, such as far/c/img_{:05}.jpg, v/c/img_{:05}.jpg: each pair is one"
        " group",
    )


def test_twins_whose_stated_groups_differ_are_said(tmp_path: Path) -> None:
    lay(tmp_path, "a/1.mp4", "a/1.webm")
    assert notes(tmp_path, "path,label,group\na/1.mp4,x,p\na/1.webm,x,q\n") == (
        "1 clips are there twice, such as a/1.mp4, a/1.webm: their groups differ in the table",
    )


# ---------------------------------------------------------------- rows that are no clips


@pytest.mark.parametrize(
    ("text", "line", "cell", "hint"),
    [
        *(
            (f"path,label\nv/a.mp4,x\n{row}\nv/b.mp4,y\n", 3, row.partition(",")[0], hint)
            for row, hint in (
                ("path,label", "remove the row, or correct the path"),
                ("Total,2", "remove the row, or correct the path"),
                ("sum/all,2", "remove the row, or correct the path"),
                ("# checked by me,x", "remove the row"),
                ("# v/c.mp4,x", "remove the row"),
                ("#v/a.mp4,x", "remove the row"),
                ("// v/c.mp4,x", "remove the row"),
            )
        ),
        ("clip/video,action\nv/a.mp4,x\nv/b.mp4,y\n", 1, "clip/video", ""),
        ("clip/video,action\nf/one,x\nf/two,y\n", 1, "clip/video", ""),
        ("v/a.mp4 0\n# more 1\nv/b.mp4 1\n", 2, "# more", "remove the row"),
    ],
)
def test_rows_that_are_no_clips_are_refused(tmp_path: Path, text: str, line: int, cell: str, hint: str) -> None:
    lay(tmp_path, "v/a.mp4", *pictures("f/one"), *pictures("f/two"))
    table(tmp_path, text)
    said = refused(tmp_path, kind="csv", path="t.csv")
    names = "path, label, group, split, clean, frames, offset, start, end, or data.columns gives them"
    hint = hint or f"if it is a header, its names must be of {names}"
    assert said == f"t.csv:{line}: '{cell}' is no clip | {hint}"


def test_rows_of_clips_that_are_missing_are_kept(tmp_path: Path) -> None:
    lay(tmp_path, *pictures("f/one"), *pictures("two"))
    for rows in (["f/gone,x", "f/one,y"], ["f/one,x", "g/gone,y"], ["two,x", "gone,y", "away,y"], ["#437_How.avi,x"]):
        table(tmp_path, "path,label\n" + "".join(f"{row}\n" for row in rows))
        assert len(listed(tmp_path, kind="csv", path="t.csv").entries) == len(rows)


# ---------------------------------------------------------------- nothing lost, and no traceback


def test_what_was_meant_as_a_class_is_named(tmp_path: Path) -> None:
    lay(tmp_path, "a/1.mp4", "b/.1.mp4", "c/.git/x")
    (tmp_path / "dead").symlink_to(tmp_path / "nowhere")
    (tmp_path / "notes.txt").symlink_to(tmp_path / "nowhere")
    assert listed(tmp_path, kind="folder").notes == (
        "b/ holds only hidden files: it is no class",
        "c/ holds only hidden files: it is no class",
        "dead is a link to nothing: if it is a folder of clips, they are lost",
    )


def kinetics(root: Path, row: str) -> None:
    head = "label,youtube_id,time_start,time_end,split\n"
    lay(root, "k/train/Caf\u00e9 a/x_000001_000002.mkv")
    table(root, f"{head}{row}\n", "k/annotations/train.csv")
    table(root, f"{head}b,y,1,2,val\n", "k/annotations/val.csv")
    table(root, f"{head}b,y,1,2,test\n", "k/annotations/test.csv")


def test_kinetics_in_another_unicode_form_and_its_unused_list(tmp_path: Path) -> None:
    kinetics(tmp_path, "Cafe\u0301 a,x,1,2,train")
    listing = listed(tmp_path, kind="kinetics", path="k", lists="csv")
    assert "train/Caf\u00e9 a/x_000001_000002.mkv" in labels(listing) and listing.unlisted == ()
    assert counts(listing) == {"a list of clips or classes": 3}


@pytest.mark.parametrize("times", ["inf,2", "1,inf", "nan,2", "1,1e300", "-1,2", "5,2", "x,2"])
def test_times_of_kinetics_that_are_none_are_refused(tmp_path: Path, times: str) -> None:
    kinetics(tmp_path, f"a,x,{times},train")
    said = refused(tmp_path, kind="kinetics", path="k", lists="csv")
    assert said == "k/annotations/train.csv:2: time_start and time_end must be seconds | "


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("1 A\n\u00b2 B\n".encode(), "classInd.txt:2: must be a number and a class"),
        (b"1 A\n" + b"2" * 5000 + b" B\n", "classInd.txt:2: must be a number and a class"),
        ("1 A\n2 caf\u00e9\n".encode("latin-1"), "classInd.txt:2 cannot be read as a table in UTF-8"),
        ("1 A\n".encode("utf-16"), "classInd.txt:1 cannot be read as a table in UTF-8"),
    ],
    ids=range(4),
)
def test_official_lists_that_cannot_be_read_are_refused_with_their_line(
    tmp_path: Path, content: bytes, said: str
) -> None:
    lay(tmp_path, "u/UCF-101/A/v_A_g01_c01.avi")
    table(tmp_path, "A/v_A_g01_c01.avi 1\n", "u/ucfTrainTestlist/trainlist01.txt")
    table(tmp_path, "A/v_A_g01_c01.avi\n", "u/ucfTrainTestlist/testlist01.txt")
    (tmp_path / "u/ucfTrainTestlist/classInd.txt").write_bytes(content)
    assert refused(tmp_path, kind="ucf101", path="u").startswith(f"u/ucfTrainTestlist/{said}")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"[" * 100_000, "s/labels.json is no list of 20BN: it is nested too deeply | "),
        ("caf\u00e9".encode("latin-1"), "s/labels.json is not text in UTF-8 | save it in UTF-8"),
        (b'{"a": "' + b"1" * 5000 + b'"}', "s/labels.json must be a map: label -> number | "),
        ('{"a": "\u00b2"}'.encode(), "s/labels.json must be a map: label -> number | "),
    ],
    ids=range(4),
)
def test_lists_of_20bn_that_cannot_be_read_are_refused_in_words(tmp_path: Path, content: bytes, said: str) -> None:
    for name in ("train", "validation"):
        table(tmp_path, "[]", f"s/{name}.json")
    (tmp_path / "s/labels.json").write_bytes(content)
    assert refused(tmp_path, kind="ssv2", path="s") == said

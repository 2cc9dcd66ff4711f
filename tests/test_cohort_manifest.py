"""What a manifest may look like, and what a person is told of one that is wrong."""

import pickle
from pathlib import Path

import cloudpickle
import numpy as np
import pytest
from PIL import Image

from hemomil.cohort import (
    exclude,
    init_manifest,
    read_manifest,
    select,
    summary,
    whole_image_cells,
    without_images,
)
from hemomil.errors import HemomilError, ManifestError, SettingsError
from hemomil.types import Cohort

HEADER = "image,sample,patient,label"


def draw(path: Path, width: int = 30, height: int = 20) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((height, width, 3), 200, dtype=np.uint8)).save(path)
    return path


def write(folder: Path, text: str, *images: str) -> Path:
    for image in images or ("a.png", "b.png"):
        draw(folder / image)
    path = folder / "manifest.csv"
    path.write_text(text, encoding="utf-8")
    return path


def refused(path: Path, **options) -> str:
    with pytest.raises(ManifestError) as caught:
        read_manifest(path, **options)
    return str(caught.value)


@pytest.fixture
def good(tmp_path: Path) -> Path:
    return write(
        tmp_path,
        "image,sample,patient,label,site,dye,slide\n"
        "a.png,s1,007,control,A,giemsa,1\n"
        "b.png,s2,008,scd,B,giemsa,1\n"
        "c.png,s2,008,scd,B,wright,1\n",
        "a.png",
        "b.png",
        "c.png",
    )


# What is read


def test_a_sample_is_all_its_images(good):
    cohort = read_manifest(good)
    assert [(s.sample, s.patient, s.label) for s in cohort.samples] == [
        ("s1", "007", "control"),
        ("s2", "008", "scd"),
    ]
    assert [row.image for row in cohort.samples[1].images] == ["b.png", "c.png"]
    assert [row.row for row in cohort.samples[1].images] == [3, 4]
    assert cohort.classes == ("control", "scd")


def test_metadata_of_a_sample_is_what_its_rows_agree_on(good):
    first, second = read_manifest(good).samples
    assert first.metadata == {"site": "A", "dye": "giemsa", "slide": "1"}
    assert second.metadata == {"site": "B", "slide": "1"}
    assert second.images[1].metadata == {"dye": "wright", "slide": "1"}
    assert second.images[1].site == "B"


def test_ids_stay_text(tmp_path):
    path = write(tmp_path, f"{HEADER}\na.png,001,NA,control\nb.png,None,1e3,nan\n")
    assert [(s.sample, s.patient, s.label) for s in read_manifest(path).samples] == [
        ("001", "NA", "control"),
        ("None", "1e3", "nan"),
    ]


@pytest.mark.parametrize(
    "header",
    [
        "image,sample,patient,label",
        "image_path,sample_id,patient_id,Label",
        "FILENAME,slide_id,case_id,LABEL",
        "Image Path,bag,PATIENT,diagnosis",
    ],
)
def test_names_of_other_programs_are_understood(tmp_path, header):
    path = write(tmp_path, f"{header}\na.png,s1,p1,control\nb.png,s2,p2,scd\n")
    assert [s.sample for s in read_manifest(path).samples] == ["s1", "s2"]


def test_the_name_itself_wins_over_its_aliases(tmp_path):
    path = write(tmp_path, f"{HEADER},case_id\na.png,s1,p1,control,x\nb.png,s2,p2,scd,y\n")
    cohort = read_manifest(path)
    assert [s.patient for s in cohort.samples] == ["p1", "p2"]
    assert cohort.samples[0].metadata == {"case_id": "x"}


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_spreadsheets_of_all_countries_are_read(tmp_path, separator, encoding):
    draw(tmp_path / "ä.png")
    text = "image,sample,patient,label\r\nä.png,s1,Müller,control\r\n\r\n".replace(",", separator)
    (tmp_path / "manifest.csv").write_bytes(text.encode(encoding))
    assert read_manifest(tmp_path / "manifest.csv").samples[0].patient == "Müller"


def test_row_numbers_count_blank_lines_as_a_spreadsheet_does(tmp_path):
    text = refused(write(tmp_path, f"{HEADER}\n\na.png,s1,p1,control\n\nb.png,s2,,scd\n"))
    assert "row 5: the patient is blank" in text


def test_kind_and_region_are_read_and_a_cohort_may_mix_kinds(tmp_path):
    path = write(
        tmp_path,
        f"{HEADER},Kind,region,cell_label\n"
        "a.png,s1,p1,control,,0 0 10 10,\na.png,s1,p1,control,field,10 0 20 10,\n"
        "b.png,s2,p2,scd,CELL,,sickle\n",
    )
    first, second = read_manifest(path).samples
    assert [row.region for row in first.images] == [(0, 0, 10, 10), (10, 0, 20, 10)]
    assert [row.kind for row in first.images + second.images] == ["field", "field", "cell"]
    assert second.images[0].cell_label == "sickle"


def test_labels_may_be_blank_or_missing_where_nothing_is_learned(tmp_path):
    blank = read_manifest(write(tmp_path, f"{HEADER}\na.png,s1,p1,\nb.png,s2,p2,scd\n"), labels_needed=False)
    assert [s.label for s in blank.samples] == [None, "scd"]
    missing = read_manifest(write(tmp_path, "image,sample,patient\na.png,s1,p1\n"), labels_needed=False)
    assert missing.samples[0].label is None


def test_paths_are_relative_to_the_manifest_and_windows_paths_are_found(tmp_path, monkeypatch):
    monkeypatch.chdir("/")
    path = write(
        tmp_path, f"{HEADER}\nimg\\a.png,s1,p1,control\nimg/b.png,s2,p2,scd\n", "img/a.png", "img/b.png"
    )
    first, second = read_manifest(path).samples
    assert first.images[0].image == "img\\a.png"
    assert first.images[0].path.is_file()
    assert second.images[0].path == tmp_path / "img" / "b.png"


def test_a_cohort_travels_between_processes(good):
    cohort = read_manifest(good)
    assert cloudpickle.loads(cloudpickle.dumps(cohort)) == cohort


# What is refused


def test_every_problem_is_told_at_once_with_its_row_and_remedy(tmp_path):
    path = write(
        tmp_path,
        f"{HEADER},kind,region,cell_label\n"
        "a.png,s1,p1,control,,,\n"
        "a.png,s1,p1,control,,,\n"
        "gone.png,s1,p2,scd,,,\n"
        "b.png,,p3,scd,,,\n"
        "b.png,s4,,scd,blob,,\n"
        "b.png,s5,p5,,,1 2 3,\n"
        "b.png,s6,p6,scd,field,5 5 5 9,sickle\n",
    )
    text = refused(path)
    for expected in (
        "row 3: image 'a.png' of sample 's1' is already in row 2",
        "row 4: image 'gone.png' is not there",
        "row 2: sample 's1' has 2 patients: 'p1' (rows 2-3), 'p2' (row 4)",
        "row 2: sample 's1' has 2 labels: 'control' (rows 2-3), 'scd' (row 4)",
        "row 5: the sample is blank",
        "row 6: the patient is blank",
        "row 6: kind 'blob' is unknown",
        "row 7: the label is blank",
        "row 7: region '1 2 3' is not a region",
        "row 8: region '5 5 5 9' is not a region",
        "row 8: cell_label 'sickle' is given to an image of kind 'field'",
        "11 problems",
    ):
        assert expected in text
    assert text.count("->") >= 8


@pytest.mark.parametrize(
    ("header", "suggestion"),
    [
        ("image,smaple,patient,label", "did you mean 'smaple'? rename it to 'sample'"),
        ("image,sample,patient_idd,label", "did you mean 'patient_idd'? rename it to 'patient'"),
        ("picture,sample,patient,label", "add it, or rename the column that holds it to 'image'"),
        ("image,sample,patient,lable", "did you mean 'lable'? rename it to 'label'"),
    ],
)
def test_a_renamed_column_is_missed_and_the_likely_one_named(tmp_path, header, suggestion):
    assert suggestion in refused(write(tmp_path, f"{header}\na.png,s1,p1,control\n"))


def test_all_missing_columns_are_told_at_once(tmp_path):
    text = refused(write(tmp_path, "file,x\na.png,1\n"))
    assert all(f"column {name!r} is missing" in text for name in ("sample", "patient", "label"))


def test_an_optional_column_under_nearly_its_name_is_not_taken_for_metadata(tmp_path):
    text = refused(write(tmp_path, f"{HEADER},regoin\na.png,s1,p1,control,0 0 5 5\n"))
    assert "column 'regoin' looks like 'region'" in text


def test_two_columns_for_one_thing_are_refused(tmp_path):
    text = refused(write(tmp_path, "image,sample,patient_id,case_id,label\na.png,s1,p1,p1,control\n"))
    assert "columns 'patient_id', 'case_id' both mean 'patient'" in text
    assert "is there more than once" in refused(write(tmp_path, f"{HEADER},label\na.png,s1,p1,control,scd\n"))


def test_the_missing_control_class_is_named_with_the_labels_there_are(tmp_path):
    path = write(tmp_path, f"{HEADER}\na.png,s1,p1,healthy\nb.png,s2,p2,scd\n")
    text = refused(path)
    assert "no sample is labelled 'control'; there are 'healthy', 'scd'" in text
    assert "--control" in text
    assert read_manifest(path, control="healthy").classes == ("healthy", "scd")
    assert read_manifest(path, labels_needed=False).samples


def test_labels_that_differ_only_in_capital_letters_are_refused(tmp_path):
    text = refused(write(tmp_path, f"{HEADER}\na.png,s1,p1,control\nb.png,s2,p2,Control\n"))
    assert "labels 'control' and 'Control' differ only in capital letters" in text


def test_many_missing_images_are_counted_and_their_rows_kept(tmp_path):
    rows = "".join(f"no/{k}.png,s{k},p{k},control\n" for k in range(500))
    text = refused(write(tmp_path, f"{HEADER}\n{rows}"))
    assert "500 problems" in text
    assert "and 480 more like these (rows 22-501)" in text
    assert f"there is no folder {tmp_path / 'no'}" in text
    assert len(text.splitlines()) < 30


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "is empty"),
        (b" \n\n", "is empty"),
        (b"image,sample,patient,label\n", "has a header but no rows"),
        ("image,sample,patient,label\na.png,s,Müller,control\n".encode("latin-1"), "byte 0xfc in row 2"),
        (b"PK\x03\x04rest", "is a spreadsheet workbook"),
        (b"image,sample\0,patient,label\n", "is not a CSV table"),
        (b'image,sample,patient,label\n"a.png,s,p,control\n', "is not a CSV table"),
        (b"\x89PNG\r\n\x1a\n\0\0", "is not UTF-8 text"),
        (
            b"image,sample,patient,label\na.png,s,p,control,extra\n",
            "row 2: the row has 5 values for 4 columns",
        ),
    ],
)
def test_what_is_not_a_table_is_refused(tmp_path, content, expected):
    draw(tmp_path / "a.png")
    path = tmp_path / "manifest.csv"
    path.write_bytes(content)
    assert expected in refused(path)


def test_a_missing_manifest_and_a_folder_are_refused_with_a_remedy(tmp_path):
    assert "there is no file" in refused(tmp_path / "manifest.csv")
    assert "hemomil init" in refused(tmp_path)


def test_errors_travel_between_processes_whole(tmp_path):
    with pytest.raises(ManifestError) as caught:
        read_manifest(tmp_path / "no.csv")
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), type(again)) == (str(caught.value), ManifestError)


# Choosing and counting


def test_selecting_and_excluding_divide_the_cohort(good):
    cohort = read_manifest(good)
    for condition in ("site=A", "label=scd", "patient=007", "sample=s2", "SITE = B"):
        parts = select(cohort, condition).samples + exclude(cohort, condition).samples
        assert {s.sample for s in parts} == {"s1", "s2"}
        assert len(parts) == 2
    assert [s.sample for s in select(cohort, "site=A").samples] == ["s1"]


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ("stie=A", "did you mean 'site'?"),
        ("site=C", "values of site: A, B"),
        ("site", "is not a condition"),
        ("scanner=x", "samples have label, patient, sample, dye"),
    ],
)
def test_a_condition_that_cannot_be_obeyed_names_what_there_is(good, condition, expected):
    for choose in (select, exclude):
        with pytest.raises(SettingsError, match=expected.replace("?", r"\?")):
            choose(read_manifest(good), condition)


def test_excluding_everything_is_refused(good):
    with pytest.raises(SettingsError, match="leaves out every sample"):
        exclude(read_manifest(good), "slide=1")


def test_images_left_out_are_counted_and_named(good):
    cohort, notices = without_images(read_manifest(good), ["a.png", "c.png"])
    assert [[row.image for row in s.images] for s in cohort.samples] == [["b.png"]]
    assert [(n.kind, n.subject) for n in notices] == [
        ("image-skipped", "a.png"),
        ("image-skipped", "c.png"),
        ("sample-skipped", "s1"),
    ]


def test_the_summary_counts_each_class_and_all(tmp_path):
    path = write(
        tmp_path,
        f"{HEADER},kind\na.png,s1,p1,scd,cell\nb.png,s2,p1,control,cell\nc.png,s3,p2,control,cell\nc.png,s4,p3,,cell\n",
        "a.png",
        "b.png",
        "c.png",
    )
    cohort = read_manifest(path, labels_needed=False)
    table = summary(cohort, whole_image_cells(cohort))
    assert list(table.index) == ["control", "scd", "(no label)", "all"]
    assert table["patients"].tolist() == [2, 1, 1, 3]
    assert table["samples"].tolist() == [2, 1, 1, 4]
    assert table["images"].tolist() == [2, 1, 1, 3]
    assert table["cells"].tolist() == [2, 1, 1, 4]
    assert list(summary(cohort).columns) == ["patients", "samples", "images"]
    assert summary(Cohort(samples=())).loc["all", "samples"] == 0


# From a folder tree


def test_a_folder_tree_becomes_a_manifest(tmp_path):
    for name in ("control/P1/a/1.png", "control/P1/a/2.JPG", "scd/P2/b/1.png", "scd/P2/b/.hidden.png"):
        draw(tmp_path / "tree" / name)
    (tmp_path / "tree" / "notes.txt").write_text("kept out")
    cohort = init_manifest(tmp_path / "tree", tmp_path / "out" / "manifest.csv")
    assert [(s.sample, s.patient, s.label, len(s.images)) for s in cohort.samples] == [
        ("a", "P1", "control", 2),
        ("b", "P2", "scd", 1),
    ]
    assert cohort.samples[0].images[0].image == "../tree/control/P1/a/1.png"
    assert read_manifest(tmp_path / "out" / "manifest.csv") == cohort


def test_samples_of_one_name_are_told_apart(tmp_path):
    for name in ("control/P1/s/1.png", "control/P2/s/1.png", "scd/P1/s/1.png"):
        draw(tmp_path / name)
    cohort = init_manifest(tmp_path, tmp_path / "manifest.csv")
    assert [s.sample for s in cohort.samples] == ["control_P1_s", "control_P2_s", "scd_P1_s"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("control/P1/1.png", "lies 2 folders deep, not 3"),
        ("1.png", "lies 0 folders deep, not 3"),
        ("control/P1/s/t/1.png", "lies 4 folders deep, not 3"),
        ("control/P1/s/1.bmp", "is not PNG, JPEG or TIFF"),
        (None, "holds no PNG, JPEG or TIFF image"),
    ],
)
def test_a_tree_of_another_shape_is_refused_and_nothing_is_written(tmp_path, name, expected):
    tree = tmp_path / "tree"
    tree.mkdir()
    if name:
        draw(tree / name)
    with pytest.raises(HemomilError) as caught:
        init_manifest(tree, tmp_path / "manifest.csv")
    assert expected in str(caught.value)
    assert list(tmp_path.iterdir()) == [tree]

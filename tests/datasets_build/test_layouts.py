"""Joint layouts from TOML: the documented one, what a layout may say, and its mistakes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from datasets_build.joints import COCO_17, NTU_25, skeleton_from_json
from datasets_build.layouts import LayoutFile, layout_named, read_layout

PAGE = Path(__file__).resolve().parents[2] / "docs" / "own-recordings.md"

STICK = """
name = "stick"
joints = ["hip", "neck", "left hand", "right hand"]
bones = [["neck", "hip"], ["left hand", "neck"], [3, 1]]
centre = "hip"
"""


@pytest.fixture
def layout(tmp_path: Path):
    def read(text: str) -> LayoutFile:
        path = tmp_path / "layout.toml"
        path.write_text(text)
        return read_layout(path)

    return read


def test_a_layout_takes_names_and_indices_and_has_defaults(layout):
    found = layout(STICK)
    skeleton = found.skeleton
    assert skeleton.parents == (0, 0, 1, 1)
    assert skeleton.mirror == (0, 1, 3, 2)
    assert (skeleton.root, skeleton.centre, skeleton.num_bodies, skeleton.num_channels) == (
        0, 0, 1, 3,
    )  # fmt: skip
    assert found.class_names is None
    assert skeleton_from_json(skeleton.as_json()) == skeleton


def test_the_documented_mediapipe_layout_is_a_layout(layout):
    (block,) = (b for b in re.findall(r"```toml\n(.*?)```", PAGE.read_text(), re.S) if "bones" in b)
    found = layout(block)
    skeleton = found.skeleton
    assert (skeleton.name, skeleton.num_joints, skeleton.num_channels) == ("mediapipe-33", 33, 4)
    # MediaPipe's numbers of some landmarks.
    assert [skeleton.joints[i] for i in (0, 11, 16, 23, 28, 32)] == [
        "nose", "left shoulder", "right wrist", "left hip", "right ankle", "right toes",
    ]  # fmt: skip
    assert all(skeleton.mirror[skeleton.mirror[j]] == j for j in range(33))
    assert [j for j in range(33) if skeleton.mirror[j] == j] == [0]
    mirrored = {
        (skeleton.mirror[child], skeleton.mirror[parent]) for child, parent in skeleton.bones
    }
    assert mirrored == set(skeleton.bones)
    assert found.class_names == ("wave", "sit down", "stand up")


def test_classes_scores_and_bodies_are_taken(layout):
    found = layout(STICK + 'num_bodies = 2\njoint_dims = 2\nhas_score = true\nclasses = ["b", "a"]')
    assert found.class_names == ("b", "a")
    assert (found.skeleton.num_bodies, found.skeleton.num_channels) == (2, 3)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('"left hand", "neck"]', '"left hnd", "neck"]', "'left hnd' is not one of joints; did you"),
        ("[3, 1]", "[4, 1]", "joint index 4 is not one of 0 .. 3"),
        ("[3, 1]", "[3, -1]", "joint index -1 is not one of 0 .. 3"),
        ("[3, 1]", "[3, 1], [3, 2]", "'right hand' has two parents, 'neck' and 'left hand'"),
        ("[3, 1]", "[3, 1], [0, 1]", "every joint has a parent, so they go in a circle"),
        ("[3, 1]", "[3]", "bones.2.1: Field required"),
        (", [3, 1]", "", "2 joints have no parent ('hip', 'right hand')"),
        ("[3, 1]", "[0, 0]", "'hip' is its own parent"),
        ("[3, 1]", "[3, true]", "bones.2.1: a joint is given by its name or its 0-based index"),
        ('centre = "hip"', "", "centre: Field required"),
        ('centre = "hip"', 'center = "hip"', "center: no such key; did you mean 'centre'?"),
        ('centre = "hip"', 'centre = "hips"', "centre: 'hips' is not one of joints; did you mean"),
        ('"neck", "left', '"hip", "left', "'hip' comes more than once"),
        ('"right hand"]', '" "]', "' ' is not a name"),
        ('"stick"', '"My Stick"', "name: "),
        ('"stick"', '"ntu-25"', "name 'ntu-25' belongs to a built-in layout"),
        ("centre", "joint_dims = 4\ncentre", "joint_dims: "),
        ("centre", "num_bodies = 0\ncentre", "num_bodies: "),
        ("centre", "classes = []\ncentre", "classes: "),
    ],
)
def test_a_mistake_is_a_sentence(layout, old, new, said):
    assert STICK.count(old) == 1
    with pytest.raises(ValueError, match=re.escape(said)):
        layout(STICK.replace(old, new))


def test_bones_that_go_in_a_circle_beside_a_root_are_refused(layout):
    text = STICK.replace(
        '[["neck", "hip"], ["left hand", "neck"], [3, 1]]', "[[1, 2], [2, 3], [3, 1]]"
    )
    with pytest.raises(ValueError, match="go in a circle and never reach the root 'hip'"):
        layout(text)


def test_all_mistakes_of_the_bones_are_told_together(layout):
    with pytest.raises(
        ValueError, match=r"(?s)centre: 'hop'.*bones.0: 'nek'.*bones.2: joint index 9"
    ):
        layout(
            STICK.replace('["neck", "hip"]', '["nek", "hip"]')
            .replace("[3, 1]", "[9, 1]")
            .replace('centre = "hip"', 'centre = "hop"')
        )


def test_a_built_in_name_is_taken_where_the_file_says_the_same(layout):
    bones = [[NTU_25.joints[child], parent] for child, parent in NTU_25.bones]
    text = (
        f'name = "ntu-25"\njoints = {list(NTU_25.joints)}\nbones = {bones}\ncentre = 1\n'
        "num_bodies = 2\n"
    )
    assert layout(text).skeleton == NTU_25


def test_a_layout_is_found_by_name_or_path(tmp_path):
    assert layout_named("coco-17") == LayoutFile(COCO_17, None)
    path = tmp_path / "stick.toml"
    path.write_text(STICK)
    assert layout_named(str(path)).skeleton.name == "stick"
    with pytest.raises(ValueError, match="'ntu25' is not known; did you mean 'ntu-25'"):
        layout_named("ntu25")
    with pytest.raises(FileNotFoundError, match=r"own-recordings\.md"):
        layout_named(str(tmp_path / "absent.toml"))


@settings(
    max_examples=300,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.data())
def test_mutated_layout_files_are_read_or_refused_with_a_sentence(layout, data):
    base = STICK + 'num_bodies = 2\njoint_dims = 2\nhas_score = true\nclasses = ["b", "a"]\n'
    at = data.draw(st.integers(0, len(base) - 1))
    end = data.draw(st.integers(at, min(at + 12, len(base))))
    snippet = data.draw(
        st.sampled_from(["", "[", "]", '"', "9" * 30, "-1", "nan", "{}", "1e400", "0x" + "f" * 99])
        | st.text(max_size=4).filter(lambda text: text.isprintable())
    )
    try:
        found = layout(base[:at] + snippet + base[end:])
    except ValueError as error:
        if "layout.toml" not in str(error):
            raise
    else:
        assert len(found.skeleton.bones) == found.skeleton.num_joints - 1

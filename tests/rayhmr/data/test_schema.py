"""Shards hold what was put in, and a folder that is not whole is not read."""

from __future__ import annotations

import hashlib
import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from hmr.body import Body
from hmr.crops import decode_image, encode_jpeg
from hmr.errors import ConfigError, DataError
from hmr.pose_prior import rodrigues
from hmr.skeleton import JOINT49_NAMES
from rayhmr.config import SyntheticConfig
from rayhmr.data.person import MIN_VISIBLE_JOINTS
from rayhmr.data.schema import (
    ROW_GROUP,
    SCHEMA,
    SCHEMA_VERSION,
    encode_shard,
    fingerprint,
    read_info,
    shard_name,
)
from rayhmr.data.sources.synthetic import CHUNK, SyntheticSource
from rayhmr.data.statistics import means, merged, sums_of

VECTORS = ("crop_to_frame", "center", "keypoints_2d", "keypoints_3d", "pose", "betas", "transl",
           "intrinsics")  # fmt: skip
SMALL = SyntheticConfig(image_size=32, preset="hard", seed=5)


def read_rows(content):
    return pq.read_table(io.BytesIO(content)).to_pylist()


@pytest.fixture(scope="module")
def generated():
    """People of a split with their rows, through a shard."""
    people = list(SyntheticSource(SMALL, "embedded").people("train", 0, 12))
    return people, read_rows(encode_shard([person.row(92) for person in people]))


# A row


def test_a_person_comes_back_from_a_shard_bit_for_bit(make_person):
    people = [make_person(number, gender="female") for number in range(3)]
    for person, row in zip(
        people, read_rows(encode_shard([p.row(92) for p in people])), strict=True
    ):
        for name in VECTORS:
            stored = getattr(person, name).astype(np.float32).reshape(-1)
            np.testing.assert_array_equal(np.array(row[name], np.float32), stored, err_msg=name)
        for name in ("sample_id", "gender", "source", "split", "subject", "scale"):
            assert row[name] == getattr(person, name), name
        assert row["image_size"] == [640, 480]
        assert row["has_smpl"] is True
        assert row["image"]["path"] == f"{person.sample_id}.jpg"
        assert row["image"]["bytes"] == encode_jpeg(person.image, 92)
        pixels = decode_image(row["image"]["bytes"]).astype(int)
        assert np.abs(pixels - person.image).max() <= 3, "a plain colour survives JPEG"


def test_what_a_source_does_not_know_is_missing_and_not_zero(make_person):
    (row,) = read_rows(encode_shard([make_person(transl=None, intrinsics=None).row(92)]))
    assert row["transl"] is None
    assert row["intrinsics"] is None


@pytest.mark.parametrize("absent", [{"pose": None, "betas": None}, {"betas": None}])
def test_without_smpl_labels_pose_and_shape_are_padding(make_person, absent):
    (row,) = read_rows(encode_shard([make_person(**absent).row(92)]))
    assert row["has_smpl"] is False
    assert not any(row["pose"])
    assert not any(row["betas"])


def test_a_label_of_the_wrong_length_does_not_enter_a_shard(make_person):
    with pytest.raises(pa.ArrowInvalid):
        encode_shard([make_person(betas=np.zeros(9)).row(92)])
    with pytest.raises(pa.ArrowInvalid):
        encode_shard([make_person().row(92) | {"keypoints_2d": np.zeros(48 * 3)}])


@pytest.mark.parametrize("name", ["sample_id", "image", "keypoints_2d", "pose", "has_smpl"])
def test_a_row_that_lacks_what_everybody_has_does_not_enter_a_shard(make_person, name):
    rows = [make_person(number).row(92) for number in range(2)]
    for lacking in ({name: None}, {}):
        rows[1] = {key: value for key, value in make_person(1).row(92).items() if key != name}
        with pytest.raises(DataError, match=rf"lacks {name}, which every row must have; correct"):
            encode_shard([rows[0], rows[1] | lacking])


def test_the_3d_joints_of_a_row_project_onto_its_2d_joints(generated):
    _, rows = generated
    for row in rows:
        joints = np.reshape(row["keypoints_3d"], (49, 4))
        fx, fy, cx, cy = row["intrinsics"]
        placed = joints[:, :3] + np.array(row["transl"])
        in_frame = np.column_stack([
            fx * placed[:, 0] / placed[:, 2] + cx, fy * placed[:, 1] / placed[:, 2] + cy
        ])  # fmt: skip
        keypoints = np.reshape(row["keypoints_2d"], (49, 3))
        affine = np.reshape(row["crop_to_frame"], (2, 3))
        labelled_in_frame = keypoints[:, :2] @ affine[:, :2].T + affine[:, 2]
        np.testing.assert_allclose(labelled_in_frame, in_frame, atol=2e-4)


def test_the_body_with_the_pose_and_shape_of_a_row_has_its_3d_joints(generated):
    _, rows = generated
    poses = np.array([row["pose"] for row in rows], np.float32).reshape(-1, 24, 3)
    betas = torch.tensor([row["betas"] for row in rows])
    found = Body.embedded().landmarks(torch.from_numpy(rodrigues(poses)), betas)
    stored = np.array([row["keypoints_3d"] for row in rows]).reshape(-1, 49, 4)
    np.testing.assert_allclose(found.numpy(), stored[..., :3], atol=1e-5)


def test_a_synthetic_person_does_not_depend_on_the_portion_it_came_in(generated):
    people, _ = generated
    alone = list(SyntheticSource(SMALL, "embedded").people("train", 7, 9))
    for ours, theirs in zip(alone, people[7:9], strict=True):
        assert ours.row(92)["image"] == theirs.row(92)["image"]
        assert ours.sample_id == theirs.sample_id
        np.testing.assert_array_equal(ours.pose, theirs.pose)
    ids = [p.sample_id for p in SyntheticSource(SMALL, "embedded").people("val", 0, CHUNK + 3)]
    assert ids == [f"synthetic-hard-5/val/{number:07d}/0" for number in range(CHUNK + 3)]


# A file


def test_the_same_rows_give_the_same_bytes(make_person):
    def content():
        return encode_shard([make_person(number).row(92) for number in range(4)])

    assert content() == content()


def test_rows_keep_their_order_over_row_groups_of_bounded_size(make_person):
    row = make_person().row(92)
    rows = [row | {"sample_id": f"{number}"} for number in range(2 * ROW_GROUP + 1)]
    shard = pq.ParquetFile(io.BytesIO(encode_shard(rows)))
    groups = [shard.metadata.row_group(i).num_rows for i in range(shard.num_row_groups)]
    assert groups == [ROW_GROUP, ROW_GROUP, 1]
    ids = shard.read(columns=["sample_id"])["sample_id"].to_pylist()
    assert ids == [f"{number}" for number in range(len(rows))]


def test_labels_are_compressed_and_pictures_are_not_compressed_again(make_person):
    shard = pq.ParquetFile(io.BytesIO(encode_shard([make_person().row(92)])))
    group = shard.metadata.row_group(0)
    codecs = {
        group.column(i).path_in_schema: group.column(i).compression
        for i in range(group.num_columns)
    }
    assert codecs.pop("image.bytes") == "UNCOMPRESSED"
    assert len(codecs) >= len(SCHEMA) - 1
    assert set(codecs.values()) == {"ZSTD"}


def test_a_file_explains_itself(make_person):
    schema = pq.read_schema(io.BytesIO(encode_shard([make_person().row(92)])))
    assert schema.names == SCHEMA.names
    assert all(schema.field(name).metadata[b"description"] for name in schema.names)
    assert json.loads(schema.metadata[b"joint_names"]) == list(JOINT49_NAMES)
    features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
    assert list(features) == schema.names
    assert features["image"] == {"_type": "Image"}
    assert features["has_smpl"] == {"_type": "Value", "dtype": "bool"}
    for name in VECTORS:
        size = schema.field(name).type.list_size
        float32 = {"_type": "Value", "dtype": "float32"}
        assert features[name] == {"_type": "List", "length": size, "feature": float32}


# A folder


@pytest.fixture
def folder(tmp_path, make_person):
    """A finished data set: four training files, one for validation, none to test on."""
    files = {"train": [], "val": [], "test": []}
    for split, count in (("train", 4), ("val", 1)):
        for number in range(count):
            content = encode_shard([make_person(n).row(90) for n in range(number + 1)])
            name = shard_name(split, number, count)
            (tmp_path / name).write_bytes(content)
            digest = hashlib.sha256(content).hexdigest()
            files[split].append(
                {"name": name, "rows": number + 1, "bytes": len(content), "sha256": digest}
            )
    facts = {
        "schema_version": SCHEMA_VERSION, "fingerprint": fingerprint(files), "source": "made",
        "image_size": 32, "files": files, "statistics": {"mean_betas": [0.5]},
        "rejected": {"label_missing": 2}, "body": {"name": "b", "hash": "h"},
    }  # fmt: skip
    (tmp_path / "dataset.json").write_text(json.dumps(facts))
    return tmp_path


def change(folder, function):
    facts = json.loads((folder / "dataset.json").read_text())
    function(facts)
    (folder / "dataset.json").write_text(json.dumps(facts))


def test_a_finished_folder_says_what_it_holds(folder):
    info = read_info(str(folder))
    assert info.rejected == {"label_missing": 2}
    assert info.statistics == {"mean_betas": [0.5]}
    assert (info.rows("train"), info.rows("val")) == (1 + 2 + 3 + 4, 1)
    assert info.paths("train") == [f"{folder}/train-0000{i}-of-00004.parquet" for i in range(4)]
    for split in ("train", "val"):
        assert info.rows(split) == sum(len(pq.read_table(path)) for path in info.paths(split))


def test_a_fraction_takes_the_first_files_and_at_least_one(folder):
    info = read_info(str(folder))
    assert info.paths("train", 0.5) == info.paths("train")[:2]
    assert info.rows("train", 0.5) == 1 + 2
    assert info.paths("train", 0.01) == info.paths("train")[:1]
    assert info.rows("train", 0.01) == 1


def test_a_split_without_files_is_refused_with_what_there_is(folder):
    with pytest.raises(DataError, match="has no test split, only train, val; prepare it anew"):
        read_info(str(folder)).rows("test")


def test_a_folder_that_is_none_or_was_never_finished_is_refused(folder):
    with pytest.raises(
        DataError, match=r"nowhere: the folder is not there; make it with `python jobs/prepare\.py"
    ):
        read_info(str(folder / "nowhere"))
    (folder / "dataset.json").unlink()
    with pytest.raises(DataError, match=r"has no dataset\.json, so it was never finished"):
        read_info(str(folder))


def test_the_manifest_itself_given_as_the_folder_is_refused(folder):
    with pytest.raises(ConfigError, match=r"dataset\.json: is a file; give the folder it is in"):
        read_info(str(folder / "dataset.json"))


def test_another_schema_version_is_refused(folder):
    change(folder, lambda facts: facts.update(schema_version=7))
    with pytest.raises(
        DataError, match="schema version 7, this code reads 1; prepare the data set again"
    ):
        read_info(str(folder))


@pytest.mark.parametrize(
    "name",
    ["schema_version", "fingerprint", "source", "image_size", "files", "statistics", "rejected",
     "body"],
)  # fmt: skip
def test_a_manifest_without_a_field_is_refused_by_its_name(folder, name):
    change(folder, lambda facts: facts.pop(name))
    with pytest.raises(
        DataError, match=rf"dataset\.json: is damaged .*{name}.*; prepare the data set again"
    ):
        read_info(str(folder))


@pytest.mark.parametrize("key", ["name", "bytes"])
def test_a_file_entry_without_a_field_is_refused_by_its_name(folder, key):
    change(folder, lambda facts: facts["files"]["val"][0].pop(key))
    with pytest.raises(DataError, match=rf"dataset\.json: is damaged .*{key}.*; prepare the data"):
        read_info(str(folder))


@pytest.mark.parametrize(
    "content", ['{"schema_version": 1, "fi', "", "[]", '{"schema_version": 1, "files": []}']
)
def test_a_manifest_that_is_no_manifest_is_refused(folder, content):
    (folder / "dataset.json").write_text(content)
    with pytest.raises(DataError, match=r"dataset\.json: is damaged"):
        read_info(str(folder))


def test_files_that_are_a_list_and_not_by_split_are_refused(folder):
    change(folder, lambda facts: facts.update(files=facts["files"]["train"]))
    with pytest.raises(DataError, match=r"dataset\.json: is damaged"):
        read_info(str(folder))


def test_a_missing_file_is_named(folder):
    (folder / "train-00002-of-00004.parquet").unlink()
    with pytest.raises(
        DataError, match=r"train-00002-of-00004\.parquet: is missing, .*; copy the folder again"
    ):
        read_info(str(folder))


def test_a_file_that_breaks_off_is_named(folder):
    file = folder / "val-00000-of-00001.parquet"
    content = file.read_bytes()
    file.write_bytes(content[:-10])
    with pytest.raises(
        DataError,
        match=rf"val-00000-of-00001\.parquet: has {len(content) - 10} bytes, dataset\.json says "
        rf"{len(content)} bytes; copy the folder again",
    ):
        read_info(str(folder))


def test_a_file_that_is_listed_twice_is_named(folder):
    change(folder, lambda facts: facts["files"]["val"].append(facts["files"]["train"][1]))
    with pytest.raises(
        DataError, match=r"train-00001-of-00004\.parquet is listed twice; prepare it again"
    ):
        read_info(str(folder))


def test_the_fingerprint_is_that_of_names_and_contents():
    def entry(name, digest):
        return {"name": name, "sha256": digest}

    files = {"train": [entry("a", "1"), entry("b", "2")], "val": [entry("c", "3")]}
    reordered = {"val": [entry("c", "3")], "train": [entry("b", "2"), entry("a", "1")]}
    assert fingerprint(files) == fingerprint(reordered)
    swapped = {"train": [entry("a", "2"), entry("b", "1")], "val": [entry("c", "3")]}
    fewer = {"train": [entry("a", "1"), entry("b", "2")]}
    assert len({fingerprint(files), fingerprint(swapped), fingerprint(fewer)}) == 3


# Rejections


@pytest.mark.parametrize("name", [*VECTORS, "scale"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_numbers_that_are_not_finite_are_rejected_by_name(make_person, name, value):
    person = make_person()
    damaged = np.array(getattr(person, name), np.float64)
    damaged.flat[-1] = value
    changed = make_person(**{name: damaged})
    assert changed.rejection() == ("label_nonfinite", f"{name} holds NaN or infinite numbers")
    assert person.rejection() is None


def test_people_with_too_few_labelled_joints_are_rejected(make_person):
    keypoints = np.zeros((49, 3))
    keypoints[:MIN_VISIBLE_JOINTS, 2] = 0.3
    assert make_person(keypoints_2d=keypoints).rejection() is None
    keypoints[0, 2] = 0
    assert make_person(keypoints_2d=keypoints).rejection() == (
        "label_missing", "5 joints are labelled, at least 6 must be"
    )  # fmt: skip


def test_people_without_optional_labels_are_accepted(make_person):
    absent = dict.fromkeys(("pose", "betas", "transl", "intrinsics"))
    assert make_person(**absent).rejection() is None


# Statistics


@pytest.fixture(scope="module")
def arrays():
    return Body.embedded().arrays


def test_sums_of_parts_merge_to_those_of_one_pass(make_person, arrays):
    people = [make_person(number) for number in range(7)]
    people[2] = make_person(2, pose=None, betas=None)
    # As the notes of the parts are stored.
    parts = [json.loads(json.dumps(sums_of(part, arrays))) for part in (people[:3], people[3:])]
    for order in (parts, parts[::-1]):
        found, expected = means(merged(order)), means(sums_of(people, arrays))
        assert found.keys() == expected.keys()
        assert (found["people"], found["labelled"]) == (7, 6)
        for name, value in expected.items():
            np.testing.assert_allclose(found[name], value, atol=2e-6, err_msg=name)


def test_means_are_those_of_all_pixels_and_of_the_labelled_people(make_person, arrays):
    rng = np.random.default_rng(0)
    people = [
        make_person(number, image=rng.integers(0, 256, (32, 32, 3), dtype=np.uint8))
        for number in range(4)
    ]
    labelled = people[:3]
    people[3] = make_person(3, image=people[3].image, pose=None, betas=None)
    found = means(sums_of(people, arrays))
    pixels = np.concatenate([p.image.reshape(-1, 3) for p in people]) / 255
    np.testing.assert_allclose(found["image_mean"], pixels.mean(0), atol=1e-6)
    np.testing.assert_allclose(found["image_std"], pixels.std(0), atol=1e-6)
    np.testing.assert_allclose(
        found["mean_betas"], np.mean([p.betas for p in labelled], axis=0), atol=1e-6
    )
    rotmats = rodrigues(np.array([p.pose for p in labelled]).reshape(-1, 24, 3))
    np.testing.assert_allclose(found["mean_rotmats"], rotmats.mean(0), atol=1e-6)
    joints = Body(arrays).joints_only(
        torch.from_numpy(rotmats), torch.tensor(np.array([p.betas for p in labelled]))
    )
    joints = (joints - joints[:, :1]).mean(0)
    np.testing.assert_allclose(found["mean_joints"], joints.numpy(), atol=1e-5)


def test_a_data_set_without_smpl_labels_has_zero_means_and_its_colours(make_person, arrays):
    image = np.broadcast_to(np.array([0, 51, 255], np.uint8), (32, 32, 3))
    found = means(sums_of([make_person(image=image, pose=None, betas=None)], arrays))
    assert (found["people"], found["labelled"]) == (1, 0)
    assert found["image_mean"] == [0, 0.2, 1]
    assert found["image_std"] == [0, 0, 0]
    assert not np.any(found["mean_betas"])

"""Whatever a manifest holds, it is read or refused in words; nothing in it makes a traceback.

Tables of diagnoses are treated so in test_tables.py.
"""

import json

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from dermjax.data import records
from dermjax.data.leaks import audit, fingerprints, training_images
from dermjax.errors import UserError

HEADER = {"dermjax_manifest": 1, "labels": ["benign", "malignant"], "root": "."}
LINE = {
    "image": "a.png", "sha256": "0" * 64, "label": "benign", "split": "train", "source": "s",
    "image_manipulation": "none",
}  # fmt: skip
NAMES = st.sampled_from([*LINE, "attributes", "generation", "scores", "rejected", "labels", "root", "dermjax_manifest"])
PATHS = st.sampled_from(
    ["", ".", "..", "/", "a/../../b", "\0", "\ud800", "\udcff", "a\nb", "x" * 5000, "loop", "loop/a", "a.png/b"]
)
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | PATHS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
EXTREMES = st.sampled_from(["[" * 100_000, "9" * 5000, "NaN", '{"a":' * 5000, "\x00", "{}", "[]", ""])
LOOK = {"sha256": "0" * 64, "views": "", "cells": "", "told": {}, "measured": None, "image": "a.png", "label": "benign"}
LINES = st.dictionaries(st.sampled_from([*LOOK]), ANYTHING, max_size=3).map(lambda by: json.dumps(LOOK | by).encode())
CHANGES = st.dictionaries(NAMES, ANYTHING, max_size=3)


def refused_or_read(folder, content):
    """Reads and audits a manifest of these bytes; only UserError may come of it."""
    (folder / "manifest.jsonl").write_bytes(content)
    try:
        manifest = records.read(folder)
        audit.refuse([manifest])
        records.write(folder / "again" / "manifest.jsonl", manifest)
    except UserError as error:
        assert str(error)
    else:
        assert records.read(folder / "again") == manifest


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "again").mkdir()
    (folder / "loop").symlink_to(folder / "loop")
    return folder


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=300))
@example(b"")
@example(b"\xff\xfe{\x00}\x00")
def test_bytes(folder, content):
    refused_or_read(folder, content)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(header=CHANGES, lines=st.lists(CHANGES, max_size=3))
@example(header={"root": "loop"}, lines=[{}])
@example(header={"root": "\0"}, lines=[])
@example(header={}, lines=[{"image": "\ud800"}])
@example(header={}, lines=[{"scores": {"x": float("nan")}}])
def test_fields(folder, header, lines):
    whole = [HEADER | header, *(LINE | line for line in lines)]
    refused_or_read(folder, "\n".join(json.dumps(line) for line in whole).encode())


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from([fingerprints.FILE, training_images.FILE]), st.binary(max_size=200) | LINES)
def test_what_lies_beside_a_manifest(folder, name, content):
    (folder / name).write_bytes(content)
    refused_or_read(folder, "\n".join(map(json.dumps, (HEADER, LINE))).encode())
    (folder / name).unlink()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0, 1), text=EXTREMES)
def test_lines(folder, place, text):
    lines = [json.dumps(HEADER), json.dumps(LINE)]
    lines[place] = text
    refused_or_read(folder, "\n".join(lines).encode())

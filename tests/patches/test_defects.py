"""``doctor --live``: every defect that is declared is there without the patches, gone with them."""

from __future__ import annotations

import json

import pytest

from coati_ext.cli import main
from coati_ext.plan import make_plan
from coati_ext.testing import has_distributed


@pytest.fixture
def defects(upstream):
    """Those that the coati under test can have, by name."""
    declared = [d for d in make_plan().registry.defects if upstream.generation in d.generations]
    by_name = {defect.name: defect for defect in declared}
    assert len(by_name) == len(declared)
    return by_name


def is_right(defect, value):
    """Exceptions and infinite numbers come as text."""
    return isinstance(value, float) and abs(value - defect.right) <= defect.tolerance


def test_every_defect_is_there_without_the_patches_and_gone_with_them(
    upstream, defects, warm_children, capsys
):
    assert main(["doctor", "--live", "--json"]) == 0
    live = json.loads(capsys.readouterr().out)["live"]
    assert {item["name"] for item in live} == set(defects)
    right = {item["name"] for item in live if is_right(defects[item["name"]], item["before"])}
    # Before v0.3.1 the loader of a buffer had no sampler.
    early = (upstream.package / "trainer" / "strategies" / "naive.py").exists()
    there = upstream.generation == "G4" and has_distributed()
    absent = {name for name, item in defects.items() if item.patch == "distributed" and not there}
    assert right == ({"lost experience"} if early else set())
    assert {item["name"] for item in live if item["verdict"] == "not measured"} == absent
    assert {item["verdict"] for item in live if item["name"] not in absent} == {"right"}
    ran = [item for item in live if item["name"] not in absent]
    assert [item for item in ran if not is_right(defects[item["name"]], item["after"])] == []


def test_every_default_patch_repairs_a_defect_of_each_generation(upstream, defects):
    assert {defect.patch for defect in defects.values()} == {
        *("eos_pooling", "left_padding", "provenance", "rollout", "stable_losses"),
        *(("distributed",) if upstream.generation == "G4" else ()),
    }


def test_a_defect_fits_in_a_line_of_a_table(defects):
    for defect in defects.values():
        assert len(defect.name) <= 28
        assert len(defect.summary) <= 90

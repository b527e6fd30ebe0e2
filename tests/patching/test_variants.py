"""What a file of variants says of the sites of a patch."""

from __future__ import annotations

import json
import os

import pytest

import coati_ext
from coati_ext.errors import InputError, UnknownNameError
from coati_ext.patching.patch import GENERATIONS, Reliance, Site
from coati_ext.patching.variants import Trees, is_commit, with_variants

TREES = Trees(
    {"G1": ("v1", "v2", "abcdef12", "v3"), "G2": ("v4",), "G3": ("v5", "1234567", "HEAD")}
)
SMALL = """
[trees]
G1 = ["v1", "v2"]
G2 = ["v3"]
G3 = ["abcdef12", "v4", "HEAD"]

[["m:f"]]
releases = "v1 .. v3, stand-in G1 .. G2"
fingerprint = "00000001-00000002"
mine = "fits"
yours = "right"

[["m:f"]]
releases = "v4 .. HEAD"
fingerprint = "00000001-00000003"
mine = "right"

[["m:f"]]
releases = "abcdef12, stand-in G3"
fingerprint = "00000001-00000004"
mine = "unreviewed"
yours = "fits"
"""


def site(target="m:f", generations=GENERATIONS, **given):
    return Site(target, "ours:f", generations, **given)


@pytest.fixture
def small(tmp_path):
    file = tmp_path / "small.toml"
    file.write_text(SMALL)
    return file


@pytest.mark.parametrize(
    ("names", "text"),
    [
        (["v1"], "v1"),
        (["v1", "v2"], "v1 .. v2"),
        (["v1", "v2", "abcdef12", "v3", "v4", "v5"], "v1 .. v5"),
        (["v1", "v3"], "v1, v3"),
        (["abcdef12"], "abcdef12"),
        (["abcdef12", "v4", "v5", "1234567", "HEAD"], "abcdef12, v4 .. HEAD"),
        (["v1", "stand-in G1", "stand-in G2", "stand-in G4"], "v1, stand-in G1 .. G2, stand-in G4"),
    ],
)
def test_trees_have_one_text_and_a_commit_goes_without_saying_beside_a_release(names, text):
    assert TREES.text(reversed(names)) == text
    assert TREES.text(TREES.parse(text)) == text
    assert set(TREES.parse(text)) <= set(names)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("v1 .. v9", "no tree is called 'v9'"),
        ("haed", "no tree is called 'haed'"),
        ("v3 .. v1", "'v3 .. v1' is no run over v1, v2, v3, v4, v5, HEAD"),
        ("v1 .. abcdef12", "is no run over"),
        ("stand-in G1 .. HEAD", "no tree is called 'stand-in HEAD'"),
        ("", "no tree is called ''"),
    ],
)
def test_a_text_that_names_no_trees_is_refused(text, told):
    with pytest.raises(UnknownNameError, match=told):
        TREES.parse(text)


@pytest.mark.parametrize(
    ("patch", "generations", "fits", "right"),
    [
        ("mine", ("G1",), {"v1 .. v2": "2"}, {}),
        ("mine", ("G2",), {"v3": "2"}, {}),
        ("mine", ("G1", "G2", "G3"), {"v1 .. v3": "2"}, {"v4": "3"}),
        ("yours", ("G1", "G2"), {}, {"v1 .. v3": "2"}),
        ("yours", ("G3",), {"abcdef12": "4"}, {}),
        ("mine", ("G4",), {}, {}),
        ("nobody", ("G1", "G2", "G3", "G4"), {}, {}),
    ],
)
def test_a_site_gets_the_variants_of_its_generations(small, patch, generations, fits, right):
    (found,) = coati_ext.with_variants([site(generations=generations)], small, patch)
    for given, expected in ((found.fits, fits), (found.right, right)):
        assert given == {label: f"00000001-0000000{end}" for label, end in expected.items()}


def test_a_stand_in_is_named_where_no_release_has_its_code(small):
    small.write_text(SMALL.replace('"v1 .. v3, stand-in', '"stand-in'))
    (found,) = with_variants([site(generations=("G1", "G2"))], small, "mine")
    assert list(found.fits) == ["stand-in G1 .. G2"]


def test_sites_without_a_fingerprint_are_left_alone(small):
    sites = (site("m:g", mode="wrap", takes=("x",)), site("m:C.h", mode="extend"))
    assert with_variants(sites, small, "mine") == sites


def test_a_reliance_gets_what_fits(small):
    (found,) = with_variants([Reliance("m:f", GENERATIONS, "does it")], small, "mine")
    assert found.fits == {"v1 .. v3": "00000001-00000002"}
    with pytest.raises(UnknownNameError, match="m:g, which patch mine needs"):
        with_variants([Reliance("m:g", GENERATIONS, "does it")], small, "mine")


def test_a_missing_target_is_told_with_the_way_in(small):
    with pytest.raises(UnknownNameError, match=r"m:g, which patch mine needs: .*did you mean m:f"):
        with_variants([site("m:g")], small, "mine")


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ('mine = "fits"', 'mine = "fit"', "m:f: mine = 'fit': expected one of fits, right, unrev"),
        ('mine = "fits"', 'mine = "fit"', "small.toml.*did you mean fits"),
        ('mine = "fits"', "mine = true", "mine = True: expected one of"),
        ("v1 .. v3,", "v1 .. v33,", "m:f: releases = .*no tree is called 'v33'.*did you mean v3"),
        ('releases = "v4 .. HEAD"', "", "m:f: a variant needs releases and a fingerprint"),
        ("00000001-00000003", "3", "m:f: fingerprint = '3': wants 8 hex digits"),
        ("v4 .. HEAD", "v3 .. HEAD", "m:f: v3 is named twice"),
        ("G3 =", "G5 =", r"\[trees\] G5 = ...: expected one of G1, G2, G3, G4"),
        ('G2 = ["v3"]', "G2 = 3", r"\[trees\] G2 = 3: wants a list of names"),
        ("[trees]", "[trees", "small.toml is not TOML"),
        ("[trees]", "[more]", "more is no list of variants"),
    ],
)
def test_a_wrong_file_is_refused_by_place_and_value(small, old, new, told):
    small.write_text(SMALL.replace(old, new, 1))
    with pytest.raises((InputError, UnknownNameError), match=told):
        with_variants([site()], small, "mine")


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(InputError, match=r"cannot read .*none\.toml"):
        with_variants([site()], tmp_path / "none.toml", "mine")


@pytest.mark.parametrize(
    ("releases", "verdict", "label"),
    [
        ("v3 .. HEAD", "right", "v3"),
        ("v3 .. HEAD", "fits", "v3 .. HEAD"),
        ("v1, v3 .. HEAD", "right", "v1, v3 .. HEAD"),
        ("v1 .. v2", "right", "v1 .. v2"),
        ("HEAD", "right", "HEAD"),
        ("stand-in G1 .. G4", "right", "stand-in G1"),
        ("stand-in G1 .. G3", "right", "stand-in G1 .. G3"),
        ("v2, stand-in G1 .. G4", "right", "v2"),
    ],
)
def test_only_what_is_right_up_to_the_newest_is_right_since_its_first(
    small, releases, verdict, label
):
    one = f'[["m:f"]]\nreleases = "{releases}"\nfingerprint = "00000001"\nmine = "{verdict}"\n'
    small.write_text(SMALL.split("[[")[0] + one)
    (found,) = with_variants([site()], small, "mine")
    assert {"fits": found.fits, "right": found.right}[verdict] == {label: "00000001"}


def test_a_commit_is_told_beside_a_stand_in_of_its_generation():
    names = ["abcdef12", "1234567", "stand-in G1", "stand-in G3"]
    text = "abcdef12, 1234567, stand-in G1, stand-in G3"
    assert TREES.text(names) == text
    assert TREES.parse(text) == tuple(names)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("1234567", True),
        ("0123456789abcdef0123456789abcdef01234567", True),
        ("0123456789abcdef0123456789abcdef012345678", False),
        ("123456", False),
        ("deadbeef-fix", False),
        ("v0.3.1", False),
    ],
)
def test_a_commit_is_told_from_a_release_by_its_name(name, expected):
    assert is_commit(name) == expected


def test_a_file_that_has_changed_is_read_again(small):
    assert with_variants([site(generations=("G1",))], small, "mine")[0].fits
    stat = small.stat()
    small.write_text(SMALL.replace('mine = "fits"', 'mine = "right"'))
    os.utime(str(small), ns=(stat.st_atime_ns, stat.st_mtime_ns + 1_000_000_000))
    (found,) = with_variants([site(generations=("G1",))], small, "mine")
    assert not found.fits
    assert found.right


def test_a_site_that_extends_is_told_by_the_word_and_not_the_object(small):
    (mode,) = json.loads('["extend"]')
    extending = site("m:C.h", mode=mode)
    assert with_variants([extending], small, "mine") == (extending,)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b'"m:f" = [1]', "m:f is no list of variants"),
        (b"trees = 3", "trees = 3: wants a table of lists"),
        (b'trees = {G1 = ["v1", 2]}', r"\[trees\] G1 = \['v1', 2\]: wants a list of names"),
        (b"# caf\xe9", r"cannot read .*small\.toml"),
        (b'[["m:f"]]\nreleases = "HEAD"\nfingerprint = "00000001-3"', "wants 8 hex digits a part"),
        (
            b'trees = {G1 = ["v1"]}\n[["m:f"]]\nreleases = "v1 .. v1"\nfingerprint = "00000001"',
            "'v1 .. v1' is no run over v1",
        ),
    ],
)
def test_a_file_of_another_shape_is_refused_by_place_and_value(small, content, told):
    small.write_bytes(content)
    with pytest.raises((InputError, UnknownNameError), match=told):
        with_variants([site()], small, "mine")

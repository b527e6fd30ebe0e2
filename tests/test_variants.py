"""Upstream as data: what a file of variants says of a site, and the command that keeps the file."""

from __future__ import annotations

import dataclasses
import importlib.util
import re
import shutil
import sys

import pytest

import coati_ext
from coati_ext.errors import InputError, UnknownNameError
from coati_ext.patching.patch import GENERATIONS, Patch, Site
from coati_ext.patching.source import Coati, generation_of
from coati_ext.patching.steps import plan_steps
from coati_ext.patching.variants import STANDINS, Trees, is_by_code, read_variants, with_variants
from coati_ext.testing import standin
from conftest import ROOT

UPSTREAM = ROOT / "patches" / "upstream.toml"
FORWARD = "coati.models.critic:Critic.forward"
COMPUTE_REWARD = "coati.models.utils:compute_reward"
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


def test_a_missing_target_is_told_with_the_way_in(small):
    with pytest.raises(
        UnknownNameError, match=r"m:g, which patch mine changes: .*did you mean m:f"
    ):
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


@pytest.fixture(scope="module")
def command():
    spec = importlib.util.spec_from_file_location(
        "upstream_command", str(ROOT / "maintenance" / "upstream.py")
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture(scope="module")
def sites(command):
    bare = command.bare_sites()
    assert bare
    return {
        patch: tuple(dataclasses.replace(item, fits={}, right={}) for item in declared)
        for patch, declared in bare.items()
    }


@pytest.fixture
def run(command, sites, tmp_path, capsys):
    """Run the command on a copy of the file; gives the exit status and what it told."""
    file = tmp_path / "patches" / "upstream.toml"
    file.parent.mkdir()
    shutil.copy(str(UPSTREAM), str(file))

    def run_it(*arguments, sites=sites):
        status = command.main(arguments, file, sites)
        told = capsys.readouterr()
        return status, told.out + told.err

    run_it.file = file
    return run_it


def test_the_file_is_canonical_and_all_of_it_is_reviewed(command):
    text = UPSTREAM.read_text()
    assert command.render(read_variants(UPSTREAM)) == text
    assert '= "unreviewed"' not in text


def test_every_stand_in_is_known_and_no_news_change_no_byte(run):
    status, told = run()
    assert status == 0
    assert told.count("stand-in G") >= len(STANDINS)
    assert "up to date" in told
    assert "error" not in told
    assert run.file.read_bytes() == UPSTREAM.read_bytes()


def test_every_built_in_site_has_code_that_it_is_for(sites):
    for patch, declared in sites.items():
        for found in filter(is_by_code, with_variants(declared, UPSTREAM, patch)):
            assert found.fits, f"{patch} {found.target}"


@pytest.fixture
def tree(tmp_path):
    """A copy of the newest stand-in, with a function to edit its files."""
    folder = tmp_path / "tree"
    shutil.copytree(str(standin("G4")), str(folder))

    def edit(name, old, new):
        file = folder / "coati" / name
        assert old in file.read_text()
        file.write_text(file.read_text().replace(old, new, 1))

    edit.folder = folder
    edit.coati = Coati(folder / "coati", generation_of(folder / "coati"))
    return edit


def row(told, name):
    """The counts that the table gives for a tree: confirmed, new, missing."""
    (line,) = [line for line in told.splitlines() if line.startswith(f"{name} ")]
    return [int(cell) for cell in line.split()[-3:]]


def state(tree, run, sites, target=FORWARD, patch="rollout"):
    """What a plan makes of a site, with the file as it is."""
    found = with_variants(sites[patch], run.file, patch)
    steps = plan_steps([Patch(patch, "", found)], tree.coati, "strict")
    return next((step.state, step.reason) for step in steps if step.site.target == target)


def test_a_new_version_of_known_code_joins_its_releases(run, tree, sites):
    status, told = run(f"v0.5.2={tree.folder}")
    assert status == 0
    assert row(told, "v0.5.2")[1:] == [0, 0]
    text = run.file.read_text()
    assert '"v0.5.1", "v0.5.2", "HEAD"]' in text
    assert 'releases = "v0.5.2, stand-in G3 .. G4"' in text
    assert state(tree, run, sites) == ("pending", "fits v0.5.2")
    assert run(f"v0.5.2={tree.folder / 'coati'}")[0] == 0
    assert run.file.read_text() == text


@pytest.mark.parametrize("name", ["v0.4.10", "ours", "abcdef1"])
def test_versions_are_sorted_and_other_names_come_last(run, tree, name):
    run(f"{name}={tree.folder}")
    names = read_variants(run.file).trees.generations["G4"]
    assert names.index(name) == (names.index("v0.4.9") + 1 if "." in name else len(names) - 1)


SCORE = "self.value_head(hidden.type"
REWARD = "reward = (penalty + score) * in_answer"


def test_a_cosmetic_edit_is_no_news(run, tree):
    tree("models/critic.py", "hidden = self.model(input_ids", "hidden = self.model(\n  input_ids")
    tree("models/critic.py", "attention_mask: Optional[torch.Tensor]", "attention_mask: object")
    tree(
        "models/critic.py",
        "        hidden =",
        '        """Score."""\n        # a comment\n        hidden =',
    )
    status, told = run(f"ours={tree.folder}")
    assert status == 0
    assert row(told, "ours")[1:] == [0, 0]


def test_unknown_code_is_shown_and_refused_until_somebody_says_that_it_fits(run, tree, sites):
    tree("models/critic.py", "hidden =", "logits = None\n        hidden =")  # harmless
    tree("models/utils.py", REWARD, REWARD.replace("+", "-"))  # other maths
    status, told = run(f"ours={tree.folder}")
    assert status == 1
    assert row(told, "ours")[1] == 2
    assert f"+++ {tree.folder / 'coati' / 'models' / 'critic.py'}:" in told
    assert "\n+        logits = None\n" in told
    assert "\n-    reward = (penalty + score) * in_answer\n" in told
    assert "\n+    reward = (penalty - score) * in_answer\n" in told
    for target in (FORWARD, COMPUTE_REWARD):
        assert state(tree, run, sites, target)[0] == "refused"

    lines = run.file.read_text().splitlines(keepends=True)
    (place,) = [line for line in told.splitlines() if "  line " in line and FORWARD in line]
    at = int(place.split()[1].strip(":")) - 1
    assert lines[at] == 'rollout = "unreviewed"\n'
    lines[at] = 'rollout = "fits"\n'
    run.file.write_text("".join(lines))
    assert state(tree, run, sites) == ("pending", "fits ours")
    assert state(tree, run, sites, COMPUTE_REWARD)[0] == "refused"
    status, told = run(f"ours={tree.folder}")
    assert status == 1
    assert row(told, "ours")[1] == 1
    assert run.file.read_text() == "".join(lines)


def test_without_its_relative_the_new_statements_of_a_code_are_told(run, tree):
    tree("models/critic.py", "hidden =", "logits = None\n        hidden =")
    run(f"v9.0={tree.folder}")
    run.file.write_text(run.file.read_text().replace("unreviewed", "fits"))
    tree("models/critic.py", SCORE, f"2 * {SCORE}")
    status, told = run(f"ours={tree.folder}")
    assert status == 1
    assert "  differs from v9.0\n" in told
    line = "return 2 * self.value_head(hidden.type(self.value_head.weight.dtype)).squeeze(-1)"
    assert f"critic.py:29: {line}\n" in told
    assert "add v9.0=PATH for the whole difference" in told


def test_code_known_for_another_site_is_reviewed_again(run, tree, sites):
    shutil.copy(
        str(standin("G3") / "coati" / "models" / "reward_model.py"),
        str(tree.folder / "coati" / "models" / "reward_model.py"),
    )
    status, told = run(f"ours={tree.folder}")
    assert status == 1
    assert "the code of stand-in G3, where the patch has another site" in told
    target = "coati.models.reward_model:RewardModel.forward"
    assert state(tree, run, sites, target, "eos_pooling")[0] == "refused"


def test_a_new_patch_starts_unreviewed(run, sites):
    more = (site(FORWARD, ("G4",)), site("coati.models.critic:Critic.__init__", ("G4",)))
    status, told = run(sites={**sites, "more": more})
    assert status == 1
    assert "nothing of this function was reviewed yet" in told
    text = run.file.read_text()
    assert text.count('more = "unreviewed"') == 3
    for found in with_variants(more, run.file, "more"):
        assert found.fits == found.right == {}
    found = with_variants(sites["rollout"], run.file, "rollout")
    (critic,) = [item for item in found if item.target == FORWARD]
    assert {"v0.3.7 .. v0.4.7", "v0.4.8 .. HEAD"} <= critic.fits.keys()


def test_a_missing_function_is_an_error_unless_it_is_optional(run, tree):
    tree("models/critic.py", "def forward(", "def forwards(")
    tree("trainer/orpo.py", "def _before_fit(", "def _before_fits(")
    status, told = run(f"ours={tree.folder}")
    assert status == 1
    assert f"error: ours has no {FORWARD}, which rollout changes" in told
    assert "not in ours: coati.trainer.orpo:ORPOTrainer._before_fit (optional)" in told
    assert row(told, "ours")[2] == 2


def test_a_file_that_does_not_parse_is_an_error(run, tree):
    tree("models/critic.py", "def forward(", "def forward((")
    status, told = run(f"ours={tree.folder}")
    assert status == 1
    assert "error: ours: cannot read" in told


def test_a_tree_that_has_moved_takes_its_name_along(run, tree):
    status, told = run(f"HEAD={tree.folder}")
    assert status == 1
    assert f"error: HEAD: {FORWARD} is not what the file says it is" in told
    assert "left over: no tree has the coati.experience_maker.naive:" in told
    assert "of HEAD (rollout = fits)" in told
    assert run(f"HEAD={tree.folder}")[0] == 0


def test_what_no_tree_has_and_no_patch_asks_for_is_left_over(run):
    text = run.file.read_text()
    critic = 'fingerprint = "a134a006-86711ed2-1e9fc5a0"\n'
    assert critic in text
    extra = '\n[["coati.m:f"]]\nreleases = "v0.2.8 .. v0.3.0"\nfingerprint = "00000001"\n'
    wrong = critic.replace("1e9fc5a0", "00000000") + 'eos_pooling = "fits"\n'
    run.file.write_text(text.replace(critic, wrong) + extra)
    status, told = run("--check")
    assert status == 1
    assert "left over: no patch changes the coati.m:f of v0.2.8 .. v0.3.0" in told
    assert told.count("coati.m:f") == 1
    assert f"left over: eos_pooling does not change the {FORWARD} of stand-in G3 .. G4" in told
    assert f"stand-in G4: {FORWARD} is not what the file says" in told
    assert f"left over: no tree has the {FORWARD} of stand-in G3 .. G4" in told
    run()
    assert run.file.read_text() == text.replace(
        f'{critic}rollout = "fits"', f'{critic}rollout = "unreviewed"'
    )


def test_check_writes_nothing(run, tree):
    tree("models/critic.py", SCORE, f"2 * {SCORE}")
    status, told = run("--check", f"ours={tree.folder}")
    assert status == 1
    assert "would change" in told
    assert run.file.read_bytes() == UPSTREAM.read_bytes()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["ours"], "'ours': wants NAME=PATH"),
        (["stand-in G1={tree}"], "wants NAME=PATH"),
        (["ours={tree}", "ours={tree}"], "each name once"),
        (["ours={tree}/none"], "is no known generation of ColossalAI Chat"),
        (["v0.2.8={tree}"], "v0.2.8 is G1, and the coati at .* G4"),
    ],
)
def test_wrong_use_is_told_and_writes_nothing(run, tree, arguments, told):
    status, said = run(*[item.format(tree=tree.folder) for item in arguments])
    assert status == 2
    assert re.search(told, said)
    assert run.file.read_bytes() == UPSTREAM.read_bytes()

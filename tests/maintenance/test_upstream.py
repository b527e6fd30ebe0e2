"""``nox -s upstream``: a tree's known code is confirmed, its unknown code waits for a review."""

from __future__ import annotations

import re
import shutil

import pytest

from coati_ext.patches.upstream import UPSTREAM
from coati_ext.patching.patch import Patch, Reliance, Site
from coati_ext.patching.reliances import read_reliances
from coati_ext.patching.source import Coati, generation_of
from coati_ext.patching.steps import plan_steps
from coati_ext.patching.variants import STANDINS, is_by_code, read_variants, with_variants
from coati_ext.testing import standin
from helpers import ROOT, script

FORWARD = "coati.models.critic:Critic.forward"
COMPUTE_REWARD = "coati.models.utils:compute_reward"


@pytest.fixture(scope="module")
def command():
    with script(ROOT / "maintenance" / "upstream.py") as module:
        yield module


@pytest.fixture(scope="module")
def sites(command):
    bare = command.bare_sites()
    assert bare
    return bare


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


def lacking(told):
    """The optional functions that the stand-in of the newest coati has not."""
    return row(told, "stand-in G4")[2]


def state(tree, run, sites, target=FORWARD, patch="rollout"):
    """What a plan makes of a site, with the file as it is."""
    found = with_variants(sites[patch], run.file, patch)
    changed = tuple(item for item in found if isinstance(item, Site))
    steps = plan_steps([Patch(patch, "", changed)], tree.coati, "strict")
    return next((step.state, step.reason) for step in steps if step.site.target == target)


def test_a_new_version_of_known_code_joins_its_releases(run, tree, sites):
    status, told = run(f"v0.5.2={tree.folder}")
    assert status == 0
    assert row(told, "v0.5.2")[1:] == [0, lacking(told)]
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
    assert row(told, "ours")[1:] == [0, lacking(told)]


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
    more = tuple(
        Site(target, "ours:f", ("G4",))
        for target in (FORWARD, "coati.models.critic:Critic.__init__")
    )
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


def test_a_missing_function_is_an_error_unless_it_is_optional(run, sites, tree):
    tree("models/critic.py", "def forward(", "def forwards(")
    tree("trainer/orpo.py", "def _before_fit(", "def _before_fits(")
    target = "coati.trainer.orpo:ORPOTrainer._before_fit"
    more = (Site(target, "ours:f", ("G3", "G4"), optional=True),)
    status, told = run(f"ours={tree.folder}", sites={**sites, "more": more})
    assert status == 1
    assert f"error: ours has no {FORWARD}, which rollout needs" in told
    assert f"not in ours: {target} (optional)" in told
    assert row(told, "ours")[2] == lacking(told) + 2


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
    assert "left over: no patch needs the coati.m:f of v0.2.8 .. v0.3.0" in told
    assert told.count("coati.m:f") == 1
    assert f"left over: eos_pooling does not need the {FORWARD} of stand-in G3 .. G4" in told
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


def test_what_a_patch_relies_on_is_recorded_and_reviewed_as_well(run, tree, sites):
    target = "coati.models.generation:_is_sequence_finished"
    tree(
        "models/generation.py", "unfinished_sequences.max() == 0", "not unfinished_sequences.any()"
    )
    status, told = run(f"ours={tree.folder}")
    assert status == 1
    assert f"new in ours: {target} (rollout)" in told

    def reading():
        relies = tuple(item for item in sites["rollout"] if isinstance(item, Reliance))
        relies = with_variants(relies, run.file, "rollout")
        patch = Patch("rollout", "", (Site("coati.m:f", "ours:f", ("G4",)),), relies=relies)
        found = read_reliances([patch], tree.coati, "strict")
        return next(item.state for item in found if item.reliance.target == target)

    assert reading() == "changed"
    run.file.write_text(run.file.read_text().replace("unreviewed", "fits"))
    assert reading() == "fits"
    assert run(f"ours={tree.folder}")[0] == 0

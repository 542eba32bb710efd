"""Tables, figures and pages made of records: the right numbers, and nothing else."""

import json
import shutil
import statistics
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up import SMALL, posed, record
from matplotlib.colors import same_color
from scipy import stats

from experiments import figures, intervals, pictures, records, report, tables
from experiments.studies import STUDIES
from experiments.study import Study
from stn_cifar import Config, presets
from stn_cifar import __main__ as cli

ROOT = Path(__file__).resolve().parents[1]


def rows_of(table):
    """Markdown's first table as dicts."""
    lines = [line for line in table.split("\n\n")[0].splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [dict(zip(cells[0], row, strict=True)) for row in cells[2:]]


def made(accuracies, this=SMALL, **more):
    """Records of {arm: accuracy of each seed}."""
    return [record(this, arm, seed=seed, accuracy=accuracy, **more)
            for arm, seeds in accuracies.items() for seed, accuracy in enumerate(seeds)]


def table_of(found, this=SMALL):
    return tables.study_tables(this, tables.rows_of(this, found))


# ---- numbers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("freedom", [*range(1, 40), 100, 999, 1000])
def test_students_quantile_is_that_of_scipy(freedom):
    assert intervals.t_quantile(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=1e-9)


@given(st.lists(st.floats(-50, 50), min_size=2, max_size=12))
def test_the_interval_of_paired_differences_is_that_of_scipy(values):
    mean, half = intervals.paired_t_interval(values)
    expected = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
    assert mean == pytest.approx(statistics.mean(values), abs=1e-9)
    assert half == pytest.approx(expected, abs=1e-6)


def test_one_value_has_no_deviation_and_none_is_a_dash():
    assert intervals.mean_std([]) == "-" == intervals.difference([])
    assert intervals.mean_std([1.25], " %") == "1.2 %"
    assert intervals.mean_std([1.0, 2.0], "°", 2) == "1.50 ± 0.71°"
    assert intervals.difference([(3.0, 1.0)]) == "+2.0 (one pair)"
    assert intervals.difference([(1.0, 1.0), (0.99, 1.01)]).startswith("+0.0 ± ")  # not "-0.0"


# ---- Markdown ------------------------------------------------------------------------------------


@given(st.lists(st.lists(st.text(max_size=30), min_size=2, max_size=2), min_size=1, max_size=4))
def test_nothing_in_a_cell_is_markup_or_breaks_the_table(rows):
    lines = tables.markdown(["a", "b"], rows).split("\n")
    assert len(lines) == len(rows) + 2
    for line in lines:
        bare = line.replace("\\\\", "").replace("\\|", "")
        assert bare.count("|") == 3 and line.isprintable()
        assert "<" not in line and ">" not in line
        for sign in "`*[]$~":
            assert sign not in bare.replace("\\" + sign, "")


# ---- a study's tables ----------------------------------------------------------------------------


def test_the_numbers_are_those_of_the_records():
    ours, control = (0.50, 0.56, 0.61), (0.48, 0.55, 0.58)
    first, second = rows_of(table_of(made({"with": control, "without": ours})))
    assert first["test accuracy"] == (
        f"{100 * statistics.mean(control):.1f} ± {100 * statistics.stdev(control):.1f} %")
    assert (first["points above with"], first["n"], first["parameters"]) == ("-", "3", "1,234")
    assert (first["MFLOP"], first["epochs"], first["s an epoch"]) == ("5", "2", "2.0")
    differences = [100 * (a - b) for a, b in zip(ours, control, strict=True)]
    low, high = stats.t.interval(0.95, 2, statistics.mean(differences), stats.sem(differences))
    expected = f"{statistics.mean(differences):+.1f} ± {(high - low) / 2:.1f}"
    assert second["points above with"] == expected


def test_differences_are_paired_by_seed_within_a_budget():
    found = [record(arm="with", seed=0, accuracy=0.5), record(arm="without", seed=1, accuracy=0.6)]
    assert {row["points above with"] for row in rows_of(table_of(found))} == {"-"}
    found += [record(arm="with", seed=1, accuracy=0.5),
              record(arm="without", epochs=9, accuracy=0.9)]
    rows = rows_of(table_of(found))
    assert [(row["arm"], row["epochs"], row["points above with"]) for row in rows] == [
        ("without", "9", "-"), ("with", "2", "-"), ("without", "2", "+10.0 (one pair)")]


def test_a_choice_is_made_on_validation_images():
    this = Study("Which?", "tutorial", {"with": {}, "without": dict(stn=False)}, epochs=(2,),
                 choice=True)
    found = made({"with": [0.5]}, this, tta=dict(true_pose=0.77), **posed(counts=[1]))
    row = rows_of(table_of(found, this))[0]
    assert row["validation accuracy"] == "40.0 %" and "test accuracy" not in row  # see made_up
    for study, told in ((this, False), (replace(this, choice=False), True)):
        text = tables.study_tables(study, tables.rows_of(study, found))
        assert ("77.0 %" in text) == told and "What the transformer does" in text


def test_arms_may_be_compared_with_several_or_with_none():
    arms = {"a": {}, "b": dict(stn=False), "c": dict(transform="tps")}
    found = made({"a": [0.5], "b": [0.6], "c": [0.7]}, Study("", "tutorial", arms))
    both = rows_of(table_of(found, Study("", "tutorial", arms, compare_with=("a", "b"))))
    assert [row["points above b"] for row in both] == ["-10.0 (one pair)", "-", "+10.0 (one pair)"]
    none = rows_of(table_of(found, Study("", "tutorial", arms, compare_with=())))
    assert not any("points" in column for column in none[0])


def test_what_differs_by_more_than_the_seed_is_not_averaged_and_is_named():
    found = [*made({"with": [0.5, 0.6], "without": [0.4, 0.4]}),
             *made({"with": [0.7, 0.7], "without": [0.9, 0.9]}, config=dict(learning_rate=0.5))]
    rows = {row["arm"]: row for row in rows_of(table_of(found))}
    assert rows["with, learning_rate=0.01"]["test accuracy"] == "55.0 ± 7.1 %"
    assert rows["with, learning_rate=0.5"]["test accuracy"] == "70.0 ± 0.0 %"
    # each is compared with the control of its own kind
    assert rows["without, learning_rate=0.5"]["points above with"].startswith("+20.0 ±")
    assert rows["without, learning_rate=0.01"]["points above with"].startswith("-15.0 ±")
    other = [record(seed=0), record(seed=1, precision="bf16")]
    assert [row["precision"] for row in rows_of(table_of(other))] == ["fp32", "bf16"]


def test_after_a_preset_is_edited_no_table_changes(monkeypatch):
    found = records.load(ROOT / "results")
    before = {name: table_of(runs, STUDIES[name]) for name, runs in found.items()}
    for name, preset in presets.PRESETS.items():
        monkeypatch.setitem(presets.PRESETS, name, preset | dict(learning_rate=0.123, width=3.0))
    monkeypatch.setattr(Config, "preset", None)  # tables do not even look
    monkeypatch.setattr(Config, "__init__", None)
    assert {name: table_of(runs, STUDIES[name]) for name, runs in found.items()} == before
    assert all(len(rows_of(table)) > 0 for table in before.values())


def test_an_arm_that_is_no_longer_defined_is_still_told():
    gone = record() | dict(arm="of old")
    assert [row["arm"] for row in rows_of(table_of([gone, record(arm="without")]))] == [
        "without", "of old"]
    this = report._undefined([gone])
    assert rows_of(table_of([gone], this))[0]["test accuracy"] == "50.0 %"


def test_what_a_transformer_leaves_of_a_pose_is_told_of_transformers_only():
    taught = STUDIES["rotation"]
    counts = [*[10] * 36]
    counts[0] += 640  # 1000 images
    tta = {"CNN, equal parameters": {"rotated_2": 0.4},
           "pose-supervised STN": {"top_2_poses": 0.6, "true_pose": 0.9}}
    found = [record(taught, arm, 8, seed, **posed(7.0 + seed, counts), tta=tta[arm])
             for arm in tta for seed in (0, 1)]
    cells = {row.arm: tables.cells_of(taught, row) for row in tables.rows_of(taught, found)}
    cnn, stn = cells["CNN, equal parameters"], cells["pose-supervised STN"]
    assert (cnn["2 rotated views"], cnn["top-2 poses"]) == ("40.0 ± 0.0 %", "-")
    assert (stn["top-2 poses"], stn["true pose (oracle)"]) == ("60.0 ± 0.0 %", "90.0 ± 0.0 %")
    assert (cnn["rotation error, median"], stn["rotation error, median"]) == ("-", "7.5 ± 0.7°")
    assert stn["rotation error, mean"] == "-" == stn["sampling scale"]  # not measured
    assert stn["shift error, half-widths"] == "-"  # rotations alone leave none
    text = table_of(found, taught)
    assert "| top-2 poses |" in text and "mean of 8 angles" not in text  # no column of dashes


def test_a_cell_is_of_as_many_runs_as_its_row_counts():
    """A measurement that a younger record alone has would stand there as if all had it."""
    found = made({"with": (0.4, 0.5)}, tta={"rotated_2": 0.4})
    (row,) = tables.rows_of(SMALL, found)
    assert tables.cells_of(SMALL, row)["2 rotated views"] == "40.0 ± 0.0 %"
    del found[1]["tta"]
    assert tables.cells_of(SMALL, row)["2 rotated views"] == "-"
    assert "2 rotated views" not in table_of(found)


@given(st.lists(st.integers(0, 50), min_size=36, max_size=36).filter(any))
def test_the_share_modulo_90_is_counted_from_the_bins(counts):
    found = record(STUDIES["rotation"], "pose-supervised STN", 8, **posed(counts=counts))
    middles = [(5 * k + 2.5, count) for k, count in enumerate(counts)]
    near = sum(count for angle, count in middles
               if min(abs(angle - quarter) for quarter in (0, 90, 180)) < 20)
    assert tables._modulo_90(found) == pytest.approx(near / sum(counts))


def test_the_average_over_eight_angles_needs_all_eight():
    def cell(values):
        known = dict(values=values, accuracy=[k / 100 for k, _ in enumerate(values)])
        return tables._average_of_8(record(against=dict(angle=known)))

    every_15 = list(range(-180, 181, 15))
    assert cell(every_15) == pytest.approx(sum(range(0, 24, 3)) / 800)
    assert cell(list(range(-180, 181, 30))) is None  # as older records have it


def test_the_share_of_the_upright_ceiling_is_that_of_the_same_classifier(monkeypatch):
    this = STUDIES["rotation"]
    arm = record(this, "p4 CNN", 8, accuracy=0.6)
    ceiling = record(this, "p4 CNN", 8, accuracy=0.8)
    ceiling["config"] |= dict(distortion="disc")
    other = record(this, "CNN, equal parameters", 8, accuracy=0.5)
    rows = tables.rows_of(this, [arm, ceiling | dict(arm="upright"), other])
    shares = {row.arm: tables.cells_of(this, row)[tables.SHARE] for row in rows}
    assert shares == {"p4 CNN": "75.0 %", "upright": "-", "CNN, equal parameters": "-"}
    assert next(row for row in rows if row.arm == "upright").controls == {}  # of other pictures


def test_flip_tta_is_compared_with_a_single_view_at_no_more_arithmetic():
    this = Study("?", "taught", STUDIES["arms"].arms)
    control, arm = list(this.arms)[:2]

    def cells(mflop=12.3, last=0.8, **more):
        found = [record(this, control, 4, seed, accuracy=0.5, mflop=13.0, **more)
                 for seed in range(2)]
        found += [record(this, arm, 4, seed, accuracy=0.6, tta=dict(mirrored=flip),
                         mirrored_mflop=mflop) for seed, flip in enumerate((0.7, last))]
        alone, flipped = (tables.cells_of(this, row) for row in tables.rows_of(this, found))
        assert alone["flip TTA"] == "-" or more
        return flipped

    def above(cells):
        return [cells[f"flip TTA, points above {other}"]
                for other in (f"that of {control}", control)]

    half = stats.t.ppf(0.975, 1) * statistics.stdev([20, 30]) / 2 ** 0.5
    assert above(cells()) == ["-", f"+25.0 ± {half:.1f}"]
    assert cells()["flip TTA"] == "75.0 ± 7.1 %" and cells()["MFLOP, flip TTA"] == "12"
    assert above(cells(mflop=13.1)) == ["-", "-"]
    both = cells(tta=dict(mirrored=0.6), mirrored_mflop=26.0)
    assert above(both) == [f"+15.0 ± {half:.1f}", f"+25.0 ± {half:.1f}"]
    for partly in (cells(last=None), cells(mflop=None)):  # not all of its runs have it
        assert {partly["flip TTA"], partly["MFLOP, flip TTA"], *above(partly)} == {"-"}


def test_accuracy_by_class_is_the_mean_over_the_seeds():
    test = dict(accuracy=0.5, classes=["cat", "dog"])
    found = [record(seed=0) | dict(test=test | dict(confusion=[[8, 2], [5, 5]])),
             record(seed=1) | dict(test=test | dict(confusion=[[6, 4], [10, 0]]))]
    row, = rows_of(tables.class_table(tables.rows_of(SMALL, found)))
    assert (row["cat"], row["dog"]) == ("70.0", "25.0")
    assert tables.class_table(tables.rows_of(SMALL, [record()])) == ""


# ---- figures -------------------------------------------------------------------------------------


def test_what_is_published_elsewhere_stands_below_with_its_source():
    for name, this in STUDIES.items():
        text = report.section(name, this, [], {})
        told = rows_of(text[text.find("Published elsewhere"):].partition("\n\n")[2])
        assert len(told) == len(this.published)
        assert all(row["source"] != "-" for row in told)
    assert len(STUDIES["presets"].published) > 4


@pytest.mark.parametrize("name", pictures.PICTURES)
def test_a_studys_pictures_are_there_and_shown(name):
    page = (ROOT / "results" / "README.md").read_text(encoding="utf-8")
    for file, told in pictures.captions(name, STUDIES[name]).items():
        assert (ROOT / "images" / file).is_file()
        assert f"![{told}.](../images/{file})" in page


@pytest.mark.parametrize("name", pictures.PICTURES)
def test_the_command_under_a_picture_makes_the_config_of_its_arms_records(name, monkeypatch):
    runs = []
    monkeypatch.setattr(cli, "train", lambda **given: runs.append(given))
    for picture in pictures.PICTURES[name]:
        cli.main(pictures.command(STUDIES[name], picture.arm).split())
        run = runs.pop()
        fields = {key: value for key, value in run.items()
                  if key not in ("preset", "results", "images", "checkpoint_dir")}
        config = Config.preset(run["preset"], **fields)
        made = (records.read(path) for path in (ROOT / "results" / name).glob("*-s0.json"))
        assert records.identity(config.to_dict()) in [
            records.identity_of(record) for record in made if record["arm"] == picture.arm]


def test_figures_show_the_longest_budget_that_has_several_seeds():
    this = Study("?", "taught", STUDIES["arms"].arms, angles=(0, 90))
    measured = posed(counts=[3, *[0] * 34, 1],
                     against=dict(angle=dict(values=[0, 90], accuracy=[0.5, 0.25])))
    found = [record(this, arm, epochs, seed, **measured) for epochs, seeds in ((4, 2), (8, 1))
             for arm in ("CNN, equal parameters", "pose-supervised STN") for seed in range(seeds)]
    rows = tables.rows_of(this, found)
    shown = figures.shown_rows(rows)
    assert [(row.epochs, len(row.runs)) for row in shown] == [(4, 2), (4, 2)]
    cnn, stn = shown
    assert figures.rotation_errors(cnn) == [] and figures.rotation_errors(stn)[0] == 6
    assert figures.accuracy_against_angle(cnn) == dict(angle=dict(values=[0, 90],
                                                                  accuracy=[0.5, 0.25]))
    drawn = figures.figures_of("x", this, rows)
    assert {*drawn} == {"study-x-angle", "study-x-error"}
    _, of_stn = (line for line in drawn["study-x-angle"].axes[0].lines if len(line.get_xdata()) == 2
                 and not line.get_label().startswith("_"))
    bars, = drawn["study-x-error"].axes[0].patches
    assert same_color(of_stn.get_color(), bars.get_edgecolor())
    for one in found:  # one arm trained upright alone, for longer: not drawn beside the turned
        if one["arm"] == "CNN, equal parameters" and one["epochs_done"] == 8:
            one["config"] |= dict(distortion="disc")
    beside = figures.figures_of("x", this, tables.rows_of(this, found))["study-x-angle"]
    assert [line.get_label() for line in beside.axes[0].lines if line.get_label()[0] != "_"] == [
        "CNN, equal parameters (n = 2)", "pose-supervised STN (n = 2)"]
    upright = [one for one in found if one["config"]["distortion"] == "disc"]
    assert figures.figures_of("x", this, tables.rows_of(this, upright)) == {}
    pilots = [one for one in found if one["seed"] == 0 and one["config"]["distortion"] != "disc"]
    together = figures.figures_of("x", this, tables.rows_of(this, pilots))["study-x-angle"]
    # pilots alone: all of them
    assert [line.get_label() for line in together.axes[0].lines if line.get_label()[0] != "_"] == [
        "pose-supervised STN, 8 epochs (n = 1)", "CNN, equal parameters, 4 epochs (n = 1)",
        "pose-supervised STN, 4 epochs (n = 1)"]
    assert figures.figures_of("x", this, []) == {} == figures.figures_of("x", SMALL, rows)


def test_the_curve_of_an_arm_is_over_the_angles_that_all_its_seeds_know():
    against = [dict(values=[0, 90], accuracy=[0.5, 0.25]),
               dict(values=[0, 45, 90], accuracy=[0.7, 0.1, 0.35])]
    found = made({"with": (0.4, 0.5)})
    for one, known in zip(found, against, strict=True):
        one["against"] = dict(angle=known)
    (row,) = tables.rows_of(SMALL, found)
    curve = figures.accuracy_against_angle(row)["angle"]
    assert curve["values"] == [0, 90] and curve["accuracy"] == pytest.approx([0.6, 0.3])
    del found[1]["against"]
    assert figures.accuracy_against_angle(row) == {}


# ---- pages ---------------------------------------------------------------------------------------


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A checkout with records of a study `small`, a README and a notebook."""
    monkeypatch.setitem(STUDIES, "small", SMALL)
    for one in made({"with": [0.57, 0.59], "without": [0.4]}):
        records.write(one, tmp_path / "results" / "small" / f"{one['arm']}-{one['seed']}.json")
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(b"picture")
    source = ['![A picture.](old "images/a.png")\n', "text ±"]
    cells = [dict(cell_type="markdown", metadata={}, source=source)]
    (tmp_path / "notebooks" / "stn.ipynb").write_text(
        json.dumps(dict(cells=cells), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (tmp_path / "README.md").write_text(
        "before <!-- colab: python -m stn_cifar report -->OLD<!-- end of colab --> after ±\n"
        'It reaches [?](results/README.md#small "with, 2 epochs: test accuracy"), and without it '
        '[0 %](results/README.md#small "without, 2 epochs: test accuracy").\n', encoding="utf-8")
    return tmp_path


def write(place, **paths):
    given = dict(readme=place / "README.md", results=place / "results", images=place / "images",
                 notebook=place / "notebooks" / "stn.ipynb")
    return report.write_report(**given | paths)


def contents(place):
    return {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}


def test_report_fills_in_numbers_and_links_and_nothing_else_and_twice_is_as_once(place):
    write(place)
    text = (place / "README.md").read_text(encoding="utf-8")
    assert text.startswith("before <!-- colab: python -m stn_cifar report -->\nIn Colab: *File*")
    assert "\n<!-- end of colab --> after ±\n" in text and "OLD" not in text
    assert '[58.0 ± 1.4 %](results/README.md#small "with, 2 epochs: test accuracy")' in text
    assert '[40.0 % (pilot)](results/README.md#small "without, ' in text
    page = (place / "results" / "README.md").read_text(encoding="utf-8")
    assert "## small" in page and "**Does it pay?**" in page and "study small`" in page
    assert page.index("| with | 2 |") < page.index("Pilots, one seed each:") < page.index(
        "| without | 2 |")
    cell, = json.loads((place / "notebooks" / "stn.ipynb").read_text(encoding="utf-8"))["cells"]
    assert cell["source"] == ['![A picture.](data:image/png;base64,cGljdHVyZQ== "images/a.png")\n',
                              "text ±"]
    before = contents(place)
    write(place)
    assert contents(place) == before


def test_line_ends_stay_as_they_are(place):
    for path in (place / "README.md", place / "notebooks" / "stn.ipynb"):
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    write(place)
    for path in (place / "README.md", place / "notebooks" / "stn.ipynb"):
        content = path.read_bytes()
        assert content.count(b"\r\n") == content.count(b"\n") > 2
    write(place)
    assert b"\r\r" not in (place / "README.md").read_bytes()


@pytest.mark.parametrize("damage, message", [
    (lambda place: (place / "results" / "small" / "x.json").write_bytes(b""), r"x\.json"),
    (lambda place: shutil.rmtree(place / "results"), "results: "),
    (lambda place: shutil.rmtree(place / "results" / "small"), "results: "),
    (lambda place: (place / "README.md").write_text("no markers"), "lacks the markers"),
    (lambda place: (place / "README.md").write_bytes((place / "README.md").read_bytes().replace(
        b"without, 2", b"nobody, 2")), "'nobody, 2 epochs'"),
    (lambda place: (place / "images" / "a.png").unlink(), "a.png"),
])
def test_what_cannot_be_made_whole_changes_nothing(place, damage, message):
    damage(place)
    before = contents(place)
    with pytest.raises((ValueError, OSError), match=message):
        write(place)
    assert contents(place) == before


def test_a_machines_name_is_no_markup(place):
    name = "<!-- end of colab --> | ![x](y) <script>\n# title `"
    for one in made({"with": [0.5, 0.6, 0.7]}):
        records.write(one | dict(machine=name, dataset=name), place / "results" / "small" /
                      f"{one['arm']}-{one['seed']}.json")
    write(place)
    before = contents(place)
    page = (place / "results" / "README.md").read_text(encoding="utf-8")
    assert "<!--" not in page and "<script" not in page and "\n# title" not in page
    assert "&lt;script&gt;" in page
    write(place)
    assert contents(place) == before


@pytest.mark.parametrize("address, expected", [
    ("https://github.com/someone/some-thing.git", "someone/some-thing"),
    ("https://github.com/someone/some.thing/", "someone/some.thing"),
    ("https://token:secret@github.com/a/b.git", "a/b"), ("git@github.com:a/b.git", "a/b"),
    ("ssh://git@github.com/a/b", "a/b"), ("https://gitlab.com/a/b", None), ("/srv/git/a/b", None),
    ("https://github.com.evil.org/a/b", None), ("https://evil.org/github.com/a/b", None),
    ('https://github.com/a/b)"><script>', None),
    (None, None),
])
def test_links_follow_the_checkouts_public_address(place, address, expected):
    git = ["git", "-C", str(place)]
    subprocess.run([*git, "init", "-q"], check=True)
    if address:
        subprocess.run([*git, "remote", "add", "origin", address], check=True)
    assert report.origin(place) == expected
    write(place)
    text = (place / "README.md").read_text(encoding="utf-8")
    link = (f"https://colab.research.google.com/github/{expected}/blob/main/notebooks/stn.ipynb")
    assert (link in text) == (expected is not None)
    assert ("nbviewer.org" in text) == (expected is not None)
    assert "secret" not in text and "script" not in text


def test_the_command_line_reports_and_refuses_a_typo(place, monkeypatch, capsys):
    from stn_cifar.__main__ import main
    options = ["--readme", str(place / "README.md"), "--images", str(place / "images"),
               "--notebook", str(place / "notebooks" / "stn.ipynb"), "--results"]
    before = contents(place)
    assert main(["report", *options, str(place / "typo")]) == 2
    assert "typo" in capsys.readouterr().err and contents(place) == before
    assert main(["report", *options, str(place / "results")]) == 0
    assert contents(place) != before


def test_the_pages_here_are_what_report_makes_of_the_records_here(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(figures.plots, "robustness", lambda *_: None)  # not to be drawn
    monkeypatch.setattr(figures.plots, "rotation_errors", lambda *_: None)
    pages, drawn = report.make(report.README, records.RESULTS, report.NOTEBOOK, report.IMAGES)
    for path, text in pages.items():
        kept = path.read_bytes().decode("utf-8").replace("\r\n", "\n")
        # the links to Colab are those of whoever has the clone
        kept, now = (report.COLAB.sub("", each) for each in (kept, text))
        assert kept == now, f"{path} is not up to date: python -m stn_cifar report"
    assert len(drawn) > 3 and all(path.is_file() for path in drawn)

"""Numbers of docs/study-slake-cpu.md are those of the answers beside it, by the code that makes a study's tables."""

from collections import defaultdict

import pyarrow.parquet as pq
from conftest import ROOT
from triptych.config.arms import BASELINES, CONTROLS, HELD_OUT
from triptych.tables import evidence, schedules
from triptych.tables.comparison import shown
from triptych.tables.format import markdown, rows_of
from triptych.tables.gold_outcome import section
from triptych.tables.pairs import pair
from triptych.tables.runs import cell, group_runs
from triptych.tables.verdicts import compare, conclude
from triptych.tables.wording import interval_text, p_text

ANSWERS = ROOT / "docs/data/study-slake-cpu.parquet"
PAGE = ROOT / "docs/study-slake-cpu.md"
SCHEDULES = ["1-2-3", "2-3"]
FOLDS, SEEDS = ("fold0", "fold1", "fold2"), (0, 1)
DRAWN_ONCE = {"1-2-3": "1"}
MARGIN = 1.0


def record(row):
    """An answer as tables read it: of the gold answers, which are the data set's, only what scores need is known."""
    gold = "yes" if row["yes_no"] else "right"
    said = gold if row["right"] else "wrong"
    return {**row, "gold": gold, "prediction": said, "content_type": ""}


def by_view():
    found = defaultdict(list)
    for row in pq.read_table(ANSWERS).to_pylist():
        found[row["view"]].append(record(row))
    return found


def with_p(row):
    return f"{row['effect']:+.1f} ({interval_text(row['low'], row['high'])}; {p_text(row['p_holm'])})"


def lines(views):
    """The rows of all tables of the page whose numbers come from answers."""
    own = views[HELD_OUT]
    arms = rows_of(schedules.summarise(own, [*SCHEDULES, *BASELINES]))
    for row in arms:
        scores = [cell(row[f"{name}_mean"], row[f"{name}_sd"]) for name in schedules.MAIN]
        name = f"**{row['arm']}**" if row["trained"] else f"`{row['arm']}`"
        yield f"| {name} | {' | '.join(scores)} |"
    compared = conclude([compare(*SCHEDULES, pair(own, *SCHEDULES), MARGIN, 0)], DRAWN_ONCE)
    yield from markdown(shown(compared)).splitlines()[2:]
    yield compared[0]["verdict"]
    by_run = compared[0]["run_effects"]
    for fold in FOLDS:
        effects = [by_run[f"{fold}, seed {seed}"] for seed in SEEDS]
        yield f"| {fold} | {' | '.join(f'{effect:+.1f}' for effect in effects)} |"
    yield from (line for line in section(compared).splitlines() if line.startswith("| **1-2-3"))
    answered = {arm: evidence.answered(runs) for arm, runs in group_runs(own).items()}
    above = evidence.above_lookups(answered, SCHEDULES, list(BASELINES))
    for lookup in BASELINES:
        of = {row["arm"]: row for row in above if row["lookup"] == lookup}
        points = [with_p(of[arm]) for arm in SCHEDULES]
        yield f"| `{lookup}` | {' | '.join(points)} |"
    others = {view: group_runs(views[view]) for view in CONTROLS}
    scored = rows_of(schedules.controls(own, {view: views[view] for view in CONTROLS}, SCHEDULES))
    lost = {(row["view"], row["arm"]): row for row in evidence.lost(answered, others, SCHEDULES)}
    for view in CONTROLS:
        cells = []
        for row in scored:
            of = lost[view, row["arm"]]
            points = f"{of['effect']:.1f} ({of['low']:.1f} to {of['high']:.1f}; {p_text(of['p_holm'])})"
            cells += [cell(row[f"{view}_mean"], row[f"{view}_sd"]), points]
        yield f"| `{view}` | {' | '.join(cells)} |"


def test_every_number_of_the_tables_is_that_of_the_answers():
    page = PAGE.read_text(encoding="utf-8").splitlines()
    quoted = " ".join(line.removeprefix("> ") for line in page if line.startswith("> "))
    assert not [line for line in lines(by_view()) if line not in (*page, quoted)]

"""The first screen in plain words: the question, its answer, and three more answers.

Every sentence is decided by the numbers that `tables.verdicts` and `tables.evidence` computed, by the rules of
`statistics.verdict`: a difference is claimed only where the corrected p value allows it, equality only where the whole
interval lies within the margin.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from triptych.config.arms import CONTROLS
from triptych.config.study import Study
from triptych.evaluate.statistics import error_range, points
from triptych.tables.verdicts import warning_of_pair
from triptych.tables.wording import LEVEL, narrowed

CHANCE = 1 - LEVEL  # of claiming a difference where there is none


def added_stages(study: Study, first: str, second: str) -> list[str]:
    """Name the stages that the first schedule has beside those of the second, in their order; none of other pairs."""
    one, two = (study.grid.prefixes[arm] for arm in (first, second))
    rest = [stage for stage in one.stages if stage not in two.stages]
    kept = tuple(stage for stage in one.stages if stage in two.stages)
    same = one.settings is two.settings
    return rest if rest and same and kept == two.stages else []


def _stages(names: Sequence[str]) -> str:
    return ("stage " if len(names) == 1 else "stages ") + listed(names)


def question(study: Study, comparison: Sequence[Mapping]) -> str:
    """Write the study's question as a clinician would ask it."""
    about = study.settings.folds.dataset
    if not comparison:
        return f"How many held-out questions of the data set {about} does {study.grid.schedules[0]} answer correctly?"
    first, second = comparison[0]["first"], comparison[0]["second"]
    if stages := added_stages(study, first, second):
        data = dict.fromkeys(study.settings.stages[stage].data for stage in stages)
        added = f"{_stages(stages)} (data: {', '.join(data)})"
        return f"Does {added} help a model to answer the questions of the data set {about}?"
    return f"Which answers more questions of the data set {about} correctly: {first} or {second}?"


def _share(value: float) -> str:
    return f"{abs(value):.1f} {'more' if value > 0 else 'fewer'} of 100 questions"


def plain_answer(study: Study, comparison: Sequence[Mapping], arms: Sequence[Mapping]) -> str:
    """Answer the study's question in one plain sentence; with no comparison, say what the only schedule reaches."""
    if not comparison:
        row = next(row for row in arms if row["trained"])
        return f"{row['arm']} answers {row['all_mean']:.1f} % of {row['questions']} held-out questions correctly."
    return _found(study, comparison[0])


def caveat(study: Study, comparison: Sequence[Mapping]) -> str:
    """Say what all runs of the answer share by chance: too few trainings of a first stage; empty if they do not."""
    return warning_of_pair(comparison[0], study.grid.drawn_once) if comparison else ""


def _found(study: Study, row: Mapping[str, Any]) -> str:
    stages = added_stages(study, row["first"], row["second"])
    first, second = (f"with {_stages(stages)}", "without") if stages else (row["first"], row["second"])
    subject = _stages(stages).capitalize() if stages else ""
    seen = f"models {first} answered {_share(row['effect'])} correctly than {'models ' if stages else ''}{second}"
    if not stages:
        seen = f"{first} answered {_share(row['effect'])} correctly than {second}"
    if round(row["effect"], 1) == 0:
        seen = f"models {first} and {second} answered equally many" if stages else f"{first} and {second} are level"
    if row["runs"] == 1:
        return f"This study cannot tell: one model of each was trained, and {seen}, which another training may reverse."
    if row.get("low") is None or row["low"] == row["high"]:
        return f"This study cannot tell: {seen}, and its answers show no spread by which to judge other images."
    margin, ahead = row["equivalence_margin"], row["effect"] > 0
    found = sure(row)
    beyond = max(-row["low"], row["high"])
    if beyond <= margin:
        less = "" if not found else f", slightly in favour of {first if ahead else second}"
        what = f"{subject} makes" if stages else f"{first} or {second} makes"
        return f"{what} no difference that matters here: {seen}, and at most {beyond:.1f} are compatible{less}."
    if found:
        if stages:
            start = f"{subject} {'helped' if ahead else 'harmed'} here"
        else:
            start = f"{first if ahead else second} is better here"
        enough = min(abs(row["low"]), abs(row["high"])) > margin
        size = "more than" if enough else "though perhaps not more than"
        return f"{start}: {seen}, {size} the {points(margin)} that count{'s' if margin == 1 else ''} as a difference."
    start = f"It is not shown that {subject.lower()} helps or harms" if stages else "Neither is shown to be better"
    if not narrowed(row["low"], row["high"]):
        return f"{start}: {seen}, and no true difference is ruled out."
    possible = max(-100.0, row["low"]), min(100.0, row["high"])
    ends = [f"{abs(end):.1f} {'fewer' if end < 0 else 'more'}" for end in possible]
    return f"{start}: {seen}, and a true difference from {ends[0]} to {ends[1]} in 100 is not ruled out."


def listed(names: Sequence[str]) -> str:
    """Write names in a row: 'a', 'a and b', 'a, b and c'."""
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def sure(row: Mapping[str, Any]) -> bool:
    """Tell whether a row has a corrected p value, and one that allows a claim."""
    return row["p_holm"] is not None and row["p_holm"] < CHANCE


def loses(row: Mapping[str, Any]) -> bool:
    """Tell whether a schedule is shown to lose points with the images of a control."""
    return sure(row) and row["effect"] > 0


def _looks(shown: Mapping[str, bool]) -> str:
    """Say in short whether a schedule looks at the image, by whether it loses points with each control.

    A grey image is unlike all that was trained on: what is lost with it alone shows no use of the image.
    """
    if shown.get("swapped-alike"):
        return "Yes"
    if not shown.get("swapped"):
        return "Not shown"
    return "Beyond its kind: not shown" if "swapped-alike" in shown else "Yes, at least its kind"


# What is shown for other schedules: `_looks` -> the start of the sentence that names them.
SAID_OF_OTHERS = {
    "Yes": "Shown for",
    "Yes, at least its kind": "Shown, for at least its kind, for",
    "Beyond its kind: not shown": "Not shown beyond its kind for",
    "Not shown": "Not shown for",
}


def card_image(lost: Sequence[Mapping[str, Any]], schedules: Sequence[str]) -> dict[str, Any]:
    """Answer whether the first schedule looks at the image, from the points that it loses with others (p corrected).

    For which of the other schedules it is shown, the text says.
    """
    arm, *others = schedules
    rows = [row for row in lost if row["arm"] == arm]
    shown = {row["view"]: loses(row) for row in rows}
    short = _looks(shown) if rows else "Not asked"
    if not rows:
        text = "This study asked no question with another image (`evaluation.controls`)."
    elif not any(shown.values()):
        text = f"{arm} is not shown to answer fewer questions correctly with other images."
    else:
        lower = listed([CONTROLS[view].heading for view in shown if shown[view]])
        level = listed([CONTROLS[view].heading for view in shown if not shown[view]])
        text = f"{arm} answers fewer questions correctly with {lower} than with the question's own image."
        text += f" With {level}, this is not shown." if level else ""
        if short == "Not shown":
            text += " A grey image is unlike all others: a loss with it alone shows no use of the image."
    by_other = {other: [row for row in lost if row["arm"] == other] for other in others}
    found = {other: _looks({row["view"]: loses(row) for row in own}) for other, own in by_other.items() if own}
    for seen, start in SAID_OF_OTHERS.items():
        if rows and (names := [other for other in found if found[other] == seen]):
            text += f" {start} {', '.join(names)}."
    if short == "Yes, at least its kind":
        text += " Whether it sees more, this study did not ask (control swapped-alike)."
    return {"question": "Does it look at the image?", "short": short, "text": text, "rows": rows, "to": "looks"}


def card_lookup(rows: Sequence[Mapping[str, Any]], schedules: Sequence[str]) -> dict[str, Any]:
    """Answer whether a schedule beats every look-up and classifier (p values corrected for all pairs)."""
    by_arm = {arm: [row for row in rows if row["arm"] == arm] for arm in schedules}
    winners = [arm for arm, own in by_arm.items() if own and all(sure(row) and row["effect"] > 0 for row in own)]
    losers = [arm for arm, own in by_arm.items() if any(sure(row) and row["effect"] < 0 for row in own)]
    nearest = [min(own, key=lambda row: row["effect"]) for own in by_arm.values() if own]
    if winners:
        short, text = "Yes", f"{', '.join(winners)} answers more questions correctly than every look-up and classifier."
    elif losers == list(schedules):
        short = "No"
        below = [min(filter(sure, own), key=lambda row: row["effect"]) for own in by_arm.values()]
        named = ", ".join(f"{row['arm']} than {row['lookup']}" for row in below)
        text = f"Every schedule answers fewer questions correctly than some look-up or classifier: {named}."
    else:
        short = "Not shown"
        text = "No schedule is shown to answer more questions correctly than every look-up and classifier."
        for arm, own in by_arm.items():
            if below := sum(row["effect"] < 0 for row in own):
                text += f" {arm} scored below {below} of {len(own)}."
    asked = "Does it beat every look-up and classifier?"
    return {"question": asked, "short": short, "text": text, "rows": nearest, "to": "lookups"}


def card_power(comparison: Sequence[Mapping]) -> dict[str, Any]:
    """Answer how large a difference the primary comparison could have found."""
    card: dict[str, Any] = {"question": "How much could this study have found?", "rows": [], "to": "arms"}
    size = comparison[0].get("detectable") if comparison else None
    if size is None:
        text = "A comparison needs two schedules and more than one run of each."
        if comparison and comparison[0]["runs"] > 1:
            text = "The answers of the schedules show no spread by which to judge other runs and images."
        return card | {"short": "Unknown", "text": text}
    row, margin = comparison[0], comparison[0]["equivalence_margin"]
    least, most = (factor * size for factor in error_range(row["df"]))
    beyond = points(round(most, 1)) if most <= 100 else "more than 100 points"
    text = (
        f"A true difference of about {points(round(size, 1))} between {row['first']} and {row['second']} would be "
        f"found four times out of five, by the spread of {row['runs']} runs; smaller ones are missed more often. "
        f"That spread is itself an estimate: by the true one, it may be {round(least, 1):g} to {beyond}. "
        f"Differences of up to {points(margin)} count as none."
    )
    return card | {"short": f"About {points(round(size, 1))}", "text": text, "to": "differences"}


def cards(gathered: Mapping[str, Any], schedules: Sequence[str]) -> list[dict[str, Any]]:
    """Give the three cards of the first screen, in their order."""
    return [
        card_image(gathered["lost"], schedules),
        card_lookup(gathered["above_lookups"], schedules),
        card_power(gathered["comparison"]),
    ]

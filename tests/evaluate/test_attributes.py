"""What models answer about attributes: which questions ask for one, and macro-F1 with known values."""

import pytest
from sklearn.metrics import f1_score
from triptych.evaluate.attributes import Said, attribute_answers, said
from triptych.tables import probes
from triptych.tables.format import make_table, rows_of


def record(question, gold, prediction="", content_type="Organ", modality="CT", image="i0", **other):
    about = {"question": question, "gold": gold, "prediction": prediction, "content_type": content_type}
    about |= {"modality": modality, "image_id": image, "group": image, "question_id": f"{image} {question}"}
    return {**about, "arm": "2-3", "split": "fold0", "seed": 0, **other}


@pytest.mark.parametrize(
    ("question", "gold", "prediction", "content_type", "modality", "expected"),
    [
        ("What modality is shown?", "X-Ray", "x ray", "Modality", "X-Ray", Said("modality", "xray", "xray", "xray")),
        ("CT, MRI or X-Ray?", "MRI", "a dog", "Modality", "MRI", Said("modality", "mri", "mri", "a dog")),
        ("What is the MR weighting in this image?", "T2", "T2", "Modality", "MRI", None),
        ("Is this a CT?", "Yes", "Yes", "Modality", "CT", None),
        ("What is named CT?", "CT", "CT", "KG", "CT", None),
        ("What is it?", "", "", "Modality", "", None),
        ("Where does the picture  show ?", "Head", "neck", "Position", "CT", Said("location", "head", "head", "neck")),
        ("Which organ system is imaged?", "Chest", "Chest", "Organ", "CT", Said("location", "chest", "chest", "chest")),
        ("Where is the liver?", "Left", "Left", "Position", "CT", None),
        ("Does the picture contain brian?", "No", "yes.", "Organ", "CT", Said("organ", "brain", "", "brain")),
        ("Are/Is there kidneys in the picture?", "Yes", "2", "Organ", "CT", Said("organ", "kidney", "kidney", "")),
        ("Is there a liver in the image?", "Yes", "Yes", "Organ", "CT", Said("organ", "liver", "liver", "liver")),
        (
            "Does the humerus head exist in this picture?",
            "No",
            "",
            "Organ",
            "CT",
            Said("organ", "humerus head", "", ""),
        ),
        ("Does the picture contain the labelled lesion?", "Yes", "Yes", "Abnormality", "CT", None),
        ("Is this a study of the chest?", "Yes", "Yes", "Organ", "CT", None),
        ("Does the picture contain liver?", "", "Yes", "Organ", "CT", None),
    ],
)
def test_a_question_asks_for_an_attribute_or_for_none(question, gold, prediction, content_type, modality, expected):
    assert said(record(question, gold, prediction, content_type, modality)) == expected


def modalities(golds, predictions, **other):
    asked = "What modality is used to take this image?"
    return [
        record(asked, gold, prediction, "Modality", gold, image=f"i{number}", **other)
        for number, (gold, prediction) in enumerate(zip(golds, predictions, strict=True))
    ]


def test_macro_f1_of_answers_is_that_of_scikit_learn_over_the_values_of_enough_images():
    golds = ["CT"] * 12 + ["MRI"] * 10 + ["X-Ray"] * 9
    answers = ["CT"] * 9 + ["MRI"] * 2 + ["no idea"] + ["MRI"] * 7 + ["CT"] * 3 + ["X-Ray"] * 5 + ["MRI"] * 4
    rows, left_out = attribute_answers(modalities(golds, answers) + modalities(golds, golds, arm="1-2-3"))
    assert left_out == {"location": 0, "organ": 0}
    [worse, perfect] = rows_of(probes.summarise_answers(rows, ["2-3", "1-2-3"]))
    expected = 100 * f1_score(golds, answers, labels=["CT", "MRI"], average="macro")
    assert worse["f1"] == pytest.approx(expected) and perfect["f1"] == perfect["low"] == 100
    assert worse["low"] < worse["f1"] < worse["high"] and worse["shuffled_f1"] is worse["change"] is None
    assert (worse["probe"], worse["values"], worse["images"], worse["questions"]) == ("answers", 2, 31, 31)


def test_an_organ_counts_where_enough_images_have_it_and_as_many_lack_it():
    found = []
    for number in range(24):
        there = {"liver": number < 12, "lung": number % 2 == 0, "heart": True, "spleen": number < 5}
        for organ, gold in there.items():
            right = gold if organ != "liver" else number < 6  # half of the livers are missed
            words = ["no", "yes"]
            found.append(record(f"Does the picture contain {organ}?", words[gold], words[right], image=f"i{number}"))
    rows, left_out = attribute_answers(found)
    [row] = rows_of(probes.summarise_answers(rows, ["2-3"]))
    assert (row["attribute"], row["values"], row["questions"]) == ("organ", 2, 48)  # liver and lung
    assert row["f1"] == pytest.approx(100 * (2 / 3 + 1) / 2)
    assert left_out == {"modality": 0, "location": 0}


def test_what_too_few_questions_ask_for_is_left_out_with_the_count():
    rows, left_out = attribute_answers(modalities(["CT"] * 30 + ["MRI"] * 9, ["CT"] * 39))
    assert rows == [] and left_out == {"modality": 39, "location": 0, "organ": 0}
    rows, _ = attribute_answers(modalities(["CT"] * 30 + ["MRI"] * 10, ["CT"] * 40))
    read = {"representation": "2-3", "attribute": "modality", "probe": "mlp", "f1": 99.5}
    table = [*rows_of(probes.summarise_answers(rows, ["2-3"])), read]
    first, *rest = probes.beside(make_table(table, probes.COLUMNS), {"organ": 7})
    assert first.startswith("`2-3`, modality: 42.9 (") and "40 questions about 40 images; 99.5 read by" in first
    assert rest == [
        "organ: left out; 7 questions ask for it: too few, which need 10 images for each of two values (and of each "
        "organ as many without it)."
    ]


def test_one_subject_with_every_value_still_has_an_interval():
    rows = modalities(["CT"] * 10 + ["MRI"] * 10, ["CT"] * 10 + ["MRI"] * 10)
    found = [record("Does the picture contain liver?", "No", "No", image=f"n{number}") for number in range(10)]
    found += [record("Does the picture contain lung?", "No", "No", image=f"n{number}") for number in range(10)]
    for number in range(10):
        for organ in ("liver", "lung"):
            found.append(
                {**record(f"Does the picture contain {organ}?", "Yes", "Yes", image=f"y{number}"), "group": "s"}
            )
    table = rows_of(probes.summarise_answers(attribute_answers(rows + found)[0], ["2-3"]))
    assert [(row["attribute"], row["low"], row["high"]) for row in table] == [
        ("modality", 100, 100),
        ("organ", 100, 100),
    ]

"""Generation with a shared prefix gives what plain one-at-a-time generation gives."""

from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from conftest import make_features, make_model, make_questions
from triptych.config.arms import HELD_OUT
from triptych.config.jobs import PredictionJob
from triptych.config.stages import Connector
from triptych.data.schemas import QUESTION_COLUMNS
from triptych.errors import TriptychError
from triptych.evaluate import generate as generation
from triptych.evaluate import respondent
from triptych.evaluate.constrained import AnswerTree
from triptych.evaluate.controls import Shown, alike_images, other_images, swapped_alike
from triptych.evaluate.generate import SharedPrefixes, generate, prefixes_fit, run_prefixes
from triptych.evaluate.predictions import PartialPredictions
from triptych.evaluate.respondent import Respondent
from triptych.model.attention import BLOCKWISE
from triptych.model.tokens import prompt_tokens, tokenise
from triptych.utils.device import mixed_precision

NEW_TOKENS = 6
ROUTES = [("eager", False), ("sdpa", False), (BLOCKWISE, False), (BLOCKWISE, True)]  # attention; at fixed shapes


def plain(model, sample, features, prompt):
    """`generate` of transformers on one question: no shared cache, no padding."""
    text = model.embed(torch.tensor([list(sample.question)]))
    before = model.embed(torch.tensor([list(prompt.before_image)], dtype=torch.long))
    image = [] if model.blind else [model.project(features([sample.image_id]))]
    embeddings = torch.cat([before, *image, text], dim=1)
    tokens = model.language_model.generate(
        inputs_embeds=embeddings,
        attention_mask=torch.ones(embeddings.shape[:2], dtype=torch.long),
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        eos_token_id=prompt.end,
        pad_token_id=prompt.end,
    )[0].tolist()
    return tokens[: tokens.index(prompt.end)] if prompt.end in tokens else tokens


@pytest.fixture
def many(prompt):
    return tokenise(make_questions(images=12, seed=4), prompt)


@pytest.mark.parametrize(("attention", "fixed"), ROUTES)
@pytest.mark.parametrize("connector", [Connector(), Connector(kind="linear"), Connector(kind="pooled-mlp", pool=2)])
def test_answers_equal_plain_generation_at_any_batch_size(attention, fixed, connector, many, features, prompt):
    check_answers(make_model(attention, connector), many, features, prompt, fixed)


@pytest.mark.parametrize(("attention", "fixed"), ROUTES)
@pytest.mark.parametrize("before", ["user", ""])
def test_a_blind_model_answers_without_features(attention, fixed, before, tokenizer):
    model = make_model(attention)
    model.blind = True
    prompt = prompt_tokens(tokenizer, f"{before} <image> {{question}} assistant ")
    many = tokenise(make_questions(images=12, seed=4), prompt)
    check_answers(model, many, None, prompt, fixed, different=2)


def check_answers(model, many, features, prompt, fixed, different=3):
    expected = [plain(model, sample, features, prompt) for sample in many]
    assert len(set(map(tuple, expected))) > different, "answers must differ for the comparison to mean something"
    for size in (1, 7, 64):
        answers = []
        for start in range(0, len(many), size):
            answers += generate(model, many[start : start + size], features, prompt, NEW_TOKENS, fixed_shapes=fixed)[0]
        assert answers == expected, f"batch size {size}"


@pytest.mark.parametrize("fixed", [False, True])
def test_prefixes_are_run_once_for_all_views(fixed, many, features, prompt, monkeypatch):
    monkeypatch.setattr(generation, "NEIGHBOURS", 5)
    model, ran = make_model("sdpa"), []
    images = sorted({sample.image_id for sample in many})

    def run(names):
        ran.append(list(names))
        return run_prefixes(model, features, prompt, names, fixed)

    def answer(samples, read, prefixes=None):
        return generate(model, samples, read, prompt, NEW_TOKENS, prefixes, fixed)

    shared = SharedPrefixes(run, images)
    expected = [answer(many[start : start + 7], features) for start in range(0, 28, 7)]
    for _ in range(2):  # as two views
        for number, start in enumerate(range(0, 28, 7)):
            found = answer(many[start : start + 7], None, shared)
            assert found[0] == expected[number][0] and found[1] == pytest.approx(expected[number][1], abs=1e-5)
    assert [tuple(names) for names in ran] == list(dict.fromkeys(map(tuple, ran))), "no image is run twice"
    assert all(names == images[5 * (images.index(names[0]) // 5) :][:5] for names in ran), "with its neighbours"
    other = other_images([{"image_id": image, "group": image} for image in images])
    swapped = answer(many[:7], lambda names: features([other[name] for name in names]))
    before = len(ran)
    found = answer(many[:7], None, lambda names: shared([other[name] for name in names]))
    assert found[0] == swapped[0] and found[0] != expected[0][0]
    assert len(ran) - before <= 3


@pytest.mark.parametrize("room", [generation.PREFIX_BYTES, 0])
@pytest.mark.parametrize(("view", "blind"), [("blank", False), (HELD_OUT, True), (HELD_OUT, False)])
def test_what_is_asked_twice_of_the_same_is_answered_once(view, blind, room, tmp_path, prompt, monkeypatch):
    rows = [dict.fromkeys(QUESTION_COLUMNS) | row for row in make_questions(images=12, seed=4)]
    rows.append(rows[3] | {"question_id": "again", "answer": "CT"})
    samples, model, asked = tokenise(rows, prompt), make_model("sdpa"), []
    model.blind = blind
    read = make_features()
    grey = Shown(dict.fromkeys((row["image_id"] for row in rows), "grey"), read)
    monkeypatch.setitem(respondent.CONTROLS, "blank", SimpleNamespace(load=lambda: lambda *_, **__: grey))
    monkeypatch.setattr(generation, "PREFIX_BYTES", room)

    def spy(model, batch, *rest, **named):
        asked.extend((sample.image_id, sample.question) for sample in batch)
        return generate(model, batch, *rest, **named)

    monkeypatch.setattr(respondent, "generate", spy)
    monkeypatch.setattr(Respondent, "_texts", lambda self, answers: [" ".join(map(str, answer)) for answer in answers])
    one = object.__new__(Respondent)
    one.__dict__ |= {
        "job": PredictionJob(precision="fp32", max_new_tokens=NEW_TOKENS, batch_size=5),
        "manifest": {"prefix": "2-3", "split": "fold0", "seed": 0},
        "features": read,
        "_questions": {HELD_OUT: (rows, samples)},
        "_prefixes": {},
        **{"sha256": "", "encoder": None, "device": torch.device("cpu"), "dtype": torch.float32},
        **{"model": model, "prompt": prompt},
    }
    shown = {row["image_id"]: "grey" if view == "blank" else row["image_id"] for row in rows}
    expected, _ = generate(model, samples, lambda names: read([shown[name] for name in names]), prompt, NEW_TOKENS)
    view_asked = one.ask(view, tmp_path / "seed0.parquet")
    assert sum(one.answer(view_asked)) == len(asked) == len(view_asked.different)
    found = one.records(view_asked)
    assert [record["question_id"] for record in found] == [row["question_id"] for row in rows]
    assert [record["gold"] for record in found] == [row["answer"] for row in rows]
    assert [record["prediction"] for record in found] == [" ".join(map(str, answer)) for answer in expected]
    assert len({record["prediction"] for record in found}) > 2
    different = {(None if view == "blank" or blind else name, question) for name, question in asked}
    assert len(asked) == len(different) < len(rows)
    assert (len(asked) == 4) == (view == "blank" or blind)
    assert Counter(record["tokens"] for record in found) == Counter(map(len, expected))


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_what_prefixes_need_is_reckoned_as_it_is(precision, dtype, features, prompt, monkeypatch):
    model = make_model("sdpa")
    model.language_model.to(dtype)
    with mixed_precision(precision, torch.device("cpu")):
        cache = run_prefixes(model, features, prompt, ["image0", "image1", "image2"], False)
    held = sum(part.nbytes for layer in cache.layers for part in (layer.keys, layer.values))
    for room, fits in ((held, True), (held - 1, False)):
        monkeypatch.setattr(generation, "PREFIX_BYTES", room)
        assert prefixes_fit(model, cache.get_seq_length(), 3) is fits


def test_length_is_bounded_by_the_setting_alone(model, many, features, prompt):
    longer, _ = generate(model, many, features, prompt, 4)
    shorter, _ = generate(model, many, features, prompt, 2)
    assert max(map(len, longer)) <= 4
    assert shorter == [answer[:2] for answer in longer]


def test_the_log_probability_is_that_of_the_answer_and_its_end(model, many, features, prompt):
    answers, logprobs = generate(model, many, features, prompt, NEW_TOKENS)
    for sample, answer, logprob in zip(many[:8], answers, logprobs, strict=False):
        ids = [*answer, prompt.end] if len(answer) < NEW_TOKENS else answer
        image, words = model.project(features([sample.image_id])), torch.tensor([[*sample.question, *ids]])
        before = model.embed(torch.tensor([list(prompt.before_image)]))
        inputs = torch.cat([before, image, model.embed(words)], dim=1)
        hidden = model.decoder(inputs_embeds=inputs).last_hidden_state[:, -len(ids) - 1 : -1]
        expected = model.logits(hidden).log_softmax(-1)[0, range(len(ids)), ids].sum().item()
        assert logprob == pytest.approx(expected, rel=1e-3, abs=1e-4)


def test_every_image_is_swapped_for_another():
    rows = kinds(*((f"image{n}", f"image{n}", "CT", "Lung") for n in range(7))) * 3
    other = other_images(rows)
    assert set(other) == set(other.values()) == {f"image{n}" for n in range(7)}, "each stands for one other"
    assert all(mine != theirs for mine, theirs in other.items())
    assert other == other_images(rows[::-1])
    with pytest.raises(TriptychError, match="drop `swapped`"):
        other_images(rows[:1])


def test_a_swap_shows_another_subject_where_there_is_one():
    rows = kinds(*((f"a{n}", "a", "CT", "Lung") for n in range(9)), ("b0", "b", "MRI", "Head"))
    other = other_images(rows)
    assert {other[f"a{n}"] for n in range(9)} == {"b0"} and other["b0"][0] == "a"
    alone = other_images(rows[:9])
    assert set(alone) == set(alone.values()) and all(mine != theirs for mine, theirs in alone.items())


def kinds(*rows):
    """Question rows of (image, subject, modality, location)."""
    names = ("image_id", "group", "modality", "location")
    return [{"question_id": f"q{n}", **dict(zip(names, row, strict=True))} for n, row in enumerate(rows)]


def test_a_hard_swap_keeps_modality_and_body_part_and_never_shows_the_same_subject():
    rows = kinds(*((f"ct{n}", f"ct{n}", "CT", "Lung") for n in range(5)), ("mr", "mr", "MRI", "Lung"))
    rows += kinds(("pelvis", "pelvis", "CT", "Pelvic Cavity"), ("none", "none", "", "Lung"))
    rows += kinds(("who", "who", "Unknown", "Lung"), ("knows", "knows", "Unknown", "Lung"))
    other = alike_images(rows)
    assert set(other) == set(other.values()) == {f"ct{n}" for n in range(5)}, "each stands for one other"
    assert all(mine != theirs for mine, theirs in other.items())
    assert other == alike_images(rows[::-1])
    shown = swapped_alike(rows, None, None, None)
    assert shown.left_out == {"mr", "pelvis", "none", "who", "knows"}
    assert shown.of == other | {name: name for name in shown.left_out}, "prefixes of all images stay shared"
    slices = kinds(*((f"a{n}", "a", "CT", "Lung") for n in range(3)), ("b0", "b", "CT", "Lung"))
    other = alike_images(slices + kinds(("c0", "c", "CT", "Head"), ("c1", "c", "CT", "Head")))
    assert {name: other[name] for name in ("a0", "a1", "a2")} == dict.fromkeys(("a0", "a1", "a2"), "b0")
    assert other["b0"][0] == "a" and set(other) == {"a0", "a1", "a2", "b0"}, "c has no other subject"


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([("a", "a", "Radiology", "Unknown"), ("b", "b", "Radiology", "Unknown")], "no held-out question names both"),
        ([("a", "a", "", ""), ("b", "b", None, None)], "no held-out question names both"),
        ([("a", "a", "CT", "Head"), ("b", "b", "MRI", "Head")], "no two of different subjects"),
        ([("a", "s", "CT", "Head"), ("b", "s", "CT", "Head")], "no two of different subjects"),
    ],
)
def test_data_without_images_of_one_kind_are_one_error_that_names_the_setting(rows, said):
    with pytest.raises(TriptychError, match=f"evaluation.controls: .*{said}.*drop `swapped-alike`"):
        alike_images(kinds(*rows))


def test_a_killed_prediction_goes_on_after_its_last_whole_batch(tmp_path):
    path = tmp_path / "seed0.part.jsonl"
    kept = PartialPredictions(path, "key", 2, 7)
    for number in range(3):
        kept.add([{"number": 2 * number}, {"number": 2 * number + 1}])
    path.write_text(path.read_text()[:-4])  # cut in the middle of the last line
    assert [record["number"] for record in PartialPredictions(path, "key", 2, 7).records] == [0, 1, 2, 3]
    assert PartialPredictions(path, "another", 2, 7).records == []


def test_the_last_batch_of_a_whole_prediction_is_kept_though_it_is_short(tmp_path):
    path = tmp_path / "seed0.part.jsonl"
    PartialPredictions(path, "key", 2, 3).add([{"number": number} for number in range(3)])
    assert len(PartialPredictions(path, "key", 2, 3).records) == 3
    assert len(PartialPredictions(path, "key", 2, 4).records) == 2


def test_answers_with_line_separators_in_them_are_kept(tmp_path):
    path = tmp_path / "seed0.part.jsonl"
    records = [{"prediction": "a\u2028b"}, {"prediction": "c\u0085\r"}]
    PartialPredictions(path, "key", 2, 7).add(records)
    assert PartialPredictions(path, "key", 2, 7).records == records


def likeliest(model, sample, candidates, features, prompt):
    """Greedy choice among some answers, one token at a time with plain forward passes."""
    answer = ()
    while not answer or answer[-1] != prompt.end:
        image, words = model.project(features([sample.image_id])), torch.tensor([[*sample.question, *answer]])
        before = model.embed(torch.tensor([list(prompt.before_image)]))
        hidden = model.decoder(inputs_embeds=torch.cat([before, image, model.embed(words)], dim=1)).last_hidden_state
        following = {known[len(answer)] for known in candidates if known[: len(answer)] == answer}
        answer += (max(following, key=model.logits(hidden[:, -1])[0].__getitem__),)
    return list(answer[:-1])


@pytest.mark.parametrize(("attention", "fixed"), ROUTES)
def test_constrained_answers_are_the_greedy_ones_of_the_set(attention, fixed, many, features, prompt):
    model, generator = make_model(attention), torch.Generator().manual_seed(3)
    words = [number for number in range(8) if number != prompt.end]
    candidates = {
        (*(words[place] for place in torch.randint(len(words), (length,), generator=generator)), prompt.end)
        for length in (1, 1, 2, 2, 2, 3, 3, 3, 3, 5)
    }
    candidates |= {(*known[:-1], words[0], prompt.end) for known in sorted(candidates)[:4]}  # one begins as another
    tree = AnswerTree.of(sorted(candidates), torch.device("cpu"))
    expected = [likeliest(model, sample, candidates, features, prompt) for sample in many]
    assert len(set(map(tuple, expected))) > 1
    for size in (1, 7, 64):
        found = []
        for start in range(0, len(many), size):
            batch = many[start : start + size]
            found += generate(model, batch, features, prompt, NEW_TOKENS, fixed_shapes=fixed, tree=tree)[0]
        assert found == expected, f"batch size {size}"
    free, _ = generate(model, many, features, prompt, NEW_TOKENS, fixed_shapes=fixed)
    tree = AnswerTree.of(sorted({(*answer, prompt.end) for answer in free}), torch.device("cpu"))
    again = generate(model, many, features, prompt, NEW_TOKENS + 1, fixed_shapes=fixed, tree=tree)
    assert again[0] == free, "free answers are found again in the tree that they make"


def test_only_the_empty_answer_may_be_given_where_it_alone_is_known(model, many, features, prompt):
    tree = AnswerTree.of([(prompt.end,)], torch.device("cpu"))
    for fixed in (False, True):
        assert generate(model, many, features, prompt, 3, fixed_shapes=fixed, tree=tree)[0] == [[] for _ in many]


@pytest.mark.parametrize(("fixed", "asked"), [(False, ["b", "d"]), (True, ["a", "b", "c", "d"])])
def test_only_what_is_no_training_answer_is_asked_again_unless_that_would_be_a_new_shape(fixed, asked, monkeypatch):
    free = {"a": (5,), "b": (5, 6), "c": (), "d": (7, 8)}  # the last is cut off, and no whole answer
    calls = []

    def again(view, samples, tree):
        calls.append(samples)
        return [[50], [60], [70], [80]][: len(samples)], None

    monkeypatch.setattr(respondent, "at_fixed_shapes", lambda wanted, device: fixed)
    asks = SimpleNamespace(
        prompt=SimpleNamespace(end=9),
        device=None,
        _tree="tree",
        _generate=again,
        _candidates={(5, 9), (9,), (5, 6, 7, 9)},
    )
    given = Respondent._constrain(asks, None, list(free), list(free.values()))
    assert calls == [asked]
    assert given == ([[50], [60], [70], [80]] if fixed else [(5,), [50], (), [60]])
    calls.clear()
    assert Respondent._constrain(asks, None, ["a", "c"], [(5,), ()]) == [(5,), ()] and not calls

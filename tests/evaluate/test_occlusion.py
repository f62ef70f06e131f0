"""Occlusion: squares, boxes, and what answers lose; a model that looks at one square is found to look there."""

import numpy as np
import pytest
import torch
from PIL import Image
from triptych.evaluate import occlusion
from triptych.evaluate.gold import gold_logprobs
from triptych.evaluate.occlusion import answer_drops, picture, pointing_hits, shares_inside
from triptych.features.occluded import GREY, edges, view_names, views
from triptych.model.tokens import Sample


@pytest.mark.parametrize(("size", "grid"), [((32, 32), 4), ((50, 33), 7), ((9, 8), 5)])
def test_every_pixel_is_grey_in_exactly_one_view(size, grid):
    image = Image.new("RGB", size, (250, 10, 10))
    own, *hidden = (np.asarray(view) for view in views(image, grid))
    assert (own == np.asarray(image)).all() and len(hidden) == grid**2 == len(view_names("i", grid)) - 1
    grey = np.array([(view == GREY).all(2) for view in hidden])
    assert (grey.sum(0) == 1).all()
    assert all((view[~where] == (250, 10, 10)).all() for view, where in zip(hidden, grey, strict=True))
    assert grey[0][0, 0] and grey[grid - 1][0, -1] and grey[-1][-1, -1], "row by row"


@pytest.mark.parametrize(
    "boxes", [[(5, 3, 20, 11)], [(5, 3, 20, 11), (10, 5, 30, 30)], [(-9, -9, 300, 300)], [(7, 8, 1, 1)]]
)
def test_shares_within_boxes_are_those_of_their_pixels(boxes):
    width, height, grid = 50, 33, 7
    mask = np.zeros((height, width), bool)
    for left, top, wide, high in boxes:
        mask[max(top, 0) : top + high, max(left, 0) : left + wide] = True
    across, down = edges(width, grid), edges(height, grid)
    expected = [mask[down[row] : down[row + 1], across[column] : across[column + 1]].mean()
                for row in range(grid) for column in range(grid)]  # fmt: skip
    assert shares_inside(boxes, width, height, grid) == pytest.approx(expected)


def test_a_square_points_at_a_box_by_either_centre():
    def hits(*boxes):
        return np.flatnonzero(pointing_hits(boxes, 40, 40, 4)).tolist()

    assert hits((0, 0, 20, 10)) == [0, 1]
    assert hits((12, 3, 2, 2)) == [1], "smaller than a square"
    assert hits((0, 0, 40, 40)) == list(range(16))
    assert hits((0, 0, 10, 10), (30, 30, 10, 10)) == [0, 15]
    assert hits((8, 0, 6, 10)) == [1], "reaches into a square without its centre"


def test_answers_lose_what_their_log_probability_loses(model, prompt, features):
    asked = [("a", "is it red ?", "yes"), ("b", "where is it ?", "on the left")]
    samples = [
        Sample(name, "i", prompt.encode_question(text), prompt.encode_answer(answer)) for name, text, answer in asked
    ]
    tokens = features([f"view{number}" for number in range(5)])
    logprobs, drops = answer_drops(model, samples, tokens.__getitem__, 5, prompt, "fp32")
    assert drops.shape == (2, 4)
    for view in range(5):
        alone = gold_logprobs(model, samples, lambda names, view=view: tokens[[view] * len(names)], prompt, "fp32")
        found = logprobs if view == 0 else logprobs - drops[:, view - 1]
        assert found == pytest.approx(alone, abs=1e-4)
    same = tokens[:1].expand(5, -1, -1)
    assert np.abs(answer_drops(model, samples, same.__getitem__, 5, prompt, "fp32")[1]).max() < 1e-4


def test_an_answer_that_does_not_fit_is_not_a_number(model, prompt, features):
    long = Sample("a", "i", prompt.encode_question("is " * 260), prompt.encode_answer("yes"))
    short = Sample("b", "i", prompt.encode_question("is it red ?"), prompt.encode_answer("yes"))
    tokens = features(["x", "y"])
    logprobs, drops = answer_drops(model, [long, short], tokens.__getitem__, 2, prompt, "fp32")
    assert np.isnan(logprobs[0]) and np.isnan(drops[0]).all() and np.isfinite(drops[1]).all()
    assert torch.isfinite(tokens).all()


def test_the_picture_is_red_where_the_answer_loses_and_blue_where_it_gains():
    image = Image.new("RGB", (40, 40), (100, 100, 100))
    drawn = picture(image, [0, 0, 2.0, -2.0], [(0, 0, 10, 10)])
    scale = drawn.width // 40
    at = lambda x, y: drawn.getpixel((x * scale, y * scale))  # noqa: E731
    assert drawn.size[0] >= occlusion.SHOWN * 0.9 and at(30, 5) == (100, 100, 100)
    assert at(10, 30)[0] > 150 > at(10, 30)[2] and at(30, 30)[2] > 110 > at(30, 30)[0]
    assert drawn.getpixel((0, 0)) == (255, 255, 255), "the box"
    assert picture(image, [0.0] * 9).getpixel((50, 50)) == (100, 100, 100), "nothing matters"

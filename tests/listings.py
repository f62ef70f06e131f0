"""What a data source lists: the images that it gives, and the rows that it refuses."""

from triptych.data.sources.base import Item, Reject

# A conversation about an image, as LLaVA's data has them.
TURNS = [{"from": "human", "value": "<image>\nWhat is it ?"}, {"from": "gpt", "value": "a thing"}]


def pictures(found):
    return [item for item in found if isinstance(item, Item)]


def rejects(found):
    return [(item.id, item.reason) for item in found if isinstance(item, Reject)]

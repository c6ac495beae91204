"""Questions that come without a picture, or with one that cannot be read."""

from __future__ import annotations


def _message(doc, pictures):
    content = [{"type": "image", "url": picture} for picture in pictures]
    return [{"role": "user", "content": [*content, {"type": "text", "text": doc["question"]}]}]


def doc_to_visual(doc):
    return [] if doc["kind"] == "color" else [picture.convert("RGB") for picture in doc["pictures"]]


def doc_to_messages(doc, lmms_eval_specific_kwargs=None):
    return _message(doc, doc_to_visual(doc))


def lost_visual(doc):
    if doc["kind"] == "color":
        raise OSError("the picture is cut off")
    return doc_to_visual(doc)


def lost_messages(doc, lmms_eval_specific_kwargs=None):
    return _message(doc, lost_visual(doc))

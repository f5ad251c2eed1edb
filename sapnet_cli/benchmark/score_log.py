"""Scores on disk beside the saved outputs, so that a benchmark that was broken off goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path

from sapnet_cli.benchmark.score import ImageScore, Scoring
from sapnet_cli.data.pairs import Pair

NAME = "scores.jsonl"


class ScoreLog:
    """Remembers the scores of pictures under weights and settings; either changed is another score.

    Args:
        folder: of the saved outputs.
        settings: all that the scores depend on besides the pictures, the weights themselves among them, in words.
        scoring: how pictures are scored.
    """

    def __init__(self, folder: Path, settings: list[str], scoring: Scoring) -> None:
        self.path = folder / NAME
        judges = [judge.label for judge in scoring.judges]
        self._settings = _digest(json.dumps([settings, scoring.protocol, scoring.in_rgb, judges]).encode())
        self._known: dict[str, list[ImageScore]] = {}
        try:
            text = self.path.read_text(encoding="utf-8")
        except OSError:
            text = ""
        self._torn = bool(text) and not text.endswith("\n")  # by a run that was killed
        for line in text.splitlines():
            try:
                record = json.loads(line)
                scores = [ImageScore(**{**each, "size": tuple(each["size"])}) for each in record["scores"]]
                self._known[record["key"]] = scores
            except (ValueError, KeyError, TypeError):  # half a line of a run that was killed
                continue

    def find(self, pair: Pair) -> list[ImageScore] | None:
        """The scores of a pair from an earlier run, if its files have not changed since, and can be read."""
        try:
            found = self._known.get(self._key(pair))
        except OSError:
            return None
        return None if found is None else [replace(score, name=pair.name) for score in found]

    def add(self, pair: Pair, scores: list[ImageScore]) -> None:
        """Writes down the scores of a pair.

        Raises:
            OSError: the folder cannot be written.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            record = json.dumps({"key": self._key(pair), "scores": [asdict(score) for score in scores]})
            file.write("\n" * self._torn + record + "\n")
        self._torn = False

    def _key(self, pair: Pair) -> str:
        files = b"".join(path.read_bytes() for path in (pair.rainy, pair.clean))
        kind = "unpaired" if pair.rainy == pair.clean else str(pair.side_by_side)
        return self._settings + _digest(files + kind.encode())


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=12).hexdigest()

"""What is known about the captions of a run: which are right, and what is wrong with the others."""

from __future__ import annotations

from dataclasses import dataclass, field

from pipeline.captioners.annotations import AnnotationsCaptioner, AnnotationsConfig
from pipeline.captioners.request import CaptionRequest
from pipeline.captioners.scene_graph import SceneGraph, parse
from pipeline.schema import ALT_TEXT, META_PREFIX
from pipeline.scorers.alignment_text import content_words
from pipeline.settings import ConfigError
from pipeline.stages.task import tables_of
from pipeline.storage import Directory

RIGHT = "right"
#: Fault of a sentence of the `annotations` captioner that was falsified.
FALSIFIED = "falsified"

_FAULT, _ANNOTATIONS = META_PREFIX + "caption_fault", META_PREFIX + "annotations"


@dataclass
class Truth:
    """Faults of alt texts by uid of the kept image and text, and what each image shows."""

    alt: dict[str, dict[str, str]] = field(default_factory=dict)
    graphs: dict[str, SceneGraph] = field(default_factory=dict)
    said: dict[str, frozenset[str]] = field(default_factory=dict)

    def fault(self, uid: str, text: str, source: str) -> str | None:
        """Return `RIGHT`, the fault of a caption, or None where nothing is known."""
        if source == ALT_TEXT:
            return self.alt.get(uid, {}).get(text)
        if not source.startswith("annotations:") or uid not in self.said:
            return None
        return RIGHT if text in self.said[uid] else FALSIFIED

    def things_named(self, text: str) -> int:
        """Return how many words of a text are categories of things that the run's images show."""
        return sum(word in self._categories for word in content_words(text))

    def __post_init__(self) -> None:
        self._categories: set[str] = set()

    def add(self, uid: str, annotations: str, captioner: AnnotationsCaptioner | None) -> None:
        """Note what an image shows, and what the captioner truly says of it."""
        graph = parse(annotations)
        self.graphs[uid] = graph
        self._categories |= {thing.category for thing in graph.things}
        if captioner is not None:
            (result,) = captioner.caption([CaptionRequest(uid, b"", annotations)])
            self.said[uid] = frozenset(text for text, _ in result.captions)


def read_truth(run: Directory, parts: list[str], captioner: AnnotationsConfig | None) -> Truth:
    """Read the truth of a run's kept images from its metadata columns.

    Sentences of the `annotations` captioner are falsified at its error rate and otherwise as they
    would be without; so those that it does not write at rate 0 are false. Raises `ConfigError` if
    the run has no such columns.
    """
    truthful = None
    if captioner is not None:
        always = captioner.model_copy(update={"error_rate": 0.0, "max_captions": 64})
        truthful = AnnotationsCaptioner(always)
    truth = Truth()
    for part in parts:
        fetched = tables_of(run, "download").read_table(f"{part}.parquet")
        missing = {_FAULT, _ANNOTATIONS} - set(fetched.column_names)
        if missing:
            raise ConfigError(
                f"calibrate: the run has no column {', '.join(sorted(missing))}; it needs a run "
                "that knows the truth about its captions, such as data_configs/scenes.yaml's"
            )
        rows = fetched.select(["row", "captions", _FAULT, _ANNOTATIONS]).to_pylist()
        known = {row["row"]: row for row in rows}
        selected = tables_of(run, "select").read_table(
            f"{part}.parquet", ["row", "uid", "representative", "reason"]
        )
        for row in selected.to_pylist():
            own = known[row["row"]]
            for text in own["captions"] or []:
                lead = row["representative"] or row["uid"]
                truth.alt.setdefault(lead, {}).setdefault(text, own[_FAULT])
            if row["reason"] is None and own[_ANNOTATIONS] is not None:
                truth.add(row["uid"], own[_ANNOTATIONS], truthful)
    return truth

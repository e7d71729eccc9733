"""What is recorded of a run beside its losses: taps, events, and scores of lm-evaluation-harness."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..report.view import Grid, Score, Tap

_RELATIVE = re.compile(r"eval_relative/(.*?\.(\d+)\.(.+?)(?:\.weight)?)")


def logged_taps(metrics: Iterable[Mapping[str, Any]]) -> tuple[Tap, ...]:
    """The taps whose relative errors were logged, by the names of their parameters."""
    names = dict.fromkeys(key for line in metrics for key in line)
    found = [match for name in names if (match := _RELATIVE.fullmatch(name))]
    return tuple(Tap(match[0].partition("/")[2], int(match[2]), match[3]) for match in found)


def events(
    metrics: Iterable[Mapping[str, Any]], versions: Mapping[str, Any], allowed: Iterable[Mapping[str, Any]] = ()
) -> Grid:
    """Lines with an `event`, changes of the data that `--allow` let pass, and resumptions: what was beside training."""
    rows = []
    for line in metrics:
        if "event" in line:
            details = ", ".join(f"{key} {value}" for key, value in line.items() if key not in ("step", "event"))
            rows.append((str(line["step"]), str(line["event"]), details))
    for change in (found for found in allowed if isinstance(found, dict)):
        details = ", ".join(f"{key} {value}" for key, value in change.items() if key != "step")
        rows.append((str(change.get("step", "–")), "went on with other data", details))
    resumed = versions.get("resumed")
    for time in resumed if isinstance(resumed, list) else ():
        if isinstance(time, dict):
            rows.append(("–", "resumed", f"at {time.get('started')} on {time.get('device')}"))
    return Grid(("step", "what", "details"), tuple(rows))


def read_scores(folder: Path) -> tuple[tuple[Score, ...], list[str]]:
    """What lm-evaluation-harness left below a folder, the latest of each model; and what could not be read."""
    found: dict[tuple[str, str, str], Score] = {}
    damaged = []
    for file in sorted(folder.rglob("results*.json"), key=lambda path: path.name) if folder.is_dir() else ():
        try:
            tree = json.loads(file.read_bytes())
            model = Path(str(tree.get("model_name") or tree["config"]["model"])).name
            for task, values in tree["results"].items():
                for key, value in values.items():
                    metric, _, filtered = key.partition(",")
                    if type(value) not in (int, float) or metric.endswith("_stderr") or not filtered:
                        continue
                    error = values.get(f"{metric}_stderr,{filtered}")
                    label = metric if filtered == "none" else f"{metric} ({filtered})"
                    told = float(error) if type(error) in (int, float) else None
                    found[task, label, model] = Score(str(task), label, model, float(value), told)
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
            damaged.append(f"{file} can't be read as results of lm-evaluation-harness and is left out.")
    return tuple(found.values()), damaged

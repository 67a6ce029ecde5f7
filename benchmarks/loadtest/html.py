"""One page of a sweep or a run that needs nothing but itself."""

import base64
import html
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from benchmarks.loadtest.knee import find_knee
from benchmarks.loadtest.limits import parse_condition
from benchmarks.loadtest.plots import write_plots
from benchmarks.loadtest.summary import Summary
from benchmarks.loadtest.tables import Rows, latencies, outcomes, overview

FILE_NAME = "report.html"
_STYLE = """
body { font: 14px/1.45 system-ui, sans-serif; color: #222; max-width: 76em; margin: 2em auto; padding: 0 1em }
h1 { font-size: 1.5em } h2 { font-size: 1.15em; margin-top: 2em }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; display: block; overflow-x: auto }
th, td { padding: .25em .7em; border-bottom: 1px solid #ddd; text-align: right; white-space: nowrap }
th { border-bottom: 2px solid #888 } th.name, td.name { text-align: left }
.plots { display: flex; flex-wrap: wrap; gap: 1em } .plots img { max-width: 580px; width: 100%; height: auto }
.verdict { font-size: 1.1em; border-left: 4px solid #0072B2; padding: .4em .8em; background: #f3f7fa }
.bad { border-color: #D55E00; background: #fcf3ee }
"""


def write_report(folder: Path, summaries: Sequence[Summary]) -> Path:
    """Writes the plots and report.html of a sweep, or of one run, into the folder."""
    ordered = sorted(summaries, key=lambda summary: summary.load)
    plots = write_plots(folder / "plots", ordered)
    path = folder / FILE_NAME
    path.write_text(page(ordered, plots), encoding="utf-8")
    return path


def page(summaries: Sequence[Summary], plots: Sequence[Path]) -> str:
    """The whole page. plots: PNG files, to be embedded."""
    targets = ", ".join(sorted({summary.info.target for summary in summaries})) or "nothing"
    body = [
        f"<h1>Load test of {html.escape(targets)}</h1>",
        _verdict(summaries),
        _table(overview(summaries)),
        '<div class="plots">' + "".join(_image(path) for path in plots) + "</div>",
        _table(latencies(summaries)),
        _table(latencies(summaries, is_whole=True)),
        _table(outcomes(summaries)),
        _remarks(summaries),
        *_settings(summaries),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>Load test of '
        f"{html.escape(targets)}</title><style>{_STYLE}</style></head>\n<body>\n"
        + "\n".join(body)
        + "\n</body></html>\n"
    )


def _verdict(summaries: Sequence[Summary]) -> str:
    limits = [parse_condition(text) for text in (summaries[0].limits if summaries else ())]
    rates = [summary for summary in summaries if summary.info.rate is not None]
    lines = [find_knee(rates, limits).text] if len(rates) > 1 else []
    lines += [f"{s.info.name}: {s.verdict}." for s in summaries if s.verdict != "valid"]
    kind = "verdict bad" if any(summary.info.invalid for summary in summaries) else "verdict"
    shown = "<br>".join(map(html.escape, lines or ["Valid." if summaries else "No runs."]))
    return f'<p class="{kind}">{shown}</p>'


def _table(table: Rows) -> str:
    def cells(row: Iterable[str], tag: str) -> str:
        kinds = (' class="name"' if place < table.num_names else "" for place in range(len(table.headings)))
        return "".join(
            f"<{tag}{kind}>{html.escape(text)}</{tag}>" for text, kind in zip(row, kinds, strict=True)
        )

    rows = "".join(f"<tr>{cells(row, 'td')}</tr>\n" for row in table.rows)
    title, head = html.escape(table.title), cells(table.headings, "th")
    return f"<h2>{title}</h2>\n<table><thead><tr>{head}</tr></thead>\n<tbody>{rows}</tbody></table>"


def _image(path: Path) -> str:
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    return f'<img alt="{html.escape(path.stem)}" src="data:image/png;base64,{data}">'


def _remarks(summaries: Sequence[Summary]) -> str:
    """Notes, where client and server count differently, and the errors that requests met."""
    remarks = []
    for summary in summaries:
        said = [*summary.notes, *(f"counts differ: {text}" for text in summary.info.count_differences)]
        said += [f"{number} x {message}" for message, number in summary.errors]
        remarks += [f"<li>{html.escape(f'{summary.info.name}: {text}')}</li>" for text in said]
    return f"<h2>Remarks</h2><ul>{''.join(remarks) or '<li>none</li>'}</ul>"


def _settings(summaries: Sequence[Summary]) -> list[str]:
    """What all runs share is said once: the environment, the workload, the options."""
    tables = []
    for title, settings in (
        ("Environment", [summary.info.environment for summary in summaries]),
        ("Workload and options", [_options(summary) for summary in summaries]),
    ):
        names = sorted({name for each in settings for name in each})
        rows = [(name, _shared([str(each.get(name, "")) for each in settings])) for name in names]
        tables.append(_table(Rows(title=title, headings=("", "value"), rows=tuple(rows), num_names=2)))
    return tables


def _options(summary: Summary) -> Mapping[str, object]:
    info = summary.info
    given = {
        "arrival": info.arrival,
        "workload": info.workload,
        "seed": info.seed,
        "started": info.started_at,
    }
    given |= {"limits": ", ".join(summary.limits) or "none", "client processes": info.num_processes}
    return given | {f"--{name.replace('_', '-')}": value for name, value in info.arguments.items()}


def _shared(values: Sequence[str]) -> str:
    return values[0] if len(set(values)) == 1 else "; ".join(values)

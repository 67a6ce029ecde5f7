"""Files: summary.json, PNGs, the page, the comparison."""

import json
from html.parser import HTMLParser
from pathlib import Path

import pytest
from matplotlib.image import imread
from rich.console import Console

from benchmarks.loadtest.compare import compare
from benchmarks.loadtest.errors import OptionError
from benchmarks.loadtest.html import write_report
from benchmarks.loadtest.records import RequestRecord, RunInfo, write_records
from benchmarks.loadtest.summary import Summary, analyse, summarize
from tests.benchmarks.load_report_cases import LIMIT, even_queue, refused, run_info

PLOTS = {"goodput", "itl", "pareto", "throughput", "timeline", "ttft"}


def _run(folder: Path, records: list[RequestRecord], info: RunInfo) -> Summary:
    folder.mkdir(parents=True)
    write_records(folder / "records.jsonl", records)
    (folder / "info.json").write_text(info.to_json())
    return summarize(folder, [LIMIT])


class _Page(HTMLParser):
    """All that a page refers to, its text, and whether its elements are closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.references: list[str] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in ("script", "link", "iframe", "object")
        self.references += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data")]
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_a_summary_survives_its_file(tmp_path: Path) -> None:
    summary = _run(tmp_path / "run", even_queue(12.0), run_info(12.0, loop_lag=(0.1,)))
    assert Summary.from_json((tmp_path / "run" / "summary.json").read_text()) == summary
    assert json.loads(summary.to_json())["info"]["environment"] == {"python": "3.11"}


def test_the_same_records_give_the_same_bytes(tmp_path: Path) -> None:
    records = even_queue(12.0)
    one, two = analyse(records, run_info(12.0)), analyse(records[::-1], run_info(12.0))
    assert one.to_json() == two.to_json()
    pages = [write_report(tmp_path / name, [summary]) for name, summary in (("one", one), ("two", two))]
    assert pages[0].read_bytes() == pages[1].read_bytes()


def test_a_report_is_one_page_and_plots(tmp_path: Path) -> None:
    summaries = [
        _run(tmp_path / f"rate-{rate:g}", even_queue(rate), run_info(rate, name=f"<b>{rate:g} & co</b>"))
        for rate in (12.0, 8.0)
    ]
    path = write_report(tmp_path, summaries)
    page = _Page(path.read_text(encoding="utf-8"))
    assert page.open == []
    assert len(page.references) == len(PLOTS)
    assert all(reference.startswith("data:image/png;base64,") for reference in page.references)
    assert "url(" not in path.read_text(encoding="utf-8")
    text = " ".join(page.texts)
    rows = text[text.index("Runs (steady state)") :]
    assert "Knee (ttft_p99<=500ms): 8 req/s." in text
    assert rows.index("<b>8 & co</b>") < rows.index("<b>12 & co</b>")
    assert "--num-requests" in text
    for name in PLOTS:
        pixels = imread(tmp_path / "plots" / f"{name}.png")
        assert pixels.shape[0] > 200
        assert pixels.std() > 0.01  # something is drawn


@pytest.mark.parametrize(("num_failed", "rate"), [(0, None), (1, 5.0), (50, None), (50, 5.0)])
def test_runs_without_an_answer_say_so(tmp_path: Path, num_failed: int, rate: float | None) -> None:
    lost = [refused(index, index / 5, "failed", after=0.1) for index in range(num_failed)]
    summary = _run(tmp_path / "run", lost, run_info(rate, num_planned=50))
    assert summary.verdict == "nothing succeeded"
    assert Summary.from_json(summary.to_json()) == summary
    assert summary.steady.ttft is None
    assert (
        "nothing was sent" if not num_failed else f"none of {num_failed} requests succeeded"
    ) in summary.notes
    text = write_report(tmp_path, [summary]).read_text(encoding="utf-8")
    assert "nothing succeeded" in text
    assert ("50 x RESOURCE_EXHAUSTED: full" in text) is (num_failed == 50)
    compare([tmp_path / "run"], tmp_path / "plots")


def test_a_report_of_nothing_says_so(tmp_path: Path) -> None:
    assert "No runs." in write_report(tmp_path, []).read_text(encoding="utf-8")


def test_sweeps_stand_side_by_side(tmp_path: Path) -> None:
    for of, rates in (("ours", (5.0, 12.0)), ("peer", (5.0,))):
        for rate in rates:
            _run(tmp_path / of / f"rate-{rate:g}", even_queue(rate), run_info(rate))
    table = compare([tmp_path / "ours", tmp_path / "peer" / "rate-5" / "summary.json"], tmp_path / "plots")
    console = Console(width=240)
    with console.capture() as captured:
        console.print(table)
    lines = [line.split() for line in captured.get().splitlines() if "req/s," in line]
    assert [(line[0], line[1]) for line in lines] == [("ours", "5.0"), ("rate-5", "5.0"), ("ours", "12.0")]
    assert {path.stem for path in (tmp_path / "plots").iterdir()} == PLOTS - {"timeline"}


def test_a_comparison_names_what_it_cannot_read(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"compare .*: holds no summary\.json"):
        compare([tmp_path])
    with pytest.raises(OptionError, match=r"absent\.json: No such file"):
        compare([tmp_path / "absent.json"])
    for text in ("not json", "[]", "{}"):
        (tmp_path / "summary.json").write_text(text)
        with pytest.raises(OptionError, match="must be a summary"):
            compare([tmp_path])


def test_equal_names_are_told_apart(tmp_path: Path) -> None:
    for of in ("a", "b"):
        _run(tmp_path / of / "sweep", even_queue(5.0), run_info(5.0))
    console = Console(width=240)
    with console.capture() as captured:
        console.print(compare([tmp_path / "a" / "sweep", tmp_path / "b" / "sweep"]))
    assert "a/sweep" in captured.get()
    assert "b/sweep" in captured.get()

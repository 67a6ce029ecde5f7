"""Tell what this machine has for serving: GPU, driver, libraries, plan cache; what would run, and what not.

Exit code 0 if something can serve.
"""

import argparse
import sys
from typing import TYPE_CHECKING

from engine.serving.commands.serve_options import add_plan_dir

if TYPE_CHECKING:
    from rich.console import Console

    from engine.serving.doctor import Finding


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_plan_dir(parser.add_argument)


def run(args: argparse.Namespace) -> int:
    from rich.console import Console

    try:
        from engine.serving.doctor import examine
    except (ImportError, OSError) as error:
        print(f"inflight: nothing can serve: {error}. Do: pip install inflight-engine again", file=sys.stderr)
        return 1
    console = Console(highlight=False, markup=False)
    show = _show_table if console.is_terminal else _show_lines
    show(console, examine(args.plan_dir))
    return 0


def _show_table(console: "Console", findings: "list[Finding]") -> None:
    from rich.table import Table

    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for finding in findings:
        is_well = finding.problem is None
        table.add_row(
            "✓" if is_well else "!", finding.name, finding.found, style=None if is_well else "yellow"
        )
        if finding.problem is not None:
            table.add_row("", "", finding.problem)
    console.print(table)


def _show_lines(console: "Console", findings: "list[Finding]") -> None:
    for finding in findings:
        print(f"{finding.name:<18}{finding.found}")
        for line in (finding.problem or "").splitlines():
            print(f"{'':<18}! {line.strip()}")

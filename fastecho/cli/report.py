"""`fastecho report`: saved runs of load side by side, or as one."""

from __future__ import annotations

import click

from . import extra


@click.command()
@click.argument("files", metavar="FILE...", nargs=-1, required=True)
@click.option("--merge", is_flag=True, help="Show all as if they were one run.")
@click.option(
    "--plot",
    metavar="FILE",
    type=click.Path(),
    help="Draw latency by percentile and over time: FILE.png or FILE.svg.",
)
def report(files: tuple[str, ...], merge: bool, plot: str | None) -> int:
    """Compare or merge what fastecho load --json has saved.

    Each run stands beside its quotient with the first. Merged, histograms and counts are added;
    rates of runs at the same time add up.
    """
    with extra("measure", "report"):
        from .. import report as reports
        from . import tables
    if plot is not None:
        with extra("plot", "report --plot"):
            from .. import plot as plots
        plots.check(plot)
    runs = [reports.read(path) for path in files]
    if merge and len(runs) > 1:
        runs = [reports.merge(runs)]
    if len(runs) == 1:
        tables.show(runs[0])
    else:
        tables.compare(runs)
    if plot is not None:
        plots.draw(runs, plot)
    return 0

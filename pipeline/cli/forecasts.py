"""What a run will cost, and what it has cost, as tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from pipeline.cli.text import print_table

if TYPE_CHECKING:
    from pipeline.runtime.forecast import Forecast, StageAccount
    from pipeline.runtime.run import Run


def forecast_of(run: Run, cost: Path, calibration: Path | None) -> Forecast:
    """Return what a run will cost at these prices."""
    from pipeline.runtime.calibrate import Calibration
    from pipeline.runtime.forecast import Forecast, Prices

    rates = None if calibration is None else Calibration.load(calibration)
    return Forecast.of(run, Prices.load(cost), rates)


def accounted(run: Run, cost: Path | None, calibration: Path | None) -> list[StageAccount]:
    """Return what a run took beside its forecast; nothing without prices."""
    if cost is None:
        return []
    from pipeline.runtime.calibrate import Calibration
    from pipeline.runtime.forecast import Prices, account

    rates = None if calibration is None else Calibration.load(calibration)
    return account(run, Prices.load(cost), rates)


def print_account(account: Sequence[StageAccount]) -> None:
    """Print what stages took beside what was expected."""
    if not account:
        return
    rows = [
        [
            a.output,
            a.pool,
            f"{a.done}/{a.tasks}",
            f"{a.expected_hours:,.3g}",
            f"{a.hours:,.3g}",
            "" if a.hours_at_end is None else f"{a.hours_at_end:,.3g}",
            f"{a.stored_gb:,.3g}",
            f"{a.on_demand:,.2f}",
            f"{a.spot:,.2f}",
        ]
        for a in account
    ]
    columns = [
        *("layer", "pool", "tasks", "h forecast", "h so far", "h at this pace"),
        *("GB stored", "machines on demand", "spot"),
    ]
    print_table(columns, rows)
    forecast, hours = (
        sum(getattr(a, name) for a in account) for name in ("expected_hours", "hours")
    )
    money = sum(a.on_demand for a in account), sum(a.spot for a in account)
    typer.echo(
        f"{hours:,.4g} worker hours so far, {forecast:,.4g} forecast in all; machines "
        f"{money[0]:,.2f} on demand, {money[1]:,.2f} spot"
    )


def print_forecast(priced: Forecast) -> None:
    """Print what each stage will take, and all of it, with how far off that may be."""
    expected, low, high = priced.total
    currency = priced.prices.currency
    rows = [
        [
            s.output,
            s.pool,
            s.costs.tasks,
            f"{s.costs.hours:,.4g}",
            f"{s.low:.2g} - {s.high:.2g}",
            f"{s.costs.moved_gb:,.4g}",
            f"{s.costs.stored_gb:,.4g}",
            f"{(s.costs.reads + s.costs.writes) / 1e6:,.3g}",
            f"{s.costs.on_demand_money:,.2f}",
            f"{s.costs.spot_money:,.2f}",
            f"{s.costs.wall_h:,.3g}",
            f"{s.peak_memory / 1e9:,.3g}",
            s.basis,
        ]
        for s in priced.stages
    ]
    columns = [
        *("layer", "pool", "tasks", "worker h", "times", "GB moved", "GB kept"),
        *("M requests", f"{currency} on demand", "spot", "wall h", "GB of a task", "basis"),
    ]
    print_table(columns, rows)
    hours = ", ".join(f"{h:,.4g} {pool} hours" for pool, h in expected.worker_hours.items())
    fleet = ", ".join(f"{n} {pool}" for pool, n in priced.prices.fleet.items())
    typer.echo(
        f"in all {expected.tasks:,} tasks, {hours}, {expected.moved_gb:,.4g} GB moved, "
        f"{expected.stored_gb:,.4g} GB kept, {expected.messages / 1e6:,.3g} M messages\n"
        f"on demand {expected.on_demand_money:,.2f} {currency} "
        f"({low.on_demand_money:,.2f} to {high.on_demand_money:,.2f}), "
        f"spot {expected.spot_money:,.2f} ({low.spot_money:,.2f} to "
        f"{high.spot_money:,.2f}); prices of {priced.prices.date}\n"
        f"{expected.wall_h / 24:,.3g} days ({low.wall_h / 24:,.3g} to "
        f"{high.wall_h / 24:,.3g}) on workers: {fleet}"
    )

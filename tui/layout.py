"""How the overview shares the rows of a screen. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from tui.bars import TWO_COLUMNS, WIDE


@dataclass(frozen=True)
class Plan:
    """Rows of each zone, and whether it is parted from the one above by a blank line.

    `gpu_rows`: of the bars without their heading; `table_rows`: of the models without theirs.
    """

    tall: bool
    gpu_columns: int
    gpu_gap: bool
    gpu_rows: int
    table_rows: int
    why_rows: int
    events: int
    top_gap: bool
    wake_gap: bool
    events_gap: bool
    bottom_gap: bool


def gpu_height(count: int, columns: int, tall: bool, gap: bool) -> int:
    """Rows of the bars, without the heading."""
    deep = -(-count // columns)
    return deep * (3 if tall else 2) + (max(deep - 1, 0) if gap else 0)


def plan(width: int, height: int, gpus: int, models: int, reserved: int = 0) -> Plan:
    """Fits the zones into `height` rows; `reserved` are taken (a message, the filter).

    As rows shrink: events 5 → 1, blank lines, bars 2 → 1 rows; then models and bars scroll. WHY and NEXT stay.
    """
    gpus, models = max(gpus, 1), max(models, 1)  # else a line says that there are none
    columns = 2 if gpus >= 8 and width >= TWO_COLUMNS else 1
    least_table = min(models, 4)
    # header, footer, headings of GPUs and models, the blank line between them and the one before WHY
    fixed = 6 + reserved
    choices = [
        (tall, gap, why, events, blanks)
        for tall, gap, why, events, blanks in (
            (True, True, 3, 5, 4), (True, True, 3, 4, 4), (True, True, 3, 3, 4),
            (True, True, 3, 2, 3), (True, True, 3, 1, 2), (True, True, 3, 1, 0),
            (False, True, 3, 3, 3), (False, True, 3, 1, 0), (False, False, 3, 1, 0),
        )
        if not (tall and (gpus >= 4 or width < WIDE))
    ]  # fmt: skip
    if width < WIDE:
        choices = [(False, True, 4, 5, 4), (False, True, 4, 3, 2), *choices]
    elif gpus >= 4:
        choices = [(False, True, 3, 5, 4), *choices]
    for tall, gap, why, events, blanks in choices:
        bars = gpu_height(gpus, columns, tall, gap)
        if fixed + bars + models + why + 1 + events + blanks <= height:
            break
    rest = height - fixed - why - 1 - events - blanks
    if bars > rest - least_table:
        bars = max(rest - max(least_table, rest // 2), 1)
    table = rest - bars
    if table > models and blanks == 4:
        # room to spare goes to the events
        more = table - models
        events, table = events + more, table - more
    return Plan(
        tall=tall,
        gpu_columns=columns,
        gpu_gap=gap,
        gpu_rows=bars,
        table_rows=max(table, 1),
        why_rows=why,
        events=events,
        top_gap=blanks >= 1,
        wake_gap=blanks >= 2,
        events_gap=blanks >= 3,
        bottom_gap=blanks >= 4,
    )

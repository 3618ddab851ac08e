"""What the tables share: selecting records, and formatting numbers and Markdown."""

from collections.abc import Callable


def newest(records: list[dict], *keys: str) -> list[dict]:
    """The last record of each device and of each value of `keys`, without smoke runs."""
    return list({(r["device"], *(r[key] for key in keys)): r for r in records if not r["smoke"]}.values())


def markdown(head: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown: column heads and rows of cells."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def where(record: dict) -> str:
    """Device, jax version, commit and date of a record."""
    device = (
        f"{record['cores']} cores of {record['cpu']}" if record["platform"] == "cpu" else record["device"]
    )
    commit = (record["commit"] or "unknown")[:9] + (" with changes" if record["dirty"] else "")
    return f"{device}, jax {record['jax']}, commit {commit}, {record['date'][:10]}"


def unmeasured(command: str) -> str:
    """The text in place of a table without results."""
    return f"Not measured yet: `{command}`."


def mean_of(records: list[dict], value: Callable[[dict], float]) -> str:
    """Mean over seeds, with the value of each seed in brackets where there are several."""
    values = [value(record) for record in records]
    digits = 1 if sum(values) < 100 * len(values) else 0
    digits = 2 if sum(values) < 1.0 * len(values) else digits
    each = f" ({', '.join(f'{v:.{digits}f}' for v in values)})" if len(values) > 1 else ""
    return f"{sum(values) / len(values):.{digits}f}{each}"


def seed_note(count: int) -> str:
    """How many seeds a mean covers."""
    return "One seed" if count == 1 else f"Means over {count} seeds (each in brackets)"


def shown(value: float | None, digits: int = 0) -> str:
    """A number with some digits, a dash for None."""
    return "–" if value is None else f"{value:.{digits}f}"


def with_target(value: float | None, target: float | None, digits: int = 0) -> str:
    """A measured value and, after a slash, its target where there is one."""
    return shown(value, digits) + (f" / {target:g}" if target is not None and value is not None else "")

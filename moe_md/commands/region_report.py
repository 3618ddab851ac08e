"""What `moe-md region` prints: the table of regions, and the recommended one."""

HEAD = ("expensive", "cheap", "speed-up <", "selected", "all", "largest", "out of domain")
ERRORS = ("selected", "all", "largest")


def size_text(scanned: str, size: float) -> str:
    """The size of a region in words.

    Args:
        scanned: `region_core` or `region_layers`.
        size: Å, or number of layers.
    """
    return f"{size:g} layers" if scanned == "region_layers" else f"a core of {size:g} Å"


def table(content: dict) -> list[str]:
    """Shares, the bound of the speed-up, and errors of each region, as lines of text.

    Args:
        content: of `region.json`.
    """
    cells = [
        (
            f"{row['size']:g}",
            f"{row['expensive_share']:.1%}",
            f"{row['cheap_share']:.1%}",
            f"{row['speedup']:.2f}",
            *(f"{row[f'error_{name}_meV_per_A']:.1f}" for name in ERRORS),
            f"{row['out_of_domain']:.3g}",
        )
        for row in content["regions"]
    ]
    rows = [("layers" if content["scanned"] == "region_layers" else "core, Å", *HEAD), *cells]
    widths = [max(map(len, column)) for column in zip(*rows)]
    return [
        *("  ".join(cell.rjust(width) for cell, width in zip(row, widths)) for row in rows),
        "expensive, cheap: share of the atoms on each expert; atoms in the blend are on both",
        "speed-up: over the expensive expert alone, without lists, gates and integrator: a bound",
        "selected, all, largest: force difference to the expensive expert, meV/Å, as root mean square over",
        f"components of the {content['n_selected']:g} atoms {content['selected']}, and of all"
        f" {content['n_atoms']}; and the norm of the largest",
        "out of domain: atoms of the cheap expert that are outside its domain",
    ]


def advice(content: dict) -> list[str]:
    """The recommended region, or the remedy where none is good enough, as lines of text.

    Args:
        content: of `region.json`.
    """
    limit = f"{content['tolerance_meV_per_A']:.3g} meV/Å ({content['tolerance_source']})"
    chosen, last = content["recommended"], content["regions"][-1]
    if chosen is None:
        return [
            f"no region keeps the error on the selected atoms below {limit}: the largest,"
            f" {size_text(content['scanned'], last['size'])}, has {last['error_selected_meV_per_A']:.3g}."
            " Compare larger ones with --values, and with --repeat where the box is narrow; or train the pair"
            " to agree on such structures, raise --tolerance, or use the expensive expert alone."
        ]
    row = next(row for row in content["regions"] if row["size"] == chosen["size"])
    lines = [f"recommended, the fastest with an error below {limit}:", f"  {chosen['command']}"]
    if row["speedup"] <= 1:
        lines.append("It is no faster than the expensive expert alone: use that, or a larger structure.")
    if row["out_of_domain"]:
        inside = [r["size"] for r in content["regions"] if r["size"] > row["size"] and not r["out_of_domain"]]
        remedy = f": take {size_text(content['scanned'], inside[0])}, which has none" if inside else ""
        lines.append(
            f"There the cheap expert has {row['out_of_domain']:.3g} atoms outside its domain, where it is"
            f" untrained{remedy}."
        )
    return lines

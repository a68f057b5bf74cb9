"""Plots of a line's series, one SVG file a plot. Without matplotlib (the extra `bench`) it says so, no more."""

from __future__ import annotations

from pathlib import Path

from bench.report import Line, Series

LOGARITHMIC_FROM = 50.0
"""Axes whose largest value is so many times the smallest are drawn logarithmically."""


def draw(line: Line, folder: Path) -> list[Path]:
    """Write the plots; the files."""
    if not line.series:
        return []
    try:
        import matplotlib as mpl
    except ImportError:
        print("no plots: matplotlib is not installed (pip install 'ondol[bench]')")
        return []
    mpl.use("Agg")
    return [_draw_one(line, plot, folder) for plot in dict.fromkeys(series.plot for series in line.series)]


def _draw_one(line: Line, plot: str, folder: Path) -> Path:
    from matplotlib import pyplot

    curves = [series for series in line.series if series.plot == plot]
    figure, axes = pyplot.subplots(figsize=(7.5, 4.5))
    for series in curves:
        xs, ys = zip(*series.points, strict=True)
        axes.plot(xs, ys, marker="o" if len(xs) <= 20 else None, linewidth=1.2, label=series.name)
    axes.set_xlabel(curves[0].x_label)
    axes.set_ylabel(curves[0].y_label)
    axes.set_title(f"{line.title}: {plot}", fontsize=10)
    if _is_wide(curves, 0):
        axes.set_xscale("log")
    if _is_wide(curves, 1):
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)
    figure.tight_layout()
    file = folder / f"{line.line}-{plot.replace(' ', '-')}.svg"
    figure.savefig(file, metadata={"Date": None})
    pyplot.close(figure)
    return file


def _is_wide(curves: list[Series], axis: int) -> bool:
    values = [point[axis] for series in curves for point in series.points]
    return min(values) > 0 and max(values) / min(values) >= LOGARITHMIC_FROM

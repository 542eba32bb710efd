"""Cost as work grows: our step over batch size and image size, each point in a fresh process; images/cost.png."""

import statistics

from matplotlib.ticker import FuncFormatter, NullFormatter

from stn_cifar.drawing import BLUE, GREY, ORANGE, page

from .children import started, take_turns
from .loops import rates, spread


def run(settings):
    """The table, the figure, and all raw values."""
    points = [dict(batch_size=size, image_size=32) for size in settings.batch_sizes]
    points += [dict(batch_size=settings.batch_size, image_size=size) for size in settings.image_sizes]
    for point in points:
        per_round = max(3 * point["batch_size"], settings.growth_images * 32**2 // point["image_size"] ** 2)
        steps = per_round // point["batch_size"]
        options = dict(settings.fields, arm="ours", noise=True, steps=steps, count=steps * point["batch_size"], **point)
        with started({"ours": options}) as children:  # one alone: memory and time are its own
            point["raw"] = take_turns(children, settings.rounds)["ours"]
        point["images_per_second"] = statistics.median(rates(point["raw"]))
        point["step_mb"] = max(r["peak_mb"] for r in point["raw"]) - point["raw"][0]["before_mb"]
        point["peak_mb"] = max(r["peak_mb"] for r in point["raw"])
        settings.say(f"growth: batch {point['batch_size']}, {point['image_size']} pixels")
    settings.images.mkdir(parents=True, exist_ok=True)
    figure(points, f"Cost as work grows · tutorial · {settings.machine}").savefig(settings.images / "cost.png")
    return dict(rounds=settings.rounds, points=points, figure="cost.png", tables=[table(points, settings)])


def table(points, settings):
    """One row a point."""
    rows = [[f"{p['batch_size']:,}", str(p["image_size"]), p["raw"][0]["precision"], spread(rates(p["raw"])),
             f"{p['peak_mb']:,.0f}", f"{p['step_mb']:,.0f}"] for p in points]
    return dict(title=f"Cost as work grows: medians of {settings.rounds} rounds (least to most), a fresh process each",
                columns=["batch size", "image size", "arithmetic", "images/s", "peak memory, MB", "of which training"],
                rows=rows, note="")


def figure(points, title):
    """Speed over batch size, memory over batch size, speed over image size."""
    fig = page(3.1, title, "Large batches should cost no speed, and memory no more than in proportion (dotted).")
    batches = [p for p in points if p["image_size"] == 32]
    sizes = sorted((p for p in points if p["batch_size"] == points[-1]["batch_size"]), key=lambda p: p["image_size"])
    axes = fig.subplots(1, 3)
    x = [p["batch_size"] for p in batches]
    axes[0].plot(x, [p["images_per_second"] for p in batches], color=BLUE, marker="o", markersize=4)
    axes[0].set(xscale="log", xlabel="batch size", ylim=(0, None))
    axes[0].set_title("images/s", fontsize=10)
    axes[1].plot(x, [p["step_mb"] for p in batches], color=ORANGE, marker="s", markersize=4)
    axes[1].plot(x, [batches[-1]["step_mb"] * b / x[-1] for b in x], color=GREY, linestyle=":")
    axes[1].set(xscale="log", yscale="log", xlabel="batch size")
    axes[1].set_title("memory that training takes, MB", fontsize=10)
    x = [p["image_size"] for p in sizes]
    axes[2].plot(x, [p["images_per_second"] for p in sizes], color=BLUE, marker="o", markersize=4)
    axes[2].plot(x, [sizes[0]["images_per_second"] * (x[0] / s) ** 2 for s in x], color=GREY, linestyle=":",
                 label="in proportion to pixels")
    axes[2].set(xticks=x, xlabel=f"image size, pixels (batch {sizes[0]['batch_size']})", ylim=(0, None))
    axes[2].set_title("images/s", fontsize=10)
    axes[2].legend(fontsize=8, loc="upper right")
    plain = FuncFormatter(lambda value, _: f"{value:,.0f}")
    for ax in axes:
        ax.yaxis.set_major_formatter(plain)
        ax.grid(alpha=0.3)
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(labelsize=8)
    for ax in axes[:2]:
        ax.set_xticks([p["batch_size"] for p in batches][::2], [f"{p['batch_size']}" for p in batches][::2])
        ax.xaxis.set_minor_formatter(NullFormatter())
    return fig

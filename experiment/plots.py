"""Pictures of a run. matplotlib is imported late, because that takes a second."""

import io


def curves_png(metrics):
    """The bytes of curves.png, drawn from `metrics`, the content of metrics.json; needs no display."""
    from matplotlib.figure import Figure

    figure, picture = Figure(figsize=(10, 4), layout="constrained"), io.BytesIO()
    draw_curves(figure, metrics)
    figure.savefig(picture, dpi=120)
    return picture.getvalue()


def show_curves(metrics):
    """Show the curves in a window and wait until it is closed."""
    import matplotlib.pyplot as plt

    draw_curves(plt.figure(figsize=(10, 4), layout="constrained"), metrics)
    plt.show()


def draw_curves(figure, metrics):
    """Draw loss and accuracy over the epochs into the empty `figure`, in training and on the evaluated split."""
    split = "test" if metrics["holdout"] is None else "holdout"
    epochs = [epoch["epoch"] for epoch in metrics["epochs"]]
    left, right = figure.subplots(1, 2)
    for axes, quantity, unit in ((left, "loss", ""), (right, "accuracy", " (%)")):
        for name in ("train", split):
            values = [epoch[f"{name}_{quantity}"] for epoch in metrics["epochs"]]
            smoothed = name == "train" and quantity == "loss" and metrics["config"]["label_smoothing"] > 0
            axes.plot(epochs, values, marker="o", label=name + " (smoothed labels)" * smoothed)
        axes.set(xlabel="epoch", ylabel=quantity + unit)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
    if metrics["target"] is not None:
        right.axhline(metrics["target"], color="grey", linestyle="--", label=f"target {metrics['target']:g}%")
    left.legend(loc="upper right")
    right.legend(loc="lower right")
    title = f"{metrics['recipe']} on {metrics['dataset']}: {metrics['params']} parameters, seed {metrics['seed']}"
    # A folder's name may hold "$", which is not mathematics here, or bytes that are not text.
    figure.suptitle(title.encode(errors="backslashreplace").decode(), parse_math=False)

"""Results as Markdown tables."""


def products(rows):
    header = "| model | p | n | what | vectors | first s | seconds | passes | passes each | of processor time | of the peak | µs / example |"
    lines = [header, "|---" * 12 + "|"]
    for r in rows:
        cells = [""] * 6
        if r["seconds"] is not None:
            each = 1e6 * r["seconds"] / r["n"]
            cells = [f"{r['seconds']:.3f}", f"{r['passes']:.2f}", f"{r['passes_each']:.3f}"]
            peak = f"{r['peak']:.0%}" if r["peak"] else ""
            cells += [f"{r['processor_passes_each']:.3f}", peak, f"{each:.0f}"]
        start = [r["model"], f"{r['p']:,}", f"{r['n']:,}", r["what"], r["vectors"]]
        lines.append(_line([*start, f"{r['first']:.2f}", *cells]))
    return "\n".join(lines)


def calls(rows):
    lines = [
        "| model | n x test | method | first s | later s | gradients | solve | scores | rest | "
        "passes | solver's passes | residual |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        stages = [r["example_gradients"], r["solve"], r["scores"]]
        seconds = [r["first"], r["whole"], *stages, r["whole"] - sum(stages)]
        lines.append(
            _line(
                [
                    r["model"],
                    f"{r['n']:,} x {r['n_test']:,}",
                    r["options"]["method"],
                    *(f"{s:.2f}" for s in seconds),
                    f"{r['passes']:.0f}",
                    f"{r['solver_passes']:.0f}",
                    f"{r['residual']:.0e}",
                ]
            )
        )
    return "\n".join(lines)


def memory(rows):
    lines = [
        "| what | model | p | n | vectors | peak MB | result MB | bound MB | |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        length = r["p"] if r["what"] == "hvp" else r["n"]
        result = 4 * length * r["vectors"] / 1e6
        start = [r["what"], r["model"], f"{r['p']:,}", f"{r['n']:,}", r["vectors"]]
        sizes = [f"{size:.0f}" for size in (r["megabytes"], result, r["bound"])]
        lines.append(_line([*start, *sizes, "" if r["megabytes"] <= r["bound"] else "EXCEEDED"]))
    return "\n".join(lines)


def _line(cells):
    return "| " + " | ".join(map(str, cells)) + " |"

"""Results of runs that never ran, shared by the tests of this folder."""


def result(model, *, condition="mix", init_from="", steps=10, seed=0, rows=(), **train):
    return {
        "config": {
            "seed": seed,
            "init_from": init_from,
            "model": {"name": model},
            "data": {"name": "folder", "image_size": 96},
            "train": {"condition": condition, "steps": steps, "batch_size": 64, **train},
        },
        "step": steps,
        "seed": seed,
        "parameters": 1234,
        "rows": [make_row(*row) for row in rows],
    }


def make_row(condition, policy, top1, budget=None):
    return {
        "condition": condition,
        "policy": policy if budget is None else f"{policy}:{budget}",
        "tokens": 64,
        "top1": top1,
        "top5": top1 + 0.1,
        "n": 1000,
        "ci95": [top1 - 0.03, top1 + 0.03],
        "difference": None,
        "difference_ci95": None,
        "gflops": 1.0,
        "images_per_s": 10.0,
        "loss": 1.5,
        "ece": 0.05,
    }

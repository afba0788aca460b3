"""Stand-ins, their gate, and the split code -> inference.md, inference.json.

    python benchmarks/bench_inference.py --work FOLDER --out FILE.json --page FILE.md

Parts leave what they find in FOLDER. `size` chooses widths by measured seconds, which
`train` takes, and `seconds` measures what was trained: both take seconds, on a quiet
machine. README.md defines the figures.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import harness
import numpy as np
import torch
from inference_page import page
from inference_tasks import TASKS, Data, Task, trained
from torch import Tensor, nn

from codedgrad.inference.codes import SplitLinear
from codedgrad.inference.codes.split import relative_error
from codedgrad.inference.learned import Distillation, GateSettings, StandIn, distil
from codedgrad.inference.learned.bounds import upper
from codedgrad.inference.learned.distil import cost_of, sized
from codedgrad.inference.learned.stages import through
from codedgrad.inference.learned.subject import subject_of
from codedgrad.inference.search import Search, design

PARTS = ("size", "train", "codes", "seconds", "write")
COSTS = {"1/4": 1 / 4, "1/8": 1 / 8, "1/16": 1 / 16}
STEPS = {"1/4": 3000, "1/8": 3000, "1/16": 6000}  # small networks learn longer
CODE_STEPS = 600  # of everything that is trained for the table of codes
QUERIES = 64  # at once, where seconds are measured
ERROR = 0.005  # that trusted answers may have


def main() -> None:
    """Train, or time and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder for models")
    parser.add_argument("--part", choices=PARTS)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--costs", nargs="+", choices=COSTS, default=list(COSTS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--page", type=Path, help="page to write")
    parser.add_argument("--toy", action="store_true", help="seconds, not minutes")
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.work.mkdir(parents=True, exist_ok=True)
    seeds = 1 if args.toy else args.seeds
    parts = (args.part,) if args.part else PARTS
    models = [(name, seed) for name in args.tasks for seed in range(seeds)]
    if "size" in parts:
        size(args)
    for part, work in (("train", train), ("codes", compare), ("seconds", timed)):
        if part in parts:
            for name, seed in models:
                work(name, seed, args)
    if "write" in parts:
        write(models, args)


def write(models: list[tuple[str, int]], args: argparse.Namespace) -> None:
    """Write the JSON and the page from what the other parts have left."""

    def read(path: Path) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(path.read_text())
        return found

    rows = [
        read(args.work / f"{name}-{seed}" / f"{label.replace('/', '-')}.json")
        for name, seed in models
        for label in COSTS
    ]
    results = {
        "stand_ins": rows,
        "codes": [read(args.work / f"codes-{name}.json") for name in args.tasks],
        "split": [split(k) for k in (2, 4, 8)],
    }
    harness.write(args.out, "inference", results)
    if args.page:
        args.page.write_text(page(results))


def size(args: argparse.Namespace) -> None:
    """Choose widths, and whether the first stage is shared, by measured seconds."""
    found: dict[str, dict[str, tuple[int, bool]]] = {}
    for name in args.tasks:
        model = TASKS[name].model().eval()
        x = TASKS[name].data(0, toy=True).train[0][:QUERIES]
        with torch.no_grad():
            subject = subject_of(model, x, None, "logits")
            for label, cost in COSTS.items():
                made = sized(subject, cost, Distillation(timed=QUERIES))
                found.setdefault(name, {})[label] = (made.width, made.shared > 0)
    print(json.dumps(found), flush=True)
    (args.work / "sizes.json").write_text(json.dumps(found))


def train(name: str, seed: int, args: argparse.Namespace) -> None:
    """Train one model and its stand-ins, and write them with what they answer."""
    folder = args.work / f"{name}-{seed}"
    folder.mkdir(exist_ok=True)
    task = TASKS[name]
    data = task.data(seed, args.toy)
    if not (folder / "model.pt").exists():
        model = trained(task, data, seed, 30 if args.toy else 700)
        torch.save(model.state_dict(), folder / "model.pt")
    model = read(task, folder)
    sizes = json.loads((args.work / "sizes.json").read_text())[name]
    for label in args.costs:
        cost, steps = COSTS[label], STEPS[label]
        begin = time.perf_counter()
        training = Distillation(
            steps=50 if args.toy else steps,
            timed=QUERIES,
            seed=seed,
            width=sizes[label][0],
            share=sizes[label][1],
        )
        made = distil(
            model,
            data.train[0],
            cost,
            held_out=data.held_out,
            gate=GateSettings(error=ERROR),
            training=training,
        )
        spent = time.perf_counter() - begin
        stem = folder / label.replace("/", "-")
        made.save(stem.with_suffix(".pt"))
        row = {"task": name, "seed": seed, "cost": label, "training_s": round(spent, 1)}
        row |= accuracy(made, model, data)
        if name == "digits":
            row["turned"] = turned(made, model, data)
        stem.with_suffix(".json").write_text(json.dumps(row))
        print(json.dumps(row), flush=True)


def read(task: Task, folder: Path) -> nn.Sequential:
    """Read a trained model."""
    model = task.model()
    model.load_state_dict(torch.load(folder / "model.pt", weights_only=True))
    return model.eval()


def accuracy(made: StandIn, model: nn.Sequential, data: Data) -> dict[str, Any]:
    """Return agreement, and what the gate trusts, on queries that nothing has seen."""
    x, y = data.test
    values, doubts, agreed = answers(made, model, x)
    with torch.no_grad():
        exact = torch.cat([model(part) for part in x.split(256)])
        exits, features = {}, x
        for depth in sorted(made.exits):
            features = through(list(model)[depth - 1 : depth], features)
            found, doubt = made.exit(depth, features)
            trust = doubt <= made.exits[depth].gate.threshold
            exits[depth] = {
                "agreement": float(made.agreed(found, exact).mean()),
                "trusted": float(trust.double().mean()),
            }
    trusted = doubts <= made.threshold
    wrong = (1 - agreed)[trusted]
    return {
        "width": made.width,
        "shared": made.shared,
        "model_right": float((exact.argmax(1) == y).double().mean()),
        "right": float((values.argmax(1) == y).double().mean()),
        "agreement": float(agreed.mean()),
        "trusted": float(trusted.double().mean()),
        "wrong_among_trusted": float(wrong.mean()) if len(wrong) else None,
        "upper_bound": upper(wrong.numpy()),
        "mean_doubt": float(doubts.mean()),
        "queries": len(x),
        "exits": exits,
    }


def turned(made: StandIn, model: nn.Sequential, data: Data) -> dict[str, Any]:
    """Return what happens after the images are turned by 90 degrees.

    1,000 queries come upright, then turned ones, and every exact answer is observed.
    """
    x = data.test[0]
    _, calm_doubts, calm_agreed = answers(made, model, x)
    _, doubts, agreed = answers(made, model, x.rot90(1, (2, 3)))
    rng = np.random.default_rng(0)
    began = made.threshold
    rows = rng.permutation(len(x))[:1000]
    made.observe(calm_doubts[rows], calm_agreed[rows])
    calm, alarms = made.threshold, made.alarms
    wrong_trusted = count = trusted = 0
    for row in rng.permutation(len(x))[:2000]:
        if made.threshold < 0:
            break
        count += 1
        doubt, right = float(doubts[row]), float(agreed[row])
        trusted += doubt <= made.threshold
        wrong_trusted += doubt <= made.threshold and not right
        made.observe([doubt], [right])
    fell = made.threshold < 0
    rest = rng.permutation(len(x))[:3000]
    made.observe(doubts[rest], agreed[rest])
    later = doubts <= made.threshold
    return {
        "threshold": began,
        "threshold_after_calm": calm,
        "alarms_in_calm": alarms,
        "fell_back_after": count if fell else None,
        "trusted_until_then": trusted,
        "wrong_until_then": wrong_trusted,
        "agreement": float(agreed.mean()),
        "trusted_after_3000_more": float(later.double().mean()),
        "wrong_among_these": float((1 - agreed)[later].mean()) if later.any() else None,
    }


def answers(
    made: StandIn, model: nn.Sequential, x: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the stand-in's values and doubts, and whether each is the model's."""
    with torch.no_grad():
        exact = torch.cat([model(part) for part in x.split(256)])
        found = [made(part) for part in x.split(256)]
    values = torch.cat([part[0] for part in found])
    doubts = torch.cat([part[1] for part in found])
    return values, doubts, made.agreed(values, exact)


def compare(name: str, seed: int, args: argparse.Namespace) -> None:
    """Search at a quarter of extra time, four queries a group; one seed's table."""
    if seed:
        return
    task = TASKS[name]
    data = task.data(0, args.toy)
    model = read(task, args.work / f"{name}-0")
    training = Distillation(
        steps=10 if args.toy else CODE_STEPS,
        batch=64,
        timed=QUERIES,
        width=4 if args.toy else None,
    )
    samples = (data.train[0], data.held_out, data.test[0][:4000])
    found = design(model, samples, 1 / 4, ERROR, Search(training=training))
    print(f"{name}\n{found}", flush=True)
    rows = [
        {
            "name": one.name,
            "extra": one.cost,
            "agreement": one.agreement,
            "trusted": one.trusted,
            "exact": one.exact,
            "others": one.others,
            "chosen": one is found.choice,
        }
        for one in found.candidates
    ]
    text = {"task": name, "budget": 1 / 4, "steps": training.steps, "why": found.why}
    text |= {"rows": rows, "left_out": found.left_out, "load": os.getloadavg()[0]}
    (args.work / f"codes-{name}.json").write_text(json.dumps(text))


def timed(name: str, seed: int, args: argparse.Namespace) -> None:
    """Measure the seconds of one model's stand-ins."""
    folder, task = args.work / f"{name}-{seed}", TASKS[name]
    model = read(task, folder)
    x = task.data(seed, toy=True).test[0]
    for label in args.costs:
        stem = folder / label.replace("/", "-")
        made = StandIn.load(stem.with_suffix(".pt"), model)
        row = json.loads(stem.with_suffix(".json").read_text())
        with torch.no_grad():
            row["measured"] = cost_of(made, model, x[:QUERIES])
            row["measured_one"] = cost_of(made, model, x[:1])
        stem.with_suffix(".json").write_text(json.dumps(row))
        print(name, seed, label, row["measured"], row["measured_one"], flush=True)


def split(k: int) -> dict[str, Any]:
    """Return work and error of the split code on a large linear map behind a body."""
    torch.manual_seed(k)
    body = nn.Sequential(nn.Linear(96, 384), nn.GELU(), nn.Linear(384, 384), nn.GELU())
    last = nn.Linear(384, 10_000)
    code = SplitLinear(body, last, k)
    x = torch.randn(16, k, 96)
    share = (96 * 384 + 384 * 384) / (96 * 384 + 384 * 384 + 384 * 10_000)
    with torch.no_grad():
        exact = code.model(x.flatten(0, 1)).unflatten(0, (16, k))
        errors = [
            relative_error(code.answers(x, {q})[:, q], exact[:, q]) for q in range(k)
        ]
    return {
        "k": k,
        "relative_error": max(errors),
        "extra": code.cost(x),
        "allowed": 1 / k + 1.2 * share,
        "body_share": share,
    }


if __name__ == "__main__":
    main()

"""Scaling to 16 workers measured, to 4,096 predicted -> scaling-N.json, scaling.md.

    mpirun -n 8 python benchmarks/bench_scaling.py live --out FOLDER/scaling-8.json
    python benchmarks/bench_scaling.py pass --out FOLDER/pass-resnet18.json
    python benchmarks/bench_scaling.py predict --live FOLDER --logs LOGS --out FILE.json

`live` measures weak and strong scaling of codedgrad, Horovod and DDP, and what an
exchange costs. `pass` measures ResNet-18 on 32 x 32 images. `predict` computes steps
for any number of workers, from the network fitted to the exchange and two stated ones,
the logs of published jobs (without --logs the shipped profiles) and the measured pass.
It also predicts the steps that were measured.
"""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path
from typing import Any

import scaling_check
import torch
from exchange_model import NETWORKS, Fit, Network, network_of, stated
from scaling_model import (
    CALM,
    DEFAULT,
    Job,
    Source,
    backup,
    curves,
    dropped,
    flattens_at,
    half_up_to,
    planned,
    settings_for,
    sources,
)

CARRIED = [2**k for k in range(13)]  # 1 to 4,096 workers
IMAGES = [2**k for k in range(11)]  # 1 to 1,024
STATED_PASS_S = 0.05
STRONG_PASSES = 128  # passes of a step over all workers, in strong scaling
MOST = "spread:micro=16,copies=16,patience=0.02"
RESNET_BYTES = 4 * 11_173_962.0
LABELS = {"sync": "sync", "uncoded": "uncoded", "codedgrad": DEFAULT, "most help": MOST}


def carried(
    networks: dict[str, Network], found: dict[str, Source], *, toy: bool
) -> Any:
    """Return {network: {weak, strong: {slowness: {label: speed-up by workers}}}}.

    The speed-up over one worker is that of the work done per second.
    """
    counts = CARRIED[:5] if toy else CARRIED
    slowness = {"nobody slow": CALM}
    slowness |= {k: found[k] for k in ("AWS Lambda, CNN", "EC2") if k in found}
    out: dict[str, Any] = {"workers": counts}
    for name, network in networks.items():
        for regime, total in (("weak", None), ("strong", float(STRONG_PASSES))):
            job = Job(STATED_PASS_S, total=total)
            for title, source in slowness.items():
                seconds = curves(source, counts, LABELS, job, network, toy=toy)
                cell = {
                    label: {
                        "step_s": s,
                        "speedup": [
                            job.pass_s * n * job.share(n) / t
                            for n, t in zip(counts, s, strict=True)
                        ],
                    }
                    for label, s in seconds.items()
                }
                out.setdefault(name, {}).setdefault(regime, {})[title] = cell
                last = {k: round(v["speedup"][-1], 1) for k, v in cell.items()}
                print(
                    f"{name}, {regime}, {title}: {counts[-1]} workers {last}",
                    flush=True,
                )
    return out


def images(
    jobs: dict[str, Job], network: Network, found: dict[str, Source], *, toy: bool
) -> dict[str, Any]:
    """Return {pass: {log: curves of images per second, and where they flatten}}."""
    counts = IMAGES[:4] if toy else IMAGES
    out: dict[str, Any] = {"workers": counts}
    for kind, job in jobs.items():
        for title, source in found.items():
            chosen = planned(source, counts, job, network, toy=toy)
            policies: dict[str, Any] = {
                "sync": "sync",
                "backup": lambda n: backup(n),
                "codedgrad": DEFAULT,
                "codedgrad, planned": lambda n, c=chosen: settings_for(c, n),
            }
            seconds = curves(source, counts, policies, job, network, toy=toy)
            rates = {
                label: [
                    (n - (dropped(n) if label == "backup" else 0)) * job.images / t
                    for n, t in zip(counts, s, strict=True)
                ]
                for label, s in seconds.items()
            }
            out.setdefault(kind, {})[title] = {
                "images_per_second": rates,
                "speedup": {k: [r / v[0] for r in v] for k, v in rates.items()},
                "half_up_to": {k: half_up_to(counts, v) for k, v in rates.items()},
                "flattens_at": {k: flattens_at(counts, v) for k, v in rates.items()},
                "settings": {str(k): v for k, v in chosen.items()},
                "replayed_up_to": max(
                    (n for n in counts if source.replays(n)), default=0
                ),
            }
            last = {k: round(v[-1] / v[0], 1) for k, v in rates.items()}
            print(f"{kind}, {title}: {counts[-1]} workers {last}, {chosen}", flush=True)
    return out


def predict(args: argparse.Namespace) -> None:
    """Compute everything that needs no other workers, and write it."""
    files = scaling_check.read(args.live) if args.live else []
    fits: dict[str, Fit] = scaling_check.fits(files) if files else {}
    rows = scaling_check.check(files, fits) if files else []
    for row in rows:
        print(row, flush=True)
    networks = {name: stated(name, RESNET_BYTES) for name in NETWORKS}
    if "codedgrad" in fits:
        networks = {
            "this machine": network_of(fits["codedgrad"], RESNET_BYTES)
        } | networks
    for method, fit in fits.items():
        print(f"exchange of {method}: {fit.to_json()}", flush=True)
    jobs = {f"{1e3 * STATED_PASS_S:g} ms, stated": Job(STATED_PASS_S, 128.0)}
    measured = json.loads(args.pass_file.read_text()) if args.pass_file else None
    if measured:
        one = measured["results"]
        title = f"{one['pass_s']:.3g} s, measured on one {one['device']}"
        if one["device"] == "CPU":
            title += " core"
        jobs = {
            title: Job(one["pass_s"], one["images_of_a_pass"], one["micro_cost"])
        } | jobs
    found = sources(args.logs)
    network = next(iter(NETWORKS))
    results: dict[str, Any] = {
        "fits": {k: f.to_json() for k, f in fits.items()},
        "check": rows,
        "networks": {
            k: {"alpha_s": c.alpha_s, "beta_s": c.beta_s, "start_s": c.start_s}
            for k, c in networks.items()
        },
        "gradient_bytes": RESNET_BYTES,
        "carried": carried(networks, found, toy=args.toy),
        "image_network": network,
        "images": images(jobs, networks[network], found, toy=args.toy),
        "pass": measured["results"] if measured else None,
        "logs": "published" if args.logs else "shipped profiles",
    }
    text = {
        "benchmark": "bench_scaling predict",
        "environment": {
            "measured": files[0]["environment"] if files else None,
            "workers_measured": [f["results"]["workers"] for f in files],
            "python": platform.python_version(),
        },
        "results": results,
    }
    short = json.loads(json.dumps(text), parse_float=lambda x: float(f"{float(x):.6g}"))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(short, indent=1) + "\n")
    if args.plot:
        import scaling_page

        scaling_page.figure(short["results"], args.plot)
    if args.page:
        import scaling_page

        args.page.write_text(scaling_page.page(short, args.out, args.plot))


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parts = parser.add_subparsers(dest="part", required=True)
    live = parts.add_parser("live", help="under mpirun")
    live.add_argument("--device", default="cpu", help="cpu or cuda")
    live.add_argument("--horovod", action=argparse.BooleanOptionalAction, default=True)
    live.add_argument(
        "--parts",
        nargs="+",
        choices=("exchange", "steps"),
        default=("exchange", "steps"),
    )
    one = parts.add_parser("pass", help="ResNet-18, one worker")
    one.add_argument("--device", default="cpu")
    one.add_argument("--data", type=Path, help="CIFAR-10: its folder, or an .npz file")
    one.add_argument("--rounds", type=int, default=5)
    model = parts.add_parser("predict", help="curves, a page, a figure")
    model.add_argument("--live", type=Path, help="folder of scaling-N.json")
    model.add_argument("--pass-file", type=Path, help="what `pass` has written")
    model.add_argument("--logs", type=Path, help="folder of the published logs")
    model.add_argument("--page", type=Path)
    model.add_argument("--plot", type=Path)
    for each in (live, one, model):
        each.add_argument("--toy", action="store_true", help="seconds, not minutes")
        each.add_argument("--out", type=Path, required=each is model)
    return parser.parse_args()


def main() -> None:
    """Do one of the three parts."""
    args = arguments()
    if args.part == "predict":
        predict(args)
        return
    if args.part == "live":
        from scaling_live import live  # MPI

        live(args, args.out)
        return
    import image_pass
    from harness import write

    torch.set_num_threads(1)
    rounds = 1 if args.toy else args.rounds
    found = image_pass.measure(
        args.data, torch.device(args.device), rounds=rounds, toy=args.toy
    )
    print(found, flush=True)
    write(args.out, "bench_scaling pass", found)


if __name__ == "__main__":
    main()

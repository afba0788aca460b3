r"""Compare two runs of launch/train.py in a table and a JSON file.

python launch/compare.py RUN_WITHOUT_CODE RUN_CODED --slow-factor 8 --out FILE.json \
    --calm RUN_WITH_WHOLE_PASSES RUN_WITH_SAME_BITS
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any


def main() -> None:
    """Read the two summaries; print and write the comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sync", type=Path)
    parser.add_argument("coded", type=Path)
    parser.add_argument("--slow-factor", type=float, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--calm", type=Path, nargs=2, help="runs without a slow worker")
    args = parser.parse_args()
    sync, coded = _read(args.sync), _read(args.coded)
    identical = (
        sync["checksum"] == coded["checksum"]
        and sync["same_on_all_workers"]
        and coded["same_on_all_workers"]
    )
    result = {
        "sync_step_s": sync["step_s"],
        "coded_step_s": coded["step_s"],
        "speedup": sync["step_s"] / coded["step_s"],
        "identical": identical,
        "accuracy_sync": sync["accuracy"],
        "accuracy_coded": coded["accuracy"],
        "workers": coded["workers"],
        "slow_factor": args.slow_factor,
    }
    calm = [_read(run)["step_s"] for run in args.calm or ()]
    if calm:
        result |= {"calm_step_s": calm[0], "calm_same_bits_step_s": calm[1]}
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    print(f"""
                         waiting for all      coded
seconds per step         {sync["step_s"]:<20.4f} {coded["step_s"]:.4f}
speed-up                 {"1.0 x":<20} {result["speedup"]:.1f} x
test accuracy            {sync["accuracy"]:<20.4f} {coded["accuracy"]:.4f}
identical parameters: {"yes" if identical else "NO"}""")
    if calm:
        print(f"""
nobody slow              default              same_bits=True
seconds per step         {calm[0]:<20.4f} {calm[1]:.4f}""")


def _read(run: Path) -> dict[str, Any]:
    return dict(json.loads((run / "summary.json").read_text()))


if __name__ == "__main__":
    main()

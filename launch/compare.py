r"""Compare two runs of launch/train.py in a table and a JSON file.

python launch/compare.py RUN_WITHOUT_CODE RUN_CODED --slow-factor 8 --out FILE.json \
    --calm FILE_OF_CALM.json
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
    parser.add_argument("--calm", type=Path, help="what launch/calm.py wrote")
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
    calm = json.loads(args.calm.read_text()) if args.calm else {}
    result |= calm
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    print(f"""
                         waiting for all      coded
seconds per step         {sync["step_s"]:<20.4f} {coded["step_s"]:.4f}
speed-up                 {"1.0 x":<20} {result["speedup"]:.1f} x
test accuracy            {sync["accuracy"]:<20.4f} {coded["accuracy"]:.4f}
identical parameters: {"yes" if identical else "NO"}""")
    if calm:
        default, same_bits = calm["calm_step_s"], calm["calm_same_bits_step_s"]
        print(f"""
nobody slow              default              same_bits=True
seconds per step         {default:<20.4f} {same_bits:.4f}""")


def _read(run: Path) -> dict[str, Any]:
    return dict(json.loads((run / "summary.json").read_text()))


if __name__ == "__main__":
    main()

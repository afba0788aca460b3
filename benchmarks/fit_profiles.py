"""Fit the profiles that the package ships, from a folder of published logs.

    python benchmarks/fit_profiles.py FOLDER

Only derived numbers are written: quantiles and three parameters, with their source.
"""

from __future__ import annotations

import sys
from pathlib import Path

from codedgrad.lab import traces
from codedgrad.lab.traces.profile import SHIPPED

CHOSEN = {
    "aws_lambda": "aws_lambda_cnn_desktop4_b2048_canada",
    "aws_lambda_mild": "aws_lambda_cnn_mbp2_b256_sydney",
    "ec2": "ec2_gradient_coding_4",
    "bytedance_llm": "bytedance_llm_se_dp32",
    "dedicated": "mlperf_deepcam_selene256_steps",
    "shared_gpus": "alibaba_pai_minibatch_job4",
}


def main() -> None:
    """Fit and write every profile."""
    folder = Path(sys.argv[1])
    SHIPPED.mkdir(exist_ok=True)
    for name, stem in CHOSEN.items():
        log = traces.read(folder / f"{stem}.npz")
        profile = traces.fit(log)
        profile.meta["log"] = stem
        profile.save(SHIPPED / f"{name}.json")
        print(
            f"{name}: worker share {profile.worker_share:.2f}, step share "
            f"{profile.step_share:.2f}, persistence {profile.persistence:.2f}"
        )


if __name__ == "__main__":
    main()

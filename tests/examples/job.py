"""All examples, one after the other, by the workers of one job.

    job.py FOLDER

test_examples.py starts it. Worker 0 writes what each returned to FOLDER/results.json.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import torch

import codedgrad

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(name: str, *arguments: str) -> Any:
    """Run an example with these arguments; return what its `main` returns."""
    sys.argv = [name, *arguments]
    return importlib.import_module(name).main()


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    sys.path.insert(0, str(EXAMPLES))
    file = str(folder / "checkpoint.pt")
    found = {
        "images": run("images", "--epochs", "4"),
        "language_model": run("language_model", "--steps", "60"),
        "gan": run("gan", "--steps", "40"),
        "evaluation": run("evaluation", "--epochs", "6"),
        "horovod_script": run("horovod_script", "--epochs", "4"),
        "whole": run("checkpoints", "--file", f"{file}.other", "--epochs", "3"),
    }
    run("checkpoints", "--file", file, "--epochs", "3", "--stop-after", "9")
    found["resumed"] = run("checkpoints", "--file", file, "--epochs", "3")
    known = {path.stem for path in EXAMPLES.glob("*.py")}
    of_frameworks = {"lightning_digits", "huggingface_text"}  # tests/integrations
    found["left out"] = sorted(known - {*found, "checkpoints"} - of_frameworks)
    if codedgrad.rank() == 0:
        (folder / "results.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))

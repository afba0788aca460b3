"""A small GPT on the help pages of Python; CodedTrainer stands for Trainer.

    codedgrad run -n 4 examples/huggingface_text.py

and with a worker that is slow on purpose:

    export CODEDGRAD_FAULTS="slow:worker=1,factor=8"
"""

from __future__ import annotations

import argparse
from pydoc_data.topics import topics
from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel, TrainingArguments, set_seed

from codedgrad.integrations.huggingface import CodedTrainer

IGNORED = -100


def tokens_of(lines: list[str], length: int) -> list[dict[str, Any]]:
    """One sample a line, as bytes; labels after its end are ignored."""
    samples = []
    for line in lines:
        ids = list(line.encode("ascii", "replace"))[:length]
        rest = length - len(ids)
        samples.append(
            {
                "input_ids": torch.tensor(ids + [0] * rest),
                "attention_mask": torch.tensor([1] * len(ids) + [0] * rest),
                "labels": torch.tensor(ids + [IGNORED] * rest),
            }
        )
    return samples


def data(length: int = 48) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    text = "".join(topics[name] for name in sorted(topics))
    lines = [line.strip() for line in text.splitlines() if len(line.strip()) > 8]
    samples = tokens_of(lines[::10], length)
    return samples[:-64], samples[-64:]


def main(words: list[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch-size", type=int, default=16, help="of one worker")
    parser.add_argument("--out", default="runs/huggingface_text")
    parser.add_argument("--resume", help="a checkpoint")
    args = parser.parse_args(words)
    set_seed(1)
    config = GPT2Config(vocab_size=128, n_positions=64, n_embd=48, n_layer=2, n_head=4)
    train, held_out = data()
    trainer = CodedTrainer(
        GPT2LMHeadModel(config),
        TrainingArguments(
            args.out,
            max_steps=args.steps,
            per_device_train_batch_size=args.batch_size,
            learning_rate=3e-3,
            logging_steps=20,
            save_steps=args.steps // 2,
            report_to="none",
            use_cpu=True,
        ),
        train_dataset=train,
        eval_dataset=held_out,
    )
    trainer.train(resume_from_checkpoint=args.resume)
    metrics = trainer.evaluate()
    if trainer.is_world_process_zero():
        print(f"loss of a letter: {metrics['eval_loss']:.4f}")
    return metrics


if __name__ == "__main__":
    main()

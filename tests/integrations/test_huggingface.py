"""Hugging Face: the Trainer's loop trains as in one process, whoever is late."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import huggingface_text
import pytest
import torch
import transformers
from accelerate.state import AcceleratorState
from torch import nn

import codedgrad
from codedgrad.errors import ConfigError
from codedgrad.integrations.huggingface import CodedTrainer

SAMPLES, BATCH = 44, 16  # the last step of an epoch does not divide evenly
SLOW = "slow:worker=1,factor=8;stall:worker=1,step=4,seconds=0.3"
SMALL = {"num_hidden_layers": 1, "hidden_size": 16, "num_attention_heads": 2}


def gpt(dropout: float = 0.0) -> Any:
    torch.manual_seed(3)
    config = transformers.GPT2Config(
        vocab_size=32,
        n_positions=16,
        n_embd=16,
        n_layer=1,
        n_head=2,
        resid_pdrop=dropout,
        embd_pdrop=dropout,
        attn_pdrop=dropout,
    )
    return transformers.GPT2LMHeadModel(config)


def bert(dropout: float = 0.0) -> Any:
    torch.manual_seed(3)
    config = transformers.BertConfig(
        vocab_size=32,
        intermediate_size=16,
        max_position_embeddings=16,
        num_labels=3,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        **SMALL,
    )
    return transformers.BertForSequenceClassification(config)


def samples(kind: str) -> list[dict[str, Any]]:
    """Of very different lengths, so that means over tokens and samples differ."""
    generator = torch.Generator().manual_seed(1)
    found = []
    for i in range(SAMPLES):
        length = 3 + (i * 7) % 12
        ids = torch.randint(1, 32, (14,), generator=generator)
        mask = (torch.arange(14) < length).long()
        labels = ids.where(mask > 0, -100) if kind == "gpt" else ids[0] % 3
        found.append({"input_ids": ids, "attention_mask": mask, "labels": labels})
    return found


def accuracy(prediction: Any) -> dict[str, float]:
    right = prediction.predictions.argmax(-1) == prediction.label_ids
    return {"accuracy": float(right.mean()), "count": len(right)}


def train(
    trainer: Any, model: Any, kind: str, out: Path, *, resume: Any = None, **words: Any
) -> tuple[Any, list[float]]:
    """Train; Trainer itself in this process alone, on the same batches."""
    alone = trainer is transformers.Trainer
    AcceleratorState._reset_state(reset_partial_state=True)
    own = {k: words.pop(k) for k in ("code", "settings") if k in words}
    each = BATCH // codedgrad.size()
    given = {
        "num_train_epochs": 2,
        "per_device_train_batch_size": each * codedgrad.size() if alone else each,
        "per_device_eval_batch_size": SAMPLES // 4,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "train_sampling_strategy": "sequential",
        **words,
    }
    made = trainer(
        model,
        transformers.TrainingArguments(str(out), **given),
        train_dataset=samples(kind),
        eval_dataset=samples(kind),
        compute_metrics=accuracy if kind == "bert" else None,
        **own,
    )
    made.train(resume_from_checkpoint=resume)
    losses = [entry["loss"] for entry in made.state.log_history if "loss" in entry]
    return made, losses


def bits(model: nn.Module) -> str:
    h = hashlib.sha256()
    for name, t in model.state_dict().items():
        h.update(name.encode() + t.numpy().tobytes())
    return h.hexdigest()


def everywhere(value: Any) -> None:
    """All workers have this value."""
    assert len({str(v) for v in codedgrad.allgather_object(value)}) == 1


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(codedgrad.broadcast_object(str(tmp_path)))


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("bert", {}),
        ("gpt", {}),
        ("gpt", {"gradient_accumulation_steps": 2, "max_grad_norm": 0.3}),
        ("bert", {"bf16": True}),
        ("gpt", {"label_smoothing_factor": 0.1}),
    ],
    ids=["bert", "gpt", "accumulated", "bf16", "smoothed"],
)
def test_it_trains_as_one_process_does(kind: str, words: Any, folder: Path) -> None:
    make = bert if kind == "bert" else gpt
    one, losses = train(transformers.Trainer, make(), kind, folder / "one", **words)
    evaluated = one.evaluate()
    several, found = train(CodedTrainer, make(), kind, folder / "several", **words)
    tolerance = 5e-2 if "bf16" in words else 1e-5
    assert found == pytest.approx(losses, abs=tolerance)
    for p, q in zip(one.model.parameters(), several.model.parameters(), strict=True):
        torch.testing.assert_close(p, q, atol=10 * tolerance, rtol=0)
    metrics = several.evaluate()
    for name in ("eval_loss", "eval_accuracy", "eval_count"):
        if name in evaluated:
            assert metrics[name] == pytest.approx(evaluated[name], abs=tolerance)
    everywhere([bits(several.model), found, metrics["eval_loss"]])
    assert several.is_world_process_zero() == (codedgrad.rank() == 0)


def test_who_is_late_changes_no_bit_and_is_helped(folder: Path) -> None:
    def digest(faults: str) -> Any:
        run = codedgrad.settings.RunSettings(same_bits=True, faults=faults)
        settings = codedgrad.Settings(run=run)
        words = {"settings": settings, "train_sampling_strategy": "random"}
        made, losses = train(CodedTrainer, gpt(0.2), "gpt", folder, **words)
        reports = made.coded.record.reports
        passes = sum(report.redundant_passes for report in reports)
        return [bits(made.model), losses], passes

    calm, _ = digest("")
    slow, passes = digest(SLOW if codedgrad.size() > 1 else "")
    assert slow == calm
    everywhere(calm)
    assert codedgrad.allreduce(passes, "sum") > 0 or codedgrad.size() == 1


@pytest.mark.parametrize("weighted", [True, False])
def test_a_mean_over_tokens_without_a_weight_is_helped_in_whole_shards(
    folder: Path, weighted: bool
) -> None:
    """The loop's batch is rehearsed as any other is, dropout in attention included."""
    n = codedgrad.size()
    words = {"average_tokens_across_devices": weighted, "max_steps": 2}
    words |= {"code": codedgrad.codes.spread(n, micro=4)}
    made, _ = train(CodedTrainer, gpt(0.2), "gpt", folder, **words)
    wanted = not weighted and n > 1
    assert ("help=shards" in made.coded.code.describe()) == wanted


@pytest.mark.parametrize("stop", [2, 3, 4], ids=["early", "at-the-end", "late"])
def test_a_resumed_run_has_the_same_bits(stop: int, folder: Path) -> None:
    run = codedgrad.settings.RunSettings(same_bits=True)
    words: dict[str, Any] = {"settings": codedgrad.Settings(run=run)}
    words |= {"train_sampling_strategy": "random", "lr_scheduler_type": "constant"}
    words |= {"save_strategy": "steps", "save_steps": stop, "num_train_epochs": 2}
    straight, losses = train(CodedTrainer, gpt(0.2), "gpt", folder, **words)
    where = str(folder / f"checkpoint-{stop}")
    resumed, later = train(
        CodedTrainer, gpt(0.2), "gpt", folder / "again", resume=where, **words
    )
    assert later == losses
    assert bits(resumed.model) == bits(straight.model)
    everywhere(bits(resumed.model))


def test_a_trainer_is_used_again(folder: Path) -> None:
    words: dict[str, Any] = {"load_best_model_at_end": True, "save_total_limit": 1}
    words |= {"eval_strategy": "steps", "save_strategy": "steps"}
    words |= {"eval_steps": 2, "save_steps": 2, "metric_for_best_model": "accuracy"}
    words |= {"dataloader_num_workers": 1}
    trainer, _ = train(CodedTrainer, bert(), "bert", folder, **words)
    best = trainer.state.best_model_checkpoint
    first = bits(trainer.model)
    predicted = trainer.predict(samples("bert")[:9])
    assert predicted.predictions.shape == (9, 3)
    assert Path(best).exists()
    codedgrad.barrier()
    trainer.train()  # which may find a better one, and drop this one
    everywhere([best, first, bits(trainer.model), predicted.metrics["test_loss"]])


def test_the_example_learns(folder: Path) -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    words = ["--steps", "12", "--batch-size", "8", "--out", str(folder)]
    metrics = huggingface_text.main(words)
    assert metrics["eval_loss"] < 4.0
    assert (folder / "checkpoint-12" / "codedgrad.pt").exists()
    everywhere(metrics["eval_loss"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"auto_find_batch_size": True}, "auto_find_batch_size=True"),
        ({"include_num_input_tokens_seen": "all"}, "include_num_input_tokens_seen="),
        ({"train_sampling_strategy": "group_by_length"}, "LengthGroupedSampler"),
    ],
)
def test_arguments_that_fit_no_coded_training(
    words: Any, message: str, folder: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        train(CodedTrainer, gpt(), "gpt", folder, **words)

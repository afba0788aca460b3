"""Copies, files and checkpoints of models and optimizers with the drop-in attached."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import warnings
import weakref
from typing import Any

import pytest
import torch
from parallel.dropin import digest, net, own, same_everywhere, wrapped
from torch import nn

import codedgrad
from codedgrad.hvd.optimizer import detach

# ---- copies, files and what is left behind ----


def test_copies_of_the_model_are_not_exchanged() -> None:
    model = net()
    seen: list[str] = []
    handle = model.register_forward_pre_hook(lambda *_: seen.append("user"))
    plain = pickle.dumps(net())
    optimizer = wrapped(model)
    handle.remove()  # the handle of a hook from before ours
    copies: list[Any] = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    file = io.BytesIO()
    torch.save(model, file)
    copies.append(torch.load(io.BytesIO(file.getvalue()), weights_only=False))
    copies.append(torch.optim.swa_utils.AveragedModel(model).module)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        copies.append(torch.jit.script(model))
    assert len(pickle.dumps(model)) < len(plain) + 100
    later = model.register_forward_pre_hook(lambda *_: seen.append("later"))
    for other in copies:
        out = other(own()).mean()
        shares = isinstance(other, torch.jit.ScriptModule)  # the parameters
        if codedgrad.rank() == 0 and not shares:  # would wait in an exchange
            out.backward()
    assert not seen
    model(own())
    later.remove()
    model(own())
    assert seen == ["later"]
    torch.export.export(model.eval(), (own(),))
    detach(optimizer)


@pytest.mark.parametrize("training", [True, False])
def test_an_export_is_no_forward(training: bool) -> None:
    model = net()
    optimizer = wrapped(model)
    for exported in (True, False):
        if exported:
            torch.export.export(model.train(training), (own(),))
        model.train()(own()).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    same_everywhere(model)
    detach(optimizer)


def test_an_optimizer_that_is_dropped_leaves_nothing_behind() -> None:
    model = net()
    optimizer = wrapped(model)
    with pytest.raises(codedgrad.ConfigError, match="distributed already"):
        codedgrad.optimizer._check_free(optimizer, [])
    free = codedgrad.optimizer._check_free
    other = torch.optim.SGD(model.parameters())
    with pytest.raises(codedgrad.ConfigError, match=r"'0.weight' is exchanged"):
        free(other, list(model.named_parameters()))
    gone = weakref.ref(codedgrad.optimizer._attached[optimizer])
    del optimizer
    gc.collect()
    assert gone() is None
    assert not any(
        p._post_accumulate_grad_hooks  # type: ignore[attr-defined]
        for p in model.parameters()
    )
    if codedgrad.rank() == 0:
        model(own()).mean().backward()
    free(other, list(model.named_parameters()))
    detach(wrapped(model))


def test_other_tools_of_torch() -> None:
    model = net()
    optimizer = wrapped(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    for step in range(3):
        scaler.scale(model(own(step)).mean()).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        scaler.step(optimizer)
        scaler.update()
        schedule.step()
        optimizer.zero_grad()
        assert same_everywhere(model)
    pickle.loads(pickle.dumps(optimizer))
    copy.deepcopy(optimizer)
    detach(optimizer)


# ---- checkpoints ----


def dropout_run(
    steps: range, saved: Any = None, *, early: bool = True
) -> tuple[str, Any]:
    model = nn.Sequential(net(), nn.Dropout(0.3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)

    def load() -> None:
        if saved is not None:
            model.load_state_dict(saved[0])
            optimizer.load_state_dict(copy.deepcopy(saved[1]))

    if early:
        load()
    codedgrad.DistributedOptimizer(optimizer, model.named_parameters(), model=model)
    if not early:
        load()
    for step in steps:
        model(own(step)).pow(2).mean().backward()
        model(own(step)).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    state = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    detach(optimizer)
    return digest(model), state


def test_a_resumed_run_ends_in_the_same_bits() -> None:
    whole, _ = dropout_run(range(6))
    _, saved = dropout_run(range(3))
    file = io.BytesIO()
    torch.save(saved, file)
    saved = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
    assert dropout_run(range(3, 6), saved)[0] == whole
    assert dropout_run(range(3, 6), saved, early=False)[0] == whole
    assert dropout_run(range(3, 6))[0] != whole
    model = nn.Sequential(net(), nn.Dropout(0.3))
    plain = torch.optim.SGD(model.parameters(), lr=0.1)
    plain.load_state_dict(saved[1])
    model(own()).mean().backward()
    plain.step()


def test_a_broadcast_state_has_the_step() -> None:
    model = net()
    optimizer = wrapped(model)
    if codedgrad.rank() == 0:
        state = optimizer.state_dict()
        state["param_groups"][0]["codedgrad"] = {"steps": 7, "forwards": 1}
        optimizer.load_state_dict(state)
    codedgrad.broadcast_optimizer_state(optimizer)
    codedgrad.barrier()
    entry = optimizer.state_dict()["param_groups"][0]["codedgrad"]
    assert entry == {"steps": 7, "forwards": 1}
    assert "codedgrad" not in optimizer.param_groups[0]
    model(own()).mean().backward()
    detach(optimizer)

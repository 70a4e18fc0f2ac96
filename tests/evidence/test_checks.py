"""Every common check is fed a model that it must refuse."""

import pytest
import torch
from torch import nn
from toys import toy

from foveal.evidence.checks import CheckError, check, pairs, run
from foveal.evidence.checks.models import CHECKS
from foveal.record import Paper


class Good(nn.Module):
    """×2 super-resolution in two layers."""

    def __init__(self, *, scale: int = 2, in_channels: int = 3) -> None:
        super().__init__()
        self.first = nn.Conv2d(in_channels, 4, 3, padding=1)
        self.last = nn.Conv2d(4, in_channels * scale**2, 1)
        self.shuffle = nn.PixelShuffle(scale)

    def forward(self, x):
        return self.shuffle(self.last(self.first(x).relu()))


class Swapped(Good):
    def forward(self, x):
        return super().forward(x).transpose(2, 3)


class Overflowing(Good):
    def forward(self, x):
        out = super().forward(x)
        out[0, 0, 0, 0] = torch.inf
        return out


class Unused(Good):
    def __init__(self, **kwargs) -> None:
        super().__init__(**kwargs)
        self.idle = nn.Linear(2, 2)


class Cut(Good):
    def forward(self, x):
        return self.shuffle(self.last(self.first(x).detach()))


class Kinked(Good):
    """Its gradient at 0 is infinite times zero."""

    def forward(self, x):
        return super().forward(x) + (self.first.weight.sum() * 0).sqrt()


class Hidden(Good):
    """Keeps a tensor that its state does not hold."""

    def __init__(self, **kwargs) -> None:
        super().__init__(**kwargs)
        self.offset = torch.rand(1)

    def forward(self, x):
        return super().forward(x) + self.offset.to(x)


class Renaming(Good):
    def state_dict(self, *args, **kwargs):
        return {f"old_{name}": value for name, value in super().state_dict(*args, **kwargs).items()}


class Unseeded(Good):
    made = 0

    def __init__(self, **kwargs) -> None:
        super().__init__(**kwargs)
        Unseeded.made += 1
        nn.init.constant_(self.last.bias, Unseeded.made)


class Noisy(Good):
    def forward(self, x):
        return super().forward(x) + torch.rand(1).to(x)


class Narrowing(Good):
    def forward(self, x):
        return super().forward(x).float()


class Stateless(nn.Module):
    def forward(self, x):
        return x.repeat(1, 1, 2, 2)


class Classifier(nn.Module):
    def __init__(self, *, num_classes: int = 5, img_size: int = 8, given: int | None = None) -> None:
        super().__init__()
        self.img_size = img_size
        self.head = nn.Linear(3 * img_size**2, given or num_classes)

    def forward(self, x):
        return self.head(x.flatten(1))


class Silent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 3, 1)

    def forward(self, x):
        return self.layer(x)


@pytest.fixture
def record():
    def build(model, *, case=None, **changes):
        return toy(kind="model", models={"toy": model}, cases={"toy": case or {}}, **changes)

    return build


@pytest.mark.parametrize("case", [{}, {"scale": 3}, {"in_channels": 1}])
def test_a_good_model_passes_all(record, case):
    assert run(record(Good, case=case)) == dict.fromkeys(("fields", *CHECKS), "passed")


def test_a_good_classifier_passes_all(record):
    assert run(record(Classifier, case={"num_classes": 3, "img_size": 4})) == dict.fromkeys(
        ("fields", *CHECKS), "passed"
    )


@pytest.mark.parametrize(
    ("check", "model", "case", "text"),
    [
        ("builds", lambda: "a model", {}, "must build an nn.Module, got str"),
        ("builds", Stateless, {}, "the model has no parameters"),
        ("shape", Swapped, {}, r"input \(2, 3, 16, 12\) must give \(2, 3, 32, 24\), got \(2, 3, 24, 32\)"),
        ("shape", Overflowing, {}, "1 of 4608 output values are not finite"),
        ("shape", Classifier, {"given": 4}, r"must give \(2, 5\), got \(2, 4\)"),
        ("shape", Silent, {}, "states neither `scale` nor `num_classes`"),
        ("gradients", Unused, {}, r"no gradient reaches idle.weight, idle.bias$"),
        ("gradients", Cut, {}, r"no gradient reaches first.weight, first.bias$"),
        ("gradients", Kinked, {}, "the gradient is not finite for first.weight"),
        ("state", Hidden, {}, r"after loading the state the largest of 4608 differences is 0\.\d+ at \("),
        ("state", Renaming, {}, r"state differs: missing \['first.weight'.*left over \['old_first.weight'"),
        ("deterministic", Unseeded, {}, r"built twice with one seed, the largest of 4608 differences is 1 at \("),
        ("deterministic", Noisy, {}, r"the largest of 4608 differences is"),
        ("dtype", Narrowing, {}, r"float64 input must give float64 output, got torch.float32"),
    ],
)
def test_a_wrong_model_is_refused(record, check, model, case, text):
    method = record(model, case=case)
    with pytest.raises(CheckError, match=text) as caught:
        CHECKS[check](method, "toy")
    assert str(caught.value).startswith("ESPCN, toy: ")
    assert run(method)[check].startswith("failed: ESPCN, toy: ")


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"summary": "no capital."}, "summary must be one sentence"),
        ({"summary": "No full stop"}, "summary must be one sentence"),
        ({"summary": "Two. Sentences."}, "summary must be one sentence"),
        ({"summary": ""}, "summary must be one sentence"),
        ({"paper": Paper("T", "A", 2020, " ")}, "paper needs a title, authors and an identifier"),
        ({"paper": Paper("T", "A", 20, "X")}, "paper's year 20 must be between 1950 and next year"),
        ({"cases": {}}, r"at least one case is needed, a foveal.cases.Procedure"),
        ({"kind": "objective"}, r"at least one case is needed, a foveal.cases.Objective"),
        ({"kind": "model"}, "a model needs at least one entry in `models` and a tiny one in `cases`"),
        ({"except_for": {"shapes": "typo"}}, "except_for names checks"),
        ({"except_for": {"shape": " "}}, "gives a reason for each"),
    ],
)
def test_a_record_without_what_it_must_say_is_refused(changes, text):
    with pytest.raises(CheckError, match=text):
        check(toy(**changes), "fields", "")


def test_an_excused_check_is_not_run_and_its_reason_kept(record):
    method = record(Narrowing, except_for={"dtype": "computes in float32 on purpose"})
    assert ("dtype", "toy") not in pairs(method)
    assert ("shape", "toy") in pairs(method)
    said = run(method)
    assert said["dtype"] == "excused: computes in float32 on purpose"
    assert said["shape"] == "passed"


def test_a_model_that_raises_fails_its_check_only(record):
    def broken(*, scale: int = 2):
        raise RuntimeError("cannot build")

    said = run(record(broken))
    assert said["builds"] == "failed: ESPCN, toy: RuntimeError: cannot build"
    assert said["fields"] == "passed"


def test_one_failing_case_fails_the_check():
    method = toy(kind="model", models={"bad": Narrowing, "good": Good}, cases={"bad": {}, "good": {}})
    assert run(method)["dtype"].startswith("failed: ESPCN, bad")


def test_code_is_checked_once_a_class_and_sizes_are_built():
    from functools import partial

    models = {"small": Good, "large": partial(Good, scale=4), "other": Classifier}
    method = toy(kind="model", models=models, cases={"small": {}, "large": {}, "other": {}})
    assert [case for name, case in pairs(method) if name == "gradients"] == ["small", "other"]
    assert [case for name, case in pairs(method) if name == "builds"] == ["small", "large", "other"]


def test_checks_leave_the_seed_alone(record):
    torch.manual_seed(7)
    want = torch.rand(1)
    torch.manual_seed(7)
    run(record(Good))
    assert torch.equal(torch.rand(1), want)

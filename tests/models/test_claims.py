"""The claims that take no time are run; those that train are only tried for a step or two, elsewhere."""

import pytest
import torch

from foveal.measure.cost import count_macs, count_parameters
from foveal.models.restore import espcn, luma_sr, quicksrnet, safmn, sesr
from foveal.train.restore import sampling_aug

RECORDS = [module.METHOD for module in (espcn, luma_sr, quicksrnet, safmn, sesr, sampling_aug)]
CLAIMS = [(record, claim) for record in RECORDS for claim in record.claims]


def picked(kind):
    chosen = [(r.name, c) for r, c in CLAIMS if c.kind == kind]
    return pytest.mark.parametrize("claim", [c for _, c in chosen], ids=[f"{n}: {c.says[:40]}" for n, c in chosen])


@picked("params")
def test_params(claim):
    assert count_parameters(claim.check["model"]()) == claim.check["expect"]


@picked("macs")
def test_macs(claim):
    check = claim.check
    assert abs(count_macs(check["model"](), check["shape"]) - check["expect"]) <= check["tolerance"] * check["expect"]


@picked("smaller")
def test_smaller(claim):
    assert claim.check["theirs"]() / claim.check["ours"]() >= claim.check["at_least"]


@picked("equal")
def test_equal(claim):
    if "spandrel" in claim.says:
        pytest.importorskip("spandrel")
    ours, theirs = (torch.as_tensor(claim.check[side]()) for side in ("ours", "theirs"))
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= claim.check["tolerance"] * theirs.abs().max()


def test_spandrel_is_asked_for_by_name(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "spandrel.architectures.SAFMN", None)
    with pytest.raises(ImportError, match="this claim compares with spandrel; install it: pip install spandrel"):
        safmn._against_spandrel(ours=False)


def test_every_row_of_the_catalogue_has_its_claims():
    assert {r.name: len(r.claims) for r in RECORDS if r.id is not None} == {
        "ESPCN": 7,
        "QuickSRNet": 5,
        "SAFMN": 7,
        "SESR": 9,
        "SamplingAug": 3,
    }

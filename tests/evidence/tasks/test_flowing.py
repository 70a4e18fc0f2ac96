import torch

from foveal.evidence.rehearsal import rehearsal
from foveal.evidence.tasks import flowing
from foveal.generate.glow import glow_step


def test_bits_of_a_rehearsal_depend_on_the_seed_alone():
    with rehearsal():
        first, other = flowing.bits(glow_step, 0), flowing.bits(glow_step, 1)
    with rehearsal():
        assert flowing.bits(glow_step, 0) == first != other


def test_a_drawn_flow_is_not_the_identity_and_says_its_determinant():
    said, wanted = (flowing.log_dets(glow_step, dense=dense) for dense in (False, True))
    torch.testing.assert_close(said, wanted)
    assert (said[0] - said[1]).abs() > 1e-3

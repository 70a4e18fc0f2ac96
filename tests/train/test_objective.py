import torch
import torch.nn.functional as F

from foveal.train.objective import supervised


def test_output_and_target_are_compared_in_float32():
    def loss(out, target):
        assert out.dtype == torch.float32
        return F.l1_loss(out, target)

    model = torch.nn.Linear(2, 1, dtype=torch.bfloat16)
    x = torch.ones(3, 2, dtype=torch.bfloat16)
    target = model(x).detach().float() + 0.5
    value = supervised(loss)(model, (x, target))
    assert value.item() == 0.5
    value.backward()
    assert model.bias.grad.item() == -1

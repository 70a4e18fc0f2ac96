import pytest
import torch
import torch.nn.functional as F

from foveal.models.restore.awsrn import AWSRN, branch_weights, without_branch

SMALL = {"dim": 4, "hidden": 6, "depth": 2, "units": 3}


def drawn(scale=2, **words):
    """A network whose scalars and biases differ from where they start."""
    torch.manual_seed(0)
    network = AWSRN(scale, **(SMALL | words)).double().eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return network


@pytest.mark.parametrize("size", [(1, 1), (7, 5)])
@pytest.mark.parametrize(("scale", "channels"), [(2, 3), (3, 1)])
def test_shape(scale, channels, size):
    out = AWSRN(scale, in_channels=channels, **SMALL)(torch.rand(2, channels, *size))
    assert out.shape == (2, channels, scale * size[0], scale * size[1])


def reference(network, x):
    """The equations, with the weights as they are normalised: g · v / |v| for each output channel."""
    state = network.state_dict()

    def conv(name, x):
        g, v = (state[f"{name}.parametrizations.weight.original{i}"] for i in (0, 1))
        weight = g * v / v.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        return F.conv2d(x, weight, state[name + ".bias"], padding=weight.shape[-1] // 2)

    x = 2 * (x - network.mean)
    skip, x = conv("skip", x), conv("head", x)
    for i in range(2):
        begin, seen = x, []
        for j in range(3):
            unit = f"body.{i}.units.{j}"
            wide = F.relu(conv(unit + ".body.0", x))
            x = state[unit + ".res_scale"] * conv(unit + ".body.2", wide) + state[unit + ".x_scale"] * x
            seen.append(x)
        fused = conv(f"body.{i}.reduction", torch.cat(seen, 1))
        x = state[f"body.{i}.res_scale"] * fused + state[f"body.{i}.x_scale"] * begin
    out = sum(
        F.pixel_shuffle(state[f"tail.scales.{k}"] * conv(f"tail.branches.{k}", x), network.scale) for k in (3, 5, 7, 9)
    )
    return (out + F.pixel_shuffle(skip, network.scale)) / 2 + network.mean


def test_equals_the_equations():
    network, x = drawn(), torch.rand(2, 3, 5, 11, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(network(x), reference(network, x), rtol=0, atol=1e-10)


@pytest.mark.parametrize("kernels", [(3, 5, 7, 9), (7,), (5, 3)])
def test_folded_it_gives_the_same_picture(kernels):
    network, x = drawn(kernels=kernels), torch.rand(1, 3, 6, 13, dtype=torch.float64)
    folded = network.fold()
    with torch.no_grad():
        torch.testing.assert_close(folded(x), network(x), rtol=0, atol=1e-12)
        torch.testing.assert_close(folded.fold()(x), network(x), rtol=0, atol=1e-12)
    assert not any("parametrizations" in name for name in folded.state_dict())
    assert folded.tail.kernel_size == (max(kernels),) * 2
    assert any("parametrizations" in name for name in network.state_dict())


def test_the_branches_start_alike_and_the_weakest_goes():
    network = AWSRN(2, **SMALL).eval()
    assert branch_weights(network) == dict.fromkeys((3, 5, 7, 9), 0.25)
    for k, scale in {"3": 0.4, "5": -0.3, "7": 0.01, "9": -0.2}.items():
        network.tail.scales[k].data.fill_(scale)
    lighter = without_branch(network)
    assert list(branch_weights(lighter)) == [3, 5, 9]
    assert len(branch_weights(network)) == 4
    network.tail.scales["7"].data.zero_()
    x = torch.rand(1, 3, 6, 5)
    with torch.no_grad():
        torch.testing.assert_close(lighter(x), network(x))


def test_a_branch_can_be_named():
    assert list(branch_weights(without_branch(AWSRN(2, **SMALL), 9))) == [3, 5, 7]


@pytest.mark.parametrize(("kernels", "named"), [((3, 5), 7), ((3,), 3), ((3,), None)])
def test_a_branch_that_cannot_go_is_refused(kernels, named):
    with pytest.raises(ValueError, match="kernel_size must be one of several branches"):
        without_branch(AWSRN(2, kernels=kernels, **SMALL), named)


def test_a_folded_network_has_no_branches():
    with pytest.raises(ValueError, match="take the network before `fold`"):
        without_branch(AWSRN(2, **SMALL).fold())


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ({"scale": 0}, "scale must be at least 1, got 0"),
        ({"kernels": ()}, r"kernels must be odd and different, at least one, got \(\)"),
        ({"kernels": (3, 4)}, r"got \(3, 4\)"),
        ({"kernels": (3, 3)}, r"got \(3, 3\)"),
    ],
)
def test_wrong_arguments_are_refused(words, text):
    with pytest.raises(ValueError, match=text):
        AWSRN(**words)


def test_a_larger_branch_absorbs_a_smaller_one_whole():
    network, x = drawn(), torch.rand(1, 3, 6, 7, dtype=torch.float64)
    lighter = without_branch(network, 5, absorb=True)
    assert list(branch_weights(lighter)) == [3, 7, 9]
    with torch.no_grad():
        torch.testing.assert_close(lighter(x), network(x), rtol=0, atol=1e-10)


def test_a_smaller_branch_absorbs_the_middle_of_a_larger_one():
    network, x = drawn(), torch.rand(1, 3, 6, 7, dtype=torch.float64)
    lighter = without_branch(network, 9, absorb=True)
    with torch.no_grad():
        largest = network.tail.branches["9"]
        middle = torch.zeros_like(largest.weight)
        middle[..., 1:8, 1:8] = largest.weight[..., 1:8, 1:8]
        largest.weight = middle
        torch.testing.assert_close(lighter(x), network(x), rtol=0, atol=1e-10)

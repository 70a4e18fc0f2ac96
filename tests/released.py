"""Names and shapes of weights that authors released, as the tests of `from_authors` write them down."""

import torch


def with_batch_norms(shapes):
    """Write out batch norms.

    Args:
        shapes: name → shape, or number of channels of a batch norm of that name.

    Returns:
        Name → shape, five entries for a batch norm.
    """
    found = {}
    for name, shape in shapes.items():
        if isinstance(shape, tuple):
            found[name] = shape
        else:
            found |= {f"{name}.{part}": (shape,) for part in ("weight", "bias", "running_mean", "running_var")}
            found[f"{name}.num_batches_tracked"] = ()
    return found


def same_names_and_shapes(build, from_authors, shapes):
    """Fail unless renamed weights of these names and shapes are the state dict of a network.

    Args:
        build: makes the network.
        from_authors: renames a state dict.
        shapes: name → shape in the authors' code.
    """
    with torch.device("meta"):
        ours = {name: tuple(value.shape) for name, value in build().state_dict().items()}
        weights = {name: torch.empty(shape) for name, shape in shapes.items()}
    assert {name: tuple(value.shape) for name, value in from_authors(weights).items()} == ours

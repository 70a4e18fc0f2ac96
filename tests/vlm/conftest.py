"""What the tests of vision-language models share: tiny models of every family, built once, and prompts for them."""

import inspect
from functools import cache

import pytest
import torch

from foveal.vlm import tiny as toys

PICTURES, WORDS = (1, 2, 0), (3, 5, 7)


@cache
def built(family):
    return toys.tiny(family)


@pytest.fixture(scope="session")
def model_of():
    """Models by family. Whoever accelerates one must restore it."""
    return built


@pytest.fixture
def llava(model_of):
    return model_of("llava")


@pytest.fixture(scope="session")
def batch_of():
    """Three padded prompts by family: of one picture, of two, of none."""
    return lambda family: toys.questions(family, PICTURES, WORDS)


@pytest.fixture(scope="session")
def row_of():
    """One prompt of the three, without padding."""

    def row(family, inputs, number):
        real = inputs["attention_mask"][number].bool()
        of_length = ("input_ids", "attention_mask", "mm_token_type_ids", "token_type_ids")
        found = {name: inputs[name][number : number + 1][:, real] for name in of_length if name in inputs}
        first, last = sum(PICTURES[:number]), sum(PICTURES[: number + 1])
        if first == last:
            return found
        for name in ("pixel_values", "image_sizes", "image_grid_thw"):
            if name in inputs:
                value = inputs[name]
                if name == "pixel_values" and family in ("smolvlm", "idefics3"):
                    found[name] = value[number : number + 1, : last - first]
                elif name == "pixel_values" and family.startswith("qwen"):
                    found[name] = value.unflatten(0, (sum(PICTURES), -1))[first:last].flatten(0, 1)
                else:
                    found[name] = value[first:last]
        return found

    return row


@pytest.fixture(scope="session")
def logits():
    def run(model, inputs, **options):
        with torch.no_grad():
            return model(**inputs, **options).logits

    return run


@pytest.fixture(scope="session")
def cached():
    """A cache as an argument of a model, whose name changed in transformers 5.24."""

    def named(model, cache):
        known = inspect.signature(type(model).forward).parameters
        return {"cache" if "cache" in known else "past_key_values": cache}

    return named


@pytest.fixture(scope="session")
def written():
    """The tokens that a model writes, without the prompt."""

    def run(model, inputs, *, count=4, **options):
        with torch.no_grad():
            whole = model.generate(
                **inputs, max_new_tokens=count, do_sample=False, suppress_tokens=[3, 4, 5, 6], **options
            )
        return whole[:, inputs["input_ids"].shape[1] :]

    return run


@pytest.fixture(scope="session")
def masked():
    """Logits of an untouched model whose layers from one on do not see some tokens: what dropping them must give."""

    def run(model, layers, inputs, first, seen):
        batch, length = seen.shape

        def hide(_, args, kwargs):
            mask = kwargs["attention_mask"]
            if mask is None:
                mask = torch.ones(1, 1, length, length, dtype=torch.bool).tril()
            return args, {**kwargs, "attention_mask": mask.expand(batch, -1, -1, -1) & seen[:, None, None]}

        hooks = [layer.register_forward_pre_hook(hide, with_kwargs=True) for layer in layers[first:]]
        try:
            with torch.no_grad():
                return model(**inputs).logits
        finally:
            for hook in hooks:
                hook.remove()

    return run

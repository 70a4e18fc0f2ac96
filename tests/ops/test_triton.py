import torch

from foveal.ops import triton as path


def test_what_cannot_run_says_why(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(path, "find_spec", lambda _: None)
    assert path.why_not(torch.empty(1)) == "triton is not installed: pip install triton"
    monkeypatch.setattr(path, "find_spec", lambda _: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert path.why_not(torch.empty(1)) == "no CUDA device"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert path.why_not(torch.empty(1)) == "Triton kernels run on CUDA devices, the tensors are on cpu; move them there"
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert path.why_not(torch.empty(1)) is None
    assert path.why_not(torch.empty(1).double()) == "Triton kernels compute in float32, the tensors are float64"

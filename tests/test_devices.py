"""Choice of device, and errors about missing ones."""

import pytest
import torch

from sohes_d2.devices import choose_device
from sohes_d2.errors import ConfigError


def test_the_configured_device_or_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("cuda") == choose_device("cuda", "cpu") == "cpu"
    with pytest.raises(ConfigError, match="not available to torch"):
        choose_device("cpu", "cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device("cuda:1") == "cuda:1" and choose_device("cuda:2") == "cpu"
    with pytest.raises(ConfigError, match="'cuda:2' is not available"):
        choose_device("cpu", "cuda:2")


@pytest.mark.parametrize(("name", "meant"), [("cuds:0", "cuda"), ("CPUs", "cpu")])
def test_an_unknown_device(name, meant):
    with pytest.raises(ConfigError, match=f"Did you mean {meant}"):
        choose_device("cpu", name)

"""Triton's interpreter beside NumPy 2.4."""

import pytest
import torch
from triton.runtime import interpreter


@pytest.fixture(scope="session", autouse=True)
def _loop_bounds() -> None:
    """Triton 3.6 makes loop bounds with int() of an array of one element, which NumPy 2.4 refuses."""
    if torch.cuda.is_available():
        return
    patch = interpreter._patch_lang_tensor

    def patched(tensor: type, scope: interpreter._LangPatchScope) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    interpreter._patch_lang_tensor = patched

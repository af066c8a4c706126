"""Tests against vLLM itself. It wants other versions than we pin: `.ci/vllm` makes it an environment and runs them."""

import importlib.util
import os

import pytest

WANTED = os.environ.get("RLIF_TEST_VLLM") == "1"  # set by .ci/vllm: then its absence is a failure
HERE = importlib.util.find_spec("vllm") is not None

os.environ["VLLM_CPU_KVCACHE_SPACE"] = "1"  # GiB: as much as the tests need, and vLLM need not measure


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if HERE or WANTED:
        return
    for item in items:
        if "tests/with_vllm" in item.path.as_posix():
            item.add_marker(pytest.mark.skip(reason="vLLM is not installed here: .ci/vllm makes it an environment"))

"""Set up every test run: no network, caches of its own, one thread, fixed seeds."""

import os
import random
import shutil
import tempfile

import numpy as np
import pytest
import torch

# transformers and datasets read these when they are imported, which the test modules do later than this file.
# Workers of pytest-xdist inherit them, so that there is one cache for each run.
_OWN_CACHE = None if "LRC_TEST_CACHE" in os.environ else tempfile.mkdtemp(prefix="lrc-test-")
if _OWN_CACHE:
    os.environ |= {
        "LRC_TEST_CACHE": _OWN_CACHE,
        "HF_HOME": _OWN_CACHE,
        "HF_DATASETS_CACHE": os.path.join(_OWN_CACHE, "datasets"),
        "LRC_CACHE": os.path.join(_OWN_CACHE, "shards"),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


def pytest_unconfigure() -> None:
    if _OWN_CACHE:
        shutil.rmtree(_OWN_CACHE, ignore_errors=True)

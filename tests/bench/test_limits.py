"""How long dermjax may take beside PyTorch, by the cases of `dermjax bench`, on a machine of its own.

    pytest --slow -s tests/bench/test_limits.py -k "decode and 256"

prints the table of a case and asks for the share of PyTorch's time, and of its memory, that was promised.
"""

import json

import pytest

from dermjax.bench import run
from dermjax.bench.cases import cases_on
from dermjax.bench.run import EAGER, OURS, ratio

pytestmark = pytest.mark.slow
MEMORY = 1.1
# of PyTorch's time, at most
LIMITS = {
    "unet/32x32/1": 0.60,
    "unet/32x32/2": 0.60,
    "unet/64x64/1": 0.60,
    "unet/64x64/2": 0.60,
    "decode/256": 0.60,
    "decode/512": 0.60,
    "sample/derm-tiny": 0.40,
    "tune/derm-tiny": 0.90,
    "gradient/full": 0.90,
    "gradient/lora": 0.90,
    "classify/vit": 0.95,
    "classify/mobilenetv2": 0.68,
    "batches/mild": 1.0,
    "batches/strong": 1.0,
    "load/float32": 1.0,
    "load/float16": 1.0,
}
# by processor time: the clock follows how fast a virtual machine gets its memory, from 3 to 9 s for one load
BY_PROCESSOR = ("load",)
FAULTS = 5000  # of memory a step of tuning: 48,000 where temporaries go back to the system


@pytest.fixture(scope="module")
def entry(tmp_path_factory):
    """A function that measures a case and returns its entry; what is common to cases is measured once."""
    folder, known = tmp_path_factory.mktemp("bench"), cases_on(run.device()["platform"])

    def measured(name):
        if name not in known:
            pytest.skip("not a case of this platform")
        for package in known[name].packages:
            pytest.importorskip(package)
        run.bench(str(folder), name, 3, False)
        return json.loads((folder / run.FILE).read_text())[name]

    return measured


@pytest.mark.parametrize("name", LIMITS)
def test_work_takes_no_longer_than_promised(entry, name, capsys):
    with capsys.disabled():
        found = entry(name)
    figure = "processor_seconds" if name.startswith(BY_PROCESSOR) else "seconds"
    assert ratio(found, EAGER, figure) <= LIMITS[name]
    assert ratio(found, EAGER, "peak") <= MEMORY


def test_tuning_keeps_its_memory(entry):
    found = entry("tune/derm-tiny")
    assert max(each["page_faults"] for each in found["sides"][OURS]["rounds"]) / found["count"] < FAULTS

"""Runs AccelForge's mapper on one point and prints what it found: `benchmarks/accelforge.py` calls it.

    /path/to/venv/bin/python benchmarks/accelforge_mapper/run.py < point.json

It runs in AccelForge's environment, which needs nothing of flatc; so it stands in a folder of its own, where no module
is named as the package is. `point.json` has `softmax` (one or four), `workers`, and `numbers`, which fill in the YAML
files beside it. Seconds are those of the mapper without the imports.
"""

import json
import os
import resource
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent


def processor_seconds():
    """Of this process and of workers that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def stop_workers():
    """Ends the workers, whose processor time is known only then."""
    from joblib.externals.loky import get_reusable_executor

    get_reusable_executor().shutdown(wait=True)


def main():
    """Maps the point that standard input describes, and prints what it costs and how long it took."""
    point = json.load(sys.stdin)
    import accelforge
    from accelforge._version import __version__

    accelforge.set_n_parallel_jobs(point["workers"])
    files = (HERE / "machine.yaml", HERE / f"{point['softmax']}.yaml")
    spec = accelforge.Spec.from_yaml(*files, jinja_parse_data=point["numbers"])
    spec.mapper.metrics = accelforge.mapper.Metrics.ENERGY_DELAY_PRODUCT
    before = time.perf_counter(), processor_seconds()
    mappings = spec.map_workload_to_arch(print_progress=False)
    seconds = time.perf_counter() - before[0]
    stop_workers()
    used = processor_seconds() - before[1]
    print(json.dumps({"version": __version__, "seconds": seconds, "processor_seconds": used, **results(mappings)}))


def results(mappings):
    """Latency, energy and off-chip bytes of the best mapping."""
    best = mappings.data.iloc[0]
    bits = sum(best[name] for name in mappings.data.columns if name.split("<SEP>")[1:3] == ["action", "MainMemory"])
    return {"latency_s": float(mappings.latency()), "energy_j": float(mappings.energy()), "offchip_bytes": bits / 8}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # AccelForge writes a drawing where it stands
        main()

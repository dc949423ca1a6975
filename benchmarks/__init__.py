"""Speed and memory, ours beside a plain loop that does the same work: `python -m benchmarks`, or `make bench`.

`python -m benchmarks.gpu` checks a device instead; `python -m benchmarks.on_paper` computes what a large multirun
costs. Every module here but those, `harness` and `models` has `rows(device)`, which yields one `Row` a comparison;
DEVICES names the devices that it has something for, by default the CPU alone.
"""

import detoxbench as detoxbench  # before torch: it makes OpenMP wait passively

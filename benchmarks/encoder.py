"""The sentence encoder against transformers' Longformer and BERT: seconds, tokens/s, memory.

    python benchmarks/encoder.py [--histories 16 4] [--json PATH]

All read the same real histories with the same weights (MiniLM, 6 layers, 384 wide), ours packed,
transformers' padded to the longest history (Longformer's to a multiple of its window of 64). The
script ends where their outputs differ. Columns:

- tokens/s: real tokens, padding not counted.
- share of peak: floating-point operations that the method asks for at real tokens (``flop.py``),
  per second, of the measured peak of a matrix product of the same precision.
- beside products: seconds that our encoder spends in operations that are neither a matrix product
  nor attention, by torch's profiler; no implementation of the products can go below.
- peak MiB: most memory held, beyond the weights and what was there before.

The ratios are the seconds of transformers' module over those of ours, at the first ``--histories``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from corpus import WINDOW, Corpus, add_data_option, minilm_encoder
from flop import PASSES, encoder_flop
from measure import (
    PRECISIONS,
    arguments,
    autocast,
    interleaved,
    matmul_peak,
    matmuls,
    peak_memory_mib,
    report,
    synchronise,
)
from reference import (
    PaddedBatch,
    PaddedEncoder,
    largest_difference,
    padded_bert,
    padded_longformer,
    refuse_difference,
    spread,
)
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from recbole_jepa4rec.model.encoder import SentenceEncoder
from recbole_jepa4rec.text.token_batch import TokenBatch

OURS_WINDOW, OURS_DENSE, LONGFORMER, BERT = "ours, window 64", "ours, dense", "Longformer", "BERT"
Encoder = SentenceEncoder | PaddedEncoder

PRODUCTS = re.compile("mm|matmul|attention|linear")
"""Operations of torch that multiply matrices; attention's are fused with its softmax."""


@dataclass(frozen=True, eq=False)
class Candidate:
    """One module, one pass at one precision over one batch.

    Attributes:
        module: an encoder.
        batch: what it reads.
        direction: gradient of its output in a backward pass, zero at padding.
        precision: a key of ``PRECISIONS``.
        kind: a key of ``PASSES``.
        device: where all of it is.
    """

    module: Encoder
    batch: TokenBatch | PaddedBatch
    direction: Tensor
    precision: str
    kind: str
    device: str

    def run(self) -> None:
        """Make the pass."""
        self.module.zero_grad()
        backward = self.kind != "forward"
        with torch.set_grad_enabled(backward), autocast(self.precision, self.device):
            hidden = self.module(self.batch)
        if backward:
            hidden.backward(self.direction.to(hidden.dtype))

    def peak_mib(self) -> float:
        """Peak memory of the pass, gradients included."""
        self.module.zero_grad()
        peak = peak_memory_mib(self.run, self.device)
        self.module.zero_grad()
        return peak


def main() -> None:
    """Measure and report."""
    parser = arguments(__doc__)
    add_data_option(parser)
    parser.add_argument("--histories", type=int, nargs="+", default=[16, 4], help="batch sizes")
    options = parser.parse_args()
    device = options.device
    corpus, modules = Corpus.load(options.data), build_modules(device)
    rows, first = [], None
    for count in options.histories:
        examples = corpus.examples.sample(count)
        batch = examples.read(corpus.sentences)
        candidates = build_candidates(modules, batch, device)
        runs = {name: candidate.run for name, candidate in candidates.items()}
        seconds = interleaved(runs | matmuls(device), options.repeats, device)
        peak = matmul_peak(seconds)
        first = first or (seconds, peak)
        rows += [row(name, c, batch, seconds[name], peak) for name, c in candidates.items()]
    assert first
    main_row = next(r for r in rows if r["name"] == f"{OURS_DENSE}, fp32, forward+backward")
    report(options, rows, ratios(first[0]), first[1], main_row["share of peak"])


def build_modules(device: str) -> dict[str, Encoder]:
    """Encoders by name; those of transformers hold copies of ours' weights."""
    torch.manual_seed(0)
    item_positions = 0.02 * torch.randn(51, 384)  # ours start at zero, where a fault would not show
    window, dense = minilm_encoder(WINDOW), minilm_encoder(None)
    for encoder in (window, dense):
        encoder.embedding.item_positions.weight.data = item_positions.clone()
    return {
        OURS_WINDOW: window.to(device),
        OURS_DENSE: dense.to(device),
        LONGFORMER: padded_longformer(window).to(device),
        BERT: padded_bert(dense).to(device),
    }


def build_candidates(
    modules: Mapping[str, Encoder], batch: TokenBatch, device: str
) -> dict[str, Candidate]:
    """Every module at every precision and pass, once outputs are known to agree.

    Raises:
        SystemExit: if they do not.
    """
    for name, own in ((LONGFORMER, OURS_WINDOW), (BERT, OURS_DENSE)):
        difference = largest_difference(modules[own], modules[name], batch)
        refuse_difference(name, difference)
        print(f"largest difference of {name} and {own}: {difference:.1e}")
    generator = torch.Generator().manual_seed(0)
    packed = torch.randn(batch.num_tokens, 384, generator=generator).to(device)
    candidates = {}
    for name, module in modules.items():
        read: TokenBatch | PaddedBatch = batch
        direction = packed
        if isinstance(module, PaddedEncoder):
            read = module.padded(batch)
            direction = spread(packed, read.real)
        for precision in PRECISIONS:
            for kind in PASSES:
                key = f"{name}, {precision}, {kind}"
                candidates[key] = Candidate(
                    module.train(), read, direction, precision, kind, device
                )
    return candidates


def row(
    name: str, candidate: Candidate, batch: TokenBatch, seconds: float, peak: Mapping[str, float]
) -> dict[str, Any]:
    """A line of the table.

    Args:
        name: of the candidate.
        candidate: what was timed.
        batch: its real tokens.
        seconds: its median.
        peak: FLOP/s by precision.
    """
    work = PASSES[candidate.kind] * encoder_flop(batch.lengths, candidate.module.config)
    is_ours = isinstance(candidate.module, SentenceEncoder)
    run, device = candidate.run, candidate.device
    return {
        "name": name,
        "histories": batch.sequences,
        "tokens": batch.num_tokens,
        "seconds": seconds,
        "tokens/s": batch.num_tokens / seconds,
        "share of peak": work / seconds / peak[candidate.precision],
        "beside products": seconds_beside_products(run, device) if is_ours else None,
        "peak MiB": candidate.peak_mib(),
    }


def seconds_beside_products(run: Callable[[], Any], device: str) -> float:
    """Seconds of a call in operations that multiply no matrices, on the device they run on."""
    on_gpu = device.startswith("cuda")
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities) as profiler:
        run()
        synchronise(device)
    microseconds = [
        event.self_device_time_total if on_gpu else event.self_cpu_time_total
        for event in profiler.key_averages()
        if event.device_type == torch.autograd.DeviceType.CPU and not PRODUCTS.search(event.key)
    ]
    return sum(microseconds) / 1e6


def ratios(seconds: Mapping[str, float]) -> dict[str, float]:
    """Seconds of transformers' modules over ours."""
    pairs = {"longformer": (LONGFORMER, OURS_WINDOW), "bert": (BERT, OURS_DENSE)}
    return {
        f"{key}_{precision}_{kind.replace('+', '_')}": seconds[f"{theirs}, {precision}, {kind}"]
        / seconds[f"{ours}, {precision}, {kind}"]
        for key, (theirs, ours) in pairs.items()
        for precision in PRECISIONS
        for kind in PASSES
    }


if __name__ == "__main__":
    main()

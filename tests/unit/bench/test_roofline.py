"""Counts by hand and against the published floors, points from a scripted engine, and the picture."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import replace

import pytest

from nonet.bench.roofline.measure import Cases, measure_points
from nonet.bench.roofline.picture import draw
from nonet.bench.roofline.report import describe
from nonet.bench.roofline.result import Peaks, Point, Roofline
from nonet.bench.roofline.work import ModelWork
from nonet.config.load import from_options
from nonet.config.machine import Machine
from nonet.config.resolve import resolve
from nonet.core.model_spec import ModelSpec, RopeSpec
from nonet.core.outputs import SequenceDelta
from nonet.core.request import Request
from nonet.kv.format import KV_FORMATS
from nonet.quant.formats import WEIGHT_FORMATS

LLAMA_8B = ModelSpec(
    family="llama",
    vocab_size=128256,
    hidden_size=4096,
    intermediate_size=14336,
    num_layers=32,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    max_position=131072,
    norm_eps=1e-5,
    rope=RopeSpec(5e5),
)
GPU = replace(
    Machine.detect(), nvidia_driver=True, torch_cuda="13.0", gpu_name="H100", gpu_free_bytes=80 << 30,
    has_triton=True,
)  # fmt: skip
PEAKS = Peaks(arithmetic="bfloat16", flops_per_s=778e12, bytes_per_s=2.983e12)


def work(spec: ModelSpec = LLAMA_8B, **options: object) -> ModelWork:
    given = {"device": "cuda", "max_model_len": 4096, "max_num_seqs": 256, **options}
    kv = given.get("kv_format")
    resolved = resolve(
        from_options(given), spec, GPU, WEIGHT_FORMATS, model_path="",
        kv_format=None if kv is None else KV_FORMATS.build(str(kv)),
    )  # fmt: skip
    return ModelWork(spec, resolved)


@pytest.mark.parametrize(
    ("options", "batch", "floor_ms"),
    [
        ({"dummy_weights": True, "weight_format": "dense"}, 1, 5.04),
        ({"dummy_weights": True, "weight_format": "dense"}, 256, 7.91),
        ({"dummy_weights": True, "weight_format": "fp8", "kv_format": "fp8"}, 1, 2.70),
        ({"dummy_weights": True, "weight_format": "fp8", "kv_format": "fp8"}, 256, 4.13),
    ],
)
def test_the_published_byte_floors(options: dict[str, object], batch: int, floor_ms: float) -> None:
    """Of the shape on an H100, worked out by others before this code: weights once, 256 tokens of KV a sequence."""
    moved = work(**options).decode(batch, 256).num_bytes
    scales = 1.04 if options.get("kv_format") and batch > 1 else 1.005  # theirs counts no scales
    assert floor_ms - 0.01 <= 1e3 * moved / PEAKS.bytes_per_s <= floor_ms * scales


def test_prefill_operations_by_hand() -> None:
    done = work(dummy_weights=True, weight_format="dense").prefill(8, 2048)
    tail = 4096 * 4096 + 3 * 4096 * 14336  # of the last layer, for the sampled tokens alone
    linears = 2 * ((6_979_321_856 - tail) * 8 * 2048 + tail * 8)
    head = 2 * 128256 * 4096 * 8
    attention = 4 * 32 * 128 * 32 * 8 * (2048 * 2049 // 2)
    assert done.flops == linears + head + attention
    assert done.flops == pytest.approx(0.235e15, abs=0.005e15)


def test_a_window_bounds_what_is_seen() -> None:
    spec = replace(LLAMA_8B, num_layers=2, layer_windows=(64, None))
    counted = work(spec, dummy_weights=True, weight_format="dense")
    seen = counted.decode(1, 1000).num_bytes - counted.weight_bytes
    assert seen == counted.kv_bytes_per_layer * (64 + 1000 + 2)
    narrow = replace(LLAMA_8B, num_layers=2, layer_windows=(64, 64))
    short = work(narrow, dummy_weights=True, weight_format="dense").prefill(1, 100).flops
    pairs = sum(min(64, query + 1) for query in range(100))
    full = work(replace(LLAMA_8B, num_layers=2), dummy_weights=True, weight_format="dense")
    assert full.prefill(1, 100).flops - short == 4 * 32 * 128 * 2 * (5050 - pairs)


def test_a_tied_table_is_read_and_an_untied_one_is_not() -> None:
    tied = work(replace(LLAMA_8B, tie_embeddings=True), dummy_weights=True, weight_format="dense")
    untied = work(dummy_weights=True, weight_format="dense")
    assert tied.weight_bytes == untied.weight_bytes == tied.resolved.memory.weight_bytes


class Script:
    """An engine whose steps take a millisecond for each running sequence, and ten for each prompt."""

    def __init__(self) -> None:
        self.waiting: list[str] = []
        self.running: list[str] = []
        self.left: dict[str, int] = {}
        self.clock = 0.0
        self.decode_batches: list[int] = []

    @property
    def has_work(self) -> bool:
        return bool(self.waiting or self.running)

    def add(self, request: Request) -> None:
        self.waiting.append(request.request_id)
        self.left[request.request_id] = request.params.max_tokens or 0

    def abort(self, request_ids: Sequence[str]) -> None:
        gone = set(request_ids)
        self.waiting = [name for name in self.waiting if name not in gone]
        self.running = [name for name in self.running if name not in gone]

    def step(self) -> list[SequenceDelta]:
        if self.waiting:
            self.clock += 0.010
            self.running.append(self.waiting.pop(0))
            names = [self.running[-1]]
        else:
            self.clock += 0.001 * len(self.running)
            self.decode_batches.append(len(self.running))
            names = list(self.running)
        for name in names:
            self.left[name] -= 1
        self.running = [name for name in self.running if self.left[name] > 0]
        return [SequenceDelta(request_id=name, index=0, token_ids=[7]) for name in names]


def test_points_hold_what_their_steps_took() -> None:
    engine = Script()
    counted = work(dummy_weights=True, weight_format="dense", max_num_seqs=8)
    cases = Cases(batches=(1, 4, 16), contexts=(128, 4096), steps=3)
    points, left_out = measure_points(engine, counted, PEAKS, cases, now=lambda: engine.clock)
    seen = {(point.phase, point.batch): point for point in points}
    assert set(seen) == {("prefill", 1), ("prefill", 4), ("decode", 1), ("decode", 4)}
    assert seen["decode", 4].seconds == pytest.approx(0.004)
    assert seen["decode", 1].seconds == pytest.approx(0.001)
    assert seen["decode", 4].tokens_per_s == pytest.approx(1000)
    assert seen["prefill", 4].seconds == pytest.approx(0.040)
    assert seen["prefill", 4].tokens_per_s == pytest.approx(4 * 128 / 0.040)
    share = seen["decode", 4].num_bytes / 0.004 / PEAKS.bytes_per_s
    assert seen["decode", 4].bandwidth_share == pytest.approx(share)
    assert engine.decode_batches[-7:] == [1] * 7  # sequences left, none was computed again
    assert not engine.has_work
    assert left_out == [
        "batch 16 at 128 tokens: max_num_seqs is 8",
        *(f"batch {batch} at 4096 tokens: max_model_len is 4096" for batch in (16, 4, 1)),
    ]


def test_no_point_is_begun_after_its_time() -> None:
    engine = Script()
    counted = work(dummy_weights=True, weight_format="dense")
    cases = Cases(batches=(1, 2), contexts=(64, 128), steps=2, budget_s=0.005)
    points, left_out = measure_points(engine, counted, PEAKS, cases, now=lambda: engine.clock)
    assert {point.context for point in points} == {64}
    assert left_out == [
        "prefill of batch 1 at 64 tokens: the time for this benchmark was up",
        "128 tokens: the time for this benchmark was up",
    ]


def test_a_failing_sequence_ends_the_benchmark() -> None:
    class Failing(Script):
        def step(self) -> list[SequenceDelta]:
            super().step()
            return [SequenceDelta(request_id="r", index=0, error="not finite")]

    counted = work(dummy_weights=True, weight_format="dense")
    with pytest.raises(RuntimeError, match="not finite"):
        measure_points(Failing(), counted, PEAKS, Cases(batches=(1,), contexts=(64,)))


def roofline(points: list[Point]) -> Roofline:
    return Roofline(
        model="8B <dummy>", command=["nonet"], created="now", commit=None,
        device={"gpu": "H100", "cpu": "x"}, libraries={}, config={"device": "cuda"}, peaks=PEAKS,
        all_peaks={}, points=points, left_out=["batch 9: why"],
    )  # fmt: skip


def test_table_and_picture_show_every_point() -> None:
    counted = work(dummy_weights=True, weight_format="dense")
    done, read = counted.prefill(8, 2048), counted.decode(1, 256)
    points = [
        point("prefill", 8, 2048, done.flops / (0.5 * 778e12), done.flops, done.num_bytes),
        point("decode", 1, 256, read.num_bytes / (0.8 * 2.983e12), read.flops, read.num_bytes),
    ]
    text = describe(roofline(points))
    assert "50.0%" in text
    assert "80.0%" in text
    assert "left out: batch 9: why" in text
    root = ElementTree.fromstring(draw(roofline(points)))
    ns = "{http://www.w3.org/2000/svg}"
    dots = {
        dot.findtext(f"{ns}title"): dot
        for dot in root.iter(f"{ns}circle")
        if dot.find(f"{ns}title") is not None
    }
    assert set(dots) == {"prefill, batch 8, context 2048", "decode, batch 1, context 256"}
    prefill, decode = dots["prefill, batch 8, context 2048"], dots["decode, batch 1, context 256"]
    assert float(prefill.get("cx", 0)) > float(decode.get("cx", 0))  # more operations a byte
    assert float(prefill.get("cy", 0)) < float(decode.get("cy", 0))  # a higher rate
    assert "href" not in draw(roofline(points))


def test_a_picture_without_points_is_still_one() -> None:
    assert ElementTree.fromstring(draw(roofline([]))).tag.endswith("svg")


def point(
    phase: str, batch: int, context: int, seconds: float, flops: float, moved: float
) -> Point:
    return Point(
        phase=phase, batch=batch, context=context, seconds=seconds, least_s=seconds, tokens_per_s=1.0,  # type: ignore[arg-type]
        flops=flops, num_bytes=moved, compute_share=flops / seconds / PEAKS.flops_per_s,
        bandwidth_share=moved / seconds / PEAKS.bytes_per_s,
    )  # fmt: skip

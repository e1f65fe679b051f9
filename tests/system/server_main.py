"""Runs a whole server for the system tests: `python server_main.py '<json>'`, with a fake engine or the real one."""

from __future__ import annotations

import dataclasses
import sys
import tempfile
from pathlib import Path

import msgspec

from nonet.config.load import from_options
from nonet.config.resolved import CacheGroup, MemoryPlan, Resolved
from nonet.config.schema import Config, GatewayConfig, ServerConfig
from nonet.core.model_spec import GenerationDefaults, ModelSpec, RopeSpec
from nonet.engine.prepare import resolve_config
from nonet.server import protocol
from nonet.server.run import serve
from tests.system.fake_engine import EOS_ID, VOCAB_SIZE, FakeConfig
from tests.system.harness import fake_launch
from tests.system.tiny_text import write_tokenizer

FAKE_SPEC = ModelSpec(
    family="llama",
    vocab_size=VOCAB_SIZE,
    hidden_size=64,
    intermediate_size=128,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    max_position=4096,
    norm_eps=1e-5,
    rope=RopeSpec(theta=10000.0),
    eos_ids=(EOS_ID,),
    generation=GenerationDefaults(temperature=0.25, top_k=40),
)


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """What to serve. `options` are those of a real model; without them the fake engine is used."""

    fake: FakeConfig = msgspec.field(default_factory=FakeConfig)
    server: ServerConfig = msgspec.field(default_factory=ServerConfig)
    gateway: GatewayConfig = msgspec.field(default_factory=GatewayConfig)
    options: dict[str, str | bool | int | float | list[str]] = {}
    max_header_s: float | None = None  # instead of the limit that is no option


def fake_resolved(fake: FakeConfig, model_path: str) -> Resolved:
    return Resolved(
        model_path=model_path,
        served_name="fake",
        dtype="float32",
        weight_format="dense",
        dummy_weights=True,
        seed=0,
        max_model_len=fake.max_model_len,
        device="cpu",
        kernels="reference",
        recording=False,
        overlap=False,
        threads=1,
        block_size=16,
        kv_format="float32",
        num_blocks=1024,
        groups=(CacheGroup((0, 1), None),),
        prefix_cache=True,
        kv_reservation="paged",
        batching="continuous",
        policy="fcfs",
        max_num_seqs=fake.max_num_seqs,
        max_tokens_per_step=512,
        chunked_prefill=True,
        max_waiting=fake.max_waiting,
        memory=MemoryPlan(
            weight_bytes=0, kv_bytes_per_block=1, kv_bytes=1024, workspace_bytes=0, free_bytes=0
        ),
        reasons={"kernels": "a fake has none"},
    )


def main(text: str) -> None:
    job = msgspec.json.decode(text, type=Job)
    if job.max_header_s is not None:
        protocol.MAX_HEADER_S = job.max_header_s  # type: ignore[assignment]
    if job.options:
        config = dataclasses.replace(
            from_options(job.options), server=job.server, gateway=job.gateway
        )
        resolved, spec = resolve_config(config)
        serve(config, resolved, spec)
        return
    with tempfile.TemporaryDirectory() as folder:
        write_tokenizer(Path(folder))
        launch = fake_launch(job.fake)
        resolved = fake_resolved(job.fake, folder)
        serve(Config(server=job.server, gateway=job.gateway), resolved, FAKE_SPEC, launch=launch)


if __name__ == "__main__":
    main(sys.argv[1])

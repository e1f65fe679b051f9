"""The command line: a frozen list of options, errors as one line, precedence end to end, and a quick start."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from nonet.cli.main import BATCH_VERBS, BENCH_VERBS, USAGE_VERBS, VERBS, build_app, run
from nonet.config.options import options

ENGINE = {
    "--model", "--revision", "--served-name", "--dtype", "--weight-format", "--max-model-len", "--dummy-weights",
    "--seed", "--block-size", "--num-blocks", "--memory-fraction", "--memory-gib", "--prefix-cache",
    "--kv-prune", "--kv-reservation", "--policy", "--batching",
    "--max-num-seqs", "--max-tokens-per-step", "--chunked-prefill", "--max-waiting", "--device", "--kernels",
    "--recording", "--threads", "--overlap", "--lora-modules", "--lora-dir", "--max-loras", "--max-lora-rank",
    "--max-cpu-loras",
    "--config", "--lease-fraction", "--deterministic", "--kv-format", "--speculate", "--draft-length",
}  # fmt: skip
SERVER = {
    "--host", "--port", "--api-keys", "--api-key-file", "--allowed-hosts", "--max-body-bytes", "--stream-buffer-bytes",
    "--drain-s", "--keep-alive-s", "--tool-format", "--reasoning-parser", "--embedder", "--log-level",
}  # fmt: skip
GATEWAY = {
    "--gateway",
    "--data-dir",
    "--batch-lines",
    "--files-gib",
    "--price-table",
    "--store-sync",
    "--admin",
    "--admin-key",
}
SAMPLING = {
    "--max-tokens", "--temperature", "--top-p", "--top-k", "--min-p", "--repetition-penalty",
}  # fmt: skip
WORKLOAD = {
    "--workload", "--num-requests", "--prompt-len", "--output-len", "--workload-seed", "--speed", "--length-scale",
    "--warm-up", "--json",
}  # fmt: skip

# What users rely on: a change here is a change for them, and belongs in the change log.
FROZEN = {
    "serve": ENGINE | SERVER | GATEWAY,
    "chat": ENGINE | SAMPLING | {"--system", "--url", "--api-key"},
    "generate": ENGINE | SAMPLING | {"--prompts", "--chat", "--json"},
    "pull": {"--name", "--accept-unknown-licence", "--accept-terms"},
    "list": {"--json"},
    "plan": ENGINE | {"--json"},
    "ladder": ENGINE
    | {"--price", "--workload", "--num-requests", "--workload-seed", "--scale", "--rungs", "--repeats", "--rung-s",
       "--budget-s", "--quality", "--anchor-requests", "--latency-requests", "--leave-out", "--anchor", "--max-ttft",
       "--max-tpot", "--out", "--batch-tier"},
    "tune": {"--slo", "--quantile", "--results", "--lossless", "--out"},
    "doctor": {"--config", "--json"} | SERVER,
    "version": {"--json"},
    "usage report": {"--data-dir", "--by", "--since", "--until", "--tenant", "--json"},
    "usage export": {"--data-dir", "--since", "--until", "--tenant"},
    "batch submit": {"--requests", "--wait", "--url", "--api-key", "--json"},
    "batch wait": {"--batch-id", "--url", "--api-key", "--json"},
    "batch fetch": {"--batch-id", "--folder", "--url", "--api-key", "--json"},
    "batch cancel": {"--batch-id", "--url", "--api-key", "--json"},
    "batch list": {"--limit", "--url", "--api-key", "--json"},
    "bench quality": ENGINE | {"--task", "--against", "--with", "--json", "--markdown"},
    "bench offline": ENGINE | WORKLOAD | {"--repeats"},
    "bench kernel": ENGINE | {"--name", "--weights", "--rows", "--json"},
    "bench roofline": ENGINE
    | {"--batches", "--contexts", "--steps", "--most-tokens", "--budget-s", "--json", "--svg"},
    "bench serve": ENGINE | SERVER | WORKLOAD
    | {"--url", "--api-key", "--rate", "--arrival-seed", "--vocab-size", "--max-ttft", "--max-tpot", "--max-itl",
       "--max-e2e"},
}  # fmt: skip


def flags_of(verb: str) -> set[str]:
    app = build_app()
    for name in verb.split():
        app = app[name]
    arguments = app.assemble_argument_collection()
    return {argument.name for argument in arguments if argument.parse} - {"*"}


@pytest.mark.parametrize("verb", FROZEN)
def test_options_are_frozen(verb: str) -> None:
    assert flags_of(verb) == FROZEN[verb]


def test_every_verb_is_in_the_frozen_list() -> None:
    groups = {"bench": BENCH_VERBS, "usage": USAGE_VERBS, "batch": BATCH_VERBS}
    nested = {f"{group} {name}" for group, verbs in groups.items() for name in verbs}
    assert set(FROZEN) == set(VERBS) | nested


def test_every_option_of_the_configuration_has_its_flag() -> None:
    assert {row.flag for row in options().values()} <= FROZEN["serve"]


@pytest.mark.parametrize(
    ("line", "fragments"),
    [
        ("serv", ["no command 'serv'", "Did you mean 'serve'?"]),
        ("bench ofline", ["no command 'ofline'", "Did you mean 'offline'?"]),
        ("usage raport", ["no command 'raport'", "Did you mean 'report'?"]),
        ("batch sumbit", ["no command 'sumbit'", "Did you mean 'submit'?"]),
        ("batch submit none.jsonl", ["none.jsonl", "cannot be read"]),
        ("batch list --limit 0", ["--limit is 0", "at least 1"]),
        ("batch list --url nowhere", ["'nowhere'", "http://host:port"]),
        ("batch list --url http://127.0.0.1:9", ["no server answers at http://127.0.0.1:9"]),
        ("usage report nowhere", ["no database at nowhere", "data_dir"]),
        ("plan --dtyp float32", ["--dtyp", "Did you mean --dtype?"]),
        ("plan --dtype float33", ["float33", "bfloat16"]),
        ("plan --num-blocks many", ["many", "--num-blocks"]),
        ("plan --num-blocks 0", ["num_blocks is 0", "at least 1"]),
        ("plan --port 3", ["Unknown option", "--port"]),
        ("plan --config none.toml", ["none.toml", "No such file"]),
        ("plan --kv-prune snapkw", ["no KV pruner named 'snapkw'", "Did you mean 'snapkv'?"]),
        ("plan --kernels trition", ["no kernel implementation named", "Did you mean 'triton'?"]),
        ("plan --policy sloe", ["no scheduling policy named 'sloe'", "Did you mean 'slo'?"]),
        ("plan --policy slo:batch_stretch=0", ["batch_stretch is 0", "at least 1"]),
        ("plan --batching static:size=0", ["size is 0", "at least 1"]),
        ("plan --draft-length adapt", ["no draft length named", "adaptive"]),
        ("plan no-such-model", ["no model 'no-such-model'"]),
        ("plan ./missing.gguf", ["missing.gguf"]),
        ("pull smolm2", ["no packaged model 'smolm2'", "Did you mean 'smollm2'?"]),
        ("pull", ["--name"]),
        ("bench serve --url http://127.0.0.1:9", ["no server answers at http://127.0.0.1:9"]),
    ],
)
def test_mistakes_are_one_line(
    line: str, fragments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    code = run(line.split())
    out, err = capsys.readouterr()
    assert code == (1 if "--url http" in line else 2)
    assert out == ""
    assert err.startswith("nonet: ")
    assert err.count("\n") == 1
    for fragment in fragments:
        assert fragment in err


def test_plan_takes_flags_before_environment_before_file(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    file = tmp_path / "nonet.toml"
    file.write_text(
        "[scheduler]\nmax_num_seqs = 3\nmax_tokens_per_step = 33\n[runtime]\nthreads = 7\n"
    )
    monkeypatch.setenv("NONET_SCHEDULER_MAX_NUM_SEQS", "4")
    monkeypatch.setenv("NONET_SCHEDULER_MAX_TOKENS_PER_STEP", "44")
    line = ["plan", str(tiny_model), "--config", str(file), "--max-num-seqs", "5", "--json"]
    assert run(line) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["max_num_seqs"], found["max_tokens_per_step"], found["threads"]) == (5, 44, 7)
    assert found["sources"]["scheduler.max_num_seqs"] == "--max-num-seqs"
    assert (
        found["sources"]["scheduler.max_tokens_per_step"] == "NONET_SCHEDULER_MAX_TOKENS_PER_STEP"
    )
    assert found["sources"]["runtime.threads"] == f"{file}:5"


def test_plan_says_why(tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["plan", str(tiny_model), "--no-prefix-cache", "--dtype", "float32"]) == 0
    text = capsys.readouterr().out
    assert "the physical cores that this process may use" in text
    assert "set by --dtype" in text
    assert "set by --prefix-cache" in text
    # 2 layers, keys and values, 16 tokens, 1 head of 16, 4 bytes
    assert f"blocks of {2 * 2 * 16 * 16 * 4 // 1024}.0 KiB" in text


def test_list_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["list", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["smollm2"]["licence"] == "Apache-2.0"


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["version"]) == run(["--version"]) == 0
    first, second = capsys.readouterr().out.split()
    assert first == second


def test_terms_are_shown_and_must_be_accepted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NONET_CACHE", str(tmp_path))
    monkeypatch.setattr(sys, "stdin", open("/dev/null"))  # noqa: SIM115
    assert run(["pull", "gemma-3-270m"]) == 2
    assert "Gemma Terms of Use" in capsys.readouterr().err
    sys.stdin.close()


def test_help_names_sections_and_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["serve", "--help"]) == 0
    text = capsys.readouterr().out
    for part in ("Model", "Cache", "Scheduler", "Runtime", "Server", "--num-blocks", "8000"):
        assert part in text


def test_a_process_of_its_own_starts_quickly_and_without_torch() -> None:
    code = "import sys; sys.modules['torch'] = None; from nonet.cli.main import run; sys.exit(run(['--help']))"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert "doctor" in ran.stdout
    after = resource.getrusage(resource.RUSAGE_CHILDREN)  # CPU time: the machine may be busy
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 10


def test_a_mistake_in_a_process_of_its_own() -> None:
    command = [sys.executable, "-m", "nonet.cli.main", "plan", "--nope"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 2
    assert "Traceback" not in ran.stderr
    assert ran.stderr.count("\n") == 1

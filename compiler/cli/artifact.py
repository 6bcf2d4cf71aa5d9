"""Commands on one delivered artifact: verify, run, bench, inspect, finish."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from compiler.cli import text
from compiler.cli.options import FILE, FOLDER, cache_option, child_options, json_option, limits_of, sizes_of
from compiler.cli.output import print_json
from compiler.errors import UsageError

if TYPE_CHECKING:
    from compiler.driver.stages.verify import Verification


@click.command()
@click.argument("artifact", type=FOLDER)
@click.option("--model", type=FILE, help="The original model to compare with; the artifact's border model by default.")
@click.option("--samples", type=FILE, help="Inputs: .npz, .npy or a folder of them; random ones by default.")
@click.option("--evaluation", type=FILE, help="Labelled data to judge accuracy on again; needs --model.")
@click.option("--task", default="", help="Task of --evaluation; the one the artifact was built with by default.")
@click.option(
    "--key",
    "keys",
    type=FILE,
    multiple=True,
    metavar="FILE",
    help="Refuse it unless this public key has signed it; may be repeated, then each must have.",
)
@click.option("--files-only", is_flag=True, help="Check its files and signatures, and do not run it.")
@child_options
@json_option
def verify(
    artifact: Path,
    as_json: bool,
    model: Path | None,
    samples: Path | None,
    evaluation: Path | None,
    task: str,
    keys: tuple[Path, ...],
    files_only: bool,
    **limits: Any,
) -> None:
    """Check an ARTIFACT's files against their digests, run it, and compare it with the reference again.

    With --evaluation, its accuracy is judged again on those data, by the limit it was built with. With --key, its
    signatures are checked before anything of it is loaded.
    """
    from compiler.artifact.adapter import to_json
    from compiler.driver.delivered.operate import verify_delivered
    from compiler.driver.delivered.recheck import recheck_accuracy

    if evaluation is not None and model is None:
        raise UsageError(
            "accuracy is a loss against the original model, and none is given",
            where="--evaluation",
            remedy="Name it: --model model.onnx.",
        )
    signed = _check_signatures(artifact, keys)
    if files_only:
        _print_files(artifact, signed, as_json=as_json)
        return
    child_limits = limits_of(limits)
    delivered, verification = verify_delivered(artifact, model=model, samples=samples, child_limits=child_limits)
    device, parity = delivered.manifest.device, verification.parity
    value = {"device": device, **signed, **_verification_json(verification)}
    line = f"{device}: {parity.status}, {parity.evidence}, tolerance {parity.tolerance}{_signed_text(signed)}"
    if evaluation is not None and model is not None:
        gate, accuracy = recheck_accuracy(artifact, model=model, data=evaluation, task=task, child_limits=child_limits)
        value |= {"accuracy": to_json(accuracy), "gate": to_json(gate)}
        line += f"\n{gate}"
    print_json(value) if as_json else click.echo(line)


@click.command()
@click.argument("artifact", type=FOLDER)
@click.argument("inputs", type=FILE, required=False)
@click.argument("outputs", type=FILE, required=False)
@click.option("--prompt", help="Have a language model answer this text instead.")
@click.option("--tokenizer", type=FILE, help="With --prompt: the model's tokenizer.json; without, it is ids.")
@click.option(
    "--tokens", type=click.IntRange(min=1), default=64, show_default=True, help="With --prompt: most tokens to answer."
)
@child_options
@json_option
def run(
    artifact: Path,
    inputs: Path | None,
    outputs: Path | None,
    as_json: bool,
    prompt: str | None,
    tokenizer: Path | None,
    tokens: int,
    **limits: Any,
) -> None:
    """Run an ARTIFACT once on INPUTS (.npz, or .npy for one input) and write OUTPUTS; or let it answer a --prompt."""
    from compiler.driver.delivered.operate import run_delivered

    if prompt is not None:
        _answer(artifact, prompt, tokenizer, tokens, limits, as_json=as_json)
        return
    if inputs is None or outputs is None:
        raise UsageError(
            "there is nothing to run it on",
            where="run",
            remedy="Give INPUTS and OUTPUTS; to a language model --prompt, and its --tokenizer.",
        )
    specs = run_delivered(artifact, inputs, outputs, child_limits=limits_of(limits))
    if as_json:
        print_json({"outputs": [asdict(spec) for spec in specs], "file": str(outputs)})
    else:
        click.echo(f"{outputs}: {', '.join(spec.name for spec in specs)}")


def _answer(
    artifact: Path, prompt: str, tokenizer: Path | None, tokens: int, limits: dict[str, Any], *, as_json: bool
) -> None:
    from compiler.artifact.adapter import to_json
    from compiler.driver.delivered.answer import answer_prompt

    reply = answer_prompt(artifact, prompt, tokenizer=tokenizer, tokens=tokens, child_limits=limits_of(limits))
    if as_json:
        where = {"evidence": str(reply.evidence)}
        print_json({"text": reply.text, "tokens_per_s": reply.tokens_per_s, **where, **to_json(reply.answer)})
        return
    click.echo(reply.text)
    count, prompt_ms = len(reply.answer.tokens), reply.answer.prompt_ms
    times = f"{count} tokens, {reply.tokens_per_s:.1f} tokens/s; prompt {prompt_ms:.0f} ms ({reply.evidence})"
    click.echo(times, err=True)


@click.command()
@click.argument("artifact", type=FOLDER)
@click.option("--samples", type=FILE, help="Inputs: .npz, .npy or a folder of them; random ones by default.")
@click.option(
    "--size",
    "sizes",
    multiple=True,
    metavar="NAME=N",
    help="Size of a free dimension, e.g. batch=8; the plan's opt by default.",
)
@click.option("--repeat", type=click.IntRange(min=1), default=100, show_default=True, help="Timed runs.")
@child_options
@json_option
def bench(
    artifact: Path, as_json: bool, samples: Path | None, sizes: tuple[str, ...], repeat: int, **limits: Any
) -> None:
    """Time an ARTIFACT on this machine, or count its instructions under the emulator."""
    from compiler.artifact.adapter import to_json
    from compiler.driver.delivered.operate import bench_delivered

    result = bench_delivered(
        artifact, samples=samples, sizes=sizes_of(sizes), repeat=repeat, child_limits=limits_of(limits)
    )
    if as_json:
        print_json(to_json(result))
        return
    figures = [text.latency_text(result.latency)] if result.latency else []
    figures += [text.instructions_text(result.instructions_per_inference)] if result.instructions_per_inference else []
    click.echo(f"{result.device} {result.precision}: {'; '.join(figures) or 'nothing measured'} ({result.evidence})")


@click.command()
@click.argument("artifact", type=FOLDER)
@click.option("--node", metavar="NAME", help="What became of this node of the source model.")
@json_option
def inspect(artifact: Path, as_json: bool, node: str | None) -> None:
    """Show what an ARTIFACT is: its plan, passes, files and verdict; or what became of one node."""
    from compiler.artifact.adapter import to_json
    from compiler.artifact.manifest import read_artifact
    from compiler.driver.delivered.trace import find_node

    delivered = read_artifact(artifact)
    if node is not None:
        trace = find_node(artifact, node, delivered.manifest)
        print_json(trace) if as_json else click.echo(text.node_text(trace))
    elif as_json:
        print_json({"manifest": to_json(delivered.manifest), "measurements": to_json(delivered.measurements)})
    else:
        click.echo(text.manifest_text(delivered.manifest, delivered.measurements))


@click.command()
@click.argument("artifact", type=FOLDER)
@child_options
@cache_option
@json_option
def finish(artifact: Path, as_json: bool, cache: Path, **limits: Any) -> None:
    """Complete a deferred ARTIFACT on the device it is for."""
    from compiler.driver.delivered.operate import finish_delivered

    verification = finish_delivered(artifact, cache=cache, child_limits=limits_of(limits))
    parity = verification.parity
    print_json(_verification_json(verification)) if as_json else click.echo(
        f"{artifact}: finished, parity {parity.status} ({parity.evidence})"
    )


def _check_signatures(artifact: Path, keys: tuple[Path, ...]) -> dict[str, Any]:
    """Who signed it, as JSON has it; nothing where nobody was asked for."""
    from compiler.artifact.signing import check_signatures
    from compiler.store.keys import read_public_keys

    return {"signed_by": dict(check_signatures(artifact, read_public_keys(keys)).builders)} if keys else {}


def _signed_text(signed: dict[str, Any]) -> str:
    builders = signed.get("signed_by", {})
    return "".join(f"\nsigned by key {key_id[:16]}, built by {builder}" for key_id, builder in builders.items())


def _print_files(artifact: Path, signed: dict[str, Any], *, as_json: bool) -> None:
    """The verdict on an artifact that was not run."""
    from compiler.artifact.manifest import read_artifact

    manifest = read_artifact(artifact).manifest
    if as_json:
        print_json({"device": manifest.device, **signed, "files": len(manifest.files)})
    else:
        click.echo(f"{manifest.device}: every file is what was delivered; not run{_signed_text(signed)}")


def _verification_json(verification: Verification) -> dict[str, Any]:
    """The parity's own keys, with latency and instructions beside them."""
    from compiler.artifact.adapter import to_json

    value = to_json(verification)
    return {**value.pop("parity"), **value}

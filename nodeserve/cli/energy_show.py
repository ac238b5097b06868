"""``nodeserve energy show``: what one response has used."""

import click
import msgspec

from nodeserve.cli.energy_ledger import find_ledger, ledger_options
from nodeserve.cli.status import table
from nodeserve.ledger.response import RequestEnergy, ResponseEnergy, read_response

_MJ_PER_J = 1000

_HEADINGS = (
    *("REQUEST", "CHOICE", "OUTCOME", "PROMPT", "CACHED", "OUTPUT", "SCRAP"),
    *("PREFILL J", "DECODE J", "BOTH J", "SCRAP J", "STATE"),
)


@click.command("show")
@click.argument("response_id")
@click.option("--json", "as_json", is_flag=True, help="Print JSON; see docs/energy.md.")
@ledger_options
def command(
    response_id: str,
    as_json: bool,  # noqa: FBT001  (click passes flags by name)
    db: str | None,
    socket: str | None,
    runtime_dir: str | None,
) -> None:
    """Show what the response RESPONSE_ID has used above idle, by the id that its client got.

    Figures are provisional until the last of its windows is settled, some seconds after its end.
    """
    found = read_response(find_ledger(db, socket, runtime_dir), response_id)
    if as_json:
        text = msgspec.json.format(msgspec.json.encode(to_json(found)), indent=2).decode()
        click.echo(text)
    else:
        click.echo("\n".join(to_lines(found)))


def to_json(found: ResponseEnergy) -> dict[str, object]:
    """Return the response's sums in mJ and J, and its requests."""
    return {
        "response_id": found.response_id,
        "settled": found.is_settled,
        "total_mj": found.total_mj,
        "total_j": None if found.total_mj is None else found.total_mj / _MJ_PER_J,
        "prefill_mj": found.prefill_mj,
        "decode_mj": found.decode_mj,
        "aggregated_mj": found.aggregated_mj,
        "scrap_mj": found.scrap_mj,
        "requests": [msgspec.to_builtins(request) for request in found.requests],
    }


def to_lines(found: ResponseEnergy) -> list[str]:
    """Return the response's figures for people."""
    state = "settled" if found.is_settled else "provisional: some of its windows are not settled"
    if found.total_mj is None:
        energy = "energy unknown: nothing was metered for it"
    else:
        energy = f"{_joules(found.total_mj)} J above idle"
        output = sum(request.output_tokens for request in found.requests)
        if output and found.is_settled:
            energy += f", {found.total_mj / _MJ_PER_J / output:.3f} J per output token"
    lines = [f"{found.response_id}: {energy} ({state})", ""]
    lines += table(_HEADINGS, [_row(request) for request in found.requests])
    gaps = sorted({cause for request in found.requests for cause in request.gaps})
    if gaps:
        lines.append(f"may be too low: energy of its time is in quarantine ({', '.join(gaps)})")
    meters: dict[str, int] = {}
    for request in found.requests:
        for meter, mj in request.meters.items():
            meters[meter] = meters.get(meter, 0) + mj
    if meters:
        rows = [(meter, _joules(mj)) for meter, mj in sorted(meters.items())]
        lines += ["", *table(("METER", "J"), rows)]
    return lines


def _row(request: RequestEnergy) -> tuple[str, ...]:
    return (
        request.request_id,
        str(request.choice),
        request.outcome or "running",
        str(request.prompt_tokens),
        str(request.cached_tokens),
        str(request.output_tokens),
        str(request.scrap_tokens),
        _joules(request.prefill_mj),
        _joules(request.decode_mj),
        _joules(request.aggregated_mj),
        _joules(request.scrap_mj),
        "settled" if request.is_settled else "provisional",
    )


def _joules(mj: int | None) -> str:
    return "unknown" if mj is None else f"{mj / _MJ_PER_J:.3f}"

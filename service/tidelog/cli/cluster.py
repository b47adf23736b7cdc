"""`tidelog cluster`: the brokers, and taking one out of service."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from tidelog.cli.cost import cost
from tidelog.cli.quantities import counted, shown_bytes
from tidelog.cli.session import Format, Output, client_command, run, screen, show_json, show_table

if TYPE_CHECKING:
    from tidelog.client.admin import BrokerDescription
    from tidelog.client.client import Log

app = typer.Typer(help="Look at brokers, costs and what is deleted; drain one.", no_args_is_help=True)

BROKER_COLUMNS = {
    "broker": "left", "address": "left", "zone": "left", "epoch": "right", "lease": "right", "leads": "right", "state": "left",
}  # fmt: skip


def broker_row(broker: "BrokerDescription") -> tuple[object, ...]:
    """Return a broker under `BROKER_COLUMNS`."""
    state = "draining" if broker.draining else "serving"
    lease = f"{broker.lease_remaining_ms / 1000:.1f} s"
    return broker.broker_id, broker.address, broker.zone or "-", broker.broker_epoch, lease, broker.led_partitions, state


@app.command()
@client_command
def describe(output: Output = Format.TEXT) -> None:
    """Show the brokers, their leases, and what they lead."""

    async def work(log: "Log") -> None:
        cluster = await log.admin.describe_cluster()
        if output is Format.JSON:
            show_json(asdict(cluster))
            return
        screen().print(
            f"cluster {cluster.cluster_id}, format {cluster.format_version}, membership version {cluster.membership_version}", markup=False
        )
        show_table(BROKER_COLUMNS, [broker_row(broker) for broker in cluster.brokers])

    run(work)


@app.command()
@client_command
def drain(
    broker: Annotated[str, typer.Argument(metavar="BROKER", help="The broker's id, as `cluster describe` shows it.")],
    undo: Annotated[bool, typer.Option("--undo", help="Take it back into service.")] = False,
    output: Output = Format.TEXT,
) -> None:
    """Have a broker hand over what it leads.

    It takes nothing new. Returns at once; run it again to see how far it is.
    """

    async def work(log: "Log") -> None:
        drained, led = await log.admin.drain(broker, undo=undo)
        if output is Format.JSON:
            show_json({"broker": broker, "undo": undo, "drained": drained, "led_partitions": led})
        elif undo:
            typer.echo(f"Broker {broker} serves again.")
        elif drained:
            typer.echo(f"Broker {broker} is drained: it leads nothing and can be stopped.")
        else:
            typer.echo(f"Broker {broker} is draining: {counted(led, 'partition')} still to hand over.")

    run(work)


PLAN_COLUMNS = {"object": "left", "reason": "left", "state": "left", "size": "right", "age": "right"}


@app.command()
@client_command
def clean(
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be deleted; needed: deleting is the brokers' own work.")
    ] = False,
    max_objects: Annotated[int, typer.Option(metavar="COUNT", min=0, help="Objects to look at; 0: as many as the broker allows.")] = 0,
    output: Output = Format.TEXT,
) -> None:
    """Show what the cleaner would delete now, and why.

    Objects whose records are all merged or expired, and orphans: segments that no row of the metadata knows. Nothing is deleted.
    """
    if not dry_run:
        raise typer.BadParameter("brokers clean by themselves; with --dry-run this shows what they would delete")

    async def work(log: "Log") -> None:
        plan = await log.admin.plan_cleaning(max_objects=max_objects)
        if output is Format.JSON:
            show_json(asdict(plan))
            return
        goes = [each for each in plan.objects if each.state == "deletable"]
        size = shown_bytes(sum(each.bytes for each in goes))
        waiting = len(plan.objects) - len(goes)
        rest = "" if plan.complete else "; there are more than were looked at"
        typer.echo(f"{counted(len(goes), 'object')} would be deleted ({size}), {waiting} wait, of {plan.listed} listed{rest}.")
        if plan.objects:
            rows = [(each.key, each.reason, each.state, shown_bytes(each.bytes), f"{each.age_ms / 1000:.0f} s") for each in plan.objects]
            show_table(PLAN_COLUMNS, rows)

    run(work)


app.command()(cost)

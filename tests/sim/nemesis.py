"""What befalls a simulated cluster, and how it heals."""

from collections.abc import Callable

from tests.sim.loop import State
from tests.sim.world import Process, World, begin, kill

Strike = Callable[[World, Process, float], None]


def strike(world: World) -> None:
    """Do one of the things that this seed has drawn, to one of the brokers, for a while."""
    chance = world.chance
    fault = chance.choice(world.draw.faults)
    world.counts[f"fault: {fault}"] += 1
    victim = world.brokers[chance.choice(sorted(world.brokers))]
    lasts = chance.choice((chance.uniform(0.2, 2), chance.uniform(1, 9)))
    world.tell("fault", victim.label, "{}, for {:.1f} s", fault, lasts)
    _STRIKES[fault](world, victim, lasts)


def heal(world: World) -> None:
    """Undo all that can be undone; what is dead begins again by itself."""
    world.failing = dict.fromkeys(world.failing, 0.0)
    for outages in world.outages.values():
        if outages:
            outages[-1] = (outages[-1][0], min(outages[-1][1], world.loop.now))
    world.cut.clear()
    world.silenced.clear()
    world.at_commit.clear()
    for process in world.brokers.values():
        world.loop.resume(process.node)
    world.tell("fault", "world", "heals")


def _kill(world: World, victim: Process, lasts: float) -> None:
    kill(world, victim.name)
    world.loop.outside(world.chance.choice((0.01, lasts)), begin, world, victim.name)


def _kill_all(world: World, victim: Process, lasts: float) -> None:
    for name in sorted(world.brokers):
        _kill(world, world.brokers[name], lasts)


def _last_words(world: World, victim: Process, lasts: float) -> None:
    """Let a broker die whose last calls take effect when its lease has passed."""
    world.silenced.add(victim.name)

    def die() -> None:
        world.silenced.discard(victim.name)
        kill(world, victim.name)
        world.loop.outside(world.draw.settings.lease_ms / 1000 * 3, begin, world, victim.name)

    world.loop.outside(world.chance.uniform(0.1, 1.0), die)


def _struck_at_commit(world: World, victim: Process, _: float) -> None:
    """Kill a leader between a commit and its answers, or pause it for just so long that another takes over meanwhile."""
    then = world.chance.choice((_kill, _pause))
    lasts = world.chance.uniform(1, 2.5) * world.draw.settings.lease_ms / 1000
    world.at_commit[victim.name] = lambda: then(world, world.brokers[victim.name], lasts)


def _pause(world: World, victim: Process, lasts: float) -> None:
    if victim.node.state is State.RUNNING:
        victim.node.state = State.PAUSED
        world.loop.outside(lasts, world.loop.resume, victim.node)


def _drain(world: World, victim: Process, lasts: float) -> None:
    if victim.node.state is State.DEAD or victim.leaving:
        return
    world.loop.call_soon(lambda: world.loop.create_task(victim.drain(), context=victim.context), context=victim.context)
    patience_s = world.draw.settings.drain_timeout_ms / 1000 + 2

    def replace() -> None:
        kill(world, victim.name)
        begin(world, victim.name)

    world.loop.outside(patience_s + lasts, lambda: replace() if world.brokers[victim.name] is victim else None)


def _cut_peer(world: World, victim: Process, lasts: float) -> None:
    other = world.chance.choice(sorted(world.brokers))
    everyone = [(victim.name, each) for each in sorted(world.brokers)]
    links = world.chance.choice(([(victim.name, other)], [(victim.name, other), (other, victim.name)], everyone))
    _cut(world, {link for link in links if link[0] != link[1]}, lasts)


def _cut_port(port: str) -> Strike:
    return lambda world, victim, lasts: _cut(world, {(victim.name, port)}, lasts)


def _cut(world: World, links: set[tuple[str, str]], lasts: float) -> None:
    for link in sorted(links):
        world.cut.add(link)
        world.loop.outside(lasts, world.cut.discard, link)


def _fail(port: str) -> Strike:
    def fail(world: World, _: Process, lasts: float) -> None:
        world.failing[port] = world.chance.choice((0.02, 0.1, 0.3))
        world.loop.outside(lasts, world.failing.__setitem__, port, 0.0)

    return fail


def _take_down(port: str) -> Strike:
    return lambda world, _, lasts: world.take_down(port, lasts)


def _skew(world: World, victim: Process, _: float) -> None:
    """Let a clock run faster or slower from now on."""
    node, now = victim.node, world.loop.now
    shown = now * node.rate + node.skew_s
    node.rate = world.chance.uniform(0.8, 1.2)
    node.skew_s = shown - now * node.rate


_STRIKES: dict[str, Strike] = {
    "kill": _kill,
    "kill all": _kill_all,
    "last words": _last_words,
    "struck at commit": _struck_at_commit,
    "pause": _pause,
    "drain": _drain,
    "cut peer": _cut_peer,
    "cut metadata": _cut_port("metadata"),
    "cut store": _cut_port("store"),
    "cut client": _cut_port("client"),
    "metadata": _fail("metadata"),
    "store": _fail("store"),
    "bodies": _fail("bodies"),
    "network": _fail("network"),
    "store outage": _take_down("store"),
    "metadata outage": _take_down("metadata"),
    "skew": _skew,
}

"""Shares: what inference replicas, trainings and scoring ask of a node, and how many of each a cluster holds.

Where every node has one GPU, that is divided among its replicas, a training worker and a scoring worker. Ray gives
parts of a GPU from the fullest one that has room, so that on nodes with several the parts that are meant for one GPU
would lie on another: there a GPU either serves or trains, and one of them is left to training. Without GPUs replicas
divide the CPUs of their node, but for one that background work asks for: it runs in idle time only, on whatever cores
clicks leave. Batch inference asks as scoring does. Pure functions without torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Resources = Mapping[str, float]
"""Amounts by Ray's names, `CPU` and `GPU`."""

GIB = 1 << 30
TRAINING = 0.51
"""Share of a training worker: more than half, so that no two of them are placed on one GPU."""
SCORING = 0.09
"""Share of a scoring worker, where every node has one GPU."""
CLICKS = 0.4
"""Share of all inference replicas of a GPU together, where every node has one."""
SERVING = 0.9
"""Share of all inference replicas of a GPU together, where nodes have several: no training fits beside them."""
SPARE = 0.49
"""Share of a scoring worker there: one fits beside a training worker, two on a GPU by themselves, none where a GPU
serves."""
IDLE_CPUS = 1.0
"""Logical CPUs of a node without GPUs that replicas leave to background work."""
SCORER_CPUS = 0.002
"""Logical CPUs of a scoring worker where there is no GPU: one for each core finds room beside a training."""
CORES_PER_REPLICA = 4
"""Threads per network on the CPU; more gain little, so further cores serve another annotator with another replica."""
MOST_THREADS = 8
"""Threads of a replica that computes on a GPU, at most: they decode, prepare and encode."""
REPLICA_MEMORY = 12 * GIB
"""Bytes of GPU memory per replica; it may need half of them, for CUDA itself, its volumes and a forward pass."""
REPLICAS_PER_GPU = 4
"""Maximum number of replicas per GPU; more would wait for each other's kernels."""
SCORER_MEMORY = 4 * GIB
"""Bytes of a machine's memory for each scoring worker: a network, an image, and its samples."""
SHOWN = ("GPU", "CPU")
GRAIN = 1e-4
"""Ray counts resources in multiples of this."""


@dataclass(frozen=True, kw_only=True)
class Node:
    """A node's resources when nothing runs on it.

    Attributes:
        cpus: logical CPUs, as Ray counts them.
        cores: processor cores, if they are not the logical CPUs.
        gpus: number of GPUs.
        gpu_memory: bytes of the smallest of them; None if it is not known.
    """

    cpus: float
    cores: int | None = None
    gpus: int = 0
    gpu_memory: int | None = None

    @property
    def threads(self) -> int:
        """Threads that compute at the same time."""
        return int(self.cpus) if self.cores is None else min(int(self.cpus), self.cores)

    @property
    def resources(self) -> dict[str, float]:
        """As Ray counts them."""
        return {"CPU": self.cpus, "GPU": float(self.gpus)}


@dataclass(frozen=True, kw_only=True)
class Shares:
    """Resources that each kind of process asks of its node, by Ray's names. Batch inference asks as scoring does."""

    replica: Resources
    training: Resources
    scorer: Resources

    @property
    def on_gpus(self) -> bool:
        """True if networks run on GPUs."""
        return bool(self.training.get("GPU"))


def shares(
    nodes: Sequence[Node], *, replicas: tuple[int, int] = (1, 1), replica_gpus: float | None = None, fixed: bool = False
) -> Shares:
    """Plan the requests of each kind of process on a cluster of these nodes, so that they all find room together.

    Nodes with fewer than `CORES_PER_REPLICA` CPUs count only if there are no larger ones.

    Args:
        nodes: of the cluster; empty if none has joined yet.
        replicas: fewest and most replicas of the server.
        replica_gpus: share of a GPU of each replica; None to plan it, 0 to do without GPUs.
        fixed: no node will join, so that replicas beyond the planned ones divide those that there are.
    """
    with_gpus = [node for node in nodes if node.gpus]
    several = any(node.gpus > 1 for node in with_gpus)
    training: Resources = {"CPU": TRAINING}
    scorer: Resources = {"CPU": SCORER_CPUS}
    if with_gpus or replica_gpus:
        training, scorer = {"GPU": TRAINING}, {"GPU": SPARE if several else SCORING}
        if replica_gpus != 0:
            each = min([replicas_per_gpu(node.gpu_memory) for node in with_gpus], default=1)
            share = replica_gpus or _rounded((SERVING if several else CLICKS) / each)
            cpus = min((_cpus_beside_gpus(node, share) for node in _large(with_gpus)), default=1.0)
            return Shares(replica={"CPU": cpus, "GPU": share}, training=training, scorer=scorer)
    low, high = replicas if fixed else (replicas[0], 1)
    hosts = _large([node for node in nodes if node.cpus > 0])
    each = -(-low // max(1, len(hosts)))
    cpus = min((_cpus(node, each, high) for node in hosts), default=1.0)
    return Shares(replica={"CPU": cpus}, training=training, scorer=scorer)


def replicas_per_gpu(memory: int | None) -> int:
    """Replicas that share a GPU with so many bytes, of which one is enough where the number is unknown."""
    return 1 if memory is None else min(REPLICAS_PER_GPU, max(1, memory // REPLICA_MEMORY))


def replicas_on(node: Node, replica: Resources) -> int:
    """Replicas that find room on a node beside background work, or at all where a share leaves none for that."""
    if share := replica.get("GPU", 0.0):
        return min(_gpu_replicas(node, share), int(node.cpus / replica["CPU"] + GRAIN))
    return int(_cpus_for_clicks(node.cpus) / replica["CPU"] + GRAIN)


def threads_on(node: Node, replica: Resources) -> int:
    """Threads of a replica on a node: as many as the CPUs that it asks for, and more on a node with CPUs to spare."""
    threads = max(1, node.threads // max(1, replicas_on(node, replica)))
    return min(threads, MOST_THREADS) if replica.get("GPU") else threads


def scorers_on(node: Node, scorer: Resources, *, memory: int) -> int:
    """Scoring workers of a node with so many bytes of memory on which no replica and no training runs: one for each
    GPU, or two where they leave room for no replica; without GPUs one for each core.
    """
    if share := scorer.get("GPU", 0.0):
        return node.gpus * (2 if share > SCORING else 1)
    return max(1, min(node.threads, memory // SCORER_MEMORY)) if node.cpus else 0


def trainings_on(node: Node, asked: Shares) -> int:
    """Training workers for which there is room on a node beside all of its replicas: none on a GPU that is the only one
    of its node and serves as those of nodes with several do.
    """
    if not asked.training.get("GPU"):
        return int(node.cpus > 0)
    return int(node.gpus > 1 or (node.gpus == 1 and asked.replica.get("GPU", 0.0) <= CLICKS))


def outgrown(asked: Resources, wanted: Resources, nodes: Sequence[Node]) -> bool:
    """True if running replicas are to be placed anew: GPUs have joined or are gone, a GPU is too small for as many as
    shared one so far, or none of the nodes holds a replica any more.

    Args:
        asked: what each of them asks for.
        wanted: what the nodes suggest now.
        nodes: of the cluster.
    """
    if bool(asked.get("GPU")) != bool(wanted.get("GPU")) or wanted.get("GPU", 0.0) > asked.get("GPU", 0.0):
        return True
    whole = [node.resources for node in nodes]
    return not any(fits(asked, node) for node in whole) and any(fits(wanted, node) for node in whole)


def shortage(asked: Resources, *, free: Sequence[Resources], whole: Sequence[Resources]) -> str | None:
    """Advice on a worker that fits on no node: the resource that is short, and what to do about it.

    Args:
        asked: what one worker asks of a node; a GPU may be asked for in part.
        free: what is left on each node.
        whole: what each node has when nothing runs on it.

    Returns:
        A sentence for the job's details; None if a node has room.
    """
    if any(fits(asked, node) for node in free):
        return None
    wanted = " and ".join(f"{amount:g} {name}" for name, amount in asked.items() if amount)
    left = max(free, key=lambda node: [node.get(name, 0.0) for name in SHOWN], default={})
    rest = ", ".join(f"{left.get(name, 0.0):g} {name}" for name in SHOWN if asked.get(name))
    if any(fits(asked, node) for node in whole):
        cure = "it starts when another job or an idle replica gives its share back (see replica_gpus and --replicas)"
    else:
        cure = "no node is large enough: add one, or start the server with more (--num-cpus)"
    return f"waits for room: a worker needs {wanted}, the freest node has {rest or 'nothing'} left; {cure}"


def fits(asked: Resources, node: Resources) -> bool:
    """True if a node with these resources holds what is asked for."""
    return all(node.get(name, 0.0) >= amount - GRAIN / 2 for name, amount in asked.items())


def _large(nodes: Sequence[Node]) -> Sequence[Node]:
    """The nodes that decide what a replica asks for."""
    most = max((node.cpus for node in nodes), default=0.0)
    return [node for node in nodes if node.cpus >= min(most, CORES_PER_REPLICA)]


def _cpus_for_clicks(cpus: float) -> float:
    """CPUs of a node without GPUs that replicas may ask for."""
    return max(cpus - IDLE_CPUS, CLICKS * cpus)


def _cpus(node: Node, low: int, high: int) -> float:
    """CPUs of a replica on a node without GPUs that holds the planned number of replicas, at least `low`, and as many
    of `high` as leave each two threads, or two on a node of two or three."""
    count = max(node.threads // CORES_PER_REPLICA, low, min(high, max(2, node.threads // 2)), 1)
    return _rounded(min(_cpus_for_clicks(node.cpus) / count, max(1, node.threads // count)))


def _cpus_beside_gpus(node: Node, share: float) -> float:
    """CPUs of a replica on a node with GPUs, where background work asks for no CPU."""
    count = _gpu_replicas(node, share)
    whole = min(MOST_THREADS, node.threads // count)
    return float(whole) if whole else _rounded(max(node.cpus, 1.0) / count)


def _gpu_replicas(node: Node, share: float) -> int:
    """Replicas that a node's GPUs hold: beside a training on the only one, or on all but the one that trains."""
    if node.gpus == 1:
        return int(CLICKS / share + GRAIN) or int(1 / share + GRAIN)
    return max(0, node.gpus - 1) * int(1 / share + GRAIN)


def _rounded(amount: float) -> float:
    """Rounded down to what Ray can count."""
    return max(GRAIN, int(amount / GRAIN + 1e-6) * GRAIN)

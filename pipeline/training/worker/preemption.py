"""The notice that a node is about to be taken away, as Ray passes it on from the cluster."""

import logging

import ray.train

from pipeline.training.config import ClusterConfig
from pipeline.training.worker.overhead import Overhead

logger = logging.getLogger(__name__)


class PreemptionNotice:
    """Looks every so many steps (0: never) whether a node of the run is announced to leave."""

    def __init__(self, cluster: ClusterConfig, rank: int, overhead: Overhead) -> None:
        self._every, self._rank, self._overhead = cluster.preemption_every, rank, overhead

    def nodes(self, step: int, look: bool = False) -> str:
        """Returns the nodes that are about to leave, or an empty string; the same on all workers.

        It asks all workers together, after each step. With `look` it asks out of turn as well,
        because what comes next takes long.
        """
        if not self._every or (step % self._every and not look):
            return ""
        with self._overhead.spent("train/notice_s"):  # All workers wait for the last to ask.
            info = ray.train.get_preemption_info()
        if info is None:
            return ""
        nodes = ", ".join(node[:8] for node in info.preempted_node_ids)
        if self._rank == 0:
            logger.warning("step %d: node %s is about to leave: checkpoint", step, nodes)
        return nodes

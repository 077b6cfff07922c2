"""The notice that a node is about to be taken away, as Ray passes it on from the cluster."""

import logging

import ray.train

logger = logging.getLogger(__name__)


class PreemptionNotice:
    """Looks every so many steps (0: never) whether a node of the run is announced to leave."""

    def __init__(self, every: int, rank: int) -> None:
        self._every, self._rank, self._told = every, rank, False

    def is_new(self, step: int, look: bool = False) -> bool:
        """Whether the first notice has just come; asks all workers together, after each step.

        With `look` it asks out of turn as well, because what comes next takes long.
        """
        if self._told or not self._every or (step % self._every and not look):
            return False
        info = ray.train.get_preemption_info()
        if info is None:
            return False
        self._told = True
        if self._rank == 0:
            nodes = ", ".join(node[:8] for node in info.preempted_node_ids)
            logger.warning("step %d: node %s is about to leave: checkpoint", step, nodes)
        return True

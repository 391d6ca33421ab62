"""One model on several processes: graphs and grids are partitioned, and each layer exchanges halo rows once.

    partition = shard(graph)                      # the same call in every process of a torch.distributed group
    net = distribute(net, partition)              # a copy with weights that are the same everywhere
    y = net(partition.take(x))                    # the rows of this process
    loss(y).backward()                            # gradients of the sum over the processes

The rows to exchange are the column support of S, the input rows that an output row reads, for grids and graphs alike.
"""

from gconv.parallel.halo import Halo, halo
from gconv.parallel.network import distribute
from gconv.parallel.partition import Partition, shard
from gconv.parallel.processes import ProcessError
from gconv.parallel.statistics import sync_batch_norm

__all__ = ["Halo", "Partition", "ProcessError", "distribute", "halo", "shard", "sync_batch_norm"]

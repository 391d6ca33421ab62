"""One model on several processes: graphs and grids in parts, one exchange of halo rows a layer.

    partition = shard(graph)                      # the same call in every process of a torch.distributed group
    net = distribute(net, partition)              # a copy with weights that are the same everywhere
    y = net(partition.take(x))                    # the rows of this process
    loss(y).backward()                            # gradients of the sum over the processes

Which input rows an output row reads is the column support of S, for grids and graphs alike: it says what is sent.
"""

from gconv.parallel.halo import Halo, halo
from gconv.parallel.network import distribute
from gconv.parallel.partition import Partition, shard
from gconv.parallel.processes import ProcessError

__all__ = ["Halo", "Partition", "ProcessError", "distribute", "halo", "shard"]

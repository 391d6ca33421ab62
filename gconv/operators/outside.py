"""PyG's convolutions that are not of the form sum_k S_k X W_k + b, each with the assumption that fails."""

from __future__ import annotations

OUTSIDE: dict[str, str] = {
    "AntiSymmetricConv": "A tanh sits inside the layer, between one step of its differential equation and the next.",
    "CGConv": "Its message, a sigmoid times a softplus, is a nonlinear function of both ends, not a matrix times x_j.",
    "DNAConv": "Its signal has an axis of past layers, and for frozen attention a message is not linear in x: the bias "
    "of the values is weighed by the attention.",
    "DynamicEdgeConv": "Its message is a network of both ends, and its graph the nearest neighbours in x, so there is "
    "no domain.",
    "EdgeConv": "Its message is a network of both ends, h(x_i, x_j - x_i), not a matrix times x_j.",
    "FiLMConv": "Its message passes through a ReLU after x_i has scaled and shifted it, so it is not linear in x_j.",
    "GENConv": "Its message passes through a ReLU and a soft or power mean over the neighbours, so it is not linear "
    "in x_j.",
    "GINEConv": "Its message is ReLU(x_j + e_ij), so it is not linear in x_j.",
    "GPSConv": "It is a whole block: convolution, global attention, normalisation and a network, with ReLU between.",
    "GatedGraphConv": "A gated recurrent unit sits inside the layer, between one step and the next.",
    "GeneralConv": "With edge features a message has a term without x, and l2_normalize divides by the norm of the "
    "output; neither is S X W.",
    "GravNetConv": "Its graph is the nearest neighbours in a learned projection of x, so there is no domain, and a "
    "mean and a maximum are taken of the same messages.",
    "HANConv": "Each type of node is a signal on a domain of its own, and a ReLU and an attention over the types sit "
    "inside the layer.",
    "HEATConv": "Its message is affine in the edge features beside x_j, so it has a term without x that each edge "
    "weighs.",
    "HGTConv": "Each type of node is a signal on a domain of its own, and a GELU sits inside the layer.",
    "HeteroConv": "Each type of node is a signal on a domain of its own: a container of convolutions, not one.",
    "MeshCNNConv": "It takes absolute differences |x_a - x_c| of the neighbours, so it is not linear in x.",
    "PNAConv": "Its message is a network of both ends, and several aggregations with scalers (maximum, deviation) are "
    "mixed.",
    "PPFConv": "Its message is a network of x_j and point pair features together, so it is not linear in x_j.",
    "PointGNNConv": "Its message is a network of x_j and of an offset that x_i moves, so it is not linear in x_j.",
    "PointNetConv": "Its message is a network of x_j and the offset together, so it is not linear in x_j.",
    "PointTransformerConv": "Its values are x_j plus a network of the offset, so for frozen attention a message has a "
    "term without x.",
    "WLConv": "It hashes colours: it maps integers to integers and is not linear in anything.",
    "XConv": "Its features are x beside a network of the offsets, so the output has a term without x, and neighbours "
    "come in an order of their own.",
}

"""An eigensolver that answers as another machine might: other eigenvectors of equal eigenvalues, other signs."""

import torch

_random = torch.Generator()


def perturbed(A):
    """torch.linalg.eigh, with what it leaves open drawn at random at each call.

    Eigenvalues that are equal up to rounding are made exactly equal, their eigenvectors turned by a random rotation,
    and the sign of every eigenvector is random. Under vmap, where nobody can look at numbers, nothing changes.
    """
    from gconv.kernels import readable

    values, vectors = torch.linalg.eigh(A)
    if not readable(A) or not values.numel():
        return values, vectors
    n = values.shape[-1]
    for w, V in zip(values.reshape(-1, n), vectors.reshape(-1, n, n), strict=True):
        near = 1e-10 * max(1e-300, float(w.detach().abs().max()))
        start = 0
        for end in range(1, n + 1):
            if end < n and float(w[end]) - float(w[end - 1]) <= near:
                continue
            turn = torch.randn(end - start, end - start, dtype=torch.float64, generator=_random)
            turn = torch.linalg.qr(turn)[0].to(V.device, V.dtype)
            w[start:end] = w[start:end].mean()
            V[:, start:end] = V[:, start:end].clone() @ turn
            start = end
    return values, vectors

"""Images as graphs: who is joined to whom, what a node carries, and a cache that survives kills and damage."""

import errno
import os

import numpy as np
import pytest
import torch

from datasets import DataNotWritten, grid_graph, images, knn_graph, root, superpixel_graph, superpixel_set

pytestmark = pytest.mark.usefixtures("one_thread")


def noise(*shape, seed=0):
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def patches(*shape, seed=0):
    """Noise in blocks of 4x4: pure noise has no patches to find."""
    h, w = shape[-2:]
    coarse = noise(*shape[:-2], -(-h // 4), -(-w // 4), seed=seed)
    return coarse.repeat_interleave(4, -2).repeat_interleave(4, -1)[..., :h, :w].contiguous()


def pairs(graph):
    return set(map(tuple, graph.edge_index.T.tolist()))


def assert_well_formed(graph):
    n, edges = graph.num_nodes, pairs(graph)
    assert len(edges) == graph.num_edges  # no duplicates
    assert all((b, a) in edges and a != b and 0 <= a < n for a, b in edges)
    assert torch.equal(graph.edge_attr, graph.pos[graph.edge_index[0]] - graph.pos[graph.edge_index[1]])
    assert (graph.edge_index[1].diff() >= 0).all()
    assert graph.x.dtype == graph.pos.dtype == torch.float32 and graph.x.min() >= 0 and graph.x.max() <= 1


@pytest.mark.parametrize("h, w", [(1, 1), (1, 5), (4, 1), (2, 2), (3, 5)])
@pytest.mark.parametrize("neighbours", [4, 8])
def test_grid_is_exactly_the_neighbourhood(h, w, neighbours):
    graph = grid_graph(noise(2, h, w), neighbours)
    where = [(r, c) for r in range(h) for c in range(w)]
    reach = {4: lambda r, c: r + c == 1, 8: lambda r, c: max(r, c) == 1}[neighbours]
    expected = {
        (i, j)
        for i, (r, c) in enumerate(where)
        for j, (s, d) in enumerate(where)
        if reach(abs(r - s), abs(c - d))
    }  # fmt: skip
    assert pairs(graph) == expected
    assert graph.pos.tolist() == [list(map(float, p)) for p in where]
    assert_well_formed(graph)


def test_grid_features_are_the_pixels_row_major():
    image = noise(3, 4, 5)
    graph = grid_graph(image, y=7)
    assert torch.equal(graph.x, image.float().div(255).flatten(1).T)
    assert graph.y.tolist() == [7]
    assert torch.equal(grid_graph(image.float() / 255).x, graph.x)


def test_knn_by_position_contains_the_grid_and_by_colour_prefers_alike():
    graph = knn_graph(torch.zeros(1, 6, 6), k=4)
    assert_well_formed(graph)
    inner = {(i, j) for i, j in pairs(grid_graph(torch.zeros(1, 6, 6), 4)) if 1 <= j // 6 <= 4 and 1 <= j % 6 <= 4}
    assert inner <= pairs(graph)
    halves = torch.zeros(1, 6, 6)
    halves[..., 3:] = 1
    across = [a for a, b in pairs(knn_graph(halves, k=4)) if (a % 6 < 3) != (b % 6 < 3)]
    assert across
    assert not [a for a, b in pairs(knn_graph(halves, k=4, colour=50)) if (a % 6 < 3) != (b % 6 < 3)]
    assert knn_graph(halves, k=4).edge_index[1].bincount().min() >= 4


def quarters():
    image = torch.zeros(3, 16, 16)
    image[0, :8], image[1, :, 8:] = 1.0, 0.5
    return image


def test_superpixels_of_flat_quarters():
    graph = superpixel_graph(quarters(), segments=4, y=1)
    assert_well_formed(graph)
    assert graph.x[:, :3].tolist() == [[1, 0, 0], [1, 0.5, 0], [0, 0, 0], [0, 0.5, 0]]
    assert graph.pos.tolist() == [[3.5, 3.5], [3.5, 11.5], [11.5, 3.5], [11.5, 11.5]]
    assert graph.x[:, 3:].tolist() == [[0.25, 0.25], [0.25, 0.75], [0.75, 0.25], [0.75, 0.75]]
    assert pairs(graph) == {
        (0, 1),
        (1, 0),
        (0, 2),
        (2, 0),
        (1, 3),
        (3, 1),
        (2, 3),
        (3, 2),
    }  # shared borders, no corners
    assert graph.y.tolist() == [1]
    everyone = superpixel_graph(quarters(), segments=4, edges="knn", k=9)
    assert everyone.num_edges == 12


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("edges", ["adjacency", "knn"])
def test_superpixel_means_surround_the_image_mean(channels, edges):
    image = patches(channels, 20, 14)
    graph = superpixel_graph(image, segments=12, edges=edges, k=3)
    assert_well_formed(graph)
    assert 4 <= graph.num_nodes <= 40
    low, high = graph.x[:, :channels].amin(0), graph.x[:, :channels].amax(0)
    mean = image.float().div(255).mean((1, 2))
    assert ((low <= mean) & (mean <= high)).all()


def test_one_superpixel_has_no_edges():
    for edges in ("adjacency", "knn"):
        graph = superpixel_graph(torch.full((1, 4, 4), 0.5), segments=1, edges=edges)
        assert graph.num_nodes == 1 and graph.edge_index.shape == (2, 0) and graph.edge_index.dtype == torch.int64
        assert graph.x.tolist() == [[0.5, 0.5, 0.5]]


@pytest.mark.parametrize(
    "image", [torch.zeros(4, 4), torch.zeros(1, 0, 4), torch.zeros(1, 4, 4, dtype=torch.int64),
              torch.full((1, 4, 4), 2.0), torch.full((1, 4, 4), -0.1), torch.full((1, 4, 4), float("nan"))],
)  # fmt: skip
@pytest.mark.parametrize("build", [grid_graph, knn_graph, superpixel_graph])
def test_not_an_image_is_an_error(build, image):
    with pytest.raises(ValueError, match="image"):
        build(image)


def test_options_out_of_range_are_errors():
    image = torch.zeros(1, 4, 4)
    for call in (
        lambda: grid_graph(image, 6), lambda: knn_graph(image, 0), lambda: knn_graph(image, 16),
        lambda: knn_graph(image, 2, colour=-1.0), lambda: superpixel_graph(image, 0),
        lambda: superpixel_graph(image, 4, compactness=0.0), lambda: superpixel_graph(image, edges="borders"),
        lambda: superpixel_set(noise(2, 1, 4, 4), torch.zeros(3)),
        lambda: superpixel_set(noise(1, 4, 4), torch.zeros(1)),
    ):  # fmt: skip
        with pytest.raises(ValueError):
            call()


# ---------------------------------------------------------------------------------------------------------- the cache


@pytest.fixture
def batch():
    return patches(5, 3, 12, 12), torch.tensor([3, 1, 4, 1, 5])


@pytest.fixture
def built(monkeypatch):
    """How many images were segmented."""
    count = []

    def counted(*args, **kwargs):
        count.append(1)
        return superpixel_graph(*args, **kwargs)

    monkeypatch.setattr(images, "superpixel_graph", counted)
    return count


def build(batch, root, **options):
    return superpixel_set(*batch, root, segments=6, chunk=2, progress=False, **options)


def chunks(folder):
    return sorted(folder.rglob("*.npz"))


def test_set_equals_single_graphs_and_is_a_sequence(tmp_path, batch):
    graphs = build(batch, tmp_path)
    assert len(graphs) == 5
    for graph, image, label in zip(graphs, *batch, strict=True):
        single = superpixel_graph(image, segments=6, y=int(label))
        for key in ("x", "pos", "edge_index", "edge_attr", "y"):
            assert torch.equal(graph[key], single[key]), key
    assert torch.equal(graphs[-1].x, graphs[4].x) and len(graphs[1:3]) == 2
    with pytest.raises(IndexError):
        graphs[5]


def test_set_goes_through_pyg_loader(tmp_path, batch):
    from torch_geometric.loader import DataLoader

    one = next(iter(DataLoader(build(batch, tmp_path), batch_size=5)))
    assert one.num_graphs == 5 and one.y.tolist() == [3, 1, 4, 1, 5]


def test_set_is_built_once(tmp_path, batch, built):
    first, second = build(batch, tmp_path), build(batch, tmp_path)
    assert len(built) == 5 and len(chunks(tmp_path)) == 3
    assert torch.equal(first.x, second.x) and first.content_hash == second.content_hash


def test_set_of_other_images_or_parameters_is_another_cache(tmp_path, batch, built):
    hashes = {build(batch, tmp_path).content_hash}
    hashes.add(build((patches(5, 3, 12, 12, seed=1), batch[1]), tmp_path).content_hash)
    assert len(hashes) == 2
    for options in ({"edges": "knn", "k": 2}, {"compactness": 1000.0}):
        build(batch, tmp_path, **options)
    assert len(built) == 20
    relabelled = build((batch[0], batch[1] + 1), tmp_path)
    assert len(built) == 20 and relabelled[0].y.tolist() == [4] and relabelled.content_hash not in hashes


def test_set_resumes_after_a_kill(tmp_path, batch, built, monkeypatch):
    with monkeypatch.context() as patch:

        def killed(*args, **kwargs):
            if len(built) == 3:
                raise KeyboardInterrupt
            built.append(1)
            return superpixel_graph(*args, **kwargs)

        patch.setattr(images, "superpixel_graph", killed)
        with pytest.raises(KeyboardInterrupt):
            build(batch, tmp_path)
    assert len(chunks(tmp_path)) == 1 and len(list(tmp_path.rglob("*"))) == 3  # superpixels/key/chunk, nothing else
    built.clear()
    build(batch, tmp_path)
    assert len(built) == 3


def truncate(path):
    path.write_bytes(path.read_bytes()[:-50])


def flip(path):
    blob = bytearray(path.read_bytes())
    blob[len(blob) // 2] ^= 255
    path.write_bytes(blob)


def forge(path):
    with np.load(path) as file:
        arrays = dict(file)
    np.savez(path, **(arrays | {"x": arrays["x"] + 0.1}))


def pickled(path):
    np.savez(path, **{name: np.array([None]) for name in ("x", "pos", "edge_index", "nodes", "edges", "digest")})


@pytest.mark.parametrize("damage", [truncate, flip, forge, pickled, lambda path: path.write_bytes(b"")])
def test_damaged_chunk_is_noticed_and_built_again(tmp_path, batch, built, damage):
    first = build(batch, tmp_path)
    damage(chunks(tmp_path)[1])
    built.clear()
    with pytest.warns(RuntimeWarning, match=r"0000002\.npz is damaged"):
        second = build(batch, tmp_path)
    assert len(built) == 2 and first.content_hash == second.content_hash
    build(batch, tmp_path)
    assert len(built) == 2


@pytest.mark.parametrize("code, says", [(errno.EROFS, "read-only"), (errno.ENOSPC, "full disk")])
def test_cache_on_a_read_only_or_full_disk(tmp_path, batch, monkeypatch, code, says):
    def refuse(*args, **kwargs):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(root.os, "replace", refuse)
    with pytest.raises(DataNotWritten, match=says):
        build(batch, tmp_path)
    assert list(tmp_path.rglob("*")) == []

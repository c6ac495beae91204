"""CenterCLIP: its clusters against a plain loop, its segments against blocks run by hand."""

from __future__ import annotations

import math

import pytest
import reduced
import torch
from encoder_models import timm_model, tower
from encoder_oracle import attend, behind_last_block, entering, norm1, same_rows, scale

import tokenreduce as tr
from tokenreduce.adapters.registry import family_of
from tokenreduce.k_medoids import distances, k_medoids, longest, spectral_rows
from tokenreduce.methods.centerclip import CenterCLIP


def clustered_by_hand(points, k, p=2.0, cosine=False):
    """(medoids, medoid of each point) of a list of points, step by step."""
    n = len(points)
    norm = [math.sqrt(sum(a * a for a in x)) for x in points]

    def far(i, j):
        if cosine:
            return 1 - sum(a * b for a, b in zip(points[i], points[j])) / (norm[i] + 1e-6) / (norm[j] + 1e-6)
        return sum(abs(a - b) ** p for a, b in zip(points[i], points[j])) ** (1 / p)

    table = [[far(i, j) for j in range(n)] for i in range(n)]
    taken = [norm.index(max(norm))]
    while len(taken) < k:
        left = [i for i in range(n) if i not in taken]
        taken.append(max(left, key=lambda i: (min(table[i][m] for m in taken), -i)))
    while True:
        label = [
            taken.index(i) if i in taken else min(range(k), key=lambda c, i=i: (table[i][taken[c]], c))
            for i in range(n)
        ]
        new = []
        for c in range(k):
            own = [i for i in range(n) if label[i] == c]
            total = {i: sum(table[i][j] for j in own) for i in own}
            new.append(min(i for i in own if total[i] <= min(total.values()) * (1 + 1e-6)))
        if new == taken:
            break
        taken = new
    final = sorted(taken)
    return final, [i if i in final else min(final, key=lambda m, i=i: (table[i][m], m)) for i in range(n)]


@pytest.mark.parametrize(
    ("n", "k", "distance", "p"),
    [
        (20, 5, "euclidean", 2.0),
        (20, 19, "euclidean", 2.0),
        (31, 7, "euclidean", 1.0),
        (26, 6, "cosine", 2.0),
        (9, 1, "cosine", 2.0),
    ],
)
def test_clusters_are_those_of_a_plain_loop(n, k, distance, p):
    sets = torch.randn(2, n, 5)
    sets[1] = torch.randn(n // 2 + 1, 5).repeat(2, 1)[:n]  # every point twice: ties everywhere
    found = k_medoids(distances(sets, distance, p), longest(sets), k)
    for points, medoids, label in zip(sets.double().tolist(), found.medoids.tolist(), found.label.tolist()):
        wanted, joined = clustered_by_hand(points, k, p, distance == "cosine")
        assert medoids == wanted
        assert [medoids[c] for c in label] == joined


def test_components_of_a_graph_are_clusters():
    """Three clouds far from each other, each point with its nearest only: three eigenvalues of zero."""
    clouds = torch.randn(3, 12, 4) + torch.tensor([0.0, 50.0, 100.0])[:, None, None]
    order = torch.randperm(36)
    x = clouds.flatten(0, 1)[order][None]
    found = CenterCLIP(clustering="spectral", neighbours=6, clusters=3).clustered(x, 3)
    assert len({*zip((order // 12).tolist(), found.label[0].tolist())}) == 3
    first = [min(i for i in range(36) if order[i] // 12 == cloud) for cloud in range(3)]
    assert found.medoids[0].tolist() == sorted(first)  # rows of a component are one but for rounding: the first
    rows = spectral_rows(x, 3, 2.0, 6)
    torch.testing.assert_close(rows.norm(dim=2), torch.ones(1, 36, dtype=rows.dtype))


def by_hand(model, pixels, block, joins, k, mean):
    """Rows (segments, p + k, D) behind the last block, and, of each place, the row that stands for it."""
    family = family_of(model)
    x, _ = entering(model, pixels)
    p = family.facts().tower_prefix
    for i, b in enumerate(family.blocks):
        if i == block:
            rows, places = [], []
            for clip in x.unflatten(0, (-1, joins)):
                points = clip[:, p:].flatten(0, 1)
                medoids, label = clustered_by_hand(points.double().tolist(), k)
                own = [[j for j, m in enumerate(label) if m == medoid] for medoid in medoids]
                body = torch.stack([points[o].mean(0) for o in own]) if mean else points[medoids]
                rows.append(torch.cat([clip[:, :p].mean(0), body]))
                places.append([medoids.index(m) for m in label])
            x = torch.stack(rows)
        x = x + scale(b.module, 1, attend(b, norm1(b.module)(x), None, None))
        x = x + scale(b.module, 2, b.mlp(b.norm2(x)))
    return x, torch.tensor(places)


TOWERS = ("timm", "timm_registers", "clip", "siglip", "open_clip")


@pytest.mark.parametrize("name", TOWERS)
def test_segments_equal_blocks_by_hand(name):
    model, pixels = tower(name, 6)
    for method, mean in ((CenterCLIP(keep=0.25), False), (CenterCLIP(clusters=12, block=1, aggregation="mean"), True)):
        with torch.no_grad():
            narrow, places = by_hand(model, pixels, method.block or 2, 3, 12, mean)
        p = narrow.shape[1] - 12
        patches = narrow[:, p:].gather(1, places[..., None].expand(-1, -1, narrow.shape[2])).unflatten(1, (3, 16))
        wide = torch.cat([narrow[:, None, :p].expand(-1, 3, -1, -1), patches], dim=2).flatten(0, 1)
        for length, expected in (("full", wide), ("reduced", narrow)):
            with tr.wrapped(model, method, output_length=length), behind_last_block(model) as seen, torch.no_grad():
                model(pixels)
                trace, report = tr.trace(model), tr.report(model)
            same_rows(seen, expected)
            assert report.tokens_in == [[48], [48]]
            assert report.tokens_kept == [[12], [12]]
            assert report.tokens_at_layer[-1] == [12, 12]
            assert report.flops < 0.8 * report.flops_unreduced
            for image, own in zip(trace.images, places.tolist()):
                assert image.layout.frames == 3
                assert image.standing_for().tolist() == own
                assert len(image.stages) == 1


@torch.no_grad()
def test_equal_frames_stay_as_they_are():
    """As many medoids as a frame has patches are the patches of a still, each standing for its copies."""
    model, still = timm_model("dinov2_reg"), torch.randn(1, 3, 56, 56)
    bare = model.forward_features(still)
    with tr.wrapped(model, "centerclip", joins=4):
        video = model.forward_features(still.expand(4, -1, -1, -1))
    torch.testing.assert_close(video, bare.expand(4, -1, -1), atol=1e-4 * bare.abs().max().item(), rtol=1e-4)


def test_counts_are_those_asked_for():
    for n in (16, 49, 196):
        assert CenterCLIP().count(3 * n) == n
        assert CenterCLIP(clusters=10).count(3 * n) == 10
        assert CenterCLIP(keep=7, joins=2).count(2 * n) == 14
        assert CenterCLIP(keep=0.3).count(3 * n) == round(0.3 * 3 * n)
        assert CenterCLIP(clusters=10**6).count(3 * n) == 3 * n


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"joins": 1}, "joins=1; allowed: an int >= 2"),
        ({"clusters": 0}, "clusters=0"),
        ({"frames": 8}, "frames=8 with joins=3; allowed: a multiple of 3"),
        ({"clustering": "kmeans"}, "clustering='kmeans'; allowed: 'medoids', 'spectral'"),
        ({"norm_p": 0}, "norm_p=0; allowed: a number above 0"),
        ({"sigma": "2"}, "sigma='2'; allowed: a number above 0"),
        ({"aggregation": "sum"}, "aggregation='sum'"),
    ],
)
def test_what_is_not_offered_is_refused(parameters, said):
    with pytest.raises(ValueError, match=said):
        CenterCLIP(**parameters)


@torch.no_grad()
def test_what_is_no_whole_video_is_refused():
    model = timm_model("plain")
    for frames, images, said in ((None, 4, "4 frames arrive where 3 neighbours"), (6, 9, "frames=6, but 9 arrive")):
        with tr.wrapped(model, CenterCLIP(frames=frames)), pytest.raises(ValueError, match=said):
            model(torch.randn(images, 3, 64, 64))
    with pytest.raises(ValueError, match=r"layer=4 at stage 'encoder'; allowed: an int from 0 to 3"):
        tr.wrap(model, "centerclip", block=4)
    with pytest.raises(ValueError, match="the vision tower of a llava model encodes each"):
        tr.wrap(reduced.model("llava"), "centerclip")

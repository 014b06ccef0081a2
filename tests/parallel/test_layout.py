"""Who holds which learners, against lists written out by hand and by brute force."""

import doctest

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localavg.errors import UserError
from localavg.parallel import layout as module
from localavg.parallel.layout import Layout, fewest_ranks


@st.composite
def layouts(draw):
    """Learners on up to 12 ranks and their nodes, whose ranks need not be next to each other."""
    drawn = draw(st.lists(st.integers(0, 3), min_size=1, max_size=12))
    nodes = list(dict.fromkeys(drawn))  # numbered as they appear, as a fleet does
    return Layout(draw(st.integers(len(drawn), 60)), tuple(nodes.index(n) for n in drawn))


@st.composite
def clustered(draw):
    """A layout, the size S of its clusters and one of them."""
    layout = draw(layouts())
    S = draw(st.sampled_from([S for S in range(1, layout.P + 1) if layout.P % S == 0]))
    return layout, S, draw(st.sampled_from(layout.clusters(S)))


def holders(layout):
    """[P] the rank of every learner, from what the ranks hold."""
    return [r for r in range(layout.ranks) for _ in layout.learners(r)]


def node_matrix(layout, rank):
    """The learner of every row of the matrix that a rank's node shares."""
    ranks = [r for r in range(layout.ranks) if layout.node_of[r] == layout.node_of[rank]]
    return [j for r in ranks for j in layout.learners(r)]


@given(layouts())
def test_every_learner_has_one_rank_and_every_rank_its_even_share_in_order(layout):
    held = [layout.learners(r) for r in range(layout.ranks)]
    assert [j for learners in held for j in learners] == list(range(layout.P))
    sizes = [len(learners) for learners in held]
    assert min(sizes) >= 1 and max(sizes) - min(sizes) <= 1
    assert list(layout.counts) == sizes
    assert layout.per_rank == (sizes[0] if len(set(sizes)) == 1 else [min(sizes), max(sizes)])


@given(st.integers(1, 20), st.integers(1, 20))
def test_ranks_that_divide_P_hold_equally_many(ranks, L):
    layout = Layout(L * ranks, (0,) * ranks)
    assert [layout.learners(r) for r in range(ranks)] == [
        range(L * r, L * r + L) for r in range(ranks)
    ]


@given(layouts())
def test_a_learners_rank_is_the_one_that_holds_it(layout):
    assert [layout.rank_of(j) for j in range(layout.P)] == holders(layout)


@given(clustered())
def test_clusters_are_equally_large_and_cover_everyone_once(drawn):
    layout, S, _ = drawn
    clusters = layout.clusters(S)
    assert [j for cluster in clusters for j in cluster] == list(range(layout.P))
    assert {len(cluster) for cluster in clusters} == {S}


@given(clustered())
def test_a_cluster_finds_its_rows_on_every_rank_and_node(drawn):
    layout, _, cluster = drawn
    rank_of = holders(layout)
    assert list(layout.ranks_of(cluster)) == sorted({rank_of[j] for j in cluster})
    for r in layout.ranks_of(cluster):
        mine = [j for j in cluster if rank_of[j] == r]
        assert list(layout.learners(r))[layout.rows(r, cluster)] == mine
        shared = node_matrix(layout, r)
        assert layout.node_learners(r) == len(shared)
        first = layout.first_row(r)
        assert shared[first : first + len(layout.learners(r))] == list(layout.learners(r))
        here = [j for j in cluster if layout.node_of[rank_of[j]] == layout.node_of[r]]
        assert shared[layout.node_rows(r, cluster)] == here


@given(clustered())
def test_every_lane_has_one_rank_on_every_node_and_every_rank_a_lane(drawn):
    layout, _, cluster = drawn
    by_node = layout.by_node(layout.ranks_of(cluster))
    lanes = layout.handlers(cluster)
    assert len(lanes) == max(len(ranks) for ranks in by_node.values())
    for handlers in lanes:
        assert [layout.node_of[r] for r in handlers] == list(by_node)
    for node, ranks in zip(by_node, by_node.values(), strict=True):
        taken = [handlers[list(by_node).index(node)] for handlers in lanes]
        loads = [taken.count(r) for r in ranks]
        assert set(taken) == set(ranks) and max(loads) - min(loads) <= 1


@given(layouts())
def test_nodes_partition_the_ranks(layout):
    by_node = layout.by_node(range(layout.ranks))
    assert sorted(r for ranks in by_node.values() for r in ranks) == list(range(layout.ranks))
    assert len(by_node) == layout.nodes == max(layout.node_of) + 1
    assert all(layout.node_of[r] == node for node, ranks in by_node.items() for r in ranks)


@given(st.integers(1, 40), st.integers(1, 50))
def test_the_fewest_ranks_that_are_as_fast_are_found_by_trying_all(P, most):
    slowest = [max(Layout(P, (0,) * R).counts) for R in range(1, min(P, most) + 1)]
    assert fewest_ranks(P, most) == slowest.index(slowest[-1]) + 1
    if P % most == 0:
        assert fewest_ranks(P, most) == most


@pytest.mark.parametrize(("P", "ranks"), [(1, 2), (3, 4), (0, 1), (-3, 1)])
def test_fewer_learners_than_ranks_are_refused_with_both_remedies(P, ranks):
    with pytest.raises(UserError) as e:
        Layout(P, (0,) * ranks)
    assert f"{P} learner" in str(e.value) and f"on {ranks} rank" in str(e.value)
    assert f"use {ranks} learner" in str(e.value)


@pytest.mark.parametrize("S", [0, -1, 2, 3, 5, 14])
def test_clusters_that_do_not_divide_P_are_refused(S):
    with pytest.raises(UserError, match=f"`S = {S}` with 7 learners"):
        Layout(7, (0, 0)).clusters(S)


def test_the_examples_are_true():
    done = doctest.testmod(module)
    assert done.attempted >= 8 and done.failed == 0

"""Collectives that XLA puts into the steps, and how the text of a program is read."""

import math
from pathlib import Path

import jax
import pytest

from jaxprune import config
from jaxprune.model.sharding import make_mesh
from jaxprune.scale import estimate, hlo, topology
from jaxprune.scale.program import make_program
from jaxprune.settings import load

TINY = str(Path(__file__).parents[1] / "tiny.py")
# Of the step of tests/tiny.py (2 layers, 13 matrices with the unembedding) on 8 CPU devices.
COUNTS = {
    # fsdp: each matrix is gathered in both passes, the unembedding once (25) and the tokens once; gradients of matrices are
    # summed in the loops (2 x 2), and what is not cut (norms, biases, losses) at the end.
    (1, 8, 1): {"all-gather": {26}, "all-to-all": {2}, "all-reduce": {5}},
    # tensor: two sums a layer and pass more, and those of the loss over the parts of the vocabulary.
    (1, 4, 2): {"all-gather": {26}, "all-to-all": {2}, "all-reduce": {19}},
    # replica: gradients are summed once more; jax 0.11 joins two of the small sums.
    (2, 2, 2): {"all-gather": {26}, "all-to-all": {2}, "all-reduce": {25, 27}},
}


def program(sizes: tuple[int, int, int], name: str = "train", *overrides: str):
    devices = jax.devices()[: math.prod(sizes)]
    mesh = make_mesh(config.Mesh(replica=sizes[0], fsdp=sizes[1], tensor=sizes[2]), devices)
    return make_program(name, load(TINY, list(overrides)), mesh, 400)


@pytest.mark.parametrize("sizes", COUNTS)
def test_the_training_step_has_as_many_collectives_as_its_layout_needs(sizes):
    found = hlo.collectives(program(sizes).lower().compile().as_text())
    assert {c.kind for c in found} == set(COUNTS[sizes])
    for collective in found:
        assert collective.count in COUNTS[sizes][collective.kind], collective


def test_microbatches_gather_again_and_nothing_else_grows():
    once = {c.kind: c for c in hlo.collectives(program((1, 4, 1)).lower().compile().as_text())}
    twice = {
        c.kind: c
        for c in hlo.collectives(
            program((1, 4, 1), "train", "--final.microbatches", "2").lower().compile().as_text()
        )
    }
    assert 1.5 < twice["all-gather"].bytes / once["all-gather"].bytes <= 2
    assert twice["all-to-all"].count == 2 * once["all-to-all"].count
    assert twice["all-to-all"].bytes == once["all-to-all"].bytes  # of half as many rows each


@pytest.mark.parametrize("sizes", COUNTS)
def test_bytes_are_those_of_the_arithmetic(sizes):
    """CPUs sum where the estimate scatters (twice the bytes), and exchange nothing else of weight."""
    step = program(sizes)
    compiled, estimated = {}, {}
    for into, found in (
        (compiled, hlo.collectives(step.lower().compile().as_text())),
        (estimated, estimate.collectives(step, topology.find("h100-8"))),
    ):
        for c in found:
            into[c.kind] = into.get(c.kind, 0) + c.bytes
    assert compiled["all-gather"] == pytest.approx(estimated["all-gather"], rel=0.02)
    assert compiled["all-to-all"] == estimated["all-to-all"]
    least = estimated.get("all-reduce", 0) + 2 * estimated["reduce-scatter"]
    assert least <= compiled["all-reduce"] <= 1.4 * least  # norms and biases are much of so small a model


TEXT = """HloModule m, is_scheduled=true

%body (p: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %a = bf16[8,4]{1,0} all-gather(%x), channel_id=1, replica_groups=[2,4]<=[8], dimensions={0}
  ROOT %t = (s32[], f32[8,4]) tuple(%i, %y)
}

%cond (p: (s32[], f32[8,4])) -> pred[] {
  %n = s32[]{:T(128)} constant(12), metadata={op_name="lt"}
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  ROOT %lt = pred[] compare(%i, %n), direction=LT
}

ENTRY %main (p: f32[8,4]) -> f32[8,4] {
  %zero = s32[]{:T(128)} constant(0), metadata={op_name="lt"}
  %begin = s32[]{:T(128)} copy(%zero), backend_config={"flag_configs":[]}
  %t0 = (s32[], f32[8,4]) tuple(%begin, %p)
  %w = (s32[], f32[8,4]) while(%t0), condition=%cond, body=%body
  %r = (f32[16]{0}, f32[4,4]{1,0}) all-reduce(%a, %b), replica_groups={{0,1},{2,3}}, to_apply=%add
  %s = f32[4]{0} reduce-scatter(%a), replica_groups=mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'b'}, to_apply=%add
  %g = (bf16[2]{0}, bf16[16]{0}) all-gather-start(%a), replica_groups=mesh['a'=8] {'a'}, dimensions={0}
  %d = bf16[16]{0} all-gather-done(%g)
  %c = (f32[4], f32[4], u32[], u32[]) collective-permute-start(%a), source_target_pairs={{0,1},{1,0}}
  %e = (f32[100], u32[], token[]) send(%a, %tok), channel_id=9, is_host_transfer=true
}

%add (x: f32[], y: f32[]) -> f32[] {
  ROOT %z = f32[] add(%x, %y)
}
"""


def test_bytes_counts_and_loops_of_a_text():
    found = {c.kind: c for c in hlo.collectives(TEXT)}
    gathers = 12 * 8 * 4 * 2 * 3 / 4 + 16 * 2 * 7 / 8  # in a loop of 12, and by start and done
    assert (found["all-gather"].count, found["all-gather"].bytes) == (13, gathers)
    assert (found["all-reduce"].count, found["all-reduce"].bytes) == (1, 2 * (16 + 16) * 4 / 2)
    assert (found["reduce-scatter"].count, found["reduce-scatter"].bytes) == (1, 4 * 4 * 4 * 3 / 4)
    assert (found["collective-permute"].count, found["collective-permute"].bytes) == (1, 16)
    assert (found["send"].bytes, found["send"].over) == (400, "network")
    assert {c.over for kind, c in found.items() if kind != "send"} == {"links"}


def test_a_loop_whose_first_turn_was_taken_out_turns_once_less():
    (gathers,) = (
        c for c in hlo.collectives(TEXT.replace("constant(0)", "constant(1)")) if c.kind == "all-gather"
    )
    assert gathers.count == 12


# As the TPU's compiler writes them: a gather in three parts of a chain, before a loop and in it; a sum that is scattered
# in its fusion; a gather that is started in one fusion and ended in another.
TPU = """HloModule m, is_scheduled=true

%part (p: bf16[4]) -> bf16[8] {
  ROOT %a = bf16[8]{0} all-gather(%p), channel_id=9, replica_groups=[1,2]<=[2], frontend_attributes={chain_id="1"}
}

%begun (p: bf16[4]) -> bf16[8] {
  ROOT %a = bf16[8]{0} all-gather(%p), channel_id=3, replica_groups=[1,2]<=[2], frontend_attributes={async_collective_name="a"}
}

%all-reduce-scatter.1 (p: f32[8]) -> f32[4] {
  %r = f32[8]{0} all-reduce(%p), channel_id=5, replica_groups=[1,2]<=[2], to_apply=%add
  ROOT %s = f32[4]{0} dynamic-slice(%r, %i), dynamic_slice_sizes={4}
}

%body (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %x = bf16[8]{0} fusion(%p), kind=kOutput, calls=%part
  %y = bf16[8]{0} fusion(%p), kind=kOutput, calls=%part
  %z = bf16[8]{0} fusion(%p), kind=kOutput, calls=%part
  %s = f32[4]{0} fusion(%p), kind=kCustom, calls=%all-reduce-scatter.1
  ROOT %t = (s32[], f32[8]) tuple(%i, %y)
}

%cond (p: (s32[], f32[8])) -> pred[] {
  %i = s32[] get-tuple-element(%p), index=0
  %n = s32[] constant(6)
  ROOT %lt = pred[] compare(%i, %n), direction=LT
}

ENTRY %main (p: f32[8]) -> f32[8] {
  %x = bf16[8]{0} fusion(%p), kind=kOutput, calls=%part
  %y = bf16[8]{0} fusion(%p), kind=kOutput, calls=%begun
  %z = bf16[8]{0} fusion(%p), kind=kOutput, calls=%begun
  %one = s32[] constant(1)
  %t = (s32[], f32[8]) tuple(%one, %p)
  %w = (s32[], f32[8]) while(%t), condition=%cond, body=%body
}

%add (x: f32[], y: f32[]) -> f32[] {
  ROOT %z = f32[] add(%x, %y)
}
"""


def test_parts_of_one_collective_count_once_in_a_loop_and_once_before_it():
    found = {c.kind: c for c in hlo.collectives(TPU)}
    assert (found["all-gather"].count, found["all-gather"].bytes) == (1 + 1 + 5, 7 * 8 * 2 / 2)
    assert (found["reduce-scatter"].count, found["reduce-scatter"].bytes) == (5, 5 * 8 * 4 / 2)
    assert set(found) == {"all-gather", "reduce-scatter"}


def test_combined_permutations_and_short_floats_have_all_their_bytes():
    def found(written):
        (only,) = hlo.collectives(line(written))
        return only.bytes

    start = "collective-permute-start(%a, %b), source_target_pairs={{0,1},{1,0}}"
    assert found(f"((f32[100], f32[300]), (f32[100], f32[300]), u32[], u32[]) {start}") == 1600
    assert found("f32[100]{0} collective-permute(%a), source_target_pairs={{0,1},{1,0}}") == 400
    assert found("f8e4m3fn[100]{0} all-gather(%a), replica_groups=[1,2]<=[2], dimensions={0}") == 50


def line(written: str) -> str:
    return f"HloModule m\n\nENTRY %main (p: f32[8]) -> f32[8] {{\n  %a = {written}\n}}\n"


@pytest.mark.parametrize(
    ("groups", "group"),
    [
        ("{{0,2},{1,3}}", [0, 2]),
        ("[2,4]<=[8]", [0, 1, 2, 3]),
        ("[4,2]<=[2,4]T(1,0)", [0, 4]),
        ("mesh['a'=2,'b'=4] {'b'}", [0, 1, 2, 3]),
        ("mesh['a'=2,'b'=4] {'a','b'}", list(range(8))),
        ("mesh['a'=4,'b'=1,'c'=2], device_ids=([2,4]T(1,0)) {'a'}", [0, 1, 2, 3]),
        ("mesh['a'=8] {'a':(2)4}", [0, 1, 2, 3]),
        ("mesh['a'=8] {'a':(1)2}", [0, 4]),
        ("mesh['a'=8] {'a':(2)2}", [0, 2]),
        ("mesh['a'=8] {'a':(1)2,'a':(4)2}", [0, 1, 4, 5]),
    ],
)
def test_groups_are_read_in_all_ways_in_which_they_are_written(groups, group):
    assert hlo._group(f"f32[8] all-gather(%a), replica_groups={groups}, dimensions={{0}}") == group


@pytest.mark.parametrize(
    ("group", "links", "network"),
    [
        ("{{0,1,2,3}}", 3 / 4, 0),  # of one node
        ("{{0,4}}", 0, 1 / 2),  # one device of each
        ("[1,8]<=[8]", 3 / 4, 1 / 2 / 4),  # all of both, which share what passes
        ("{{0,1,4,5}}", 1 / 2, 1 / 2 / 2),
    ],
)
def test_what_leaves_a_node_goes_over_the_network(group, links, network):
    text = line(f"f32[1000]{{0}} all-gather(%a), replica_groups={group}, dimensions={{0}}")
    found = {c.over: c.bytes / 4000 for c in hlo.collectives(text, node=4)}
    assert found == {over: share for over, share in (("links", links), ("network", network)) if share}
    text = line("f32[1000]{0} all-to-all(%a), replica_groups=[1,8]<=[8], dimensions={0}")
    assert {c.over: c.bytes for c in hlo.collectives(text, node=4)} == {"links": 1500, "network": 2000}
    for pairs, over in (("{{0,1},{1,0}}", "links"), ("{{3,4},{4,3}}", "network")):
        (sent,) = hlo.collectives(
            line(f"f32[8]{{0}} collective-permute(%a), source_target_pairs={pairs}"), node=4
        )
        assert (sent.over, sent.bytes) == (over, 32)


def test_a_sum_that_is_started_names_its_operands_in_some_versions_of_xla():
    rest = "all-reduce-start(%a), replica_groups=[1,2]<=[2]"
    for written in (f"f32[100]{{0}} {rest}", f"((f32[100]{{0}}), f32[100]{{0}}) {rest}"):
        (found,) = hlo.collectives(line(written))
        assert found.bytes == 400


@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        ("all-gather(%x)", "ragged-all-to-all(%x)", "a collective that is not known here"),
        ("all-gather(%x)", "collective-broadcast(%x)", "a collective that is not known here"),
        ("bf16[8,4]{1,0} all-gather", "float[8,4]{1,0} all-gather", "a type that is not known here: float"),
        ("copy(%zero)", "add(%zero, %zero)", "how often it turns"),
        ("bf16[8,4]{1,0} all-gather", "bf16[<=8,4]{1,0} all-gather", "a size that is not fixed"),
        ("ENTRY ", "", "ENTRY"),
        ("direction=LT", "direction=NE", "how often it turns"),
        ("replica_groups=[2,4]<=[8]", "replica_groups=new(8)", "groups of a collective"),
    ],
)
def test_an_unknown_form_is_refused_and_not_guessed(before, after, says):
    with pytest.raises(ValueError, match=says):
        hlo.collectives(TEXT.replace(before, after))

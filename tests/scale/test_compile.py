"""`jaxprune compile`: real steps for real topologies, and estimates where there is no compiler."""

import dataclasses
import importlib.util
import json
import math
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import pytest

from jaxprune import cli, config
from jaxprune.model.sharding import make_mesh
from jaxprune.scale import compiler, estimate, hlo, report, suggest, topology
from jaxprune.scale.program import bytes_per_chip, kept_for_backward, make_program
from jaxprune.settings import load

TINY = str(Path(__file__).parents[1] / "tiny.py")
needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="libtpu, the TPU's compiler, is not installed: pip install 'jaxprune[tpu]'",
)


def cudnn() -> bool:
    return any(compiler._version(f"nvidia-cudnn-cu{major}") for major in (12, 13))


needs_cuda = pytest.mark.skipif(
    not compiler.is_here(topology.find("h100-8")) or not cudnn(),
    reason="JAX's plugin for NVIDIA GPUs or cuDNN is not installed: pip install 'jaxprune[cuda]'",
)
# Large enough for the TPU's kernels, small enough to compile in seconds.
MEDIUM = ["--final.model.d_model", "256", "--final.model.context", "256", "--final.model.dtype", "bfloat16"]


def estimated(
    *overrides: str, name: str = "h100-8", sizes: tuple[int, int, int] = (1, 8, 1)
) -> report.Report:
    return report.estimated(program(*overrides, sizes=sizes), topology.find(name))


def program(
    *overrides: str, name: str = "train", sizes: tuple[int, int, int] = (1, 8, 1), devices: Any = None
):
    settings = load(TINY, [*MEDIUM, *overrides])
    devices = jax.devices()[: math.prod(sizes)] if devices is None else devices
    mesh = make_mesh(config.Mesh(replica=sizes[0], fsdp=sizes[1], tensor=sizes[2]), devices)
    return make_program(name, settings, mesh, 400)


@needs_libtpu
def test_a_step_is_compiled_for_a_slice_of_tpus(tmp_path, capsys):
    file = tmp_path / "reports.json"
    status = cli.main(
        [
            "compile",
            TINY,
            "--topology",
            "v5e-8",
            "v5p-16",
            "--workdir",
            str(tmp_path),
            "--json",
            str(file),
            *MEDIUM,
        ]
    )
    assert status == 0
    reports = json.loads(file.read_text())
    assert [(r["topology"], r["program"]) for r in reports] == [
        (name, program)
        for name in ("v5e-8", "v5p-16")
        for program in ("train", "evaluate", "score", "train-reference")
    ]
    for found in reports:
        assert found["how"] == "compiled" and found["fits"] and found["mesh"]["fsdp"] == 8
        assert found["used"] == sum(
            found[part] for part in ("parameters", "optimizer", "batch", "padding", "temporaries", "code")
        )
        assert any(c["kind"] == "all-gather" for c in found["collectives"])
        assert 0 < found["least_seconds"] < 1
    train, evaluate, *_ = reports
    assert train["optimizer"] == pytest.approx(2 * train["parameters"], rel=0.01)  # AdamW's two moments
    assert evaluate["optimizer"] == 0 and evaluate["kept"] == 0
    assert "v5e-8: 8 chips, replica 1 x fsdp 8 x tensor 1" in capsys.readouterr().out


def sent(found: tuple[hlo.Collective, ...]) -> dict[tuple[str, str], int]:
    return {(c.kind, c.over): c.bytes for c in found}


LAYERS = ["--final.model.n_heads", "4", "--final.model.n_layers", "3", "--final.batch_rows", "16"]


@needs_libtpu
@pytest.mark.parametrize(
    ("name", "sizes"), [("v5e-8", (1, 8, 1)), ("v5e-8", (1, 4, 2)), ("2xv5e-4", (2, 4, 1))]
)
def test_chips_send_what_the_arithmetic_says(name, sizes):
    """Loops that the compiler unrolls in part, collectives that it splits, sums that it scatters, and slices."""
    target = topology.find(name)
    step = program(*LAYERS, sizes=sizes, devices=compiler.devices(target))
    compiled = sent(report.compile(step, target).collectives)
    expected = sent(estimate.collectives(step, target))
    for kind in ("all-gather", "reduce-scatter", "all-to-all"):
        assert compiled[kind, "links"] == pytest.approx(expected[kind, "links"], rel=0.01), kind
    if sizes[2] > 1:
        reduced = "all-reduce", "links"
        assert compiled[reduced] == pytest.approx(expected[reduced], rel=0.01)
    if target.slices > 1:  # sums over slices are sent, with what is small
        assert 1 <= compiled["send", "network"] / expected["all-reduce", "network"] < 1.2


@needs_cuda
@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("h100-8", (1, 8, 1)),
        ("h100-8", (1, 4, 2)),
        ("2xh100-4", (2, 4, 1)),
        ("2xh100-4", (4, 2, 1)),  # two copies in each node
        ("2xh100-4", (1, 8, 1)),  # one copy on both
    ],
)
def test_gpus_send_what_the_arithmetic_says(name, sizes):
    """The compiler gathers the unembedding for both passes, and sums what is small with the gradients of its copies."""
    target = topology.find(name)
    step = program(*LAYERS, sizes=sizes, devices=compiler.devices(target))
    compiled = sent(report.compile(step, target).collectives)
    expected = sent(estimate.collectives(step, target))
    for (kind, over), size in expected.items():
        if kind == "all-gather":
            size *= 1.08
        assert compiled[kind, over] == pytest.approx(size, rel=0.1), (kind, over)
    assert {over for _, over in compiled} == {over for _, over in expected}


@needs_libtpu
def test_a_step_that_does_not_fit_says_so_and_what_to_turn(tmp_path, capsys):
    large = [
        "--final.model.d_model", "2048", "--final.model.context", "2048", "--final.model.n_heads", "16",
        "--final.model.n_layers", "4", "--final.model.dtype", "bfloat16",
        "--final.batch_rows", "256", "--final.tokens", "1000000", "--final.model.loss_chunk", "128",
    ]  # fmt: skip
    status = cli.main(
        ["compile", TINY, "--topology", "v5e-1", "--only", "train", "--workdir", str(tmp_path), *large]
    )
    printed = capsys.readouterr()
    assert status == 1
    assert "TOO LARGE" in printed.out
    assert "raise final.microbatches (now 1, up to 256)" in printed.err
    assert "remat to dots or full" in printed.err


@needs_libtpu
def test_slices_talk_over_the_network_only_along_replica():
    found = topology.find("2xv5e-4")
    devices = compiler.devices(found)
    settings = load(TINY, MEDIUM)
    mesh = make_mesh(config.Mesh(replica=2), devices)
    slices = [[device.slice_index for device in row.flat] for row in mesh.devices]
    assert slices == [[0] * 4, [1] * 4]
    compiled = report.compile(make_program("train", settings, mesh, 400), found)
    network = sum(c.bytes for c in compiled.collectives if c.over == "network")
    # Each chip sends its part of the gradients to the other slice, and receives as much.
    gradients = bytes_per_chip(make_program("train", settings, mesh, 400).params)
    assert 0.9 * gradients < network < 3 * gradients
    with pytest.raises(ValueError, match=r"mesh.replica is 1 on 2 slices"):
        make_mesh(config.Mesh(), devices)


@needs_libtpu
def test_suggestions_are_compiled_and_fit(tmp_path, capsys):
    status = cli.main(
        ["compile", TINY, "--topology", "v5e-4", "--suggest", "1", "--workdir", str(tmp_path), *MEDIUM]
    )
    assert status == 0
    printed = capsys.readouterr()
    said, found = printed.err.strip().splitlines()
    assert "what the config says of them is not kept" in said
    layout = found.removeprefix("compiling ")
    assert layout.startswith("--mesh.replica") and layout in printed.out
    suggested = load(TINY, [*MEDIUM, *layout.split()])  # they are options of the command line
    assert suggested.mesh.replica * suggested.mesh.fsdp * suggested.mesh.tensor == 4


def test_suggestions_of_a_large_model_begin_with_the_least_work_that_fits():
    large = [
        "--final.model.d_model", "1024", "--final.model.context", "2048", "--final.model.n_heads", "16",
        "--final.model.n_layers", "24", "--final.model.dtype", "bfloat16",
        "--final.batch_rows", "256", "--final.tokens", "10000000", "--final.model.loss_chunk", "128",
    ]  # fmt: skip
    target = topology.find("h100-8")
    tried, n_all = suggest.search(
        load(TINY, large), target, jax.devices(), 50_000, wanted=3, can_compile=False
    )
    assert len(tried) == 3 < n_all
    assert all(c.estimated.fits and c.estimated.how == "estimated" for c in tried)
    compute = [c.estimated.seconds["compute"] for c in tried]
    assert max(compute) < 1.1 * min(compute)
    whole = load(TINY, [*large, "--final.model.remat", "none"])
    unlimited = report.estimated(make_program("train", whole, make_mesh(config.Mesh()), 50_000), target)
    assert not unlimited.fits  # so that the search had to leave it out


@needs_cuda
def test_a_step_is_compiled_for_gpus_that_are_not_here(tmp_path, capsys):
    file = tmp_path / "reports.json"
    where = ["--topology", "h100-8", "2xh200-4", "--mesh.replica", "2"]
    status = cli.main(["compile", TINY, *where, "--workdir", str(tmp_path), "--json", str(file), *MEDIUM])
    assert status == 0
    reports = json.loads(file.read_text())
    assert len(reports) == 8
    for found in reports:
        assert found["how"] == found["counted"] == "compiled" and found["fits"]
        assert found["mesh"] == {"replica": 2, "fsdp": 4, "tensor": 1}
        assert any(c["kind"] == "all-gather" for c in found["collectives"])
    over = [{c["over"] for c in found["collectives"]} for found in reports if found["program"] == "train"]
    assert over == [{"links"}, {"links", "network"}]
    assert "compiled in" in capsys.readouterr().out


@needs_cuda
@pytest.mark.parametrize("microbatches", ["2", "4"])
def test_gpus_keep_the_activations_of_one_microbatch(microbatches):
    target = topology.find("h100-1")
    devices = compiler.devices(target)
    rows = int(microbatches) * 16
    large = ["--final.model.context", "1024", "--final.model.n_layers", "4", "--final.batch_rows", str(rows)]
    step = program(*large, "--final.microbatches", microbatches, sizes=(1, 1, 1), devices=devices)
    found = report.compile(step, target)
    gradients = 2 * bytes_per_chip(step.params)
    assert 0.5 * found.kept < found.temporaries < 1.3 * found.kept + gradients


@needs_cuda
@pytest.mark.parametrize("name", ["a100-2", "b200-2"])
def test_other_gpus_are_compiled_for(name):
    target = topology.find(name)
    step = program(sizes=(1, 2, 1), devices=compiler.devices(target))
    found = report.compile(step, target)
    assert found.fits and found.used > found.parameters + found.optimizer
    assert step.mesh.devices.flat[0].device_kind.lower().startswith(f"nvidia {name[:4]}")


@needs_cuda
def test_a_program_too_large_for_gpus_is_compiled_and_says_so():
    target = topology.find("h100-1")
    large = ["--final.model.context", "2048", "--final.batch_rows", "2048", "--final.model.remat", "none"]
    found = report.compile(program(*large, sizes=(1, 1, 1), devices=compiler.devices(target)), target)
    assert not found.fits and found.counted == "compiled"


def test_attention_that_cannot_be_compiled_is_named():
    def lower() -> Any:
        raise RuntimeError("cuDNN not found.")

    step = dataclasses.replace(program(), lower=lower)
    with pytest.raises(ValueError, match=r"needs cuDNN.*pip install 'jaxprune\[cuda\]'.*attention to xla"):
        report.compile(step, topology.find("h100-8"))


@pytest.fixture
def no_plugin(monkeypatch):
    monkeypatch.setattr(compiler, "_version", lambda name: [])


def test_without_a_compiler_a_gpu_is_estimated_and_labelled(tmp_path, capsys, no_plugin):
    status = cli.main(["compile", TINY, "--topology", "h100-8", "--workdir", str(tmp_path), *MEDIUM])
    assert status == 0
    printed = capsys.readouterr()
    assert "estimated" in printed.out and "compiled" not in printed.out
    assert "with jaxprune[cuda] installed it is compiled for" in printed.err


def test_options_stand_before_the_config_too_and_reports_go_to_a_new_folder(tmp_path, capsys, no_plugin):
    file = tmp_path / "new" / "reports.json"
    options = ["--workdir", str(tmp_path), "--json", str(file), "--topology", "h100-8", TINY]
    assert cli.main(["compile", *options, *MEDIUM, "--score.model", "some/folder"]) == 0
    assert [report["program"] for report in json.loads(file.read_text())] == ["train", "evaluate"]
    said = capsys.readouterr().err
    assert "score is left out" in said and f"reports: {file}" in said
    train, _ = json.loads(file.read_text())
    assert (train["config"], train["microbatches"], train["remat"]) == ("tiny", 1, "none")
    assert train["tokens_per_second"] == pytest.approx(train["tokens"] / train["least_seconds"])


def test_an_interrupt_ends_it_at_once(tmp_path):
    """Compilers keep Python from hearing of it for minutes."""
    process = subprocess.Popen(
        [sys.executable, "-m", "jaxprune.cli", "compile", TINY, "--topology", "h100-8", "--workdir", str(tmp_path)],
        stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    assert process.stderr is not None and "h100-8" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == -signal.SIGINT


def test_one_chip_does_not_sum_more_microbatches_than_its_memory_asks_for():
    target = topology.find("h100-1")
    tried, _ = suggest.search(load(TINY, MEDIUM), target, jax.devices()[:1], 400, wanted=3, can_compile=False)
    assert [candidate.settings.final.microbatches for candidate in tried] == [1, 1, 1]
    settings = load(TINY, [*MEDIUM, "--final.batch_rows", "9"])
    with pytest.raises(
        ValueError, match="final.batch_rows is 9, which cannot be cut over the 8 chips of h100-8"
    ):
        suggest.search(settings, topology.find("h100-8"), jax.devices(), 400, wanted=1, can_compile=False)


def test_what_fits_nowhere_says_what_to_give_up(tmp_path, capsys, no_plugin):
    large = ["--final.model.d_model", "8192", "--final.model.n_layers", "64", "--final.model.n_heads", "64"]
    status = cli.main(
        ["compile", TINY, "--topology", "h100-1", "--suggest", "--workdir", str(tmp_path), *large]
    )
    printed = capsys.readouterr()
    assert status == 1 and "layouts" not in printed.out
    assert "no layout of" in printed.err and "or --final.optimizer.name lion" in printed.err


def test_what_a_config_cannot_do_is_one_line(tmp_path, capsys, no_plugin):
    def error(*arguments: str) -> str:
        assert cli.main(["compile", TINY, "--workdir", str(tmp_path), *arguments]) == 1
        return capsys.readouterr().err

    assert "there is no topology v9-1" in error("--topology", "v9-1")
    assert "make it a multiple of microbatches" in error("--topology", "h100-8", "--final.batch_rows", "4")
    assert "there is no step foo" in error("--topology", "h100-8", "--only", "foo")
    assert "d_model is 36" in error("--topology", "h100-8", "--final.model.d_model", "36")


def test_parameters_and_optimizer_are_cut_by_the_mesh():
    fsdp, tensor, replica = (estimated(sizes=sizes).parameters for sizes in ((1, 8, 1), (1, 4, 2), (2, 4, 1)))
    assert fsdp == pytest.approx(tensor, rel=0.05)  # vectors are whole over fsdp
    assert replica == pytest.approx(2 * fsdp, rel=0.05)


def test_what_is_kept_is_what_remat_and_microbatches_leave():
    kept = {
        remat: kept_for_backward(program("--final.model.remat", remat)) for remat in ("none", "dots", "full")
    }
    assert kept["none"] > 2 * kept["dots"] > 2 * kept["full"]
    settings = ("--final.batch_rows", "32", "--final.tokens", "100000")
    whole, half = (kept_for_backward(program(*settings, "--final.microbatches", m)) for m in "12")
    assert half == pytest.approx(whole / 2, rel=0.02)


def test_full_remat_keeps_the_input_of_each_layer_and_no_more():
    two, four = (
        kept_for_backward(program("--final.model.remat", "full", "--final.model.n_layers", n)) for n in "24"
    )
    rows, context, width, size = 1, 256, 256, 2
    assert four - two == 2 * rows * context * width * size


@dataclasses.dataclass(frozen=True)
class Gpu:
    """What a mesh is made of on nodes of four."""

    id: int
    platform: str = "gpu"
    device_kind: str = "NVIDIA H100 80GB HBM3"

    @property
    def slice_index(self) -> int:
        return self.id // 4

    process_index = slice_index


@pytest.mark.parametrize(("replica", "fsdp"), [(1, 8), (2, 4), (4, 2)])
def test_nodes_of_gpus_may_share_parameters(replica, fsdp):
    """Where a model needs it; copies lie within nodes where they fit there."""
    mesh = make_mesh(config.Mesh(replica=replica, fsdp=fsdp), [Gpu(number) for number in range(8)])
    nodes = [{gpu.slice_index for gpu in copy.flat} for copy in mesh.devices]
    assert all(len(of) == max(fsdp // 4, 1) for of in nodes)


def test_the_least_time_falls_with_chips_and_names_its_cause():
    one = report.estimated(program(sizes=(1, 1, 1)), topology.find("h100-1"))
    eight = report.estimated(program(), topology.find("h100-8"))
    assert eight.seconds["compute"] == pytest.approx(one.seconds["compute"] / 8)
    assert eight.least_seconds == max(eight.seconds.values())
    assert eight.flops_per_step == one.flops_per_step


def test_nodes_that_share_parameters_send_them_over_the_network():
    settings = load(TINY, MEDIUM)
    step = make_program("train", settings, make_mesh(config.Mesh(), jax.devices()), 400)
    two_nodes = dataclasses.replace(topology.find("h100-4"), slices=2)
    found = estimate.collectives(step, two_nodes)
    network = sum(c.bytes for c in found if c.over == "network")
    assert 0 < network < sum(c.bytes for c in found if c.over == "links")
    assert not [c for c in estimate.collectives(step, topology.find("h100-8")) if c.over == "network"]


def test_layouts_divide_what_they_cut():
    settings = load(TINY, [*MEDIUM, "--final.batch_rows", "32"])
    found = list(suggest.layouts(settings, topology.find("h100-8")))
    assert {s.mesh.tensor for s in found} == {1, 2}  # two heads
    assert {s.final.microbatches for s in found if s.mesh.tensor == 1} == {1, 2, 4}
    for layout in found:
        assert layout.mesh.fsdp * layout.mesh.tensor == 8
        assert layout.final.batch_rows % (layout.final.microbatches * layout.mesh.fsdp) == 0

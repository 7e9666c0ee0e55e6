"""Tables of runs: what is mended, what is left out, what is refused, and that whole mixtures are held out."""

import numpy as np
import pyarrow as pa
import pytest

from jaxprune.mix.table import MixtureTable

HEADER = "run_id,params,step,tokens,w_code,w_web,loss_code,loss_web\n"


def table_of(tmp_path, *rows: str) -> MixtureTable:
    (tmp_path / "table.csv").write_text(HEADER + "\n".join(rows) + "\n")
    return MixtureTable.read(tmp_path / "table.csv")


def test_reads_a_file_as_it_is(tmp_path):
    table = table_of(
        tmp_path, "a,10,1,100,0.25,0.75,2.5,3.5", "a,10,2,200,0.25,0.75,2.25,", "b,10,,100,0.5,0.5,2,3"
    )
    assert (
        table.domains == table.targets == ("code", "web") and table.runs == ("a", "b") and table.notes == ()
    )
    np.testing.assert_array_equal(table.tokens_R, [100, 200, 100])
    np.testing.assert_array_equal(table.loss_RE, [[2.5, 3.5], [2.25, np.nan], [2, 3]])
    np.testing.assert_array_equal(table.params_R, 10)


def test_csv_parquet_and_dataframes_are_the_same(tmp_path):
    rows = {"run_id": ["a", "b"], "w_x": [0.2, 0.4], "w_y": [0.8, 0.6], "loss_x": [2.0, 1.5]}
    import pyarrow.parquet as pq

    pq.write_table(pa.table(rows), tmp_path / "t.parquet")
    for table in (MixtureTable.read(tmp_path / "t.parquet"), MixtureTable.from_frame(pa.table(rows))):
        np.testing.assert_array_equal(table.weights_RK, [[0.2, 0.8], [0.4, 0.6]])
        np.testing.assert_array_equal(table.loss_RE, [[2.0], [1.5]])


def test_rounding_is_divided_out_and_what_is_further_off_left_out(tmp_path):
    table = table_of(tmp_path, "a,1,1,1,0.251,0.751,2,3", "b,1,1,1,0.5,0.52,2,3", "c,1,1,1,0.5,0.5,,")
    np.testing.assert_allclose(table.weights_RK.sum(axis=1), 1, rtol=1e-15)
    assert table.runs == ("a",)
    assert [note.split(":")[0].split(" are")[0] for note in table.notes] == [
        "run b is left out", "1 rows without any loss", "rounded weights were divided by their sum",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("a,1,1,1,-0.25,1.25,2,3", "a weight of run a"),
        ("a,1,1,1,,0.75,2,3", "a weight of run a"),
        ("a,1,1,1,0.25,0.75,-2,3", "a loss of run a"),
        ("a,1,1,0,0.25,0.75,2,3", "tokens of run a"),
        ("a,1,1,1,half,half,2,3", "column w_code holds what is no number"),
        ("a,1,1,1,0.3,0.3,2,3", "no row to fit: run a is left out: its weights sum to 0.6"),
    ],
)
def test_refuses_in_one_line(tmp_path, row, message):
    with pytest.raises(ValueError, match=message) as caught:
        table_of(tmp_path, row)
    assert "\n" not in str(caught.value)


def test_repeats_are_left_out_and_contradictions_refused(tmp_path):
    row = "a,1,1,1,0.25,0.75,2,3"
    assert len(table_of(tmp_path, row, row)) == 1
    with pytest.raises(ValueError, match="run a has two rows at 1 tokens that differ"):
        table_of(tmp_path, row, "a,1,1,1,0.25,0.75,2,4")


def test_missing_columns_and_files_are_named(tmp_path):
    with pytest.raises(ValueError, match="has no column loss_<target>: its columns are w_x"):
        MixtureTable.from_frame(pa.table({"w_x": [1.0]}))
    with pytest.raises(ValueError, match="there is no table"):
        MixtureTable.read(tmp_path / "none.csv")
    with pytest.raises(ValueError, match=r"give \[R, K\] and \[R, E\]"):
        MixtureTable.from_arrays(np.ones((2, 1)), np.ones((3, 1)))


def test_whole_mixtures_are_held_out():
    rng = np.random.default_rng(0)
    weights = np.repeat(rng.dirichlet(np.ones(3), 12), 5, axis=0)  # five rows each: seeds or checkpoints
    table = MixtureTable.from_arrays(weights, np.ones((60, 1)))
    fit, held_out = table.split()
    assert (fit.n_mixtures, held_out.n_mixtures) == (9, 3) and len(fit) + len(held_out) == 60
    assert not {tuple(w) for w in fit.weights_RK} & {tuple(w) for w in held_out.weights_RK}


def test_the_end_is_where_most_runs_are():
    tokens = np.array([1, 2, 3, 1, 2, 3, 1, 2, 3, 1, 2, 3, 1, 2, 5])
    run = np.repeat(np.arange(5), 3)
    weights = np.repeat(np.linspace(0.1, 0.9, 5), 3)
    table = MixtureTable.from_arrays(
        np.stack([weights, 1 - weights], 1), np.ones((15, 1)), tokens_R=tokens, run_R=run
    )
    assert set(table.end().tokens_R) == {3} and len(table.end()) == 4
    assert set(table.last().tokens_R) == {3, 5} and len(table.last()) == 5
    with pytest.raises(ValueError, match="share no number of tokens"):
        table.rows(np.array([0, 4, 8])).end()


def test_thinning_keeps_the_last_checkpoint_of_every_run():
    tokens = np.tile(np.arange(1, 11), 4)
    weights = np.repeat(np.linspace(0.1, 0.9, 4), 10)
    table = MixtureTable.from_arrays(
        np.stack([weights, 1 - weights], 1),
        np.ones((40, 1)),
        tokens_R=tokens,
        run_R=np.repeat(np.arange(4), 10),
    )
    thin = table.thinned(12)
    assert len(thin) == 12 and thin.runs == table.runs and set(thin.last().tokens_R) == {10}


def test_what_is_no_dataframe_is_named():
    with pytest.raises(ValueError, match="of type int, not a dataframe"):
        MixtureTable.from_frame(3)

"""The YAML files of launch/: their fields are those of the APIs, and agree with each other and with the scripts."""

import re
import signal
from pathlib import Path
from typing import Any

import pytest

from jaxprune import cli
from jaxprune.channel import GONE

yaml = pytest.importorskip("yaml", reason="pyyaml is not installed: pip install pyyaml")
jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed: pip install jsonschema")

LAUNCH = Path(__file__).parents[2] / "launch"
ROWS: dict[str, Any] = {"type": "object", "additionalProperties": {"type": "string"}}


def closed(required: str = "", **properties: Any) -> dict[str, Any]:
    """An object of these fields and no others, of which those named are needed."""
    return {
        "type": "object",
        "properties": properties,
        "required": required.split(),
        "additionalProperties": False,
    }


def each(item: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": item, "minItems": 1}


TEXT, COUNT, FLAG = {"type": "string"}, {"type": "integer", "minimum": 1}, {"type": "boolean"}
# The fields that are used, as jobset.x-k8s.io/v1alpha2, batch/v1 and core/v1 have them: a misspelt one is refused.
CONTAINER = closed(
    "name image command args resources volumeMounts",
    name=TEXT,
    image=TEXT,
    command=each(TEXT),
    args=each(TEXT),
    env=each(closed("name value", name=TEXT, value=TEXT)),
    ports=each(closed("containerPort", containerPort=COUNT)),
    resources=closed(
        "limits",
        limits={"type": "object", "additionalProperties": COUNT},
        requests=closed("cpu memory", cpu=COUNT, memory=TEXT),
    ),
    volumeMounts=each(closed("name mountPath", name=TEXT, mountPath=TEXT, readOnly=FLAG)),
)
POD = closed(
    "restartPolicy terminationGracePeriodSeconds nodeSelector containers volumes",
    restartPolicy={"const": "Never"},
    terminationGracePeriodSeconds=COUNT,
    nodeSelector=ROWS,
    containers=each(CONTAINER),
    volumes=each(
        closed(
            "name",
            name=TEXT,
            persistentVolumeClaim=closed("claimName", claimName=TEXT, readOnly=FLAG),
            emptyDir=closed("medium", medium={"enum": ["", "Memory"]}),
        )
    ),
)
JOB = closed(
    "parallelism completions completionMode template",
    parallelism=COUNT,
    completions=COUNT,
    completionMode={"const": "Indexed"},
    backoffLimit={"type": "integer", "minimum": 0},
    podFailurePolicy=closed(
        "rules",
        rules=each(
            closed(
                "action onExitCodes",
                action={"const": "FailJob"},
                onExitCodes=closed(
                    "operator values",
                    containerName={"const": "jaxprune"},
                    operator={"enum": ["In", "NotIn"]},
                    values=each(COUNT),
                ),
            )
        ),
    ),
    template=closed("spec", spec=POD),
)
JOBSET = closed(
    "apiVersion kind metadata spec",
    apiVersion={"const": "jobset.x-k8s.io/v1alpha2"},
    kind={"const": "JobSet"},
    metadata=closed("name", name=TEXT, annotations=ROWS),
    spec=closed(
        "replicatedJobs failurePolicy",
        failurePolicy=closed(
            "maxRestarts",
            maxRestarts=COUNT,
            rules=each(
                closed(
                    "name action",
                    name=TEXT,
                    action={"enum": ["FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts"]},
                    onJobFailureReasons=each(
                        {"enum": ["BackoffLimitExceeded", "FailedIndexes", "PodFailurePolicy"]}
                    ),
                )
            ),
        ),
        network=closed("enableDNSHostnames", enableDNSHostnames=FLAG),
        replicatedJobs=each(
            closed("name replicas template", name=TEXT, replicas=COUNT, template=closed("spec", spec=JOB))
        ),
    ),
)
SKYPILOT = closed(
    "resources run",
    name=TEXT,
    num_nodes=COUNT,
    workdir=TEXT,
    resources=closed(
        "accelerators",
        accelerators=TEXT,
        infra=TEXT,
        use_spot=FLAG,
        disk_size=COUNT,
        job_recovery=closed("strategy", strategy=TEXT, recover_on_exit_codes=each({"type": "integer"})),
    ),
    volumes=ROWS,
    file_mounts={"type": "object", "additionalProperties": closed("source mode", source=TEXT, mode={"enum": ["MOUNT", "COPY", "MOUNT_CACHED"]})},
    envs=ROWS,
    setup=TEXT,
    run=TEXT,
)  # fmt: skip


def read(name: str) -> dict[str, Any]:
    return yaml.safe_load((LAUNCH / name).read_text())


def container(jobset: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    return job, job["template"]["spec"]["containers"][0]


@pytest.mark.parametrize(
    ("name", "schema"), [("gke_tpu.yaml", JOBSET), ("gke_gpu.yaml", JOBSET), ("skypilot.yaml", SKYPILOT)]
)
def test_fields_are_those_of_the_api(name, schema):
    content = read(name)
    jsonschema.validate(content, schema)
    misspelt = {**content, "replicas": 1}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(misspelt, schema)


@pytest.mark.parametrize("name", ["gke_tpu.yaml", "gke_gpu.yaml"])
def test_pods_run_together_and_mount_what_they_name(name):
    job, main = container(read(name))
    assert job["parallelism"] == job["completions"] and job["backoffLimit"] == 0
    volumes = {volume["name"] for volume in job["template"]["spec"]["volumes"]}
    assert {mount["name"] for mount in main["volumeMounts"]} == volumes
    paths = [mount["mountPath"] for mount in main["volumeMounts"]]
    for option in ("--workdir=", "--corpus.sources="):
        (value,) = [arg.removeprefix(option) for arg in main["args"] if arg.startswith(option)]
        assert any(value == path or value.startswith(f"{path}/") for path in paths)


def test_nodes_of_gpus_find_process_0_by_the_name_that_the_jobset_gives_it():
    jobset = read("gke_gpu.yaml")
    job, main = container(jobset)
    options = dict(arg.removeprefix("--").split("=", 1) for arg in main["args"])
    name, node = jobset["metadata"]["name"], jobset["spec"]["replicatedJobs"][0]["name"]
    host, port = options["coordinator"].split(":")
    assert host == f"{name}-{node}-0-0.{name}"
    assert int(port) in [entry["containerPort"] for entry in main["ports"]]
    assert int(options["processes"]) == job["parallelism"]
    assert options["process"] == "$(JOB_COMPLETION_INDEX)"


def test_a_slice_has_as_many_hosts_as_its_topology():
    job, main = container(read("gke_tpu.yaml"))
    sides = job["template"]["spec"]["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x")
    chips = int(sides[0]) * int(sides[1])
    assert job["parallelism"] * main["resources"]["limits"]["google.com/tpu"] == chips
    assert "--distributed" in main["args"]


@pytest.mark.parametrize("name", ["gke_tpu.yaml", "gke_gpu.yaml", "skypilot.yaml"])
def test_what_an_error_ends_and_what_comes_again(name):
    """Statuses of `jaxprune`: 1 and 2 are errors; a process that is gone, killed or stopped starts again."""
    again = {GONE, 128 + signal.SIGKILL, 128 + signal.SIGSEGV, 128 + signal.SIGTERM}
    content = read(name)
    if name == "skypilot.yaml":
        assert set(content["resources"]["job_recovery"]["recover_on_exit_codes"]) == again
        return
    (rule,) = container(content)[0]["podFailurePolicy"]["rules"]
    assert rule["onExitCodes"] == {"containerName": "jaxprune", "operator": "In", "values": [1, 2]}
    (of_set,) = content["spec"]["failurePolicy"]["rules"]
    assert (of_set["action"], of_set["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])


def test_what_skypilot_books_holds_what_it_runs(capsys):
    content = read("skypilot.yaml")
    kind, n = content["resources"]["accelerators"].lower().split(":")
    path, options = content["envs"]["CONFIG"], content["envs"]["OPTIONS"].split()
    fits = cli.main(["compile", str(LAUNCH.parent / path), "--topology", f"{kind}-{n}", *options])
    assert fits == 0, capsys.readouterr()


@pytest.mark.parametrize(
    ("config", "name"),
    [(f"final_{size}", name) for size in ("1b", "3b", "7b") for name in ("h100-8", "h200-1")],
)
def test_presets_fit_the_gpus_of_their_tables(config, name, capsys):
    """Every step of the pipeline, with the settings of the row."""
    path = LAUNCH.parent / "configs" / f"{config}.py"
    (row,) = [line for line in path.read_text().splitlines() if line.startswith(f"| {name} |")]
    options = row.split("|")[2].strip(" `").split()
    assert cli.main(["compile", str(path), "--topology", name, *options]) == 0, capsys.readouterr()


def test_compiler_flags_are_the_same_everywhere():
    def environment(name: str) -> dict[str, str]:
        return {entry["name"]: entry["value"] for entry in container(read(name))[1]["env"]}

    of_vm = " ".join(re.findall(r'^flags\+?="([^"]+)"$', (LAUNCH / "tpu_vm.sh").read_text(), re.M))
    assert set(environment("gke_tpu.yaml")["LIBTPU_INIT_ARGS"].split()) == set(of_vm.split())
    of_slurm = re.search(r'XLA_FLAGS:-\} ([^"]+)"', (LAUNCH / "slurm.sh").read_text())
    assert of_slurm is not None
    assert environment("gke_gpu.yaml")["XLA_FLAGS"] == of_slurm[1]
    assert f'XLA_FLAGS="{of_slurm[1]}"' in read("skypilot.yaml")["run"]


def test_configs_that_are_named_exist():
    for path in LAUNCH.iterdir():
        for config in re.findall(r"configs/\w+\.py", path.read_text()):
            assert (LAUNCH.parent / config).is_file(), (path.name, config)

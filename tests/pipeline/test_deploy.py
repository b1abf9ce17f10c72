"""Larger deployments by configuration: what lies in ``deploy/`` is what Dagster and Kubernetes
accept.
"""

import importlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import dagster as dg
import pytest
import yaml
from dagster._config import process_config
from dagster._core.instance.ref import InstanceRef

REPOSITORY = Path(__file__).parents[2]
KUBERNETES = sorted((REPOSITORY / "deploy/kubernetes").glob("*.yaml"))
VERSION = "1.32"

k8s = pytest.importorskip("dagster_k8s")
kubernetes_validate = pytest.importorskip("kubernetes_validate")


def manifests():
    return [item for path in KUBERNETES for item in yaml.safe_load_all(path.read_text())]


def config_map(name):
    return next(
        item
        for item in manifests()
        if item["kind"] == "ConfigMap" and item["metadata"]["name"] == name
    )["data"]


@pytest.fixture
def cluster_instance(tmp_path, monkeypatch):
    """A folder with the cluster's dagster.yaml, in an environment as its pods have it."""
    monkeypatch.setenv("DAGSTER_PG_PASSWORD", "secret")
    (tmp_path / "dagster.yaml").write_text(config_map("hourllava-instance")["dagster.yaml"])
    return tmp_path


def validate_instance(folder):
    """Check a dagster.yaml by Dagster's schema, and the section of each class that it names by that
    class's.
    """
    ref = InstanceRef.from_dir(str(folder))
    classes = [getattr(ref, name) for name in InstanceRef._fields if name.endswith("_data")]
    for data in filter(None, classes):
        owner = getattr(importlib.import_module(data.module_name), data.class_name)
        checked = process_config(owner.config_type(), yaml.safe_load(data.config_yaml))
        assert checked.success, [error.message for error in checked.errors]
    return ref


@pytest.mark.parametrize(
    "manifest", manifests(), ids=lambda item: f"{item['kind']} {item['metadata']['name']}"
)
def test_every_manifest_is_valid_by_kubernetes_own_schema(manifest):
    kubernetes_validate.validate(manifest, VERSION, strict=True)


def test_a_mistake_in_a_manifest_would_be_noticed():
    broken = next(item for item in manifests() if item["kind"] == "StatefulSet")
    broken["spec"]["template"]["spec"]["containers"][0]["imagee"] = "x"
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, VERSION, strict=True)


def test_what_the_manifests_refer_to_is_there():
    """Secrets apart, which are made by hand and have one name."""
    made = {(item["kind"], item["metadata"]["name"]) for item in manifests()}
    used, secrets = set(), set()
    for item in manifests():
        if item["kind"] not in ("Deployment", "StatefulSet"):
            continue
        pod = item["spec"]["template"]["spec"]
        used |= {("ServiceAccount", pod[key]) for key in ("serviceAccountName",) if key in pod}
        for volume in pod.get("volumes", []):
            used |= {("ConfigMap", volume[key]["name"]) for key in ("configMap",) if key in volume}
            used |= {
                ("PersistentVolumeClaim", volume[key]["claimName"])
                for key in volume
                if "Claim" in key
            }
        for variable in pod["containers"][0].get("env", []):
            secrets |= {
                variable["valueFrom"]["secretKeyRef"]["name"]
                for key in variable
                if key == "valueFrom"
            }
    instance = yaml.safe_load(config_map("hourllava-instance")["dagster.yaml"])
    workspace = yaml.safe_load(config_map("hourllava-instance")["workspace.yaml"])
    used.add(("Service", workspace["load_from"][0]["grpc_server"]["host"]))
    used.add(("Service", instance["storage"]["postgres"]["postgres_db"]["hostname"]))
    launcher = instance["run_launcher"]["config"]
    used |= {
        ("ServiceAccount", launcher["service_account_name"]),
        ("ConfigMap", launcher["instance_config_map"]),
    }
    assert used <= made
    assert secrets == {launcher["postgres_password_secret"]} == {"hourllava-secrets"}


def test_the_instance_of_the_cluster_fits_dagsters_schema(cluster_instance):
    ref = validate_instance(cluster_instance)
    assert ref.run_launcher_data.class_name == "K8sRunLauncher"


def test_a_mistake_in_an_instance_would_be_noticed(cluster_instance):
    path = cluster_instance / "dagster.yaml"
    path.write_text(path.read_text().replace("job_namespace", "jobs_namespace"))
    with pytest.raises(AssertionError, match="jobs_namespace"):
        validate_instance(cluster_instance)


def test_the_settings_and_the_workspace_of_the_cluster_are_read(tmp_path):
    from assets.deployment.settings import load_settings

    (tmp_path / "deployment.yaml").write_text(config_map("hourllava-settings")["deployment.yaml"])
    assert list(load_settings(tmp_path / "deployment.yaml").variants) == ["3b"]


def test_with_postgres_an_instance_differs_only_in_where_its_history_is(tmp_path, monkeypatch):
    monkeypatch.setenv("DAGSTER_PG_URL", "postgresql+psycopg2://dagster:secret@127.0.0.1/dagster")
    validate_instance(REPOSITORY / "deploy/postgres")
    plain, postgres = (
        yaml.safe_load((REPOSITORY / folder / "dagster.yaml").read_text())
        for folder in (".", "deploy/postgres")
    )
    assert plain.pop("storage") != postgres.pop("storage")
    assert plain == postgres


@pytest.fixture
def pods(tmp_path):
    (tmp_path / "pods.yaml").write_text(config_map("hourllava-settings")["pods.yaml"])
    return tmp_path / "pods.yaml"


def rendered_step(instance_folder, user_defined):
    """The Kubernetes Job that the executor creates for a step, as Dagster builds it."""
    import kubernetes
    from dagster_k8s.container_context import K8sContainerContext
    from dagster_k8s.job import UserDefinedDagsterK8sConfig, construct_dagster_k8s_job

    kubeconfig = instance_folder / "kubeconfig"
    cluster = {"name": "c", "cluster": {"server": "http://127.0.0.1:1"}}
    user = {"name": "u", "user": {}}
    context = {"name": "c", "context": {"cluster": "c", "user": "u"}}
    kinds = {"apiVersion": "v1", "kind": "Config", "current-context": "c"}
    kubeconfig.write_text(
        yaml.safe_dump({**kinds, "clusters": [cluster], "users": [user], "contexts": [context]})
    )
    config = yaml.safe_load((instance_folder / "dagster.yaml").read_text())["run_launcher"][
        "config"
    ]
    processed = process_config(k8s.K8sRunLauncher.config_type(), config).value
    outside = {"load_incluster_config": False, "kubeconfig_file": str(kubeconfig)}
    launcher = k8s.K8sRunLauncher(**{**processed, **outside})
    given = K8sContainerContext(run_k8s_config=UserDefinedDagsterK8sConfig.from_dict(user_defined))
    whole = K8sContainerContext.create_for_run(
        dg.DagsterRun("train"), launcher, include_run_tags=False
    ).merge(given)
    job = construct_dagster_k8s_job(
        whole.get_k8s_job_config("registry.example.org/hourllava:0.1.0", launcher),
        ["dagster", "api", "execute_step"],
        "dagster-step-1",
        user_defined_k8s_config=whole.run_k8s_config,
        component="step_worker",
    )
    return kubernetes.client.ApiClient().sanitize_for_serialization(job)


def test_a_training_step_gets_a_gpu_pod_that_kubernetes_accepts(cluster_instance, pods):
    job = rendered_step(cluster_instance, yaml.safe_load(pods.read_text())["gpu"])
    kubernetes_validate.validate(job, VERSION, strict=True)
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["resources"]["limits"] == {"nvidia.com/gpu": "8"}
    assert pod["nodeSelector"] == {"nvidia.com/gpu.present": "true"}
    assert pod["terminationGracePeriodSeconds"] == 180
    mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounts == {"/data", "/dev/shm", "/opt/hourllava-settings", "/tmp"}
    assert {
        "name": "HOURLLAVA_CONFIG",
        "value": "/opt/hourllava-settings/deployment.yaml",
    } in container["env"]


def test_a_download_step_holds_no_gpu(cluster_instance, pods):
    job = rendered_step(cluster_instance, yaml.safe_load(pods.read_text())["download"])
    kubernetes_validate.validate(job, VERSION, strict=True)
    assert "limits" not in job["spec"]["template"]["spec"]["containers"][0]["resources"]


def own_pods():
    return {
        item["metadata"]["name"]: item["spec"]["template"]
        for item in manifests()
        if item["kind"] in ("Deployment", "StatefulSet")
    }


def rendered_pods(instance_folder, pods):
    """The pod of a run, and of a step of each pool."""
    given = {"run": {}, **yaml.safe_load(pods.read_text())}
    return {
        name: rendered_step(instance_folder, config)["spec"]["template"]
        for name, config in given.items()
    }


def test_every_pod_is_confined(cluster_instance, pods):
    """What Kubernetes' restricted standard asks for, and a root file system that is read-only."""
    all_pods = {**own_pods(), **rendered_pods(cluster_instance, pods)}
    assert len(all_pods) == 4 + 5
    for name, template in all_pods.items():
        pod = template["spec"]
        outer = pod["securityContext"]
        assert outer["runAsNonRoot"] is True, name
        assert outer["runAsUser"] > 0, name
        assert outer["seccompProfile"] == {"type": "RuntimeDefault"}, name
        for container in pod["containers"]:
            inner = container["securityContext"]
            assert inner["allowPrivilegeEscalation"] is False, name
            assert inner["readOnlyRootFilesystem"] is True, name
            assert inner["capabilities"] == {"drop": ["ALL"]}, name
            assert "/tmp" in [mount["mountPath"] for mount in container["volumeMounts"]], name
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod), name
        assert not [volume for volume in pod["volumes"] if "hostPath" in volume], name


def test_only_pods_that_start_others_can_speak_to_kubernetes(cluster_instance, pods):
    all_pods = {**own_pods(), **rendered_pods(cluster_instance, pods)}
    able = {
        name
        for name, template in all_pods.items()
        if template["spec"].get("automountServiceAccountToken", True)
    }
    assert able == {"hourllava-web", "hourllava-daemon", "run"}
    (account,) = [item for item in manifests() if item["kind"] == "ServiceAccount"]
    assert account["automountServiceAccountToken"] is False


def test_secrets_are_only_in_the_pods_that_use_them(cluster_instance, pods):
    found = {}
    for name, template in {**own_pods(), **rendered_pods(cluster_instance, pods)}.items():
        (container,) = template["spec"]["containers"]
        sources = [v["valueFrom"] for v in container.get("env", []) if "valueFrom" in v]
        secrets = {(s["secretKeyRef"]["name"], s["secretKeyRef"]["key"]) for s in sources}
        secrets |= {
            (source["secretRef"]["name"], "*")
            for source in container.get("envFrom", [])
            if "secretRef" in source
        }
        found[name] = secrets
    history = ("hourllava-secrets", "postgresql-password")
    assert found.pop("download") == {history, ("hourllava-hub", "*")}
    assert found.pop("endpoint") == {history, ("hourllava-endpoint", "*")}
    assert set(map(frozenset, found.values())) == {frozenset([history])}


def selected(selector, labels):
    """Whether a label selector takes a pod, as Kubernetes defines it."""
    terms = selector.get("matchExpressions", [])
    assert {term["operator"] for term in terms} <= {"In"}
    return all(labels.get(k) == v for k, v in selector.get("matchLabels", {}).items()) and all(
        labels.get(term["key"]) in term["values"] for term in terms
    )


def test_connections_are_those_that_are_needed(cluster_instance, pods):
    templates = {**own_pods(), **rendered_pods(cluster_instance, pods)}
    labels = {name: template["metadata"]["labels"] for name, template in templates.items()}
    policies = [item["spec"] for item in manifests() if item["kind"] == "NetworkPolicy"]
    allowed = set()
    for target, wearing in labels.items():
        own = [policy for policy in policies if selected(policy["podSelector"], wearing)]
        assert any("Ingress" in policy["policyTypes"] for policy in own), f"{target} is open to all"
        for policy in own:
            for rule in policy.get("ingress", []):
                (port,) = [port["port"] for port in rule["ports"]]
                allowed |= {
                    (source, target, port)
                    for source in labels
                    for peer in rule["from"]
                    if selected(peer["podSelector"], labels[source])
                }
    postgres, code = "hourllava-postgres", "hourllava-code"
    assert allowed == {
        *((source, postgres, 5432) for source in labels if source != postgres),
        ("hourllava-web", code, 4000),
        ("hourllava-daemon", code, 4000),
    }
    assert {policy["podSelector"].get("matchLabels", {}).get("app") for policy in policies
            if "Egress" in policy["policyTypes"]} == {postgres}  # fmt: skip


def test_the_image_runs_as_a_user_and_takes_nothing_private():
    lines = (REPOSITORY / "deploy/Dockerfile").read_text().splitlines()
    assert [line for line in lines if line.startswith("USER ")] == ["USER 10001:10001"]
    ids = {
        name: template["spec"]["securityContext"]["runAsUser"]
        for name, template in own_pods().items()
    }
    assert ids.pop("hourllava-postgres") != 0
    assert set(ids.values()) == {10001}
    rules = (REPOSITORY / "deploy/Dockerfile.dockerignore").read_text().splitlines()
    rules = [rule for rule in rules if rule and not rule.startswith("#")]
    taken = [rule[1:] for rule in rules if rule.startswith("!")]
    assert rules[0] == "*"
    assert rules[1 : 1 + len(taken)] == [f"!{name}" for name in taken]
    assert {"**/.env*", "**/*cookies*"} <= set(rules[1 + len(taken) :])
    project = (REPOSITORY / "pyproject.toml").read_text()
    assert set(taken) == {
        "LICENSE", "README.md", "assets", "constraints.txt", "model", "pipeline", "pyproject.toml",
        "training",
    }  # fmt: skip
    assert 'readme = "README.md"' in project
    assert all((REPOSITORY / name).exists() for name in taken)


def test_each_asset_gets_the_pod_of_its_pool(pods):
    from pipeline.definitions import definitions
    from pipeline.executors import pod_executor

    assets = list(definitions().assets)
    executor = pod_executor(pods, assets)
    config = executor.apply_config_mapping({"config": {}}).value["config"]["per_step_k8s_config"]
    assert {
        name for name, pod in config.items() if "limits" in pod["container_config"]["resources"]
    } == {
        "stage1",
        "stage2",
        "stage3",
        "features",
        "evaluation",
    }
    assert config["videos"]["container_config"]["resources"]["requests"] == {
        "cpu": "4",
        "memory": "8Gi",
    }


def test_a_pool_that_there_is_not_is_named(tmp_path):
    from pipeline.executors import pod_executor

    (tmp_path / "pods.yaml").write_text("gpus: {}")
    with pytest.raises(
        ValueError, match=r"there is no pool gpus; the pools are gpu, download, endpoint, cpu"
    ):
        pod_executor(tmp_path / "pods.yaml", [])


@pytest.mark.slow
def test_on_a_cluster_every_job_starts_its_steps_as_pods(pods):
    code = """if True:
        import json
        from pipeline.definitions import definitions
        jobs = definitions().resolve_all_job_defs()
        named = [job for job in jobs if not job.name.startswith("_")]
        print(json.dumps({job.name: job.executor_def.name for job in named}))
    """
    variables = {**os.environ, "HOURLLAVA_PODS": str(pods)}
    said = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, env=variables, capture_output=True, text=True
    )
    executors = json.loads(said.stdout)
    # They write or read small records, start a backfill or wait for one: their run's pod does it.
    small = ("02_everything_for_variant", "fine_tune", "give_up_part", "take_back_part")
    for name in (*small, "withdraw_video", "look_up_video"):
        assert executors.pop(name) == "in_process"
    assert set(executors.values()) == {"k8s"}, said.stderr


def postgres_programs():
    """The folder of a Postgres server's programs; Debian keeps them off the PATH."""
    places = [*sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb")), shutil.which("initdb")]
    return next((Path(place).resolve().parent for place in places if place), None)


@pytest.fixture
def postgres():
    """The URL of a real Postgres that lives in a temporary folder."""
    programs = postgres_programs()
    if programs is None:
        pytest.skip("no Postgres server on this machine (apt-get install postgresql)")
    with tempfile.TemporaryDirectory(prefix="hourllava-postgres-") as name:
        folder = Path(name)
        as_user = []
        if os.geteuid() == 0:  # it refuses to run as root, which containers are
            as_user = ["runuser", "-u", "postgres", "--"]
            shutil.chown(folder, "postgres")

        def run(program, *arguments):
            command = [*as_user, programs / program, *arguments]
            done = subprocess.run(
                command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
            )
            assert done.returncode == 0, done.stderr

        run("initdb", "-D", folder / "data", "-U", "dagster", "--auth=trust", "--no-sync")
        options = f"-c listen_addresses= -c unix_socket_directories={folder} -c fsync=off"
        run("pg_ctl", "-D", folder / "data", "-w", "-o", options, "-l", folder / "log", "start")
        try:
            run("createdb", "-h", folder, "-U", "dagster", "dagster")
            yield f"postgresql+psycopg2://dagster@/dagster?host={folder}"
        finally:
            run("pg_ctl", "-D", folder / "data", "-m", "immediate", "stop")


@pytest.mark.slow
def test_a_part_is_materialized_with_its_history_in_postgres(postgres, tmp_path, monkeypatch):
    monkeypatch.setenv("DAGSTER_PG_URL", postgres)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.chdir(home)
    shutil.copy(REPOSITORY / "deploy/postgres/dagster.yaml", home)

    @dg.asset(partitions_def=dg.DynamicPartitionsDefinition(name="part"), pool="download")
    def fetched(context) -> dg.MaterializeResult:
        return dg.MaterializeResult(data_version=dg.DataVersion("1"))

    with dg.DagsterInstance.from_config(str(home)) as instance:
        assert type(instance.run_storage).__name__ == "PostgresRunStorage"
        instance.event_log_storage.set_concurrency_slots("download", 2)
        instance.add_dynamic_partitions("part", ["part0"])
        assert dg.materialize([fetched], instance=instance, partition_key="part0").success
    # What another process finds in the database afterwards:
    with dg.DagsterInstance.from_config(str(home)) as instance:
        assert instance.get_materialized_partitions(dg.AssetKey("fetched")) == {"part0"}
        assert instance.get_runs_count() == 1
        assert instance.event_log_storage.get_concurrency_info("download").slot_count == 2
    assert not list(home.rglob("*.db"))

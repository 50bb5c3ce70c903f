"""docker/: the image, and the compose commands of the README, with a real engine.

Needs a Docker engine and docker-compose, or docker with its compose plugin. The image is built from the base
image that WSI_MIL_TEST_BASE names (python:3.11-slim), with WSI_MIL_TEST_BUILD_NETWORK as the network of the
build (default), and stays, so that a second run builds nothing. Containers run without a network, but for the
cluster's.
"""

import json
import os
import re
import shutil
import subprocess
import time
import urllib.request
from pathlib import Path

import pytest

from pipelines.demo.cohort import make_cohort
from wsi_mil import store
from wsi_mil.config import STAGE_CONFIGS

pytestmark = pytest.mark.docker
ROOT = Path(__file__).parents[1]
DOCKER = ROOT / "docker"
README = (ROOT / "README.md").read_text(encoding="utf-8")
SLIDES = 12
UID, GID = 4711, 4712  # nobody in the image or here
IMAGE = "wsi-mil"


def compose_words():
    """Return the words that run Compose here."""
    if shutil.which("docker-compose"):
        return ["docker-compose"]
    return ["docker", "compose"]


def readme_block(name):
    """Return the commands below <!-- name -->, without what is said beside them."""
    match = re.search(rf"<!-- {name} -->\n```bash\n(.*?)```", README, re.DOTALL)
    assert match, name
    lines = [re.sub(r"\s{2,}#.*", "", line) for line in match[1].splitlines()]
    return [line for line in lines if line.strip()]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Folders as a user has them: slides, runs, labels; and docker/ with its .env."""
    if subprocess.run(["docker", "info"], capture_output=True, check=False).returncode:
        pytest.fail("the tests of docker/ need a Docker engine that answers `docker info`")
    folder = tmp_path_factory.mktemp("docker")
    cohort = make_cohort(folder / "cohort", slides=SLIDES, side_um=500, seed=3)
    (folder / "runs").mkdir()
    os.chown(folder / "runs", UID, GID)
    (folder / "config").mkdir()
    shutil.copy(cohort.labels, folder / "config" / "labels.csv")
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    for path in reversed(folder.parents[:3]):
        path.chmod(path.stat().st_mode | 0o055)  # pytest's folders are root's alone
    return Place(folder)


class Place:
    """Runs compose commands as the README has them, with a user's .env."""

    def __init__(self, folder):
        self.folder, self.runs = folder, folder / "runs"
        self.variables = {"DOCKER_BUILDKIT": "0"} | os.environ | {
            "WSI_MIL_SLIDES": str(folder / "cohort" / "slides"), "WSI_MIL_RUNS": str(self.runs),
            "WSI_MIL_CONFIG": str(folder / "config"), "WSI_MIL_UID": str(UID), "WSI_MIL_GID": str(GID),
            "WSI_MIL_SHM_SIZE": "1gb", "WSI_MIL_SCHEDULER": "tcp://127.0.0.1:8786",
            "BASE_IMAGE": os.environ.get("WSI_MIL_TEST_BASE", "python:3.11-slim"),
            "WSI_MIL_BUILD_NETWORK": os.environ.get("WSI_MIL_TEST_BUILD_NETWORK", "default"),
            "COMPOSE_PROJECT_NAME": "wsi-mil-test",
        }  # fmt: skip

    def compose(self, *words, check=True, seconds=900):
        """Run a compose command in docker/; return its result, with both outputs in ``stdout``."""
        result = subprocess.run(
            [*compose_words(), *map(str, words)], cwd=DOCKER, env=self.variables, text=True, check=False,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, timeout=seconds,
        )  # fmt: skip
        assert not check or result.returncode == 0, f"{words}: {result.stdout}"
        return result

    def on_cpu(self, *words, **options):
        """Run a container of the service for machines without a GPU."""
        return self.compose("--profile", "cpu", "run", "--rm", "-T", *words, **options)

    def readme(self, line, **options):
        """Run a line of the README, with -T: nobody sits at a terminal."""
        words = line.split()
        assert words[:2] == ["docker", "compose"], line
        at = words.index("run") + 1 if "run" in words else None
        return self.compose(*([*words[2:at], "-T", *words[at:]] if at else words[2:]), **options)


@pytest.fixture(scope="module")
def image(place):
    """The image, built by the README's command; prints how long that took."""
    (line,) = [each for each in readme_block("docker-run") if " build " in each]
    start = time.monotonic()
    place.readme(line, seconds=3600)
    print(f"\nbuilt in {time.monotonic() - start:.0f} s")
    return json.loads(subprocess.check_output(["docker", "image", "inspect", IMAGE]))[0]


def in_image(*words, entrypoint="sh"):
    command = ["docker", "run", "--rm", "--network", "none", "--entrypoint", entrypoint, IMAGE, *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_image_is_small_says_what_it_is_and_runs_as_nobody_in_particular(image):
    print(f"\nimage: {image['Size'] / 1e9:.2f} GB")
    assert image["Size"] < 8e9
    settings = image["Config"]
    assert settings["User"] == "1000:1000"
    assert settings["Entrypoint"] == ["wsi-mil"]
    assert settings["Healthcheck"]["Test"] == ["CMD", "wsi-mil", "--version"]
    assert settings["Labels"]["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert in_image("--version", entrypoint="wsi-mil").stdout.startswith("wsi-mil ")


def test_the_image_has_no_tools_that_build(image):
    for tool in ("gcc", "g++", "cc", "make", "git", "cmake"):
        assert in_image("-c", f"command -v {tool}").returncode != 0, tool
    assert in_image("-c", "ls /opt/wsi-mil/bin/pip /opt/package/bin/pip").returncode != 0
    assert in_image("-c", "ls /build").returncode != 0, "what it was built from"


def test_the_image_has_the_versions_of_constraints(image):
    listed = in_image(
        "-c", "import importlib.metadata as m, json; "
        "print(json.dumps({d.name.lower().replace('_', '-'): d.version for d in m.distributions()}))",
        entrypoint="python",
    )  # fmt: skip
    versions = json.loads(listed.stdout)
    pinned = dict(
        re.match(r"([\w.-]+)==(\S+)", line).groups()
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line
    )
    for name, version in pinned.items():
        found = versions.get(name.lower().replace("_", "-"))
        assert found is None or found.split("+")[0] == version, name
    assert versions["torch"].split("+")[0] == pinned["torch"]


def test_a_change_of_the_source_builds_in_a_minute(image, tmp_path):
    """A copy of what the image is made of, with a line more in one module."""
    parts = "docker/Dockerfile docker/requirements.py .dockerignore pyproject.toml constraints.txt README.md "
    parts += "LICENSE"
    for name in parts.split():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    shutil.copytree(ROOT / "wsi_mil", tmp_path / "wsi_mil", ignore=shutil.ignore_patterns("__pycache__"))
    with (tmp_path / "wsi_mil" / "errors.py").open("a") as file:
        file.write(f"\nBUILT = {time.time()}\n")
    network = os.environ.get("WSI_MIL_TEST_BUILD_NETWORK", "default")
    base = os.environ.get("WSI_MIL_TEST_BASE", "python:3.11-slim")
    start = time.monotonic()
    command = ["docker", "build", "--quiet", "--network", network, "--build-arg", f"BASE_IMAGE={base}"]
    # Compose passes every argument, and the cache knows them.
    command += ["--build-arg", "EXTRAS=remote", "--build-arg", "TORCH_INDEX="]
    built = subprocess.run(
        [*command, "-f", "docker/Dockerfile", "-t", f"{IMAGE}:changed", "."], cwd=tmp_path, check=False,
        env={"DOCKER_BUILDKIT": "0"} | os.environ, capture_output=True, text=True,
    )  # fmt: skip
    seconds = time.monotonic() - start
    assert built.returncode == 0, built.stdout + built.stderr
    try:
        print(f"\nbuilt again in {seconds:.0f} s")
        assert seconds < 60
        command = ["docker", "run", "--rm", "--network", "none", "--entrypoint", "python", f"{IMAGE}:changed"]
        found = subprocess.check_output(
            [*command, "-c", "import wsi_mil.errors as e; print(e.BUILT)"], text=True
        )
        assert float(found) > 0
    finally:
        subprocess.run(["docker", "rmi", "--no-prune", f"{IMAGE}:changed"], capture_output=True, check=False)


def on_cpu(line):
    """Return a line of the README for a machine without a GPU, as the README says it."""
    return line.replace("run --rm wsi-mil", "--profile cpu run --rm cpu").replace(
        "compose run", "compose run"
    )


@pytest.fixture(scope="module")
def first_run(place, image):
    """All stages, by the README's commands on the service without a GPU."""
    assert "`docker compose --profile cpu run --rm cpu`" in README
    lines = [each for each in readme_block("docker-run") if " run " in each]
    assert [line.split("wsi-mil ")[1].split()[0] for line in lines] == [
        "tile",
        "embed",
        "train",
        "heatmap",
        "report",
    ]
    outputs = [place.readme(on_cpu(line)).stdout for line in lines]
    assert all("0 failed" in each for each in outputs), outputs
    return place.runs / "first"


def test_the_readmes_commands_run_without_a_network_and_as_the_caller(place, first_run):
    assert len(list(first_run.glob("heatmaps/*/*/overlay.jpg"))) == SLIDES
    assert (first_run / "report.html").is_file()
    files = [first_run, *first_run.rglob("*")]
    assert {(path.stat().st_uid, path.stat().st_gid) for path in files} == {(UID, GID)}
    hosts = {json.loads(path.read_text())["host"] for path in first_run.glob("*/stage.json")}
    assert len(hosts) > 1, "a container for each stage"


def test_a_container_can_write_nowhere_else(place, image):
    for where in ("/slides/x", "/config/x", "/weights/x", "/opt/package/x", "/x"):
        result = place.compose(
            "--profile", "cpu", "run", "--rm", "-T", "--entrypoint", "touch", "cpu", where, check=False
        )
        assert result.returncode != 0, where
        assert re.search("Read-only file system|Permission denied", result.stdout), result.stdout
    place.on_cpu("--entrypoint", "touch", "cpu", "/tmp/x")
    result = place.compose(
        "--profile", "cpu", "run", "--rm", "-T", "--entrypoint", "cat", "cpu", "/proc/net/dev"
    )
    assert set(re.findall(r"^\s*(\w+):", result.stdout, re.MULTILINE)) == {"lo"}, "no network"


def test_a_run_folder_that_is_not_there_is_said(place, tmp_path):
    before = place.variables
    place.variables = before | {"WSI_MIL_RUNS": str(tmp_path / "missing")}
    try:
        result = place.on_cpu("cpu", "--version", check=False)
        assert result.returncode != 0
        assert "bind source path does not exist" in result.stdout
        assert not (tmp_path / "missing").exists(), "an engine that makes it makes it root's"
    finally:
        place.variables = before


def test_without_a_gpu_the_reservation_is_refused_by_name(place, image):
    if shutil.which("nvidia-smi"):
        pytest.skip("this machine has a GPU: the refusal was NOT tested")
    result = place.compose("run", "--rm", "-T", "wsi-mil", "--version", check=False)
    assert result.returncode != 0
    assert 'could not select device driver "nvidia"' in result.stdout, result.stdout


def test_compose_reads_every_profile(place):
    profiles = [word for name in ("cpu", "cluster", "viewer") for word in ("--profile", name)]
    text = place.compose(*profiles, "config").stdout
    for service in ("wsi-mil", "cpu", "scheduler", "gpu-worker", "cpu-worker", "client", "viewer"):
        assert re.search(rf"^  {service}:$", text, re.MULTILINE), service
    assert "nvidia" in text


def test_what_compose_must_know_is_said(place):
    missing = {name: each for name, each in place.variables.items() if name != "WSI_MIL_SLIDES"}
    result = subprocess.run(
        [*compose_words(), "config"], cwd=DOCKER, env=missing, capture_output=True, text=True, check=False
    )
    assert result.returncode != 0
    assert "say in .env where the slides lie" in result.stdout + result.stderr


def test_the_table_of_variables_is_the_files(place):
    used = set(re.findall(r"\$\{(\w+)", (DOCKER / "compose.yaml").read_text()))
    example = set(re.findall(r"^#?(\w+)=", (DOCKER / ".env.example").read_text(), re.MULTILINE))
    section = README.split("## On a GPU node")[1].split("\n## ")[0]
    table = set(re.findall(r"^\| `(\w+)`", section, re.MULTILINE))
    assert used == example == table


def test_the_viewer_shows_the_run_on_the_node(place, first_run):
    if "view" not in STAGE_CONFIGS:
        pytest.skip("there is no `wsi-mil view` yet: the service viewer was NOT tested")
    place.variables |= {"WSI_MIL_RUN": "first", "WSI_MIL_VIEWER_PORT": "8765"}
    (line,) = readme_block("docker-viewer")
    words = line.split()[2:]
    viewer = subprocess.Popen(
        [*compose_words(), *words[: words.index("run") + 1], "-T", *words[words.index("run") + 1 :]],
        cwd=DOCKER, env=place.variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        assert viewer.stdout is not None
        said = []
        for printed in viewer.stdout:
            said.append(printed)
            if found := re.search(r"http://127\.0\.0\.1:8765\S*", printed):
                break
        else:
            raise AssertionError("".join(said))
        with urllib.request.urlopen(found[0], timeout=30) as page:
            assert page.status == 200
            assert b"wsi-mil" in page.read()
    finally:
        viewer.terminate()
        viewer.communicate(timeout=90)


def test_a_worker_of_the_cluster_is_killed_and_every_slide_is_done_once(place, first_run):
    up, tile, embed, down = readme_block("docker-cluster")
    second = place.runs / "second"
    place.readme(up)
    try:
        ids = place.compose("--profile", "cluster", "ps", "-q", "cpu-worker").stdout.split()
        assert len(ids) == 2
        assert "0 failed" in place.readme(tile).stdout
        client = subprocess.Popen(
            [*compose_words(), *embed.replace("run --rm", "run --rm -T").split()[2:]], cwd=DOCKER, text=True,
            env=place.variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        deadline = time.monotonic() + 300
        while len(list(second.glob("features/*/*.h5"))) < 2:
            assert client.poll() is None, client.communicate()[0]
            assert time.monotonic() < deadline, client.kill() or client.communicate()[0]
            time.sleep(0.1)
        subprocess.run(["docker", "kill", "--signal", "KILL", ids[0]], check=True, capture_output=True)
        done_before = len(list(second.glob("features/*/*.h5")))
        output = client.communicate(timeout=600)[0]
        print(f"\nkilled a worker when {done_before} of {SLIDES} slides were embedded")
        assert client.returncode == 0, output
        assert done_before < SLIDES, "too late to show anything"
    finally:
        place.readme(down)
    for path in sorted(first_run.glob("patches/*.h5")):
        ours, theirs = store.read_patches(second / "patches" / path.name), store.read_patches(path)
        assert ours.digest == theirs.digest, path.name
    rows = store.read_csv(second / "embed" / "slides.csv")
    assert len({row["slide_id"] for row in rows}) == len(rows) == SLIDES
    assert {row["status"] for row in rows} == {"done"}
    assert len(list(second.glob("features/*/*.h5"))) == SLIDES
    assert "0 failed" in place.on_cpu("cpu", "verify", "--run", "/runs/second").stdout
    assert {path.stat().st_uid for path in second.rglob("*")} == {UID}

"""The model hub's client against a server on this machine that speaks enough of the hub's protocol."""

import hashlib
import http.server
import json
import re
import threading
import time

import pytest
import safetensors.torch
import timm
import torch
from huggingface_hub import constants

from wsi_mil.encoders import PACKAGED, PRESETS, load_encoder, weights_path
from wsi_mil.encoders.build import from_preset
from wsi_mil.errors import ConfigError, FormatError

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(http.server.BaseHTTPRequestHandler):
    """Answers /ORG/NAME/resolve/REVISION/FILE as the hub does, from the server's ``files`` and ``gated``."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, body):
        repo, _, rest = self.path.lstrip("/").partition("/resolve/")
        file = rest.partition("/")[2]
        self.server.asked.append((self.command, repo, file))
        content = self.server.files.get((repo, file))
        headers = {"X-Repo-Commit": COMMIT}
        if repo in self.server.gated:
            status, headers["X-Error-Code"], content = 403, "GatedRepo", b""
        elif repo not in {each for each, _ in self.server.files}:
            status, headers["X-Error-Code"], content = 404, "RepoNotFound", b""
        elif content is None:
            status, headers["X-Error-Code"], content = 404, "EntryNotFound", b""
        else:
            status, headers["ETag"] = 200, f'"{hashlib.sha256(content).hexdigest()}"'
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.wfile.write(content)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.files, server.gated, server.asked = {}, set(), []
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    yield server
    server.shutdown()
    server.server_close()


def tensors_of(preset):
    generator = torch.Generator().manual_seed(5)
    return {
        key: torch.empty(each.shape).uniform_(0.01, 0.05, generator=generator).to(each.dtype)
        for key, each in from_preset(preset, None).module.state_dict().items()
    }


@pytest.fixture
def trunc(hub):
    """Publish weights of the whole ResNet-50 where the preset looks for them."""
    tensors = tensors_of(PRESETS["resnet50-tv"])
    hub.files[PRESETS["resnet50-trunc"].repo, "model.safetensors"] = safetensors.torch.save(tensors)
    return tensors


def test_a_download_fills_the_folder_that_an_air_gapped_site_reads(hub, trunc, wsi, tmp_path):
    folder = tmp_path / "weights"
    code, out, err = wsi("encoders", "--download", "resnet50-trunc", "--weights-dir", folder)
    assert (code, err) == (0, "")
    assert f"resnet50-trunc: {folder / 'resnet50-trunc.safetensors'} (34 MB)" in out
    assert [each.name for each in folder.iterdir()] == ["resnet50-trunc.safetensors"]
    mode = (folder / "resnet50-trunc.safetensors").stat().st_mode
    assert mode & 0o777 == folder.stat().st_mode & 0o666, "who reads the folder reads the file"
    hub.asked.clear()
    encoder = load_encoder("resnet50-trunc", weights_dir=folder, offline=True)
    assert torch.equal(encoder.module.conv1.weight, trunc["conv1.weight"])
    assert hub.asked == [], "the network is not asked"
    (folder / "uni.safetensors").write_bytes((folder / "resnet50-trunc.safetensors").read_bytes())
    with pytest.raises(FormatError, match="says that it holds the weights of resnet50-trunc; wanted uni"):
        load_encoder("uni", weights_dir=folder)
    # The cache that the download filled serves without the folder, and gives the same encoder.
    assert load_encoder("resnet50-trunc", offline=True).weights_digest == encoder.weights_digest
    assert hub.asked == []


def test_a_timm_repository_describes_itself_and_so_does_its_file(hub, tmp_path):
    module = timm.create_model("test_vit", num_classes=0, img_size=96)
    stated = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "input_size": [3, 96, 96]}
    config = {
        "architecture": "test_vit",
        "num_classes": 0,
        "model_args": {"img_size": 96},
        "pretrained_cfg": stated | {"interpolation": "bilinear", "num_classes": 0, "classifier": "head"},
    }
    hub.files["lab/net", "config.json"] = json.dumps(config).encode()
    path = tmp_path / "pytorch_model.bin"
    torch.save(module.state_dict(), path)
    hub.files["lab/net", "pytorch_model.bin"] = path.read_bytes()
    encoder = load_encoder("hf-hub:lab/net")
    assert (encoder.name, encoder.patch_px, encoder.transform.mode) == ("hf-hub:lab/net", 96, "bilinear")
    assert encoder.transform.mean.flatten().tolist() == pytest.approx([25.5, 51, 76.5])
    assert torch.equal(encoder.module.pos_embed, module.pos_embed)

    from wsi_mil.encoders import download

    file = download("hf-hub:lab/net", tmp_path / "weights")
    assert file == weights_path(tmp_path / "weights", "hf-hub:lab/net")
    assert file.name == "hf-hub_lab_net.safetensors"
    hub.asked.clear()
    again = load_encoder("hf-hub:lab/net", weights_dir=tmp_path / "weights", offline=True)
    assert (again.weights_digest, again.patch_px) == (encoder.weights_digest, 96)
    assert load_encoder("hf-hub:lab/net", file).weights_digest == encoder.weights_digest
    assert hub.asked == []


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (b"{}", r"its config.json is not of a timm model \(KeyError"),
        (b"[]", r"its config.json is not of a timm model \(TypeError"),
        (
            {"architecture": "test_vit", "model_args": {"checkpoint_path": "/x.pt"}},
            "asks for checkpoint_path",
        ),
        ({"architecture": "local-dir:/tmp"}, "asks for local-dir:/tmp; wanted"),
        ({"architecture": "vit_of_ours"}, "timm has no such model"),
    ],
)
def test_a_description_chooses_an_architecture_and_nothing_else(hub, config, words):
    text = config if isinstance(config, bytes) else json.dumps(config).encode()
    hub.files["lab/net", "config.json"] = text
    with pytest.raises(ConfigError, match=words):
        load_encoder("hf-hub:lab/net")


def test_a_plain_timm_name_comes_from_the_repository_that_timm_names(hub):
    module = timm.create_model("test_resnet", num_classes=10)
    repo = module.pretrained_cfg["hf_hub_id"]
    hub.files[repo, "model.safetensors"] = safetensors.torch.save(module.state_dict())
    encoder = load_encoder("timm:test_resnet")
    assert encoder.name == "test_resnet"
    assert torch.equal(encoder.module.conv1[0].weight, module.conv1[0].weight)


def test_what_the_hub_refuses_is_one_line(hub, trunc, wsi, tmp_path):
    hub.gated.add("MahmoodLab/UNI")
    folder = tmp_path / "weights"
    code, out, _ = wsi(
        "encoders", "--download", "uni", "virchow", "resnet50-trunc", "nonsense", "--weights-dir", folder
    )
    assert code == 1
    uni, virchow, trunc_, nonsense = re.fullmatch(
        r"uni: (.*) virchow: (failed.*) resnet50-trunc: (.*) nonsense: (failed.*)", out.strip()
    ).groups()
    assert "Its authors grant access one by one: ask at http://127.0.0.1" in uni
    assert "log in with `hf auth login`" in uni
    assert "The hub has no such repository, or hides it from you" in virchow
    assert "resnet50-trunc.safetensors" in trunc_, "the others come all the same"
    assert "timm has no such model" in nonsense
    assert [each.name for each in folder.iterdir()] == ["resnet50-trunc.safetensors"]
    hub.files[PRESETS["virchow"].repo, "README.md"] = b"-"
    with pytest.raises(ConfigError, match="The repository has no such file"):
        load_encoder("virchow")


def test_what_the_hub_gives_is_checked_like_any_file(hub):
    hub.files[PRESETS["gpfm"].repo, "GPFM.pth"] = b"not weights"
    with pytest.raises(FormatError, match=r"damaged or not a weights file|can run code"):
        load_encoder("gpfm")
    wrong = timm.create_model("test_vit", num_classes=0).state_dict()
    hub.files[PRESETS["densenet121"].repo, "model.safetensors"] = safetensors.torch.save(wrong)
    with pytest.raises(FormatError, match=r"hf-hub:timm/densenet121.ra_in1k: no tensor 'features.conv0"):
        load_encoder("densenet121")
    # A plain timm name goes through timm's conversion, which would leave at random what it does not find.
    repo = timm.create_model("test_resnet").pretrained_cfg["hf_hub_id"]
    hub.files[repo, "model.safetensors"] = safetensors.torch.save(wrong)
    with pytest.raises(FormatError, match="no tensor 'conv1"):
        load_encoder("test_resnet")


def test_offline_names_the_missing_file_and_asks_nobody(hub, trunc, tmp_path):
    with pytest.raises(ConfigError, match=r"not on this machine: model.safetensors .*--offline") as error:
        load_encoder("resnet50-trunc", offline=True)
    assert "\n" not in str(error.value)
    folder = tmp_path / "weights"
    folder.mkdir()
    for name, file in (("uni2-h", "uni2-h"), ("timm:resnet18", "resnet18"), ("hf-hub:a/b", "hf-hub_a_b")):
        with pytest.raises(ConfigError, match=f"{file}.safetensors is missing, the weights of --encoder"):
            load_encoder(name, weights_dir=folder)
    assert hub.asked == []
    assert load_encoder(PACKAGED, weights_dir=folder, offline=True).dim == 1280, "it needs neither"


def test_without_a_network_the_answer_comes_at_once(hub, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    start = time.perf_counter()
    with pytest.raises(ConfigError, match=r"the model hub cannot be reached .Connection refused"):
        load_encoder("uni")
    assert time.perf_counter() - start < 5


def test_a_folder_that_cannot_be_written_is_said(hub, trunc, wsi, tmp_path):
    (tmp_path / "file").write_text("")
    code, out, _ = wsi("encoders", "--download", "resnet50-trunc", "--weights-dir", tmp_path / "file")
    assert (code, "cannot be written" in out) == (1, True)

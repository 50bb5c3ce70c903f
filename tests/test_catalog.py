"""The command `encoders`."""

import json
import subprocess
import sys

from wsi_mil.catalog import facts
from wsi_mil.encoders import LEFT_OUT, PRESETS


def test_the_table_names_every_preset_and_fits_100_columns():
    command = [sys.executable, "-m", "wsi_mil", "encoders"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = result.stdout.splitlines()
    assert max(map(len, lines)) <= 101
    rows = {line.split()[0]: line for line in lines if line.strip() and line.split()[0] in PRESETS}
    assert list(rows) == list(PRESETS), "one line each, in their order"
    for name, row in rows.items():
        assert f" {PRESETS[name].dim} " in row
        assert PRESETS[name].licence in row
    assert rows["uni"].split()[-1] == "gated"
    assert all(name in result.stdout for name in LEFT_OUT)


def test_json_has_all_facts():
    command = [sys.executable, "-m", "wsi_mil", "encoders", "--json"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(result.stdout)
    assert found == json.loads(json.dumps(facts()))
    virchow2 = next(each for each in found["encoders"] if each["name"] == "virchow2")
    assert virchow2["mpps"] == [0.5, 0.25, 1.0, 2.0]
    assert virchow2["pooling"] == "class token + mean of patch tokens"
    assert (virchow2["registers"], virchow2["gated"], virchow2["dim"]) == (4, True, 2560)
    assert virchow2["arguments"]["mlp_layer"] == "swiglu"


def test_neither_torch_nor_the_hubs_client_is_imported_for_the_table():
    code = "import sys; from wsi_mil.cli import main; main(['encoders']); print(*sorted(sys.modules))"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert not {"torch", "numpy", "timm", "huggingface_hub"} & set(modules.splitlines()[-1].split())


def test_a_download_needs_a_folder(wsi):
    code, _, err = wsi("encoders", "--download", "uni")
    assert (code, "say where to with --weights-dir DIR" in err) == (2, True)

"""Both networks: numbers of the released code, ImageNet weights, and loading of weights."""

import hashlib
import json
import pickle
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import GOLDEN, Payload
from golden import fill
from tiny_inputs import SmallEncoder
from torchvision.models import resnet18

from core.config import ASC_optimization_params, STE_optimization_params
from core.models import ASC_Net, TwoStreamResNet, active_speakers_context, short_term_encoder
from core.runtime.errors import InputError
from core.runtime.weights import load_weights
from core.training import asc_losses, ste_losses, train_one_epoch
from core.transforms import to_input

NETWORKS = ("ste", "asc")
HINT = "made for another clip_length"
IMAGENET_FILE = "resnet18-f37072fd.pth"  # torchvision's name


def released_shapes(name: str) -> dict[str, list[int]]:
    return json.loads((GOLDEN / "state_dict_keys.json").read_text())[name]


def shapes(model: torch.nn.Module) -> dict[str, list[int]]:
    return {name: list(value.shape) for name, value in model.state_dict().items()}


def build(name: str) -> torch.nn.Module:
    return TwoStreamResNet(11) if name == "ste" else ASC_Net(11, 3)


@cache
def filled_state(name: str) -> dict[str, torch.Tensor]:
    return fill.ste_state() if name == "ste" else fill.asc_state()


def filled(name: str) -> torch.nn.Module:
    model = build(name)
    model.load_state_dict(filled_state(name), strict=True)
    return model


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN / "models.npz") as arrays:
        return {name: arrays[name] for name in arrays.files}


@pytest.fixture(scope="module")
def clips() -> tuple[torch.Tensor, torch.Tensor]:
    return fill.tensor("audio", 4, 1, 13, 40), fill.tensor("video", 4, 33, 144, 144)


@pytest.fixture(scope="module")
def context() -> torch.Tensor:
    return fill.tensor("features", 4, 1024, 11, 3, scale=2).abs()


def assert_close(actual: torch.Tensor, expected: np.ndarray, tolerance: float = 1e-4) -> None:
    assert tuple(actual.shape) == expected.shape
    np.testing.assert_allclose(actual.detach().numpy(), expected, rtol=0, atol=tolerance)


# Parameters


@pytest.mark.parametrize("name", NETWORKS)
def test_parameter_names_and_shapes(name):
    with torch.device("meta"):
        assert shapes(build(name)) == released_shapes(name)


def test_convolutions_start_as_kaiming_normal_fan_out():
    torch.manual_seed(0)
    ste, asc = short_term_encoder(11), active_speakers_context(11, 3)
    # The standard deviation is sqrt(2 / fan_out), with fan_out = output channels x kernel area.
    for weight, fan_out in (
        (ste.audio_conv1.weight, 64 * 49),
        (ste.video_conv1.weight, 64 * 49),
        (ste.a_layer2[0].conv1.weight, 128 * 9),
        (ste.v_layer4[1].conv2.weight, 512 * 9),
        (ste.v_layer3[0].downsample[0].weight, 256),
        (asc.sat.theta.weight, 128),
        (asc.sat.omega.weight, 1024),
    ):
        assert weight.mean().abs() < 0.1 * (2 / fan_out) ** 0.5
        assert weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.06)
    for convolution in (asc.sat.theta, asc.sat.phi, asc.sat.gamma, asc.sat.omega):
        assert not convolution.bias.any()


# Outputs


def test_encoder_has_the_released_outputs(golden, clips):
    with torch.inference_mode():
        joint, audio, video, features = filled("ste").eval()(*clips)
    assert_close(joint, golden["ste_av"])
    assert_close(audio, golden["ste_a"])
    assert_close(video, golden["ste_v"])
    assert_close(features, golden["ste_features"])


def test_context_network_has_the_released_outputs(golden, context):
    model = filled("asc").eval()
    with torch.inference_mode():
        assert_close(model(context), golden["asc_logits"])
        assert_close(model.sat(context)[:, ::64], golden["asc_refined"])


# One training step


def assert_stepped(actual: torch.Tensor, expected: np.ndarray, before: torch.Tensor, learning_rate: float) -> None:
    """Assert that 99% of the entries are within the tolerance, and all within two steps of Adam.

    Adam's first step is the learning rate times the sign of the gradient, which is arbitrary if the gradient vanishes.
    """
    tolerance = min(1e-4, learning_rate / 10)
    assert tuple(actual.shape) == expected.shape
    difference = np.abs(actual.detach().numpy() - expected)
    assert difference.max() <= 2 * learning_rate * 1.001
    assert (difference <= tolerance).mean() >= 0.99
    assert (np.abs(before.numpy() - expected) > tolerance).mean() > 0.5  # without a step the comparison fails


def one_step(model, batch, losses_of, learning_rate: float) -> dict[str, float]:
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
    return train_one_epoch(model, [batch], losses_of, optimizer, torch.device("cpu"), "fp32")


def test_training_step_of_the_encoder(golden, clips):
    audio, video = clips
    # Training normalises crops; the golden input is already normalised.
    low, high = (to_input(torch.full((1, 3, 1, 1), level)) for level in (0, 255))
    crops = (video.unflatten(1, (11, 3)) - low) / (high - low) * 255
    batch = {
        "audio": audio,
        "video": crops,
        "label": torch.arange(4) % 2,
        "audio_label": (torch.arange(4) % 3 > 0).long(),
    }
    model, before = filled("ste"), filled_state("ste")
    learning_rate = STE_optimization_params["learning_rate"]
    assert learning_rate == 3e-4
    result = one_step(model, batch, ste_losses, learning_rate)

    losses = [result["loss_av"], result["loss_audio"], result["loss_video"]]
    np.testing.assert_allclose(losses, golden["ste_losses"], rtol=0, atol=1e-4)
    after = model.state_dict()
    assert_stepped(after["fc_final.weight"], golden["ste_step_fc_final"], before["fc_final.weight"], learning_rate)
    first = "video_conv1.weight"
    assert_stepped(after[first][:8, :3], golden["ste_step_video_conv1"], before[first][:8, :3], learning_rate)
    assert_close(after["a_bn1.running_mean"], golden["ste_step_a_bn1_running_mean"])


def test_training_step_of_the_context_network(golden, context):
    model, before = filled("asc"), filled_state("asc")
    learning_rate = ASC_optimization_params["learning_rate"]
    assert learning_rate == 3e-6
    result = one_step(model, {"features": context, "label": torch.arange(4) % 2}, asc_losses, learning_rate)
    assert result["loss_av"] == pytest.approx(float(golden["asc_loss"]), abs=1e-4)
    name = "fc_final.weight"
    assert_stepped(model.state_dict()[name], golden["asc_step_fc_final"], before[name], learning_rate)


# ImageNet weights


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Path:
    """An empty cache of torchvision's weights, without a connection to the internet: the proxy refuses to connect."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    for name in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture(scope="module")
def imagenet() -> dict[str, torch.Tensor]:
    """Weights in the place of ImageNet's, which no initialisation can give."""
    generator = torch.Generator().manual_seed(0)
    with torch.device("meta"):
        layout = resnet18(weights=None).state_dict()
    return {
        name: torch.rand(value.shape, generator=generator) + 0.1
        if value.is_floating_point()
        else torch.tensor(len(name))  # number of batches
        for name, value in layout.items()
    }


def test_pretrained_encoder_starts_from_imagenet(hub, imagenet):
    torch.save(imagenet, hub / IMAGENET_FILE)
    model = short_term_encoder(3, pretrained=True)
    state, rgb = model.state_dict(), imagenet["conv1.weight"]
    video = state["video_conv1.weight"].view(64, 3, 3, 7, 7)  # channel 3t + c
    for step in range(3):
        assert torch.equal(video[:, step], rgb)  # repeated, not rescaled
    torch.testing.assert_close(state["audio_conv1.weight"], rgb.mean(dim=1, keepdim=True))
    for name, value in imagenet.items():
        if name not in ("conv1.weight", "fc.weight", "fc.bias"):
            assert torch.equal(state[f"a_{name}"], value), name
            assert torch.equal(state[f"v_{name}"], value), name
    with torch.no_grad():
        model.a_layer1[0].conv1.weight.zero_()
    assert torch.equal(model.v_layer1[0].conv1.weight, imagenet["layer1.0.conv1.weight"])  # no shared memory


def test_shifted_encoder_starts_from_imagenet(hub, imagenet):
    torch.save(imagenet, hub / IMAGENET_FILE)
    state = short_term_encoder(3, pretrained=True, temporal_shift=True).state_dict()
    assert torch.equal(state["video_conv1.weight"], imagenet["conv1.weight"])
    for name, value in imagenet.items():
        if name.startswith("layer"):
            assert torch.equal(state[f"a_{name}"], value), name
            assert torch.equal(state[f"v_{name.replace('.conv1.', '.conv1.net.')}"], value), name


@pytest.mark.parametrize("kind", ["missing", "empty", "web page", "cut off", "other network"])
def test_missing_and_broken_imagenet_weights_are_an_error(hub, kind):
    path = hub / IMAGENET_FILE
    torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7)}, path)
    contents = {"empty": b"", "web page": b"<html>not found</html>", "cut off": path.read_bytes()[:20_000]}
    path.write_bytes(contents.get(kind, path.read_bytes()))
    if kind == "missing":
        path.unlink()
    with pytest.raises(InputError) as error:
        short_term_encoder(3, pretrained=True)
    assert str(path) in str(error.value)
    assert "--no-pretrained" in str(error.value)
    assert "\n" not in str(error.value)


# Loading of weights


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before torch 1.6"])
def test_weights_are_loaded_and_hashed(tmp_path, zipped):
    path = tmp_path / "ASC.pth"
    state = filled_state("asc")
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    model = build("asc")
    assert load_weights(model, path, HINT) == hashlib.sha256(path.read_bytes()).hexdigest()
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name])


def without_counters(state: dict) -> dict:
    return {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}


FORMS = {
    "DataParallel": lambda state: {f"module.{name}": value for name, value in state.items()},
    "torch.compile": lambda state: {f"_orig_mod.{name}": value for name, value in state.items()},
    "lightning": lambda state: {"state_dict": {f"model.module.{name}": value for name, value in state.items()}},
    "checkpoint": lambda state: {"model": state, "optimizer": {}},
    "checkpoint of DataParallel": lambda state: {
        "model_state_dict": {f"module.{name}": value for name, value in state.items()}
    },
    "before torch 0.4": without_counters,
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_other_forms_of_weights_are_loaded(tmp_path, capsys, form):
    path, state, model = tmp_path / "weights.pth", filled_state("asc"), build("asc")
    torch.save(form(state), path)
    load_weights(model, path, HINT)
    expected = {**model.state_dict(), **without_counters(state)}
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())
    noted = form is not without_counters
    assert ("note: " in capsys.readouterr().out) == noted


def test_safetensors_are_loaded(tmp_path):
    save_file = pytest.importorskip("safetensors.torch").save_file
    path, state, model = tmp_path / "weights.safetensors", filled_state("asc"), build("asc")
    save_file(state, path)
    load_weights(model, path, HINT)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_a_pickled_module_is_an_error(tmp_path):
    torch.save(build("asc"), tmp_path / "weights.pth")
    with pytest.raises(InputError, match=r"save model\.state_dict\(\) instead") as error:
        load_weights(build("asc"), tmp_path / "weights.pth", HINT)
    assert str(error.value).isprintable()


@pytest.mark.parametrize(
    ("model", "state", "words"),
    [
        (
            lambda: SmallEncoder(11),
            lambda: {**SmallEncoder(11).state_dict(), "video_norm.weight": torch.zeros(15)},
            ("video_norm.weight has shape (15,), expected (33,)", HINT),
        ),
        (lambda: ASC_Net(11, 3), lambda: fill.asc_state(11, 2), ("fc_final.weight", "2816", "4224", HINT)),
        (lambda: ASC_Net(11, 3), lambda: fill.asc_state(9, 3), ("fc_final.weight", "3456", "4224", HINT)),
        (lambda: SmallEncoder(11), lambda: filled_state("asc"), ("another network",)),
        (lambda: ASC_Net(11, 3), lambda: {**filled_state("asc"), "extra": torch.zeros(1)}, ("extra",)),
        (lambda: ASC_Net(11, 3), lambda: {**filled_state("asc"), "fc_final.bias": 1.0}, ("fc_final.bias",)),
        (lambda: ASC_Net(11, 3), lambda: torch.zeros(3), ("Tensor",)),
    ],
    ids=[
        "clip length",
        "number of speakers",
        "context length",
        "other network",
        "extra parameter",
        "number instead of a tensor",
        "tensor",
    ],
)
def test_weights_that_do_not_fit(tmp_path, model, state, words):
    path = tmp_path / "weights.pth"
    torch.save(state(), path)
    model = model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(InputError) as error:
        load_weights(model, path, HINT)
    for word in (path, *words):
        assert str(word) in str(error.value)
    assert "\n" not in str(error.value)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])  # unchanged


@pytest.mark.parametrize("kind", ["torch", "pickle"])
def test_code_in_a_file_of_weights_does_not_run(tmp_path, kind):
    path, proof = tmp_path / "weights.pth", tmp_path / "the payload ran"
    state = {**fill.asc_state(1, 1), "fc_final.bias": Payload(proof)}
    torch.save(state, path) if kind == "torch" else path.write_bytes(pickle.dumps(state, protocol=2))
    with pytest.raises(InputError, match=r"weights\.pth"):
        load_weights(ASC_Net(1, 1), path, HINT)
    assert not proof.exists()
    torch.load(path, weights_only=False) if kind == "torch" else pickle.loads(path.read_bytes())
    assert proof.exists()  # the payload works


@pytest.mark.parametrize("kind", ["missing", "empty", "truncated", "text", "zeros"])
def test_missing_and_broken_weights_are_an_error(tmp_path, kind):
    path = tmp_path / "weights.pth"
    torch.save(filled_state("asc"), path)
    contents = {"empty": b"", "truncated": path.read_bytes()[:-5000], "text": b"not weights\n", "zeros": bytes(4096)}
    path.write_bytes(contents.get(kind, b""))
    if kind == "missing":
        path.unlink()
    with pytest.raises(InputError, match=r"weights\.pth"):
        load_weights(build("asc"), path, HINT)

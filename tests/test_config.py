"""Configurations: accepted values, sweeps, and error messages."""

import copy
from operator import attrgetter
from pathlib import Path

import pytest
import yaml

from genfl_mpi.analysis.run_groups import PAIRED
from genfl_mpi.cli import main
from genfl_mpi.config import differences, loading, yaml_text
from genfl_mpi.config.defaults import GENERATORS, PROMPTS
from genfl_mpi.config.renamed import RENAMED
from genfl_mpi.config.settings import Config, fill_in, keys
from genfl_mpi.data import datasets
from genfl_mpi.generation import model_folder
from genfl_mpi.generation.prompts import load_prompts
from genfl_mpi.generation.validation import read_record
from genfl_mpi.util.errors import UserError


def test_the_default_is_a_sweep_over_the_papers_methods():
    runs = loading.load()
    assert [one.method for one in runs.values()] == ["fedavg", "genfl", "aigc"]
    assert len({(one.seed, one.partition) for one in runs.values()}) == 1


def test_the_default_study_only_differs_from_the_defaults_in_what_it_sets():
    study = differences.flatten(yaml.safe_load(yaml_text.read_text()))
    assert study == {"sweep.method": ["fedavg", "genfl", "aigc"], "generation.cap": 30}
    assert loading.single(None, ["method=genfl", "generation.cap=300"]) == loading.single({}) == Config()


@pytest.mark.parametrize(
    ("given", "images"),
    [
        ([], "uci_digits"),
        (["data.public_pool=100"], "public_pool"),
        (["data.name=cifar10"], "public_pool"),
        (["data.public_pool=100", "pretraining.images=uci_digits"], "uci_digits"),
    ],
)
def test_the_images_of_pretraining_follow_from_the_data_set(given, images):
    assert loading.single({}, given).pretraining.images == images


def test_a_sweep_is_the_product_of_its_lists():
    runs = loading.load(
        {"sweep": {"method": ["fedavg", "genfl"], "partition.alpha": [0.1, 1], "seed": [1, 2]}}
    )
    assert len(runs) == 8
    assert "genfl_seed2_alpha0.1" in runs
    assert runs["fedavg_seed1_alpha1"].partition.alpha == 1


def test_an_override_pins_a_swept_key():
    runs = loading.load(
        {"sweep": {"method": ["fedavg", "genfl"], "seed": [1, 2]}}, ["method=aigc", "sweep.seed=[5]"]
    )
    assert list(runs) == ["aigc_seed5"]


def test_training_of_the_augmented_model_follows_the_clients():
    one = loading.single({"training": {"lr": 0.3, "epochs": 2}}, ["augmented.epochs=7", "method=genfl"])
    assert (one.augmented.lr, one.augmented.epochs) == (0.3, 7)


@pytest.mark.parametrize(
    ("data", "given", "checkpoint", "prompts"),
    [
        ("mnist5k", {}, "digits", "mnist"),
        ("mnist", {}, "digits", "mnist"),
        ("cifar10", {}, "cifar10", "cifar10"),
        ("cifar100", {}, "cifar100", "cifar100"),
        ("cifar10", {"checkpoint": "mine:draw"}, "mine:draw", "cifar10"),
        ("emnist", {"checkpoint": "mine:draw"}, "mine:draw", "emnist"),
        ("cifar10", {"prompts": "mine.yaml"}, "cifar10", "mine.yaml"),
    ],
)
def test_generator_and_prompts_follow_from_the_data_set(data, given, checkpoint, prompts):
    one = loading.single({"data": {"name": data}, "generation": given}).generation
    assert (one.checkpoint, one.prompts) == (checkpoint, prompts)


def test_shipped_prompts_and_generators_draw_the_classes_of_their_data_set():
    for data, name in PROMPTS.items():
        load_prompts(name, datasets.DESCRIPTIONS[data].classes)
    for data, name in GENERATORS.items():
        record = read_record(model_folder.locate(name))
        assert record["classes"] == list(datasets.DESCRIPTIONS[data].classes)
    assert {folder.name for folder in model_folder.SHIPPED.iterdir()} == set(GENERATORS.values())


def test_a_preset_fills_what_training_leaves_open():
    one = loading.single(
        {"method": "genfl", "preset": "practical", "training": {"lr": 0.5}, "augmented": {"epochs": 1}}
    )
    assert (one.training.lr, one.training.momentum, one.training.flip) == (0.5, 0.9, True)
    assert (one.augmented.lr, one.augmented.momentum, one.augmented.epochs) == (0.5, 0.9, 1)
    assert loading.single({"method": "genfl", "preset": "paper"}).training.lr == 1e-4


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"rounds": 3},
        {"preset": "practical", "training.epochs": 1},
        {"kappa.kappa2": 0.7},
        {"augmented.lr": 0.3},
        {"generation.seed": 7},
        {"world": {}},
        {"training.lr": 0.2, "world.deadline_s": 3.0},
        {"preset": "paper", "augmented.lr": 0.5, "clients": 3, "cohort": 2, "seed": 4},
    ],
)
def test_what_was_decided_is_what_was_given(given):
    """Settings that follow from others are omitted, and derived again."""

    def resolved(values):
        return fill_in(loading.validate(loading.nested(values)), 2, "cpu").model_dump(mode="json")

    assert differences.chosen_settings(resolved(given)) == given and resolved(
        differences.chosen_settings(resolved(given))
    ) == resolved(given)


@pytest.mark.parametrize(
    "one, other, keys",
    [
        ({"seed": 2}, {}, ["seed"]),
        ({"preset": "practical"}, {"preset": "paper"}, ["preset"]),
        ({"training.lr": 0.2}, {}, ["training.lr"]),
        ({"training.lr": 0.2, "augmented.lr": 0.3}, {}, ["training.lr", "augmented.lr"]),
        ({"kappa.kappa1": 0.5}, {}, ["kappa.kappa2"]),
        ({"rounds": 9}, {}, []),
        ({"world": {}}, {}, ["world"]),
        ({"world.deadline_s": 3}, {"world": {}}, ["world.deadline_s"]),
    ],
)
def test_what_varies_is_what_was_decided(one, other, keys):
    found = [
        fill_in(loading.validate(loading.nested(values)), 2, "cpu").model_dump(mode="json")
        for values in (one, other)
    ]
    assert differences.varied_settings(found) == differences.varied_settings(found[::-1]) == keys
    assert differences.varied_settings([found[0], found[0]]) == []


def test_a_kappa_alone_fixes_the_other():
    assert loading.single({"kappa": {"kappa1": 0.9}}).kappa.kappa2 == pytest.approx(0.1)


def test_the_resolved_configuration_reads_back_the_same():
    one = loading.single({"method": "aigc", "training": {"lr": 1e-4}})
    assert loading.validate(yaml.safe_load(loading.to_yaml(one))) == one


def test_an_override_of_one_kappa_decides_both():
    assert (
        loading.single({"method": "genfl", "kappa": {"kappa2": 0.2}}, ["kappa.kappa1=0.5"]).kappa.kappa2
        == 0.5
    )


def test_an_empty_section_is_a_section():
    assert loading.single({"method": "genfl", "training": None}, ["training.lr=1e-4"]).training.lr == 1e-4


def test_a_setting_of_a_world_from_a_file(tmp_path):
    (tmp_path / "far.yaml").write_text("channel: {radius_m: 900}")
    world = loading.single(
        None, ["method=fedavg", f"world={tmp_path}/far.yaml", "world.channel.bandwidth_mhz=7"]
    ).world
    assert (world.channel.radius_m, world.channel.bandwidth_mhz) == (900, 7)


def test_runs_that_would_share_a_name_are_refused():
    with pytest.raises(UserError, match="two runs of the sweep would have the name"):
        loading.load({"sweep": {"data.root": ["a/b", "a-b"]}})


BAD = {
    "a truth value": (["rounds=true"], "rounds= needs an integer, for example rounds=25 (got True)"),
    "a truth value as a rate": (
        ["training.lr=true"],
        "training.lr= needs a number (got True)",
    ),
    "a later run of the sweep": (["generation.checkpoint=./nowhere"], "folder ./nowhere does not exist"),
    "a later run's prompts": (["generation.prompts=nowhere"], "generation.prompts: "),
    "a plan without a cohort": (["generation.plan=cohort_deficit"], "needs a cohort"),
    "a bank that is a file": (["generation.bank=/etc/hostname"], "cannot be written"),
    "a bank below a file": (["generation.bank=/etc/hostname/bank"], "cannot be written"),
    "unknown key": (["traning.lr=1"], "unknown key traning; did you mean training?"),
    "key of another section": (["alpha=1"], "did you mean partition.alpha?"),
    "wrong type": (["rounds=many"], "rounds= needs an integer, "),
    "not a number": (["training.lr=.nan"], "training.lr= "),
    "a number as a switch": (["audit=0"], "audit= needs true or false"),
    "text as a switch": (["training.flip='yes'"], "training.flip= needs true or false"),
    "alpha": (["partition.alpha=0"], "partition.alpha= needs a number above 0"),
    "cohort": (["cohort=21"], "cohort (21) is larger than clients (20)"),
    "kappa": (["kappa.kappa1=0.5", "kappa.kappa2=0.6"], "kappa.kappa1 + kappa.kappa2 must be 1"),
    "a kappa too large": (["kappa.kappa2=1.5"], "kappa.kappa2= needs a number of at most 1"),
    "a negative kappa": (["kappa.kappa1=-0.5"], "kappa.kappa1= needs a number of at least 0"),
    "clients below the cohort": (
        ["method=fedavg", "clients=3"],
        "clients (3) is less than the default cohort (5); also set cohort",
    ),
    "a composition without a model": (
        ["method=aigc", "composition.images=nowhere"],
        "method=aigc with composition.images=nowhere trains no model",
    ),
    "a pool at clients that generate": (
        ["method=filled", "composition.source=pool"],
        "composition.source=pool takes the images from the server's pool, but with method=filled the",
    ),
    "a control with images": (
        ["method=genfl", "composition.matched_steps=true"],
        "composition.matched_steps=true is a control without images, which method=genfl has",
    ),
    "a composition without a cohort": (
        ["method=genfl", "composition.local_training=false", "generation.plan=cohort_deficit"],
        "needs a cohort, and composition.local_training=false has none",
    ),
    "images of a composition": (
        ["method=genfl", "composition.images=nowhere", "validation.source=generated"],
        "needs generated images at the server, and composition.images=nowhere has none",
    ),
    "a million shards": (
        ["method=fedavg", "partition.scheme=shards", "partition.shards=1000000"],
        "20 clients have 20000000 shards, but only 4000 samples are divided",
    ),
    "more labels than classes": (
        ["method=fedavg", "partition.scheme=classes", "partition.classes_per_client=11"],
        "partition.classes_per_client=11: the data set has 10 classes",
    ),
    "fewer candidates than members": (
        ["method=fedavg", "selection.policy=energy", "selection.candidates=4"],
        "selection.candidates (4) must lie between cohort (5), which is selected from them, and clients (20)",
    ),
    "a generator of other classes": (
        ["method=genfl", "generation.checkpoint=cifar10"],
        "generation.checkpoint: cifar10 draws ['airplane', 'automobile', 'bird', 'cat', 'deer', 'dog', ...], "
        "but not '0' of data.name=mnist5k; remove the setting",
    ),
    "no generator of the data set": (
        ["method=genfl", "data.name=fashion_mnist"],
        "the package has no checkpoint for data.name=fashion_mnist; set generation.checkpoint to a generator",
    ),
    "no generator or prompts of the data set": (
        ["method=genfl", "data.name=synthetic"],
        "the package has no checkpoint or prompts for data.name=synthetic; set generation.checkpoint to a "
        "generator of its classes (of your own: `pretrain`, or module:function) and generation.prompts to a "
        "YAML file",
    ),
    "model": (["model.name=resnet19"], "model.name: "),
    "method": (["method=fedsgd"], "method= needs one of fedavg, aigc, "),
    "misspelt method": (["method=fedavgg"], "did you mean fedavg? (got 'fedavgg')"),
    "misspelt data set": (["method=fedavg", "data.name=cifra10"], "did you mean cifar10?"),
    "misspelt model": (
        ["method=fedavg", "model.name=lenet"],
        "model.name: lenet is unknown; did you mean lenet5?",
    ),
    "misspelt algorithm": (
        ["method=fedavg", "algorithm.name=scafold"],
        "algorithm.name: scafold is unknown; did you mean scaffold? `python -m genfl_mpi help",
    ),
    "misspelt generator": (["method=genfl", "generation.checkpoint=digit"], "did you mean digits?"),
    "misspelt prompts": (["method=genfl", "generation.prompts=mnst"], "did you mean mnist?"),
    "not like any policy": (
        ["method=fedavg", "selection.policy=xyzzy"],
        "xyzzy is unknown; write your own as module:function. `python -m genfl_mpi help selection.policy`",
    ),
    "policy": (["method=fedavg", "selection.policy=randon"], "did you mean random?"),
    "imported policy": (
        ["method=fedavg", "rho.policy=no_such_module:f"],
        "rho.policy: no_such_module:f cannot be imported",
    ),
    "data set": (["method=fedavg", "data.name=cifar10", "data.root=nowhere"], "data.download=true"),
    "too many clients": (["method=fedavg", "clients=500"], "partition.min_samples"),
    "checkpoint": (["method=genfl", "generation.checkpoint=./nowhere"], "folder ./nowhere does not exist"),
    "hub id": (
        ["method=genfl", "generation.checkpoint=nobody/nothing"],
        "python -m genfl_mpi prefetch generation.checkpoint=nobody/nothing",
    ),
    "prompts": (["method=genfl", "generation.prompts=nowhere.yaml"], "generation.prompts: "),
    "prompts of another data set": (
        ["method=genfl", "generation.prompts=cifar10"],
        "no description of class '0'",
    ),
    "a filter without a pool": (
        ["method=genfl", "generation.min_fidelity=0.5"],
        "generation.min_fidelity needs data.public_pool",
    ),
    "replacement by classes": (
        ["method=fedavg", "partition.replacement=true"],
        "partition.replacement is not available with partition.scheme=dirichlet",
    ),
    "too large a pool": (["method=fedavg", "data.public_pool=3900"], "besides the public pool of 3900"),
    "a pool of all samples": (
        ["method=fedavg", "data.public_pool=4000"],
        "data.public_pool: 4000 images leave none of the 4000 training samples",
    ),
    "adapter": (
        ["method=genfl", "generation.adapter=nowhere"],
        "generation.adapter: nowhere is not a folder with a file",
    ),
    "a policy without validation data": (
        ["method=genfl", "kappa.policy=bandit"],
        "kappa.policy: bandit needs validation data; set validation.source",
    ),
    "a policy without a world": (
        ["method=fedavg", "selection.policy=oort"],
        "selection.policy: oort needs a world; set world",
    ),
    "a deadline that is none": (
        ["method=fedavg", "selection.policy=deadline", "world={}"],
        "selection.policy: deadline needs world.deadline_s",
    ),
    "a key of the world": (
        ["method=fedavg", "world={radius_m: 3}"],
        "unknown key world.radius_m; did you mean world.channel.radius_m?",
    ),
    "negative power": (
        ["method=fedavg", "world.server.watts=-1"],
        "world.server.watts= needs a number of at least 0",
    ),
    "no world's file": (["method=fedavg", "world=nowhere.yaml"], "nowhere.yaml: cannot be read"),
    "audit of corrected gradients": (
        ["method=fedavg", "audit=true", "algorithm.name=scaffold"],
        "algorithm.name=scaffold, which corrects",
    ),
    "pay without energies": (
        ["method=fedavg", "incentive.base=1"],
        "incentive.base pays for energy, which only a world defines; set world",
    ),
    "too small a world": (
        ["method=fedavg", "world.clients=3"],
        "world.clients (3) is less than clients (20)",
    ),
    "no pool to judge by": (
        ["method=genfl", "validation.source=pool"],
        "validation.source=pool needs data.public_pool",
    ),
    "judged by what it learned": (
        ["method=pool", "data.public_pool=50", "validation.source=pool"],
        "would evaluate the augmented model on its training images",
    ),
    "clients that are none": (["method=aigc", "validation.source=clients"], "method=aigc has none"),
    "not key=value": (["method=fedavg", "rounds"], "is not key=value"),
    "a value as a section": (["seed.x=1"], "seed"),
    "empty sweep": (["sweep.seed=[]"], "sweep.seed must be a list"),
    "misspelt key of a sweep": (["sweep.sead=[1,2]"], "unknown key sweep.sead; did you mean sweep.seed?"),
    "renamed key of a sweep": (
        ["sweep.laboratory.every=[1,2]"],
        "sweep.laboratory.every was renamed to sweep.hindsight.every; use the new name",
    ),
    "several seeds": (["seed=[1,2,3]"], "; for a run of each value write 'sweep.seed=[1,2,3]'"),
    "several names": (
        ["method=[fedavg,genfl]"],
        "; for a run of each value write 'sweep.method=[fedavg,genfl]'",
    ),
    "a misspelt file": (["configs/fig5.yml"], "did you mean configs/fig5.yaml?"),
    "a world without its folder": (["world=cty"], "did you mean configs/worlds/city.yaml?"),
    "a file without its folder": (["fig5-small.yaml"], "did you mean configs/fig5-small.yaml?"),
}


@pytest.mark.parametrize(("overrides", "message"), BAD.values(), ids=BAD)
def test_bad_input_is_one_line_and_status_2(overrides, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(Path(__file__).parent.parent)
    assert main([*overrides, f"output={tmp_path}/results"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert message in said.err and said.err.startswith("genfl_mpi: ") and said.err.count("\n") == 1
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1", "not valid YAML"),
        ("- 1", "mapping"),
        ("sweep: 3", "sweep must map keys to lists"),
        (None, "cannot be read"),
    ],
)
def test_files_that_are_no_configuration_are_refused_in_words(text, message, tmp_path, capsys):
    file = tmp_path / "bad.yaml"
    if text is not None:
        file.write_text(text)
    assert main([str(file)]) == 2
    assert message in capsys.readouterr().err


def test_a_checkpoint_folder_that_is_empty_or_damaged(tmp_path, tiny, capsys):
    import shutil

    from genfl_mpi.generation.model_folder import SHIPPED

    (tmp_path / "empty").mkdir()
    assert main([*tiny, f"generation.checkpoint={tmp_path}/empty"]) == 2
    assert "model_index.json is missing" in capsys.readouterr().err
    shutil.copytree(SHIPPED / "digits", tmp_path / "damaged")
    shutil.copytree(
        SHIPPED / "digits", tmp_path / "incomplete", ignore=shutil.ignore_patterns("diffusion*.safetensors")
    )
    assert main([*tiny, f"generation.checkpoint={tmp_path}/incomplete"]) == 2
    assert "has no safetensors file" in capsys.readouterr().err
    weights = next((tmp_path / "damaged/unet").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:1000])
    assert main([*tiny, f"generation.checkpoint={tmp_path}/damaged"]) == 2
    assert "is damaged" in capsys.readouterr().err


CONFIGS = Path(__file__).parent.parent / "configs"


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_shipped_configurations_are_valid(path):
    runs = loading.load(path)
    assert {run.output for run in runs.values()} == {f"results/{path.stem}"}


@pytest.mark.parametrize("small", ["fig1-small", "fig5-small", "fig6-small"])
def test_a_small_twin_has_the_sweep_of_the_figure(small):
    """It has the same panels and methods, and a part of the seeds."""
    one, other = (loading.load(CONFIGS / f"{name}.yaml") for name in (small, small.removesuffix("-small")))
    assert set(one) <= set(other) and {name for name in other if "seed1_" in name} == {
        name for name in one if "seed1_" in name
    }


def test_the_controls_are_pairs_of_the_figure():
    seen = {
        tuple(attrgetter(section)(run) for section in PAIRED if section != "partition")
        for name in ("fig5-small", "controls-small")
        for run in loading.load(CONFIGS / f"{name}.yaml").values()
    }
    assert len(seen) == 1


@pytest.mark.parametrize("name", ["methods", "method"])
def test_settings_that_go_together_in_a_sweep(name):
    own = {
        "sweep": {
            "seed": [1, 2],
            name: [
                {"method": "fedavg", "training.lr": 0.2},
                {"method": "genfl", "training.lr": 0.1, "kappa.kappa2": 0.4},
            ],
        }
    }
    runs = loading.load(own)
    assert list(runs) == ["fedavg_seed1", "genfl_seed1", "fedavg_seed2", "genfl_seed2"]
    assert [(run.training.lr, run.augmented.lr, run.kappa.kappa2) for run in runs.values()][:2] == [
        (0.2, 0.2, 0.2),
        (0.1, 0.1, 0.4),
    ]
    assert {
        name: run.training.lr for name, run in loading.load(own, ["method=genfl", "training.lr=0.3"]).items()
    } == {"genfl_seed1": 0.3, "genfl_seed2": 0.3}
    for overrides, message in (
        (["method=aigc"], "no mapping with method=aigc"),
        ([f"sweep.{name}=[{{method: fedavg}}, 3]"], "has mappings and other values"),
        ([f"sweep.{name}=[{{metod: fedavg}}]"], "unknown key metod; did you mean method"),
    ):
        with pytest.raises(UserError, match=message):
            loading.load(own, overrides)


def test_single_names_the_way_out_of_a_sweep():
    with pytest.raises(UserError, match="pin the swept keys"):
        loading.single()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("bad_clients.share=0.1", "bad_clients was renamed to misbehaving_clients; use the new name"),
        (
            "training.together=2",
            "training.together was renamed to training.clients_per_batch; use the new name",
        ),
        ("world={acts: true}", "world.acts was renamed to world.enforced; use the new name"),
        ("world.devices.battery_kj=[1,2]", "world.devices was renamed to world.hardware; use the new name"),
        (
            "selection=oort",
            "selection is a section of settings, not a value; set one of them, for example selection.policy",
        ),
    ],
)
def test_an_old_key_is_answered_with_the_new_one(old, new, fast, capsys):
    assert main([*fast, old]) == 2
    assert capsys.readouterr().err == f"genfl_mpi: settings: {new}\n"


def test_every_key_that_was_renamed_has_a_present_name():
    sections = {key.rpartition(".")[0] for key in keys()}
    known = {*keys(), *sections}
    assert set(RENAMED.values()) <= known and RENAMED.keys().isdisjoint(known)


def test_a_setting_that_is_newer_than_a_results_file_has_its_default():
    now = loading.single(None, ["method=fedavg"]).model_dump(mode="json")
    before = copy.deepcopy(now)
    del before["evaluation"], before["training"]["momentum"]
    assert differences.differing_settings(before, now) == []
    assert differences.varied_settings([before, now]) == []
    now["training"]["momentum"] = 0.5
    assert differences.differing_settings(before, now) == ["training.momentum"]
    assert differences.varied_settings([before, now]) == ["training.momentum"]

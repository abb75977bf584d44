"""Configuration as hostile input: any text is either accepted unchanged or refused in one line."""

import ast
import math
import os
import re
import subprocess
import sys
import warnings
from contextlib import suppress
from pathlib import Path

import pytest
import yaml
from conftest import FAST
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import genfl_mpi
from genfl_mpi.cli import main
from genfl_mpi.config import differences, loading, yaml_text
from genfl_mpi.config.differences import flatten
from genfl_mpi.config.settings import keys
from genfl_mpi.mpi import collectives
from genfl_mpi.runs import runner
from genfl_mpi.util.errors import UserError

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
    st.dates(),
    st.binary(max_size=4),
    st.sampled_from(
        ["1e-4", "nan", "../../etc/passwd", "/", "~", "a:b", "os:system", "10**9", "0x10", "1_000", "=", "<<"]
    ),
)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(scalars.filter(lambda key: key == key), inner, max_size=4),
    ),
    max_leaves=12,
)
leaves = sorted(set(keys()))


def load(*arguments):
    """Return the runs, or None if they are refused in one line."""
    try:
        return loading.load(*arguments)
    except UserError as error:
        assert str(error) and len(str(error)) < 2000
        return None


@settings(deadline=None, max_examples=300)
@given(st.sampled_from(leaves), values)
def test_a_value_is_accepted_as_it_stands_or_refused(key, value):
    try:
        text = yaml.safe_dump(value, allow_unicode=True)
        meant = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, UnicodeEncodeError):
        return
    runs = load({"method": "genfl"}, [f"{key}={text}"])
    if runs is None:
        return
    [one] = runs.values()
    now = flatten(one.model_dump()).get(key, meant)
    if isinstance(meant, dict) or (meant is None and key not in flatten(one.model_dump())):
        return  # a section, whose keys are tested separately
    if isinstance(now, float):
        assert math.isfinite(now) and not isinstance(meant, bool) and now == float(meant)
    elif isinstance(now, tuple):
        assert list(now) == list(map(float, meant))
    else:
        assert now == meant and type(now) is type(meant), f"{key}={text!r} became {now!r}"


@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.dictionaries(
        st.one_of(st.sampled_from([*leaves, "sweep"]), scalars.filter(lambda key: key == key)),
        values,
        max_size=5,
    )
)
def test_any_mapping_is_refused_in_words(tree):
    load(tree)


@settings(deadline=None, max_examples=500)
@given(st.text(max_size=200))
def test_any_text_is_refused_in_words(text):
    for read in (
        lambda: yaml_text.parse(text, "file"),
        lambda: load(None, [text]),
        lambda: load(None, [f"sweep.seed={text}"]),
    ):
        with suppress(UserError):
            read()


@settings(deadline=None, max_examples=200)
@given(
    st.dictionaries(
        st.sampled_from([key for key in leaves if key not in ("output", "method")]),
        st.lists(scalars, min_size=1, max_size=3),
        min_size=1,
        max_size=3,
    )
)
def test_names_of_runs_stay_in_the_output_folder(sweep):
    for name in load({"method": "fedavg", "output": "here", "sweep": sweep}) or {}:
        file = Path("here", f"{name}.h5")
        assert (
            file.resolve().parent == Path("here").resolve()
            and not name.startswith(".")
            and len(file.name.encode()) < 255
        )


NASTY = {
    "aliases that grow": "a: &a [1,1,1,1,1,1,1,1,1]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\n"
    "c: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\nd: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c]\n"
    "e: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d]\nf: [*e,*e,*e,*e,*e,*e,*e,*e,*e]\n",
    "binary data as text": "generation: {negative_prompt: !!binary ''}",
    "an alias of itself": "training: &a {lr: *a}",
    "deep nesting": "[" * 5000,
    "a date that is none": "seed: 2001-99-99",
    "a number of 5,000 digits": "seed: " + "9" * 5000,
    "an infinite seed": "seed: 1e999999",
    "an object": "seed: !!python/object/apply:os.system ['touch hacked']",
    "an integer that is none": "seed: !!int x",
    "a truth that is none": "seed: !!bool x",
    "a NUL": 'output: "a\\0b"',
    "half a character": 'output: "\\ud800"',
    "a key twice": "rounds: 3\nrounds: 4",
    "a list as a preset": "preset: [paper]",
    "too many runs": "sweep: {seed: &s [1,2,3,4,5,6,7,8,9,10], a: *s, b: *s, c: *s, d: *s}",
    "a key that is a date": "2001-01-01: 3",
    "nothing for a number": "rounds:",
    "a name too long for a file": "sweep: {data.root: [" + "x" * 300 + "]}",
    "colours for the terminal": '"\\e[31mred": 1',
}


@pytest.mark.parametrize("text", NASTY.values(), ids=NASTY)
def test_nasty_files_are_refused_in_one_short_line(text, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("nasty.yaml").write_text(text)
    assert main(["nasty.yaml"]) == 2
    said = capsys.readouterr()
    assert (
        said.out == ""
        and said.err.startswith("genfl_mpi: ")
        and said.err.count("\n") == 1
        and len(said.err) < 1000
    )
    assert said.err[:-1].isprintable() and [path.name for path in tmp_path.iterdir()] == ["nasty.yaml"]


@pytest.mark.parametrize(
    "override",
    [
        "selection.policy=:f",
        "selection.policy=..:f",
        "rho.policy=math:pi",
        "rho.policy=nowhere:f",
        "model.name=os:path",
        "generation.prompts=" + "x" * 5000,
        "generation.checkpoint=" + "x" * 5000,
        "generation.adapter=" + "x" * 5000,
        "generation.bank=" + "x" * 5000,
        "output=" + "x" * 5000,
        "data.root=" + "x" * 5000,
        "generation.checkpoint=/",
        "generation.prompts=/",
        "generation.checkpoint=../..",
        "output=/proc/nothing",
    ],
)
def test_names_that_lead_nowhere(override, tmp_path, capsys):
    arguments = [
        *FAST,
        "method=genfl",
        "generation.checkpoint=digits",
        "generation.prompts=mnist",
        f"output={tmp_path}/results",
        f"generation.bank={tmp_path}/bank",
        override,
    ]
    if override.startswith("data.root"):
        arguments.append("data.name=mnist")
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert said.startswith("genfl_mpi: ") and said.count("\n") == 1


EXTREMES = [
    0,
    -1,
    1,
    2,
    2**31 - 1,
    2**31,
    2**63 - 1,
    2**63,
    10**30,
    5e-324,
    1e-320,
    1e-37,
    -1e-37,
    1e37,
    -1e37,
    1e39,
    1.7e308,
    -1.7e308,
    math.inf,
    -math.inf,
    math.nan,
]
BASE = loading.nested(dict(setting.split("=") for setting in FAST)) | {
    "rounds": 1,
    "clients": 6,
    "cohort": 3,
    "runtime": {"threads": 1},
}
BASE["data"] |= {"samples": 200, "size": 8}
BASE["training"] = {"epochs": 1}


@pytest.mark.parametrize("section", sorted({key.partition(".")[0] for key in leaves}))
def test_extreme_numbers_are_refused_in_one_line_or_can_be_started(section, tmp_path, monkeypatch):
    """Test numbers alone and as both ends of a range, before the run starts, without a warning."""
    monkeypatch.chdir(tmp_path)
    for key in leaves:
        if key.partition(".")[0] != section:
            continue
        for value in [*EXTREMES, *([end, end] for end in EXTREMES)]:
            try:
                one = loading.validate(loading.nested(differences.flatten(BASE) | {key: value}))
                if differences.flatten(one.model_dump()).get(key) in (
                    value,
                    tuple(value) if isinstance(value, list) else None,
                ):
                    runner.prepare(collectives.single(), tmp_path / "results/one.h5", one)
            except UserError as error:
                assert str(error) and "\n" not in str(error) and len(str(error)) < 500


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        (
            "training.lr=1e39",
            "training.lr= must be 0 or have a magnitude from 1e-37 to 1e+37: models are computed in ",
        ),
        ("algorithm.mu=1e39", "algorithm.mu= must be 0 or have a magnitude"),
        ("rho.power=1e300", "rho.power= must be 0 or have a magnitude"),
        ("kappa.temperature=1e-320", "kappa.temperature= must be 0 or have a magnitude"),
        ("incentive.base=nan", "incentive.base= must be 0 or have a magnitude"),
        (
            "training.epochs=2147483647",
            "training.epochs= must be at most 10000: the batches of all epochs are drawn before ",
        ),
        ("runtime.threads=2147483647", "runtime.threads= must be at most 1024: "),
        ("training.clients_per_batch=2147483647", "training.clients_per_batch= must be at most 10000: "),
        ("hindsight.points=2147483648", "hindsight.points= needs a number of at most "),
        ("generation.batch_size=2147483647", "generation.batch_size= must be at most 10000: "),
        (
            "pretraining.autoencoder_channels=[8, 2147483648]",
            "pretraining.autoencoder_channels= needs a number of at most 4096",
        ),
        ("finetuning.rank=2147483647", "finetuning.rank= must be at most 1024: "),
        (
            "world={channel: {noise_dbm_hz: -500}}",
            "world.channel.noise_dbm_hz= needs a number of at least -400",
        ),
    ],
)
def test_a_number_beyond_what_can_be_computed_is_refused_with_the_reason(setting, said):
    with pytest.raises(UserError, match=re.escape(said)):
        loading.single(None, [*FAST, setting])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            ["data.size=2147483647"],
            "the 200 training images of data.name=synthetic with data.size=2147483647 take "
            "2,767,011,608,479 GB of memory, and this machine has",
        ),
        (
            ["data.samples=2147483647"],
            "the 2147483647 training images of data.name=synthetic with data.size=8 take 429 GB of memory",
        ),
        (
            ["clients=2147483647", "partition.replacement=true", "partition.scheme=iid"],
            "the samples of all clients, with clients=2147483647 with partition.samples=50, take "
            "601 GB of memory",
        ),
        (
            ["partition.scheme=shards", "partition.shards=2147483647"],
            "6 clients have 12884901882 shards, but only 200 samples are divided",
        ),
    ],
)
def test_what_does_not_fit_into_memory_is_refused_before_the_start(settings, said, fast, capsys, monkeypatch):
    monkeypatch.setattr(
        os, "sysconf", lambda name, real=os.sysconf: 10**7 if name == "SC_PHYS_PAGES" else real(name)
    )
    assert main([*fast, *settings]) == 2
    assert said in (error := capsys.readouterr().err) and error.count("\n") == 1


POOL = ["method=pool", "data.public_pool=20", "validation.source=clients"]


@pytest.mark.parametrize(
    "settings",
    [
        ["training.lr=1e37"],
        ["training.lr=1e-37"],
        ["training.weight_decay=1e37"],
        ["algorithm.name=fedprox", "algorithm.mu=1e37"],
        ["algorithm.name=fedadam", "algorithm.tau=1e37"],
        ["algorithm.name=fedyogi", "algorithm.server_lr=1e37"],
        [
            "misbehaving_clients.kind=disguised",
            "misbehaving_clients.share=0.5",
            "misbehaving_clients.noise=1e37",
        ],
        ["label_sharing.payload=presence", "label_sharing.epsilon=1e37"],
        [*POOL, "augmented.lr=1e37"],
        [*POOL, "kappa.policy=amount", "kappa.quality=1e37"],
        [*POOL, "kappa.policy=bias_optimal", "kappa.theta=1e37"],
        [*POOL, "kappa.policy=softmax_loss", "kappa.temperature=1e-37"],
        ["selection.policy=oort", "selection.penalty=1e37", "world={deadline_s: 1.0e-3}"],
        ["world={enforced: true, channel: {bandwidth_mhz: 1.0e+37}}"],
        ["world={enforced: true, hardware: {transmit_watts: [1.0e-37, 1.0e+37]}}"],
        ["world={enforced: true, hardware: {frequency_ghz: [1.0e-37, 1.0e+37]}}", "incentive.base=1e37"],
    ],
    ids=lambda settings: settings[-1],
)
def test_extreme_numbers_end_well_or_in_one_line(settings, fast, capsys):
    """A run that leaves the range of float32 has diverged: exit status 1."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        status = main([*fast, "rounds=2", *settings])
    said = capsys.readouterr().err
    assert (
        said.count("\n") == (status != 0)
        and (status != 1 or "FloatingPointError" in said)
        and "Warning" not in said
    )


# Settings under which the settings of a section, or a single one, have an effect.
MATTERS = {
    "algorithm.mu": [["algorithm.name=fedprox"]],
    "algorithm": [["algorithm.name=fedavgm"], ["algorithm.name=fedadam"], ["algorithm.name=fedyogi"]],
    "training": [
        ["algorithm.name=fednova"],
        ["algorithm.name=scaffold"],
        ["training.schedule=exponential"],
        ["training.schedule=step"],
    ],
    "augmented": [POOL, [*POOL, "augmented.schedule=cosine"]],
    "misbehaving_clients": [["misbehaving_clients.kind=disguised", "misbehaving_clients.share=0.5"]],
    "label_sharing": [[], ["label_sharing.payload=presence"]],
    "kappa": [
        [*POOL, f"kappa.policy={policy}"]
        for policy in (
            "linear",
            "cosine",
            "exponential",
            "step",
            "amount",
            "bias_optimal",
            "softmax_loss",
            "line_search",
            "bandit",
        )
    ],
    "rho": [["rho.policy=loss"], ["rho.policy=quality"], ["rho.policy=similarity"]],
    "selection": [["selection.policy=oort", "world={deadline_s: 1.0e-3}"]],
    "validation": [[*POOL, "kappa.policy=softmax_loss"]],
    "hindsight": [[*POOL, "hindsight.every=1"]],
    "probes": [["probes.every=1"]],
    "calibration": [["calibration.every=1"]],
    "distillation": [["method=distilled"]],
    "partition": [
        ["partition.scheme=classes"],
        ["partition.scheme=shards"],
        ["partition.replacement=true", "partition.scheme=dirichlet_client"],
    ],
    "data": [[], POOL],
    "incentive": [["world={}"]],
    "world": [
        ["world={enforced: true, deadline_s: 1.0e+6, channel: {waterfall: 0.5}}", "selection.policy=oort"],
        [
            "world={enforced: true, channel: {allocation: weighted, speed_mps: 1}}",
            "incentive.base=1",
            "selection.policy=battery",
        ],
        ["world={deadline_s: 100, channel: {allocation: least_energy}}", "selection.policy=energy"],
    ],
}
LONG = {
    "rounds",
    "rho.permutations",
    "training.epochs",
    "augmented.epochs",
    "probes.epochs",
    "calibration.epochs",
    "calibration.features",
    "distillation.batches",
    "algorithm.server_steps",
    "hindsight.points",
    "runtime.threads",
}


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("key", [key for key in leaves if key not in LONG])
def test_every_extreme_number_runs_or_is_refused(key, fast, capsys):
    """Compute two rounds with each extreme, under settings with which it has an effect."""
    matters = next((MATTERS[name] for name in (key, key.partition(".")[0]) if name in MATTERS), [[]])
    for value in [*EXTREMES, *([end, end] for end in EXTREMES)]:
        text = f"{key}={yaml.safe_dump(value, default_flow_style=True).removesuffix('...' + chr(10)).strip()}"
        for more in matters:
            try:
                loading.single(None, [*fast, *more, text])
            except UserError:
                break
            capsys.readouterr()
            test_extreme_numbers_end_well_or_in_one_line(["--fresh", *more, text], fast, capsys)


def test_an_alias_is_a_copy():
    one = next(
        iter(
            loading.load(
                {"method": "genfl", **yaml_text.parse("training: &t {lr: 0.1}\naugmented: *t", "file")},
                ["training.lr=0.5"],
            ).values()
        )
    )
    assert (one.training.lr, one.augmented.lr) == (0.5, 0.1)


def test_nothing_is_unpickled_or_executed():
    """Hub ids bring no code either: only safetensors and JSON are read, and no remote code is trusted.

    CIFAR's labels are pickled by its authors; the one file that reads them makes arrays alone."""
    package = Path(genfl_mpi.__file__).parent
    for file in package.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in {
                    "eval",
                    "exec",
                    "pickle.load",
                    "pickle.loads",
                    "yaml.unsafe_load",
                    "yaml.full_load",
                    "joblib.load",
                }, file
                options = {option.arg: ast.unparse(option.value) for option in node.keywords}
                assert options.get("trust_remote_code", "False") == "False", file
                assert called != "torch.load" or options.get("weights_only") == "True", file
                assert not called.endswith("np.load") or options.get("allow_pickle") == "False", file
                assert called != "yaml.load" or ast.unparse(node.args[1]) == "_Loader", file
                assert (
                    not called.endswith("Pipeline.from_pretrained")
                    or options.get("use_safetensors") == "True"
                ), file
            elif isinstance(node, (ast.Import, ast.ImportFrom)):
                unpickles = "pickle" in [alias.name for alias in node.names]
                assert not unpickles or file == package / "data/label_files.py", file


@pytest.mark.slow
@pytest.mark.long
def test_ten_thousand_mutations_by_a_fuzzer(tmp_path):
    """Run ten thousand mutations by atheris, which searches for untested paths through the reader."""
    pytest.importorskip("atheris")
    script = Path(__file__).with_name("fuzz_config.py")
    done = subprocess.run(
        [sys.executable, script, "-runs=10000", "-max_len=300", tmp_path],
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert done.returncode == 0, done.stderr[-3000:]

"""The way in: a YAML file, overrides, and the sentences for what is wrong with them; on the command line as well."""

import pickle
import subprocess
import sys

import pytest
from rich.console import Console

from equipoise import balancers, cli, valuation
from equipoise.datasets import sources
from equipoise.models import Modality
from equipoise.models.errors import EquipoiseError
from equipoise.pipelines.config import differing_keys, load_config

BASE = {"data": "d", "out": "o", "max_steps": 3}
OGM = {**BASE, "balancer": {"name": "ogm", "options": {"alpha": 0.2}}}


def refused(match):
    return pytest.raises(EquipoiseError, match=match)


# What is read


def test_a_file_with_overrides(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("data: d\nout: o\nmax_steps: 400\nbalancer: ogm\noptimizer: {lr: 0.1}\n")
    config = load_config(path, ["max_steps=10", "optimizer.name=sgd", "resampler=sample", "resampler.options.warmup=2"])
    assert (config.max_steps, config.optimizer.lr, config.optimizer.name) == (10, 0.1, "sgd")
    assert (config.balancer.name, config.resampler.name, config.resampler.options) == ("ogm", "sample", {"warmup": 2})
    assert load_config(str(path), {"max_steps": 10}).max_steps == 10


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-3", 1e-3), ("0.5", 0.5), ("'1'", 1.0), ("1E+2", 100.0)],
)
def test_numbers_are_read_as_people_write_them(text, value):
    # YAML 1.1 takes 1e-3 for a string.
    assert load_config(BASE, [f"optimizer.lr={text}"]).optimizer.lr == value


def test_nested_keys_are_overridden_one_by_one():
    source = {**BASE, "model": {"encoder": {"hidden": 8, "out_features": 4}, "encoders": {"left": {"kind": "mlp"}}}}
    model = load_config(source, ["model.encoder.hidden=16", "model.encoders.left.depth=2"]).model
    assert (model.encoder.hidden, model.encoder.out_features) == (16, 4)
    assert (model.encoders["left"].kind, model.encoders["left"].depth) == ("mlp", 2)
    assert source["model"]["encoder"]["hidden"] == 8, "the mapping that came in is left alone"
    assert load_config({**BASE, "clip_norm": 1.0}, ["clip_norm="]).clip_norm is None


@pytest.mark.parametrize("name", ["balancer=ogm", "balancer.name=ogm"])
def test_a_method_and_its_options_may_come_in_either_order(name):
    arguments = [name, "balancer.options.alpha=0.1"]
    for order in (arguments, arguments[::-1]):
        method = load_config(BASE, order).balancer
        assert (method.name, method.options) == ("ogm", {"alpha": 0.1})


@pytest.mark.parametrize("key", ["balancer", "balancer.name"])
def test_naming_another_method_drops_the_options_of_the_former(key):
    assert load_config(OGM, [f"{key}=joint"]).balancer.options == {}
    assert load_config(OGM, [f"{key}=ogm_ge"]).balancer.options == {}, "even where the new one has them too"
    assert load_config(OGM, [f"{key}=ogm"]).balancer.options == {"alpha": 0.2}, "the same one is no other"
    assert load_config(OGM, [f"{key}=ogm_ge", "balancer.options.ends=3"]).balancer.options == {"ends": 3}
    assert OGM["balancer"]["options"] == {"alpha": 0.2}


def test_options_alone_are_added_to_those_of_the_file():
    assert load_config(OGM, ["balancer.options.ends=3"]).balancer.options == {"alpha": 0.2, "ends": 3}


def test_differing_keys_are_named_with_both_values():
    a = load_config(OGM)
    b = load_config(
        OGM, ["balancer.options.alpha=0.4", "optimizer.lr=0.1", "clip_norm=1", "model.encoders.left.depth=2"]
    )
    assert differing_keys(a, a) == []
    lines = differing_keys(a, b)
    for line in ("balancer.options.alpha: 0.2 -> 0.4", "optimizer.lr: 0.001 -> 0.1", "clip_norm: None -> 1.0"):
        assert line in lines
    assert "model.encoders.left.depth: None -> 2" in lines
    assert differing_keys(load_config(BASE), a) == [
        "balancer.name: 'joint' -> 'ogm'",
        "balancer.options: {} -> None",
        "balancer.options.alpha: None -> 0.2",
    ]


# What is refused


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        (
            "optimizer.lrr=1",
            "Unknown config key 'optimizer.lrr' in the configuration under 'optimizer': did you mean 'lr'?",
        ),
        ("balancr=ogm", "Unknown config key 'balancr' in the configuration: did you mean 'balancer'?"),
        ("balancer.optons.alpha=1", "Unknown config key 'balancer.optons' .* did you mean 'options'?"),
        ("model.encoder.kindd=mlp", "Unknown config key 'model.encoder.kindd' .* did you mean 'kind'?"),
        ("model.encoders.left.kindd=mlp", "Unknown config key 'model.encoders.left.kindd' .* did you mean 'kind'?"),
        ("zzzz=1", "Unknown config key 'zzzz' in the configuration: known: .*max_steps"),
        ("optimizer.lr=-1", "'optimizer.lr' in the configuration: .*greater than 0, found -1"),
        ("optimizer.name=adamm", "'optimizer.name' in .*'adamw', 'adam' or 'sgd', found 'adamm'"),
        ("workers=0", "'workers' in the configuration: .*greater than or equal to 1, found 0"),
        ("max_steps=many", "'max_steps' in the configuration: .*valid integer.* found 'many'"),
        (
            "optimizer=adam",
            "'optimizer' in the configuration is a section with the keys name, lr, .* optimizer.name=...",
        ),
        ("optimizer=", "'optimizer' in the configuration is a section .* found None"),
        ("optimizer.lr.x=1", "'optimizer.lr' in the configuration: .*valid number"),
        ("model.fusion=concatt", "'model.fusion' in the configuration: .*'concat', .* found 'concatt'"),
        ("model.depth=3", "model.depth has no meaning for model.kind='late': leave it out"),
        ("balancer=omg", "Unknown balancer 'omg': did you mean 'ogm'?"),
        ("balancer=3", "'balancer' in the configuration is a section with the keys name, options, found 3"),
        ("resampler=sampel", "Unknown resampler 'sampel': did you mean 'sample'?"),
        ("balancer.options.alpha=0.1", "the configuration gives no 'balancer.name': add"),
        ("schedule.kind=cosine", "A schedule is a share of the run's steps: give max_steps"),
        ("max_steps", "Overrides are written key=value, such as max_steps=400; found 'max_steps'"),
        ("=3", "Overrides are written key=value"),
        ("max_steps=[1", r"The value of the override 'max_steps=\[1' is not YAML"),
    ],
)
def test_a_wrong_override_is_answered_in_a_sentence(override, sentence):
    source = {"data": "d", "out": "o", "max_epochs": 2}
    with refused(sentence):
        load_config(source, [override])


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (
            ["balancer=ogm", "balancer.options.alhpa=0.1"],
            "Unknown option of balancer 'ogm': 'alhpa': did you mean 'alpha'?",
        ),
        (["balancer=ogm", "balancer.options.alpha=-1"], "Option 'alpha' of balancer 'ogm': .* found -1"),
        (["balancer=joint", "balancer.options.alpha=1"], "The balancer 'joint' has no options, found 'alpha'"),
        (
            ["resampler=sample", "resampler.options.warmpu=1"],
            "Unknown option of resampler 'sample': 'warmpu': did you .*'warmup'",
        ),
    ],
)
def test_a_wrong_option_is_an_error_of_the_configuration(overrides, sentence):
    with refused(sentence):
        load_config(BASE, overrides)


@pytest.mark.parametrize(
    ("missing", "sentence"),
    [
        ("data", "gives no 'data': add `data: ...` or pass data=... on the command line"),
        ("out", "gives no 'out'"),
        ("max_steps", "Give the run a budget: max_steps=400 .* or max_epochs=20"),
    ],
)
def test_what_a_run_cannot_do_without(missing, sentence):
    with refused(sentence):
        load_config({k: v for k, v in BASE.items() if k != missing})


def test_a_misspelt_key_is_named_before_the_one_that_is_missing_for_it():
    with refused("Unknown config key 'dta' .* did you mean 'data'"):
        load_config({"dta": "d", "out": "o", "max_steps": 1})


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"a: [1", "run.yaml is not YAML: .*line 1"),
        (b"a: b: c", "is not YAML"),
        (b"\xff\xfe\x00a", "is not YAML"),
        (b"- 1\n", "must hold `key: value` lines"),
        (b"", "must hold `key: value` lines"),
        (b"data: d\nout: o\nmax_stesp: 3", "Unknown config key 'max_stesp' in .*run.yaml: did you mean 'max_steps'"),
    ],
)
def test_a_bad_file_is_answered_in_a_sentence(tmp_path, content, sentence):
    path = tmp_path / "run.yaml"
    path.write_bytes(content)
    with pytest.raises(EquipoiseError) as error:
        load_config(path)
    assert error.match(f"(?s){sentence}")


def test_a_file_that_cannot_be_read(tmp_path):
    with refused("No configuration at .*missing.yaml: give a YAML file, such as examples/digits.yaml"):
        load_config(tmp_path / "missing.yaml")
    with refused("Cannot read the configuration .*: Is a directory"):
        load_config(tmp_path)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"name": "a b", "shape": (1,)}, "^Modality name 'a b' must be a plain identifier, such as 'audio'"),
        ({"name": "a"}, "^Modality 'a' is an array: give its shape"),
        ({"name": "a", "kind": "text"}, "^Modality 'a' is a text: give its max_length"),
        ({"name": "a", "kind": "image", "shape": (8, 8)}, r"^Modality 'a' is an image: give its shape as \(channels"),
        ({"name": "a", "shap": (1,)}, "^Unknown option of Modality 'a': 'shap': did you mean 'shape'?"),
        ({"nmae": "a", "shape": (1,)}, "^Unknown option of Modality: 'nmae': did you mean 'name'?"),
        ({"name": "a", "kind": "video"}, "^Option 'kind' of Modality 'a': .* found 'video'"),
        ({"shape": (1,)}, "^Modality needs the option 'name': give name=..."),
    ],
)
def test_a_modality_says_what_is_wrong_with_it(fields, sentence):
    with refused(sentence):
        Modality(**fields)


def test_a_modality_goes_through_json_and_pickle():
    # Its own __init__ must not stand in the way of either.
    made = Modality(name="a", kind="sequence", shape=(3,), max_length=5)
    assert Modality.model_validate_json(made.model_dump_json()) == made
    assert pickle.loads(pickle.dumps(made)) == made
    assert made.column == "a"


# On the command line


def equipoise(*arguments):
    command = [sys.executable, "-m", "equipoise.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_the_command_line_prints_the_sentence_alone(tmp_path):
    done = equipoise("fit", str(tmp_path / "missing.yaml"))
    assert done.returncode == 2
    assert done.stdout == ""
    sentence = f"No configuration at {tmp_path}/missing.yaml: give a YAML file, such as examples/digits.yaml."
    assert done.stderr == f"equipoise: {sentence}\n"


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["equipoise", *map(str, arguments)])
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return stop.value.code


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["fit", "{}/run.yaml", "optimizer.lrr=1"], "Unknown config key 'optimizer.lrr'"),
        (["fit", "{}/run.yaml"], "is not a prepared data set: it has no manifest.json. Run `equipoise prepare`."),
        (["fit", "{}/[/b][red]:smile:.yaml"], "/[/b][red]:smile:.yaml: give a YAML file"),
        (["evaluate", "{}"], "holds no run (no config.yaml)"),
        (["list", "balancer"], "Unknown list 'balancer': did you mean 'balancers'?"),
        (["prepare", "digit", "--out", "{}/out"], "Unknown data set 'digit': did you mean 'digits'?"),
        (
            ["prepare", "digits", "sede=1", "--out", "{}/out"],
            "Unknown option of the data set 'digits', 'sede': did you mean 'seed'?",
        ),
    ],
)
def test_every_command_ends_with_a_sentence_and_status_2(monkeypatch, capsys, tmp_path, arguments, sentence):
    (tmp_path / "run.yaml").write_text(f"data: {tmp_path}\nout: {tmp_path}/out\nmax_steps: 1\n")
    assert run(monkeypatch, *(a.replace("{}", str(tmp_path)) for a in arguments)) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("equipoise: ")
    assert sentence in printed
    assert "Traceback" not in printed


def test_list_prints_every_name(monkeypatch, capsys):
    assert run(monkeypatch, "list") == 0
    words = capsys.readouterr().out.split()
    for name in (*balancers.names(), *valuation.names(), *sources.names()):
        assert name in words


@pytest.mark.parametrize("width", [100, 120])
def test_list_says_of_a_balancer_what_it_works_with(monkeypatch, capsys, width):
    monkeypatch.setattr(cli, "console", Console(width=width))
    assert run(monkeypatch, "list", "balancers") == 0
    _, head, _, *lines = [line for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert max(map(len, lines)) <= width
    starts = [head.index(word) for word in head.split()]
    assert head.split() == ["name", "family", "objectives", "passes", "tasks", "modalities", "accepts", "fusion"]
    rows, last = {}, ""
    for line in lines[: lines.index(next(x for x in lines if x.startswith("passes:")))]:
        first, *others = [line[i:j].strip() for i, j in zip(starts, [*starts[1:], None], strict=True)]
        last = first or last  # a row's further lines have an empty first cell
        rows[last] = [f"{a} {b}".strip() for a, b in zip(rows.get(last, [""] * 7), others, strict=True)]
    assert list(rows) == balancers.names()
    assert rows["gmd"] == ["gradient", "one a set of available modalities", "3, 7", "all", "any", "any", "any"]
    assert rows["balgrad"] == [
        "gradient",
        "fused, unimodal, KL",
        "3, 3",
        "classification multilabel",
        "any",
        "heads",
        "any",
    ]
    assert rows["ensemble"] == ["control", "one a modality", "1, 1", "all", "any", "split", "average"]
    for name, row in rows.items():
        assert row[1] == balancers.get(name).losses


def test_list_of_balancers_loses_nothing_in_a_narrow_terminal_or_a_pipe(monkeypatch, capsys):
    monkeypatch.setattr(cli, "console", Console(width=80))
    assert run(monkeypatch, "list", "balancers") == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert set(balancers.names()) <= set(lines)
    facts = (
        "family objective; objectives fused; passes 1, 1; tasks classification; modalities any; accepts split, heads"
    )
    assert lines["mmcosine"].split(maxsplit=1)[1] == f"{facts}; fusion cosine"


def test_methods_that_are_not_there_yet_are_said_to_be():
    with pytest.raises(
        EquipoiseError, match=r"^Balancer 'greedy' is not there yet: it balances by squeeze.* Known: .*gmd"
    ):
        balancers.get("greedy")
    with pytest.raises(EquipoiseError, match=r"^Balancer 'umt' is not there yet: it distils from unimodal models"):
        balancers.get("umt")


@pytest.mark.parametrize("what", ["balancers", "resamplers", "data"])
def test_list_prints_one_kind_alone(monkeypatch, capsys, what):
    assert run(monkeypatch, "list", what) == 0
    words = capsys.readouterr().out.split()
    found = {"balancers": "ogm" in words, "resamplers": "random_copies" in words, "data": "digits" in words}
    assert found == {kind: kind == what for kind in found}


@pytest.mark.parametrize("key", ["encoder", "encoders"])
def test_an_encoder_of_a_file_can_be_left_out_from_the_command_line(key):
    old = {
        "data": "d",
        "out": "o",
        "max_steps": 1,
        "model": {key: {"left": {"depth": 2}} if key == "encoders" else {"depth": 2}},
    }
    with pytest.raises(
        EquipoiseError, match=rf"leave it out, or write model\.{key}=\{{\}} beside a file that has it\.$"
    ):
        load_config(old, {"model.kind": "early"})
    assert load_config(old, {"model.kind": "early", f"model.{key}": {}}).model.kind == "early"


def test_early_fusion_as_it_was_written_before_auto_is_still_read():
    old = {"data": "d", "out": "o", "max_steps": 1, "model": {"kind": "early", "fusion": "concat"}}
    assert load_config(old).model == load_config({**old, "model": {"kind": "early"}}).model
    with pytest.raises(EquipoiseError, match=r"model\.fusion has no meaning for model\.kind='early'"):
        load_config({**old, "model": {"kind": "early", "fusion": "gated"}})


def test_auto_is_what_the_balancer_needs():
    plain = {"data": "d", "out": "o", "max_steps": 1}
    assert load_config(plain).model.fusion == "concat"
    made = load_config({**plain, "balancer": "ensemble"})
    assert (made.model.fusion, made.model.resolved_absence) == ("average", "drop")
    assert load_config(made.model_dump()) == made
    for model in ({"fusion": "concat"}, {"kind": "early"}):
        with pytest.raises(
            EquipoiseError, match=r"'ensemble' is defined for model\.fusion=average, not for (concat|early)"
        ):
            load_config({**plain, "balancer": "ensemble", "model": model})


def test_an_optional_section_given_a_number_is_answered_in_a_sentence():
    with pytest.raises(
        EquipoiseError, match=r"'impairment' in .* is a section with the keys missing, noise, share, seed"
    ):
        load_config({"data": "d", "out": "o", "max_steps": 1}, ["impairment=3"])
    with pytest.raises(EquipoiseError, match=r"Unknown option of impairment: 'nois': did you mean 'noise'"):
        load_config({"data": "d", "out": "o", "max_steps": 1}, ["impairment.nois={left: 1}"])

"""Config: every form a configuration comes in, what wins, what is refused, and that the core agrees."""

import dataclasses
import math
import pickle
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from poolalloc import _core
from poolalloc._internal.exact_bins import ExactBin
from poolalloc._internal.nearest import edit_distance, nearest
from poolalloc._internal.options import OPTIONS
from poolalloc.config import Config, profiles
from poolalloc.errors import ConfigError

NAMES = [option.name for option in OPTIONS]


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch):
    monkeypatch.delenv("POOLALLOC_CONF", raising=False)
    monkeypatch.delenv("POOLALLOC_CONFIG", raising=False)


def as_dict(config):
    return dataclasses.asdict(config)


def values():
    """Values of each option that are allowed together."""
    fields = {}
    for option in OPTIONS:
        if option.type == "number":
            low = option.minimum if option.minimum > 0 else math.nextafter(option.minimum, 1)
            fields[option.name] = st.floats(low, option.maximum)
        elif option.type == "choice":
            fields[option.name] = st.sampled_from(option.unit.split(" | "))
        elif option.type == "text":
            fields[option.name] = st.text(st.sampled_from("abc/.%:_ é"), max_size=9).map(str.strip)
        elif option.type == "bins":  # above every bin_limit
            sizes = st.integers((1 << 20) + 1, 1 << 40)
            kept = st.integers(1, 65536).flatmap(lambda keep: st.tuples(st.integers(0, keep), st.just(keep)))
            some = st.builds(lambda size, kept: ExactBin(size, kept[0], keep=kept[1]), sizes, kept)
            fields[option.name] = st.lists(some, max_size=5, unique_by=lambda each: each.rounded)
        elif option.name == "memory_limit":
            fields[option.name] = st.just(0) | st.integers(2 << 20, option.maximum)
        elif option.type == "boolean":
            fields[option.name] = st.booleans()
        elif option.name in ("prealloc", "trim_low"):  # no more than others, which may be small
            fields[option.name] = st.just(0)
        else:
            fields[option.name] = st.integers(option.minimum, option.maximum)
    return st.fixed_dictionaries({}, optional=fields)


# --- values -----------------------------------------------------------------------------------------------------------


def test_the_defaults_are_those_of_the_table():
    assert as_dict(Config()) == {option.name: option.default for option in OPTIONS}


def test_a_config_is_frozen_compared_by_value_and_can_be_copied():
    config = Config(bin_limit="512 KiB")
    assert config.bin_limit == 524288
    assert config == Config(bin_limit=524288)
    assert hash(config) == hash(Config(bin_limit=524288))
    assert config != Config()
    assert pickle.loads(pickle.dumps(config)) == config
    assert dataclasses.replace(config, memory_fraction=0.5) == Config(bin_limit=524288, memory_fraction=0.5)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.bin_limit = 0
    with pytest.raises(TypeError):
        Config(524288)


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("bin_limit", "2 MiB", "out of range"),
        ("bin_limit", -1, "out of range"),
        ("bin_limit", 1.5, "not a size"),
        ("bin_limit", True, "not a size"),
        ("bin_limit", None, "not a size"),
        ("bin_limit", "many", "not a size"),
        ("bin_limit", math.inf, "out of range"),
        ("memory_limit", 1, "less than one page"),
        ("memory_fraction", 0, "nothing could be allocated"),
        ("memory_fraction", 1.01, "out of range"),
        ("memory_fraction", math.nan, "not a number"),
        ("memory_fraction", "0.5", "not a number"),
        ("memory_fraction", True, "not a number"),
        ("memory_fraction", 10**400, "out of range"),
        ("placement_candidates", 3.0, "not a whole number"),
        ("placement_candidates", "3", "not a whole number"),
        ("placement_candidates", 10**30, "out of range"),
        ("growth", "fastt", r"none of the allowed words \(nearest: fast\)"),
        ("growth", "Tight", r"none of the allowed words \(nearest: tight\)"),
        ("growth", "tight | fast", "none of the allowed words"),
        ("growth", "", "none of the allowed words"),
        ("growth", 1, "none of the allowed words"),
        ("growth", None, "none of the allowed words"),
        ("exact_bins", None, "no list of exact bins"),
        ("exact_bins", {"size": 1}, "no list of exact bins"),
        ("exact_bins", [3], "no exact bin"),
        ("exact_bins", [{"keep": 1}], "has no size"),
        ("exact_bins", [{"size": "2 MiB"}], "has no keep"),
        ("exact_bins", [{"size": "2 MiB", "keep": 1, "kept": 1}], '"kept" is no key of an exact bin'),
        ("exact_bins", [{"size": "2 MiB", "keep": True}], "is not SIZE/PREALLOCATE/KEEP"),
        ("exact_bins", [{"size": "2 MiB", "keep": "3"}], "is not SIZE/PREALLOCATE/KEEP"),
        ("exact_bins", [{"size": 2.5, "keep": 1}], "is not SIZE/PREALLOCATE/KEEP"),
        ("exact_bins", [{"size": "many", "keep": 1}], "is not SIZE/PREALLOCATE/KEEP"),
        ("exact_bins", [{"size": "2 TiB", "keep": 1}], "has a size out of range"),
        ("exact_bins", [{"size": "2 MiB", "keep": 0}], "has a KEEP out of range"),
        ("exact_bins", [{"size": "2 MiB", "keep": 65537}], "has a KEEP out of range"),
        ("exact_bins", [{"size": "2 MiB", "keep": 2, "preallocate": 3}], "has a PREALLOCATE out of range"),
        ("exact_bins", "2MiB/0/1+2097000/0/1", "is a second bin of its size, in units of 512 B"),
        ("exact_bins", "+".join(f"{mib}MiB/0/1" for mib in range(2, 67)), "is one bin too many"),
        ("exact_bins", "256 KiB/0/1", "is no larger than bin_limit, 256 KiB"),
    ],
)
def test_a_value_that_is_not_allowed_is_refused(option, value, words):
    with pytest.raises(ConfigError, match=f"option {option}: .*{words}.*; allowed: ") as caught:
        Config(**{option: value})
    assert isinstance(caught.value, ValueError)


def test_a_refused_value_is_shown_on_one_line():
    with pytest.raises(ConfigError) as caught:
        Config(bin_limit="1\n2")
    assert "\n" not in str(caught.value)


# --- forms ------------------------------------------------------------------------------------------------------------


@given(values())
def test_every_form_reads_back_to_the_same_config(options):
    config = Config(**options)
    assert Config.from_conf(config.to_conf()) == config
    assert _core.parse_options(config.to_conf()) == as_dict(config)
    assert Config.load({name: getattr(config, name) for name in NAMES}) == config


@given(values())
def test_toml_reads_back_to_the_same_config(tmp_path_factory, options):
    path = tmp_path_factory.mktemp("toml") / "options.toml"
    config = Config(**options)
    path.write_text(config.to_toml())
    assert Config.from_toml(path) == config
    assert Config.load(str(path)) == config


def test_toml_takes_sizes_as_text_or_number(tmp_path):
    path = tmp_path / "a.toml"
    path.write_text('[poolalloc]\nbin_limit = "1 MiB"\nmemory_limit = 4194304\naddress_space = 2\ngrowth = "fast"\n')
    assert Config.from_toml(path) == Config(bin_limit=1 << 20, memory_limit=4 << 20, address_space=2.0, growth="fast")


def test_exact_bins_come_in_many_forms_and_mean_the_same(tmp_path):
    expected = Config(exact_bins=[ExactBin("6 MiB", 16, keep=64), ExactBin(20 << 20, keep=8)])
    assert [each.size for each in expected.exact_bins] == [6 << 20, 20 << 20]
    assert expected == Config(exact_bins=({"size": "6 MiB", "preallocate": 16, "keep": 64}, ExactBin("20MiB", keep=8)))
    assert expected == Config(exact_bins=" 6 MiB / 16 / 64 + 20 MiB/0/8 ")
    assert expected == Config.from_conf("placement_candidates:8,exact_bins:6MiB/16/64+20MiB/0/8")
    assert expected.to_conf() == "exact_bins:6MiB/16/64+20MiB/0/8"
    assert Config.from_conf("exact_bins:") == Config(exact_bins=[]) == Config()
    path = tmp_path / "a.toml"
    for text in (
        '[poolalloc]\n[[poolalloc.exact_bins]]\nsize = "6 MiB"\npreallocate = 16\nkeep = 64\n'
        '[[poolalloc.exact_bins]]\nsize = "20 MiB"\nkeep = 8\n',
        '[poolalloc]\nexact_bins = [{ size = "6 MiB", preallocate = 16, keep = 64 }, { size = 20971520, keep = 8 }]\n',
        '[poolalloc]\nexact_bins = "6 MiB/16/64 + 20 MiB/0/8"\n',
        expected.to_toml(),
        expected.to_toml(every_option=False),
    ):
        path.write_text(text)
        assert Config.from_toml(path) == expected
    path.write_text('[poolalloc]\n[[poolalloc.exact_bins]]\nsize = "6 MiB"\nkeep = 0\n')
    with pytest.raises(ConfigError, match=rf"{path}: option exact_bins: .6291456/0/0. has a KEEP out of range"):
        Config.from_toml(path)


def test_an_empty_file_means_the_defaults(tmp_path):
    (tmp_path / "a.toml").write_text("")
    assert Config.from_toml(tmp_path / "a.toml") == Config()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"bin_limit = 1", ['unknown key "bin_limit"', "[poolalloc]"]),
        (b"[poolaloc]\nbin_limit = 1", ['unknown table "poolaloc"', "[poolalloc]"]),
        (b"poolalloc = 3", ["is no table"]),
        (b"[poolalloc]\nbin_limt = 1", ['unknown option "bin_limt"', "nearest known option: bin_limit"]),
        (b"[poolalloc.extra]\na = 1", ['unknown option "extra"']),
        (b"[poolalloc]\nbin_limit = 2097153", ["option bin_limit", "out of range"]),
        (b"[poolalloc]\nmemory_fraction = 1979-05-27", ["option memory_fraction", "not a number"]),
        (b"[poolalloc]\nbin_limit = [1]", ["option bin_limit", "not a size"]),
        (b'[poolalloc]\ngrowth = "slow"', ["option growth", '"slow"', "allowed: tight | balanced | fast"]),
        (b"[poolalloc]\ngrowth = [1]", ["option growth", "none of the allowed words"]),
        (b"[poolalloc\n", ["no TOML file", "line 1"]),
        (b"\xff\xfe", ["no TOML file"]),
        (b"a = " + b"[" * 100_000, ["no TOML file"]),
    ],
)
def test_what_is_wrong_in_a_file_is_named_with_the_file(tmp_path, text, words):
    path = tmp_path / "a.toml"
    path.write_bytes(text)
    with pytest.raises(ConfigError) as caught:
        Config.from_toml(path)
    for word in [str(path), *words]:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_cannot_be_read_is_one_line(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot read .*none\.toml: No such file"):
        Config.load(tmp_path / "none.toml")
    with pytest.raises(ConfigError, match=r"cannot read .*: Is a directory"):
        Config.load(tmp_path)


# --- what wins --------------------------------------------------------------------------------------------------------


def test_the_environment_names_a_file_and_options_on_top_of_it(tmp_path):
    path = tmp_path / "a.toml"
    path.write_text("[poolalloc]\nbin_limit = 1024\nmemory_fraction = 0.5\n")
    assert Config.from_env({}) == Config()
    assert Config.from_env({"POOLALLOC_CONFIG": str(path)}) == Config(bin_limit=1024, memory_fraction=0.5)
    environ = {"POOLALLOC_CONFIG": str(path), "POOLALLOC_CONF": "memory_fraction:0.25"}
    assert Config.from_env(environ) == Config(bin_limit=1024, memory_fraction=0.25)


def test_options_are_checked_together_only_when_all_are_known(tmp_path):
    path = tmp_path / "a.toml"
    path.write_text("[poolalloc]\nmemory_limit = 1\n")
    assert Config.from_env({"POOLALLOC_CONFIG": str(path), "POOLALLOC_CONF": "memory_limit:0"}) == Config()
    with pytest.raises(ConfigError, match="less than one page"):
        Config.from_env({"POOLALLOC_CONFIG": str(path)})


@pytest.mark.parametrize("variable", ["POOLALLOC_CONF", "POOLALLOC_CONFIG"])
def test_an_error_says_which_variable_it_comes_from(variable):
    with pytest.raises(ConfigError, match=f"^{variable}: .*wrong"):
        Config.from_env({variable: "wrong:1"})


def test_what_shows_only_when_all_options_are_known_is_said_of_who_named_them(tmp_path):
    path = tmp_path / "a.toml"
    path.write_text("[poolalloc]\nmemory_limit = 1\n")
    for read, source in (
        (lambda: Config.from_env({"POOLALLOC_CONF": "memory_limit:1"}), "POOLALLOC_CONF"),
        (lambda: Config.from_env({"POOLALLOC_CONFIG": str(path), "POOLALLOC_CONF": "bin_limit:0"}), "POOLALLOC_CONFIG"),
        (
            lambda: Config.from_env({"POOLALLOC_CONFIG": str(path), "POOLALLOC_CONF": "memory_limit:2"}),
            "POOLALLOC_CONF",
        ),
        (lambda: Config.load(path), str(path)),
    ):
        with pytest.raises(ConfigError, match="less than one page") as caught:
            read()
        assert str(caught.value).startswith(f"{source}: option memory_limit: ")


def test_a_comma_may_come_last():
    assert Config.from_conf("bin_limit:1KiB,growth:fast, ") == Config(bin_limit=1024, growth="fast")


def test_from_outside_wins_over_the_program_but_not_over_a_config_object(tmp_path, monkeypatch):
    path = tmp_path / "program.toml"
    path.write_text("[poolalloc]\nbin_limit = 1024\nplacement_candidates = 2\n")
    outside = tmp_path / "outside.toml"
    outside.write_text("[poolalloc]\nbin_limit = 2048\naddress_space = 3.0\n")
    monkeypatch.setenv("POOLALLOC_CONFIG", str(outside))
    monkeypatch.setenv("POOLALLOC_CONF", "address_space:4")
    expected = Config(bin_limit=2048, placement_candidates=2, address_space=4.0)
    assert Config.load(path) == expected
    assert Config.load({"bin_limit": 1024, "placement_candidates": 2}) == expected
    assert Config.load("default") == Config.load() == Config(bin_limit=2048, address_space=4.0)
    assert Config.load(Config(bin_limit=1024)) == Config(bin_limit=1024)


def test_the_command_line_comes_last(tmp_path, monkeypatch):
    monkeypatch.setenv("POOLALLOC_CONF", "bin_limit:1,address_space:4,placement_candidates:5")
    path = tmp_path / "a.toml"
    path.write_text("[poolalloc]\nbin_limit = 2\naddress_space = 2.0\n")
    loaded = Config.load(config=path, conf="bin_limit:3")
    assert loaded == Config(bin_limit=3, address_space=2.0, placement_candidates=5)


def test_a_later_value_may_be_the_default(monkeypatch):
    monkeypatch.setenv("POOLALLOC_CONF", f"bin_limit:{Config().bin_limit}")
    assert Config.load({"bin_limit": 1}) == Config()


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("defaullt", ['no profile "defaullt"', "nearest: default", "defaullt.toml"]),
        ("", ['no profile ""']),
        (3, ["not 3"]),
        ({"bin_limt": 1}, ['unknown option "bin_limt"']),
        ({1: 1}, ["1 is no name"]),
        ({"bin_limit": -1}, ["option bin_limit"]),
    ],
)
def test_what_is_no_configuration_is_refused(spec, words):
    with pytest.raises(ConfigError) as caught:
        Config.load(spec)
    for word in words:
        assert word in str(caught.value)


def test_every_shipped_profile_loads():
    assert "default" in profiles()
    for name in profiles():
        assert isinstance(Config.load(name), Config)
    assert Config.load("default") == Config()


def test_a_word_is_a_profile_and_a_path_is_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("default").write_text("not toml")
    Path("default.toml").write_text("[poolalloc]\nbin_limit = 1\n")
    assert Config.load("default") == Config()
    assert Config.load("default.toml") == Config.load("./default.toml") == Config(bin_limit=1)


# --- agreement with the core ------------------------------------------------------------------------------------------

spaces = st.sampled_from(["", "", "", " ", "\t", "\n "])
names = st.sampled_from([*NAMES, *NAMES, "bin_limt", "", "Bin_limit", "memory limit"])
sizes = st.from_regex(r"[0-9]{0,20}(\.[0-9]{0,20})? ?([KMGTkmgt]i?)?[Bb]?", fullmatch=True)
numbers = st.from_regex(r"[+-]?[0-9]{0,4}(\.[0-9]{0,20})?([eE][+-]?[0-9]{0,3})?", fullmatch=True)
entries = st.builds(
    lambda a, name, b, colon, c, value, d: a + name + b + colon + c + value + d,
    spaces,
    names,
    spaces,
    st.sampled_from([":", ":", ":", ":", "=", ""]),
    spaces,
    st.sampled_from(["tight", "balanced", "fast", "Fast", "tigth"])
    | st.lists(st.from_regex(r"[1-9] ?MiB/ ?[0-3]/[0-3]", fullmatch=True), max_size=3).map("+".join)
    | sizes
    | numbers
    | st.integers().map(str)
    | st.floats().map(repr)
    | st.text(max_size=5),
    spaces,
)
texts = st.lists(entries, max_size=3).map(",".join) | st.text(max_size=20)


@given(texts)
@example("memory_limit:1152921504606846977")
@example("memory_fraction:1e-999")
@example("memory_fraction:4.9e-324")
@example("memory_fraction:0.1000000000000000055511151231257827021181583404541015625")
@example("address_space:1_0")
@example("placement_candidates:\u0663")
@example("bin_limit:1\x1f")
@example("bin_limit:\u00a01")
@example("bin_limit:1 \u212aB")
@example("bin_limit\x00:1")
def test_python_and_the_core_accept_and_refuse_the_same_texts(text):
    try:
        expected = as_dict(Config.from_conf(text))
    except ConfigError:
        with pytest.raises(ConfigError):
            _core.parse_options(text)
    else:
        assert _core.parse_options(text) == expected


@given(
    st.sampled_from(["bin_limit", "memory_fraction", "placement_candidates", "growth", "bogus"]),
    st.text("abc019.-", max_size=4) | st.text("tighfas", max_size=6),
)
def test_python_and_the_core_say_the_same(name, value):
    assert said(Config.from_conf, f"{name}:{value}") == said(_core.parse_options, f"{name}:{value}")


bins = st.from_regex(r"[0-9]{0,2} ?([KMT]iB)?/[+-]?[0-9]{0,20}/ ?[0-3]{0,2}(/1)?", fullmatch=True)


@given(st.lists(bins, max_size=3).map("+".join) | st.text("0123/+MiB ", max_size=12))
@example("+".join(f"{mib}MiB/0/1" for mib in range(2, 66)))
@example("+".join(f"{mib}MiB/0/1" for mib in range(2, 67)))
@example("6MiB/1/2+6MiB/1/2")
@example("1MiB/0/1,bin_limit:1MiB")
@example("2 MiB/0/99999999999999999999")
@example("9999999999999999999/0/1")
def test_python_and_the_core_say_the_same_of_exact_bins(value):
    text = f"exact_bins:{value}"
    assert said(Config.from_conf, text) == said(_core.parse_options, text)


def said(read, text):
    try:
        read(text)
    except ConfigError as error:
        return str(error)
    return None


# --- the nearest word -------------------------------------------------------------------------------------------------


@given(st.text("abc", max_size=6), st.text("abc", max_size=6), st.text("abc", max_size=6))
def test_edit_distance_is_a_distance(a, b, c):
    assert (edit_distance(a, b) == 0) == (a == b)
    assert edit_distance(a, b) == edit_distance(b, a)
    assert edit_distance(a, c) <= edit_distance(a, b) + edit_distance(b, c)


def test_the_nearest_word_is_the_one_with_the_fewest_changes():
    assert edit_distance("kitten", "sitting") == 3
    assert nearest("memory_fracton", NAMES) == "memory_fraction"
    assert nearest("BIN_LIMIT", NAMES) == "bin_limit"

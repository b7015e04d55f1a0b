"""The table of options: one truth, read by C++, by the generator and by Python."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolalloc import _core
from poolalloc._internal.options import OPTIONS
from poolalloc.errors import ConfigError
from poolalloc.sizes import format_size, parse_size

ROOT = Path(__file__).resolve().parents[2]
GENERATOR = ROOT / "tools" / "generate_options.py"


def defaults():
    return {option.name: option.default for option in OPTIONS}


# --- the table --------------------------------------------------------------------------------------------------------


def test_cpp_and_python_hold_the_same_table():
    assert _core.option_table() == [option._asdict() for option in OPTIONS]


def test_no_text_means_the_defaults():
    assert _core.parse_options("") == defaults()
    assert _core.parse_options(" \t\n") == defaults()


FIGURES = [option for option in OPTIONS if option.type not in ("choice", "text", "bins")]
CHOICES = [option for option in OPTIONS if option.type == "choice"]


@pytest.mark.parametrize("option", FIGURES, ids=lambda option: option.name)
def test_both_ends_of_a_range_are_allowed_and_what_lies_beyond_is_not(option):
    for value in (option.maximum, option.default):
        with_it = ",trim_high:1048576 TiB" if option.name == "trim_low" else ""  # says nothing without the other
        assert _core.parse_options(f"{option.name}:{value}{with_it}")[option.name] == value
    step = {"number": 0.5}.get(option.type, 1)
    for value in (option.minimum - step, option.maximum + step):
        with pytest.raises(ConfigError, match=f"option {option.name}: .*; allowed: "):
            _core.parse_options(f"{option.name}:{value}")


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.name)
def test_the_manual_has_the_option_with_its_help(option):
    manual = (ROOT / "docs" / "options.md").read_text()
    assert re.search(rf"^\| `{option.name}` \| .* \| {re.escape(option.help)} \|$", manual, re.MULTILINE)


# --- texts ------------------------------------------------------------------------------------------------------------


def test_a_text_sets_what_it_names_and_nothing_else():
    options = _core.parse_options(" bin_limit : 1.5 KiB ,\tmemory_fraction:5e-1, placement_candidates:+3,growth: fast")
    changed = {"bin_limit": 1536, "memory_fraction": 0.5, "placement_candidates": 3, "growth": "fast"}
    assert options == defaults() | changed


def test_a_text_is_taken_as_it_is_and_cannot_have_a_comma():
    assert _core.parse_options("record: a path: with it all.npz ")["record"] == "a path: with it all.npz"
    with pytest.raises(ConfigError, match=re.escape('"b.npz" in "record:a,b.npz" has no value')):
        _core.parse_options("record:a,b.npz")


@pytest.mark.parametrize("option", CHOICES, ids=lambda option: option.name)
def test_every_word_of_a_choice_is_allowed(option):
    for word in option.unit.split(" | "):
        assert _core.parse_options(f"{option.name}:{word}")[option.name] == word


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "bin_limt:1 MiB",
            ['"bin_limt"', '"1 MiB"', "nearest known option: bin_limit", "0 B to 1 MiB", "memory_limit"],
        ),
        ("MEMORY_FRACTION:1", ['"MEMORY_FRACTION"', "nearest known option: memory_fraction"]),
        ("bin_limit:2 MiB", ["bin_limit", '"2 MiB"', "out of range", "0 B to 1 MiB"]),
        ("bin_limit:-1", ["bin_limit", '"-1"', "not a size", "0 B to 1 MiB"]),
        ("bin_limit:", ["bin_limit", '""', "not a size"]),
        ("memory_fraction:half", ["memory_fraction", '"half"', "not a number", "0 to 1"]),
        ("memory_fraction:nan", ["memory_fraction", "not a number"]),
        ("memory_fraction:1e999", ["memory_fraction", "out of range"]),
        ("placement_candidates:3.0", ["placement_candidates", '"3.0"', "not a whole number", "1 to 1024"]),
        ("placement_candidates:99999999999999999999", ["placement_candidates", "out of range"]),
        ("memory_limit:1152921504606846977", ["memory_limit", "out of range", "1048576 TiB"]),
        ("memory_limit:1", ["memory_limit", "less than one page of 2 MiB"]),
        ("memory_fraction:0", ["memory_fraction", "nothing could be allocated"]),
        ("growth:tigth", ["growth", '"tigth"', "nearest: tight", "allowed: tight | balanced | fast"]),
        ("growth:", ["growth", '""', "none of the allowed words"]),
        ("grwoth:tight", ['"grwoth"', "nearest known option: growth (allowed: tight | balanced | fast)"]),
        ("bin_limit:0,bin_limit:0", ["bin_limit", "second value"]),
        ("bin_limit", ['"bin_limit"', "has no value", "key:value"]),
        ("bin_limit:0,,", ["has no value", '"bin_limit:0,,"']),
        ("bin_limit:1\n2", ["bin_limit", "not a size"]),
    ],
)
def test_an_error_is_one_line_that_says_what_is_wrong_and_what_is_allowed(text, words):
    with pytest.raises(ConfigError) as caught:
        _core.parse_options(text)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


# --- sizes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("262144", 262144),
        ("256 KiB", 262144),
        ("2MiB", 2097152),
        ("1.5 GiB", 1610612736),
        ("10 GB", 10**10),
        ("0", 0),
        (" 7 b ", 7),
        ("0.0000000000009094947017729282379150390625 TiB", 1),
        ("9223372036854775807", 2**63 - 1),
    ],
)
def test_sizes_are_read(text, size):
    assert _core.parse_bytes(text) == size
    assert parse_size(text, zero=True) == size


@pytest.mark.parametrize(
    "text", ["", " ", "-1", "1,5 GiB", "1.", ".5", "2 XiB", "0x10", "1e3", "9223372036854775808", "MiB"]
)
def test_what_is_no_size_is_refused(text):
    with pytest.raises(ConfigError, match="size "):
        _core.parse_bytes(text)


@given(st.integers(0, 2**62))
def test_sizes_are_written_alike_and_read_back(size):
    text = _core.format_bytes(size)
    assert text == format_size(size)
    assert abs(_core.parse_bytes(text) - size) * 200 <= size + 200  # two decimals, and a fraction of a byte cut off
    assert _core.parse_bytes(str(size)) == size


@given(st.from_regex(r"[0-9]{1,22}(\.[0-9]{1,30})? ?([KkMmGgTt]i?)?[Bb]?", fullmatch=True))
def test_cpp_and_python_read_a_size_alike(text):
    try:
        expected = parse_size(text, zero=True)
    except ValueError:
        with pytest.raises(ConfigError):
            _core.parse_bytes(text)
    else:
        assert _core.parse_bytes(text) == expected


# --- the generator ----------------------------------------------------------------------------------------------------


def generate(folder, *arguments):
    command = [sys.executable, str(folder / "tools" / GENERATOR.name), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def tree(tmp_path):
    for name in (
        "tools/generate_options.py",
        "csrc/core/options/options.def",
        "poolalloc/_internal/options.py",
        "docs/options.md",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    return tmp_path


def test_what_is_committed_follows_the_table(tree):
    assert generate(tree, "--check").returncode == 0


@pytest.mark.parametrize("stale", ["poolalloc/_internal/options.py", "docs/options.md"])
def test_check_names_the_stale_file_and_the_next_run_mends_it(tree, stale):
    table = tree / "csrc/core/options/options.def"
    table.write_text(
        table.read_text() + 'OPTION(eagerness, boolean, true, false, true, "", "Does \\"more\\" at once.")\n'
    )
    assert generate(tree).returncode == 0
    (tree / stale).write_text((tree / stale).read_text().replace("eagerness", "calm"))
    result = generate(tree, "--check")
    assert result.returncode == 1
    assert result.stdout.splitlines() == [
        f"{stale} does not follow csrc/core/options/options.def; run: python tools/generate_options.py"
    ]
    assert generate(tree).returncode == 0
    assert generate(tree, "--check").returncode == 0
    assert "eagerness: bool = True" in (tree / "poolalloc/_internal/options.py").read_text()
    assert (
        '| `eagerness` | boolean | true | true or false | Does "more" at once. |'
        in (tree / "docs/options.md").read_text()
    )


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ('OPTION(a, texts, 1, 0, 1, "", "")', "a has type texts"),
        ('OPTION(a, text, "x", 0, 0, "a word", "")', "the text a needs"),
        ('OPTION(a, text, "", 0, 0, "", "")', "the text a needs"),
        ('OPTION(a, bins, 0, 0, 0, "a form", "")', "the bins a need"),
        ('OPTION(a, bins, none, 0, 0, "", "")', "the bins a need"),
        ('OPTION(a, integer, 2, 0, 1, "", "")', "default of a"),
        ('OPTION(a, integer, 0.5, 0, 1, "", "")', "not written as a integer"),
        ('OPTION(a, bytes, 0, 0, 9007199254740993, "", "")', "no exact double"),
        ('OPTION(a, integer, 1, 0, 1, "")', "is not (name"),
        ('OPTION(a, choice, "x", 0, 0, "y | z", "")', "default of a"),
        ('OPTION(a, choice, "x", 0, 1, "x | z", "")', "bounds of 0"),
        ('OPTION(a, choice, "x", 0, 0, "x", "")', "words with"),
        ('OPTION(bin_limit, integer, 1, 0, 1, "", "")', "bin_limit appears more than once"),
    ],
)
def test_a_row_that_makes_no_sense_is_refused(tree, row, words):
    table = tree / "csrc/core/options/options.def"
    table.write_text(table.read_text() + row + "\n")
    result = generate(tree)
    assert result.returncode == 1
    assert words in result.stderr
    assert len(result.stderr.splitlines()) == 1

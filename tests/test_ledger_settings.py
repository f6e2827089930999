"""Where settings come from, which one wins, and what a broken bughive.toml is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from ledger.errors import SettingsError
from ledger.settings import Settings, TierSetting


def test_without_any_file_the_defaults_hold(tmp_path: Path) -> None:
    settings = Settings.load(tmp_path, {})
    assert settings.ledger_path == Path("data/ledger")
    assert settings.durability == "power-loss"
    assert settings.get("ANTHROPIC_API_KEY") is None


def test_the_environment_wins_over_dotenv_and_dotenv_over_bughive_toml(tmp_path: Path) -> None:
    (tmp_path / "bughive.toml").write_text('[ledger]\npath = "from-toml"\n')
    assert Settings.load(tmp_path, {}).ledger_path == tmp_path / "from-toml"
    (tmp_path / ".env").write_text("BUGHIVE_LEDGER=from-dotenv\nOPENROUTER_API_KEY='key with spaces'\n")
    assert Settings.load(tmp_path, {}).ledger_path == Path("from-dotenv")
    settings = Settings.load(tmp_path, {"BUGHIVE_LEDGER": "from-environment"})
    assert settings.ledger_path == Path("from-environment")
    assert settings.get("OPENROUTER_API_KEY") == "key with spaces"


def test_both_files_are_found_upwards_and_a_path_is_relative_to_its_file(tmp_path: Path) -> None:
    (tmp_path / "bughive.toml").write_text(
        '[ledger]\npath = "l"\ndurability = "process-crash"\n[tiers.FAST]\nmodel = "m/fast"\n'
        'provider = "openrouter"\ntimeout_s = 7.5\nmax_retries = 0\nmax_tokens = 500\n'
        'fallback = ["GENERAL"]\n'
    )
    (tmp_path / ".env").write_text("ANTHROPIC_API_KEY=k\n")
    deep = tmp_path / "a" / "b"
    deep.mkdir(parents=True)
    settings = Settings.load(deep, {})
    assert settings.ledger_path == tmp_path / "l"
    assert settings.durability == "process-crash"
    assert settings.tiers == {"FAST": TierSetting("m/fast", "openrouter", 7.5, 0, 500, ("GENERAL",))}
    assert settings.get("ANTHROPIC_API_KEY") == "k"


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    (tmp_path / "bughive.toml").write_text('[ledger]\npath = "~/led"\n')
    assert Settings.load(tmp_path, {}).ledger_path == Path("/home/somebody/led")
    assert Settings.load(tmp_path, {"BUGHIVE_LEDGER": "~/x"}).ledger_path == Path("/home/somebody/x")


def test_a_key_is_not_shown_with_the_settings(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("ANTHROPIC_API_KEY=canary-1\n")
    assert "canary" not in repr(Settings.load(tmp_path, {"OPENROUTER_API_KEY": "canary-2"}))


@pytest.mark.parametrize(
    ("text", "line", "complaint"),
    [
        ("[ledger\n", 1, "Expected"),
        (
            '[ledger]\n\npath = "x"\npaht = "y"\n',
            4,
            "unknown key 'paht' in [ledger]; expected path, durability",
        ),
        ("[ledger]\npath = 3\n", 2, "path in [ledger] must be a text in quotes that is not empty, not 3"),
        ('[ledger]\ndurability = "none"\n', 2, "must be power-loss or process-crash, not 'none'"),
        (
            "\n[budget]\n",
            2,
            "unknown key 'budget' at the top; expected budgets, ledger, circuit, prices, tiers",
        ),
        ('[tiers.FAST]\nmodle = "x"\n', 2, "unknown key 'modle' in [tiers.FAST]; expected model, provider,"),
        ('[tiers.FAST]\nprovider = "openrouter"\n', 1, "[tiers.FAST] needs a model and its provider"),
        ('[tiers.FAST]\nmodel = "m"\n', 1, "[tiers.FAST] needs a model and its provider"),
        ("[tiers.NEW]\nmax_tokens = 5\n", 1, "[tiers.NEW] needs a model and its provider"),
        ("[tiers.FAST]\n\ntimeout_s = 0\n", 3, "timeout_s in [tiers.FAST] must be a number above 0, not 0"),
        ("[tiers.FAST]\nmax_retries = 1.5\n", 2, "must be a whole number of at least 0, not 1.5"),
        ("[tiers.FAST]\nmax_tokens = true\n", 2, "must be a whole number of at least 1, not True"),
        ('[tiers.FAST]\nfallback = "GENERAL"\n', 2, "fallback in [tiers.FAST] must be a list of tiers"),
        ('[tiers.FAST]\nfallback = ["GENRAL"]\n', 2, "names no tier 'GENRAL'; did you mean GENERAL?"),
        ('[tiers.FAST]\nmodel = "x"\nprovider = "acme"\n', 3, "must be anthropic or openrouter, not 'acme'"),
        ('ledger = "data"\n', 1, "ledger must be a table [ledger]"),
        ("prices = 3\n", 1, "prices must be tables [[prices]]"),
    ],
)
def test_a_broken_bughive_toml_is_told_its_line_and_what_was_expected(
    tmp_path: Path, text: str, line: int, complaint: str
) -> None:
    (tmp_path / "bughive.toml").write_text(text)
    with pytest.raises(SettingsError) as wrong:
        Settings.load(tmp_path, {})
    message = str(wrong.value)
    assert str(tmp_path / "bughive.toml") in message
    assert f"line {line}" in message
    assert complaint in message
    assert "\n" not in message


def test_a_file_that_is_not_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "bughive.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(SettingsError, match="expected a TOML file in UTF-8"):
        Settings.load(tmp_path, {})

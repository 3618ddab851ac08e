"""Run `moe-md` in the process of the tests."""

from moe_md.commands import main as cli


def moe_md(capsys, *arguments) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command."""
    code = cli.main([str(a) for a in arguments])
    out, err = capsys.readouterr()
    return code, out, err


def failure(capsys, *arguments, code=2) -> str:
    """The one line on stderr of a command that must fail with an exit code."""
    found, _, err = moe_md(capsys, *arguments)
    assert found == code
    assert err.startswith("moe-md: error: ") and err.count("\n") == 1, err
    return err


def as_options(**values) -> tuple:
    """Options of the command line by key: `as_options(log_every=4)` is `("--log-every", 4)`."""
    return tuple(part for key, value in values.items() for part in (f"--{key.replace('_', '-')}", value))

"""``--install-completion`` makes the shell complete commands, options and their values."""

import shutil
import subprocess
import sys

import pytest

PROGRAM = f"""#!/bin/sh
exec {sys.executable} -m gpu_extract "$@"
"""


@pytest.fixture
def complete(tmp_path, monkeypatch):
    """Return a function that completes words in bash, after the completion was installed in a new home."""
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("needs bash")
    program = tmp_path / "bin" / "gpu-extract"
    program.parent.mkdir()
    program.write_text(PROGRAM)
    program.chmod(0o755)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")
    # The option then takes the name of the shell, instead of looking for it among the parents of the process.
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")
    install = [sys.executable, "-m", "gpu_extract", "--install-completion", "bash"]
    subprocess.run(install, check=True, capture_output=True)
    assert "gpu-extract.sh" in (tmp_path / ".bashrc").read_text()

    def complete(*words):
        quoted = " ".join(f"'{word}'" for word in words)
        script = f"source ~/.bashrc; COMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}; "
        script += 'complete -p gpu-extract >&2 && _gpu_extract_completion gpu-extract; echo "${COMPREPLY[@]}"'
        done = subprocess.run([bash, "--norc", "-c", script], check=True, capture_output=True, text=True)
        return done.stdout.split()

    return complete


def test_completion(complete):
    assert set(complete("gpu-extract", "g")) == {"gallery"}
    assert "--nuclear-channel" in complete("gpu-extract", "run", "--nu")
    assert complete("gpu-extract", "run", "--match", "") == ["id", "overlap"]

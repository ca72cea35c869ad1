"""State that passes from one shell to the next inside a sandbox: its folder and its variables.

Runs inside, with nothing but the standard library. Functions, aliases and options end with their
shell. So do variables that make ordinary programs load, run, read or send something else: a later
command is allowed for what it says, and must do what it says.
"""

import re
from typing import Final

STATE_DESCRIPTOR: Final = 19
"""On which a shell tells its state as it ends"""

SCRIPT: Final = (
    'trap \'{ builtin pwd -P; builtin printf "\\0"; /usr/bin/env -0; }'
    f' 2>/dev/null >&{STATE_DESCRIPTOR}\' EXIT; eval "shift;$1"'
)
"""Runs its first argument as a command"""

MAX_EXPORTED_BYTES: Final = 64 * 2**10
MAX_FOLDER_BYTES: Final = 4096

_BEGINNINGS: Final = (
    *("LD_", "DYLD_", "GIT_", "SSH_", "GPG", "GNUPG", "XDG_", "BASH", "DBUS_", "DOCKER_", "SUDO_"),
    *("PYTHON", "PIP_", "UV_", "CONDA_", "PERL", "RUBY", "GEM_", "BUNDLE_", "PHP", "LUA_", "R_"),
    *("NODE_", "NPM_", "npm_", "YARN_", "COREPACK_", "DENO_", "BUN_", "CARGO", "RUST", "GO111"),
    *("JAVA", "JDK_", "_JAVA", "MAVEN_", "GRADLE_", "DOTNET_", "COMPlus_", "CORECLR_", "NUGET_"),
    *("GCC_", "CC_", "CXX_", "CMAKE_", "MAKE", "MALLOC_", "GLIBC_", "GCONV_", "LOCPATH", "NLS"),
    *(
        "OPENSSL_",
        "SSL_",
        "CURL_",
        "WGET",
        "LESS",
        "MAN",
        "TERM",
        "HIST",
        "PROMPT_",
        "FZF_",
        "RIPG",
    ),
)
_NAMES: Final = (
    *("PATH", "ENV", "IFS", "HOME", "USER", "LOGNAME", "SHELL", "SHELLOPTS", "PWD", "OLDPWD", "_"),
    *("SHLVL", "PS0", "PS1", "PS2", "PS3", "PS4", "FCEDIT", "GLOBIGNORE", "LANG", "LANGUAGE"),
    *("TMP", "TEMP", "TMPDIR", "TZDIR", "CC", "CXX", "CPP", "AR", "LD", "AS", "RANLIB", "GOROOT"),
    *("GOENV", "GOTOOLCHAIN", "HOSTALIASES", "LOCALDOMAIN", "DISPLAY", "VISUAL", "POSIXLY_CORRECT"),
)
_ENDS: Final = (
    *("PATH", "PAGER", "EDITOR", "BROWSER", "FLAGS", "OPTIONS", "OPTS", "_OPT", "OPEN", "CLOSE"),
    *("PRELOAD", "STARTUP", "WRAPPER", "COMMAND", "HOOK", "HOOKS", "RC", "CONFIG", "ASKPASS"),
    *("PROXY", "proxy", "_FILE", "_INIT", "LINKER", "RUNNER", "_LIB", "_HOME"),
)


def is_poison(name: str) -> bool:
    """Return whether a variable may change what an ordinary program does."""
    return name in _NAMES or name.startswith(_BEGINNINGS) or name.endswith(_ENDS)


def left_state(text: bytes) -> tuple[str, dict[str, str]] | None:
    """Return the folder and the variables that a shell has left; None if it told nothing, or a
    folder that is none."""
    folder, *variables = text.decode(errors="surrogateescape").split("\0")
    folder = folder.removesuffix("\n")
    if not variables or not folder.startswith("/") or len(folder) > MAX_FOLDER_BYTES:
        return None
    try:
        folder.encode()
    except UnicodeEncodeError:  # no message can hold it
        return None
    exported: dict[str, str] = {}
    room = MAX_EXPORTED_BYTES
    for variable in variables[:-1]:
        name, _, value = variable.partition("=")
        if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) and not is_poison(name):
            room -= len(variable)
            if room >= 0:
                exported[name] = value
    return folder, exported
